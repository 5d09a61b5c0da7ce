//! What the console has beside its queues: the output, the FIFO of the input, and who is to be told.
//!
//! Lock order: `input`, in it nothing; `output`, which the writer may lock more under; `live`, innermost.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;
use crate::virtio::DeviceStatus;

/// Bytes of input that wait for the guest at most.
pub const FIFO: usize = 4096;

/// Input that waits.
#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Whether more was offered than there was room for, since the one who offers was told.
    refused: bool,
}

/// A driver that is ready.
struct Live {
    status: DeviceStatus,
    /// Of the queue that takes input.
    receive: Option<Arc<EventFd>>,
}

pub(super) struct Shared {
    output: Mutex<Box<dyn Write + Send>>,
    on_drained: Box<dyn Fn() + Send + Sync>,
    input: Mutex<Input>,
    live: Mutex<Option<Live>>,
    /// Columns, and rows in the upper half.
    size: AtomicU32,
}

impl Shared {
    pub(super) fn new(output: Box<dyn Write + Send>, on_drained: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            output: Mutex::new(output),
            on_drained,
            input: Mutex::default(),
            live: Mutex::default(),
            size: AtomicU32::new(0),
        }
    }

    /// The driver is ready.
    pub(super) fn start(&self, status: DeviceStatus, receive: Option<Arc<EventFd>>) {
        let mut live = lock(&self.live);
        // Linux 6.1 looks at the size when it is told that it has changed, and not before.
        if self.size.load(Ordering::Acquire) != 0 {
            status.config_changed();
        }
        *live = Some(Live { status, receive });
    }

    /// It is not any more.
    pub(super) fn stop(&self) {
        *lock(&self.live) = None;
    }

    /// Output of the guest; what the writer does not take is lost, and counted there.
    pub(super) fn write(&self, bytes: &[u8]) {
        let _ = lock(&self.output).write_all(bytes);
    }

    /// Takes as much input as there is room for, and wakes the queue.
    pub(super) fn offer(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let room = FIFO.saturating_sub(input.bytes.len());
        let fitting = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
        input.refused |= !bytes.is_empty();
        input.bytes.extend(fitting);
        drop(input);
        if !fitting.is_empty()
            && let Some(doorbell) = lock(&self.live).as_ref().and_then(|live| live.receive.clone())
        {
            // It fails only when 2^64 - 2 rings wait already.
            let _ = doorbell.write(1);
        }
        fitting.len()
    }

    /// Whether input waits.
    pub(super) fn has_input(&self) -> bool {
        !lock(&self.input).bytes.is_empty()
    }

    /// The first bytes that wait, at most as many as `buffer` has.
    pub(super) fn take(&self, buffer: &mut [u8]) -> usize {
        let mut input = lock(&self.input);
        let count = input.bytes.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(input.bytes.drain(..count)) {
            *to = from;
        }
        let tell = input.bytes.is_empty() && std::mem::take(&mut input.refused);
        drop(input);
        if tell {
            (self.on_drained)();
        }
        count
    }

    /// The configuration as far as it is offered: columns and rows (section 5.3.4).
    pub(super) fn config(&self) -> [u8; 4] {
        self.size.load(Ordering::Acquire).to_le_bytes()
    }

    /// Says the size, to a driver that is ready by an interrupt.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        let size = u32::from(rows) << 16 | u32::from(columns);
        if self.size.swap(size, Ordering::AcqRel) != size
            && let Some(live) = &*lock(&self.live)
        {
            live.status.config_changed();
        }
    }
}
