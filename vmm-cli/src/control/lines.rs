//! `Lines`: a stream of bytes, cut into requests.

use super::wire::{MAX_REQUEST, RequestError};

/// Buffers larger than this are given back when they are empty.
const KEPT: usize = 4 << 10;

/// Cuts a stream of bytes into lines, of which it keeps at most one request and the byte that makes it too long.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// What is before it has been taken.
    start: usize,
    /// There is no newline between `start` and here.
    searched: usize,
}

impl Lines {
    /// How many bytes can be taken now; none only while [`take_line`](Self::take_line) has something.
    #[must_use]
    pub fn room(&self) -> usize {
        (MAX_REQUEST + 1).saturating_sub(self.buffer.len() - self.start)
    }

    /// Takes `bytes`, at most as many as there is [`room`](Self::room) for.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether [`take_line`](Self::take_line) has something.
    pub fn has_line(&mut self) -> bool {
        self.newline().is_some() || self.room() == 0
    }

    /// The next line without its newline, once it is complete.
    ///
    /// # Errors
    /// [`RequestError::TooLong`], from then on for ever.
    pub fn take_line(&mut self) -> Option<Result<Vec<u8>, RequestError>> {
        let Some(end) = self.newline() else {
            return (self.room() == 0).then_some(Err(RequestError::TooLong));
        };
        let line = self.buffer[self.start..end].to_vec();
        self.start = end + 1;
        self.searched = self.start;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(KEPT);
            (self.start, self.searched) = (0, 0);
        }
        Some(Ok(line))
    }

    /// Where the current line ends.
    fn newline(&mut self) -> Option<usize> {
        let found = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
        self.searched = found.map_or(self.buffer.len(), |at| self.searched + at);
        found.map(|_| self.searched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_bytes_are() {
        let mut lines = Lines::default();
        for (bytes, taken) in [("a", vec![]), ("b\nc\n", vec!["ab", "c"]), ("\n", vec![""]), ("d", vec![])] {
            lines.push(bytes.as_bytes());
            let mut found = Vec::new();
            while let Some(line) = lines.take_line() {
                found.push(String::from_utf8(line.unwrap()).unwrap());
            }
            assert_eq!(found, taken);
        }
        assert_eq!(lines.room(), MAX_REQUEST);
    }

    #[test]
    fn fault_c10_a_line_without_end_is_too_long_and_stays_so() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_REQUEST]);
        assert_eq!((lines.take_line(), lines.room()), (None, 1));
        lines.push(b"x");
        for _ in 0..2 {
            assert_eq!((lines.take_line(), lines.room()), (Some(Err(RequestError::TooLong)), 0));
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            bytes in prop::collection::vec(prop::sample::select(b"ab\n".as_slice()), 0..200),
            chunks in prop::collection::vec(1_usize..20, 1..20),
        ) {
            let mut lines = Lines::default();
            let (mut rest, mut found) = (&bytes[..], Vec::new());
            for size in chunks.into_iter().cycle() {
                let (chunk, later) = rest.split_at(size.min(rest.len()));
                lines.push(chunk);
                while let Some(line) = lines.take_line() {
                    found.push(line.unwrap());
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let mut expected: Vec<_> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
            expected.pop();
            prop_assert_eq!(found, expected);
        }
    }
}
