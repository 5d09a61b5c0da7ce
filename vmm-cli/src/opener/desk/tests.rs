//! The opener as a thread: both sides of its socket, and whoever says something else there.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use vmm_devices::Connector;

use super::*;
use crate::opener::Place as Registered;
use crate::opener::line::Line;

/// An opener that is a thread, which has a current directory of its own.
struct Opener {
    line: Option<Arc<Line>>,
    thread: Option<JoinHandle<()>>,
}

impl Opener {
    fn new() -> Self {
        let (own, its) = packets::pair().unwrap();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            Desk::default().serve(its);
        });
        Self { line: Some(Arc::new(Line::new(own))), thread: Some(thread) }
    }

    fn line(&self) -> &Arc<Line> {
        self.line.as_ref().unwrap()
    }

    fn place(&self, path: &Path, ports: bool) -> std::io::Result<Registered> {
        Registered::register(self.line(), path, ports)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.line().end();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_place_is_connected_to_when_somebody_listens_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let opener = Opener::new();
    let place = opener.place(&path, false).unwrap();
    assert_eq!(place.path(), path);
    assert_eq!(errno(place.connect(None)), libc::ENOENT);
    let listener = UnixListener::bind(&path).unwrap();
    let mut here = place.connect(None).unwrap();
    let (mut there, _) = listener.accept().unwrap();
    // It does not block.
    assert_eq!(here.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    there.write_all(b"x").unwrap();
    here.set_nonblocking(false).unwrap();
    assert_eq!(here.read(&mut [0]).unwrap(), 1);
    drop(listener);
    assert_eq!(errno(place.connect(None)), libc::ECONNREFUSED);
    // It has no ports.
    assert_eq!(errno(place.connect(Some(7))), libc::EINVAL);
}

#[test]
fn ports_are_beside_the_path_and_nothing_else_is_reached_by_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let _own = UnixListener::bind(&path).unwrap();
    let _port = UnixListener::bind(directory.path().join("vsock_5000")).unwrap();
    let opener = Opener::new();
    let ports = opener.place(&path, true).unwrap();
    ports.connect(Some(5000)).unwrap();
    assert_eq!(errno(ports.connect(Some(u32::MAX))), libc::ENOENT);
    assert_eq!(errno(ports.connect(None)), libc::EINVAL);
}

#[test]
fn a_directory_may_be_as_deep_as_it_likes_and_a_name_as_long_as_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let near = directory.path().join("socket");
    let _listener = UnixListener::bind(&near).unwrap();
    std::fs::rename(&near, deep.join("socket")).unwrap();
    let opener = Opener::new();
    opener.place(&deep.join("socket"), false).unwrap().connect(None).unwrap();
    let long = opener.place(&deep.join("s".repeat(LONGEST_NAME)), true).unwrap();
    assert_eq!(errno(long.connect(Some(1))), libc::ENAMETOOLONG);
    assert_eq!(errno(opener.place(&deep.join("s".repeat(LONGEST_NAME + 1)), true)), libc::EINVAL);
}

#[test]
fn what_is_no_directory_or_no_place_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let opener = Opener::new();
    assert_eq!(errno(opener.place(&directory.path().join("nowhere/socket"), false)), libc::ENOENT);
    assert_eq!(errno(opener.place(Path::new("/"), false)), libc::EINVAL);
    let request = Request::Place { name: b"socket".into(), ports: false };
    let file = File::open("/dev/null").unwrap();
    assert_eq!(errno(opener.line().ask(&request, Some(file.as_fd()))), libc::ENOTDIR);
    // Without a directory, and with one where there is nothing to do with it.
    let here = File::open(directory.path()).unwrap();
    assert_eq!(errno(opener.line().ask(&request, None)), libc::EINVAL);
    assert_eq!(errno(opener.line().ask(&Request::Seal, Some(here.as_fd()))), libc::EINVAL);
    let request = Request::Connect { place: 0, port: None };
    assert_eq!(errno(opener.line().ask(&request, None)), libc::EINVAL);
}

#[test]
fn once_sealed_there_are_no_more_places() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let opener = Opener::new();
    let place = opener.place(&path, false).unwrap();
    opener.line().ask(&Request::Seal, None).unwrap();
    assert_eq!(errno(opener.place(&path, false)), libc::EPERM);
    place.connect(None).unwrap();
}

#[test]
fn places_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let opener = Opener::new();
    let path = directory.path().join("socket");
    (0..MOST_PLACES).for_each(|_| drop(opener.place(&path, false).unwrap()));
    assert_eq!(errno(opener.place(&path, false)), libc::ENOSPC);
}

#[test]
fn who_waits_to_be_accepted_is_told_apart_from_who_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let opener = Opener::new();
    let place = opener.place(&path, false).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match place.connect(None) {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    let _ = listener.accept().unwrap();
    place.connect(None).unwrap();
}

#[test]
fn an_opener_that_is_gone_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let (own, its) = packets::pair().unwrap();
    let line = Arc::new(Line::new(own));
    drop(its);
    for _ in 0..2 {
        let error = Registered::register(&line, &directory.path().join("socket"), false).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
        assert_eq!(error.to_string(), "the process that connects to sockets (vmm-opener) is gone");
    }
}

#[test]
fn who_gets_no_answer_does_not_keep_the_next_one_waiting_and_late_answers_are_nobodys() {
    let (own, its) = packets::pair().unwrap();
    let line = Line::new(own);
    let ask = || line.ask(&Request::Connect { place: 3, port: None }, None);
    let answer = |turn, number: u32| {
        let packet = Answer { turn, result: Ok(number) }.packet();
        packets::send(&its, &packet, None, SendFlags::empty()).unwrap();
    };
    assert_eq!(ask().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    // Nothing is sent while an answer is owed.
    assert_eq!(ask().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    let mut buffer = [0; LONGEST_REQUEST];
    packets::receive(&its, &mut buffer, RecvFlags::DONTWAIT).unwrap();
    assert_eq!(packets::receive(&its, &mut buffer, RecvFlags::DONTWAIT).unwrap_err(), Errno::AGAIN);
    // The late answer, one that nobody has asked for, what is none, and the right one.
    answer(1, 10);
    answer(7, 11);
    packets::send(&its, b"nonsense", None, SendFlags::empty()).unwrap();
    answer(2, 12);
    assert_eq!(ask().unwrap().0, 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes over the socket is answered or left, and a place that there was is still one.
    #[test]
    fn any_bytes_are_refused_or_ignored(
        packets in prop::collection::vec((prop::collection::vec(0_u8..7, 1..20), any::<bool>()), 0..8)
    ) {
        let (own, its) = packets::pair().unwrap();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            Desk::default().serve(its);
        });
        let file = File::open("/dev/null").unwrap();
        for (packet, with_file) in &packets {
            let file = with_file.then(|| file.as_fd());
            packets::send(&own, packet, file, SendFlags::empty()).unwrap();
            let mut buffer = [0; 64];
            if let Some(turn) = packet.first_chunk() {
                let (length, enclosed) = packets::receive(&own, &mut buffer, RecvFlags::empty()).unwrap();
                let answer = Answer::read(&buffer[..length]).unwrap();
                prop_assert_eq!(answer.turn, u32::from_le_bytes(*turn));
                prop_assert!(matches!(enclosed, Enclosed::Nothing));
            }
        }
        drop(own);
        thread.join().unwrap();
    }
}
