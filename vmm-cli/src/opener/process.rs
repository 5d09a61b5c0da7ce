//! The opener as a process: how it comes to be, what it gives up, and how it ends.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, close, getppid};
use rustix::process::{PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use rustix::thread::set_name;
use vmm_vcpu::affinity::keep_off;

use super::calls::OPENER;
use super::desk::Desk;
use super::packets;
use crate::config::{CpuConfig, CpuList, VmConfig};
use crate::outcome::HOST_CANNOT;
use crate::signals::at_least;
use crate::{confinement, processes};

/// What it is called where processes are listed.
const NAME: &std::ffi::CStr = c"vmm-opener";

/// How long its end is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first descriptor that is not standard input, output or error.
const FIRST: i32 = 3;

/// The process, for the one that has started it. Dropped when nobody can ask it any more, it is waited for.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Readable when it has ended. Linux before 5.3 has none; it ends all the same.
    ended: Option<OwnedFd>,
}

/// Starts it; the socket by which it is asked.
///
/// # Errors
/// The host gives no process or no socket; or this process has several threads.
pub(super) fn start(config: &VmConfig) -> io::Result<(OwnedFd, Child)> {
    let (own, its) = packets::pair()?;
    let parent = Pid::this();
    match processes::fork_alone()? {
        ForkResult::Parent { child } => {
            let pid = rustix::process::Pid::from_raw(child.as_raw());
            let ended = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            Ok((own, Child { pid: child, ended }))
        }
        ForkResult::Child => {
            let ended = catch_unwind(AssertUnwindSafe(|| live(config, parent, &its)));
            // Nothing is dropped: descriptors of the other process's values are closed already, by their numbers.
            std::process::exit(i32::from(ended.is_err()));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(ended) = &self.ended else { return };
        // Where it does not end now it does when this process does.
        let _ = poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], at_least(PATIENCE));
        let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// What the process does from the fork on.
fn live(config: &VmConfig, parent: Pid, socket: &OwnedFd) {
    if let Err(error) = confine(config, parent, socket) {
        let told = format!("vmm-cli: the process {} cannot be confined: {error:#}\n", OPENER.name);
        let _ = io::stderr().write_all(told.as_bytes());
        std::process::exit(i32::from(HOST_CANNOT));
    }
    // The last words of a panic go nowhere: whoever asks next is told that it is gone.
    for fd in 0..FIRST {
        let _ = close(fd);
    }
    Desk::default().serve(socket);
}

fn confine(config: &VmConfig, parent: Pid, socket: &OwnedFd) -> anyhow::Result<()> {
    set_name(NAME).context("a name")?;
    // A terminal and a service manager tell all processes of the machine: it is the monitor that ends, and this one after it.
    SigSet::all().thread_set_mask().context("signals")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("an end with its parent")?;
    if getppid() != parent {
        return Err(anyhow!("its parent has gone"));
    }
    keep_off_dedicated(&config.cpu);
    processes::close_all_but(FIRST, &[socket.as_raw_fd()]).context("descriptors")?;
    confinement::confine_alone(config, &OPENER)
}

/// Host CPUs that a vCPU has for itself are not this process's either.
fn keep_off_dedicated(config: &CpuConfig) {
    let lists = config.cpus_of_each().filter(|_| config.dedicated).unwrap_or_default();
    // Where no other is left the monitor says so.
    if let Ok(kept) = keep_off(&lists.iter().flat_map(CpuList::iter).collect()) {
        // For good.
        std::mem::forget(kept);
    }
}
