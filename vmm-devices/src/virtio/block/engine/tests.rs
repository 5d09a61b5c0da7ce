//! What every engine does, and what each does with a host that is slow, fails or goes away.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Backing, ChangeError, PinHolder, RamRange};

use super::super::image::{Image, ImageOptions};
use super::super::pool::Pool;
use super::super::storage::Storage;
use super::super::uring::Uring;
use super::*;

const DEPTH: u16 = 16;

/// A guest of two regions with a hole between them.
struct Guest {
    memory: AddressSpace,
    holder: Arc<PinHolder>,
}

const HIGH: u64 = 0x10_0000;

impl Guest {
    fn new() -> Self {
        let memory = AddressSpace::new(Arc::new(FakeVm::default()));
        for start in [0, HIGH] {
            memory.map(&[RamRange { start, size: 0x1_0000 }], &Backing::default()).unwrap();
        }
        Self { memory, holder: PinHolder::new("engine", |_| ()) }
    }

    fn request(&self, token: u16, operation: Operation, offset: u64, buffers: &[(u64, u64)]) -> Request {
        let pieces = buffers.iter().map(|(address, length)| (GuestAddress(*address), *length));
        let buffers = PinnedBuffers::pin(&self.memory.memory(), &self.holder, pieces).unwrap();
        Request { token, operation, durable: false, offset, length: buffers.len(), buffers }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn range(token: u16, operation: Operation, offset: u64, length: u64) -> Request {
    Request { token, operation, durable: true, offset, length, buffers: PinnedBuffers::none() }
}

fn image(length: u64) -> (tempfile::NamedTempFile, Arc<Image>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    let image = Image::open(file.path(), ImageOptions::default()).unwrap();
    (file, Arc::new(image))
}

/// Both engines; that of io_uring only where the host has it.
fn engines(image: &Arc<Image>) -> Vec<Box<dyn Engine>> {
    let mut engines: Vec<Box<dyn Engine>> =
        vec![Box::new(Pool::new(image.clone(), &Arc::default()).unwrap())];
    match Uring::new(Arc::clone(image), DEPTH) {
        Ok(uring) => engines.push(Box::new(uring)),
        Err(error) => eprintln!("not tested here, as the host has no io_uring: {error}"),
    }
    engines
}

/// Waits until so many have ended, as a worker does.
fn wait(engine: &mut dyn Engine, count: usize) -> Vec<Completion> {
    let mut ended = Vec::new();
    engine.submit().unwrap();
    engine.reap(&mut ended).unwrap();
    let wakeup = engine.wakeup();
    while ended.len() < count {
        wait_readable(&*wakeup);
        wakeup.take();
        engine.reap(&mut ended).unwrap();
    }
    assert_eq!(engine.in_flight(), 0);
    ended
}

fn wait_readable(wakeup: &dyn Wakeup) {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, wakeup.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    let mut events = [EpollEvent::default()];
    while epoll.wait(-1, &mut events).is_err() {}
}

fn one(engine: &mut dyn Engine, request: Request) -> io::Result<()> {
    engine.push(request);
    wait(engine, 1).remove(0).result
}

#[test]
fn what_was_written_is_read_back_from_scattered_buffers() {
    let guest = Guest::new();
    let (file, image) = image(1 << 16);
    for mut engine in engines(&image) {
        guest.write(0x100, b"one, ");
        guest.write(HIGH, b"two, three.");
        let write = guest.request(0, Operation::Write, 512, &[(0x100, 5), (HIGH, 11)]);
        one(&mut *engine, write).unwrap();
        one(&mut *engine, range(1, Operation::Flush, 0, 0)).unwrap();
        let mut bytes = [0; 16];
        file.as_file().read_exact_at(&mut bytes, 512).unwrap();
        assert_eq!(&bytes, b"one, two, three.");
        let read = guest.request(2, Operation::Read, 512, &[(HIGH + 0x800, 3), (0x2000, 13)]);
        one(&mut *engine, read).unwrap();
        assert_eq!(
            (guest.read(HIGH + 0x800, 3), guest.read(0x2000, 13)),
            (b"one".to_vec(), b", two, three.".to_vec())
        );
    }
}

#[test]
fn a_request_that_is_too_long_for_one_turn_is_transferred_whole() {
    const PIECES: u64 = 80;
    let guest = Guest::new();
    let (file, image) = image(PIECES << 16);
    for (seed, mut engine) in (1..).zip(engines(&image)) {
        guest.write(HIGH, &[seed; 1 << 16]);
        let pieces = [(HIGH, 1 << 16); PIECES as usize];
        one(&mut *engine, guest.request(0, Operation::Write, 0, &pieces)).unwrap();
        let mut bytes = vec![0; (PIECES as usize) << 16];
        file.as_file().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == seed));
        // The last piece is what stays.
        file.as_file().write_all_at(&[0x77; 1 << 16], (PIECES - 1) << 16).unwrap();
        one(&mut *engine, guest.request(1, Operation::Read, 0, &pieces)).unwrap();
        assert_eq!(guest.read(HIGH, 1 << 16), [0x77; 1 << 16]);
    }
}

#[test]
fn requests_end_each_with_its_token() {
    let guest = Guest::new();
    let (file, image) = image(1 << 16);
    for block in 0..DEPTH {
        file.as_file().write_all_at(&[block as u8; 512], u64::from(block) * 512).unwrap();
    }
    for mut engine in engines(&image) {
        for round in 0..20 {
            for token in 0..DEPTH {
                let address = 0x1000 + u64::from(token) * 512;
                let offset = u64::from((token + round) % DEPTH) * 512;
                engine.push(guest.request(token, Operation::Read, offset, &[(address, 512)]));
            }
            let ended = wait(&mut *engine, DEPTH.into());
            let mut tokens: Vec<_> = ended.iter().map(|completion| completion.token).collect();
            tokens.sort_unstable();
            assert_eq!(tokens, (0..DEPTH).collect::<Vec<_>>());
            for token in 0..DEPTH {
                let expected = vec![((token + round) % DEPTH) as u8; 512];
                assert_eq!(guest.read(0x1000 + u64::from(token) * 512, 512), expected);
            }
        }
    }
}

#[test]
fn ranges_that_are_zeroed_or_discarded_read_as_zero() {
    let guest = Guest::new();
    let (file, image) = image(1 << 16);
    for mut engine in engines(&image) {
        file.as_file().write_all_at(&[0xaa; 1 << 16], 0).unwrap();
        let operations = [
            Operation::WriteZeroes { unmap: false },
            Operation::WriteZeroes { unmap: true },
            Operation::Discard,
        ];
        for (token, operation) in (0..).zip(operations) {
            let offset = 512 + u64::from(token) * 8192;
            one(&mut *engine, range(token, operation, offset, 4096)).unwrap();
            one(&mut *engine, guest.request(9, Operation::Read, offset - 512, &[(0, 5120)])).unwrap();
            let bytes = guest.read(0, 5120);
            assert_eq!((bytes[511], bytes[4608]), (0xaa, 0xaa));
            let is_zero = bytes[512..4608].iter().all(|byte| *byte == 0);
            // A file system without holes keeps what is discarded.
            assert!(is_zero || operation == Operation::Discard);
        }
        assert_eq!(image.length().unwrap(), 1 << 16);
    }
}

#[test]
fn fault_c3_an_image_that_was_truncated_fails_reads_beyond_its_end() {
    let guest = Guest::new();
    let (file, image) = image(1 << 16);
    file.as_file().write_all_at(&[1; 1 << 16], 0).unwrap();
    for mut engine in engines(&image) {
        file.as_file().set_len(0x1200).unwrap();
        let read = |offset| guest.request(0, Operation::Read, offset, &[(0, 0x1000), (HIGH, 0x1000)]);
        for offset in [0, 0x1000, 0x8000] {
            let error = one(&mut *engine, read(offset)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset:#x}: {error}");
        }
        one(&mut *engine, guest.request(1, Operation::Read, 0x1000, &[(0, 0x200)])).unwrap();
        file.as_file().set_len(1 << 16).unwrap();
    }
}

#[test]
fn fault_c3_what_the_host_refuses_is_an_error_of_that_request_only() {
    let guest = Guest::new();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("sealed", flags).unwrap());
    file.set_len(1 << 16).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let image = Arc::new(Image::open(&path, ImageOptions::default()).unwrap());
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    for mut engine in engines(&image) {
        let write = guest.request(0, Operation::Write, 0, &[(0, 4096)]);
        assert_eq!(one(&mut *engine, write).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let discard = range(1, Operation::Discard, 0, 4096);
        assert_eq!(one(&mut *engine, discard).unwrap_err().raw_os_error(), Some(libc::EPERM));
        one(&mut *engine, guest.request(2, Operation::Read, 0, &[(0, 4096)])).unwrap();
    }
}

/// An image on a file system that cannot make zeros in place (tmpfs), so that they are written.
fn image_without_zeroing(length: u64) -> (File, Arc<Image>) {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(length).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, Arc::new(Image::open(&path, ImageOptions::default()).unwrap()))
}

#[test]
fn zeroes_that_the_host_cannot_make_are_written_to_the_last_byte() {
    let (file, image) = image_without_zeroing(1 << 20);
    for mut engine in engines(&image) {
        file.write_all_at(&[0xaa; 1 << 20], 0).unwrap();
        // Several pieces, and a part of one.
        let (offset, length) = (512, (1 << 19) + 1024);
        one(&mut *engine, range(0, Operation::WriteZeroes { unmap: false }, offset, length)).unwrap();
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let zeros = 512..512 + length as usize;
        assert!(bytes[zeros.clone()].iter().all(|byte| *byte == 0));
        assert!(bytes[..zeros.start].iter().chain(&bytes[zeros.end..]).all(|byte| *byte == 0xaa));
    }
}

#[test]
fn zeroes_that_are_written_end_when_they_are_durable() {
    let (file, image) = image_without_zeroing(1 << 18);
    // What was written before is lost: no flush succeeds any more.
    let lost = io::Error::from_raw_os_error(libc::EIO);
    image.wrote_durably::<()>(Err(lost)).unwrap_err();
    for mut engine in engines(&image) {
        file.write_all_at(&[0xaa; 1 << 18], 0).unwrap();
        let zeroes =
            |durable| Request { durable, ..range(0, Operation::WriteZeroes { unmap: false }, 0, 1 << 18) };
        one(&mut *engine, zeroes(false)).unwrap();
        assert_eq!(one(&mut *engine, zeroes(true)).unwrap_err().raw_os_error(), Some(libc::EIO));
        let mut last = [0xaa];
        file.read_exact_at(&mut last, (1 << 18) - 1).unwrap();
        assert_eq!(last, [0]);
    }
}

#[test]
fn zeroes_that_are_written_take_turns_with_the_worker_and_can_be_cancelled() {
    const LENGTH: u64 = 16 << 20;
    let (file, image) = image_without_zeroing(LENGTH);
    let Ok(mut uring) = Uring::new(image, DEPTH) else { return eprintln!("not tested here: no io_uring") };
    file.write_all_at(&[0xaa; 512], LENGTH - 512).unwrap();
    uring.push(range(5, Operation::WriteZeroes { unmap: false }, 0, LENGTH));
    uring.submit().unwrap();
    let (mut ended, wakeup) = (Vec::new(), uring.wakeup());
    // The answer to the attempt, and that to a piece at least.
    for _ in 0..2 {
        wait_readable(&*wakeup);
        uring.reap(&mut ended).unwrap();
        assert_eq!((ended.len(), uring.in_flight()), (0, 1));
    }
    uring.cancel(&|request| request.token == 5);
    while ended.is_empty() {
        wait_readable(&*wakeup);
        uring.reap(&mut ended).unwrap();
    }
    assert_eq!(ended[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    let mut last = [0];
    file.read_exact_at(&mut last, LENGTH - 1).unwrap();
    assert_eq!(last, [0xaa]);
}

#[test]
fn fault_c3_a_flush_that_has_failed_is_not_forgotten_by_those_after_it() {
    let flush = || range(0, Operation::Flush, 0, 0);
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    // Pipes cannot be flushed.
    let (_reader, writer) = std::io::pipe().unwrap();
    for which in 0..2 {
        let pipe = writer.try_clone().unwrap();
        let unflushable = Arc::new(Image::of(File::from(std::os::fd::OwnedFd::from(pipe))));
        let Some(mut engine) = engines(&unflushable).into_iter().nth(which) else { continue };
        assert_eq!(code(one(&mut *engine, flush())), Some(libc::EINVAL));
        assert_eq!(code(unflushable.flushed(Ok(()))), Some(libc::EINVAL));
    }
    let guest = Guest::new();
    let (_file, image) = image(1 << 16);
    for mut engine in engines(&image) {
        one(&mut *engine, flush()).unwrap();
    }
    let fails = |errno| Err(io::Error::from_raw_os_error(errno));
    // Neither says that something was lost.
    assert_eq!(code(image.flushed(fails(libc::ECANCELED))), Some(libc::ECANCELED));
    assert_eq!(code(image.wrote_durably(fails(libc::ENOSPC))), Some(libc::ENOSPC));
    image.flushed(Ok(())).unwrap();
    assert_eq!(code(image.wrote_durably(fails(libc::EIO))), Some(libc::EIO));
    for mut engine in engines(&image) {
        assert_eq!(code(one(&mut *engine, flush())), Some(libc::EIO));
        one(&mut *engine, guest.request(0, Operation::Write, 0, &[(0, 512)])).unwrap();
        one(&mut *engine, guest.request(1, Operation::Read, 0, &[(0, 512)])).unwrap();
    }
}

#[test]
fn direct_images_take_aligned_and_unaligned_requests() {
    let guest = Guest::new();
    let file = tempfile::NamedTempFile::new_in(".").unwrap();
    file.as_file().set_len(1 << 16).unwrap();
    let options = ImageOptions { read_only: false, direct: true };
    let image = match Image::open(file.path(), options) {
        Ok(image) => Arc::new(image),
        Err(error) => return eprintln!("not tested here: {error}"),
    };
    for (seed, mut engine) in (1..).zip(engines(&image)) {
        guest.write(0x1000, &[seed; 4096]);
        one(&mut *engine, guest.request(0, Operation::Write, 8192, &[(0x1000, 4096)])).unwrap();
        guest.write(0x3003, &[seed + 100; 512]);
        one(&mut *engine, guest.request(1, Operation::Write, 8192 + 512, &[(0x3003, 512)])).unwrap();
        one(&mut *engine, guest.request(2, Operation::Read, 8192, &[(0x4000, 4096)])).unwrap();
        assert_eq!(guest.read(0x4000, 1024), [[seed; 512], [seed + 100; 512]].concat());
        one(&mut *engine, guest.request(3, Operation::Read, 8192 + 511, &[(0x5001, 2)])).unwrap();
        assert_eq!(guest.read(0x5001, 2), [seed, seed + 100]);
    }
}

/// Bytes of which a [`Slow`] disk makes zeros in one go.
const PIECE: u64 = 512;

/// A disk that reads and makes zeros only when it is let, and says whether it has begun.
struct Slow {
    begun: Mutex<Sender<u64>>,
    go: Mutex<Receiver<io::Result<()>>>,
}

impl Storage for Slow {
    fn read(&self, mut buffers: PinnedBuffers, offset: u64) -> io::Result<()> {
        self.begun.lock().unwrap().send(offset).unwrap();
        let answer = self.go.lock().unwrap().recv().unwrap();
        answer.inspect(|()| {
            buffers.fill_from(b"slow");
        })
    }

    fn write(&self, _: PinnedBuffers, _: u64, _: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn flush(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a bug of a format")
    }

    fn write_zeroes(&self, offset: u64, length: u64, _: bool) -> io::Result<u64> {
        self.begun.lock().unwrap().send(offset).unwrap();
        self.go.lock().unwrap().recv().unwrap().map(|()| length.min(PIECE))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(1 << 16)
    }
}

fn slow() -> (Pool, Receiver<u64>, Sender<io::Result<()>>) {
    let ((begun, is_begun), (let_go, go)) = (channel(), channel());
    let storage = Slow { begun: Mutex::new(begun), go: Mutex::new(go) };
    (Pool::new(Arc::new(storage), &Arc::default()).unwrap(), is_begun, let_go)
}

#[test]
fn fault_c3_errors_and_panics_of_a_storage_are_errors_of_their_requests() {
    let guest = Guest::new();
    let (mut pool, begun, go) = slow();
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    let write = guest.request(0, Operation::Write, 0, &[(0, 512)]);
    assert_eq!(code(one(&mut pool, write)), Some(libc::ENOSPC));
    assert_eq!(code(one(&mut pool, range(1, Operation::Flush, 0, 0))), Some(libc::EIO));
    assert!(
        one(&mut pool, range(2, Operation::Discard, 0, 512)).unwrap_err().to_string().contains("panicked")
    );
    // Not durable, as it cannot be flushed.
    let zeroes = |token| range(token, Operation::WriteZeroes { unmap: false }, 7, 2 * PIECE + 1);
    (0..3).for_each(|_| go.send(Ok(())).unwrap());
    assert_eq!(code(one(&mut pool, zeroes(3))), Some(libc::EIO));
    assert_eq!(begun.try_iter().collect::<Vec<_>>(), [7, 7 + PIECE, 7 + 2 * PIECE]);
    // Nothing is tried behind a piece that has failed.
    go.send(Ok(())).unwrap();
    go.send(Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap();
    assert_eq!(code(one(&mut pool, zeroes(4))), Some(libc::ENOSPC));
    assert_eq!(begun.try_iter().collect::<Vec<_>>(), [7, 7 + PIECE]);
}

#[test]
fn zeroes_that_threads_write_take_turns_with_other_requests_and_can_be_cancelled() {
    const THREADS: u16 = 8;
    let guest = Guest::new();
    let (mut pool, begun, go) = slow();
    // As many as there are threads.
    for token in 0..THREADS {
        let offset = (1 + u64::from(token)) << 20;
        pool.push(range(token, Operation::WriteZeroes { unmap: true }, offset, 3 * PIECE));
    }
    pool.submit().unwrap();
    assert_eq!(begun.iter().take(THREADS.into()).count(), usize::from(THREADS));
    pool.push(guest.request(THREADS, Operation::Read, 7, &[(0, 4)]));
    pool.submit().unwrap();
    // After any first piece.
    go.send(Ok(())).unwrap();
    assert_eq!(begun.recv().unwrap(), 7);
    // What waits for its second piece, and all that have not done their first.
    pool.cancel(&|request| request.token != THREADS && request.buffers.is_empty());
    let mut ended = Vec::new();
    pool.reap(&mut ended).unwrap();
    assert_eq!((ended.len(), pool.in_flight()), (1, THREADS.into()));
    // More than they need.
    (0..3 * THREADS).for_each(|_| go.send(Ok(())).unwrap());
    ended.extend(wait(&mut pool, THREADS.into()));
    for Completion { token, result } in ended {
        let errno = result.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, (token != THREADS).then_some(libc::ECANCELED), "{token}");
    }
    assert!(begun.try_recv().is_err(), "another piece has begun");
    assert_eq!(guest.read(0, 4), b"slow");
}

#[test]
fn fault_b6_what_has_not_begun_is_cancelled_and_the_rest_ends_by_itself() {
    let guest = Guest::new();
    let (mut pool, begun, go) = slow();
    pool.push(guest.request(0, Operation::Read, 7, &[(0, 4)]));
    pool.submit().unwrap();
    assert_eq!(begun.recv().unwrap(), 7);
    pool.push(guest.request(1, Operation::Read, 8, &[(8, 4)]));
    pool.cancel(&|request| request.token == 1);
    let mut ended = Vec::new();
    pool.reap(&mut ended).unwrap();
    assert_eq!((ended.len(), ended[0].token, pool.in_flight()), (1, 1, 1));
    assert_eq!(ended[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    go.send(Ok(())).unwrap();
    assert!(wait(&mut pool, 1)[0].result.is_ok());
    assert_eq!((guest.read(0, 4), guest.read(8, 4)), (b"slow".to_vec(), vec![0; 4]));
}

#[test]
fn a_request_in_flight_keeps_its_memory_and_gives_it_back_when_it_is_cancelled() {
    let guest = Guest::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let image = Arc::new(Image::of(File::from(std::os::fd::OwnedFd::from(reader))));
    let Ok(mut uring) = Uring::new(image, DEPTH) else { return eprintln!("not tested here: no io_uring") };
    uring.push(guest.request(3, Operation::Read, 0, &[(HIGH, 4096)]));
    uring.push(guest.request(4, Operation::Read, 0, &[(0, 4096)]));
    uring.submit().unwrap();
    let mut ended = Vec::new();
    uring.reap(&mut ended).unwrap();
    assert_eq!((ended.len(), uring.in_flight()), (0, 2));
    // Somebody unmaps the upper region: only what is in it is asked for.
    let range = RamRange { start: HIGH, size: 0x1_0000 };
    std::thread::scope(|scope| {
        let unmapping = scope.spawn(|| guest.memory.apply([vmm_memory::Change::Unmap(range)]));
        while ended.is_empty() {
            uring.cancel(&|request| request.buffers.is_leaving());
            uring.reap(&mut ended).unwrap();
            std::thread::yield_now();
        }
        unmapping.join().unwrap().unwrap();
    });
    assert_eq!((ended[0].token, uring.in_flight()), (3, 1));
    assert_eq!(ended[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    // The other one ends with the ring, which then has nothing in flight.
    drop(uring);
    let low = RamRange { start: 0, size: 0x1_0000 };
    guest.memory.apply([vmm_memory::Change::Unmap(low)]).unwrap();
}

/// Where the host has the region that begins at `start`.
fn host_address(guest: &Guest, start: u64) -> *mut u8 {
    guest.memory.memory().find_region(GuestAddress(start)).unwrap().host_address()
}

#[test]
fn what_comes_late_is_not_written_to_memory_that_has_taken_the_place_of_what_was_unmapped() {
    const SIZE: u64 = 0x1_0000;
    let guest = Guest::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let image = Arc::new(Image::of(File::from(std::os::fd::OwnedFd::from(reader))));
    let Ok(mut uring) = Uring::new(image, DEPTH) else { return eprintln!("not tested here: no io_uring") };
    let place = host_address(&guest, HIGH);
    uring.push(guest.request(0, Operation::Read, 0, &[(HIGH, 4096)]));
    uring.submit().unwrap();
    let mut ended = Vec::new();
    let range = RamRange { start: HIGH, size: SIZE };
    std::thread::scope(|scope| {
        let unmapping = scope.spawn(|| guest.memory.apply([vmm_memory::Change::Unmap(range)]));
        while !unmapping.is_finished() {
            uring.cancel(&|request| request.buffers.is_leaving());
            uring.reap(&mut ended).unwrap();
            std::thread::yield_now();
        }
        unmapping.join().unwrap().unwrap();
    });
    // The host gives the same addresses again, though other threads of this process may have them first.
    let others = (1..100).map(|number| HIGH + number * SIZE).inspect(|&start| {
        guest.memory.map(&[RamRange { start, size: SIZE }], &Backing::default()).unwrap();
    });
    let Some(heir) = others.into_iter().find(|&start| host_address(&guest, start) == place) else {
        return eprintln!("not tested now: the host has not used the addresses again");
    };
    // Whoever comes now gets it.
    uring.push(guest.request(1, Operation::Read, 0, &[(0, 4096)]));
    uring.submit().unwrap();
    std::io::Write::write_all(&mut writer, &[0xaa; 4096]).unwrap();
    let of_next = wait(&mut uring, 1);
    assert!(of_next[0].token == 1 && of_next[0].result.is_ok());
    assert_eq!(guest.read(0, 4096), [0xaa; 4096]);
    assert_eq!(guest.read(heir, usize::try_from(SIZE).unwrap()), vec![0; usize::try_from(SIZE).unwrap()]);
}

#[test]
fn memory_stays_while_a_thread_is_stuck_with_it() {
    let mut guest = Guest::new();
    guest.memory = guest.memory.with_pin_limit(std::time::Duration::from_millis(10));
    let (mut pool, begun, go) = slow();
    pool.push(guest.request(0, Operation::Read, 7, &[(HIGH, 4)]));
    pool.submit().unwrap();
    assert_eq!(begun.recv().unwrap(), 7);
    let unmap = || guest.memory.apply([vmm_memory::Change::Unmap(RamRange { start: HIGH, size: 0x1_0000 })]);
    let refused = unmap().unwrap_err();
    assert!(matches!(&refused, ChangeError::Pinned { holders, .. } if holders == &["engine"]), "{refused}");
    // The region is what it was, and takes what the thread brings.
    go.send(Ok(())).unwrap();
    assert!(wait(&mut pool, 1)[0].result.is_ok());
    assert_eq!(guest.read(HIGH, 4), b"slow");
    unmap().unwrap();
}

#[test]
fn more_than_the_ring_was_made_for_is_refused_and_nothing_is_lost() {
    let (_file, image) = image(1 << 16);
    let Ok(mut uring) = Uring::new(image, 2) else { return eprintln!("not tested here: no io_uring") };
    for token in 0..3 {
        uring.push(range(token, Operation::Flush, 0, 0));
    }
    let ended = wait(&mut uring, 3);
    let refused: Vec<_> = ended.iter().filter(|completion| completion.result.is_err()).collect();
    assert_eq!((refused.len(), refused[0].token), (1, 2));
}
