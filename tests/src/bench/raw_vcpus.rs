//! `RawVcpus`: the barest vCPU threads that can be kicked and paused: a loop over `KVM_RUN`, `immediate_exit` and
//! `tgkill`.
//!
//! Every kick sends a signal, wherever the vCPU is. Whoever pauses waits for one count, which the vCPUs count down, and
//! the last one wakes; all of them wait for one word, and one wake resumes them.

use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::bench::mailbox::{Kicker, Mailbox};
use crate::bench::raw_vcpu::{RawFlag, RawVcpu};
use crate::bench::raw_vm::{self, RawError};
use crate::bench::thread_calls::{cpu_time, signal_thread, thread_id, wait, wake};
use crate::bench::vcpu_set::{Kickable, Pausable, Work, Working};

/// The gate that ends the threads. An odd number is closed, an even one is open.
const END: u32 = u32::MAX;

/// vCPUs on threads of their own. Dropped, they are ended and joined.
#[derive(Debug)]
pub struct RawVcpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pid: i32,
    vcpus: Vec<Line>,
    gate: AtomicU32,
    /// vCPUs that have yet to come to the closed gate.
    awaited: AtomicU32,
    failure: OnceLock<RawError>,
}

/// What a vCPU shares with its kickers.
#[derive(Debug)]
#[repr(align(64))]
struct Line {
    flag: RawFlag,
    tid: AtomicI32,
    mailbox: Mailbox,
    exits: AtomicU64,
}

impl RawVcpus {
    /// Makes a machine of `cpus` vCPUs with `guest`, and starts their threads, paused.
    ///
    /// # Errors
    ///
    /// As [`raw_vm::boot_smp`], or there is no thread.
    pub fn new(guest: &Path, cpus: u32) -> anyhow::Result<Self> {
        vmm_vcpu::install_kick_signal()?;
        let vcpus = raw_vm::boot_smp(guest, cpus)?;
        let shared = Arc::new(Shared {
            pid: std::process::id().cast_signed(),
            vcpus: vcpus.iter().map(Line::new).collect(),
            gate: AtomicU32::new(1),
            awaited: AtomicU32::new(cpus),
            failure: OnceLock::new(),
        });
        let mut raw = Self { shared, threads: Vec::new() };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let shared = Arc::clone(&raw.shared);
            let thread = std::thread::Builder::new().name(format!("raw{index}"));
            raw.threads.push(thread.spawn(move || serve(vcpu, &shared, &shared.vcpus[index]))?);
        }
        raw.shared.wait_until_paused();
        Ok(raw)
    }

    /// Sends the signal of a kick to the first vCPU, with `before` and `after` around it, and nothing else.
    pub(super) fn kick_between(&self, before: impl FnOnce(), after: impl FnOnce()) -> anyhow::Result<()> {
        let line = self.shared.vcpus.first().context("no vCPU")?;
        before();
        self.shared.kick(line);
        after();
        Ok(())
    }
}

impl Pausable for RawVcpus {
    fn pause(&self) -> anyhow::Result<()> {
        self.shared.close_gate();
        self.shared.wait_until_paused();
        match self.shared.failure.get() {
            Some(failure) => bail!("a vCPU of the baseline: {failure:#?}"),
            None => Ok(()),
        }
    }

    fn resume(&self) {
        self.shared.gate.fetch_add(1, Ordering::SeqCst);
        wake(&self.shared.gate);
    }
}

impl Kickable for RawVcpus {
    fn kick(&self, vcpu: usize, kicker: Kicker) -> anyhow::Result<Duration> {
        let line = self.shared.vcpus.get(vcpu).context("no such vCPU")?;
        let asked = line.mailbox.ask(kicker, || {
            self.shared.kick(line);
            true
        });
        asked.context("the vCPU has ended")
    }
}

impl Working for RawVcpus {
    fn work(&self) -> anyhow::Result<Work> {
        let mut all = Work::default();
        for line in &self.shared.vcpus {
            all.exits += line.exits.load(Ordering::SeqCst);
            all.cpu_time += cpu_time(line.tid.load(Ordering::SeqCst))?;
        }
        Ok(all)
    }
}

impl Drop for RawVcpus {
    fn drop(&mut self) {
        self.shared.gate.store(END, Ordering::SeqCst);
        wake(&self.shared.gate);
        self.shared.vcpus.iter().for_each(|line| self.shared.kick(line));
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing to say here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn close_gate(&self) {
        self.awaited.store(self.vcpus.len() as u32, Ordering::SeqCst);
        self.gate.fetch_add(1, Ordering::SeqCst);
        self.vcpus.iter().for_each(|line| self.kick(line));
    }

    fn wait_until_paused(&self) {
        loop {
            match self.awaited.load(Ordering::SeqCst) {
                0 => return,
                awaited => wait(&self.awaited, awaited),
            }
        }
    }

    /// Gets the attention of a vCPU.
    fn kick(&self, line: &Line) {
        line.flag.set();
        signal_thread(self.pid, line.tid.load(Ordering::SeqCst));
    }

    fn count_down(&self) {
        if self.awaited.fetch_sub(1, Ordering::SeqCst) == 1 {
            wake(&self.awaited);
        }
    }
}

impl Line {
    fn new(vcpu: &RawVcpu) -> Self {
        Self {
            flag: vcpu.immediate_exit(),
            tid: AtomicI32::new(0),
            mailbox: Mailbox::new(),
            exits: AtomicU64::new(0),
        }
    }
}

/// A vCPU's thread.
fn serve(mut vcpu: RawVcpu, shared: &Shared, line: &Line) {
    line.tid.store(thread_id(), Ordering::SeqCst);
    let mut met = 0;
    loop {
        let gate = shared.gate.load(Ordering::SeqCst);
        line.mailbox.look();
        match gate {
            END => return,
            closed if closed % 2 == 1 => {
                if met != gate {
                    met = gate;
                    shared.count_down();
                }
                wait(&shared.gate, gate);
            }
            // After a failure it only counts down and answers.
            open if shared.failure.get().is_some() => wait(&shared.gate, open),
            _ => {
                if let Err(failure) = run(&mut vcpu, line) {
                    // The first one is told.
                    let _ = shared.failure.set(failure);
                }
                // Before gate and requests are looked at.
                line.flag.clear();
            }
        }
    }
}

/// Runs the guest until it is interrupted. What it reads is whatever is in the run page.
fn run(vcpu: &mut RawVcpu, line: &Line) -> Result<(), RawError> {
    let mut exits = line.exits.load(Ordering::Relaxed);
    loop {
        match vcpu.enter() {
            Ok(()) => {
                exits += 1;
                line.exits.store(exits, Ordering::Relaxed);
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => return Ok(()),
                // It waited for INIT and SIPI and was woken.
                Some(libc::EAGAIN) => {}
                _ => return Err(RawError::system("KVM_RUN")(error)),
            },
        }
    }
}
