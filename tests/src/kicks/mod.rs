//! The stress of the kick protocol: many kickers against vCPUs of KVM, each step of either side delayed at random.
//!
//! A lost kick is one that is never answered. A late one, answered after more than [`LATE`], has to be explained by the
//! time that the threads of both sides were ready to run and did not get a CPU, as the kernel counts it, and by the time that
//! a CPU of the host stood still, which its kernel cannot count.

mod delayed;
mod sched;
mod witness;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmm_core::Deferred;
use vmm_vcpu::{ExitHandler, Mechanism, Requests, Shared, ThreadTarget, Vcpu, VcpuEnd, run};

use crate::small_machine::SmallMachine;
use delayed::Delayed;
use sched::RunDelay;
use witness::{Stood, Witness};

/// A kick answered later than this is looked into.
pub const LATE: Duration = Duration::from_millis(20);

/// No kick at all is answered in this time: one is lost.
const LOST: Duration = Duration::from_secs(60);

/// Threads that kick the vCPUs of one machine.
const KICKERS: usize = 2;

type Loop = Arc<Shared<Vcpu, Delayed>>;

/// What is kicked, how, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Stress<'a> {
    /// The guest's ELF file.
    pub guest: &'a Path,
    /// vCPUs that run it from the start.
    pub started: u32,
    /// vCPUs that sleep in KVM, waiting for INIT and SIPI.
    pub asleep: u32,
    /// How kicks interrupt `KVM_RUN`.
    pub mechanism: Mechanism,
    /// Kicks in all, each of which is waited for.
    pub kicks: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Kicks that were answered.
    pub answered: usize,
    /// Those answered late, with what explains it.
    pub late: Vec<Late>,
    /// Kicks that sent a signal.
    pub signalled: u64,
}

/// A kick that was answered late.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// From just before the kick until the vCPU's thread served it.
    pub after: Duration,
    /// How long the two threads waited for a CPU meanwhile.
    pub queued: Duration,
    /// How long a CPU of the host stood still meanwhile.
    pub stood: Duration,
}

impl Late {
    /// Whether the delays explain at least nine tenths.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.queued + self.stood >= self.after.mul_f64(0.9)
    }
}

/// Every write of the guest kicks another vCPU of the machine, or its own, without a request.
struct Neighbours {
    loops: OnceLock<Vec<Loop>>,
    writes: AtomicU64,
}

impl ExitHandler for Neighbours {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        let turn = self.writes.fetch_add(1, Ordering::Relaxed);
        let loops = self.loops.get()?;
        let index = usize::try_from(turn).ok()?.checked_rem(loops.len())?;
        loops.get(index)?.kicks().kick(Requests::none());
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// Kicks the vCPUs of `stress` from several threads until it is done.
///
/// # Errors
///
/// The machine cannot be made, a vCPU ends by itself, or a kick is lost. After the last, threads are left behind.
pub fn stress(stress: &Stress<'_>) -> Result<Outcome> {
    vmm_vcpu::install_kick_signal().context("the kick signal")?;
    let machine = SmallMachine::boot(stress.guest, stress.started, stress.asleep)?;
    let handler = Arc::new(Neighbours { loops: OnceLock::new(), writes: AtomicU64::new(0) });
    let (ends, ended) = mpsc::channel();
    let loops: Vec<(Loop, thread::JoinHandle<()>)> = machine
        .vcpus
        .into_iter()
        .map(|vcpu| start(vcpu, stress.mechanism, Arc::clone(&handler), ends.clone()))
        .collect();
    let (loops, threads): (Vec<_>, Vec<_>) = loops.into_iter().unzip();
    // Before the vCPUs exist all of a kick but the signal is done; now they run, and are known to each other.
    let _ = handler.loops.set(loops.clone());
    let witness = Witness::watch().context("a witness")?;
    let outcome = kick_all(&loops, stress.kicks);
    let stood = witness.tell();
    let early = ended.try_recv().ok();
    for shared in &loops {
        shared.kicks().kick(Requests::STOP);
    }
    if let Some(end) = early {
        bail!("a vCPU ended: {end:?}");
    }
    let (answered, late) = outcome?;
    let stood = stood?;
    for thread in threads {
        ensure!(thread.join().is_ok(), "the thread of a vCPU panicked");
    }
    let signalled = loops.iter().map(|shared| shared.kicks().counts().signalled).sum();
    Ok(Outcome { answered, late: late.iter().map(|slow| slow.judged(&stood)).collect(), signalled })
}

fn start(
    mut vcpu: Vcpu,
    mechanism: Mechanism,
    handler: Arc<Neighbours>,
    ends: mpsc::Sender<VcpuEnd>,
) -> (Loop, thread::JoinHandle<()>) {
    let target = Delayed::new(ThreadTarget::new(mechanism, vcpu.immediate_exit()));
    let shared = Arc::new(Shared::new(target, Requests::none()));
    let own = Arc::clone(&shared);
    let thread = thread::spawn(move || {
        let end = match own.kicks().target().settle(&vcpu) {
            Ok(()) => run(&mut vcpu, &*handler, &own),
            Err(error) => VcpuEnd::RunFailed(error),
        };
        own.end();
        if !matches!(end, VcpuEnd::Stopped) {
            // The receiver looks before it goes.
            let _ = ends.send(end);
        }
    });
    (shared, thread)
}

/// Several threads, each of which kicks one vCPU after the other and waits for the answer.
/// Gives how many were answered, and those that took long.
fn kick_all(loops: &[Loop], kicks: usize) -> Result<(usize, Vec<Slow>)> {
    let (answers, answered) = mpsc::channel();
    let over = Arc::new(AtomicBool::new(false));
    for kicker in 0..KICKERS {
        let (loops, answers, over) = (loops.to_vec(), answers.clone(), Arc::clone(&over));
        let own_share = kicks / KICKERS;
        thread::spawn(move || {
            for turn in 0..own_share {
                let Some(shared) = loops.get((kicker + turn) % loops.len()) else { return };
                if over.load(Ordering::Relaxed) || answers.send(kick(shared)).is_err() {
                    return;
                }
            }
        });
    }
    drop(answers);
    let (mut count, mut slow) = (0, Vec::new());
    loop {
        match answered.recv_timeout(LOST) {
            Ok(late) => {
                count += 1;
                slow.extend(late?);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok((count, slow)),
            Err(RecvTimeoutError::Timeout) => {
                over.store(true, Ordering::Relaxed);
                bail!("kick {count} of {kicks} is not answered in {LOST:?}: it is lost");
            }
        }
    }
}

/// A kick that took long, before it is known what the CPUs did.
struct Slow {
    kicked: Instant,
    answered: Instant,
    queued: Duration,
}

impl Slow {
    fn judged(&self, stood: &Stood) -> Late {
        Late {
            after: self.answered.saturating_duration_since(self.kicked),
            queued: self.queued,
            stood: stood.between(self.kicked, self.answered),
        }
    }
}

/// One kick and its answer; `Some` if that came late.
fn kick(shared: &Loop) -> Result<Option<Slow>> {
    let target = shared.kicks().target();
    let delays = || -> Result<Duration> { Ok(RunDelay::of_this_thread()? + target.delay()?) };
    let before = delays()?;
    let kicked = Instant::now();
    let answered = shared.perform(|_| Instant::now()).context("a kick of a vCPU that has ended")?;
    if answered.saturating_duration_since(kicked) <= LATE {
        return Ok(None);
    }
    Ok(Some(Slow { kicked, answered, queued: delays()?.saturating_sub(before) }))
}
