//! A read that is parked in the kernel, with guest RAM as its buffer, while that RAM is unmapped: of an image that is a FIFO, by a
//! thread as a thread pool has it, and by io_uring with no thread in the kernel.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(unsafe_code, reason = "io_uring takes the buffer's address")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MemoryRegionAddress};
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Backing, Change, ChangeError, HostMemory, PinHolder, RamRange, RegionPin};

const RANGE: RamRange = RamRange { start: 0x10_0000, size: 0x10_0000 };
const BYTES: usize = 0x1000;

/// Names of the requests of a ring.
const READ: u64 = 1;
const CANCEL: u64 = 2;

/// RAM, and somebody who can pin it; whoever unmaps it is heard by the receiver.
fn world(limit: Duration) -> (AddressSpace, Arc<PinHolder>, Receiver<RamRange>) {
    let space = AddressSpace::new(Arc::new(FakeVm::default())).with_pin_limit(limit);
    space.map(&[RANGE], &Backing::default()).unwrap();
    let (sender, cancelled) = channel();
    let sender = Mutex::new(sender);
    // Heard as long as the test has not ended.
    let cancel = move |range| {
        let _ = sender.lock().unwrap().send(range);
    };
    (space, PinHolder::new("disk0", cancel), cancelled)
}

fn pin(space: &AddressSpace, holder: &Arc<PinHolder>) -> RegionPin {
    space.memory().find_region(GuestAddress(RANGE.start)).unwrap().pin(holder).unwrap()
}

/// An image of which nothing can be read until it is written to.
fn fifo() -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // Open for both, it waits for nobody to open its other end.
    File::options().read(true).write(true).open(path).unwrap()
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    ThreadPool,
    IoUring,
}

const ALL: [Means; 2] = [Means::ThreadPool, Means::IoUring];

/// A read into pinned RAM that the kernel has parked.
struct Parked {
    image: File,
    thread: JoinHandle<()>,
    /// Cancels it; only a ring can.
    cancel: Sender<()>,
}

impl Parked {
    fn new(means: Means, pin: RegionPin) -> Self {
        let image = fifo();
        let reader = image.try_clone().unwrap();
        let (cancel, cancelled) = channel();
        let (sender, parked) = channel();
        let thread = thread::spawn(move || match means {
            Means::ThreadPool => {
                let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
                sender.send(stat.split(' ').next().unwrap().to_owned()).unwrap();
                let mut reader = reader;
                pin.read_exact_volatile_from(MemoryRegionAddress(0), &mut reader, BYTES).unwrap();
            }
            Means::IoUring => {
                let ring = submit(&pin, &reader);
                sender.send(String::new()).unwrap();
                complete(ring, &cancelled);
                drop(pin);
            }
        });
        let id = parked.recv().unwrap();
        if means == Means::ThreadPool {
            let stat = format!("/proc/self/task/{id}/syscall");
            // The number of read(2) on x86-64.
            while !fs::read_to_string(&stat).unwrap().starts_with("0 ") {
                thread::yield_now();
            }
        }
        Self { image, thread, cancel }
    }

    /// Lets it come to its end.
    fn feed(&self) {
        (&self.image).write_all(&[0x5a; BYTES]).unwrap();
    }

    /// Nobody cancels it; when this returns its pin is gone.
    fn join(self) {
        drop(self.cancel);
        self.thread.join().unwrap();
    }
}

/// Has the kernel read: when this returns, it waits for the image, and no thread does.
fn submit(pin: &RegionPin, image: &File) -> IoUring {
    let mut ring = IoUring::new(4).unwrap();
    let length = u32::try_from(BYTES).unwrap();
    let read = opcode::Read::new(types::Fd(image.as_raw_fd()), pin.host_address(), length);
    // SAFETY:
    // - the buffer is pinned, and its pin is dropped only after `complete`, which sees the request's end;
    // - guest RAM is not referred to by anybody.
    unsafe { ring.submission().push(&read.build().user_data(READ)) }.unwrap();
    assert_eq!(ring.submit().unwrap(), 1);
    assert!(ring.completion().is_empty());
    ring
}

/// Waits until the read has ended: cancelled if `cancelled` says so, with all bytes if nobody can say so any more.
fn complete(mut ring: IoUring, cancelled: &Receiver<()>) {
    if cancelled.recv().is_err() {
        ring.submit_and_wait(1).unwrap();
        assert_eq!(results(&mut ring), [(READ, i32::try_from(BYTES).unwrap())]);
        return;
    }
    let cancel = opcode::AsyncCancel::new(READ).build().user_data(CANCEL);
    // SAFETY:
    // - the request has no buffer.
    unsafe { ring.submission().push(&cancel) }.unwrap();
    ring.submit_and_wait(2).unwrap();
    let mut results = results(&mut ring);
    results.sort_unstable();
    assert_eq!(results, [(READ, -libc::ECANCELED), (CANCEL, 0)]);
}

fn results(ring: &mut IoUring) -> Vec<(u64, i32)> {
    ring.completion().map(|entry| (entry.user_data(), entry.result())).collect()
}

fn is_mapped(host: usize) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        line.contains(" rw-p ") && (number(start)..number(end)).contains(&host)
    })
}

/// Takes host addresses, as the kernel gives them away again nearly always to the first that asks; to be looked at later.
fn reuse_addresses(space: &AddressSpace) {
    let others: Vec<_> = (0..16).map(|_| HostMemory::anonymous(RANGE.size).unwrap()).collect();
    let parts = others.into_iter().zip(1..).map(|(memory, place)| (place * RANGE.size, memory));
    space.place(parts.collect()).unwrap();
}

fn assert_untouched(space: &AddressSpace) {
    let table = space.memory();
    for region in table.iter() {
        let start = GuestAddress(region.range().start);
        let mut bytes = [0; BYTES];
        table.read_slice(&mut bytes, start).unwrap();
        assert_eq!(bytes, [0; BYTES], "{}", region.range());
    }
}

#[test]
fn a_read_that_does_not_end_keeps_its_ram_and_the_error_names_the_device() {
    for means in ALL {
        let (space, disk, cancelled) = world(Duration::from_millis(1));
        let read = Parked::new(means, pin(&space, &disk));
        let error = space.apply([Change::Unmap(RANGE)]).unwrap_err();
        assert!(matches!(&error, ChangeError::Pinned { holders, .. } if *holders == ["disk0"]), "{error}");
        assert_eq!(cancelled.try_recv(), Ok(RANGE));
        // The guest has it as before, and so has the device.
        assert_eq!(space.ranges(), [RANGE]);
        read.feed();
        read.join();
        assert_eq!(space.memory().read_obj::<u8>(GuestAddress(RANGE.start)).unwrap(), 0x5a, "{means:?}");
        space.apply([Change::Unmap(RANGE)]).unwrap();
    }
}

#[test]
fn a_read_that_ends_when_it_is_asked_to_has_written_before_its_ram_goes_and_never_elsewhere() {
    for means in ALL {
        let (space, disk, cancelled) = world(Duration::from_secs(600));
        let request = pin(&space, &disk);
        let host = request.host_address() as usize;
        let read = Parked::new(means, request);
        let device = thread::spawn(move || {
            cancelled.recv().unwrap();
            assert!(is_mapped(host));
            read.feed();
            read.join();
        });
        space.apply([Change::Unmap(RANGE)]).unwrap();
        reuse_addresses(&space);
        device.join().unwrap();
        assert_untouched(&space);
    }
}

#[test]
fn a_read_that_is_cancelled_lets_its_ram_go_and_writes_nowhere_when_its_data_come() {
    let (space, disk, cancelled) = world(Duration::from_secs(600));
    let request = pin(&space, &disk);
    let host = request.host_address() as usize;
    let read = Parked::new(Means::IoUring, request);
    let device = thread::spawn(move || {
        cancelled.recv().unwrap();
        assert!(is_mapped(host));
        read.cancel.send(()).unwrap();
        read
    });
    space.apply([Change::Unmap(RANGE)]).unwrap();
    reuse_addresses(&space);
    let read = device.join().unwrap();
    read.feed();
    read.join();
    assert_untouched(&space);
}

/// A pin keeps the memory even if everything else is gone.
#[test]
fn a_read_outlives_the_address_space() {
    for means in ALL {
        let (space, disk, _cancelled) = world(Duration::ZERO);
        let request = pin(&space, &disk);
        let host = request.host_address() as usize;
        let read = Parked::new(means, request);
        drop(space);
        assert!(is_mapped(host), "{means:?}");
        read.feed();
        read.join();
    }
}
