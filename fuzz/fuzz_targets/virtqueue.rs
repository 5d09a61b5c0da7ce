//! The queue alone: whatever memory it is in, it ends, and a chain is what the driver has described, within its bounds.
//!
//! The input is features and indices (5 bytes), then the memory of rings and buffers.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm_devices::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use vmm_devices::virtio::queue::{Chain, Queue, QueueState};
use vmm_devices::virtio::testing::ram;
use vmm_memory::AddressSpace;

const SIZE: u16 = 8;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = TABLE + 16 * SIZE as u64;
const USED: u64 = 0x1100;
/// Bytes of the rings: descriptors (128), available ring (22), used ring (70).
const USED_END: u64 = USED + 6 + 8 * SIZE as u64;

/// Most bytes of memory in an input.
const LENGTH: usize = 0x4000;

/// One for all inputs: memory that goes has to be waited for.
static MEMORY: LazyLock<Arc<AddressSpace>> = LazyLock::new(ram);

fuzz_target!(|bytes: &[u8]| {
    let Some((&[flags, a, b, c, d], content)) = bytes.split_first_chunk() else { return };
    let memory = MEMORY.memory();
    let content = &content[..content.len().min(LENGTH)];
    memory.write_slice(&[0; LENGTH], GuestAddress(TABLE)).expect("guest RAM");
    memory.write_slice(content, GuestAddress(TABLE)).expect("guest RAM");
    let mut state = QueueState::new(0, SIZE);
    (state.descriptor_table, state.available_ring, state.used_ring) = (TABLE, AVAILABLE, USED);
    state.next_available = u16::from_le_bytes([a, b]);
    state.next_used = u16::from_le_bytes([c, d]);
    let mut features = 0;
    features |= if flags & 1 != 0 { EVENT_IDX } else { 0 };
    features |= if flags & 2 != 0 { INDIRECT_DESC } else { 0 };
    let Ok(mut queue) = Queue::new(&state, features, &memory) else { return };
    let mut chains = Vec::new();
    let taken = loop {
        match queue.pop(&memory) {
            Ok(Some(chain)) => {
                assert!(chains.len() < usize::from(SIZE), "more chains than descriptors");
                let (readable, writable) = (chain.readable(), chain.writable());
                assert!(readable.len().checked_add(writable.len()).is_some(), "more than 2^32 - 1 bytes");
                let buffers = readable.iter().chain(writable.iter()).count();
                assert!(buffers <= usize::from(SIZE), "more buffers than descriptors");
                assert!(chains.iter().all(|other: &Chain| other.head() != chain.head()), "a head twice");
                chains.push(chain);
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert_eq!(queue.in_flight(), chains.len());
    let before = queue.state();
    let count = chains.len();
    for chain in chains {
        let written = chain.writable().len();
        queue.push(&memory, chain, written).expect("rings in guest RAM");
    }
    let after = queue.state();
    assert_eq!(after.next_used, before.next_used.wrapping_add(u16::try_from(count).expect("at most eight")));
    let index: u16 = memory.read_obj(GuestAddress(USED + 2)).expect("guest RAM");
    assert!(count == 0 || u16::from_le(index) == after.next_used, "the used index");
    let _ = (queue.needs_interrupt(&memory), queue.busy(&memory));
    if taken {
        // Nothing was made available since, unless a ring has been written to as a buffer: nobody writes here.
        let _ = queue.rest(&memory).expect("rings in guest RAM");
    }
    // Beyond the used ring and its event nothing is written.
    let beyond = usize::try_from(USED_END - TABLE).expect("small");
    let mut left = vec![0; content.len().saturating_sub(beyond)];
    memory.read_slice(&mut left, GuestAddress(USED_END)).expect("guest RAM");
    assert_eq!(left, content.get(beyond..).unwrap_or_default());
});
