//! The traced program: two threads, one after the other, with scripted exits between markers.
#![expect(unsafe_code, reason = "the instruction int3")]

use std::arch::asm;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use vmm_devices::BusDevice;
use vmm_vcpu::{Requests, RunPage, RunVcpu, Shared, VcpuEnd, coarse_now, run};

use crate::bench::buses::{Buses, Status};
use crate::bench::raw_exits::ExitKind;
use crate::bench::scripted_exits::{NoTarget, OVER, page};

/// Exits of each thread before the first marker, so that what is made once for a thread is there.
const WARM_UP: u32 = 10;

/// Exits of each thread between the markers.
pub const EXITS: u32 = 100;

/// What is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Traced {
    /// One byte to a port.
    PortWrite,
    /// One byte from a port.
    PortRead,
    /// Four bytes to an address without memory.
    MmioWrite,
    /// Four bytes from an address without memory.
    MmioRead,
    /// 256 bytes from a port.
    StringIn,
    /// One byte to a port, of a device that counts with a locked instruction: what must not go unnoticed.
    Control,
}

impl Traced {
    /// The kinds of exits, without the control.
    pub const EXITS: [Self; 5] =
        [Self::PortWrite, Self::PortRead, Self::MmioWrite, Self::MmioRead, Self::StringIn];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            _ => self.kind().name(),
        }
    }

    fn kind(self) -> ExitKind {
        match self {
            Self::PortWrite | Self::Control => ExitKind::PortWrite,
            Self::PortRead => ExitKind::PortRead,
            Self::MmioWrite => ExitKind::MmioWrite,
            Self::MmioRead => ExitKind::MmioRead,
            Self::StringIn => ExitKind::StringIn,
        }
    }

    fn device(self) -> Arc<dyn BusDevice> {
        match self {
            Self::Control => Arc::new(Counting::default()),
            _ => Arc::new(Status::default()),
        }
    }
}

/// Counts writes, with one locked instruction each.
#[derive(Debug, Default)]
struct Counting(AtomicU32);

impl BusDevice for Counting {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Becomes the traced child of the process that started this one, and plays.
///
/// # Errors
///
/// That process does not trace, or a run loop ends early.
pub fn play(traced: Traced) -> anyhow::Result<()> {
    ptrace::traceme().context("becoming traced")?;
    raise(Signal::SIGSTOP).context("waiting for the tracer")?;
    let buses = Buses::new(&traced.device())?;
    // Both threads live until both have played: memory of the one is not handed on to the other, and what looks
    // shared is shared.
    let turn = Barrier::new(2);
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let played = play_marked(traced.kind(), &buses);
            turn.wait();
            turn.wait();
            played
        });
        let second = scope.spawn(|| {
            turn.wait();
            let played = play_marked(traced.kind(), &buses);
            turn.wait();
            played
        });
        (first.join(), second.join())
    });
    for played in [first, second] {
        match played {
            Ok(played) => played?,
            Err(_) => bail!("a thread panicked"),
        }
    }
    Ok(())
}

/// Plays the exits of one thread.
fn play_marked(kind: ExitKind, buses: &Buses) -> anyhow::Result<()> {
    // Not on the stack, as with a vCPU's thread, so that the two are told apart.
    let shared = Arc::new(Shared::new(NoTarget, Requests::none()));
    let kicks_address = std::ptr::from_ref(shared.kicks()).addr();
    let mut vcpu = MarkedVcpu { page: page(kind)?, left: WARM_UP + EXITS, kicks_address };
    match run(&mut vcpu, buses, &shared) {
        VcpuEnd::RunFailed(error) if error.raw_os_error() == Some(OVER) => Ok(()),
        end => bail!("the run loop ended: {end:?}"),
    }
}

/// A vCPU whose `KVM_RUN` returns at once, always with the same exit; the markers are inside two of its calls, with
/// [`EXITS`] whole turns of the run loop between them.
struct MarkedVcpu {
    page: RunPage,
    left: u32,
    kicks_address: usize,
}

impl RunVcpu for MarkedVcpu {
    fn run(&mut self) -> io::Result<()> {
        if self.left == EXITS || self.left == 0 {
            mark(self.kicks_address);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(io::Error::from_raw_os_error(OVER)),
        }
    }

    fn page(&mut self) -> &mut RunPage {
        &mut self.page
    }

    fn tell_stopped(&mut self) {}

    fn now(&self) -> Duration {
        coarse_now()
    }
}

/// Stops for the tracer, with `value` in RDI.
#[inline(never)]
pub(super) fn mark(value: usize) {
    // SAFETY:
    // - int3 changes no register and no memory; the process is traced, and its tracer takes the SIGTRAP.
    unsafe { asm!("int3", in("rdi") value, options(nostack, preserves_flags)) };
}
