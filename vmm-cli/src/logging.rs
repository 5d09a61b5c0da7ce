//! Logging: `tracing` to standard error or a file, as text or JSON.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::messages;
use crate::sink::LOG;
use crate::sink::Sink;

/// The log file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("log.file (--log-file): cannot open {path}")]
pub(crate) struct LogFileError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where the log goes. What cannot be written in time is lost: a log must neither stop nor end a machine.
enum Target {
    Stderr,
    File(Sink),
}

impl Write for &Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Stderr => messages::write(bytes),
            Target::File(sink) => {
                let _ = sink.pen().write_all(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of this process, from [`start`] on.
static TARGET: OnceLock<Target> = OnceLock::new();

struct ToTarget;

impl MakeWriter<'_> for ToTarget {
    type Writer = &'static Target;

    fn make_writer(&self) -> Self::Writer {
        TARGET.get().unwrap_or(&Target::Stderr)
    }
}

/// Waits until the log is written, but not for ever.
pub(crate) fn flush() {
    if let Some(Target::File(sink)) = TARGET.get() {
        sink.flush();
    }
    messages::flush();
}

/// Opens the log file to be appended to.
fn open_file(path: &Path) -> io::Result<Sink> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    Sink::start(&LOG, Some(file.into()))
}

/// Starts the log that `config` describes, and sends panics to it. To be called once.
pub(crate) fn start(config: &LogConfig) -> Result<(), LogFileError> {
    let target = match &config.file {
        None => Target::Stderr,
        Some(path) => {
            Target::File(open_file(path).map_err(|source| LogFileError { path: path.clone(), source })?)
        }
    };
    // A log that is running already stays: then this process runs several machines, and the first one's log is as good.
    let _ = TARGET.set(target);
    let level = match config.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(ToTarget);
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        // The default hook prints, and printing panics when standard error is gone.
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), "{panic}");
        // It may be the last thing that this process says.
        flush();
    }));
    Ok(())
}
