//! What is due when nothing happens: a hub whose clock the test sets.

use std::time::Instant;

use super::*;
use crate::virtio::vsock::host::Watch;
use crate::virtio::vsock::hub::{Hub, Parts};
use crate::virtio::vsock::table::MOST_GREETINGS;

/// A hub without queues and without a worker.
struct Bench {
    hub: Hub,
    watch: Arc<Watch>,
    path: PathBuf,
    start: Instant,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let watch = Arc::new(Watch::new().unwrap());
        let hub = Hub::new(Parts {
            cid: CID,
            streams: true,
            most: usize::MAX,
            ports: Arc::new(ByPath::new(&path)),
            listener,
            watch: Arc::clone(&watch),
            counters: Arc::default(),
        });
        Self { hub, watch, path, start: Instant::now(), _directory: directory }
    }

    fn at(&self, milliseconds: u64) -> Instant {
        self.start + Duration::from_millis(milliseconds)
    }

    fn client(&self, text: &str) -> UnixStream {
        let mut client = patient(UnixStream::connect(&self.path).unwrap());
        client.write_all(text.as_bytes()).unwrap();
        client
    }

    /// All that sockets have to say until they have nothing more to say.
    fn listen(&mut self, milliseconds: u64) {
        let now = self.at(milliseconds);
        for _ in 0..1000 {
            let news = self.watch.news().unwrap();
            if news.is_empty() {
                return;
            }
            news.into_iter().for_each(|news| self.hub.news(news, now));
        }
        panic!("sockets are told of again and again");
    }

    fn packet(&mut self, milliseconds: u64) -> Option<(Op, u32, u32)> {
        let now = self.at(milliseconds);
        let mut data = [0; 100];
        while self.hub.has_packets() {
            if let Some((header, _)) = self.hub.next_packet(&mut data, now) {
                return Some((Op::of(header.op).unwrap(), header.src_port, header.dst_port));
            }
        }
        None
    }

    fn receive(&mut self, header: &Header, milliseconds: u64) {
        let now = self.at(milliseconds);
        self.hub.receive(header, 0, now);
    }
}

#[test]
fn fault_c11_a_program_that_does_not_say_what_it_wants_is_sent_away_in_time() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..MOST_GREETINGS).map(|_| bench.client("CONN")).collect();
    bench.listen(0);
    let _late = bench.client("CONNECT 5\n");
    bench.listen(100);
    assert_eq!(bench.hub.deadline(), Some(bench.at(5000)));
    bench.hub.pass_time(bench.at(4999));
    assert_eq!(bench.packet(4999), None);
    bench.hub.pass_time(bench.at(5000));
    clients.iter_mut().for_each(|client| assert_eq!(rest(client), b""));
    // Then there is a place for the next one.
    bench.listen(5000);
    assert!(matches!(bench.packet(5000), Some((Op::Request, _, 5))));
}

#[test]
fn a_guest_that_does_not_answer_is_told_to_forget_it() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONNECT 5\n");
    bench.listen(0);
    let Some((Op::Request, port, 5)) = bench.packet(0) else { panic!() };
    bench.hub.pass_time(bench.at(9_999));
    assert_eq!(bench.packet(9_999), None);
    bench.hub.pass_time(bench.at(10_000));
    assert_eq!(bench.packet(10_000), Some((Op::Rst, port, 5)));
    assert_eq!(rest(&mut client), b"");
    assert_eq!(bench.hub.deadline(), None);
}

#[test]
fn a_program_that_goes_before_the_guest_has_answered_is_forgotten() {
    let mut bench = Bench::new();
    let client = bench.client("CONNECT 5\n");
    bench.listen(0);
    let Some((Op::Request, port, 5)) = bench.packet(0) else { panic!() };
    drop(client);
    bench.listen(1);
    assert_eq!(bench.packet(1), Some((Op::Rst, port, 5)));
}

#[test]
fn a_guest_that_does_not_complete_an_end_is_reset_in_time() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONNECT 5\n");
    bench.listen(0);
    let Some((Op::Request, port, 5)) = bench.packet(0) else { panic!() };
    let stream = Stream::new(5, port);
    bench.receive(&stream.header(Op::Response), 0);
    assert_eq!((bench.packet(0), bench.hub.deadline()), (None, None));
    // What it leaves unread would be an error.
    client.read_exact(&mut [0; 14]).unwrap();
    drop(client);
    bench.listen(100);
    assert_eq!(bench.packet(200), Some((Op::Shutdown, port, 5)));
    assert_eq!(bench.hub.deadline(), Some(bench.at(10_200)));
    bench.hub.pass_time(bench.at(10_200));
    assert_eq!(bench.packet(10_200), Some((Op::Rst, port, 5)));
    assert_eq!(bench.hub.deadline(), None);
}

#[test]
fn a_host_without_a_place_is_tried_again_until_the_guest_has_given_up() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;

    let mut bench = Bench::new();
    let path = format!("{}_80", bench.path.display());
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let listener = UnixListener::from(listener);
    // As many as there is place for.
    let first = UnixStream::connect(&path).unwrap();
    let second = UnixStream::connect(&path).unwrap();
    bench.receive(&Stream::new(1, 80).header(Op::Request), 0);
    bench.receive(&Stream::new(2, 80).header(Op::Request), 0);
    assert_eq!((bench.packet(0), bench.hub.deadline()), (None, Some(bench.at(10))));
    bench.hub.pass_time(bench.at(10));
    assert_eq!((bench.packet(10), bench.hub.deadline()), (None, Some(bench.at(20))));
    drop((listener.accept().unwrap(), first));
    bench.hub.pass_time(bench.at(20));
    assert_eq!(bench.packet(20), Some((Op::Response, 80, 1)));
    assert_eq!(bench.packet(20), None);
    bench.hub.pass_time(bench.at(2000));
    assert_eq!(bench.packet(2000), Some((Op::Rst, 80, 2)));
    assert_eq!(bench.hub.deadline(), None);
    drop((listener, second));
}

#[test]
fn fault_b13_data_that_nobody_has_room_for_is_told_of_once() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONNECT 5\n");
    bench.listen(0);
    let Some((Op::Request, port, 5)) = bench.packet(0) else { panic!() };
    let stream = Stream { room: 0, ..Stream::new(5, port) };
    bench.receive(&stream.header(Op::Response), 0);
    assert_eq!(bench.packet(0), Some((Op::CreditRequest, port, 5)));
    for round in 0..10 {
        client.write_all(b"more").unwrap();
        // It ends.
        bench.listen(round);
        assert_eq!(bench.packet(round), None);
    }
    // Neither does an end make it again and again.
    drop(client);
    bench.listen(20);
    assert_eq!((bench.packet(20), bench.hub.deadline()), (None, None));
}
