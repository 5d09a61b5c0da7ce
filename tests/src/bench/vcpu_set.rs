//! vCPUs of one machine on threads of their own, as the benchmarks of kicks, pauses and port reads drive them: whose they
//! are and what they do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_core::Kvm;
use vmm_vcpu::Mechanism;

use crate::bench::mailbox::Kicker;
use crate::bench::raw_vcpus::RawVcpus;
use crate::bench::series::BASELINE;
use crate::bench::vmm_kicked::KickedVcpus;
use crate::bench::vmm_vcpus::VmmVcpus;

/// This project's own, by `immediate_exit`.
pub const VMM: &str = "vmm";
/// The same by `KVM_SET_SIGNAL_MASK`.
pub const VMM_MASK: &str = "vmm_mask";

/// Whose vCPUs are measured.
pub const SUBJECTS: [&str; 3] = [BASELINE, VMM, VMM_MASK];

/// Longer than any pause may take.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// vCPUs that can be taken out of the guest; out from the beginning.
pub trait Pausable: Sync {
    /// Takes every vCPU out of the guest, and returns when all are out.
    ///
    /// # Errors
    ///
    /// A vCPU has ended.
    fn pause(&self) -> anyhow::Result<()>;
    /// Lets all go on.
    fn resume(&self);
}

/// vCPUs that can be kicked.
pub trait Kickable: Pausable {
    /// Gets the attention of one vCPU, and says how long that took: from just before the kick until the vCPU's thread
    /// looks at what is wanted.
    ///
    /// # Errors
    ///
    /// There is no such vCPU.
    fn kick(&self, vcpu: usize, kicker: Kicker) -> anyhow::Result<Duration>;
}

/// vCPUs whose work is counted.
pub trait Working: Pausable {
    /// What they have done so far. To be called while they are paused.
    ///
    /// # Errors
    ///
    /// One has ended.
    fn work(&self) -> anyhow::Result<Work>;
}

/// What the vCPUs of a machine have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Exits to user space.
    pub exits: u64,
    /// CPU time of their threads.
    pub cpu_time: Duration,
}

/// What all vCPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Spin.
    Spinning,
    /// Sleep in KVM.
    Halted,
    /// Read four bytes from a port.
    Exiting,
}

impl Guest {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Spinning, Self::Halted, Self::Exiting];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spinning => "spinning",
            Self::Halted => "halted",
            Self::Exiting => "exiting",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Spinning => "spin.elf",
            Self::Halted => "bench_halt.elf",
            Self::Exiting => "bench_inl.elf",
        }
    }
}

/// How a machine is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The directory of the assembled guest programs.
    pub guests: &'a Path,
    /// What the vCPUs do.
    pub guest: Guest,
    /// How many there are.
    pub cpus: u32,
}

impl Setup<'_> {
    /// The vCPUs of `subject`, to be kicked.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn kickable(self, subject: &str) -> anyhow::Result<Box<dyn Kickable>> {
        Ok(match mechanism(subject) {
            None => Box::new(RawVcpus::new(&self.file(), self.cpus)?),
            Some(mechanism) => Box::new(KickedVcpus::new(&self.file(), self.cpus, mechanism)?),
        })
    }

    /// The vCPUs of `subject`, to be paused and resumed.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn working(self, subject: &str) -> anyhow::Result<Box<dyn Working>> {
        Ok(match mechanism(subject) {
            None => Box::new(RawVcpus::new(&self.file(), self.cpus)?),
            Some(mechanism) => Box::new(VmmVcpus::new(&self.file(), self.cpus, mechanism)?),
        })
    }

    /// The guest's ELF file.
    pub(super) fn file(self) -> PathBuf {
        self.guests.join(self.guest.file())
    }

    /// How long the vCPUs, which all want a CPU, need at least until each has had one, unless they are many.
    pub fn settling_time(self) -> Duration {
        /// A time slice of the scheduler, roughly.
        const SLICE: Duration = Duration::from_millis(3);
        /// Turns of a CPU after which those that have not run yet are waiting for one like those that have.
        const TURNS: u32 = 8;
        let host = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        if self.cpus < host {
            Duration::from_micros(200)
        } else {
            SLICE * self.cpus.div_ceil(host).min(TURNS)
        }
    }
}

/// Why there can be no vCPUs here, if there can be none.
pub fn missing() -> Option<String> {
    Kvm::open(Path::new("/dev/kvm")).err().map(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// How `subject` is kicked if it is not the baseline.
pub(super) fn mechanism(subject: &str) -> Option<Mechanism> {
    match subject {
        VMM => Some(Mechanism::ImmediateExit),
        VMM_MASK => Some(Mechanism::SignalMask),
        _ => None,
    }
}
