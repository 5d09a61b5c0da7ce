//! Frames in a stream: each behind its length, a big-endian 32-bit word. [`Incoming`] takes them out of what is read, [`Outgoing`] keeps one
//! until all of it is written.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;

use crate::virtio::net::frame::{HEADER, LONGEST};

/// Bytes of a length.
const PREFIX: usize = 4;

/// Bytes of a header of virtio.
const HEADER_BYTES: usize = HEADER as usize;

/// Bytes of the longest frame, without such a header.
const LONGEST_FRAME: usize = (LONGEST - HEADER) as usize;

/// Where in a packet the length is put: the end of the header, which the stream has not.
const LENGTH_AT: usize = HEADER_BYTES - PREFIX;

/// Bytes that are read at once, at least the longest frame and the length of the next.
const ROOM: usize = 128 << 10;
const _: () = assert!(ROOM >= PREFIX + LONGEST_FRAME);

/// The other end has said something that is no frame: where the next one begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// What was read and not passed on.
pub(super) struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; ROOM].into(), start: 0, end: 0 }
    }

    /// Reads more, if there is more; whether the stream goes on. To be called when there is no whole frame.
    pub(super) fn read(&mut self, mut stream: impl Read) -> io::Result<bool> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        let Some(room) = self.bytes.get_mut(self.end..).filter(|room| !room.is_empty()) else {
            return Ok(true);
        };
        let count = stream.read(room)?;
        self.end = self.end.saturating_add(count);
        Ok(count != 0)
    }

    /// The next frame, if all of it has come; empty ones are left out.
    pub(super) fn frame(&mut self) -> Result<Option<&[u8]>, TooLong> {
        loop {
            let there = self.bytes.get(self.start..self.end).unwrap_or_default();
            let Some((prefix, rest)) = there.split_first_chunk::<PREFIX>() else { return Ok(None) };
            let length = usize::try_from(u32::from_be_bytes(*prefix)).map_err(|_| TooLong)?;
            match length {
                0 => self.start = self.start.saturating_add(PREFIX),
                length if length > LONGEST_FRAME => return Err(TooLong),
                length if length > rest.len() => return Ok(None),
                length => {
                    let start = self.start.saturating_add(PREFIX);
                    return Ok(self.bytes.get(start..start.saturating_add(length)));
                }
            }
        }
    }

    /// Writes the next frame to `packets` as a packet with a header of virtio, in which there is nothing; whether there was one.
    pub(super) fn pass_on(&mut self, packets: impl AsFd) -> Result<bool, PassOn> {
        let Some(frame) = self.frame().map_err(|TooLong| PassOn::TooLong)? else { return Ok(false) };
        let taken = frame.len().saturating_add(PREFIX);
        let packet = [IoSlice::new(&[0; HEADER_BYTES]), IoSlice::new(frame)];
        rustix::io::writev(packets, &packet).map_err(|errno| PassOn::Packets(errno.into()))?;
        self.start = self.start.saturating_add(taken);
        Ok(true)
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

/// Why a frame was not passed on.
#[derive(Debug)]
pub(super) enum PassOn {
    /// See there.
    TooLong,
    /// The packet was not taken.
    Packets(io::Error),
}

/// A frame of which some is not written yet, or none.
pub(super) struct Outgoing {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; LONGEST as usize].into(), start: 0, end: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes the frame of the next packet, if there is one. To be called when nothing is to be written. What is no frame is left out.
    pub(super) fn take(&mut self, packets: impl AsFd) -> io::Result<()> {
        let count = rustix::io::read(packets, &mut *self.bytes)?;
        let frame = count.saturating_sub(HEADER_BYTES);
        let prefix = u32::try_from(frame).unwrap_or(0).to_be_bytes();
        if let Some(place) = self.bytes.get_mut(LENGTH_AT..HEADER_BYTES) {
            place.copy_from_slice(&prefix);
        }
        (self.start, self.end) = if frame == 0 { (0, 0) } else { (LENGTH_AT, count) };
        Ok(())
    }

    /// Writes what is left, as far as it is taken.
    pub(super) fn write(&mut self, mut stream: impl Write) -> io::Result<()> {
        let left = self.bytes.get(self.start..self.end).unwrap_or_default();
        let count = stream.write(left)?;
        self.start = self.start.saturating_add(count).min(self.end);
        Ok(())
    }

    /// Forgets it.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::super::packets;
    use super::*;

    /// A writer and a reader of a few bytes a call.
    struct Few(Cursor<Vec<u8>>, usize);

    impl Read for Few {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let most = self.1.min(bytes.len());
            self.0.read(&mut bytes[..most])
        }
    }

    impl Write for Few {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let most = self.1.min(bytes.len());
            self.0.write(&bytes[..most])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            few in 1..700_usize,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
            let mut stream = Few(Cursor::new(stream), few);
            let (mut incoming, mut outgoing) = (Incoming::new(), Outgoing::new());
            let (own, other) = packets().unwrap();
            let mut back = Few(Cursor::default(), few);
            loop {
                while incoming.pass_on(&own).unwrap() {
                    outgoing.take(&other).unwrap();
                    while !outgoing.is_empty() {
                        outgoing.write(&mut back).unwrap();
                    }
                }
                if !incoming.read(&mut stream).unwrap() {
                    break;
                }
            }
            let expected: Vec<u8> =
                frames.iter().filter(|frame| !frame.is_empty()).flat_map(|frame| framed(frame)).collect();
            prop_assert_eq!(back.0.into_inner(), expected);
        }

        #[test]
        fn any_bytes_are_frames_or_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut incoming = Incoming::new();
            let (own, _other) = packets().unwrap();
            incoming.read(&bytes[..]).unwrap();
            for _ in 0..bytes.len() {
                if !matches!(incoming.pass_on(&own), Ok(true)) {
                    break;
                }
            }
            prop_assert!(incoming.start <= incoming.end);
        }
    }

    #[test]
    fn the_longest_frame_passes_and_a_longer_one_is_the_end() {
        let (own, other) = packets().unwrap();
        let longest = vec![7; LONGEST_FRAME];
        let (mut incoming, mut outgoing) = (Incoming::new(), Outgoing::new());
        incoming.read(&framed(&longest)[..]).unwrap();
        assert!(incoming.pass_on(&own).unwrap());
        outgoing.take(&other).unwrap();
        let mut back = Vec::new();
        outgoing.write(&mut back).unwrap();
        assert!(outgoing.is_empty() && back == framed(&longest));
        incoming.clear();
        let length = u32::try_from(LONGEST_FRAME + 1).unwrap();
        incoming.read(&length.to_be_bytes()[..]).unwrap();
        assert!(matches!(incoming.pass_on(&own), Err(PassOn::TooLong)));
    }

    #[test]
    fn a_packet_without_a_frame_is_left_out() {
        let (own, other) = packets().unwrap();
        let mut outgoing = Outgoing::new();
        for length in [1, 11, 12] {
            rustix::io::write(&own, &vec![0; length]).unwrap();
            outgoing.take(&other).unwrap();
            assert!(outgoing.is_empty());
        }
    }
}
