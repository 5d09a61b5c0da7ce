//! `KickCell`: how a thread gets a vCPU's attention, without a lost kick and without a cost on the run path.
//!
//! The kernel's `vcpu->mode` and `kvm_make_request`, carried to user space. One word holds the mode of the vCPU and
//! the number of its current entry into the guest; beside it are the request bits. The vCPU's thread
//!
//! 1. stores `InGuest`, fences, looks at the requests: none → `KVM_RUN`; some → `Outside`, then serves them;
//! 2. after `KVM_RUN`, stores `Outside`; if it was interrupted, takes the kick back before it enters again.
//!
//! A kicker sets its request bit, fences, looks at the mode: `Outside` and `Signalled` need nothing, because the bit
//! is seen on the way in; `InGuest` is claimed, so that one kicker arms the target and sends the signal; `Claimed` means
//! that another kicker is about to do so but may have been descheduled before the signal, so this one signals too;
//! `Parked` is woken; `Gone` needs nothing.
//!
//! Whoever waits for a vCPU to park is counted in `waiters`, reads `answers`, fences, looks at the word and the requests,
//! and sleeps while `answers` has not moved; a vCPU that parks or ends, and a resume, moves `answers` afterwards, fences,
//! and wakes if there are waiters. It is a word of its own because a resume may leave the other one as it is.
//!
//! Whoever signals is counted in `signallers` from before it checks that the thread is not `Gone` until after the
//! signal; a thread that ends stores `Gone` and waits for the count to be zero. So no signal goes to a thread id that
//! may belong to somebody else by then.
//!
//! Every store that is followed by a load of another location has a `fence(SeqCst)` between them, on both sides:
//! `word` then `requests` here, `requests` then `word` there; `word = Gone` then `signallers` here, `signallers` then
//! `word` there; `answers` then `waiters` here, `waiters` then `answers` there; and `immediate_exit = 0` then
//! `requests` (the fence of the next entry) against `requests` then `immediate_exit = 1`.

use std::ops::BitOr;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::sync::{AtomicU32, Ordering, WaitWord, fence};

/// What a vCPU is asked to do. A set of bits; several may be open at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests(u32);

impl Requests {
    /// End the run loop.
    pub const STOP: Self = Self(1);
    /// Stay out of the guest until the bit is taken back.
    pub const PAUSE: Self = Self(2);
    /// Perform the tasks that wait for the vCPU's thread.
    pub(crate) const TASK: Self = Self(4);
    /// The access that was deferred may end.
    pub(crate) const COMPLETION: Self = Self(8);

    /// The empty set.
    #[must_use]
    pub const fn none() -> Self {
        Self(0)
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Requests {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a kick came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// The vCPU was in the guest, or about to be: a signal was sent.
    Signalled,
    /// The vCPU was out of the guest or being kicked already: it sees the request before it enters.
    Elided,
    /// The vCPU was parked and was woken.
    Woken,
    /// The vCPU's thread has ended.
    Gone,
}

/// How a kick reaches the vCPU in the kernel.
pub trait KickTarget: Send + Sync {
    /// Makes the next `KVM_RUN` return with `EINTR`, if the signal that follows would not be enough.
    fn arm(&self);
    /// Interrupts a `KVM_RUN` that is under way.
    fn signal(&self);
    /// On the vCPU's thread: makes its next `KVM_RUN` complete the pending access and return with `EINTR`.
    fn arm_own(&self);
    /// On the vCPU's thread, after `EINTR`: takes one kick back; returns whether there was one.
    fn disarm(&self) -> bool;
    /// Called on either side between two steps of the protocol, so that a test can delay that side there.
    #[inline]
    fn between_steps(&self) {}
}

/// What came of waiting for a vCPU to park.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// It is out of the guest until it is resumed.
    Parked,
    /// It was resumed meanwhile.
    Resumed,
    /// Its thread has ended.
    Gone,
    /// It has not answered in time.
    Late,
}

/// How many kicks came to what, since the vCPU was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KickCounts {
    /// [`Kick::Signalled`].
    pub signalled: u64,
    /// [`Kick::Elided`].
    pub elided: u64,
    /// [`Kick::Woken`].
    pub woken: u64,
}

/// Counters of the kickers, on a cache line that the vCPU's thread does not touch. Relaxed: they order nothing.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counts {
    signalled: AtomicU64,
    elided: AtomicU64,
    woken: AtomicU64,
}

/// The low bits of the word: where the vCPU is. The rest is the number of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Mode {
    Outside = 0,
    InGuest = 1,
    Claimed = 2,
    Signalled = 3,
    Parked = 4,
    Gone = 5,
}

const MODE_BITS: u32 = 3;
const MODE_MASK: u32 = (1 << MODE_BITS) - 1;

/// The word for `mode` in the entry of `word`.
fn with_mode(word: u32, mode: Mode) -> u32 {
    word & !MODE_MASK | mode as u32
}

fn mode_of(word: u32) -> Mode {
    match word & MODE_MASK {
        1 => Mode::InGuest,
        2 => Mode::Claimed,
        3 => Mode::Signalled,
        4 => Mode::Parked,
        5 => Mode::Gone,
        _ => Mode::Outside,
    }
}

/// The meeting point of one vCPU thread and its kickers. See the module documentation.
///
/// In the order in which the fields stand here: what an entry looks at is on one cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct KickCell<T> {
    word: WaitWord,
    requests: AtomicU32,
    signallers: WaitWord,
    waiters: AtomicU32,
    answers: WaitWord,
    target: T,
    counts: Counts,
}

impl<T: KickTarget> KickCell<T> {
    /// A cell for a vCPU whose thread has yet to start, with `requests` open from the beginning.
    pub fn new(target: T, requests: Requests) -> Self {
        Self {
            word: WaitWord::new(Mode::Outside as u32),
            requests: AtomicU32::new(requests.0),
            signallers: WaitWord::new(0),
            waiters: AtomicU32::new(0),
            answers: WaitWord::new(0),
            target,
            counts: Counts::default(),
        }
    }

    /// What the kicks reach.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// What became of the kicks so far.
    pub fn counts(&self) -> KickCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { signalled, elided, woken } = &self.counts;
        KickCounts { signalled: read(signalled), elided: read(elided), woken: read(woken) }
    }

    /// The requests that are open now.
    pub fn open(&self) -> Requests {
        Requests(self.requests.load(Ordering::Acquire))
    }

    /// Opens `requests` and gets the vCPU's attention. From any thread, the vCPU's own included; never blocks.
    pub fn kick(&self, requests: Requests) -> Kick {
        self.requests.fetch_or(requests.0, Ordering::Release);
        self.target.between_steps();
        let kick = self.get_attention();
        let counter = match kick {
            Kick::Signalled => &self.counts.signalled,
            Kick::Elided => &self.counts.elided,
            Kick::Woken => &self.counts.woken,
            Kick::Gone => return kick,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        kick
    }

    /// Waits until the vCPU, which has been asked to pause, is parked; not longer than to `deadline`. From any thread but
    /// the vCPU's own; any number of threads at a time.
    pub fn wait_parked(&self, deadline: Instant) -> Parking {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let parking = self.sleep_until_parked(deadline);
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        parking
    }

    fn sleep_until_parked(&self, deadline: Instant) -> Parking {
        loop {
            fence(Ordering::SeqCst);
            let seen = self.answers.load(Ordering::Acquire);
            let left = deadline.saturating_duration_since(Instant::now());
            match mode_of(self.word.load(Ordering::Acquire)) {
                Mode::Gone => return Parking::Gone,
                _ if !self.open().contains(Requests::PAUSE) => return Parking::Resumed,
                Mode::Parked => return Parking::Parked,
                _ if left == Duration::ZERO => return Parking::Late,
                _ => self.answers.wait(seen, Some(left)),
            }
        }
    }

    /// Wakes those who wait for the vCPU to park, after its mode or its requests have changed.
    fn wake_waiters(&self) {
        self.answers.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) != 0 {
            self.answers.wake();
        }
    }

    /// Takes `requests` back and wakes the vCPU if it is parked; returns whether it was. One that runs is left alone.
    pub fn withdraw(&self, requests: Requests) -> bool {
        self.requests.fetch_and(!requests.0, Ordering::Release);
        self.target.between_steps();
        fence(Ordering::SeqCst);
        let word = self.word.load(Ordering::Acquire);
        // If the word changes here, the vCPU either is awake already or looks at the requests again before it sleeps.
        let woken = mode_of(word) == Mode::Parked && self.change(word, Mode::Outside);
        if woken {
            self.word.wake();
        }
        self.wake_waiters();
        woken
    }

    fn get_attention(&self) -> Kick {
        fence(Ordering::SeqCst);
        loop {
            let word = self.word.load(Ordering::Acquire);
            match mode_of(word) {
                Mode::Outside | Mode::Signalled => return Kick::Elided,
                Mode::Gone => return Kick::Gone,
                Mode::Claimed => return self.signal(None),
                Mode::InGuest if self.change(word, Mode::Claimed) => return self.signal(Some(word)),
                Mode::Parked if self.change(word, Mode::Outside) => {
                    self.word.wake();
                    return Kick::Woken;
                }
                // The vCPU moved between the load and the exchange: look again.
                Mode::InGuest | Mode::Parked => {}
            }
        }
    }

    /// Changes the mode if the word is still `word`: same mode, same entry.
    fn change(&self, word: u32, mode: Mode) -> bool {
        self.word.compare_exchange(word, with_mode(word, mode), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Arms the target and sends the signal, unless the thread is gone. `claimed` is the word this kicker has
    /// claimed, if it has.
    fn signal(&self, claimed: Option<u32>) -> Kick {
        self.target.between_steps();
        self.signallers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let gone = mode_of(self.word.load(Ordering::Relaxed)) == Mode::Gone;
        if !gone {
            self.target.arm();
            self.target.between_steps();
            self.target.signal();
            self.target.between_steps();
            if let Some(word) = claimed {
                // Fails if the vCPU has left the guest meanwhile: then the signal was late and is harmless.
                self.change(with_mode(word, Mode::Claimed), Mode::Signalled);
            }
        }
        if self.signallers.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::SeqCst);
            if mode_of(self.word.load(Ordering::Relaxed)) == Mode::Gone {
                self.signallers.wake();
            }
        }
        if gone { Kick::Gone } else { Kick::Signalled }
    }
}

/// The vCPU thread's side. To be called by that thread only.
impl<T: KickTarget> KickCell<T> {
    /// Announces an entry into the guest. `Ok`: go on to `KVM_RUN` and call [`leave`](Self::leave) after it. `Err`:
    /// there are requests to serve first; the vCPU is outside.
    pub(crate) fn enter(&self) -> Result<(), Requests> {
        let entry = self.word.load(Ordering::Relaxed).wrapping_add(1 << MODE_BITS);
        // Released: a kicker that sees the vCPU in the guest sees the id of its thread.
        self.word.store(with_mode(entry, Mode::InGuest), Ordering::Release);
        self.target.between_steps();
        fence(Ordering::SeqCst);
        match self.requests.load(Ordering::Acquire) {
            0 => Ok(()),
            open => {
                self.leave();
                Err(Requests(open))
            }
        }
    }

    /// Announces that the vCPU is out of the guest.
    pub(crate) fn leave(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.swap(with_mode(word, Mode::Outside), Ordering::Release);
    }

    /// After `KVM_RUN` returned `EINTR`: makes the next entry possible. Returns whether a kick was the reason.
    pub(crate) fn acknowledge(&self) -> bool {
        self.target.disarm()
    }

    /// Takes back those of `requests` that are open, to be served by the caller; returns whether there were any.
    pub(crate) fn take(&self, requests: Requests) -> bool {
        self.requests.fetch_and(!requests.0, Ordering::Acquire) & requests.0 != 0
    }

    /// Sleeps while `stay` says so of the open requests. The vCPU is outside before and after.
    pub(crate) fn park_while(&self, stay: impl Fn(Requests) -> bool) {
        loop {
            let parked = with_mode(self.word.load(Ordering::Relaxed), Mode::Parked);
            // Released: who sees the vCPU parked sees what it did before.
            self.word.swap(parked, Ordering::Release);
            self.target.between_steps();
            fence(Ordering::SeqCst);
            if !stay(self.open()) {
                return self.leave();
            }
            self.wake_waiters();
            self.target.between_steps();
            self.word.wait(parked, None);
        }
    }

    /// Says that the thread is about to end, and waits for the signals that are on their way to it.
    pub(crate) fn end(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.swap(with_mode(word, Mode::Gone), Ordering::Release);
        self.wake_waiters();
        loop {
            match self.signallers.load(Ordering::Acquire) {
                0 => return,
                count => self.signallers.wait(count, None),
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug, Default)]
    struct Counter {
        immediate_exit: AtomicU32,
        signals: AtomicUsize,
    }

    impl KickTarget for Counter {
        fn arm(&self) {
            self.immediate_exit.store(1, Ordering::Relaxed);
        }
        fn signal(&self) {
            self.signals.fetch_add(1, Ordering::Relaxed);
        }
        fn arm_own(&self) {
            self.arm();
        }
        fn disarm(&self) -> bool {
            self.immediate_exit.swap(0, Ordering::Relaxed) != 0
        }
    }

    fn cell() -> KickCell<Counter> {
        KickCell::new(Counter::default(), Requests::none())
    }

    fn signals(cell: &KickCell<Counter>) -> usize {
        cell.target.signals.load(Ordering::Relaxed)
    }

    #[test]
    fn a_kick_before_the_thread_has_started_is_seen_at_the_first_entry() {
        let cell = cell();
        assert_eq!(cell.kick(Requests::STOP), Kick::Elided);
        assert_eq!(cell.enter(), Err(Requests::STOP));
        assert_eq!(signals(&cell), 0);
    }

    #[test]
    fn a_vcpu_in_the_guest_is_signalled_once_and_sees_every_request() {
        let cell = cell();
        cell.enter().unwrap();
        assert_eq!(cell.kick(Requests::PAUSE), Kick::Signalled);
        assert_eq!(cell.kick(Requests::STOP), Kick::Elided);
        assert_eq!(signals(&cell), 1);
        cell.leave();
        assert!(cell.acknowledge());
        assert!(!cell.acknowledge());
        assert_eq!(cell.enter(), Err(Requests::STOP | Requests::PAUSE));
    }

    #[test]
    fn kicks_are_counted_by_what_they_came_to() {
        let cell = cell();
        cell.kick(Requests::PAUSE);
        cell.enter().unwrap_err();
        cell.take(Requests::PAUSE);
        cell.enter().unwrap();
        cell.kick(Requests::STOP);
        cell.kick(Requests::STOP);
        assert_eq!(cell.counts(), KickCounts { signalled: 1, elided: 2, woken: 0 });
    }

    #[test]
    fn a_kick_outside_the_guest_or_after_the_end_sends_no_signal() {
        let cell = cell();
        cell.enter().unwrap();
        cell.leave();
        assert_eq!(cell.kick(Requests::PAUSE), Kick::Elided);
        cell.end();
        assert_eq!(cell.kick(Requests::STOP), Kick::Gone);
        assert_eq!(signals(&cell), 0);
    }

    #[test]
    fn a_withdrawn_request_leaves_a_running_vcpu_alone() {
        let cell = cell();
        cell.enter().unwrap();
        assert!(!cell.withdraw(Requests::PAUSE));
        assert_eq!(signals(&cell), 0);
    }

    #[test]
    fn the_entry_counter_wraps_into_the_mode_of_nobody() {
        let cell = cell();
        cell.word.store(with_mode(u32::MAX, Mode::Outside), Ordering::Relaxed);
        cell.enter().unwrap();
        assert_eq!(cell.word.load(Ordering::Relaxed), Mode::InGuest as u32);
    }

    #[test]
    fn a_parked_vcpu_sleeps_until_the_pause_is_withdrawn() {
        let cell = cell();
        cell.kick(Requests::PAUSE);
        std::thread::scope(|scope| {
            let parked = scope.spawn(|| cell.park_while(|open| open.contains(Requests::PAUSE)));
            while mode_of(cell.word.load(Ordering::Relaxed)) != Mode::Parked {
                std::thread::yield_now();
            }
            assert!(!parked.is_finished());
            assert!(cell.withdraw(Requests::PAUSE));
        });
        cell.enter().unwrap();
    }
}

#[cfg(test)]
#[cfg(loom)]
#[path = "kick_loom.rs"]
mod loom_tests;
