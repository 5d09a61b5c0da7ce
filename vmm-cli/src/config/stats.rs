//! Statistics output: where the report of a run goes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::value::{self, ValueError};

pub(super) const EXPECTED: &str = "a path in quotes, or \"-\" for standard output";

/// What stands for standard output.
const STDOUT: &str = "-";

/// Where the report goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatsOutput {
    /// Standard output.
    Stdout,
    /// This file.
    File(PathBuf),
}

impl StatsOutput {
    /// The file, if it is one.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::File(path) => Some(path),
            Self::Stdout => None,
        }
    }

    pub(super) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::File(path) => Some(path),
            Self::Stdout => None,
        }
    }
}

impl FromStr for StatsOutput {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == STDOUT { Ok(Self::Stdout) } else { value::parse_path(text).map(Self::File) }
    }
}

/// Writes what [`FromStr`] reads; the path must be UTF-8 and absolute, as validation has made sure.
impl fmt::Display for StatsOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str(STDOUT),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hyphen_is_standard_output_and_everything_else_a_file() {
        for (text, output) in [
            ("-", StatsOutput::Stdout),
            ("./-", StatsOutput::File("./-".into())),
            ("/tmp/stats.json", StatsOutput::File("/tmp/stats.json".into())),
        ] {
            assert_eq!(text.parse(), Ok(output.clone()));
            assert_eq!(output.to_string(), text);
        }
        assert!("".parse::<StatsOutput>().is_err());
    }
}
