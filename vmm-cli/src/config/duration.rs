//! Duration: its notation and the limit of the grace time.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

use super::value::{ValueError, split_number};

/// The longest duration, one hour.
const MAX: Duration = Duration::from_secs(3600);

pub(super) const EXPECTED: &str = "a duration from 0s to 60m such as \"5s\" (units: ms, s, m)";

/// Reads a whole number with the unit `ms`, `s` or `m` (minutes): 0 to one hour.
///
/// # Errors
///
/// [`ValueError`] if the text is anything else; a number without a unit is refused, not guessed.
pub fn parse(text: &str) -> Result<Duration, ValueError> {
    let value = || text.to_owned();
    let (digits, unit) = split_number(text, EXPECTED)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "" => {
            return Err(ValueError::NoUnit { value: value(), expected: EXPECTED });
        }
        _ => {
            return Err(ValueError::UnknownUnit {
                value: value(),
                unit: unit.to_owned(),
                expected: EXPECTED,
            });
        }
    };
    // Only digits: `parse` can fail by overflow alone, which is above the limit too.
    let milliseconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    milliseconds
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX)
        .ok_or_else(|| ValueError::AboveLimit { value: value(), limit: "one hour (60m)" })
}

/// Writes `duration` in the largest unit that divides it. What is finer than a millisecond is dropped.
pub(crate) fn render(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_owned(),
        ms if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// Deserializes a string as [`parse`] reads it.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_milliseconds_seconds_and_minutes() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert_eq!(parse("60m"), Ok(MAX));
    }

    #[test]
    fn what_is_no_duration_says_why() {
        for (text, start) in [
            ("5", "5 has no unit: write \"5s\" for seconds"),
            ("", "\"\" is empty"),
            ("-5s", "-5s is negative"),
            ("0.5s", "0.5s is a fraction"),
            ("5h", "5h has the unknown unit h"),
            ("5S", "5S has the unknown unit S"),
            ("soon", "soon is not a duration"),
            ("61m", "61m is above the limit of one hour (60m)"),
            ("18446744073709551615m", "18446744073709551615m is above the limit"),
            ("99999999999999999999999s", "99999999999999999999999s is above the limit"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_render_writes_is_read_back(ms in 0_u64..=3_600_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&render(duration)), Ok(duration));
        }
    }
}
