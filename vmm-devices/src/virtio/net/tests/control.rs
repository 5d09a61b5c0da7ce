//! The control queue, and the configuration.

use super::*;

const SEVERAL: u64 = bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ);
const OK: u8 = VIRTIO_NET_OK as u8;
const ERR: u8 = VIRTIO_NET_ERR as u8;

/// A device with queues of two pairs, of which the control queue is driven too.
struct Control {
    memory: Arc<AddressSpace>,
    net: Net,
    link: Arc<Sockets>,
    hosts: Vec<File>,
    queues: Vec<Driver>,
}

impl Control {
    /// With the control queue at `index`.
    fn new(index: usize) -> Self {
        let (link, hosts) = Sockets::new(2);
        let memory = ram();
        let net = Net::new(Arc::clone(&link) as _, options(), &VmEvents::new().unwrap()).unwrap();
        let queue = |index: usize| Driver::new(&memory, index, SIZE, 0x1_0000 + 0x4_0000 * index as u64);
        let queues = vec![queue(0), queue(1), queue(2), queue(3), queue(index)];
        let queues = if index == 2 { queues.into_iter().take(3).collect() } else { queues };
        Self { net, link, hosts, queues, memory }
    }

    fn start(&self, features: u64) -> Started {
        let queues: Vec<_> = self.queues.iter().collect();
        Started::new(&self.net, &self.memory, &queues, features).unwrap()
    }

    /// What the device answers to a command.
    fn command(&mut self, started: &Started, class: u32, command: u32, data: &[u8]) -> u8 {
        let head = [class as u8, command as u8];
        let queue = self.queues.last_mut().unwrap();
        let request = queue.submit(&[&head, data], &[1]);
        started.doorbells.last().unwrap().ring();
        assert_eq!(started.wait_used(queue, 1)[0].written, 1);
        queue.read(request.writable[0].0, 1)[0]
    }

    fn use_pairs(&mut self, started: &Started, pairs: u16) -> u8 {
        let data = pairs.to_le_bytes();
        self.command(started, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &data)
    }
}

#[test]
fn frames_come_to_the_pairs_that_the_driver_uses() {
    let mut control = Control::new(4);
    let started = control.start(SEVERAL);
    assert_eq!(control.use_pairs(&started, 1), OK);
    let request = control.queues[2].submit(&[], &[2000]);
    started.doorbells[2].ring();
    control.hosts[1].write_all(&frame(b"second")).unwrap();
    for pairs in [0, 3, u16::MAX] {
        assert_eq!(control.use_pairs(&started, pairs), ERR);
    }
    assert_eq!(control.queues[2].used_index(), 0);
    assert_eq!(control.use_pairs(&started, 2), OK);
    let used = started.wait_used(&mut control.queues[2], 1);
    assert_eq!(control.queues[2].read(request.writable[0].0, 32), in_buffers(frame(b"second"), 1));
    assert_eq!((used[0].written, lock(&control.link.used).clone()), (32, vec![1, 1, 2]));
    let transmit = control.queues[3].submit(&[&frame(b"out")], &[]).head.into();
    started.doorbells[3].ring();
    assert_eq!(started.wait_used(&mut control.queues[3], 1), [Used { head: transmit, written: 0 }]);
    let mut bytes = [0; 100];
    assert_eq!(control.hosts[1].read(&mut bytes).unwrap(), frame(b"out").len());
    assert_eq!(control.net.counts().refused_commands, 3);
}

#[test]
fn without_several_pairs_the_control_queue_is_behind_the_first() {
    let mut control = Control::new(2);
    let features = bit(VIRTIO_NET_F_CTRL_VQ)
        | bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
        | bit(VIRTIO_NET_F_GUEST_CSUM)
        | bit(VIRTIO_NET_F_GUEST_TSO4);
    let started = control.start(features);
    assert_eq!(control.use_pairs(&started, 2), ERR);
    let set = |control: &mut Control, bits: u64| {
        let (class, command) = (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET);
        control.command(&started, class, command, &bits.to_le_bytes())
    };
    let checksum = bit(VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(set(&mut control, checksum), OK);
    assert_eq!(set(&mut control, 0), OK);
    // It was not negotiated, and is none.
    assert_eq!(set(&mut control, checksum | bit(VIRTIO_NET_F_GUEST_TSO6)), ERR);
    assert_eq!(set(&mut control, checksum | 1), ERR);
    let some = Offloads { checksum: true, ..Offloads::default() };
    let expected = [Offloads { tso4: true, ..some }, some, Offloads::default()];
    assert_eq!(*lock(&control.link.left), expected);
}

#[test]
fn fault_a6_commands_that_are_none_are_refused_and_answered_where_there_is_room() {
    let mut control = Control::new(4);
    let started = control.start(SEVERAL);
    for (class, command, data) in [
        (VIRTIO_NET_CTRL_MQ, 1, &[1, 0][..]),
        (VIRTIO_NET_CTRL_MQ, 0, &[1]),
        (VIRTIO_NET_CTRL_MQ, 0, &[1, 0, 0]),
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &[0; 8]),
        (0, 0, &[1]),
        (255, 255, &[]),
    ] {
        assert_eq!(control.command(&started, class, command, data), ERR, "{class} {command}");
    }
    for (readable, writable, written) in [
        (&[][..], &[1][..], 1),
        (&[&[4_u8][..]], &[1], 1),
        (&[&[4, 0, 1, 0]], &[], 0),
        (&[&[4, 0, 1, 0]], &[9], 1),
    ] {
        let queue = control.queues.last_mut().unwrap();
        let head = queue.submit(readable, writable).head.into();
        started.doorbells[4].ring();
        assert_eq!(started.wait_used(queue, 1), [Used { head, written }]);
    }
    assert!(!started.needs_reset());
}

#[test]
fn the_configuration_says_address_link_pairs_and_mtu() {
    let control = Control::new(4);
    let mut config = [0; 20];
    control.net.read_config(0, &mut config);
    let expected = [2, 1, 2, 3, 4, 5, 1, 0, 2, 0, 0xdc, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(config, expected);
    control.net.write_config(0, &[9; 12]);
    control.net.read_config(0, &mut config);
    assert_eq!((config, control.net.device_type()), (expected, 1));
    assert_eq!(control.net.queue_sizes(), [256; 5]);
}

#[test]
fn features_follow_the_link_and_the_options() {
    let control = Control::new(4);
    let features = control.net.features();
    for feature in [VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO6] {
        assert_ne!(features & bit(feature), 0, "{feature}");
    }
    assert_eq!(features & bit(VIRTIO_NET_F_HOST_USO), 0);
    let (link, _hosts) = Sockets::new(1);
    let one = NetOptions { mtu: None, ..options() };
    let features = Net::new(link, one, &VmEvents::new().unwrap()).unwrap().features();
    assert_eq!(features & (bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_MTU)), 0);
}
