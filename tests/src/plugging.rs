//! `Plugging`: memory that two vCPUs plug and unplug by requests, as a driver of virtio-mem does, and what a device finds there.
//! The guest's side is in `tests/guests/plug.S`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};
use vmm_core::Deferred;
use vmm_memory::{AddressSpace, HotplugLayout, HotplugRegion, PinHolder, RamRange, RegionPin};
use vmm_vcpu::ExitHandler;

use crate::live_memory::{Outside, WINDOW};

const BLOCK: u64 = 0x1_0000;
const BLOCKS: u64 = 16;
const VCPUS: usize = 2;

/// Where the device stores in each block; the guest uses the first and the last word.
const CELL: u64 = 0x8000;

const REQUEST_PORT: u16 = 0x5a4;
/// One for each vCPU.
const ANSWER_PORTS: u16 = 0x5a8;
const PLUG: u32 = 1;
const UNPLUG: u32 = 2;
const WAIT: u32 = 0;
const DONE: u32 = 1;
const BUSY: u32 = 2;

/// Sixteen blocks, in chunks in which both vCPUs have some.
pub const LAYOUT: HotplugLayout = HotplugLayout {
    range: RamRange { start: WINDOW, size: BLOCKS * BLOCK },
    block_size: BLOCK,
    chunk_size: 4 * BLOCK,
};

fn range(block: u64) -> RamRange {
    RamRange { start: WINDOW + block * BLOCK, size: BLOCK }
}

/// How far a vCPU's request is.
#[derive(Clone, Copy, Default)]
enum Request {
    #[default]
    None,
    Asked {
        kind: u32,
        block: u32,
    },
    Answered(u32),
}

#[derive(Default)]
struct Mailbox {
    requests: [Request; VCPUS],
    is_over: bool,
}

/// What the guest's requests came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// Blocks that were plugged or unplugged.
    pub done: u64,
    /// Requests that could not be served because of a pin.
    pub busy: u64,
}

/// The ports of the guest, between which and the hotplug region a thread stands.
#[derive(Default)]
pub struct Plugging {
    /// What the guest accesses besides.
    pub outside: Outside,
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
}

impl Plugging {
    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves requests until [`end`](Self::end); each time `served` is told what came of them so far.
    ///
    /// # Errors
    ///
    /// The region refuses what it should not.
    pub fn serve(&self, region: &HotplugRegion, mut served: impl FnMut(Served)) -> Result<Served> {
        let mut sum = Served::default();
        while let Some((vcpu, kind, block)) = self.next() {
            let changed = match kind {
                PLUG => region.plug(range(block.into())),
                UNPLUG => region.unplug(range(block.into())),
                kind => bail!("vCPU {vcpu} asks for {kind}"),
            };
            let answer = match changed {
                Ok(()) => DONE,
                Err(error) if error.is_busy() => BUSY,
                Err(error) => bail!("request {kind} of vCPU {vcpu} for block {block}: {error}"),
            };
            *(if answer == DONE { &mut sum.done } else { &mut sum.busy }) += 1;
            self.mailbox().requests[vcpu] = Request::Answered(answer);
            served(sum);
        }
        Ok(sum)
    }

    /// Ends [`serve`](Self::serve).
    pub fn end(&self) {
        self.mailbox().is_over = true;
        self.changed.notify_all();
    }

    /// Waits for a request; none comes any more.
    fn next(&self) -> Option<(usize, u32, u32)> {
        let mut mailbox = self.mailbox();
        loop {
            if mailbox.is_over {
                return None;
            }
            for (vcpu, request) in mailbox.requests.iter().enumerate() {
                if let Request::Asked { kind, block } = *request {
                    return Some((vcpu, kind, block));
                }
            }
            mailbox = self.changed.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl ExitHandler for Plugging {
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        let vcpu = usize::from(port.wrapping_sub(ANSWER_PORTS) / 4);
        let mut mailbox = self.mailbox();
        let Some(request) = mailbox.requests.get_mut(vcpu) else {
            drop(mailbox);
            return self.outside.port_read(port, size, data);
        };
        let answer = match *request {
            Request::Answered(answer) => {
                *request = Request::None;
                answer
            }
            _ => WAIT,
        };
        data.copy_from_slice(&answer.to_le_bytes()[..data.len()]);
    }

    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        if port != REQUEST_PORT {
            return self.outside.port_write(port, size, data);
        }
        let [block, kind, vcpu, _] = data.try_into().unwrap_or_default();
        if let Some(request) = self.mailbox().requests.get_mut(usize::from(vcpu)) {
            *request = Request::Asked { kind: kind.into(), block: block.into() };
        }
        self.changed.notify_all();
        None
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.outside.mmio_read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        self.outside.mmio_write(address, data)
    }
}

/// What a device has found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Accesses to blocks that were plugged.
    pub done: u64,
    /// Accesses that were refused, as the block was not.
    pub refused: u64,
    /// Requests that outlived their read section.
    pub pinned: u64,
}

/// Stores to each block and loads what it has stored, by the table and by pins, until `is_over`.
///
/// # Errors
///
/// It has found what must not be.
pub fn access_blocks(space: &Arc<AddressSpace>, is_over: impl Fn() -> bool) -> Result<Found> {
    let holder = PinHolder::new("device", |_| ());
    let mut found = Found::default();
    let mut pin: Option<(RegionPin, u64)> = None;
    let mut number = 0_u64;
    while !is_over() {
        for block in 0..BLOCKS {
            number += 1;
            let address = GuestAddress(range(block).start + CELL);
            let table = space.memory();
            let stored = table.write_obj(number, address).and_then(|()| table.read_obj::<u64>(address));
            match stored {
                Ok(loaded) => {
                    ensure!(loaded == number, "{loaded} in block {block}, not {number}");
                    found.done += 1;
                }
                Err(GuestMemoryError::InvalidGuestAddress(_)) => found.refused += 1,
                Err(error) => bail!(error),
            }
        }
        // What was pinned a while ago is where it was.
        if let Some((pin, offset)) = pin.take() {
            let cell = vm_memory::MemoryRegionAddress(offset);
            pin.write_obj(number, cell)?;
            let loaded: u64 = pin.read_obj(cell)?;
            ensure!(loaded == number, "{loaded} in a pinned block, not {number}");
            found.pinned += 1;
        }
        let table = space.memory();
        let address = range(number / BLOCKS % BLOCKS).start + CELL;
        if let Some(region) = table.find_region(GuestAddress(address)) {
            let offset = address - region.range().start;
            pin = Some((region.pin_part(offset, 8, &holder)?, offset));
        }
        drop(table);
        std::thread::yield_now();
    }
    Ok(found)
}
