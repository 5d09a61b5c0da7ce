//! The socket device with a driver that breaks its rings and its packets, and with programs of the host that come, write and go.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use libfuzzer_sys::fuzz_target;
use vmm_core::VmEvents;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::testing::{Driver, Request, Started};
use vmm_devices::virtio::vsock::{Vsock, VsockOptions};
use vmm_devices::{ByPath, Worker};

mod rings;
use rings::{Input, Subject};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The guest's address, and the host's.
const GUEST: u64 = 3;
const HOST: u64 = 2;
/// Where something of the host listens.
const PORT: u32 = 1000;
/// Bytes of a header (virtio 1.3, section 5.10.6), and operations in it.
const HEADER: usize = 44;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const RW: u16 = 5;
/// Most of the host's programs at a time.
const PROGRAMS: usize = 8;
/// Packets among which an answer has to be: those of the host's programs that came before are few.
const PACKETS: usize = 64;

struct Sockets {
    device: Vsock,
    path: PathBuf,
    listener: UnixListener,
    programs: Mutex<Vec<UnixStream>>,
}

static DEVICE: LazyLock<Sockets> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("vmm-fuzz-vsock-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join("socket");
    let own = UnixListener::bind(&path).expect("a socket");
    let listener = UnixListener::bind(directory.join(format!("socket_{PORT}"))).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let worker =
        Worker::spawn(&vmm_devices::calls::VIRTIO, VmEvents::new().expect("a descriptor")).expect("a thread");
    let ports = Arc::new(ByPath::new(&path));
    let options = VsockOptions { cid: GUEST as u32, listener: own, ports, connections: 64 };
    let device = Vsock::new(Arc::new(worker), options).expect("a device");
    Sockets { device, path, listener, programs: Mutex::default() }
});

/// A packet, with `data` behind its header.
fn packet(destination: (u64, u32), source: (u64, u32), op: u16, rest: [u32; 4], data: &[u8]) -> Vec<u8> {
    let [length, flags, room, taken] = rest;
    let mut packet = Vec::with_capacity(HEADER + data.len());
    packet.extend(source.0.to_le_bytes());
    packet.extend(destination.0.to_le_bytes());
    packet.extend(source.1.to_le_bytes());
    packet.extend(destination.1.to_le_bytes());
    packet.extend(length.to_le_bytes());
    packet.extend(1_u16.to_le_bytes());
    packet.extend(op.to_le_bytes());
    packet.extend(flags.to_le_bytes());
    packet.extend(room.to_le_bytes());
    packet.extend(taken.to_le_bytes());
    packet.extend(data);
    packet
}

impl Sockets {
    fn programs(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.programs.lock().expect("no panic")
    }

    /// Takes a program in, in whose place another one may go.
    fn admit(&self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket");
        let mut programs = self.programs();
        if programs.len() == PROGRAMS {
            programs.remove(0);
        }
        programs.push(stream);
    }

    fn accept(&self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.admit(stream);
        }
    }

    /// The host's programs do something.
    fn disturb(&self, input: &mut Input<'_>) {
        let what = input.byte();
        self.accept();
        match what % 4 {
            // Nobody is listening for a moment where the device is between two drivers.
            0 => {
                if let Ok(mut stream) = UnixStream::connect(&self.path) {
                    let line = format!("CONNECT {}\n", input.byte() % 4);
                    // Said in part, said wrongly, or not at all.
                    let said = usize::from(what >> 2) % (line.len() + 1);
                    let _ = stream.write(&line.as_bytes()[..said]);
                    self.admit(stream);
                }
            }
            1 => {
                let data = vec![what; usize::from(input.word() % 4096)];
                self.programs().iter_mut().for_each(|program| drop(program.write(&data)));
            }
            2 => {
                let mut data = [0; 4096];
                self.programs().iter_mut().for_each(|program| drop(program.read(&mut data)));
            }
            _ => drop(self.programs().pop()),
        }
    }
}

impl Subject for Sockets {
    const QUEUES: usize = 3;

    fn request(driver: &mut Driver, queue: usize, input: &mut Input<'_>) -> Request {
        DEVICE.disturb(input);
        let length = input.word() % 2048;
        if queue != TRANSMIT {
            return driver.submit(&[], &[u32::from(input.byte() % 64), length.into()]);
        }
        let odd = input.byte();
        let data = vec![odd; usize::from(length)];
        let cid = |bit: u8, right: u64| if odd & bit == 0 { right } else { u64::from(odd) };
        let claimed = if odd & 4 == 0 { length.into() } else { u32::from(input.word()) << (odd % 16) };
        let room = u32::from(input.word()) << (odd % 17);
        let taken = if odd & 8 == 0 { u32::from(input.byte()) } else { u32::MAX - u32::from(input.byte()) };
        let to = (cid(1, HOST), PORT + u32::from(input.byte() % 3));
        let from = (cid(2, GUEST), u32::from(input.byte() % 4));
        let op = u16::from(input.byte() % 9);
        let packet = packet(to, from, op, [claimed, u32::from(input.byte() % 5), room, taken], &data);
        // The header in one buffer or in two.
        let (first, rest) = packet.split_at(if odd & 16 == 0 { HEADER } else { 20 });
        driver.submit(&[first, rest], &[])
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        self.accept();
        self.programs().clear();
        let (host, guest) = ((HOST, PORT), (GUEST, 77));
        let send = |drivers: &mut [Driver], op, data: &[u8]| {
            let length = data.len() as u32;
            let driver = &mut drivers[TRANSMIT];
            driver.submit(&[&packet(host, guest, op, [length, 0, 1 << 16, 0], data)], &[]);
            started.doorbells[TRANSMIT].ring();
            started.wait_used(driver, 1);
        };
        send(drivers, REQUEST, &[]);
        let answered = (0..PACKETS).any(|_| {
            let driver = &mut drivers[RECEIVE];
            let lent = driver.submit(&[], &[4096]);
            started.doorbells[RECEIVE].ring();
            started.wait_used(driver, 1);
            let header = driver.read(lent.writable[0].0, HEADER);
            header[20..24] == guest.1.to_le_bytes() && header[30..32] == RESPONSE.to_le_bytes()
        });
        assert!(answered, "a connection is not accepted");
        send(drivers, RW, b"the bytes of a guest");
        self.accept();
        let heard = self.programs().iter_mut().any(|program| {
            let mut data = [0; 64];
            // One that has nothing to read, or has ended, is another one.
            program.read(&mut data).is_ok_and(|length| data[..length] == *b"the bytes of a guest")
        });
        assert!(heard, "nobody has heard the guest");
        send(drivers, RST, &[]);
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.device
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
