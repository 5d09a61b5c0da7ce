//! QEMU: the emulator that the nested host runs on, as it is installed or, if that one is too old, from backports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::apt::Apt;
use super::libraries;
use super::packages::Packages;
use crate::host::need;
use crate::process::capture;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// The first version whose translator locks a page before it reads code from it. Before, a CPU may keep running code that
/// another CPU has changed meanwhile: a kernel with several CPUs meets breakpoints that it has long taken away.
const GOOD: (u32, u32) = (8, 1);

/// An emulator that can be started.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    /// The root of unpacked packages, if it is from there.
    root: Option<PathBuf>,
}

impl Qemu {
    /// The installed emulator if it is new enough, else one from the distribution's backports, fetched once.
    ///
    /// Without the network an old one does, with a warning. The caller holds the lock of `packages`.
    ///
    /// # Errors
    ///
    /// There is none, and none can be fetched.
    pub fn find(packages: &Packages) -> Result<Self> {
        let installed = Self { program: PROGRAM.into(), root: None };
        let version = installed.version();
        if version.as_ref().is_ok_and(|version| *version >= GOOD) {
            return Ok(installed);
        }
        match (packages.unpacked_by("qemu", fetch).and_then(Self::unpacked), version) {
            (Ok(qemu), _) => Ok(qemu),
            (Err(error), Ok((major, minor))) => {
                eprintln!(
                    "warning: {PROGRAM} {major}.{minor} may crash kernels with several CPUs, {}.{} is needed: {error:#}",
                    GOOD.0, GOOD.1
                );
                Ok(installed)
            }
            (Err(error), Err(_)) => {
                eprintln!("warning: no backport of {PACKAGE}: {error:#}");
                need(PROGRAM, PACKAGE)?;
                Ok(installed)
            }
        }
    }

    fn unpacked(root: PathBuf) -> Result<Self> {
        let root = std::path::absolute(root)?;
        let qemu = Self { program: root.join("usr/bin").join(PROGRAM), root: Some(root) };
        let version = qemu.version()?;
        ensure!(version >= GOOD, "{} is version {}.{}", qemu.program.display(), version.0, version.1);
        Ok(qemu)
    }

    /// The words that start it: the program behind `env`, which tells it where its libraries are, and its firmware.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(root) = &self.root {
            words.extend(["env".to_owned(), format!("LD_LIBRARY_PATH={}", libraries::below(root))]);
        }
        words.push(self.program.display().to_string());
        for directory in self.firmware() {
            words.extend(["-L".to_owned(), directory.display().to_string()]);
        }
        words
    }

    /// Where its firmware is, if that is not where it looks by itself.
    fn firmware(&self) -> Vec<PathBuf> {
        let below = |root: &PathBuf| ["usr/share/qemu", "usr/share/seabios"].map(|path| root.join(path));
        self.root.iter().flat_map(below).collect()
    }

    fn version(&self) -> Result<(u32, u32)> {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", libraries::below(root));
        }
        let said = capture(command.arg("--version"))?;
        version(&said).with_context(|| format!("{} says {said:?}", self.program.display()))
    }
}

/// Reads `QEMU emulator version 10.0.2 (Debian …)`.
fn version(said: &str) -> Option<(u32, u32)> {
    let number = said.split_once("version ")?.1.split([' ', '\n']).next()?;
    let mut parts = number.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Fetches the emulator of the backports, with what it needs and the system has not, and unpacks it to `root`. Nothing is
/// installed: apt gets lists and an archive of its own in `scratch`.
fn fetch(scratch: &Path, root: &Path) -> Result<()> {
    eprintln!("fetching {PACKAGE} from backports");
    let codename =
        codename(&fs::read_to_string("/etc/os-release")?).context("/etc/os-release has no codename")?;
    let targets = capture(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))?;
    let sources = sources(&targets, &codename).context("apt has no source of this distribution")?;
    let apt = Apt::new(scratch)?.with_sources(&sources)?;
    apt.update()?;
    apt.unpack(&["-t", &format!("{codename}-backports"), PACKAGE], root)
}

/// Reads `VERSION_CODENAME=bookworm`.
fn codename(release: &str) -> Option<String> {
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
}

/// apt's sources of this distribution, from lines `URI RELEASE`, and its backports.
fn sources(targets: &str, codename: &str) -> Option<String> {
    let own = || {
        let lines = targets.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(_, release)| release.starts_with(codename))
    };
    let (main, _) = own().find(|(_, release)| *release == codename)?;
    let mut lines: Vec<_> = own().map(|(uri, release)| format!("deb {uri} {release} main\n")).collect();
    lines.push(format!("deb {main} {codename}-backports main\n"));
    lines.sort();
    lines.dedup();
    Some(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_compared() {
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\nCopyright\n"), Some((10, 0)));
        assert_eq!(version("QEMU emulator version 7.2.22\n"), Some((7, 2)));
        assert_eq!(version("qemu"), None);
        assert!((7, 2) < GOOD && (10, 0) >= GOOD);
    }

    #[test]
    fn backports_are_found_beside_the_main_source_and_other_sources_are_left_out() {
        let targets = "http://a/debian/ bookworm\nhttp://a/security/ bookworm-security\nhttp://b/ nodistro\n";
        assert_eq!(
            sources(targets, "bookworm").unwrap(),
            "deb http://a/debian/ bookworm main\n\
             deb http://a/debian/ bookworm-backports main\n\
             deb http://a/security/ bookworm-security main\n"
        );
        assert_eq!(sources("http://b/ nodistro\n", "bookworm"), None);
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
    }
}
