//! Setting value: why one is refused, and the readers shared by file and flags.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use thiserror::Error;

/// Most characters of a refused value that a message repeats.
const SHOWN_VALUE: usize = 80;

/// Largest number of vCPUs: xAPIC identifiers end at 254, 255 is the broadcast.
const MAX_CPUS: u8 = 254;

/// Longest command line in bytes: Linux on x86 keeps 2048 with the closing NUL (`COMMAND_LINE_SIZE`).
const MAX_CMDLINE: usize = 2047;

pub(super) const EXPECTED_CPUS: &str = "a whole number from 1 to 254";
pub(super) const EXPECTED_CMDLINE: &str = "a string of printable ASCII, at most 2047 bytes";
pub(super) const EXPECTED_PATH: &str = "a path in quotes";
pub(super) const EXPECTED_SWITCH: &str = "true or false";

/// Why a value is refused. The text begins with the value, so that it reads on after `key = `.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum ValueError {
    #[error("\"\" is empty; expected {expected}")]
    Empty { expected: &'static str },
    #[error("{} is not {expected}", quote(value))]
    Malformed { value: String, expected: &'static str },
    #[error("{} is {found}; expected {expected}", quote(value))]
    WrongType { value: String, found: &'static str, expected: &'static str },
    #[error("{} is negative; expected {expected}", quote(value))]
    Negative { value: String, expected: &'static str },
    #[error("{} is a fraction; expected {expected}", quote(value))]
    Fraction { value: String, expected: &'static str },
    #[error("{} has the unknown unit {}; expected {expected}", quote(value), quote(unit))]
    UnknownUnit { value: String, unit: String, expected: &'static str },
    #[error("{} has no unit: write \"{}s\" for seconds; expected {expected}", quote(value), quote(value))]
    NoUnit { value: String, expected: &'static str },
    #[error("{} is above the limit of {limit}", quote(value))]
    AboveLimit { value: String, limit: &'static str },
    #[error("{} is below the minimum of {minimum}", quote(value))]
    BelowMinimum { value: String, minimum: &'static str },
    #[error("{} does not fit in 64 bits; expected {expected}", quote(value))]
    TooWide { value: String, expected: &'static str },
    #[error("{} is not a multiple of {unit}", quote(value))]
    NotMultiple { value: String, unit: &'static str },
    #[error("{} is not one of {permitted}", quote(value))]
    NotOneOf { value: String, permitted: String },
    #[error("{} has {character:?} at character {position}; expected {expected}", quote(value))]
    Character { value: String, character: char, position: usize, expected: &'static str },
    #[error("{} runs backwards: write {last}-{first}", quote(value))]
    CpusBackwards { value: String, first: usize, last: usize },
    #[error("{} names CPU {cpu} twice", quote(value))]
    CpuTwice { value: String, cpu: usize },
    #[error("{} is {length} bytes long, above the limit of {limit}", quote(value))]
    TooLong { value: String, length: usize, limit: usize },
}

/// `text` as it is if that is safe to print and to read in a sentence, else escaped in quotes; cut after
/// 80 characters.
pub(super) fn quote(text: &str) -> String {
    quote_up_to(text, SHOWN_VALUE)
}

/// [`quote`] that cuts after `limit` characters.
pub(super) fn quote_up_to(text: &str, limit: usize) -> String {
    let plain = |c: char| !c.is_whitespace() && is_printable(c);
    let cut: String = text.chars().take(limit).collect();
    let rest = if cut.len() < text.len() { "…" } else { "" };
    if !cut.is_empty() && cut.chars().all(plain) { format!("{cut}{rest}") } else { format!("{cut:?}{rest}") }
}

/// Whether `c` occupies its place on a terminal: no control, format or combining character.
pub(super) fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// Deserializes a string and reads it by `FromStr`.
pub(super) fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// As [`from_text`]; a key that is present is always `Some`.
pub(super) fn some_from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    from_text(deserializer).map(Some)
}

/// Splits a whole number from its unit: at least one decimal digit, then whatever follows.
///
/// # Errors
///
/// [`ValueError`] naming `expected` if `text` is empty, negative, a fraction or does not begin with a digit.
pub(super) fn split_number<'a>(
    text: &'a str,
    expected: &'static str,
) -> Result<(&'a str, &'a str), ValueError> {
    let value = || text.to_owned();
    if text.is_empty() {
        return Err(ValueError::Empty { expected });
    }
    let number = text.strip_prefix('-').unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    let (digits, unit) = number.split_at(end);
    if digits.is_empty() {
        return Err(ValueError::Malformed { value: value(), expected });
    }
    if number.len() < text.len() {
        return Err(ValueError::Negative { value: value(), expected });
    }
    if unit.starts_with(['.', ',']) {
        return Err(ValueError::Fraction { value: value(), expected });
    }
    Ok((digits, unit))
}

/// Reads the number of vCPUs, 1 to 254.
///
/// # Errors
///
/// [`ValueError`] if `text` is not a decimal number in that range.
pub fn parse_cpus(text: &str) -> Result<u8, ValueError> {
    let value = || text.to_owned();
    let (digits, unit) = split_number(text, EXPECTED_CPUS)?;
    if !unit.is_empty() {
        return Err(ValueError::Malformed { value: value(), expected: EXPECTED_CPUS });
    }
    // Only digits: `parse` can fail by overflow alone, which is above the limit too.
    match digits.parse::<u8>() {
        Ok(0) => Err(ValueError::BelowMinimum { value: value(), minimum: "1" }),
        Ok(count) if count <= MAX_CPUS => Ok(count),
        _ => Err(ValueError::AboveLimit { value: value(), limit: "254" }),
    }
}

/// Deserializes [`parse_cpus`]'s number from an integer.
pub(super) fn cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    parse_cpus(&i64::deserialize(deserializer)?.to_string()).map_err(D::Error::custom)
}

/// Reads a guest command line: printable ASCII (no NUL, no line break), at most 2047 bytes; may be empty.
///
/// # Errors
///
/// [`ValueError::Character`] with the 1-based position of the first character that is not permitted,
/// [`ValueError::TooLong`].
pub fn parse_cmdline(text: &str) -> Result<String, ValueError> {
    let bad = text.chars().zip(1..).find(|(c, _)| !matches!(c, ' '..='~'));
    if let Some((character, position)) = bad {
        let expected = EXPECTED_CMDLINE;
        return Err(ValueError::Character { value: text.to_owned(), character, position, expected });
    }
    if text.len() > MAX_CMDLINE {
        let length = text.len();
        return Err(ValueError::TooLong { value: text.to_owned(), length, limit: MAX_CMDLINE });
    }
    Ok(text.to_owned())
}

/// Deserializes [`parse_cmdline`]'s string.
pub(super) fn cmdline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    parse_cmdline(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads a path: not empty, no NUL.
pub(super) fn parse_path(text: &str) -> Result<PathBuf, ValueError> {
    if text.is_empty() {
        return Err(ValueError::Empty { expected: "a path" });
    }
    if let Some((character, position)) = text.chars().zip(1..).find(|(c, _)| *c == '\0') {
        let expected = "a path";
        return Err(ValueError::Character { value: text.to_owned(), character, position, expected });
    }
    Ok(PathBuf::from(text))
}

/// Deserializes [`parse_path`]'s path; a key that is present is always `Some`.
pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    parse_path(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_taken_from_1_to_254() {
        assert_eq!(parse_cpus("1"), Ok(1));
        assert_eq!(parse_cpus("254"), Ok(254));
        assert_eq!(parse_cpus("007"), Ok(7));
    }

    #[test]
    fn cpus_outside_the_range_name_the_limit() {
        for (text, message) in [
            ("0", "0 is below the minimum of 1"),
            ("255", "255 is above the limit of 254"),
            ("99999999999999999999", "99999999999999999999 is above the limit of 254"),
            ("-1", "-1 is negative; expected a whole number from 1 to 254"),
            ("", "\"\" is empty; expected a whole number from 1 to 254"),
            ("-", "- is not a whole number from 1 to 254"),
            ("+1", "+1 is not a whole number from 1 to 254"),
            ("two", "two is not a whole number from 1 to 254"),
            ("1.5", "1.5 is a fraction; expected a whole number from 1 to 254"),
            ("2M", "2M is not a whole number from 1 to 254"),
        ] {
            assert_eq!(parse_cpus(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn cmdline_takes_printable_ascii_up_to_the_limit() {
        let longest = "a".repeat(MAX_CMDLINE);
        assert_eq!(parse_cmdline(&longest), Ok(longest.clone()));
        assert_eq!(parse_cmdline(""), Ok(String::new()));
        assert_eq!(parse_cmdline(" ~"), Ok(" ~".to_owned()));
        let error = parse_cmdline(&(longest + "a")).unwrap_err();
        assert!(error.to_string().ends_with("… is 2048 bytes long, above the limit of 2047"), "{error}");
    }

    #[test]
    fn fault_c8_cmdline_with_nul_or_non_ascii_is_refused() {
        for (text, message) in [
            ("a\0b", r#""a\0b" has '\0' at character 2"#),
            ("quiet\n", r#""quiet\n" has '\n' at character 6"#),
            ("größe", "größe has 'ö' at character 3"),
            ("\x7f", r#""\u{7f}" has '\u{7f}' at character 1"#),
        ] {
            let error = parse_cmdline(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn paths_that_no_file_can_have_are_refused() {
        assert_eq!(parse_path(""), Err(ValueError::Empty { expected: "a path" }));
        assert!(matches!(parse_path("a\0"), Err(ValueError::Character { position: 2, .. })));
        assert_eq!(parse_path("a b"), Ok(PathBuf::from("a b")));
    }

    #[test]
    fn quote_escapes_what_a_terminal_would_obey() {
        assert_eq!(quote("512M"), "512M");
        assert_eq!(quote(""), "\"\"");
        assert_eq!(quote("a b"), "\"a b\"");
        assert_eq!(quote("\x1b[31m"), r#""\u{1b}[31m""#);
        assert_eq!(quote("\u{202e}x"), r#""\u{202e}x""#);
        assert_eq!(quote_up_to("abcdef", 3), "abc…");
    }
}
