//! The barest loop over `KVM_RUN`, for one kind of exit: what an exit costs before a program does anything
//! with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_MMIO};

use crate::bench::raw_vcpu::RawVcpu;
use crate::bench::raw_vm::{self, RawError};

/// A kind of exit, with a guest that causes nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// One byte to a port.
    PortWrite,
    /// One byte from a port.
    PortRead,
    /// Four bytes to an address without memory.
    MmioWrite,
    /// Four bytes from an address without memory.
    MmioRead,
    /// 256 bytes from a port by one string instruction.
    StringIn,
}

/// A guest that exits for ever.
#[derive(Debug)]
pub struct RawLoop {
    vcpu: RawVcpu,
    kind: ExitKind,
}

/// What a number of exits took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The time.
    pub elapsed: Duration,
    /// The elements that the exits covered: one each, except for string accesses.
    pub elements: u64,
}

impl ExitKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::PortWrite, Self::PortRead, Self::MmioWrite, Self::MmioRead, Self::StringIn];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortWrite => "port_write",
            Self::PortRead => "port_read",
            Self::MmioWrite => "mmio_write",
            Self::MmioRead => "mmio_read",
            Self::StringIn => "string_in",
        }
    }

    /// The guest in the directory `guests` that causes this kind of exit and no other.
    pub fn guest(self, guests: &Path) -> PathBuf {
        guests.join(format!("bench_exits_{}.elf", self.name()))
    }

    fn exit_reason(self) -> u32 {
        match self {
            Self::PortWrite | Self::PortRead | Self::StringIn => KVM_EXIT_IO,
            Self::MmioWrite | Self::MmioRead => KVM_EXIT_MMIO,
        }
    }
}

impl RawLoop {
    /// Makes a machine with the guest of `kind` from the directory `guests`.
    ///
    /// # Errors
    ///
    /// As [`raw_vm::boot`].
    pub fn new(kind: ExitKind, guests: &Path) -> Result<Self, RawError> {
        Ok(Self { vcpu: raw_vm::boot(&kind.guest(guests))?, kind })
    }

    /// Runs the guest through `exits` exits and goes on from there the next time. What it reads is whatever
    /// is in the run page: it does not look at it.
    ///
    /// # Errors
    ///
    /// `KVM_RUN` fails, or the exit is of another kind.
    pub fn step(&mut self, exits: u32) -> Result<Step, RawError> {
        let expected = self.kind.exit_reason();
        let mut elements = 0;
        let start = Instant::now();
        for _ in 0..exits {
            self.vcpu.enter().map_err(RawError::system("KVM_RUN"))?;
            if self.vcpu.exit_reason() != expected {
                return Err(RawError::Exit(self.vcpu.exit_reason()));
            }
            elements += match self.kind {
                ExitKind::StringIn => u64::from(self.vcpu.port_elements()),
                _ => 1,
            };
        }
        Ok(Step { elapsed: start.elapsed(), elements })
    }
}
