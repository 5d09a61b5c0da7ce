//! What a driver asks and what it is answered (virtio 1.3, section 5.15.6).

use vmm_memory::{BlockState, RamRange};

/// Bytes of a request, whatever it asks for, and of an answer.
pub(super) const REQUEST: usize = 24;
pub(super) const ANSWER: usize = 10;
pub(super) const ANSWER_LENGTH: u32 = 10;

/// Types of requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Blocks),
    Unplug(Blocks),
    UnplugAll,
    State(Blocks),
    /// Of a type that there is not.
    Unknown,
}

/// Consecutive blocks, as the driver says them: perhaps none, or not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) address: u64,
    pub(super) count: u16,
}

impl Blocks {
    /// Where they are, if a block has `size` bytes. What is no range of blocks becomes none here either.
    pub(super) fn range(self, size: u64) -> RamRange {
        RamRange { start: self.address, size: size.saturating_mul(self.count.into()) }
    }
}

impl Request {
    /// Reads a request; padding is ignored.
    pub(super) fn read(bytes: &[u8; REQUEST]) -> Self {
        let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, c0, c1, ..] = *bytes;
        let blocks = Blocks {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            count: u16::from_le_bytes([c0, c1]),
        };
        match u16::from_le_bytes([t0, t1]) {
            PLUG => Self::Plug(blocks),
            UNPLUG => Self::Unplug(blocks),
            UNPLUG_ALL => Self::UnplugAll,
            STATE => Self::State(blocks),
            _ => Self::Unknown,
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Ack,
    /// The same, of a request for the state.
    State(BlockState),
    /// Not now: there is as much as the host has asked for.
    Nack,
    /// Not now: the same may be done a little later.
    Busy,
    /// Never.
    Error,
}

impl Answer {
    /// As it is written.
    pub(super) fn bytes(self) -> [u8; ANSWER] {
        let (kind, state) = match self {
            Self::Ack | Self::State(BlockState::Plugged) => (0, 0),
            Self::State(BlockState::Unplugged) => (0, 1),
            Self::State(BlockState::Mixed) => (0, 2),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; ANSWER];
        let [first, .., last, _] = &mut bytes;
        (*first, *last) = (kind, state);
        bytes
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_its_type_and_its_blocks_whatever_is_beside_them() {
        let request = |kind: u16| {
            let mut bytes = [0xff; REQUEST];
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            bytes[8..16].copy_from_slice(&0x1_4000_0000_u64.to_le_bytes());
            bytes[16..18].copy_from_slice(&3_u16.to_le_bytes());
            Request::read(&bytes)
        };
        let blocks = Blocks { address: 0x1_4000_0000, count: 3 };
        assert_eq!(
            [0, 1, 2, 3].map(request),
            [Request::Plug(blocks), Request::Unplug(blocks), Request::UnplugAll, Request::State(blocks)]
        );
        assert_eq!([4, 0x100, u16::MAX].map(request), [Request::Unknown; 3]);
        assert_eq!(blocks.range(1 << 21), RamRange { start: 0x1_4000_0000, size: 6 << 20 });
    }

    #[test]
    fn an_answer_has_its_type_first_and_the_state_last() {
        let word = |answer: Answer| {
            let bytes = answer.bytes();
            assert!(bytes[2..8].iter().all(|byte| *byte == 0));
            (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[8], bytes[9]]))
        };
        assert_eq!(
            [Answer::Ack, Answer::Nack, Answer::Busy, Answer::Error].map(word),
            [(0, 0), (1, 0), (2, 0), (3, 0)]
        );
        let states = [BlockState::Plugged, BlockState::Unplugged, BlockState::Mixed];
        assert_eq!(states.map(|state| word(Answer::State(state))), [(0, 0), (0, 1), (0, 2)]);
    }
}
