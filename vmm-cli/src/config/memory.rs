//! The section `[memory]`: the guest's RAM, and what it is on the host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use thiserror::Error;

use super::file::show;
use super::size::MemorySize;
use super::value::{self, ValueError};
use super::{choice, keys};

/// The key of the backing.
pub(super) const BACKING: &str = "memory.backing";

pub(super) const EXPECTED_BACKING: &str =
    "one of \"anonymous\", \"memfd\", \"shared-file=PATH\", \"private-file=PATH\"";
pub(super) const EXPECTED_HUGE_PAGES: &str = "one of \"none\", \"transparent\", \"2M\", \"1G\"";

pub(super) const EXPECTED_DIRTY_LOG: &str = "one of \"auto\", \"bitmap\", \"ring\"";

/// The section `[memory]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Size of the RAM; with huge pages of a fixed size a multiple of that.
    pub size: MemorySize,
    /// Where its pages come from.
    #[serde(deserialize_with = "value::from_text")]
    pub backing: MemoryBacking,
    /// The size of its pages.
    #[serde(deserialize_with = "choice::deserialize")]
    pub huge_pages: HugePages,
    /// Whether all of its pages are made before the guest starts.
    pub prefault: bool,
    /// Whether its pages stay in the host's RAM.
    pub lock: bool,
    /// Whether core dumps contain it.
    pub dump: bool,
    /// How KVM says which pages the guest has written to, once somebody asks.
    #[serde(deserialize_with = "choice::deserialize")]
    pub dirty_log: DirtyLogKind,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: MemorySize::DEFAULT,
            backing: MemoryBacking::default(),
            huge_pages: HugePages::default(),
            prefault: false,
            lock: false,
            dump: false,
            dirty_log: DirtyLogKind::default(),
        }
    }
}

/// Where the pages of the guest's RAM come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MemoryBacking {
    /// Private memory of the monitor.
    #[default]
    Anonymous,
    /// A file without a name, which can be shared with other processes.
    Memfd,
    /// This file, which the guest writes to.
    SharedFile(PathBuf),
    /// This file; what the guest writes stays in the monitor.
    PrivateFile(PathBuf),
}

impl MemoryBacking {
    /// The file, if it is one.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Anonymous | Self::Memfd => None,
            Self::SharedFile(path) | Self::PrivateFile(path) => Some(path),
        }
    }

    /// The file that is written to, if there is one.
    pub(super) fn shared_path(&self) -> Option<&PathBuf> {
        self.path().filter(|_| matches!(self, Self::SharedFile(_)))
    }

    pub(super) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Anonymous | Self::Memfd => None,
            Self::SharedFile(path) | Self::PrivateFile(path) => Some(path),
        }
    }
}

impl FromStr for MemoryBacking {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.split_once('=') {
            None if text == "anonymous" => Ok(Self::Anonymous),
            None if text == "memfd" => Ok(Self::Memfd),
            Some(("shared-file", path)) if !path.is_empty() => value::parse_path(path).map(Self::SharedFile),
            Some(("private-file", path)) if !path.is_empty() => {
                value::parse_path(path).map(Self::PrivateFile)
            }
            _ => Err(ValueError::Malformed { value: text.to_owned(), expected: EXPECTED_BACKING }),
        }
    }
}

/// Writes what [`FromStr`] reads; the path must be UTF-8, as validation has made sure.
impl fmt::Display for MemoryBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Memfd => f.write_str("memfd"),
            Self::SharedFile(path) => write!(f, "shared-file={}", path.display()),
            Self::PrivateFile(path) => write!(f, "private-file={}", path.display()),
        }
    }
}

/// The size of the pages of the guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum HugePages {
    /// What the host makes of it
    #[default]
    None,
    /// Small ones that the kernel puts together where it can
    Transparent,
    /// 2 MiB, from the host's pool
    #[value(name = "2M")]
    Size2M,
    /// 1 GiB, from the host's pool
    #[value(name = "1G")]
    Size1G,
}

/// How KVM says which pages of the guest's RAM were written to. A machine has one way from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DirtyLogKind {
    /// The best bitmap that the host has
    #[default]
    Auto,
    /// A bitmap that is read and cleared as a whole
    Bitmap,
    /// A ring for each vCPU
    Ring,
}

impl From<HugePages> for vmm_memory::HugePages {
    fn from(pages: HugePages) -> Self {
        match pages {
            HugePages::None => Self::None,
            HugePages::Transparent => Self::Transparent,
            HugePages::Size2M => Self::Size2M,
            HugePages::Size1G => Self::Size1G,
        }
    }
}

/// Settings of `[memory]` that do not go together.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum MemoryError {
    #[error(
        "{} = {size} is not a number of whole pages: with {} = \"{pages}\" it is a multiple of {pages}",
        keys::with_flag("memory.size"),
        keys::with_flag("memory.huge_pages")
    )]
    NotWholePages { size: MemorySize, pages: String },
    #[error(
        "{}: {} has {length} bytes, less than {} = {size}; make it larger: `truncate -s {size} {}`",
        keys::with_flag(BACKING),
        show(path),
        keys::with_flag("memory.size"),
        show(path)
    )]
    TooShort { path: PathBuf, length: u64, size: MemorySize },
}

impl MemoryConfig {
    /// Checks what no single value shows. Whether the file can be opened was looked at before.
    pub(super) fn validate(&self) -> Result<(), MemoryError> {
        let page_size = vmm_memory::HugePages::from(self.huge_pages).fixed_size();
        if page_size.is_some_and(|page_size| !self.size.bytes().is_multiple_of(page_size)) {
            let pages = choice::word(&self.huge_pages);
            return Err(MemoryError::NotWholePages { size: self.size, pages });
        }
        let file = self.backing.path().and_then(|path| Some((path, path.metadata().ok()?.len())));
        match file.filter(|(_, length)| *length < self.size.bytes()) {
            Some((path, length)) => {
                Err(MemoryError::TooShort { path: path.clone(), length, size: self.size })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backing_is_read_as_it_is_written() {
        for (text, backing) in [
            ("anonymous", MemoryBacking::Anonymous),
            ("memfd", MemoryBacking::Memfd),
            ("shared-file=/dev/shm/a=b", MemoryBacking::SharedFile("/dev/shm/a=b".into())),
            ("private-file=ram", MemoryBacking::PrivateFile("ram".into())),
        ] {
            assert_eq!(text.parse(), Ok(backing.clone()));
            assert_eq!(backing.to_string(), text);
        }
    }

    #[test]
    fn any_other_backing_lists_those_there_are() {
        for text in ["", "memfd=x", "file=ram", "shared-file", "shared-file=", "Anonymous"] {
            let error = text.parse::<MemoryBacking>().unwrap_err().to_string();
            assert!(error.contains("private-file=PATH"), "{error}");
        }
    }

    #[test]
    fn only_a_shared_file_is_written_to() {
        let path = |text: &str| text.parse::<MemoryBacking>().unwrap().shared_path().cloned();
        assert_eq!(path("shared-file=a"), Some("a".into()));
        assert_eq!((path("private-file=a"), path("memfd")), (None, None));
    }

    #[test]
    fn a_size_that_is_not_whole_pages_names_both_keys() {
        let config = |size: &str, huge_pages| {
            let size = size.parse().unwrap();
            MemoryConfig { size, huge_pages, ..MemoryConfig::default() }.validate()
        };
        for (size, pages) in
            [("1M", HugePages::Size2M), ("129M", HugePages::Size2M), ("1025M", HugePages::Size1G)]
        {
            let error = config(size, pages).unwrap_err().to_string();
            assert!(error.contains("memory.size (--memory)") && error.contains("(--huge-pages)"), "{error}");
        }
        config("1G", HugePages::Size1G).unwrap();
        config("2M", HugePages::Size2M).unwrap();
        config("1028K", HugePages::Transparent).unwrap();
    }
}
