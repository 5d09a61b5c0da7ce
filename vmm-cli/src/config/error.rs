//! Configuration error: what is wrong, where, and how to mend it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::balloon::BalloonConfigError;
use super::cpu::CpuError;
use super::disk::DiskError;
use super::file::{FileError, show};
use super::fs::FsError;
use super::keys::{self, Hint};
use super::memory::MemoryError;
use super::memory_hotplug::MemoryHotplugError;
use super::net::NetError;
use super::value::{is_printable, quote};
use super::vsock::VsockError;

/// Longest source line, in characters, that is shown below a message.
const SHOWN_LINE: usize = 110;

/// Why a configuration is refused. What the operating system said is in the chain of sources.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum ConfigError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{at}: the file is not UTF-8")]
    NotUtf8 { at: Place },
    #[error("{at}: {reason}{}", at.excerpt())]
    Syntax { at: Place, reason: String },
    #[error("{at}: unknown key `{}`: {hint}{}", quote(key), at.excerpt())]
    UnknownKey { at: Place, key: String, hint: Hint },
    #[error("{at}: `{section}` is a section, not {found}: {hint}{}", at.excerpt())]
    NotASection { at: Place, section: &'static str, found: &'static str, hint: Hint },
    #[error("{at}: `{section}` is {found}: write a table `[[{section}]]` for each{}", at.excerpt())]
    NotTables { at: Place, section: &'static str, found: &'static str },
    #[error("{at}: {key} = {reason}{}", at.excerpt())]
    Value { at: Place, key: String, reason: String },
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    MemoryHotplug(#[from] MemoryHotplugError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    Balloon(#[from] BalloonConfigError),
    #[error("{}", keys::with_flag(key))]
    Image {
        key: &'static str,
        #[source]
        source: FileError,
    },
    #[error("{}: the path {path:?} is not UTF-8", keys::with_flag(key))]
    PathNotUtf8 { key: &'static str, path: PathBuf },
    #[error(
        "{}: the socket path {} is {length} bytes long, above the limit of {limit}",
        keys::with_flag(key),
        show(path)
    )]
    SocketPathTooLong { key: &'static str, path: PathBuf, length: usize, limit: usize },
    #[error(
        "{}: in its directory the name of the socket {} is {length} bytes long, above the limit of {limit}",
        keys::with_flag(key),
        show(path)
    )]
    SocketNameTooLong { key: &'static str, path: PathBuf, length: usize, limit: usize },
    #[error(
        "{}: {} is also {}, and would be written over",
        keys::with_flag(key),
        show(path),
        keys::with_flag(image)
    )]
    OverwritesImage { key: &'static str, path: PathBuf, image: &'static str },
    #[error(
        "{} = {count}: with the interrupt controllers in the kernel there are at most {limit} vCPUs; set {} to \"split\"",
        keys::with_flag(key),
        keys::with_flag("machine.irqchip")
    )]
    NeedsSplitIrqchip { key: &'static str, count: u16, limit: u16 },
    #[error(
        "{} = true: KVM has its interval timer only beside its own interrupt controllers; leave it out, or set {} to \
         \"kernel\"",
        keys::with_flag(key),
        keys::with_flag("machine.irqchip")
    )]
    NoTimer { key: &'static str },
    #[error(
        "{}: {} is also {}; choose a path for each",
        keys::with_flag(key),
        show(path),
        keys::with_flag(other)
    )]
    SameOutput { key: &'static str, path: PathBuf, other: &'static str },
    #[error(
        "{} and {} are both \"stdio\": a key would go to either; set one of them to \"null\", or elsewhere",
        keys::with_flag(key),
        keys::with_flag(other)
    )]
    SharedTerminal { key: &'static str, other: &'static str },
    #[error("{}: cannot make {} absolute", keys::with_flag(key), show(path))]
    NotAbsolute {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A place in a configuration file: `file:line:column`, or only the file where the parser names no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    spot: Option<Box<Spot>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Spot {
    line: usize,
    column: usize,
    excerpt: String,
}

impl Place {
    /// The place of the bytes `span` of `text`. Any span is accepted: one outside of `text` means its end.
    pub(super) fn new(file: &Path, text: &str, span: Option<Range<usize>>) -> Self {
        let spot = span.map(|span| Box::new(Spot::new(text, span)));
        Self { file: file.to_owned(), spot }
    }

    /// Line and column, from 1; the column counts characters.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.spot.as_ref().map(|spot| (spot.line, spot.column))
    }

    /// The source line with a caret, to follow the message; empty if there is none worth showing.
    fn excerpt(&self) -> &str {
        self.spot.as_ref().map_or("", |spot| &spot.excerpt)
    }
}

impl Spot {
    fn new(text: &str, span: Range<usize>) -> Self {
        // The parser skips a byte order mark but counts it.
        let body = text.strip_prefix('\u{feff}').unwrap_or(text);
        let in_body = |at: usize| char_start(body, at.saturating_sub(text.len() - body.len()));
        let start = in_body(span.start);
        let end = in_body(span.end).max(start);

        let line_start = body[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = body[start..].find('\n').map_or(body.len(), |at| start + at);
        let line = body[..start].matches('\n').count() + 1;
        let column = body[line_start..start].chars().count() + 1;
        let pointed = body[start..end.min(line_end)].trim_end_matches('\r');
        let text = body[line_start..line_end].trim_end_matches('\r');
        Self { line, column, excerpt: excerpt(text, line, column, pointed.chars().count().max(1)) }
    }
}

/// Shows `text` with its line number and a caret below `width` characters, if that stays readable.
fn excerpt(text: &str, line: usize, column: usize, width: usize) -> String {
    let readable = text.chars().all(|c| c == '\t' || is_printable(c));
    if !readable || text.chars().count() > SHOWN_LINE || text.trim().is_empty() {
        return String::new();
    }
    let text = text.replace('\t', " ");
    let number = line.to_string();
    let gutter = " ".repeat(number.len());
    let caret = " ".repeat(column - 1) + &"^".repeat(width);
    format!("\n{gutter} |\n{number} | {text}\n{gutter} | {caret}")
}

/// The start of the character that byte `at` of `text` belongs to, or the end of `text`.
fn char_start(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.file))?;
        self.position().map_or(Ok(()), |(line, column)| write!(f, ":{line}:{column}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str, span: Range<usize>) -> Place {
        Place::new(Path::new("vm.toml"), text, Some(span))
    }

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        assert_eq!(place("abc", 0..1).to_string(), "vm.toml:1:1");
        assert_eq!(place("a\nbc\n", 3..4).to_string(), "vm.toml:2:2");
        assert_eq!(place("a\r\nö = x", 8..9).to_string(), "vm.toml:2:5");
        assert_eq!(place("a\n", 2..2).to_string(), "vm.toml:2:1");
        assert_eq!(place("\u{feff}abc", 4..5).to_string(), "vm.toml:1:2");
        assert_eq!(Place::new(Path::new("a\nb"), "", None).to_string(), r#""a\nb""#);
    }

    #[test]
    fn an_excerpt_points_at_the_span_within_its_line() {
        let at = place("[cpu]\r\n\tcount = 0\r\n", 16..17);
        assert_eq!(at.excerpt(), "\n  |\n2 |  count = 0\n  |          ^");
        let at = place("a = \"\"\"x\ny\"\"\"", 4..13);
        assert_eq!(at.excerpt(), "\n  |\n1 | a = \"\"\"x\n  |     ^^^^");
        let at = place("ab", 2..2);
        assert_eq!(at.excerpt(), "\n  |\n1 | ab\n  |   ^");
    }

    #[test]
    fn an_excerpt_that_is_not_readable_is_left_out() {
        for line in ["a = \"\x1b[31m\"", "a = \"\u{202e}\"", &"a".repeat(SHOWN_LINE + 1), ""] {
            assert_eq!(place(line, 0..1).excerpt(), "", "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn no_span_panics(text in "(?s).{0,30}", start in 0_usize..140, end in 0_usize..140) {
            let place = place(&text, start..end);
            prop_assert!(place.position().is_some());
            prop_assert!(place.excerpt().lines().count() <= 4);
        }
    }
}
