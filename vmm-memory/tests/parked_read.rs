//! A read that is parked in the kernel, with guest RAM as its buffer, while that RAM is unmapped.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MemoryRegionAddress};
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Backing, Change, ChangeError, HostMemory, PinHolder, RamRange, RegionPin};

const RANGE: RamRange = RamRange { start: 0x10_0000, size: 0x10_0000 };
const BYTES: usize = 0x1000;

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

/// Reads into pinned RAM what the other end of a pipe writes; returns when the kernel has parked it.
fn park(pin: RegionPin) -> (impl Write, JoinHandle<()>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut reader = File::from(OwnedFd::from(reader));
    let (sender, thread_id) = channel();
    let thread = thread::spawn(move || {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        sender.send(stat.split(' ').next().unwrap().to_owned()).unwrap();
        pin.read_exact_volatile_from(MemoryRegionAddress(0), &mut reader, BYTES).unwrap();
    });
    let stat = format!("/proc/self/task/{}/syscall", thread_id.recv().unwrap());
    // The number of read(2) on x86-64.
    while !fs::read_to_string(&stat).unwrap().starts_with("0 ") {
        thread::yield_now();
    }
    (writer, thread)
}

fn is_mapped(host: usize) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        line.contains(" rw-p ") && (number(start)..number(end)).contains(&host)
    })
}

#[test]
fn a_read_that_does_not_end_keeps_its_ram_and_the_error_names_the_device() {
    let (space, disk, cancelled) = world(Duration::from_millis(1));
    let (mut writer, read) = park(pin(&space, &disk));
    let error = space.apply([Change::Unmap(RANGE)]).unwrap_err();
    assert!(matches!(&error, ChangeError::Pinned { holders, .. } if *holders == ["disk0"]), "{error}");
    assert_eq!(cancelled.try_recv(), Ok(RANGE));
    // The guest has it as before, and so has the device.
    assert_eq!(space.ranges(), [RANGE]);
    writer.write_all(&[0x5a; BYTES]).unwrap();
    read.join().unwrap();
    assert_eq!(space.memory().read_obj::<u8>(GuestAddress(RANGE.start)).unwrap(), 0x5a);
    space.apply([Change::Unmap(RANGE)]).unwrap();
}

#[test]
fn a_read_that_ends_when_it_is_cancelled_has_written_before_its_ram_goes_and_never_elsewhere() {
    let (space, disk, cancelled) = world(Duration::from_secs(600));
    let request = pin(&space, &disk);
    let host = request.host_address() as usize;
    let (mut writer, read) = park(request);
    let device = thread::spawn(move || {
        cancelled.recv().unwrap();
        assert!(is_mapped(host));
        writer.write_all(&[0x5a; BYTES]).unwrap();
    });
    space.apply([Change::Unmap(RANGE)]).unwrap();
    // The kernel gives the addresses away again, nearly always to the first that asks. Whoever has them is not written to.
    let others: Vec<_> = (0..16).map(|_| HostMemory::anonymous(RANGE.size).unwrap()).collect();
    let parts = others.into_iter().zip(1..).map(|(memory, place)| (place * RANGE.size, memory));
    space.place(parts.collect()).unwrap();
    read.join().unwrap();
    device.join().unwrap();
    let table = space.memory();
    for region in table.iter() {
        let start = GuestAddress(region.range().start);
        let mut bytes = [0; BYTES];
        table.read_slice(&mut bytes, start).unwrap();
        assert_eq!(bytes, [0; BYTES], "{}", region.range());
    }
}

/// A pin keeps the memory even if everything else is gone.
#[test]
fn a_read_outlives_the_address_space() {
    let (space, disk, _cancelled) = world(Duration::ZERO);
    let request = pin(&space, &disk);
    let host = request.host_address() as usize;
    let (mut writer, read) = park(request);
    drop(space);
    assert!(is_mapped(host));
    writer.write_all(&[0x5a; BYTES]).unwrap();
    read.join().unwrap();
}
