//! `Header`: what each packet begins with (virtio 1.3, section 5.10.6), read from bytes and written to bytes.

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The same, in the unit of buffers.
pub(super) const HEADER_LENGTH: u32 = 44;

/// The address of the host (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// VIRTIO_VSOCK_TYPE_STREAM: a stream socket, the one type that there is here (section 5.10.6.2).
pub const STREAM: u16 = 1;

/// `struct virtio_vsock_hdr`. Each field is as the driver wrote it: nothing is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The address of who sends it.
    pub src_cid: u64,
    /// The address of who is to get it.
    pub dst_cid: u64,
    /// The port of who sends it.
    pub src_port: u32,
    /// The port of who is to get it.
    pub dst_port: u32,
    /// Bytes that follow.
    pub len: u32,
    /// The type of socket.
    pub kind: u16,
    /// What is to be done; see [`Op`].
    pub op: u16,
    /// Of [`Op::Shutdown`]: which sides; see [`Sides`].
    pub flags: u32,
    /// How many bytes the sender has room for, those that are waiting included.
    pub buf_alloc: u32,
    /// How many bytes the sender's application has taken so far, of all there ever were.
    pub fwd_cnt: u32,
}

/// The operations (section 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// Refuses or ends it.
    Rst = 3,
    /// Sends or receives no more.
    Shutdown = 4,
    /// Data.
    Rw = 5,
    /// Says how much room there is.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Rst,
        Self::Shutdown,
        Self::Rw,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The operation of this number, if there is one.
    #[must_use]
    pub fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.number() == number)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }
}

/// The sides of a connection that somebody has shut: the flags of [`Op::Shutdown`] (section 5.10.6.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    /// Receives no more.
    pub receive: bool,
    /// Sends no more.
    pub send: bool,
}

impl Sides {
    /// Both.
    pub const BOTH: Self = Self { receive: true, send: true };

    /// Those of the flags of a packet; the other bits mean nothing.
    #[must_use]
    pub fn of(flags: u32) -> Self {
        Self { receive: flags & 1 != 0, send: flags & 2 != 0 }
    }

    /// As flags of a packet.
    #[must_use]
    pub fn flags(self) -> u32 {
        u32::from(self.receive) | u32::from(self.send) << 1
    }

    /// These and `others`: what was shut stays so.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self { receive: self.receive || others.receive, send: self.send || others.send }
    }
}

impl Header {
    /// Reads it.
    #[must_use]
    pub fn read(bytes: &[u8; HEADER]) -> Self {
        let rest = &mut bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(rest)),
            dst_cid: u64::from_le_bytes(take(rest)),
            src_port: u32::from_le_bytes(take(rest)),
            dst_port: u32::from_le_bytes(take(rest)),
            len: u32::from_le_bytes(take(rest)),
            kind: u16::from_le_bytes(take(rest)),
            op: u16::from_le_bytes(take(rest)),
            flags: u32::from_le_bytes(take(rest)),
            buf_alloc: u32::from_le_bytes(take(rest)),
            fwd_cnt: u32::from_le_bytes(take(rest)),
        }
    }

    /// Writes it.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEADER] {
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The RST that answers it: to where it says that it comes from, whoever that is, of the same type. `None` for an RST, or
    /// two could answer each other for ever.
    #[must_use]
    pub fn refusal(&self) -> Option<Self> {
        let &Self { src_cid, dst_cid, src_port, dst_port, kind, .. } = self;
        let op = Op::Rst.number();
        (self.op != op).then(|| Self {
            src_cid: dst_cid,
            dst_cid: src_cid,
            src_port: dst_port,
            dst_port: src_port,
            kind,
            op,
            ..Self::default()
        })
    }
}

/// The next bytes of `bytes`; zeros where it has ended.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    match bytes.split_first_chunk() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        None => [0; N],
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_field_is_where_the_specification_has_it() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 0x1112_1314_1516_1718,
            src_port: 0x2122_2324,
            dst_port: 0x3132_3334,
            len: 0x4142_4344,
            kind: 0x5152,
            op: 0x6162,
            flags: 0x7172_7374,
            buf_alloc: 0x8182_8384,
            fwd_cnt: 0x9192_9394,
        };
        let bytes = header.bytes();
        for (offset, expected) in [
            (0, &[0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01][..]),
            (8, &[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]),
            (16, &[0x24, 0x23, 0x22, 0x21]),
            (20, &[0x34, 0x33, 0x32, 0x31]),
            (24, &[0x44, 0x43, 0x42, 0x41]),
            (28, &[0x52, 0x51]),
            (30, &[0x62, 0x61]),
            (32, &[0x74, 0x73, 0x72, 0x71]),
            (36, &[0x84, 0x83, 0x82, 0x81]),
            (40, &[0x94, 0x93, 0x92, 0x91]),
        ] {
            assert_eq!(bytes[offset..offset + expected.len()], *expected, "offset {offset}");
        }
        assert_eq!(Header::read(&bytes), header);
    }

    #[test]
    fn operations_and_sides_have_the_numbers_of_the_specification() {
        for (number, op) in [
            (1, Op::Request),
            (2, Op::Response),
            (3, Op::Rst),
            (4, Op::Shutdown),
            (5, Op::Rw),
            (6, Op::CreditUpdate),
            (7, Op::CreditRequest),
        ] {
            assert_eq!((Op::of(number), op.number()), (Some(op), number));
        }
        assert!([0, 8, u16::MAX].into_iter().all(|number| Op::of(number).is_none()));
        for (flags, receive, send) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)]
        {
            let sides = Sides { receive, send };
            assert_eq!((Sides::of(flags | 0xffff_fff0), sides.flags()), (sides, flags));
        }
    }

    #[test]
    fn a_refusal_goes_back_to_where_the_packet_says_it_comes_from() {
        let packet = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 4,
            dst_port: 5,
            kind: 9,
            op: 77,
            len: 6,
            ..Header::default()
        };
        let expected =
            Header { src_cid: 2, dst_cid: 3, src_port: 5, dst_port: 4, kind: 9, op: 3, ..Header::default() };
        assert_eq!(packet.refusal(), Some(expected));
        assert_eq!(expected.refusal(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_written_back(bytes in prop::array::uniform32(any::<u8>()), more in prop::array::uniform12(any::<u8>())) {
            let bytes: [u8; HEADER] = [&bytes[..], &more].concat().try_into().unwrap();
            prop_assert_eq!(Header::read(&bytes).bytes(), bytes);
        }
    }
}
