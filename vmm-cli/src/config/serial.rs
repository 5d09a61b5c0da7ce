//! Serial mode: where the guest's serial port, or its virtio console, ends on the host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::value::{self, ValueError};

pub(super) const EXPECTED: &str = "one of \"stdio\", \"null\", \"pty\", \"file=PATH\", \"unix=PATH\"";

/// Where the guest's serial port, or its virtio console, ends on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SerialMode {
    /// The terminal, or whatever standard input and output are.
    #[default]
    Stdio,
    /// Nowhere: output is dropped, there is no input.
    Null,
    /// Output to this file; there is no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose name is printed on standard error.
    Pty,
    /// A stream socket that listens at this path.
    Unix(PathBuf),
}

impl SerialMode {
    pub(super) fn socket(&self) -> Option<&PathBuf> {
        match self {
            Self::Unix(path) => Some(path),
            _ => None,
        }
    }

    pub(super) fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::File(path) | Self::Unix(path) => Some(path),
            Self::Stdio | Self::Null | Self::Pty => None,
        }
    }

    pub(super) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::File(path) | Self::Unix(path) => Some(path),
            Self::Stdio | Self::Null | Self::Pty => None,
        }
    }
}

impl FromStr for SerialMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            None if text == "pty" => Ok(Self::Pty),
            Some(("file", path)) if !path.is_empty() => value::parse_path(path).map(Self::File),
            Some(("unix", path)) if !path.is_empty() => value::parse_path(path).map(Self::Unix),
            _ => Err(ValueError::Malformed { value: text.to_owned(), expected: EXPECTED }),
        }
    }
}

/// Writes what [`FromStr`] reads; the path must be UTF-8, as validation has made sure.
impl fmt::Display for SerialMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Null => f.write_str("null"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Unix(path) => write!(f, "unix={}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_read_and_written() {
        for (text, mode) in [
            ("stdio", SerialMode::Stdio),
            ("null", SerialMode::Null),
            ("pty", SerialMode::Pty),
            ("file=/tmp/a=b", SerialMode::File("/tmp/a=b".into())),
            ("unix=serial.sock", SerialMode::Unix("serial.sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(mode.clone()));
            assert_eq!(mode.to_string(), text);
        }
    }

    #[test]
    fn any_other_mode_lists_the_permitted_ones() {
        for text in ["", "tty", "file", "Stdio", "stdio=", "pty=/dev/pts/1", "file:/tmp/a", "file=", "unix="]
        {
            let error = text.parse::<SerialMode>().unwrap_err().to_string();
            assert!(error.ends_with(&format!(" is not {EXPECTED}")), "{error}");
        }
    }
}
