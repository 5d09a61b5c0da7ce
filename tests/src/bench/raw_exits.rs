//! The barest loop over `KVM_RUN`, for one kind of exit: what an exit costs before a program does anything
//! with it.

use std::path::Path;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_MMIO};

use crate::bench::raw_vm::{RawError, RawVm};

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
    vm: RawVm,
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
    pub const ALL: [Self; 5] = [
        Self::PortWrite,
        Self::PortRead,
        Self::MmioWrite,
        Self::MmioRead,
        Self::StringIn,
    ];

    /// The name in reports; the guest is the program `bench_exits_NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortWrite => "port_write",
            Self::PortRead => "port_read",
            Self::MmioWrite => "mmio_write",
            Self::MmioRead => "mmio_read",
            Self::StringIn => "string_in",
        }
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
    /// As [`RawVm::boot`].
    pub fn new(kind: ExitKind, guests: &Path) -> Result<Self, RawError> {
        let guest = guests.join(format!("bench_exits_{}.elf", kind.name()));
        Ok(Self {
            vm: RawVm::boot(&guest)?,
            kind,
        })
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
            self.vm.enter().map_err(RawError::system("KVM_RUN"))?;
            if self.vm.exit_reason() != expected {
                return Err(RawError::Exit(self.vm.exit_reason()));
            }
            elements += match self.kind {
                ExitKind::StringIn => u64::from(self.vm.port_elements()),
                _ => 1,
            };
        }
        Ok(Step {
            elapsed: start.elapsed(),
            elements,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bench::raw_elf::tests::file;

    /// A loop over a guest of this code, which is given out as that of `kind`.
    fn raw_loop(kind: ExitKind, code: &[u8]) -> RawLoop {
        let guests = tempfile::tempdir().unwrap();
        fs::write(
            guests.path().join(format!("bench_exits_{}.elf", kind.name())),
            file(code),
        )
        .unwrap();
        RawLoop::new(kind, guests.path()).unwrap()
    }

    #[test]
    #[ignore = "needs /dev/kvm"]
    fn a_plain_access_is_one_element() {
        let mut raw = raw_loop(ExitKind::PortRead, &[0xe4, 0x80, 0xeb, 0xfc]); // 1: in $0x80, %al; jmp 1b
        let step = raw.step(100).unwrap();
        assert!(step.elements == 100 && !step.elapsed.is_zero(), "{step:?}");
    }

    #[test]
    #[ignore = "needs /dev/kvm"]
    fn a_string_access_counts_its_elements() {
        let mut raw = raw_loop(
            ExitKind::StringIn,
            &[
                0xbf, 0x00, 0x10, 0x20, 0x00, // 1: mov $0x201000, %edi
                0xb9, 0x20, 0x00, 0x00, 0x00, // mov $32, %ecx
                0xf3, 0x6c, // rep insb
                0xeb, 0xf2, // jmp 1b
            ],
        );
        assert_eq!(raw.step(3).unwrap().elements, 3 * 32);
        assert_eq!(raw.step(2).unwrap().elements, 2 * 32);
    }

    #[test]
    #[ignore = "needs /dev/kvm"]
    fn an_exit_of_another_kind_is_an_error() {
        let mut raw = raw_loop(ExitKind::MmioRead, &[0xe6, 0x80]); // out %al, $0x80
        assert!(matches!(raw.step(1), Err(RawError::Exit(KVM_EXIT_IO))));
    }
}
