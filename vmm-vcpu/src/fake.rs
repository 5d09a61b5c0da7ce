//! A vCPU without KVM: plays a script of exits through the real decoder.

use std::cell::Cell;
use std::io;
use std::mem::offset_of;
use std::time::Duration;

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_4 as Io,
    kvm_run__bindgen_ty_1__bindgen_ty_6 as Mmio,
};

use crate::{RunPage, RunVcpu};

/// One exit, as a script names it.
#[derive(Clone, Debug)]
pub enum Script {
    /// `in` or `rep ins`.
    PortRead {
        /// Port number.
        port: u16,
        /// Bytes of an element.
        size: u8,
        /// Elements.
        count: u32,
    },
    /// `out` or `rep outs`.
    PortWrite {
        /// Port number.
        port: u16,
        /// Bytes of an element.
        size: u8,
        /// All elements.
        data: Vec<u8>,
    },
    /// A load from a hole.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A store to a hole.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// The bytes stored.
        data: Vec<u8>,
    },
    /// The end of an interrupt that an I/O APIC in user space may have sent.
    EndOfInterrupt {
        /// The interrupt's vector.
        vector: u8,
    },
    /// The dirty ring is full.
    DirtyRingFull,
    /// A triple fault.
    Shutdown,
    /// Any other exit reason, without data.
    Other(u32),
    /// `KVM_RUN` fails with this errno.
    Fails(i32),
    /// No exit: the time that passes between the exit before and the next entry.
    Sleeps(Duration),
}

/// Offset of the page of port data that follows `kvm_run`.
const PORT_DATA: usize = size_of::<kvm_run>().next_multiple_of(4096);
const UNION: usize = offset_of!(kvm_run, __bindgen_anon_1);

fn put(page: &mut RunPage, offset: usize, bytes: &[u8]) {
    if let Some(to) = page.bytes(offset, bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

impl Script {
    /// Writes the exit as the kernel would.
    pub fn write_to(&self, page: &mut RunPage) {
        match self {
            &Self::PortRead { port, size, count } => port_exit(page, KVM_EXIT_IO_IN, port, size, count),
            Self::PortWrite { port, size, data } => {
                let count = u32::try_from(data.len()).unwrap_or(u32::MAX) / u32::from(*size).max(1);
                port_exit(page, KVM_EXIT_IO_OUT, *port, *size, count);
                put(page, PORT_DATA, data);
            }
            &Self::MmioRead { address, length } => mmio_exit(page, address, length, 0),
            Self::MmioWrite { address, data } => {
                mmio_exit(page, *address, u32::try_from(data.len()).unwrap_or(u32::MAX), 1);
                put(page, UNION + offset_of!(Mmio, data), data);
            }
            &Self::EndOfInterrupt { vector } => {
                reason(page, KVM_EXIT_IOAPIC_EOI);
                put(page, UNION, &[vector]);
            }
            Self::DirtyRingFull => reason(page, KVM_EXIT_DIRTY_RING_FULL),
            Self::Shutdown => reason(page, KVM_EXIT_SHUTDOWN),
            &Self::Other(number) => reason(page, number),
            Self::Fails(_) | Self::Sleeps(_) => {}
        }
    }
}

fn reason(page: &mut RunPage, number: u32) {
    put(page, offset_of!(kvm_run, exit_reason), &number.to_ne_bytes());
}

fn port_exit(page: &mut RunPage, direction: u32, port: u16, size: u8, count: u32) {
    reason(page, KVM_EXIT_IO);
    put(page, UNION + offset_of!(Io, direction), &[u8::from(direction == KVM_EXIT_IO_OUT)]);
    put(page, UNION + offset_of!(Io, size), &[size]);
    put(page, UNION + offset_of!(Io, port), &port.to_ne_bytes());
    put(page, UNION + offset_of!(Io, count), &count.to_ne_bytes());
    put(page, UNION + offset_of!(Io, data_offset), &(PORT_DATA as u64).to_ne_bytes());
}

fn mmio_exit(page: &mut RunPage, address: u64, length: u32, is_write: u8) {
    reason(page, KVM_EXIT_MMIO);
    put(page, UNION + offset_of!(Mmio, phys_addr), &address.to_ne_bytes());
    put(page, UNION + offset_of!(Mmio, len), &length.to_ne_bytes());
    put(page, UNION + offset_of!(Mmio, is_write), &[is_write]);
}

/// A vCPU that exits by a script, then with a triple fault.
#[derive(Debug)]
pub struct ScriptedVcpu {
    page: RunPage,
    script: std::vec::IntoIter<Script>,
    /// How often the guest was told that it had been stopped.
    pub told_stopped: usize,
    /// How often its dirty ring was emptied. `None`: it cannot be.
    pub rings_emptied: Option<usize>,
    /// How often it was looked into because the vCPU was kicked.
    pub rings_reaped: usize,
    time: Cell<Duration>,
    /// What passes after the clock is next looked at.
    sleep: Cell<Duration>,
}

impl ScriptedVcpu {
    /// A vCPU that will play `script`.
    pub fn new(script: Vec<Script>) -> io::Result<Self> {
        Ok(Self {
            page: RunPage::anonymous()?,
            script: script.into_iter(),
            told_stopped: 0,
            rings_emptied: Some(0),
            rings_reaped: 0,
            time: Cell::default(),
            sleep: Cell::default(),
        })
    }
}

impl RunVcpu for ScriptedVcpu {
    fn run(&mut self) -> io::Result<()> {
        let step = self.script.next().unwrap_or(Script::Shutdown);
        if let Some(Script::Sleeps(time)) = self.script.as_slice().first() {
            self.sleep.set(*time);
            self.script.next();
        }
        step.write_to(&mut self.page);
        match step {
            Script::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    fn page(&mut self) -> &mut RunPage {
        &mut self.page
    }

    fn tell_stopped(&mut self) {
        self.told_stopped += 1;
    }

    fn dirty_ring_full(&mut self) -> io::Result<()> {
        let emptied = self.rings_emptied.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        *emptied += 1;
        Ok(())
    }

    fn reap_dirty_ring(&mut self) -> io::Result<()> {
        self.rings_reaped += 1;
        Ok(())
    }

    fn now(&self) -> Duration {
        let now = self.time.get();
        self.time.set(now + self.sleep.take());
        now
    }
}
