//! Loom models of the kick protocol: the real `KickCell` under the real run loop, against a model of what the kernel does
//! with the two halves of a kick.
//!
//! Beside the models that must pass stand those that must fail: each breaks one step of the protocol, and the checker
//! finds the lost kick (as a deadlock) or the stray signal (as an assertion).

use std::io;
// Not loom's `Arc`: when a model that must fail fails, its drops would panic a second time.
use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use vmm_core::Deferred;

use super::*;
use crate::run_loop::{ExitHandler, RunVcpu, Shared, run};
use crate::run_page::RunPage;

/// The kernel: `immediate_exit` and one pending signal of the vCPU's thread.
#[derive(Default)]
struct Kernel {
    immediate_exit: AtomicU32,
    pending: Mutex<bool>,
    arrived: Condvar,
    thread_gone: AtomicBool,
    /// `KVM_SET_SIGNAL_MASK` instead of `immediate_exit`: a signal stays pending outside `KVM_RUN`.
    masked: bool,
    /// Breaks the protocol: the flag is never set.
    without_the_flag: bool,
}

impl KickTarget for Kernel {
    fn arm(&self) {
        if !self.without_the_flag && !self.masked {
            self.immediate_exit.store(1, Ordering::Relaxed);
        }
    }

    fn signal(&self) {
        assert!(!self.thread_gone.load(Ordering::SeqCst), "a signal was sent to a thread id that is free");
        *self.pending.lock().unwrap() = true;
        self.arrived.notify_all();
    }

    fn arm_own(&self) {
        if self.masked {
            self.signal();
        } else {
            self.arm();
        }
    }

    fn disarm(&self) -> bool {
        if self.masked {
            std::mem::take(&mut *self.pending.lock().unwrap())
        } else {
            self.immediate_exit.swap(0, Ordering::Relaxed) != 0
        }
    }
}

impl Kernel {
    /// A guest that never exits by itself: returns with `EINTR` or not at all.
    fn kvm_run(&self) {
        if !self.masked {
            // A signal that arrives while the thread is in user space runs the empty handler and is gone.
            *self.pending.lock().unwrap() = false;
            if self.immediate_exit.load(Ordering::Relaxed) != 0 {
                return;
            }
        }
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.arrived.wait(pending).unwrap();
        }
    }
}

type Loop = Arc<Shared<Guest, Kernel>>;
type Cell = KickCell<Kernel>;

fn shared(requests: u32) -> Loop {
    Arc::new(Shared::new(Kernel::default(), Requests(requests)))
}

fn shared_masked() -> Loop {
    Arc::new(Shared::new(Kernel { masked: true, ..Kernel::default() }, Requests::none()))
}

/// The vCPU for the real run loop: its `KVM_RUN` is the model's.
struct Guest(Loop);

impl RunVcpu for Guest {
    fn run(&mut self) -> io::Result<()> {
        self.0.kicks.target.kvm_run();
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    fn page(&mut self) -> &mut RunPage {
        unreachable!("this guest has no exits")
    }

    fn tell_stopped(&mut self) {}

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// No exits come here.
struct Nothing;

impl ExitHandler for Nothing {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// The thread of a vCPU, as in `thread.rs`: the real run loop, then the end.
fn vcpu_thread(shared: &Loop) {
    run(&mut Guest(Arc::clone(shared)), &Nothing, shared);
    end(shared);
}

fn end(shared: &Loop) {
    shared.end();
    shared.kicks.target.thread_gone.store(true, Ordering::SeqCst);
}

/// Waits for the vCPU to park. In a model time does not pass: the deadline is far enough for the checker.
fn wait_parked(cell: &Cell) -> Parking {
    cell.wait_parked(Instant::now() + Duration::from_secs(86_400))
}

fn spawn(shared: &Loop, body: impl Fn(&Loop) + 'static) -> thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || body(&shared))
}

#[test]
fn loom_no_kick_is_lost_with_two_kickers() {
    for masked in [false, true] {
        loom::model(move || {
            let shared = if masked { shared_masked() } else { shared(0) };
            let vcpu = spawn(&shared, vcpu_thread);
            let other = spawn(&shared, |shared| {
                shared.kicks.kick(Requests::TASK | Requests::STOP);
            });
            shared.kicks.kick(Requests::STOP);
            vcpu.join().unwrap();
            other.join().unwrap();
        });
    }
}

#[test]
fn loom_a_second_request_is_never_lost_behind_the_first() {
    loom::model(|| {
        let shared = shared(0);
        let vcpu = spawn(&shared, vcpu_thread);
        // A request that the loop serves by parking, withdrawn again, and then the stop.
        shared.kicks.kick(Requests::PAUSE);
        shared.kicks.withdraw(Requests::PAUSE);
        shared.kicks.kick(Requests::STOP);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_stop_reaches_a_vcpu_that_parks() {
    loom::model(|| {
        let shared = shared(Requests::PAUSE.0);
        let vcpu = spawn(&shared, vcpu_thread);
        shared.kicks.kick(Requests::STOP);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_resume_reaches_a_vcpu_that_parks() {
    loom::model(|| {
        let shared = shared(Requests::PAUSE.0);
        let vcpu = spawn(&shared, |shared| {
            let cell = &shared.kicks;
            assert!(cell.enter().is_err() || cell.open() == Requests::none());
            cell.park_while(|open| open.contains(Requests::PAUSE));
        });
        shared.kicks.withdraw(Requests::PAUSE);
        vcpu.join().unwrap();
    });
}

#[test]
fn loom_a_pause_is_answered_wherever_the_vcpu_is() {
    for masked in [false, true] {
        loom::model(move || {
            let shared = if masked { shared_masked() } else { shared(0) };
            let vcpu = spawn(&shared, vcpu_thread);
            shared.kicks.kick(Requests::PAUSE);
            assert_eq!(wait_parked(&shared.kicks), Parking::Parked);
            shared.kicks.kick(Requests::STOP);
            vcpu.join().unwrap();
        });
    }
}

#[test]
fn loom_a_pause_beside_a_stop_is_answered_and_the_stop_obeyed() {
    loom::model(|| {
        let shared = shared(0);
        let vcpu = spawn(&shared, vcpu_thread);
        let other = spawn(&shared, |shared| {
            shared.kicks.kick(Requests::STOP);
        });
        shared.kicks.kick(Requests::PAUSE);
        assert!(matches!(wait_parked(&shared.kicks), Parking::Parked | Parking::Gone));
        vcpu.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn loom_a_pause_that_another_thread_resumes_is_not_waited_for_for_ever() {
    loom::model(|| {
        let shared = shared(Requests::PAUSE.0);
        let vcpu = spawn(&shared, |shared| {
            // Served by parking, as by the run loop, and once: the guest is left running.
            if shared.kicks.enter().is_err() {
                shared.kicks.park_while(|open| open.contains(Requests::PAUSE));
            }
        });
        let other = spawn(&shared, |shared| {
            shared.kicks.withdraw(Requests::PAUSE);
        });
        assert!(matches!(wait_parked(&shared.kicks), Parking::Parked | Parking::Resumed));
        vcpu.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn loom_a_task_is_performed_or_dropped_when_the_vcpu_ends_beside_it() {
    loom::model(|| {
        let shared = shared(0);
        let vcpu = spawn(&shared, vcpu_thread);
        let (sender, receiver) = loom::sync::mpsc::channel();
        shared.tasks.push(Box::new(move |_: &mut Guest| sender.send(()).unwrap()));
        shared.kicks.kick(Requests::TASK);
        shared.kicks.kick(Requests::STOP);
        vcpu.join().unwrap();
        let _ = receiver.try_recv();
        assert!(shared.tasks.next().is_none());
    });
}

#[test]
fn loom_no_signal_reaches_a_thread_that_has_ended() {
    loom::model(|| {
        let shared = shared(0);
        let vcpu = spawn(&shared, |shared| {
            // Leaves the guest by itself, then ends without having been asked.
            if shared.kicks.enter().is_ok() {
                shared.kicks.leave();
            }
            end(shared);
        });
        let other = spawn(&shared, |shared| {
            shared.kicks.kick(Requests::STOP);
        });
        shared.kicks.kick(Requests::STOP);
        vcpu.join().unwrap();
        other.join().unwrap();
    });
}

/// Runs `kicker` against the real vCPU side, or the real kicker against `vcpu`, with one step broken.
fn must_fail(vcpu: fn(&Cell), kicker: fn(&Cell)) {
    loom::model(move || {
        let shared = shared(0);
        let vcpu = spawn(&shared, move |shared| vcpu(&shared.kicks));
        kicker(&shared.kicks);
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
        let shared = Arc::new(Shared::new(kernel, Requests::none()));
        let vcpu = spawn(&shared, vcpu_thread);
        stop(&shared.kicks);
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
    loom::model(|| {
        let shared = shared(0);
        let vcpu = spawn(&shared, vcpu_thread);
        let kick = shared.kicks.get_attention();
        shared.kicks.requests.fetch_or(Requests::STOP.0, Ordering::Release);
        assert!(matches!(kick, Kick::Signalled | Kick::Elided));
        vcpu.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_park_without_looking_again() {
    must_fail(
        |cell| {
            if !cell.open().contains(Requests::STOP) {
                cell.word.store(Mode::Parked as u32, Ordering::SeqCst);
                cell.word.wait(Mode::Parked as u32, None);
            }
        },
        stop,
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_park_without_waking_who_waits() {
    must_fail(
        |cell| {
            cell.word.swap(Mode::Parked as u32, Ordering::Release);
        },
        |cell| {
            cell.requests.fetch_or(Requests::PAUSE.0, Ordering::Release);
            wait_parked(cell);
        },
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_resume_that_wakes_without_moving_the_answers() {
    loom::model(|| {
        let shared = shared(Requests::PAUSE.0);
        let other = spawn(&shared, |shared| {
            shared.kicks.requests.fetch_and(!Requests::PAUSE.0, Ordering::Release);
            fence(Ordering::SeqCst);
            shared.kicks.answers.wake();
        });
        wait_parked(&shared.kicks);
        other.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_wait_for_a_parked_vcpu_without_being_counted() {
    must_fail(
        |cell| cell.park_while(|open| open.contains(Requests::PAUSE) && !open.contains(Requests::STOP)),
        |cell| {
            cell.requests.fetch_or(Requests::PAUSE.0, Ordering::Release);
            cell.sleep_until_parked(Instant::now() + Duration::from_secs(86_400));
            cell.kick(Requests::STOP);
        },
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
