//! `Offloads`: what whoever receives a frame need not find done: checksums that are not filled in, and packets that are longer than
//! the MTU and cut later.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

/// What may be left to the receiver. The others need the checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub checksum: bool,
    /// Segments of TCP over IPv4.
    pub tso4: bool,
    /// Segments of TCP over IPv6.
    pub tso6: bool,
    /// Those of connections that use ECN too.
    pub ecn: bool,
    /// Segments of UDP, over either.
    pub uso: bool,
}

/// The bits of the guest's side, which are also those of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (section 5.1.6.5.6).
pub(super) const OF_GUEST: u64 = bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_ECN)
    | bit(VIRTIO_NET_F_GUEST_USO4)
    | bit(VIRTIO_NET_F_GUEST_USO6);

/// The bit of a feature.
pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

impl Offloads {
    /// The features by which a device says that either side can do this.
    pub(super) fn features(self) -> u64 {
        let Self { checksum, tso4, tso6, ecn, uso } = self.consistent();
        [
            (checksum, bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_GUEST_CSUM)),
            (tso4, bit(VIRTIO_NET_F_HOST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO4)),
            (tso6, bit(VIRTIO_NET_F_HOST_TSO6) | bit(VIRTIO_NET_F_GUEST_TSO6)),
            (ecn, bit(VIRTIO_NET_F_HOST_ECN) | bit(VIRTIO_NET_F_GUEST_ECN)),
            (uso, bit(VIRTIO_NET_F_HOST_USO) | bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6)),
        ]
        .into_iter()
        .filter_map(|(can, features)| can.then_some(features))
        .fold(0, |bits, features| bits | features)
    }

    /// What a guest can do that has these bits of [`OF_GUEST`].
    pub(super) fn of_guest(bits: u64) -> Self {
        let has = |feature: u32| bits & bit(feature) != 0;
        Self {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
            uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        }
        .consistent()
    }

    /// Without what needs something that is missing (section 5.1.3.1).
    fn consistent(self) -> Self {
        let Self { checksum, tso4, tso6, ecn, uso } = self;
        let (tso4, tso6) = (tso4 && checksum, tso6 && checksum);
        Self { checksum, tso4, tso6, ecn: ecn && (tso4 || tso6), uso: uso && checksum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };

    #[test]
    fn what_is_offered_is_understood_again() {
        assert_eq!(Offloads::of_guest(ALL.features()), ALL);
        assert_eq!(ALL.features() & OF_GUEST, OF_GUEST);
        let without = Offloads { uso: false, ..ALL };
        assert_eq!(Offloads::of_guest(without.features()), without);
        assert_eq!(Offloads::default().features(), 0);
    }

    #[test]
    fn nothing_is_left_to_a_guest_that_lacks_what_it_needs() {
        assert_eq!(Offloads::of_guest(OF_GUEST & !bit(VIRTIO_NET_F_GUEST_CSUM)), Offloads::default());
        let checksum = bit(VIRTIO_NET_F_GUEST_CSUM);
        let only = Offloads { checksum: true, ..Offloads::default() };
        assert_eq!(Offloads::of_guest(checksum | bit(VIRTIO_NET_F_GUEST_ECN)), only);
        assert_eq!(Offloads::of_guest(checksum | bit(VIRTIO_NET_F_GUEST_USO4)), only);
    }
}
