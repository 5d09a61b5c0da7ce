//! Input file: opened only if it is a regular file, read only up to a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmm_core::file_kind;

use super::value::quote_up_to;

/// Most characters of a path that a message repeats: `PATH_MAX`.
const SHOWN_PATH: usize = 4096;

/// Why a file cannot be used.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum FileError {
    #[error("cannot read {}", show(path))]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is {kind}, not a regular file", show(path))]
    NotRegular { path: PathBuf, kind: &'static str },
    #[error("{} is larger than {limit} bytes", show(path))]
    TooLarge { path: PathBuf, limit: u64 },
}

/// Opens a regular file for reading. Never blocks and never touches a device: the kind is looked at before the
/// file is opened, and `O_NONBLOCK` covers the time between.
///
/// # Errors
///
/// [`FileError`] if the path leads to anything but a regular file that may be read.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned(), kind: file_kind(kind) });
    }
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(failed)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
///
/// [`FileError`] as [`open_regular`], or if reading fails or does not end within `limit` bytes.
pub(super) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// `path` for a message.
pub(super) fn show(path: &Path) -> String {
    quote_up_to(&path.to_string_lossy(), SHOWN_PATH)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::testing::Scratch;

    fn refusal(path: &Path) -> String {
        read_regular(path, 4).unwrap_err().to_string()
    }

    #[test]
    fn a_file_up_to_the_limit_is_read() {
        let scratch = Scratch::new();
        let path = scratch.file("f", "1234");
        assert_eq!(read_regular(&path, 4).unwrap(), b"1234");
        assert_eq!(
            refusal(&scratch.file("f", "12345")),
            format!("{} is larger than 4 bytes", path.display())
        );
    }

    #[test]
    fn fault_c3_what_is_no_regular_file_is_refused_without_blocking() {
        let scratch = Scratch::new();
        let fifo = scratch.path("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert_eq!(refusal(&fifo), format!("{} is a FIFO, not a regular file", fifo.display()));

        let socket = scratch.path("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(refusal(&socket), format!("{} is a socket, not a regular file", socket.display()));

        let directory = scratch.path("");
        assert!(refusal(&directory).ends_with(" is a directory, not a regular file"));
        assert_eq!(refusal(Path::new("/dev/zero")), "/dev/zero is a character device, not a regular file");
    }

    #[test]
    fn an_absent_file_has_the_systems_error_as_its_source() {
        let error = open_regular(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/at/all");
        let FileError::Io { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }
}
