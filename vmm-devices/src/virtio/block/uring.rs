//! `Uring`: the engine of io_uring. One ring a queue; its files are registered.
//!
//! A system call gives all that was pushed to the kernel. What it can do at once, from the page cache for example, has ended
//! when the call returns. The worker waits for the ring itself, which is readable while there are completions: an eventfd
//! would be signalled for those too that were reaped without waiting.
#![expect(unsafe_code, reason = "hands guest memory to io_uring")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_core::thread;

use super::calls::UNREGISTER_FILES;
use super::counters::add;
use super::engine::{Completion, Engine, Operation, Request, ended_early};
use super::image::Image;
use super::storage::{discard_mode, is_unsupported, zero_mode, zeros};
use crate::worker::Wakeup;

/// The user data of what cancels the others; none of theirs.
const CANCEL: u64 = u64::MAX;

/// What has more bytes is done by threads of the kernel from the beginning: from and to the page cache it would be copied in the
/// system call that submits it.
const LONG: u64 = 4 << 20;

/// How often the answers of the kernel are looked at in one go. What needs more steps than that goes on when the worker is
/// woken again: the ring stays readable.
const ROUNDS: usize = 4;

/// What the kernel is doing with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// What it asks for.
    Act,
    /// The host cannot make zeros: so many bytes of them are written, and the next piece is on its way.
    Zeros(u64),
    /// It was done, and is made durable.
    Sync,
}

/// A request that the kernel has. Its buffers stay here until the kernel is done with them.
struct Flight {
    request: Request,
    stage: Stage,
    /// It is to end, and not to go on where it was interrupted.
    cancelled: bool,
}

/// A descriptor of the ring, to wait for.
struct RingFd(OwnedFd);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Wakeup for RingFd {
    fn take(&self) -> u64 {
        1
    }
}

/// An engine of io_uring. Dropped, it cancels what is in flight and waits for its end.
pub struct Uring {
    ring: IoUring,
    image: Arc<Image>,
    /// By user data.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Ended without the kernel, or in a way that is not in the completion queue.
    ended: Vec<Completion>,
    /// Of the completion queue, while they are looked at.
    answers: Vec<(u64, i32)>,
    wakeup: Arc<RingFd>,
    /// System calls that gave requests to the kernel.
    calls: Arc<AtomicU64>,
}

impl Uring {
    /// A ring for as many requests as `depth` at a time.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or lacks memory or descriptors.
    pub fn new(image: Arc<Image>, depth: u16) -> io::Result<Self> {
        // One for each request, and one that cancels it.
        let entries = u32::from(depth).saturating_mul(2).next_power_of_two();
        let files = Arc::clone(&image);
        let ring = thread::aside(move || restricted(entries, &files))?;
        // SAFETY:
        // - the ring has this descriptor open, and lives longer than the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let wakeup = Arc::new(RingFd(fd.try_clone_to_owned()?));
        Ok(Self {
            ring,
            image,
            flights: (0..depth).map(|_| None).collect(),
            free: (0..depth.into()).rev().collect(),
            ended: Vec::new(),
            answers: Vec::new(),
            wakeup,
            calls: Arc::default(),
        })
    }

    /// Counts its system calls in `calls` from now on.
    #[must_use]
    pub(super) fn counting(mut self, calls: &Arc<AtomicU64>) -> Self {
        self.calls = Arc::clone(calls);
        self
    }

    /// Puts the next step of a request into the submission queue. It has room: each request has at most one entry there.
    fn enter(&mut self, slot: usize) {
        let Some(flight) = self.flights.get(slot).and_then(Option::as_ref) else { return };
        let entry = flight.entry(&self.image).user_data(slot as u64);
        // SAFETY:
        // - the iovecs and the guest memory they lead to belong to the flight, which stays in its slot, unmoved on the
        //   heap and pinned, until the completion of this entry was seen, or this ring has none in flight any more;
        // - the zeros are there as long as the process;
        // - guest memory is no Rust object: what the kernel writes there meets volatile accesses only.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.end(slot, Err(io::Error::from_raw_os_error(libc::EBUSY)));
        }
    }

    fn end(&mut self, slot: usize, result: io::Result<()>) {
        if let Some(flight) = self.flights.get_mut(slot).and_then(Option::take) {
            self.free.push(slot);
            self.ended.push(Completion { token: flight.request.token, result });
        }
    }

    /// Takes note of what the kernel says about a request; it may need another step.
    fn note(&mut self, slot: usize, answer: i32) {
        let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else { return };
        match flight.next(answer) {
            Next::Again => self.enter(slot),
            Next::End(result) => {
                let result = flight.outcome(result, &self.image);
                self.end(slot, result);
            }
        }
    }

    /// Enters entries until the kernel has all, or takes no more.
    fn submit_all(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            add(&self.calls, 1);
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// A ring that can do with the files of `image` what a disk does, and nothing else: through any other one its user could open and connect.
fn restricted(entries: u32, image: &Image) -> io::Result<IoUring> {
    let used = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::AsyncCancel::CODE,
    ];
    let flags = (squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC).bits();
    let mut permitted: Vec<_> = used.into_iter().map(Restriction::sqe_op).collect();
    permitted.extend([
        Restriction::sqe_flags_allowed(flags),
        Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        Restriction::register_op(UNREGISTER_FILES),
    ]);
    let ring = IoUring::builder().setup_r_disabled().build(entries)?;
    let submitter = ring.submitter();
    submitter.register_files(&image.files().map(AsRawFd::as_raw_fd))?;
    submitter.register_restrictions(&mut permitted)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

/// What becomes of a request after an answer of the kernel.
enum Next {
    Again,
    End(io::Result<()>),
}

impl Flight {
    fn entry(&self, image: &Image) -> squeue::Entry {
        let Request { operation, durable, offset, length, buffers, .. } = &self.request;
        let file = Fixed(u32::from(!image.is_aligned(*offset, buffers.pieces())));
        let iovecs = buffers.iovecs();
        let count = u32::try_from(iovecs.len()).unwrap_or(u32::MAX);
        let sync = opcode::Fsync::new(Fixed(0)).flags(FsyncFlags::DATASYNC);
        match self.stage {
            Stage::Act => {}
            Stage::Sync => return sync.build(),
            Stage::Zeros(done) => {
                let zeros = zeros(length.saturating_sub(done));
                let count = u32::try_from(zeros.len()).unwrap_or(u32::MAX);
                let write = opcode::Write::new(Fixed(1), zeros.as_ptr(), count);
                // Never on the worker, which has other requests.
                return write.offset(offset.saturating_add(done)).build().flags(squeue::Flags::ASYNC);
            }
        }
        let allocate = |mode: rustix::fs::FallocateFlags| {
            #[expect(clippy::cast_possible_wrap, reason = "flags")]
            let mode = mode.bits() as i32;
            opcode::Fallocate::new(Fixed(1), *length).offset(*offset).mode(mode).build()
        };
        let place = if buffers.len() > LONG { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        match operation {
            Operation::Read => {
                opcode::Readv::new(file, iovecs.as_ptr(), count).offset(*offset).build().flags(place)
            }
            Operation::Write => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Writev::new(file, iovecs.as_ptr(), count);
                write.offset(*offset).rw_flags(flags).build().flags(place)
            }
            Operation::Flush => sync.build(),
            Operation::Discard => allocate(discard_mode()),
            Operation::WriteZeroes { unmap } => allocate(zero_mode(*unmap)),
        }
    }

    fn next(&mut self, answer: i32) -> Next {
        let Ok(count) = u64::try_from(answer) else {
            let error = io::Error::from_raw_os_error(answer.saturating_neg());
            return match error.raw_os_error() {
                Some(libc::EINTR) if !self.cancelled => Next::Again,
                _ => self.failed(error),
            };
        };
        let request = &mut self.request;
        match request.operation {
            Operation::Read | Operation::Write if count == 0 && !request.buffers.is_empty() => {
                Next::End(Err(ended_early(request.operation, request.offset)))
            }
            Operation::Read | Operation::Write => {
                if request.operation == Operation::Read {
                    request.buffers.advance_written(count);
                } else {
                    request.buffers.advance(count);
                }
                request.offset = request.offset.saturating_add(count);
                let is_done = request.buffers.is_empty();
                self.goes_on(is_done)
            }
            Operation::Flush => Next::End(Ok(())),
            Operation::Discard | Operation::WriteZeroes { .. } => self.range_done(count),
        }
    }

    /// Ends a request that is done or cancelled.
    fn goes_on(&self, is_done: bool) -> Next {
        match is_done {
            true => Next::End(Ok(())),
            false if self.cancelled => Next::End(Err(io::Error::from_raw_os_error(libc::ECANCELED))),
            false => Next::Again,
        }
    }

    /// A step of what has no buffers was done: the whole, or `count` bytes of zeros.
    fn range_done(&mut self, count: u64) -> Next {
        if let Stage::Zeros(done) = &mut self.stage {
            if count == 0 {
                return Next::End(Err(ended_early(self.request.operation, self.request.offset)));
            }
            *done = done.saturating_add(count);
            if *done < self.request.length {
                return self.goes_on(false);
            }
        }
        if self.request.durable && self.stage != Stage::Sync {
            self.stage = Stage::Sync;
            return Next::Again;
        }
        Next::End(Ok(()))
    }

    /// What the end of a request comes to, with what the image has seen before.
    fn outcome(&self, result: io::Result<()>, image: &Image) -> io::Result<()> {
        match self.request.operation {
            Operation::Write if self.request.durable => image.wrote_durably(result),
            Operation::Flush => image.flushed(result),
            _ if self.stage == Stage::Sync => image.flushed(result),
            _ => result,
        }
    }

    /// What the file system cannot do is advice, or is done otherwise.
    fn failed(&mut self, error: io::Error) -> Next {
        if self.stage != Stage::Act || !is_unsupported(&error) {
            return Next::End(Err(error));
        }
        match self.request.operation {
            Operation::Discard => Next::End(Ok(())),
            Operation::WriteZeroes { .. } => {
                self.stage = Stage::Zeros(0);
                self.goes_on(false)
            }
            Operation::Read | Operation::Write | Operation::Flush => Next::End(Err(error)),
        }
    }
}

impl Engine for Uring {
    fn push(&mut self, request: Request) {
        let Some(slot) = self.free.pop() else {
            let result = Err(io::Error::from_raw_os_error(libc::EBUSY));
            self.ended.push(Completion { token: request.token, result });
            return;
        };
        if let Some(place) = self.flights.get_mut(slot) {
            *place = Some(Flight { request, stage: Stage::Act, cancelled: false });
        }
        self.enter(slot);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.submit_all()
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) -> io::Result<()> {
        let mut answers = std::mem::take(&mut self.answers);
        let mut submitted = Ok(());
        for _ in 0..ROUNDS {
            answers.extend(self.ring.completion().map(|answer| (answer.user_data(), answer.result())));
            if answers.is_empty() {
                break;
            }
            for (slot, answer) in answers.drain(..) {
                if let Ok(slot) = usize::try_from(slot) {
                    self.note(slot, answer);
                }
            }
            // What needs another step.
            submitted = self.submit_all();
            if submitted.is_err() {
                break;
            }
        }
        self.answers = answers;
        ended.append(&mut self.ended);
        submitted
    }

    fn in_flight(&self) -> usize {
        self.flights.len().saturating_sub(self.free.len()).saturating_add(self.ended.len())
    }

    fn cancel(&mut self, concerned: &dyn Fn(&Request) -> bool) {
        for (slot, flight) in self.flights.iter_mut().enumerate() {
            let Some(flight) = flight.as_mut().filter(|flight| concerned(&flight.request)) else { continue };
            if std::mem::replace(&mut flight.cancelled, true) {
                continue;
            }
            // It has no file; a ring that is restricted to its files wants the flag with each entry.
            let entry = opcode::AsyncCancel::new(slot as u64).build().flags(squeue::Flags::FIXED_FILE);
            let entry = entry.user_data(CANCEL);
            // SAFETY:
            // - the entry refers to no memory.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            // There is room for each, unless earlier ones were never submitted.
            if pushed.is_err() {
                break;
            }
        }
        if let Err(error) = self.submit_all() {
            tracing::debug!(%error, "requests cannot be cancelled, and are waited for");
        }
    }

    fn wakeup(&self) -> Arc<dyn Wakeup> {
        self.wakeup.clone()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.cancel(&|_| true);
        let mut ended = Vec::new();
        loop {
            // What it cannot submit, the wait does.
            let _ = self.reap(&mut ended);
            if self.in_flight() == 0 {
                break;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "requests in flight cannot be waited for: their memory is kept");
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
        }
        // The kernel takes a ring apart some time after it was closed, and until then the image would stay locked.
        if let Err(error) = self.ring.submitter().unregister_files() {
            tracing::debug!(%error, "an image stays open until its ring is gone");
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use io_uring::types::Fd;

    use super::*;

    fn answer(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY:
        // - no entry of these tests refers to memory that ends before this function does.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_does_what_a_disk_does_and_nothing_else() {
        let file = tempfile::tempfile().unwrap();
        let own = Fd(file.as_raw_fd());
        let image = Image::of(file.try_clone().unwrap());
        let mut ring = match restricted(4, &image) {
            Ok(ring) => ring,
            Err(error) => return eprintln!("not tested here: no io_uring ({error})"),
        };
        assert_eq!(answer(&mut ring, &opcode::Fsync::new(Fixed(0)).build()), 0);
        let path = c"/etc/hostname";
        let refused = [
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(own, std::ptr::null(), 0).build(),
            opcode::Close::new(own).build(),
            // Files that were not registered.
            opcode::Fsync::new(own).build(),
            // Those that were, in ways that no disk needs.
            opcode::Nop::new().build().flags(squeue::Flags::FIXED_FILE),
            opcode::Fsync::new(Fixed(0)).build().flags(squeue::Flags::IO_LINK),
        ];
        for entry in &refused {
            assert_eq!(answer(&mut ring, entry), -libc::EACCES, "{entry:?}");
        }
        let error = ring.submitter().register_files(&[own.0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
