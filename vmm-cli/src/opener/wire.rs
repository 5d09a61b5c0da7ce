//! What the monitor asks the opener for and what that answers, as packets: numbers little-endian, nothing left out, nothing behind.

use rustix::io::Errno;

/// Longest name of a socket in its directory: `sun_path` without its closing NUL (unix(7)).
pub(super) const LONGEST_NAME: usize = crate::listener::MAX_PATH;

/// Bytes of a request without a name: its turn, its kind, and a number.
const HEAD: usize = 12;

/// Bytes of the longest request.
pub(super) const LONGEST_REQUEST: usize = HEAD + LONGEST_NAME;

/// Bytes of an answer: the turn, the error of the kernel or 0, and a number.
pub(super) const ANSWER: usize = 12;

/// Highest number of an error (`MAX_ERRNO`).
const HIGHEST_ERROR: u32 = 4095;

/// Kinds of requests.
const PLACE: u32 = 1;
const PLACE_OF_PORTS: u32 = 2;
const SEAL: u32 = 3;
const CONNECT: u32 = 4;
const CONNECT_TO_PORT: u32 = 5;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Something may be connected to from now on: `name` in the directory that comes along; with `ports` that name with `_` and a port
    /// behind, without it the name alone.
    Place {
        /// One part of a path.
        name: Vec<u8>,
        /// See there.
        ports: bool,
    },
    /// There will be no more places.
    Seal,
    /// A socket that is connected to a place.
    Connect {
        /// Its number.
        place: u32,
        /// The port, of a place with such.
        port: Option<u32>,
    },
}

impl Request {
    /// Its packet, in the turn `turn`.
    pub(super) fn packet(&self, turn: u32) -> Vec<u8> {
        let (kind, number, rest): (u32, u32, &[u8]) = match self {
            Self::Place { name, ports } => (if *ports { PLACE_OF_PORTS } else { PLACE }, 0, name),
            Self::Seal => (SEAL, 0, &[]),
            Self::Connect { place, port: None } => (CONNECT, *place, &[]),
            Self::Connect { place, port: Some(port) } => (CONNECT_TO_PORT, *place, &port.to_le_bytes()),
        };
        let head = [turn, kind, number].map(u32::to_le_bytes);
        head.as_flattened().iter().chain(rest).copied().collect()
    }

    /// The turn and the request of `packet`. `None`: nobody can be answered.
    pub(super) fn read(packet: &[u8]) -> Option<(u32, Result<Self, Errno>)> {
        let (turn, rest) = word(packet)?;
        Some((turn, Self::of(rest).ok_or(Errno::INVAL)))
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = word(bytes)?;
        let (number, rest) = word(rest)?;
        match (kind, number) {
            (PLACE | PLACE_OF_PORTS, 0) if is_name(rest) => {
                Some(Self::Place { name: rest.to_vec(), ports: kind == PLACE_OF_PORTS })
            }
            (SEAL, 0) if rest.is_empty() => Some(Self::Seal),
            (CONNECT, place) if rest.is_empty() => Some(Self::Connect { place, port: None }),
            (CONNECT_TO_PORT, place) => {
                let (port, rest) = word(rest)?;
                rest.is_empty().then_some(Self::Connect { place, port: Some(port) })
            }
            _ => None,
        }
    }
}

/// Whether `bytes` lead out of no directory.
fn is_name(bytes: &[u8]) -> bool {
    let fits = (1..=LONGEST_NAME).contains(&bytes.len()) && !matches!(bytes, b"." | b"..");
    fits && !bytes.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// That of the request.
    pub(super) turn: u32,
    /// The number of a new place, 0 of anything else; or the error of the kernel.
    pub(super) result: Result<u32, Errno>,
}

impl Answer {
    /// Its packet.
    pub(super) fn packet(self) -> Vec<u8> {
        let (error, number) = match self.result {
            Ok(number) => (0, number),
            Err(errno) => (errno.raw_os_error().cast_unsigned(), 0),
        };
        [self.turn, error, number].map(u32::to_le_bytes).as_flattened().to_vec()
    }

    /// The answer in `packet`; `None`: it is none.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let (turn, rest) = word(packet)?;
        let (error, rest) = word(rest)?;
        let (number, rest) = word(rest)?;
        let result = match (error, number) {
            (0, number) => Ok(number),
            (error @ 1..=HIGHEST_ERROR, 0) => Err(Errno::from_raw_os_error(error.cast_signed())),
            _ => return None,
        };
        rest.is_empty().then_some(Self { turn, result })
    }
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        let name = prop::collection::vec(any::<u8>(), 1..=LONGEST_NAME).prop_filter("a name", |n| is_name(n));
        prop_oneof![
            (name, any::<bool>()).prop_map(|(name, ports)| Request::Place { name, ports }),
            Just(Request::Seal),
            any::<(u32, Option<u32>)>().prop_map(|(place, port)| Request::Connect { place, port }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_asked_is_read(request in requests(), turn: u32) {
            let packet = request.packet(turn);
            prop_assert!(packet.len() <= LONGEST_REQUEST);
            prop_assert_eq!(Request::read(&packet), Some((turn, Ok(request))));
        }

        #[test]
        fn what_is_answered_is_read(turn: u32, number: u32, error in 1..4096_i32) {
            for result in [Ok(number), Err(Errno::from_raw_os_error(error))] {
                let answer = Answer { turn, result };
                prop_assert_eq!(answer.packet().len(), ANSWER);
                prop_assert_eq!(Answer::read(&answer.packet()), Some(answer));
            }
        }

        /// Whatever is read has one form: that in which it is written.
        #[test]
        fn other_bytes_are_nothing(bytes in prop::collection::vec(0_u8..7, 0..24)) {
            if let Some((turn, Ok(request))) = Request::read(&bytes) {
                prop_assert_eq!(request.packet(turn), bytes.clone());
            }
            if let Some(answer) = Answer::read(&bytes) {
                prop_assert_eq!(answer.packet(), bytes);
            }
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let read = |name: &[u8]| {
            let packet = Request::Place { name: name.to_vec(), ports: false }.packet(7);
            Request::read(&packet).unwrap().1.is_ok()
        };
        assert!(read(b"socket") && read(b"..a") && read(&[b'x'; LONGEST_NAME]));
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; LONGEST_NAME + 1]] {
            assert!(!read(name), "{name:?}");
        }
    }

    #[test]
    fn who_says_too_little_is_not_answered_and_who_says_anything_else_is_refused() {
        assert_eq!(Request::read(&[1, 2, 3]), None);
        assert_eq!(Request::read(&[1, 0, 0, 0]), Some((1, Err(Errno::INVAL))));
        assert_eq!(Answer::read(&[0; 11]), None);
        assert_eq!(Answer::read(&[0; 13]), None);
    }
}
