//! Contents: what one run carries into the nested host, as the archives of its first file system.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::archive::Archive;
use super::libraries;

/// The search path of the command.
const SEARCH_PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

/// A file or directory of this machine and its path inside, which is absolute.
#[derive(Clone, Debug)]
pub struct Carried {
    pub from: PathBuf,
    pub inside: PathBuf,
    /// Whether libraries come with programs.
    is_complete: bool,
}

impl Carried {
    pub fn new(from: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        Self { from: from.into(), inside: inside.into(), is_complete: true }
    }

    /// Without the libraries of programs, which this machine may not have.
    pub fn alone(from: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        Self { is_complete: false, ..Self::new(from, inside) }
    }

    /// Reads `HOST` or `HOST:INSIDE`; the host's path is the caller's, whose working directory is left before a task
    /// starts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (from, inside) = text.split_once(':').unwrap_or((text, text));
        let from = std::path::absolute(from).map_err(|error| format!("{from}: {error}"))?;
        if !from.exists() {
            return Err(format!("{} does not exist", from.display()));
        }
        Ok(Self::new(from, inside_path(Path::new(inside)).map_err(|error| error.to_string())?))
    }
}

/// The place of `path` in a file system whose working directory is its root.
pub fn inside_path(path: &Path) -> Result<PathBuf> {
    let mut inside = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => bail!("{} leads up; give an absolute path", path.display()),
        }
    }
    ensure!(inside != Path::new("/"), "{} names no file", path.display());
    Ok(inside)
}

/// The command that runs inside, as it is given: no shell takes its words apart.
#[derive(Clone, Debug)]
pub struct InnerCommand {
    pub words: Vec<OsString>,
    pub environment: Vec<(String, String)>,
}

/// Puts `base` and what this run adds into one file without a name, which is gone when nobody holds it.
pub fn assemble(base: &Path, command: &InnerCommand, carried: &[Carried], mark: &str) -> Result<File> {
    let mut file = tempfile::tempfile().context("cannot create the archive")?;
    io::copy(&mut File::open(base)?, &mut file).context("cannot write the archive")?;
    let mut archive = Archive::new(io::BufWriter::new(file));
    for Carried { from, inside, is_complete } in carried {
        if *is_complete {
            carry(&mut archive, from, inside)?;
        } else {
            archive.copy(from, inside)?;
        }
    }
    archive.file(Path::new("/etc/nested/command"), 0o644, &script(command))?;
    archive.file(Path::new("/etc/nested/mark"), 0o644, mark.as_bytes())?;
    let mut file = archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

/// A file with its libraries, or a directory with all below it.
fn carry<W: Write>(archive: &mut Archive<W>, from: &Path, inside: &Path) -> Result<()> {
    if from.is_dir() {
        archive.directory(inside)?;
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry?;
            carry(archive, &entry.path(), &inside.join(entry.file_name()))?;
        }
        return Ok(());
    }
    for library in libraries::of(from)? {
        archive.copy(&library, &library)?;
    }
    archive.copy(from, inside)
}

/// The part of a shell script that becomes the command.
fn script(command: &InnerCommand) -> Vec<u8> {
    let mut script = Vec::new();
    let defaults = [("PATH", SEARCH_PATH), ("HOME", "/root"), ("TERM", "linux")];
    let set = command.environment.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in defaults.into_iter().chain(set) {
        script.extend([b"export ", key.as_bytes(), b"=", &quoted(OsStr::new(value)), b"\n"].concat());
    }
    script.extend(b"unset OLDPWD PWD SHLVL\ncd /\nexec");
    for word in &command.words {
        script.push(b' ');
        script.extend(quoted(word));
    }
    script.push(b'\n');
    script
}

/// A word that a shell reads as `word`.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}
