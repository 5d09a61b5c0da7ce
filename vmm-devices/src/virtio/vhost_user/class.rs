//! `Class`: what a device is whose queues a back end serves, and which part of it the back end does not tell.

use std::fmt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_FS, VIRTIO_ID_NET};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::VhostUserError;
use super::connection::{Rings, Wanted};

/// Bytes of `struct virtio_blk_config` that every back end has: up to `write_zeroes_may_unmap` (virtio 1.3, section 5.2.4).
const BLOCK_CONFIG: u32 = 60;

/// Where it has the number of queues.
const BLOCK_QUEUES: std::ops::Range<usize> = 34..36;

/// Queues of a pair of a network device, and of a file system: for FORGET and such, and for requests (sections 5.1.2 and 5.11.2).
const PAIR: usize = 2;
const FS_QUEUES: usize = 2;

/// What comes with several pairs: a driver says by the control queue how many it uses. The monitor has that queue, whatever the back end has.
const OF_SEVERAL_PAIRS: u64 = bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ);

/// What a driver may use of a block device: what needs no answer of the configuration space.
const OF_BLOCK: u64 = bit(VIRTIO_BLK_F_SIZE_MAX)
    | bit(VIRTIO_BLK_F_SEG_MAX)
    | bit(VIRTIO_BLK_F_RO)
    | bit(VIRTIO_BLK_F_BLK_SIZE)
    | bit(VIRTIO_BLK_F_FLUSH)
    | bit(VIRTIO_BLK_F_TOPOLOGY)
    | bit(VIRTIO_BLK_F_DISCARD)
    | bit(VIRTIO_BLK_F_WRITE_ZEROES);

/// What a driver may use of a network device if the back end has it.
const OF_NET: u64 = bit(VIRTIO_NET_F_CSUM)
    | bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_ECN)
    | bit(VIRTIO_NET_F_HOST_TSO4)
    | bit(VIRTIO_NET_F_HOST_TSO6)
    | bit(VIRTIO_NET_F_HOST_ECN)
    | bit(VIRTIO_NET_F_MRG_RXBUF);

pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// The name by which a guest finds a file system: 1 to 36 bytes of UTF-8, none of them zero (section 5.11.4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FsTag([u8; Self::MOST]);

impl FsTag {
    /// Most bytes.
    pub const MOST: usize = 36;

    /// The tag `name`; `None`: it cannot be one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=Self::MOST).contains(&name.len()) && !name.bytes().any(|byte| byte == 0);
        let mut tag = [0; Self::MOST];
        tag.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        fits.then_some(Self(tag))
    }
}

impl fmt::Debug for FsTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0).trim_end_matches('\0'))
    }
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A disk, whose size and the like the back end tells.
    Block {
        /// How many queues it is to have; with `exactly` that many or none, else no more than the back end has.
        queues: u16,
        /// See there.
        exactly: bool,
    },
    /// A network device.
    Net {
        /// How many pairs of queues it is to have, at least one.
        pairs: u16,
        /// The guest's address.
        mac: [u8; 6],
        /// The longest packet that the guest should send; `None`: nothing is said.
        mtu: Option<u16>,
    },
    /// A file system, without shared memory of its own (DAX).
    Fs {
        /// Its name.
        tag: FsTag,
    },
}

impl Class {
    /// What its back end is asked for.
    pub(super) fn wanted(&self) -> Wanted {
        match self {
            Self::Block { .. } => Wanted { config: BLOCK_CONFIG, rings: Rings::Told },
            // Every back end has one, whether it tells of it or not.
            Self::Net { pairs: 0 | 1, .. } => Wanted { config: 0, rings: Rings::Known(PAIR) },
            Self::Net { pairs, .. } => {
                Wanted { config: 0, rings: Rings::ToldInPairs(usize::from(*pairs).saturating_mul(PAIR)) }
            }
            Self::Fs { .. } => Wanted { config: 0, rings: Rings::Known(FS_QUEUES) },
        }
    }

    /// The device type of virtio 1.3, section 5.
    pub(super) fn device_type(&self) -> u32 {
        match self {
            Self::Block { .. } => VIRTIO_ID_BLOCK,
            Self::Net { .. } => VIRTIO_ID_NET,
            Self::Fs { .. } => VIRTIO_ID_FS,
        }
    }

    /// The features of its type that are offered, beside a back end with `features`.
    pub(super) fn offered(&self, features: u64, queues: usize) -> u64 {
        match self {
            Self::Block { .. } => {
                let several = if queues > 1 { bit(VIRTIO_BLK_F_MQ) } else { 0 };
                features & (OF_BLOCK | several)
            }
            Self::Net { mtu, .. } => {
                let mtu = if mtu.is_some() { bit(VIRTIO_NET_F_MTU) } else { 0 };
                let several = if queues > PAIR { OF_SEVERAL_PAIRS } else { 0 };
                features & OF_NET | bit(VIRTIO_NET_F_MAC) | bit(VIRTIO_NET_F_STATUS) | mtu | several
            }
            Self::Fs { .. } => 0,
        }
    }

    /// How many queues it has with a back end that has `rings`.
    ///
    /// # Errors
    /// Not enough.
    pub(super) fn queues(&self, rings: u64) -> Result<usize, VhostUserError> {
        let queues = match *self {
            Self::Block { queues, exactly: true } => queues.into(),
            Self::Block { queues, exactly: false } => {
                usize::try_from(rings).unwrap_or(usize::MAX).min(queues.into()).max(1)
            }
            Self::Net { pairs, .. } => usize::from(pairs.max(1)).saturating_mul(PAIR),
            Self::Fs { .. } => FS_QUEUES,
        };
        self.enough(rings, queues).map(|()| queues)
    }

    /// Whether a back end with `rings` can serve `queues`.
    ///
    /// # Errors
    /// It cannot.
    pub(super) fn enough(&self, rings: u64, queues: usize) -> Result<(), VhostUserError> {
        let is_enough = u64::try_from(queues).is_ok_and(|queues| queues <= rings);
        if is_enough { Ok(()) } else { Err(VhostUserError::Queues { has: rings, wanted: queues }) }
    }

    /// Of `queues` queues, how many the back end serves for a driver with `features`. Those behind them are served here.
    pub(super) fn served(&self, queues: usize, features: u64) -> usize {
        match self {
            Self::Net { .. } if features & bit(VIRTIO_NET_F_MQ) == 0 => queues.min(PAIR),
            _ => queues,
        }
    }

    /// Of those, how many are enabled when the driver begins (section 5.1.6.5.5).
    pub(super) fn enabled(&self, queues: usize) -> usize {
        match self {
            Self::Net { .. } => queues.min(PAIR),
            Self::Block { .. } | Self::Fs { .. } => queues,
        }
    }

    /// How many queues there are for `queues` that the back end serves: with several pairs a control queue too.
    pub(super) fn all_queues(&self, queues: usize) -> usize {
        match self {
            Self::Net { .. } if queues > PAIR => queues.saturating_add(1),
            _ => queues,
        }
    }

    /// The largest size of each queue.
    pub(super) fn queue_size(&self) -> u16 {
        match self {
            Self::Block { .. } | Self::Net { .. } => 256,
            // Of which a request takes one for each page.
            Self::Fs { .. } => 1024,
        }
    }

    /// The configuration, of which the back end has told `told`, with `queues` queues. The link of a network device is up.
    pub(super) fn config(&self, told: &[u8], queues: usize) -> Vec<u8> {
        match *self {
            Self::Block { .. } => {
                let mut config = told.to_vec();
                let queues = u16::try_from(queues).unwrap_or(u16::MAX).to_le_bytes();
                if let Some(place) = config.get_mut(BLOCK_QUEUES) {
                    place.copy_from_slice(&queues);
                }
                config
            }
            Self::Net { mac, mtu, pairs } => {
                let up = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(0);
                let words = [up, pairs.max(1), mtu.unwrap_or(0)].map(u16::to_le_bytes);
                mac.into_iter().chain(words.into_iter().flatten()).collect()
            }
            Self::Fs { tag: FsTag(tag) } => {
                let requests = u32::try_from(FS_QUEUES.saturating_sub(1)).unwrap_or(1).to_le_bytes();
                tag.into_iter().chain(requests).collect()
            }
        }
    }

    /// The same while there is no back end.
    pub(super) fn without_back_end(&self, config: &mut [u8]) {
        // The status of the link is behind the address (section 5.1.4).
        if let Self::Net { .. } = self {
            config.iter_mut().skip(6).take(2).for_each(|byte| *byte = 0);
        }
    }
}
