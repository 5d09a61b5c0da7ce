//! Network devices with several pairs of queues.

use virtio_bindings::virtio_net::*;

use super::peer::{GET_QUEUE_NUM, MQ, SET_VRING_ENABLE, reply};
use super::*;
use crate::virtio::vhost_user::VhostUserError;

const TWO: Class = Class::Net { mac: [2, 0, 0, 0, 0, 1], mtu: None, pairs: 2 };
const SEVERAL: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
const OK: u8 = VIRTIO_NET_OK as u8;
const ERR: u8 = VIRTIO_NET_ERR as u8;

/// A device of two pairs, and the driver of its queues, of which the last one is the control queue.
struct Pairs {
    bench: Bench,
    queues: Vec<Driver>,
}

impl Pairs {
    /// With so many queues.
    fn new(count: usize) -> (Self, Peer) {
        Self::beside(count, Has { queues: 2, ..Has::default() })
    }

    /// The same beside a back end that has this.
    fn beside(count: usize, has: Has) -> (Self, Peer) {
        let (bench, peer) = Bench::new(TWO, has);
        let mut pairs = Self { bench, queues: Vec::new() };
        pairs.begin(count);
        (pairs, peer)
    }

    /// Another driver, with so many queues.
    fn begin(&mut self, count: usize) {
        let place = |index: usize| RINGS + 4 * RINGS * index as u64;
        let queue = |index| Driver::new(&self.bench.memory, index, SIZE, place(index)).starting_at(0);
        self.queues = (0..count).map(queue).collect();
    }

    fn start(&self, features: u64) -> Started {
        let queues: Vec<_> = self.queues.iter().collect();
        let features = features | features::VERSION_1;
        Started::new(&self.bench.device, &self.bench.memory, &queues, features).unwrap()
    }

    /// What the device answers to a command.
    fn command(&mut self, started: &Started, [class, command]: [u32; 2], data: &[u8]) -> u8 {
        let queue = self.queues.last_mut().unwrap();
        let request = queue.submit(&[&[class as u8, command as u8], data], &[1]);
        started.doorbells.last().unwrap().ring();
        assert_eq!(started.wait_used(queue, 1)[0].written, 1);
        queue.read(request.writable[0].0, 1)[0]
    }

    fn use_pairs(&mut self, started: &Started, pairs: u16) -> u8 {
        let command = [VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET];
        self.command(started, command, &pairs.to_le_bytes())
    }
}

/// Which rings were enabled or not by the last four messages of `count`.
fn enabled(peer: &Peer, count: usize) -> Vec<(u32, u32)> {
    let word = |payload: &[u8], at| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
    let told = peer.wait_for(SET_VRING_ENABLE, count);
    assert_eq!(told.len(), count);
    told[count - 4..].iter().map(|payload| (word(payload, 0), word(payload, 4))).collect()
}

#[test]
fn a_back_end_serves_the_pairs_that_the_driver_uses() {
    let (mut pairs, peer) = Pairs::new(5);
    assert_eq!(pairs.bench.device.features() & SEVERAL, SEVERAL);
    assert_eq!(pairs.bench.device.queue_sizes(), [256; 5]);
    assert_eq!(pairs.bench.config(8, 2), [2, 0]);
    let started = pairs.start(SEVERAL);
    let (one, both) = ([(0, 1), (1, 1), (2, 0), (3, 0)], [(0, 1), (1, 1), (2, 1), (3, 1)]);
    assert_eq!(enabled(&peer, 4), one);
    assert_eq!(pairs.use_pairs(&started, 2), OK);
    assert_eq!(enabled(&peer, 8), both);
    for count in [0, 3, u16::MAX] {
        assert_eq!(pairs.use_pairs(&started, count), ERR, "{count}");
    }
    assert_eq!(pairs.command(&started, [VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0], &[0; 8]), ERR);
    assert_eq!(pairs.use_pairs(&started, 1), OK);
    assert_eq!(enabled(&peer, 12), one);
    assert_eq!(pairs.use_pairs(&started, 2), OK);
    // Memory that comes does not change it: this back end is told of it while it runs.
    let more = RamRange { start: 0x100_0000, size: 0x10_0000 };
    pairs.bench.memory.map(&[more], &Backing::new(BackingKind::Memfd)).unwrap();
    assert_eq!(enabled(&peer, 16), both);
    assert_eq!(started.stop().len(), 5);
    // The next driver begins with one.
    pairs.begin(5);
    assert_eq!(enabled(&peer, 20), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    let started = pairs.start(SEVERAL);
    assert_eq!(enabled(&peer, 24), one);
    drop(started);
}

#[test]
fn pairs_stay_enabled_where_a_back_end_rests_because_of_memory() {
    let protocol = Has::default().protocol & !peer::SLOTS;
    let (mut pairs, peer) = Pairs::beside(5, Has { queues: 2, protocol, ..Has::default() });
    let started = pairs.start(SEVERAL);
    assert_eq!(pairs.use_pairs(&started, 2), OK);
    let more = RamRange { start: 0x100_0000, size: 0x10_0000 };
    pairs.bench.memory.map(&[more], &Backing::new(BackingKind::Memfd)).unwrap();
    // None in between, and then as before.
    assert_eq!(enabled(&peer, 16), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    drop(started);
}

#[test]
fn a_driver_without_several_pairs_has_the_control_queue_behind_the_first() {
    let (mut pairs, peer) = Pairs::new(3);
    let started = pairs.start(1 << VIRTIO_NET_F_CTRL_VQ);
    assert_eq!(pairs.use_pairs(&started, 1), ERR);
    let rings = |told: Vec<Vec<u8>>| told.iter().map(|payload| payload[0]).collect::<Vec<_>>();
    assert_eq!(rings(peer.wait_for(SET_VRING_KICK, 2)), [0, 1]);
    assert_eq!(rings(peer.wait_for(SET_VRING_ENABLE, 2)), [0, 1]);
    assert_eq!(started.stop().len(), 3);
}

#[test]
fn without_a_back_end_both_pairs_drop_what_is_sent_and_commands_are_answered() {
    let (mut pairs, peer) = Pairs::new(5);
    let started = pairs.start(SEVERAL);
    assert_eq!(pairs.use_pairs(&started, 2), OK);
    peer.die();
    wait_for_needs_reset(&started);
    for index in [1, 3] {
        pairs.queues[index].submit(&[&[0; 60]], &[]);
        pairs.queues[index - 1].submit(&[], &[100]);
        started.doorbells[index].ring();
        started.doorbells[index - 1].ring();
        started.wait_used(&mut pairs.queues[index], 1);
    }
    assert_eq!(pairs.use_pairs(&started, 1), OK);
    assert!([0, 2].into_iter().all(|index| pairs.queues[index].take_used().is_none()));
    assert_eq!(started.stop().len(), 5);
}

fn opened(
    has: Has,
    idea: impl FnMut(&Message) -> Answer + Send + 'static,
) -> Result<VhostUser, VhostUserError> {
    let (socket, _peer) = Peer::pair(has, idea);
    VhostUser::over(Arc::new(ByPath::new("/nowhere")), TWO, Connection::over(socket, TWO.wanted())?)
}

#[test]
fn a_back_end_tells_how_many_pairs_it_has() {
    let with = |queues, protocol| opened(Has { queues, protocol, ..Has::default() }, |_| Answer::AsUsual);
    let protocol = Has::default().protocol;
    for pairs in [2, 3, u64::MAX] {
        assert_eq!(with(pairs, protocol).unwrap().queues(), 4, "{pairs}");
    }
    // One that cannot tell has one.
    for (pairs, protocol) in [(1, protocol), (2, protocol & !MQ)] {
        let error = with(pairs, protocol).unwrap_err().to_string();
        assert!(error.starts_with("the back end serves 2 queues, not 4"), "{error}");
    }
}

#[test]
fn a_wrong_number_of_pairs_ends_the_connection() {
    let answers: [fn() -> Answer; 6] = [
        // To another request, too short, too long, no reply, half of one, none.
        || Answer::Reply(99, vec![0; 8]),
        || Answer::Reply(GET_QUEUE_NUM, vec![2; 4]),
        || Answer::Reply(GET_QUEUE_NUM, vec![2; 12]),
        || Answer::Bytes([GET_QUEUE_NUM, 1, 8, 2, 0].map(u32::to_le_bytes).concat()),
        || Answer::Close(reply(GET_QUEUE_NUM, &[2; 8])[..15].to_vec()),
        || Answer::Close(Vec::new()),
    ];
    for (which, answer) in answers.into_iter().enumerate() {
        let idea = move |message: &Message| {
            if message.request == GET_QUEUE_NUM { answer() } else { Answer::AsUsual }
        };
        let error = opened(Has::default(), idea).unwrap_err();
        assert!(
            matches!(error, VhostUserError::Broken { .. } | VhostUserError::Closed),
            "answer {which}: {error}"
        );
    }
}
