//! `TestVm`: a command line of the monitor, put together step by step.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};

use super::running::{Finished, RunningVm};
use super::{DEADLINE, guest, monitor, words};

/// A user without any privilege: the one to whom nothing belongs.
pub const NOBODY: u32 = 65534;

/// A machine to be started. Standard input is empty, output is captured, unless told otherwise.
#[derive(Debug)]
pub struct TestVm {
    wrapper: Vec<OsString>,
    args: Vec<OsString>,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    deadline: Duration,
}

impl TestVm {
    /// `vmm-cli run` with nothing said about the guest.
    #[must_use]
    pub fn bare() -> Self {
        Self::program(monitor()).arg("run")
    }

    /// Another path of the monitor, with no argument.
    #[must_use]
    pub fn program(path: impl Into<OsString>) -> Self {
        Self {
            wrapper: Vec::new(),
            args: vec![path.into()],
            stdin: Stdio::null(),
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
            deadline: DEADLINE,
        }
    }

    /// `vmm-cli run` with the guest program `name`.
    #[must_use]
    pub fn guest(name: &str) -> Self {
        Self::bare().arg("--kernel").arg(guest(name))
    }

    /// One argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Arguments without spaces inside, all in one text.
    #[must_use]
    pub fn args(mut self, args: &str) -> Self {
        self.args.extend(words(args));
        self
    }

    /// The guest's command line.
    #[must_use]
    pub fn cmdline(self, text: &str) -> Self {
        self.arg("--cmdline").arg(text)
    }

    /// The same in a jail with these options; what was said so far is said to `run`.
    #[must_use]
    pub fn in_jail(mut self, options: &str) -> Self {
        let jail = std::iter::once(OsString::from("jail")).chain(words(options)).chain(["--".into()]);
        // Behind the program.
        drop(self.args.splice(1..1, jail));
        self
    }

    /// Starts the monitor by another program, which is given the monitor's command line after its own `words` and
    /// executes it in its place.
    #[must_use]
    pub fn through(mut self, program: &str) -> Self {
        self.wrapper.extend(words(program));
        self
    }

    /// One more word of the program that starts the monitor.
    #[must_use]
    pub fn through_path(mut self, path: &Path) -> Self {
        self.wrapper.push(path.into());
        self
    }

    /// Starts the monitor by a shell script, which says `exec \"$@\"` where the monitor is to be.
    #[must_use]
    pub fn through_shell(mut self, script: &str) -> Self {
        self.wrapper.extend(["sh", "-c", script, "sh"].map(OsString::from));
        self
    }

    /// As root: has it find a `/dev/kvm` that everybody may use. That is in a mount namespace of its own, with a file system at
    /// `directory` where the monitor is too, since everybody finds it there.
    ///
    /// # Errors
    ///
    /// This host has no `/dev/kvm`.
    pub fn with_kvm_for_all(self, directory: &Path) -> Result<Self> {
        self.through_namespace(directory, "")
    }

    /// As [`with_kvm_for_all`](Self::with_kvm_for_all), and as a user without privileges, who has nothing and is in no group.
    ///
    /// # Errors
    ///
    /// This host has no `/dev/kvm`.
    pub fn as_nobody(self, directory: &Path) -> Result<Self> {
        let setpriv = program("setpriv")?;
        let starter = format!("{} --reuid={NOBODY} --regid={NOBODY} --clear-groups", setpriv.display());
        self.through_namespace(directory, &starter)
    }

    fn through_namespace(mut self, directory: &Path, starter: &str) -> Result<Self> {
        let device = fs::metadata("/dev/kvm").context("/dev/kvm")?.rdev();
        let at = directory.display();
        let script = format!(
            "set -e; mount -t tmpfs trial {at}; mknod {at}/kvm c {} {}; chmod 666 {at}/kvm; mount --bind {at}/kvm /dev/kvm
             cp \"$1\" {at}/monitor; chmod 755 {at} {at}/monitor; shift; exec {starter} {at}/monitor \"$@\"",
            major(device),
            minor(device),
        );
        let shell = program("sh")?;
        self.wrapper.extend(["unshare", "-m"].map(OsString::from));
        self.wrapper
            .extend([shell.as_os_str(), "-c".as_ref(), script.as_ref(), "sh".as_ref()].map(OsStr::to_owned));
        Ok(self)
    }

    /// Another standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Another standard output, which is not captured then unless it is a new pipe.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Another standard error, which is not captured then unless it is a new pipe.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Another time that the machine may take from start to end.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// The program cannot be started.
    pub fn spawn(self) -> Result<RunningVm> {
        let mut line = self.wrapper.into_iter().chain(self.args);
        let program = line.next().unwrap_or_default();
        let child = Command::new(&program)
            .args(line)
            .stdin(self.stdin)
            .stdout(self.stdout)
            .stderr(self.stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(RunningVm::new(child, self.deadline))
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or does not end in time.
    pub fn run(self) -> Result<Finished> {
        self.spawn()?.wait()
    }
}

/// Where the program `name` is: busybox takes its own for one that is named without a path.
fn program(name: &str) -> Result<PathBuf> {
    let directories = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&directories).map(|directory| directory.join(name));
    candidates.find(|path| path.is_file()).with_context(|| format!("no {name} in the search path"))
}
