//! A worker and its handlers, which come, panic and go.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, channel};

use super::*;

fn worker() -> (Worker, VmEvents) {
    let events = VmEvents::new().unwrap();
    (Worker::spawn(&crate::calls::SELFTEST, events.clone()).unwrap(), events)
}

fn doorbell() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

fn never_fails() -> impl FnOnce() + Send {
    || panic!("no handler of this test panics")
}

#[test]
fn every_ring_is_served_once() {
    let ((worker, events), doorbell) = (worker(), doorbell());
    let (sender, served) = channel();
    let serve = move |rings| {
        sender.send(rings).unwrap();
        Progress::Done
    };
    let _handler = worker.add("device", Arc::clone(&doorbell), serve, never_fails()).unwrap();
    let mut total = 0;
    for rings in 1..=100 {
        doorbell.write(rings).unwrap();
        total += rings;
    }
    let mut seen = 0;
    while seen < total {
        seen += served.recv().unwrap();
    }
    drop(worker);
    assert_eq!((seen, served.try_recv().is_err()), (total, true));
    assert_eq!(events.get(), None);
}

#[test]
fn a_source_that_always_has_work_does_not_starve_another() {
    let (worker, _events) = worker();
    let (busy, other) = (doorbell(), doorbell());
    let (sender, served) = channel();
    let _busy = worker.add("busy", Arc::clone(&busy), |_| Progress::More, never_fails()).unwrap();
    let serve = move |rings| {
        sender.send(rings).unwrap();
        Progress::Done
    };
    let _other = worker.add("other", Arc::clone(&other), serve, never_fails()).unwrap();
    busy.write(1).unwrap();
    for _ in 0..100 {
        other.write(1).unwrap();
        assert_eq!(served.recv().unwrap(), 1);
    }
}

#[test]
fn work_that_is_left_over_is_done_without_another_ring() {
    let ((worker, _events), doorbell) = (worker(), doorbell());
    let (sender, served) = channel();
    let mut left = 5;
    let serve = move |rings| {
        left -= 1;
        sender.send(rings).unwrap();
        if left == 0 { Progress::Done } else { Progress::More }
    };
    let _handler = worker.add("device", Arc::clone(&doorbell), serve, never_fails()).unwrap();
    doorbell.write(3).unwrap();
    assert_eq!(served.iter().take(5).collect::<Vec<_>>(), [3, 0, 0, 0, 0]);
}

#[test]
fn after_remove_no_call_runs_and_what_the_handler_owned_is_gone() {
    for _ in 0..200 {
        let ((worker, _events), doorbell) = (worker(), doorbell());
        let calls = Arc::new(AtomicUsize::new(0));
        let owned = Arc::clone(&calls);
        let serve = move |_| {
            owned.fetch_add(1, Ordering::SeqCst);
            Progress::More
        };
        let handler = worker.add("device", Arc::clone(&doorbell), serve, never_fails()).unwrap();
        doorbell.write(1).unwrap();
        while calls.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        handler.remove().unwrap();
        assert_eq!(Arc::strong_count(&calls), 1);
        // The same doorbell can be served again at once.
        drop(worker.add("device", doorbell, |_| Progress::Done, never_fails()).unwrap());
    }
}

#[test]
fn a_handler_that_removes_a_handler_of_its_worker_does_not_wait_for_itself() {
    let (worker, _events) = worker();
    let (own, other) = (doorbell(), doorbell());
    let (sender, answers) = channel();
    let handlers: Arc<Mutex<Vec<Handler>>> = Arc::default();
    let (to_remove, owned) = (Arc::clone(&handlers), Arc::new(()));
    let weak = Arc::downgrade(&owned);
    let serve = move |_| {
        let _owned = &owned;
        for handler in to_remove.lock().unwrap().drain(..) {
            sender.send(handler.remove()).unwrap();
        }
        Progress::More
    };
    let own_handler = worker.add("own", Arc::clone(&own), serve, never_fails()).unwrap();
    let other_handler = worker.add("other", Arc::clone(&other), |_| Progress::More, never_fails()).unwrap();
    handlers.lock().unwrap().extend([own_handler, other_handler]);
    own.write(1).unwrap();
    // The sender goes with the handler.
    assert_eq!(answers.iter().collect::<Vec<_>>(), [Err(NotAwaited::OnOwnThread); 2]);
    while weak.strong_count() != 0 {
        thread::yield_now();
    }
    assert_eq!(format!("{worker:?}"), "Worker { handlers: 0 }");
}

#[test]
fn inside_a_read_section_the_end_of_a_handler_is_not_waited_for() {
    let ((worker, _events), doorbell) = (worker(), doorbell());
    let table = vmm_core::Published::new(());
    let section = table.load();
    let ((begin, begun), (end, ended)) = (channel(), channel::<()>());
    let (sender, dropped): (_, Receiver<()>) = channel();
    let serve = move |_| {
        let _sender = &sender;
        begin.send(()).unwrap();
        // As long as the section is open, as one that waits for a grace period would.
        assert!(ended.recv().is_err());
        Progress::More
    };
    let handler = worker.add("device", Arc::clone(&doorbell), serve, never_fails()).unwrap();
    doorbell.write(1).unwrap();
    begun.recv().unwrap();
    assert_eq!(handler.remove(), Err(NotAwaited::InReadSection));
    drop(section);
    drop(end);
    assert!(dropped.recv().is_err());
    assert!(begun.recv().is_err(), "it is not called again");
}

#[test]
fn a_handler_that_has_panicked_is_removed_when_all_that_it_owned_is_gone() {
    let ((worker, _events), doorbell) = (worker(), doorbell());
    let owned = Arc::new(());
    let (tell, told) = channel();
    let serve = {
        let owned = Arc::clone(&owned);
        move |_| {
            let _owned = &owned;
            panic!("a bug in a device")
        }
    };
    let failed = {
        let owned = Arc::clone(&owned);
        move || {
            tell.send(()).unwrap();
            thread::yield_now();
            drop(owned);
        }
    };
    let handler = worker.add("device", Arc::clone(&doorbell), serve, failed).unwrap();
    doorbell.write(1).unwrap();
    told.recv().unwrap();
    assert_eq!((handler.remove(), Arc::strong_count(&owned)), (Ok(()), 1));
}

#[test]
fn fault_d3_a_handler_that_panics_takes_its_device_down_and_no_other() {
    let (worker, events) = worker();
    let (buggy, other) = (doorbell(), doorbell());
    let ((tell, failure), (sender, served)) = (channel(), channel());
    let serve = |_| panic!("a bug in a device");
    let broken = worker.add("buggy", Arc::clone(&buggy), serve, move || tell.send(()).unwrap()).unwrap();
    let serve = move |rings| {
        sender.send(rings).unwrap();
        Progress::Done
    };
    let _other = worker.add("other", Arc::clone(&other), serve, never_fails()).unwrap();
    buggy.write(1).unwrap();
    failure.recv().unwrap();
    buggy.write(1).unwrap();
    other.write(2).unwrap();
    assert_eq!(served.recv().unwrap(), 2);
    assert!(failure.recv().is_err(), "the owner is told once");
    assert_eq!(broken.remove(), Ok(()));
    assert_eq!(events.get(), None);
}

#[test]
fn a_doorbell_that_cannot_be_served_is_refused_and_its_handler_is_gone() {
    let (worker, _events) = worker();
    let served = doorbell();
    let _handler = worker.add("first", Arc::clone(&served), |_| Progress::Done, never_fails()).unwrap();
    let owned = Arc::new(());
    let serve = {
        let owned = Arc::clone(&owned);
        move |_| {
            let _owned = &owned;
            Progress::Done
        }
    };
    let refused = worker.add("second", served, serve, never_fails()).map(drop).unwrap_err();
    assert_eq!((refused.device, refused.source.raw_os_error()), ("second", Some(libc::EEXIST)));
    assert_eq!(Arc::strong_count(&owned), 1);
}

#[test]
fn a_worker_ends_while_its_handlers_always_have_work() {
    let ((worker, _events), doorbell) = (worker(), doorbell());
    let (sender, dropped): (_, Receiver<()>) = channel();
    let serve = move |_| {
        let _sender = &sender;
        Progress::More
    };
    let handler = worker.add("busy", Arc::clone(&doorbell), serve, never_fails()).unwrap();
    doorbell.write(1).unwrap();
    drop(worker);
    assert!(dropped.recv().is_err());
    assert_eq!(handler.remove(), Ok(()));
}

#[test]
fn a_handler_may_drop_its_own_worker() {
    let ((worker, _events), doorbell) = (worker(), doorbell());
    let (sender, dropped) = channel();
    let shared = Arc::new(Mutex::new(None));
    let own = Arc::clone(&shared);
    let serve = move |_| {
        drop::<Option<Worker>>(own.lock().unwrap().take());
        sender.send(()).unwrap();
        Progress::More
    };
    let handler = worker.add("device", Arc::clone(&doorbell), serve, never_fails()).unwrap();
    *shared.lock().unwrap() = Some(worker);
    doorbell.write(1).unwrap();
    dropped.recv().unwrap();
    // The thread ends with the call, and its handler with it.
    assert!(dropped.recv().is_err());
    drop(handler);
}
