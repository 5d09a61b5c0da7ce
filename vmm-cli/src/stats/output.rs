//! `Output`: where the report of a run goes, opened before the machine is built and written when it is gone.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Report, table};
use crate::config::{StatsConfig, StatsFormat, StatsOutput};
use crate::{messages, output_file};

/// Most bytes of one write: a pipe that polls as writable takes this many without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_millis(500);

/// The file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("stats.output (--stats): cannot open {path}")]
pub(crate) struct OutputError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where a report will go.
#[derive(Debug)]
pub(crate) struct Output {
    target: Target,
    format: StatsFormat,
}

#[derive(Debug)]
enum Target {
    Stdout,
    File { file: File, path: PathBuf },
}

impl Output {
    /// Opens, and empties, what `config` names; `None` if that is nothing.
    pub(crate) fn open(config: &StatsConfig) -> Result<Option<Self>, OutputError> {
        let target = match &config.output {
            None => return Ok(None),
            Some(StatsOutput::Stdout) => Target::Stdout,
            Some(StatsOutput::File(path)) => {
                let path = path.clone();
                match output_file::create(&path) {
                    Ok(file) => Target::File { file, path },
                    Err(source) => return Err(OutputError { path, source }),
                }
            }
        };
        Ok(Some(Self { target, format: config.format() }))
    }

    /// Writes `report`. What cannot be written is told to the user and changes nothing else; a file is then left empty, so
    /// that nobody takes a part for the whole.
    pub(crate) fn write(self, report: &Report) {
        let written = self.text(report).and_then(|text| self.write_text(&text));
        if let Err(error) = written {
            messages::tell(format_args!(
                "vmm-cli: stats.output (--stats): the statistics are lost: cannot write {}: {error}\n",
                self.target
            ));
        }
    }

    fn text(&self, report: &Report) -> io::Result<String> {
        match self.format {
            StatsFormat::Table => Ok(table::text(report)),
            StatsFormat::Json => Ok(report.to_json()?),
        }
    }

    fn write_text(&self, text: &str) -> io::Result<()> {
        match &self.target {
            Target::Stdout => write_all(io::stdout().as_fd(), text.as_bytes()),
            Target::File { file, .. } => write_all(file.as_fd(), text.as_bytes()).inspect_err(|_| {
                // A device has no length, and nothing to be emptied.
                let _ = file.set_len(0);
            }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// Writes `bytes`, waiting for a reader as long as it takes something now and then.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    while !bytes.is_empty() {
        if poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], patience) == Ok(0) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it"));
        }
        match nix::unistd::write(fd, &bytes[..bytes.len().min(CHUNK)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn everything_is_written_to_a_slow_reader() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        write_all(writer.as_fd(), &sent).unwrap();
        drop(writer);
        assert_eq!(reading.join().unwrap(), sent);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_not_waited_for_for_ever() {
        let (_reader, writer) = io::pipe().unwrap();
        let error = write_all(writer.as_fd(), &[0; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn fault_c3_a_full_device_is_an_error_with_its_reason() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(write_all(full.as_fd(), b"x").unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named_with_its_key() {
        let output = Some(StatsOutput::File("/nonexistent/stats".into()));
        let error = Output::open(&StatsConfig { output, format: None }).unwrap_err();
        assert_eq!(error.to_string(), "stats.output (--stats): cannot open /nonexistent/stats");
        assert!(Output::open(&StatsConfig::default()).unwrap().is_none());
    }
}
