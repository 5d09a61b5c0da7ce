//! The keys that a user on a terminal says to the monitor instead of the guest: Ctrl-A and a letter.

/// Ctrl-A.
const PREFIX: u8 = 0x01;
/// Ctrl-C, which a terminal in raw mode hands on like any other key.
const INTERRUPT: u8 = 0x03;

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// Ctrl-A X: end the machine.
    Quit,
    /// Ctrl-A H: say which keys there are.
    Help,
    /// The first Ctrl-C: it goes to the guest, and the user may have meant the monitor.
    Interrupt,
}

/// The text for [`Escape::Interrupt`].
pub(super) const INTERRUPT_HINT: &str = "\r\n[Ctrl-C goes to the guest; Ctrl-A X ends the machine]\r\n";

/// The text for [`Escape::Help`].
pub(super) const HELP: &str = "\r\n\
    Ctrl-A X  end the machine\r\n\
    Ctrl-A H  this help\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

/// Takes the escapes out of what the user types.
#[derive(Debug, Default)]
pub(super) struct Keys {
    after_prefix: bool,
    interrupted: bool,
}

impl Keys {
    /// Appends to `guest` what is meant for the guest; returns the escapes in their order.
    pub(super) fn filter(&mut self, input: &[u8], guest: &mut Vec<u8>) -> Vec<Escape> {
        let mut escapes = Vec::new();
        for &byte in input {
            match (std::mem::take(&mut self.after_prefix), byte) {
                (false, PREFIX) => self.after_prefix = true,
                (true, b'x' | b'X') => escapes.push(Escape::Quit),
                (true, b'h' | b'H') => escapes.push(Escape::Help),
                (true, PREFIX) | (false, _) => {
                    guest.push(byte);
                    if byte == INTERRUPT && !std::mem::replace(&mut self.interrupted, true) {
                        escapes.push(Escape::Interrupt);
                    }
                }
                // An unknown key after Ctrl-A is nobody's.
                (true, _) => {}
            }
        }
        escapes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(parts: &[&[u8]]) -> (Vec<u8>, Vec<Escape>) {
        let (mut keys, mut guest, mut escapes) = (Keys::default(), Vec::new(), Vec::new());
        for part in parts {
            escapes.extend(keys.filter(part, &mut guest));
        }
        (guest, escapes)
    }

    #[test]
    fn ctrl_a_x_quits_even_when_it_arrives_in_two_reads() {
        assert_eq!(filter(&[b"ab\x01", b"xc"]), (b"abc".to_vec(), vec![Escape::Quit]));
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(filter(&[b"\x01\x01x"]), (b"\x01x".to_vec(), vec![]));
    }

    #[test]
    fn ctrl_c_reaches_the_guest_and_is_explained_once() {
        assert_eq!(filter(&[b"\x03\x03", b"\x03"]), (b"\x03\x03\x03".to_vec(), vec![Escape::Interrupt]));
    }

    #[test]
    fn help_and_unknown_keys_do_not_reach_the_guest() {
        assert_eq!(filter(&[b"\x01h\x01qz"]), (b"z".to_vec(), vec![Escape::Help]));
    }
}
