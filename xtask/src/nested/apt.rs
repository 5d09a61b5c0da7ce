//! `Apt`: downloads packages with what they need, into a directory of its own; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::{capture, run};

/// apt-get with an archive of its own, and whatever else it is given.
#[derive(Debug)]
pub struct Apt {
    scratch: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// Keeps what it downloads in `scratch`.
    pub fn new(scratch: &Path) -> Result<Self> {
        let archive = scratch.join("cache");
        fs::create_dir_all(archive.join("archives/partial"))?;
        let mut apt = Self { scratch: scratch.into(), options: vec!["Debug::NoLocking=1".into()] };
        apt.set("Dir::Cache", &archive);
        Ok(apt)
    }

    /// Knows these sources only, instead of those of the system; to be updated.
    pub fn with_sources(mut self, sources: &str) -> Result<Self> {
        let list = self.scratch.join("sources.list");
        fs::write(&list, sources)?;
        let lists = self.scratch.join("lists");
        fs::create_dir_all(lists.join("partial"))?;
        self.set("Dir::Etc::SourceParts", Path::new("/dev/null"));
        self.set("Dir::Etc::SourceList", &list);
        self.set("Dir::State::Lists", &lists);
        Ok(self)
    }

    /// Takes nothing for installed: what is downloaded is complete.
    pub fn with_nothing_installed(mut self) -> Result<Self> {
        let status = self.scratch.join("status");
        fs::write(&status, "")?;
        self.set("Dir::State::status", &status);
        Ok(self)
    }

    /// Fetches the lists of packages.
    pub fn update(&self) -> Result<()> {
        capture(self.command().arg("update")).map(drop)
    }

    /// Downloads what `words` say, as `apt-get install` reads them, and what that needs, and unpacks it to `root`.
    pub fn unpack(&self, words: &[&str], root: &Path) -> Result<()> {
        capture(self.command().args(["--download-only", "--no-install-recommends", "install"]).args(words))?;
        for entry in fs::read_dir(self.scratch.join("cache/archives"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg").arg("--extract").arg(path).arg(root))?;
            }
        }
        ensure!(root.is_dir(), "apt-get downloaded nothing");
        Ok(())
    }

    fn command(&self) -> Command {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet", "--quiet", "--yes"]);
        for option in &self.options {
            apt.args(["-o", option]);
        }
        apt
    }

    fn set(&mut self, option: &str, path: &Path) {
        self.options.push(format!("{option}={}", path.display()));
    }
}
