//! The lock of a disk image: an open-file-description lock on the whole file (fcntl(2), `F_OFD_SETLK`).
//!
//! Whoever writes has it alone; those that only read share it. It is advisory, and ends with the last descriptor of this
//! open file, however the process ends. Other monitors lock single bytes of the file in the same way, and meet it.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Why the lock cannot be had.
#[derive(Debug)]
pub(super) enum LockRefusal {
    /// Somebody has one that excludes it.
    Held(LockHolder),
    /// The file system knows no locks, or has none left.
    System(io::Error),
}

/// Who has a lock, as far as it can be seen: the kernel does not say it to whoever asks for the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockHolder {
    /// This process has the file open already.
    ThisProcess,
    /// A process whose descriptors can be looked at.
    Process {
        /// Its process id.
        pid: u32,
        /// What it is called.
        command: String,
    },
    /// A process of another user or another name space of processes.
    Unseen,
    /// Nobody was looked for.
    Unsought,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisProcess => f.write_str("this process"),
            Self::Process { pid, command } => write!(f, "process {pid} ({command:?})"),
            Self::Unseen => f.write_str("another process"),
            Self::Unsought => f.write_str("another process, or as another disk"),
        }
    }
}

/// Locks `file`, alone or shared with others that do not ask for it alone. Whoever has a lock on it is looked for.
pub(super) fn lock(file: &File, alone: bool) -> Result<(), LockRefusal> {
    lock_without_search(file, alone).map_err(|refusal| match refusal {
        LockRefusal::Held(_) => LockRefusal::Held(holder(file)),
        other => other,
    })
}

/// The same on the descriptor alone: no path is opened to look for somebody.
pub(super) fn lock_without_search(file: &File, alone: bool) -> Result<(), LockRefusal> {
    let kind = if alone { libc::F_WRLCK } else { libc::F_RDLCK };
    #[expect(clippy::cast_possible_truncation, reason = "constants that fit")]
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    // From the first byte to the last there will ever be.
    let whole = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(LockRefusal::Held(LockHolder::Unsought)),
        Err(error) => Err(LockRefusal::System(error.into())),
    }
}

/// Looks for who has a lock on `file`. What cannot be looked at is passed over.
fn holder(file: &File) -> LockHolder {
    let Ok(wanted) = file.metadata() else { return LockHolder::Unseen };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    match pids.into_iter().find(|pid| holds(*pid, &wanted)) {
        Some(pid) if pid == std::process::id() => LockHolder::ThisProcess,
        Some(pid) => {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            LockHolder::Process { pid, command: command.trim_end().to_owned() }
        }
        None => LockHolder::Unseen,
    }
}

/// Whether one of the descriptors of the process has a lock on the file.
fn holds(pid: u32, wanted: &Metadata) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| {
        let is_it = fs::metadata(descriptor.path())
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()));
        let number = descriptor.file_name();
        let information = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
        is_it && fs::read_to_string(information).is_ok_and(|text| text.lines().any(is_lock))
    })
}

/// Whether a line of `fdinfo` tells of a lock of its open file; `->` marks one that waits.
fn is_lock(line: &str) -> bool {
    line.starts_with("lock:") && !line.contains("->") && line.contains("ADVISORY")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Locks what nobody has locked. A child of another test, between fork and exec, may still have its open files.
    fn lock_free(file: &File) {
        while let Err(LockRefusal::Held(_)) = lock(file, true) {
            std::thread::yield_now();
        }
    }

    fn held_by(result: Result<(), LockRefusal>) -> LockHolder {
        match result {
            Err(LockRefusal::Held(holder)) => holder,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fault_c4_a_second_writer_is_refused_and_told_who_the_first_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, other) = (open(file.path()), open(file.path()));
        lock(&one, true).unwrap();
        assert_eq!(held_by(lock(&other, true)), LockHolder::ThisProcess);
        assert_eq!(held_by(lock(&other, false)), LockHolder::ThisProcess);
        drop(one);
        lock_free(&other);
    }

    #[test]
    fn fault_c4_a_lock_of_another_process_is_seen_and_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let locked = open(file.path());
        lock(&locked, true).unwrap();
        // The child has the open file, and its lock, after this process has closed it.
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(locked)
            .spawn()
            .unwrap();
        let other = open(file.path());
        let expected = LockHolder::Process { pid: child.id(), command: "cat".into() };
        assert_eq!(held_by(lock(&other, true)), expected);
        assert_eq!(expected.to_string(), format!("process {} (\"cat\")", child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        lock_free(&other);
    }

    #[test]
    fn fault_c4_readers_share_and_keep_writers_away() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, other, writer) = (open(file.path()), open(file.path()), open(file.path()));
        lock(&one, false).unwrap();
        lock(&other, false).unwrap();
        assert_eq!(held_by(lock(&writer, true)), LockHolder::ThisProcess);
    }

    #[test]
    fn only_locks_that_are_held_count() {
        assert!(is_lock("lock:\t1: OFDLCK ADVISORY  WRITE -1 00:2f:123 0 EOF"));
        assert!(!is_lock("lock:\t1: -> OFDLCK ADVISORY  WRITE -1 00:2f:123 0 EOF"));
        assert!(!is_lock("lock:\t1: LEASE  ACTIVE    READ 1 00:2f:123 0 EOF"));
        assert!(!is_lock("pos:\t0"));
    }
}
