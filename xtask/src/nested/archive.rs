//! `Archive`: a cpio archive in the form that the kernel unpacks as its first file system.
//!
//! Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Writes an archive. Paths are absolute, as they are seen inside. Of two entries with one path the later one counts.
#[derive(Debug)]
pub struct Archive<W> {
    output: W,
    entries: u32,
    directories: HashSet<Vec<u8>>,
}

impl<W: Write> Archive<W> {
    pub fn new(output: W) -> Self {
        Self { output, entries: 0, directories: HashSet::new() }
    }

    /// A directory, and those above it.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        let above: Vec<_> = path.ancestors().filter(|path| *path != Path::new("/")).collect();
        for directory in above.into_iter().rev() {
            if self.directories.insert(name(directory)?.to_vec()) {
                self.entry(directory, DIRECTORY | 0o755, 0)?;
            }
        }
        Ok(())
    }

    /// A file with this content and these permissions.
    pub fn file(&mut self, path: &Path, permissions: u32, content: &[u8]) -> Result<()> {
        self.read(path, REGULAR | permissions, content.len() as u64, content)
    }

    /// A copy of a file, with its permissions.
    pub fn copy(&mut self, from: &Path, path: &Path) -> Result<()> {
        let mut copy = || {
            let file = File::open(from)?;
            let metadata = file.metadata()?;
            ensure!(metadata.is_file(), "not a file");
            self.read(path, REGULAR | (metadata.permissions().mode() & 0o7777), metadata.len(), file)
        };
        copy().with_context(|| format!("cannot carry in {}", from.display()))
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &Path, target: &OsStr) -> Result<()> {
        self.read(path, LINK | 0o777, target.len() as u64, target.as_bytes())
    }

    /// Ends the archive. Another one may follow in the same file.
    pub fn finish(mut self) -> Result<W> {
        self.header(b"TRAILER!!!", 0, 0)?;
        Ok(self.output)
    }

    fn read(&mut self, path: &Path, mode: u32, size: u64, mut content: impl Read) -> Result<()> {
        self.directory(path.parent().unwrap_or(Path::new("/")))?;
        let size = u32::try_from(size).with_context(|| format!("{} is too big", path.display()))?;
        self.entry(path, mode, size)?;
        let copied = io::copy(&mut content.by_ref().take(size.into()), &mut self.output)?;
        ensure!(copied == u64::from(size), "{} has become shorter", path.display());
        self.pad(copied)
    }

    fn entry(&mut self, path: &Path, mode: u32, size: u32) -> Result<()> {
        self.header(name(path)?, mode, size)
    }

    /// The fields of `struct cpio_header`: ino mode uid gid nlink mtime filesize, major and minor of the file system
    /// and of a device node, namesize, chksum.
    fn header(&mut self, name: &[u8], mode: u32, size: u32) -> Result<()> {
        self.entries += 1;
        let length = u32::try_from(name.len() + 1)?;
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        write!(self.output, "070701")?;
        fields.iter().try_for_each(|field| write!(self.output, "{field:08x}"))?;
        self.output.write_all(name)?;
        self.output.write_all(&[0])?;
        // The magic and 13 fields are 110 bytes.
        self.pad(110 + u64::from(length))
    }

    /// Headers and contents begin at multiples of four bytes.
    fn pad(&mut self, written: u64) -> Result<()> {
        let padding = written.next_multiple_of(4) - written;
        io::copy(&mut io::repeat(0).take(padding), &mut self.output)?;
        Ok(())
    }
}

/// The name of an absolute path in an archive.
fn name(path: &Path) -> Result<&[u8]> {
    match path.as_os_str().as_bytes() {
        [b'/', name @ ..] if !name.is_empty() => Ok(name),
        _ => bail!("{} is no absolute path of a file", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_contents_begin_at_multiples_of_four_and_directories_come_once_and_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b"), 0o640, b"12345").unwrap();
        archive.link(Path::new("/a/c"), OsStr::new("b")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names: Vec<_> =
            starts.iter().map(|at| text[at + 110..].split('\0').next().unwrap_or_default()).collect();
        assert_eq!(names, ["a", "a/b", "a/c", "TRAILER!!!"]);
        assert_eq!(&text[starts[1] + 14..starts[1] + 22], "000081a0", "mode");
        assert_eq!(&text[starts[1] + 54..starts[1] + 62], "00000005", "size");
        assert!(
            text[starts[1]..].contains("a/b\0\0\0") && text.contains(&format!("12345\0\0\0{}", "070701"))
        );
    }

    #[test]
    fn a_relative_path_and_the_root_itself_are_refused() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.file(Path::new("a"), 0o644, b"").is_err());
        assert!(archive.file(Path::new("/"), 0o644, b"").is_err());
    }
}
