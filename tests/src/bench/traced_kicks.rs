//! The traced program of the kick benchmark: kicks between two markers each, of which the second says what the kick came
//! to.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use vmm_vcpu::{Kick, Mechanism, Parking, ThreadOptions, VcpuThread};

use crate::bench::raw_vcpus::RawVcpus;
use crate::bench::scripted_exits::Nothing;
use crate::bench::traced_exits::mark;
use crate::bench::vcpu_set::{LIMIT, Pausable, Setup, mechanism};
use crate::small_machine::SmallMachine;

/// Kicks that send a signal. About as many come to each other thing.
const KICKS: usize = 100;

/// What the first marker of a kick says.
pub(super) const START: usize = 0;

/// What a kick came to, as its second marker says.
pub(super) const OUTCOMES: [(usize, &str); 3] = [(1, "signalled"), (2, "elided"), (3, "woken")];

/// Long enough for a vCPU to enter its guest.
const ENTERS: Duration = Duration::from_millis(1);

/// Becomes the traced child of the process that started this one, and kicks a vCPU of `subject`.
///
/// # Errors
///
/// That process does not trace, or whatever the parts refuse.
pub fn play(setup: Setup<'_>, subject: &str) -> anyhow::Result<()> {
    ptrace::traceme().context("becoming traced")?;
    raise(Signal::SIGSTOP).context("waiting for the tracer")?;
    match mechanism(subject) {
        Some(mechanism) => play_vmm(&setup.file(), mechanism),
        None => play_raw(&setup.file()),
    }
}

fn play_raw(guest: &Path) -> anyhow::Result<()> {
    let vcpus = RawVcpus::new(guest, 1)?;
    vcpus.resume();
    for _ in 0..KICKS {
        thread::sleep(ENTERS);
        vcpus.kick_between(|| mark(START), || mark(1))?;
    }
    Ok(())
}

fn play_vmm(guest: &Path, mechanism: Mechanism) -> anyhow::Result<()> {
    let SmallMachine { mut vcpus, memory, .. } = SmallMachine::boot(guest, 1, 0)?;
    let vcpu = vcpus.pop().context("no vCPU")?;
    let vcpu = VcpuThread::spawn(
        vcpu,
        Arc::new(Nothing),
        ThreadOptions { mechanism, ..ThreadOptions::default() },
        |_, _| {},
    )?;
    let deadline = Instant::now() + LIMIT;
    let mut signalled = 0;
    while signalled < KICKS {
        vcpu.resume();
        thread::sleep(ENTERS);
        // On a busy host it may not have entered yet; then the kick is elided.
        signalled += usize::from(kick(&vcpu) == Kick::Signalled);
        let parking = vcpu.wait_parked(deadline);
        ensure!(parking == Parking::Parked, "after {signalled} signals: {parking:?}");
        kick(&vcpu);
        while_outside(&vcpu, || {
            kick(&vcpu);
        })?;
    }
    drop(vcpu);
    drop(memory);
    Ok(())
}

/// Calls `then` while the thread of `vcpu` is neither in the guest nor parked.
fn while_outside(vcpu: &VcpuThread, then: impl FnOnce()) -> anyhow::Result<()> {
    let (come, comes) = mpsc::channel();
    let (leave, leaves) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let task = move |_: &mut _| {
            // Both fail only if the other side has failed already, and says so.
            let _ = come.send(());
            let _ = leaves.recv();
        };
        scope.spawn(|| vcpu.perform(task));
        comes.recv().context("the vCPU does not come")?;
        then();
        drop(leave);
        Ok(())
    })
}

/// One kick between its markers.
fn kick(vcpu: &VcpuThread) -> Kick {
    mark(START);
    let kick = vcpu.request_pause();
    mark(match kick {
        Kick::Signalled => 1,
        Kick::Elided => 2,
        Kick::Woken => 3,
        Kick::Gone => 4,
    });
    kick
}
