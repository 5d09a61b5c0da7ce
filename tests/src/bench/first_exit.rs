//! The time to a program's first guest exit, seen from outside the program.
//!
//! The program runs under a seccomp filter that stops it at `ioctl(KVM_RUN)` and nowhere else; the tracer
//! then lets the call go on to its return. So every VMM is measured the same way and unchanged, and pays for
//! tracing only at exec, at the start of each thread and at `KVM_RUN`.
#![expect(unsafe_code, reason = "fork, execv, seccomp, and ptrace with real-time signals have no safe form")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_char, c_int, c_uint, sock_filter, sock_fprog};
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, write};

use crate::bench::probe::{DEADLINE, Launch, Output, PidFd, ProbeError, none_left};

const AWAITED: &str = "the guest's first exit";

const SYS_IOCTL: u32 = 16;
const KVM_RUN: u32 = 0xae80;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Offsets in `struct seccomp_data`: system call number, architecture, low half of the second argument.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARG1: u32 = 24;

/// Instructions of classic BPF: load a word of the data, compare it with a constant, return a constant.
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

const FILTER_LENGTH: u16 = 8;

/// RET_TRACE for `ioctl(_, KVM_RUN, _)`, RET_ALLOW for everything else; the jumps lead to the last line.
static FILTER: [sock_filter; FILTER_LENGTH as usize] = [
    instruction(LOAD_WORD, 0, DATA_ARCH),
    instruction(JUMP_EQUAL, 5, AUDIT_ARCH_X86_64),
    instruction(LOAD_WORD, 0, DATA_NR),
    instruction(JUMP_EQUAL, 3, SYS_IOCTL),
    instruction(LOAD_WORD, 0, DATA_ARG1),
    instruction(JUMP_EQUAL, 1, KVM_RUN),
    instruction(RETURN, 0, libc::SECCOMP_RET_TRACE),
    instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW),
];

const fn instruction(code: u16, skipped_if_unequal: u8, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: skipped_if_unequal, k }
}

/// The time from just before the program's exec to the first return of `KVM_RUN` with 0, which is the guest's
/// first exit to user space; a return with EINTR is a vCPU being parked and does not count. The program is
/// then killed.
///
/// # Errors
///
/// It does not start, or ends or hangs before that.
pub fn first_exit(launch: &Launch) -> Result<Duration, ProbeError> {
    let output = Output::new()?;
    let mut tracee = Tracee::start(launch, &output)?;
    let watched =
        PidFd::open(tracee.pid.as_raw().cast_unsigned()).map_err(ProbeError::system("pidfd_open"))?;
    let run = thread::scope(|scope| {
        scope.spawn(|| {
            if !matches!(watched.wait(DEADLINE), Ok(true)) {
                watched.kill();
            }
        });
        let run = tracee.run();
        drop(tracee);
        run
    });
    none_left()?;
    match run.map_err(ProbeError::system("ptrace"))? {
        Run::FirstExit(elapsed) => Ok(elapsed),
        Run::Ended(elapsed, _) if elapsed >= DEADLINE => {
            Err(ProbeError::Late { awaited: AWAITED, within: DEADLINE, output: output.tail() })
        }
        Run::Ended(_, status) => {
            Err(ProbeError::Ended { awaited: AWAITED, status: status.to_string(), output: output.tail() })
        }
    }
}

/// How a traced run ended, and when.
enum Run {
    FirstExit(Duration),
    Ended(Duration, ExitStatus),
}

/// Why a thread stopped.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The thread or process is no more.
    Ended,
    /// About to enter `KVM_RUN`.
    Enter,
    /// Returned from `KVM_RUN`.
    Return,
    /// Exec, a new thread, or the first stop of one: nothing to do.
    Start,
    /// About to receive this signal.
    Signal(c_int),
}

impl Stop {
    fn of(status: c_int) -> Self {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            return Self::Ended;
        }
        match (status >> 16, libc::WSTOPSIG(status)) {
            (libc::PTRACE_EVENT_SECCOMP, _) => Self::Enter,
            (0, SYSCALL_STOP) => Self::Return,
            // Nobody else sends SIGSTOP here.
            (0, libc::SIGSTOP) => Self::Start,
            (0, signal) => Self::Signal(signal),
            _ => Self::Start,
        }
    }
}

/// The stop signal of a system call stop under PTRACE_O_TRACESYSGOOD.
const SYSCALL_STOP: c_int = libc::SIGTRAP | 0x80;

/// A traced child; killed and reaped with its threads on drop.
struct Tracee {
    pid: Pid,
    reaped: bool,
}

impl Tracee {
    /// Forks the child up to just before its exec.
    fn start(launch: &Launch, output: &Output) -> Result<Self, ProbeError> {
        let words = [launch.program.as_os_str()].into_iter().chain(launch.args.iter().map(AsRef::as_ref));
        let words: Result<Vec<_>, _> = words.map(|word| CString::new(word.as_bytes())).collect();
        let words = words.map_err(ProbeError::system("argument with a zero byte"))?;
        let ends = [ptr::null::<c_char>()];
        let argv: Vec<_> = words.iter().map(|word| word.as_ptr()).chain(ends).collect();
        let nothing = File::open("/dev/null").map_err(ProbeError::system("open of /dev/null"))?;
        // SAFETY: this process may have other threads, so until its exec the child must not allocate or take
        // a lock; `exec_when_let_go` only makes system calls.
        let forked = unsafe { fork() };
        let pid = match forked.map_err(ProbeError::system("fork"))? {
            ForkResult::Child => exec_when_let_go(&argv, &nothing, output.file()),
            ForkResult::Parent { child } => child,
        };
        Self { pid, reaped: false }.stopped()
    }

    /// Waits until the child has stopped itself.
    fn stopped(mut self) -> Result<Self, ProbeError> {
        let (_, status) = self.wait().map_err(ProbeError::system("wait"))?;
        if Stop::of(status) == Stop::Ended {
            let status = ExitStatus::from_raw(status).to_string();
            return Err(ProbeError::Ended { awaited: "its exec", status, output: String::new() });
        }
        let options = Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(self.pid, options).map_err(ProbeError::system("ptrace"))?;
        Ok(self)
    }

    /// Lets the child go until its first exit.
    fn run(&mut self) -> io::Result<Run> {
        let start = Instant::now();
        resume(self.pid, libc::PTRACE_CONT, 0)?;
        loop {
            let (pid, status) = self.wait()?;
            let elapsed = start.elapsed();
            match Stop::of(status) {
                Stop::Ended if pid == self.pid => {
                    return Ok(Run::Ended(elapsed, ExitStatus::from_raw(status)));
                }
                Stop::Ended => {}
                Stop::Enter => resume(pid, libc::PTRACE_SYSCALL, 0)?,
                Stop::Return if ptrace::getregs(pid)?.rax == 0 => return Ok(Run::FirstExit(elapsed)),
                Stop::Return | Stop::Start => resume(pid, libc::PTRACE_CONT, 0)?,
                Stop::Signal(signal) => resume(pid, libc::PTRACE_CONT, signal)?,
            }
        }
    }

    /// Waits for the next stop or end of a thread of the child.
    fn wait(&mut self) -> io::Result<(Pid, c_int)> {
        let mut status = 0;
        // SAFETY: `status` is valid for the write of an int.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        let pid = Errno::result(pid).map(Pid::from_raw)?;
        self.reaped |= pid == self.pid && Stop::of(status) == Stop::Ended;
        Ok((pid, status))
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !self.reaped {
            // It is a child not yet reaped, so the number is still its own, and it cannot refuse.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        while !self.reaped && self.wait().is_ok() {}
    }
}

/// Lets a stopped thread go on, with `signal` unless 0. A thread killed meanwhile is no error: its end
/// follows.
fn resume(thread: Pid, request: c_uint, signal: c_int) -> io::Result<()> {
    // SAFETY: PTRACE_CONT and PTRACE_SYSCALL take no address, and the signal number as their data.
    let done = unsafe { libc::ptrace(request, thread.as_raw(), 0, signal) };
    match Errno::result(done) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The child's side of the fork: becomes traced and filtered, stops until the tracer lets it go, executes
/// `argv`.
fn exec_when_let_go(argv: &[*const c_char], input: &File, output: &File) -> ! {
    let prepared = ptrace::traceme()
        .and_then(|()| dup2_stdin(input))
        .and_then(|()| dup2_stdout(output))
        .and_then(|()| dup2_stderr(output))
        .and_then(|()| set_no_new_privs())
        .and_then(|()| install_filter())
        .and_then(|()| raise(Signal::SIGSTOP));
    if prepared.is_ok() {
        // SAFETY: `argv` is an array of pointers to zero-terminated strings that ends with a null pointer;
        // both live in the copy of the parent's memory.
        unsafe { libc::execv(argv[0], argv.as_ptr()) };
        let _ = write(output, b"the program cannot be executed");
    }
    // SAFETY: ends the child without running the parent's exit handlers a second time.
    unsafe { libc::_exit(127) }
}

fn install_filter() -> nix::Result<()> {
    // The kernel reads the filter through this pointer and does not write to it.
    let program = sock_fprog { len: FILTER_LENGTH, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: `program` and the filter it points to are valid for reading; the kernel copies them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[test]
    fn a_program_without_a_guest_ends_before_its_first_exit() {
        let error = first_exit(&shell("echo no guest; exit 3")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ended before the guest's first exit: exit status: 3, saying: no guest"
        );
    }

    #[test]
    fn a_program_that_cannot_be_executed_says_so() {
        let launch = Launch { program: "/nonexistent/program".into(), args: vec![] };
        let error = first_exit(&launch).unwrap_err();
        assert!(error.to_string().ends_with("saying: the program cannot be executed"), "{error}");
    }

    #[test]
    fn signals_reach_the_program() {
        let error = first_exit(&shell("trap 'exit 7' USR1; kill -USR1 $$; exit 0")).unwrap_err();
        assert!(matches!(&error, ProbeError::Ended { status, .. } if status == "exit status: 7"), "{error}");
        let error = first_exit(&shell("trap 'exit 8' RTMIN+1; kill -RTMIN+1 $$; exit 0")).unwrap_err();
        assert!(matches!(&error, ProbeError::Ended { status, .. } if status == "exit status: 8"), "{error}");
    }

    #[test]
    fn stops_are_told_apart_by_event_and_signal() {
        let stopped = |event: c_int, signal: c_int| Stop::of((event << 16) | (signal << 8) | 0x7f);
        assert_eq!(stopped(libc::PTRACE_EVENT_SECCOMP, libc::SIGTRAP), Stop::Enter);
        assert_eq!(stopped(libc::PTRACE_EVENT_CLONE, libc::SIGTRAP), Stop::Start);
        assert_eq!(stopped(libc::PTRACE_EVENT_EXEC, libc::SIGTRAP), Stop::Start);
        assert_eq!(stopped(0, libc::SIGTRAP | 0x80), Stop::Return);
        assert_eq!(stopped(0, libc::SIGSTOP), Stop::Start);
        assert_eq!(stopped(0, libc::SIGUSR1), Stop::Signal(libc::SIGUSR1));
        assert_eq!(stopped(0, 40), Stop::Signal(40));
        assert_eq!(Stop::of(3 << 8), Stop::Ended);
        assert_eq!(Stop::of(libc::SIGKILL), Stop::Ended);
    }
}
