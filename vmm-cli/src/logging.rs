//! Logging: `tracing` to standard error or a file, as text or JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::console;

/// The log file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("log.file (--log-file): cannot open {path}")]
pub(crate) struct LogFileError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where messages go. What cannot be written is lost: a log must not end a machine.
#[derive(Clone)]
enum Target {
    Stderr,
    File(Arc<File>),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr => console::to_stderr(bytes),
            Self::File(file) => {
                let _ = file.as_ref().write_all(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Target {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Starts the log that `config` describes, and sends panics to it. To be called once.
pub(crate) fn start(config: &LogConfig) -> Result<(), LogFileError> {
    let target = match &config.file {
        None => Target::Stderr,
        Some(path) => Target::File(Arc::new(
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)
                .map_err(|source| LogFileError { path: path.clone(), source })?,
        )),
    };
    let level = match config.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(target);
    // Fails when a log is running already: then this process is a test, and its log is as good.
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        // The default hook prints, and printing panics when standard error is gone.
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), "{panic}");
    }));
    Ok(())
}
