//! The network device with a driver that breaks its rings, and a host that sends all the time.

#![no_main]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vmm_core::VmEvents;
use vmm_devices::rate_limiter::Limits;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::net::{Link, LinkQueue, Net, NetOptions, Offloads, Throttle};
use vmm_devices::virtio::testing::{Driver, Request, Started};

mod rings;
use rings::{Input, Subject};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Bytes before a frame.
const HEADER: usize = 12;

/// A socket in the place of an interface.
struct Socket(Vec<Arc<LinkQueue>>);

impl Link for Socket {
    fn queues(&self) -> &[Arc<LinkQueue>] {
        &self.0
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true }
    }

    fn leave(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn use_pairs(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

struct Network {
    device: Net,
    host: UnixDatagram,
}

static DEVICE: LazyLock<Network> = LazyLock::new(|| {
    let (own, host) = UnixDatagram::pair().expect("sockets");
    [&own, &host].iter().for_each(|end| end.set_nonblocking(true).expect("a socket"));
    let link = Arc::new(Socket(vec![Arc::new(LinkQueue::new(OwnedFd::from(own)))]));
    let throttle = || Throttle::new(Limits::default());
    let options = NetOptions {
        name: "fuzz".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1500),
        receive: throttle(),
        transmit: throttle(),
    };
    let device = Net::new(link, options, &VmEvents::new().expect("a descriptor")).expect("a device");
    Network { device, host }
});

impl Network {
    /// Takes what the guest has sent.
    fn drain(&self) -> Vec<u8> {
        let (mut last, mut frame) = (Vec::new(), vec![0; 1 << 17]);
        while let Ok(length) = self.host.recv(&mut frame) {
            last = frame[..length].to_vec();
        }
        last
    }
}

impl Subject for Network {
    const QUEUES: usize = 3;

    fn request(driver: &mut Driver, queue: usize, input: &mut Input<'_>) -> Request {
        let length = input.word() % 2048;
        match queue {
            RECEIVE => {
                // An empty one is the end of a socket, and none that an interface has.
                let frame = vec![input.byte(); 1 + usize::from(input.word() % 4096)];
                // A socket that is full is a host whose queue is.
                let _ = DEVICE.host.send(&frame);
                driver.submit(&[], &[(input.byte() % 32).into(), length.into()])
            }
            TRANSMIT => {
                DEVICE.drain();
                driver.submit(&[&vec![input.byte(); usize::from(length)]], &[])
            }
            _ => {
                let data: Vec<u8> = (0..length % 12).map(|_| input.byte()).collect();
                driver.submit(&[&[input.byte() % 6, input.byte() % 2], &data], &[1])
            }
        }
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        self.drain();
        started.doorbells[RECEIVE].ring();
        let sent = [&[0; HEADER][..], b"the frame of a guest"].concat();
        // Those that were left over are thrown away before the second one is sent.
        for _ in 0..2 {
            drivers[TRANSMIT].submit(&[&sent], &[]);
            started.doorbells[TRANSMIT].ring();
            started.wait_used(&mut drivers[TRANSMIT], 1);
        }
        assert_eq!(self.drain(), sent);
        drivers[RECEIVE].submit(&[], &[100]);
        started.doorbells[RECEIVE].ring();
        self.host.send(&sent).expect("room in the socket");
        assert_eq!(started.wait_used(&mut drivers[RECEIVE], 1)[0].written as usize, sent.len());
        drivers[2].submit(&[&[5, 0], &[0; 8]], &[1]);
        started.doorbells[2].ring();
        assert_eq!(started.wait_used(&mut drivers[2], 1)[0].written, 1);
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.device
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
