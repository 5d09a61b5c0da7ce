//! The disk with a driver that breaks its ring, with requests of every type, in order and not.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vmm_core::VmEvents;
use vmm_devices::rate_limiter::Limits;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::block::{Backend, Block, BlockOptions, EngineChoice, Image, ImageOptions, Throttle};
use vmm_devices::virtio::testing::{Driver, Request, Started};

mod rings;
use rings::{Input, Subject};

const SECTOR: u64 = 512;
const SECTORS: u64 = 64;
/// `VIRTIO_BLK_T_IN`, and the types of the other requests.
const READ: u32 = 0;
const TYPES: [u32; 7] = [READ, 1, 4, 8, 11, 13, 0xffff_ffff];

struct Disk {
    device: Block,
    file: File,
}

static DEVICE: LazyLock<Disk> = LazyLock::new(|| {
    let path: PathBuf = std::env::temp_dir().join(format!("virtio-block-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("the image");
    file.set_len(SECTORS * SECTOR).expect("the image");
    let image = Image::open(&path, ImageOptions::default()).expect("the image");
    std::fs::remove_file(path).expect("the image");
    let options = BlockOptions {
        name: "fuzz".into(),
        read_only: false,
        queues: 1,
        engine: EngineChoice::Threads,
        throttle: Throttle::new(Limits::default()),
    };
    let events = VmEvents::new().expect("a descriptor");
    let device = Block::new(Backend::Raw(Arc::new(image)), options, events).expect("a disk");
    Disk { device, file }
});

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

impl Subject for Disk {
    const QUEUES: usize = 1;

    fn request(driver: &mut Driver, _: usize, input: &mut Input<'_>) -> Request {
        let kind = TYPES[usize::from(input.byte()) % TYPES.len()];
        let sector = if input.byte() % 8 == 0 { input.long() } else { u64::from(input.byte()) % SECTORS };
        let header = header(kind, sector);
        let length = if input.byte() % 8 == 0 { input.word() % 2048 } else { 512 * (input.word() % 4) };
        if kind == READ {
            return driver.submit(&[&header], &[length.into(), 1]);
        }
        // A segment to discard or to zero, or data to write.
        let mut data = vec![input.byte(); usize::from(length)];
        for (at, byte) in data.iter_mut().enumerate().take(16) {
            *byte = if at < 2 || at == 8 { input.byte() % 64 } else { 0 };
        }
        driver.submit(&[&header, &data], &[1])
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        assert_eq!(self.file.metadata().expect("the image").len(), SECTORS * SECTOR, "the image has grown");
        self.file.write_all_at(b"served", 3 * SECTOR).expect("the image");
        let request = drivers[0].submit(&[&header(READ, 3)], &[512, 1]);
        started.doorbells[0].ring();
        let used = started.wait_used(&mut drivers[0], 1);
        assert_eq!((used[0].head, used[0].written), (request.head.into(), 513));
        assert_eq!(drivers[0].read(request.writable[1].0, 1), [0]);
        assert_eq!(drivers[0].read(request.writable[0].0, 6), b"served");
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.device
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
