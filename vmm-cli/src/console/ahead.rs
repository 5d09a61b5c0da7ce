//! `Ahead`: input that was read before the guest took it.

use std::time::{Duration, Instant};

/// Most bytes that wait for a guest that does not read, as a terminal keeps them (`MAX_CANON`, termios(3)).
const TYPED_AHEAD: usize = 4096;

/// How long a guest may take nothing until it counts as one that does not read.
const STUCK: Duration = Duration::from_secs(5);

/// Bytes in the order in which they came, and whether the guest takes them at all.
#[derive(Debug)]
pub(super) struct Ahead {
    pub(super) bytes: Vec<u8>,
    /// When the guest has last taken something, or had nothing to take.
    taken: Instant,
}

impl Ahead {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: Vec::new(), taken: now }
    }

    /// Removes the first `count` bytes, which the guest has taken.
    pub(super) fn take(&mut self, count: usize, now: Instant) {
        self.bytes.drain(..count);
        if count != 0 || self.bytes.is_empty() {
            self.taken = now;
        }
    }

    /// The guest had no time to take anything.
    pub(super) fn wait_anew(&mut self, now: Instant) {
        self.taken = now;
    }

    /// Whether a terminal is read on: until enough waits if the guest reads, so that nothing of a long paste is lost, and
    /// always if it does not, because the keys may be for the monitor.
    pub(super) fn takes_keys(&self, now: Instant) -> bool {
        self.bytes.len() < TYPED_AHEAD || self.is_stuck(now)
    }

    /// After keys were added: those that a guest does not read are lost at some point, as a terminal loses them too.
    pub(super) fn forget_unread_keys(&mut self, now: Instant) {
        if self.is_stuck(now) {
            self.bytes.truncate(TYPED_AHEAD);
        }
    }

    /// After which time to look again at [`takes_keys`](Self::takes_keys), if nothing else happens.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        (!self.takes_keys(now)).then(|| STUCK.saturating_sub(now.saturating_duration_since(self.taken)))
    }

    fn is_stuck(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.taken) >= STUCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paste_waits_for_a_guest_that_reads_and_nothing_of_it_is_lost() {
        let now = Instant::now();
        let mut ahead = Ahead::new(now);
        ahead.bytes.extend([b'x'; TYPED_AHEAD - 1]);
        assert!(ahead.takes_keys(now));
        assert_eq!(ahead.patience(now), None);
        ahead.bytes.extend([b'x'; 64]);
        ahead.forget_unread_keys(now);
        assert_eq!(ahead.bytes.len(), TYPED_AHEAD + 63);
        assert!(!ahead.takes_keys(now));
        ahead.take(64, now + STUCK);
        assert!(ahead.takes_keys(now + STUCK));
    }

    #[test]
    fn fault_b13_keys_for_the_monitor_get_past_those_that_a_guest_does_not_read() {
        let now = Instant::now();
        let mut ahead = Ahead::new(now);
        ahead.bytes.extend([b'x'; TYPED_AHEAD]);
        ahead.take(0, now + STUCK / 2);
        assert_eq!(ahead.patience(now + STUCK / 2), Some(STUCK / 2));
        let later = now + STUCK;
        assert!(ahead.takes_keys(later));
        ahead.bytes.extend(b"y");
        ahead.forget_unread_keys(later);
        assert_eq!(ahead.bytes, [b'x'; TYPED_AHEAD]);
        ahead.wait_anew(later);
        assert!(!ahead.takes_keys(later));
    }
}
