//! `jail`: `run` in namespaces of its own, where only what the configuration names can be seen. `docs/jail.md` is the user's page.
//!
//! Three processes. The one that was started stays outside and watches. The first one inside makes the jail, gives up every
//! privilege and watches inside. The machine is its child, and the same program from the fork on: nothing is executed, so the
//! program itself is not in the jail.

mod cgroup;
mod error;
mod identity;
mod namespaces;
mod plan;
mod root;
mod sources;
mod syscalls;
mod watch;

use std::fs::File;
use std::io::{self, PipeReader};
use std::iter;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::ForkResult;
use rustix::process::{Signal, geteuid, getppid, set_parent_process_death_signal};

use crate::args::{Args, Command, JailArgs};
use crate::config::{HostPlace, Need, SerialMode, VmConfig};
use crate::outcome::Failure;
use crate::{console, processes, run};
use cgroup::{Cgroup, Limits};
use error::JailError;
use identity::Identity;
use plan::{Mount, Plan};
use watch::Blocked;

/// What messages call a place that no setting of the machine names.
const ALLOWED: &str = "--allow";

/// The first descriptor that is not standard input, output or error.
const FIRST: RawFd = 3;

/// Where the kernel says of this process in which process group it is, and which one has the terminal.
const STAT: &str = "/proc/self/stat";

/// Runs the machine that `args` describe in a jail, to its end, and returns its exit code.
///
/// # Errors
/// What kept the jail or the machine from being; nothing of them is left then.
pub fn run(args: &JailArgs) -> Result<ExitCode, Failure> {
    // What is wrong with them ends the process, as in every command.
    let inner = Args::parse_from(iter::once("vmm-cli".into()).chain(args.command.iter().cloned()));
    let Command::Run(vm) = inner.command else { return Err(JailError::NotRun.into()) };
    let config = VmConfig::load(&vm).map_err(Failure::bad_input)?;
    let jail = Jail::of(args, &config)?;
    close_all_but(&jail.passed_on)?;
    jail.start(&config)
}

/// Closes all descriptors but 0, 1, 2 and `kept`.
fn close_all_but(kept: &[RawFd]) -> Result<(), JailError> {
    processes::close_all_but(FIRST, kept).map_err(|source| JailError::System {
        what: "close_range",
        since: "5.9",
        source,
    })
}

/// What is decided before anything is made.
struct Jail {
    plan: Plan,
    places: Vec<HostPlace>,
    identity: Identity,
    user_namespace: bool,
    network_namespace: bool,
    /// Whether the machine looks for its own threads.
    lists_threads: bool,
    cgroup: Option<(String, Limits)>,
    /// Descriptors that are the machine's.
    passed_on: Vec<RawFd>,
}

impl Jail {
    fn of(args: &JailArgs, config: &VmConfig) -> Result<Self, JailError> {
        let is_root = geteuid().is_root();
        let user_namespace = args.user_namespace.unwrap_or(!is_root);
        if args.uid.is_some() && (user_namespace || !is_root) {
            let mend = if is_root { "leave --user-namespace out" } else { "run it as root, or leave it out" };
            return Err(JailError::NeedsRoot { flag: "--uid", mend });
        }
        let consoles = [Some(&config.console.serial), config.console.virtio.as_ref()];
        if consoles.contains(&Some(&SerialMode::Pty)) {
            return Err(JailError::Pty);
        }
        let tap = config.net.iter().find_map(|net| net.tap.as_ref());
        let network_namespace = args.network_namespace.unwrap_or(tap.is_none());
        if let Some(tap) = tap.filter(|_| network_namespace) {
            return Err(JailError::NoInterface { tap: tap.clone() });
        }
        let places = config.places();
        let mut plan = Plan::of(&places)?;
        for path in &args.allow {
            let path = std::path::absolute(path).map_err(JailError::step("the current directory"))?;
            let need = if path.is_dir() { Need::Listen } else { Need::Write };
            plan.add(ALLOWED.into(), &path, need)?;
        }
        let limits = Limits { memory: args.memory_max, cpu: args.cpu_max, pids: args.pids_max };
        let descriptors = config.net.iter().filter_map(|net| net.fd.as_ref());
        Ok(Self {
            plan,
            places,
            identity: Identity::new(args.uid, args.gid),
            user_namespace,
            network_namespace,
            lists_threads: config.cpu.dedicated,
            cgroup: args.cgroup.clone().map(|name| (name, limits)),
            passed_on: descriptors.flat_map(|fd| fd.numbers().iter().copied()).collect(),
        })
    }

    /// From here on there is one thread, until the machine starts others: nothing is told meanwhile.
    fn start(self, config: &VmConfig) -> Result<ExitCode, Failure> {
        let blocked = Blocked::new().map_err(JailError::step("blocked signals"))?;
        let cgroup = self.cgroup.as_ref().map(|(name, limits)| Cgroup::make(name, *limits)).transpose();
        let cgroup = cgroup.map_err(JailError::from)?;
        // Without `/proc` the terminal is taken for ours.
        let stat = File::open(STAT).ok();
        let (outside, inside) = io::pipe().map_err(JailError::step("a pipe"))?;
        if self.user_namespace {
            namespaces::enter_user()?;
        }
        namespaces::next_process_is_first()?;
        match processes::fork_alone().map_err(JailError::step("a process"))? {
            ForkResult::Parent { child } => {
                drop(outside);
                let code = watch::from_outside(child, &blocked, &inside);
                Ok(ExitCode::from(code.map_err(JailError::step("watching the jail"))?))
            }
            ForkResult::Child => {
                drop(inside);
                if let Some(cgroup) = cgroup {
                    let entered = cgroup.enter();
                    cgroup.forget();
                    entered.map_err(JailError::from)?;
                }
                self.confine(&outside)?;
                self.start_machine(config, &blocked, outside, stat)
            }
        }
    }

    /// Makes the jail around this process, the first one in its PID namespace.
    fn confine(&self, outside: &PipeReader) -> Result<(), JailError> {
        namespaces::enter_others(self.network_namespace)?;
        root::enter(&self.plan, self.identity, self.lists_threads)?;
        self.identity.take()?;
        identity::check_access(&self.places)?;
        // Not before: another identity undoes it.
        die_with_parent()?;
        // Who died before that does not hold the pipe any more.
        let mut fds = [PollFd::new(outside.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).map_err(JailError::step("a look at the pipe"))?;
        let has_gone = fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if has_gone { Err(JailError::step("its parent has gone")(io::ErrorKind::BrokenPipe)) } else { Ok(()) }
    }

    /// Starts the machine in the jail; returns in its process, and in this one never.
    fn start_machine(
        self,
        config: &VmConfig,
        blocked: &Blocked,
        outside: PipeReader,
        stat: Option<File>,
    ) -> Result<ExitCode, Failure> {
        match processes::fork_alone().map_err(JailError::step("a process"))? {
            ForkResult::Parent { child } => {
                drop(stat);
                let code = watch::from_inside(child, blocked, &outside);
                // What is wrong here is said by nobody: the machine may be saying something.
                std::process::exit(code.map_or(1, i32::from));
            }
            ForkResult::Child => {
                drop(outside);
                die_with_parent()?;
                if getppid().is_none_or(|parent| !parent.is_init()) {
                    return Err(JailError::step("its parent has gone")(io::ErrorKind::BrokenPipe).into());
                }
                let kept = stat.iter().map(AsRawFd::as_raw_fd).chain(self.passed_on.iter().copied());
                close_all_but(&kept.collect::<Vec<_>>())?;
                if let Some(stat) = stat {
                    console::set_outside(stat);
                }
                blocked.undo().map_err(JailError::step("signals"))?;
                run::run_saying(config, &self.strangers())
            }
        }
    }

    /// Which directories have more in them than was named: all of it is in the jail. To be said when there may be a thread that says it.
    fn strangers(&self) -> Vec<String> {
        let is_named = |file: &Path| {
            let file = file.as_os_str().as_encoded_bytes();
            // A socket of a port has the path of the device's socket and a number.
            self.places.iter().any(|place| file.starts_with(place.path.as_os_str().as_encoded_bytes()))
        };
        let has_socket = |mount: &Mount| mount.need == Need::Listen && mount.name != ALLOWED;
        let with_sockets = self.plan.mounts().filter(|(_, mount)| has_socket(mount));
        let told = with_sockets.filter_map(|(path, mount)| {
            let count = sources::strangers(path, is_named).ok().filter(|count| *count > 0)?;
            Some(format!(
                "jail: {}: all of {} is in the jail, {count} more than was named; a directory of its own would have nothing else",
                mount.name,
                path.display()
            ))
        });
        told.collect()
    }
}

/// Has the kernel kill this process when the one that made it ends.
fn die_with_parent() -> Result<(), JailError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(JailError::step("an end with its parent"))
}
