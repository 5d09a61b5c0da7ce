//! `ctl`: asks a monitor that runs, by its control socket, and says what it has answered.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;

use super::descriptors;
use super::disks::SETTLE_LIMIT;
use super::opening::{self, Prepared};
use super::operations::Operation;
use super::render;
use super::wire::{self, Answer, ErrorBody, ErrorCode};
use crate::args::CtlArgs;
use crate::listener::MAX_PATH;
use crate::messages;

/// How long an answer may take, beyond the time that the operation may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer in bytes.
const LONGEST_ANSWER: usize = 16 << 20;

/// Exit codes beside 0; 2 is what every command uses for bad arguments.
const REFUSED: u8 = 1;
const BAD_ARGUMENTS: u8 = 2;
const NO_ANSWER: u8 = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error("{} is {length} bytes long; the path of a socket has at most {MAX_PATH}", path.display())]
    PathTooLong { path: PathBuf, length: usize },
    #[error("there is no socket {}: is the machine running, with --api-sock?", path.display())]
    Missing { path: PathBuf },
    #[error("nobody listens at {}: the machine has ended", path.display())]
    NobodyListens { path: PathBuf },
    #[error("no permission to connect to {}: only the user who runs the machine may, and root", path.display())]
    NoPermission { path: PathBuf },
    #[error("{} is not a control socket", path.display())]
    NoSocket { path: PathBuf },
    #[error("no answer from {} within {timeout:?} (--timeout)", path.display())]
    TimedOut { path: PathBuf, timeout: Duration },
    #[error("the connection to {} was closed without an answer", path.display())]
    Closed { path: PathBuf },
    #[error("{} has said what is no answer", path.display())]
    NotAnAnswer { path: PathBuf },
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl CtlError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::PathTooLong { .. } => BAD_ARGUMENTS,
            _ => NO_ANSWER,
        }
    }
}

/// Asks once and prints the answer.
#[must_use]
pub fn run(args: &CtlArgs) -> ExitCode {
    let operation = args.verb.clone().operation(args.json);
    let owed = match &operation {
        Operation::Pause { limit: time } | Operation::DirtyRate { time } => *time,
        Operation::Disk(_) => SETTLE_LIMIT,
        Operation::DeviceRemove(removal) => removal.limit,
        _ => Duration::ZERO,
    };
    let timeout = args.timeout.unwrap_or(owed + PATIENCE);
    let attempt = Attempt { path: &args.path, timeout, deadline: Instant::now() + timeout };
    let answered = match opening::prepare(operation.clone()) {
        Ok(prepared) => attempt.ask(&prepared).map(|answer| instead(answer, prepared.failure)),
        Err(failure) => Ok(told(failure)),
    };
    let (text, code) = match answered {
        Err(error) => {
            let code = error.exit_code();
            messages::tell(format_args!("vmm-cli: {:#}\n", anyhow::Error::new(error)));
            return ExitCode::from(code);
        }
        Ok((line, Answer::Ok(value))) => {
            (if args.json { line } else { render::text(&operation, &value) }, ExitCode::SUCCESS)
        }
        Ok((line, Answer::Error(error))) => {
            if !args.json {
                messages::tell(format_args!("vmm-cli: {}\n", render::printable(&error.message)));
            }
            (if args.json { line } else { String::new() }, ExitCode::from(REFUSED))
        }
    };
    // Whoever closed standard output wants the exit code only.
    let _ = io::stdout().write_all(text.as_bytes());
    code
}

/// Where the monitor misses what could not be opened here, this is the reason.
fn instead(answer: (String, Answer<Value>), failure: Option<ErrorBody>) -> (String, Answer<Value>) {
    match (&answer.1, failure) {
        (Answer::Error(ErrorBody { code: ErrorCode::NoDescriptor, .. }), Some(failure)) => told(failure),
        _ => answer,
    }
}

/// What is found here, as if the monitor had said it.
fn told(failure: ErrorBody) -> (String, Answer<Value>) {
    let answer = Answer::Error(failure);
    (wire::line(&answer), answer)
}

/// One request to one socket.
struct Attempt<'a> {
    path: &'a Path,
    timeout: Duration,
    deadline: Instant,
}

impl Attempt<'_> {
    /// Asks until there is an answer. A client that had to make room has not been heard, or waits for a pause, which may
    /// be asked for again.
    fn ask(&self, prepared: &Prepared) -> Result<(String, Answer<Value>), CtlError> {
        let request = wire::request(&prepared.operation);
        loop {
            let line = self.exchange(request.as_bytes(), &prepared.descriptors)?;
            let path = || self.path.to_owned();
            let answer = serde_json::from_str(&line).map_err(|_| CtlError::NotAnAnswer { path: path() })?;
            match answer {
                Answer::Error(ErrorBody { code: ErrorCode::Evicted, .. }) => {}
                answer => return Ok((line, answer)),
            }
        }
    }

    /// Sends a line with descriptors, and receives one.
    fn exchange(&self, request: &[u8], descriptors: &[OwnedFd]) -> Result<String, CtlError> {
        let mut stream = self.connect()?;
        let failed = |error: io::Error| self.io_error(error);
        stream.set_write_timeout(Some(self.left()?)).map_err(failed)?;
        // A monitor that refuses does not read; its answer says why.
        let sent = descriptors::send(&stream, request, descriptors);
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        // Whatever follows the first line is about the connection, which is of no more use.
        while !answer.contains(&b'\n') {
            stream.set_read_timeout(Some(self.left()?)).map_err(failed)?;
            match stream.read(&mut chunk) {
                Ok(0) => {
                    sent.map_err(failed)?;
                    return Err(CtlError::Closed { path: self.path.to_owned() });
                }
                Ok(count) => answer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
            if answer.len() > LONGEST_ANSWER {
                return Err(CtlError::NotAnAnswer { path: self.path.to_owned() });
            }
        }
        let end = answer.iter().position(|&byte| byte == b'\n').map_or(answer.len(), |at| at + 1);
        answer.truncate(end);
        String::from_utf8(answer).map_err(|_| CtlError::NotAnAnswer { path: self.path.to_owned() })
    }

    fn connect(&self) -> Result<UnixStream, CtlError> {
        let length = self.path.as_os_str().as_bytes().len();
        if length > MAX_PATH {
            return Err(CtlError::PathTooLong { path: self.path.to_owned(), length });
        }
        let stream: Result<OwnedFd, Errno> = (|| {
            let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // It also bounds the wait for a place in the queue of those who want to connect.
            let left = self.deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
            let left = TimeVal::milliseconds(left.try_into().unwrap_or(i64::MAX));
            setsockopt(&socket, SendTimeout, &left)?;
            connect(socket.as_raw_fd(), &UnixAddr::new(self.path)?)?;
            Ok(socket)
        })();
        stream.map(UnixStream::from).map_err(|errno| self.io_error(errno.into()))
    }

    fn left(&self) -> Result<Duration, CtlError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timed_out()) } else { Ok(left) }
    }

    fn timed_out(&self) -> CtlError {
        CtlError::TimedOut { path: self.path.to_owned(), timeout: self.timeout }
    }

    fn io_error(&self, source: io::Error) -> CtlError {
        let path = self.path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => CtlError::Missing { path },
            // Of what is no socket, the kernel says the same as of one without a listener.
            Some(libc::ECONNREFUSED) if !is_socket(&path) => CtlError::NoSocket { path },
            Some(libc::ECONNREFUSED) => CtlError::NobodyListens { path },
            Some(libc::EACCES | libc::EPERM) => CtlError::NoPermission { path },
            Some(libc::EPROTOTYPE) => CtlError::NoSocket { path },
            Some(libc::EAGAIN | libc::ETIMEDOUT) => self.timed_out(),
            Some(libc::EPIPE | libc::ECONNRESET) => CtlError::Closed { path },
            _ => CtlError::Io { path, source },
        }
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}
