//! `Files`: the files in which the kernel says things, below a root directory that tests can choose.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The tree of files that the checks look at.
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    /// The tree below `root`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the absolute `path` is.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text at the absolute `path`, without white space at its ends.
    pub fn read(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.at(path))?.trim().to_owned())
    }

    /// The number at `path`.
    pub fn number(&self, path: &str) -> io::Result<u64> {
        self.read(path)?.parse().map_err(io::Error::other)
    }

    /// The switch of a kernel module at `path`.
    pub fn switch(&self, path: &str) -> Option<bool> {
        match self.read(path).ok()?.as_str() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        }
    }

    /// What is at `path`, a symbolic link followed.
    pub fn metadata(&self, path: &str) -> io::Result<fs::Metadata> {
        fs::metadata(self.at(path))
    }

    /// Whether something is at `path`.
    pub fn exists(&self, path: &str) -> bool {
        self.metadata(path).is_ok()
    }

    /// The number of entries of the directory at `path`.
    pub fn count(&self, path: &str) -> io::Result<usize> {
        Ok(fs::read_dir(self.at(path))?.count())
    }

    /// The names of the entries of the directory at `path`.
    pub fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(self.at(path))?.map(name).collect()
    }

    /// Whether `path` may be opened for reading and writing. It is not opened: to open the node of a device loads its
    /// module.
    pub fn may_open(&self, path: &str) -> io::Result<()> {
        access(&self.at(path), AccessFlags::R_OK | AccessFlags::W_OK).map_err(io::Error::from)
    }

    /// `path` as a path.
    pub fn path(&self, path: &str) -> Box<Path> {
        self.at(path).into()
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A tree with these files and nothing else.
    pub struct Fixture {
        directory: tempfile::TempDir,
        pub files: Files,
    }

    impl Fixture {
        pub fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let fixture = Self { files: Files::below(directory.path()), directory };
            for (path, text) in files {
                fixture.write(path, text);
            }
            fixture
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.directory.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
}
