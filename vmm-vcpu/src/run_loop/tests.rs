//! The run loop over scripted vCPUs: what it does with each return of `KVM_RUN` and each request.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use vmm_core::{Completer, deferred};

use super::*;
use crate::fake::{Script, ScriptedVcpu};
use crate::kick::{Kick, Parking};

/// A target whose next `KVM_RUN` returns with `EINTR` when it is armed, as the kernel's does.
#[derive(Default)]
struct Flag(AtomicBool);

impl KickTarget for Flag {
    fn arm(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn signal(&self) {}
    fn arm_own(&self) {
        self.arm();
    }
    fn disarm(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

type Loop = Arc<Shared<ScriptedVcpu, Flag>>;

fn shared(requests: Requests) -> Loop {
    Arc::new(Shared::new(Flag::default(), requests))
}

/// Records what it is called with; reads give 0x5a. Writes to port 0xd0 are deferred, those to 0xd1 open a pause.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    completers: Mutex<Vec<Completer>>,
    shared: Option<Loop>,
}

impl Recorder {
    fn record(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

impl ExitHandler for Recorder {
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        data.fill(0x5a);
        self.record(format!("in {port:#x} {size}x{}", data.len() / size));
    }
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        self.record(format!("out {port:#x} {size} {data:?}"));
        if let (0xd1, Some(shared)) = (port, &self.shared) {
            shared.kicks.kick(Requests::PAUSE);
        }
        (port == 0xd0).then(|| {
            let (completer, access) = deferred();
            self.completers.lock().unwrap().push(completer);
            access
        })
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0x5a);
        self.record(format!("load {address:#x} {}", data.len()));
    }
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        self.record(format!("store {address:#x} {data:?}"));
        None
    }
}

fn out(port: u16) -> Script {
    Script::PortWrite { port, size: 1, data: vec![0] }
}

fn play(script: Vec<Script>) -> (VcpuEnd, Vec<String>, ScriptedVcpu, Loop) {
    let (mut vcpu, handler) = (ScriptedVcpu::new(script).unwrap(), Recorder::default());
    let shared = shared(Requests::none());
    let end = run(&mut vcpu, &handler, &shared);
    (end, handler.calls.into_inner().unwrap(), vcpu, shared)
}

#[test]
fn each_access_reaches_the_handler_with_its_operands() {
    let (end, calls, _, shared) = play(vec![
        Script::PortWrite { port: 0x3f8, size: 1, data: b"hi".to_vec() },
        Script::PortRead { port: 0x60, size: 2, count: 3 },
        Script::MmioWrite { address: 0xd000_0000, data: vec![1, 2, 3, 4] },
        Script::MmioRead { address: 0xd000_0008, length: 8 },
    ]);
    assert!(matches!(end, VcpuEnd::TripleFault));
    assert_eq!(
        calls,
        ["out 0x3f8 1 [104, 105]", "in 0x60 2x3", "store 0xd0000000 [1, 2, 3, 4]", "load 0xd0000008 8"]
    );
    let counters = shared.counters();
    assert_eq!((counters.port_writes, counters.port_reads, counters.mmio_writes), (1, 1, 1));
    assert_eq!((counters.mmio_reads, counters.other_exits, counters.returns()), (1, 1, 5));
}

#[test]
fn eintr_and_eagain_re_enter_and_an_unexplained_eintr_is_told() {
    let (end, calls, vcpu, shared) = play(vec![
        Script::Fails(libc::EINTR),
        Script::Fails(libc::EAGAIN),
        Script::PortRead { port: 1, size: 1, count: 1 },
    ]);
    assert!(matches!(end, VcpuEnd::TripleFault));
    assert_eq!((calls.len(), vcpu.told_stopped), (1, 1));
    assert_eq!((shared.counters().spurious, shared.counters().woken_for_startup), (1, 1));
}

#[test]
fn fault_d2_a_failing_kvm_run_ends_the_loop_with_its_errno() {
    let (end, ..) = play(vec![Script::Fails(libc::EFAULT)]);
    assert!(matches!(&end, VcpuEnd::RunFailed(e) if e.raw_os_error() == Some(libc::EFAULT)), "{end:?}");
}

#[test]
fn fault_d2_an_exit_nobody_asked_for_ends_the_loop_with_its_number() {
    let (end, ..) = play(vec![Script::Other(77)]);
    assert!(matches!(end, VcpuEnd::UnexpectedExit(77)), "{end:?}");
}

#[test]
fn a_stop_that_came_first_enters_the_guest_not_once() {
    let mut vcpu = ScriptedVcpu::new(vec![Script::PortRead { port: 1, size: 1, count: 1 }]).unwrap();
    let (handler, shared) = (Recorder::default(), shared(Requests::PAUSE));
    shared.kicks.kick(Requests::STOP);
    assert!(matches!(run(&mut vcpu, &handler, &shared), VcpuEnd::Stopped));
    assert!(handler.calls.into_inner().unwrap().is_empty());
}

#[test]
fn a_guest_that_did_not_run_for_a_while_outside_kvm_run_is_told() {
    let script =
        vec![out(1), Script::Sleeps(Duration::from_secs(60)), out(2), Script::Sleeps(Duration::ZERO), out(3)];
    let (_, calls, vcpu, _) = play(script);
    assert_eq!((calls.len(), vcpu.told_stopped), (3, 1));
}

/// Runs `script` on a thread of its own while `drive` has the other end; returns what the handler was called with.
fn driven(script: Vec<Script>, drive: impl FnOnce(&Loop, &Recorder)) -> (VcpuEnd, Vec<String>) {
    let shared = shared(Requests::none());
    let handler = Recorder { shared: Some(Arc::clone(&shared)), ..Recorder::default() };
    let mut vcpu = ScriptedVcpu::new(script).unwrap();
    let end = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let end = run(&mut vcpu, &handler, &shared);
            shared.end();
            end
        });
        drive(&shared, &handler);
        thread.join().unwrap()
    });
    (end, handler.calls.into_inner().unwrap())
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn a_pause_is_answered_after_every_access_that_the_first_leads_to() {
    // The write opens the pause; KVM completes it by two more exits, as for an access that crosses a page.
    let script = vec![out(0xd1), out(1), out(2), Script::Fails(libc::EINTR), out(3)];
    let (end, calls) = driven(script, |shared, handler| {
        while !shared.kicks.open().contains(Requests::PAUSE) {
            thread::yield_now();
        }
        assert_eq!(shared.kicks.wait_parked(far()), Parking::Parked);
        assert_eq!(handler.calls.lock().unwrap().len(), 3);
        assert_eq!(shared.kicks.wait_parked(Instant::now()), Parking::Parked);
        shared.kicks.withdraw(Requests::PAUSE);
    });
    assert!(matches!(end, VcpuEnd::TripleFault));
    assert_eq!(calls.last().unwrap(), "out 0x3 1 [0]");
}

#[test]
fn a_task_is_performed_on_the_paused_vcpu_which_stays_paused() {
    let script = vec![out(0xd1), Script::Fails(libc::EINTR), out(3)];
    driven(script, |shared, _| {
        let (sender, receiver) = mpsc::channel();
        let task = move |vcpu: &mut ScriptedVcpu| sender.send(vcpu.told_stopped).unwrap();
        shared.tasks.push(Box::new(task));
        shared.kicks.kick(Requests::TASK);
        assert_eq!(receiver.recv().unwrap(), 0);
        while !shared.kicks.open().contains(Requests::PAUSE) {
            thread::yield_now();
        }
        assert_eq!(shared.kicks.wait_parked(far()), Parking::Parked);
        shared.kicks.withdraw(Requests::PAUSE);
    });
}

#[test]
fn a_task_after_the_end_is_dropped_and_not_kept() {
    driven(vec![], |shared, _| {
        while shared.kicks.kick(Requests::none()) != Kick::Gone {
            thread::yield_now();
        }
        let (sender, receiver) = mpsc::channel::<()>();
        loop {
            let sender = sender.clone();
            shared.tasks.push(Box::new(move |_| drop(sender)));
            if shared.tasks.next().is_none() {
                break;
            }
        }
        drop(sender);
        assert!(receiver.recv().is_err());
    });
}

#[test]
fn pause_and_stop_are_answered_while_an_access_is_deferred() {
    for stop in [false, true] {
        let (end, calls) = driven(vec![out(0xd0), out(1)], |shared, handler| {
            while handler.completers.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            shared.kicks.kick(Requests::PAUSE);
            assert_eq!(shared.kicks.wait_parked(far()), Parking::Parked);
            if stop {
                shared.kicks.kick(Requests::STOP);
            } else {
                shared.kicks.withdraw(Requests::PAUSE);
                assert_eq!(handler.calls.lock().unwrap().len(), 1);
                handler.completers.lock().unwrap().clear();
            }
        });
        assert_eq!(matches!(end, VcpuEnd::Stopped), stop, "{end:?}");
        assert_eq!(calls.len(), if stop { 1 } else { 2 });
    }
}

/// Until the access of the pause's vCPU has ended and the vCPU has taken notice: it is parked again, or the guest was entered.
fn complete_in_pause(shared: &Loop, handler: &Recorder) {
    while handler.completers.lock().unwrap().is_empty() {
        thread::yield_now();
    }
    shared.kicks.kick(Requests::PAUSE);
    assert_eq!(shared.kicks.wait_parked(far()), Parking::Parked);
    handler.completers.lock().unwrap().clear();
    assert_eq!(shared.kicks.wait_parked(far()), Parking::Parked);
}

#[test]
fn an_access_that_ends_in_a_pause_leads_to_no_entry_before_the_pause_has_ended() {
    let (end, calls) = driven(vec![out(0xd0), out(1), out(2)], |shared, handler| {
        complete_in_pause(shared, handler);
        assert_eq!(handler.calls.lock().unwrap().len(), 1);
        shared.kicks.withdraw(Requests::PAUSE);
    });
    assert!(matches!(end, VcpuEnd::TripleFault));
    assert_eq!(calls.len(), 3);
}

#[test]
fn a_task_of_a_pause_in_which_an_access_has_ended_finds_it_completed() {
    let script = vec![out(0xd0), Script::Fails(libc::EINTR), out(2)];
    let (end, calls) = driven(script, |shared, handler| {
        complete_in_pause(shared, handler);
        // The entry that completes the access has been played.
        assert_eq!(shared.perform(|vcpu| vcpu.told_stopped), Ok(0));
        assert_eq!(shared.kicks.wait_parked(far()), Parking::Parked);
        assert_eq!(handler.calls.lock().unwrap().len(), 1);
        shared.kicks.withdraw(Requests::PAUSE);
    });
    assert!(matches!(end, VcpuEnd::TripleFault));
    assert_eq!(calls.len(), 2);
}

#[test]
fn waiting_for_a_vcpu_ends_when_it_is_resumed_or_has_ended_or_is_late() {
    let nobody = shared(Requests::none());
    assert_eq!(nobody.kicks.wait_parked(far()), Parking::Resumed);
    nobody.kicks.kick(Requests::PAUSE);
    assert_eq!(nobody.kicks.wait_parked(Instant::now()), Parking::Late);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| nobody.kicks.wait_parked(far()));
        nobody.kicks.end();
        assert_eq!(waiting.join().unwrap(), Parking::Gone);
    });
}

#[test]
fn a_full_ring_is_emptied_before_the_guest_is_entered_again() {
    let (end, calls, vcpu, _) = play(vec![Script::DirtyRingFull, out(1), Script::DirtyRingFull]);
    assert!(matches!(end, VcpuEnd::TripleFault));
    assert_eq!((calls.len(), vcpu.rings_emptied), (1, Some(2)));
}

#[test]
fn a_full_ring_that_cannot_be_emptied_ends_the_vcpu() {
    let mut vcpu = ScriptedVcpu::new(vec![Script::DirtyRingFull]).unwrap();
    vcpu.rings_emptied = None;
    let end = run(&mut vcpu, &Recorder::default(), &shared(Requests::none()));
    assert!(matches!(end, VcpuEnd::RunFailed(_)), "{end:?}");
}

#[test]
fn a_kick_has_the_ring_read_and_other_exits_do_not() {
    let (_, calls, vcpu, _) =
        play(vec![out(1), Script::Fails(libc::EAGAIN), Script::Fails(libc::EINTR), out(2)]);
    assert_eq!((calls.len(), vcpu.rings_reaped), (2, 1));
}
