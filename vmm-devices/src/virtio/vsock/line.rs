//! `Line`: what a program of the host says first: `CONNECT port`, and the end of the line.

/// Most bytes of a line, its end included: those of the longest there is, and a few.
pub(super) const LONGEST: usize = 32;

/// A line of which some has come.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
}

/// How far a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Its end has not come.
    More,
    /// The port of the guest that is wanted.
    Connect(u32),
    /// Something else.
    Other,
}

impl Line {
    /// Bytes that it may still have.
    pub(super) fn room(&self) -> usize {
        LONGEST.saturating_sub(self.bytes.len())
    }

    /// Takes what belongs to it of `bytes`, and says how many those are: what is behind its end is the stream's.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Said) {
        let fitting = bytes.get(..self.room()).unwrap_or(bytes);
        let end = fitting.iter().position(|byte| *byte == b'\n');
        let line = end.and_then(|end| fitting.get(..end)).unwrap_or(fitting);
        self.bytes.extend(line);
        match end {
            Some(end) => (end.saturating_add(1), self.said()),
            None if self.room() == 0 => (fitting.len(), Said::Other),
            None => (fitting.len(), Said::More),
        }
    }

    fn said(&self) -> Said {
        let port = self.bytes.strip_prefix(b"CONNECT ").filter(|port| port.iter().all(u8::is_ascii_digit));
        let port = port.and_then(|port| str::from_utf8(port).ok()).and_then(|port| port.parse().ok());
        port.map_or(Said::Other, Said::Connect)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(text: &str) -> (usize, Said) {
        Line::default().take(text.as_bytes())
    }

    #[test]
    fn a_line_ends_at_its_end_and_names_a_port() {
        assert_eq!(said("CONNECT 1234\n"), (13, Said::Connect(1234)));
        assert_eq!(said("CONNECT 0\nand more\n"), (10, Said::Connect(0)));
        assert_eq!(said("CONNECT 4294967295\n"), (19, Said::Connect(u32::MAX)));
        assert_eq!(said("CONNECT 12"), (10, Said::More));
        assert_eq!(said(""), (0, Said::More));
    }

    #[test]
    fn fault_b10_what_is_no_such_line_is_told_at_its_end_or_when_it_is_too_long() {
        for text in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "connect 1\n",
            "CONNECT 4294967296\n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 1 \n",
            "CONNECT 1\r\n",
            "CONNECT  1\n",
            " CONNECT 1\n",
            "CONNECT 0x1\n",
            "GET / HTTP/1.1\r\n",
        ] {
            assert_eq!(said(text), (text.len(), Said::Other), "{text:?}");
        }
        let zeros = format!("CONNECT {}1\n", "0".repeat(LONGEST));
        assert_eq!(said(&zeros), (LONGEST, Said::Other));
        assert_eq!(said(&"\0".repeat(1000)), (LONGEST, Said::Other));
    }

    proptest! {
        #[test]
        fn a_line_in_pieces_is_the_same_line(port in any::<u32>(), cuts in prop::collection::vec(1..8_usize, 0..20)) {
            let text = format!("CONNECT {port}\nrest");
            let (mut line, mut at, mut cuts) = (Line::default(), 0, cuts.into_iter());
            loop {
                let piece = cuts.next().unwrap_or(LONGEST).min(text.len() - at);
                let (used, said) = line.take(&text.as_bytes()[at..at + piece]);
                at += used;
                if said != Said::More {
                    prop_assert_eq!((said, &text[at..]), (Said::Connect(port), "rest"));
                    break;
                }
                prop_assert_eq!(used, piece);
            }
        }
    }
}
