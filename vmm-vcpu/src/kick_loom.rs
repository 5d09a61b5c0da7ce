//! Loom models of the kick protocol: the real `KickCell` against a model of what the kernel does with its two halves.
//!
//! Beside the models that must pass stand those that must fail: each breaks one step of the protocol, and the checker
//! finds the lost kick (as a deadlock) or the stray signal (as an assertion).

// Not loom's `Arc`: when a model that must fail fails, its drops would panic a second time.
use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::*;

/// The kernel: `immediate_exit` and one pending signal of the vCPU's thread.
#[derive(Default)]
struct Kernel {
    immediate_exit: AtomicU32,
    pending: Mutex<bool>,
    arrived: Condvar,
    thread_gone: AtomicBool,
    /// Breaks the protocol: the flag is never set.
    without_the_flag: bool,
}

impl KickTarget for Kernel {
    fn set_immediate_exit(&self) {
        if !self.without_the_flag {
            self.immediate_exit.store(1, Ordering::Relaxed);
        }
    }

    fn take_immediate_exit(&self) -> bool {
        self.immediate_exit.swap(0, Ordering::Relaxed) != 0
    }

    fn signal(&self) {
        assert!(!self.thread_gone.load(Ordering::SeqCst), "a signal was sent to a thread id that is free");
        *self.pending.lock().unwrap() = true;
        self.arrived.notify_all();
    }
}

impl Kernel {
    /// A guest that never exits by itself: returns with `EINTR` or not at all.
    fn kvm_run(&self) {
        // A signal that arrives while the thread is in user space runs the empty handler and is gone.
        *self.pending.lock().unwrap() = false;
        if self.immediate_exit.load(Ordering::Relaxed) != 0 {
            return;
        }
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.arrived.wait(pending).unwrap();
        }
    }
}

type Cell = Arc<KickCell<Kernel>>;

fn cell(requests: u32) -> Cell {
    Arc::new(KickCell::new(Kernel::default(), Requests(requests)))
}

/// The run loop, as in `run_loop.rs`, over the model of the kernel.
fn vcpu_thread(cell: &Cell) {
    loop {
        match cell.enter() {
            Ok(()) => {
                cell.target.kvm_run();
                cell.leave();
                cell.acknowledge();
            }
            Err(open) if open.contains(Requests::STOP) => break,
            Err(_) => {
                cell.park_while(|open| open.contains(Requests::PAUSE) && !open.contains(Requests::STOP))
            }
        }
    }
    cell.end();
    cell.target.thread_gone.store(true, Ordering::SeqCst);
}

fn spawn(cell: &Cell, body: impl Fn(&Cell) + 'static) -> thread::JoinHandle<()> {
    let cell = Arc::clone(cell);
    thread::spawn(move || body(&cell))
}

#[test]
fn loom_no_kick_is_lost_with_two_kickers() {
    loom::model(|| {
        let cell = cell(0);
        let vcpu = spawn(&cell, vcpu_thread);
        let other = spawn(&cell, |cell| {
            cell.kick(Requests(4 | Requests::STOP.0));
        });
        cell.kick(Requests::STOP);
        vcpu.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn loom_a_second_request_is_never_lost_behind_the_first() {
    loom::model(|| {
        let cell = cell(0);
        let vcpu = spawn(&cell, vcpu_thread);
        // A request that the loop serves by parking, withdrawn again, and then the stop.
        cell.kick(Requests::PAUSE);
        cell.withdraw(Requests::PAUSE);
        cell.kick(Requests::STOP);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_stop_reaches_a_vcpu_that_parks() {
    loom::model(|| {
        let cell = cell(Requests::PAUSE.0);
        let vcpu = spawn(&cell, vcpu_thread);
        cell.kick(Requests::STOP);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_resume_reaches_a_vcpu_that_parks() {
    loom::model(|| {
        let cell = cell(Requests::PAUSE.0);
        let vcpu = spawn(&cell, |cell| {
            assert!(cell.enter().is_err() || cell.requests.load(Ordering::Relaxed) == 0);
            cell.park_while(|open| open.contains(Requests::PAUSE));
        });
        cell.withdraw(Requests::PAUSE);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_no_signal_reaches_a_thread_that_has_ended() {
    loom::model(|| {
        let cell = cell(0);
        let vcpu = spawn(&cell, |cell| {
            // Leaves the guest by itself, then ends without having been asked.
            if cell.enter().is_ok() {
                cell.leave();
            }
            cell.end();
            cell.target.thread_gone.store(true, Ordering::SeqCst);
        });
        let other = spawn(&cell, |cell| {
            cell.kick(Requests::STOP);
        });
        cell.kick(Requests::STOP);
        vcpu.join().unwrap();
        other.join().unwrap();
    });
}

/// Runs `kicker` against the real vCPU side, or the real kicker against `vcpu`, with one step broken.
fn must_fail(vcpu: fn(&Cell), kicker: fn(&Cell)) {
    loom::model(move || {
        let cell = cell(0);
        let vcpu = spawn(&cell, vcpu);
        kicker(&cell);
        vcpu.join().unwrap();
    });
}

fn stop(cell: &Cell) {
    cell.kick(Requests::STOP);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_signal_without_the_flag() {
    loom::model(|| {
        let kernel = Kernel { without_the_flag: true, ..Kernel::default() };
        let cell = Arc::new(KickCell::new(kernel, Requests::none()));
        let vcpu = spawn(&cell, vcpu_thread);
        stop(&cell);
        vcpu.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_requests_looked_at_before_the_mode_is_in_guest() {
    must_fail(
        |cell| {
            if cell.requests.load(Ordering::SeqCst) == 0 {
                let _ = cell.word.store(Mode::InGuest as u32, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                cell.target.kvm_run();
            }
        },
        stop,
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_no_fence_between_mode_and_requests() {
    must_fail(
        |cell| {
            cell.word.store(Mode::InGuest as u32, Ordering::Relaxed);
            if cell.requests.load(Ordering::Acquire) == 0 {
                cell.target.kvm_run();
            }
        },
        stop,
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_claim_before_the_request_bit() {
    must_fail(vcpu_thread, |cell| {
        let kick = cell.get_attention();
        cell.requests.fetch_or(Requests::STOP.0, Ordering::Release);
        assert!(matches!(kick, Kick::Signalled | Kick::Elided));
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_park_without_looking_again() {
    must_fail(
        |cell| {
            if !Requests(cell.requests.load(Ordering::Acquire)).contains(Requests::STOP) {
                cell.word.store(Mode::Parked as u32, Ordering::SeqCst);
                cell.word.wait(Mode::Parked as u32);
            }
        },
        stop,
    );
}

#[test]
#[should_panic(expected = "a signal was sent to a thread id that is free")]
fn loom_must_fail_end_without_the_handshake() {
    must_fail(
        |cell| {
            if cell.enter().is_ok() {
                cell.leave();
            }
            cell.word.store(Mode::Gone as u32, Ordering::SeqCst);
            cell.target.thread_gone.store(true, Ordering::SeqCst);
        },
        stop,
    );
}
