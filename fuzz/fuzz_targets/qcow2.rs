//! Any bytes as a disk in qcow2 format, or as what is behind one: opened, read, written, and opened again.
//!
//! What the crate imago finds wrong by panicking is caught by [`Qcow2`], and fails the disk; so only panics of this repository, and
//! those that [`Qcow2`] lets out, end the run.

#![no_main]

use std::fs;
use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm_devices::virtio::block::{Backing, Image, ImageOptions, Qcow2, Qcow2Error, SECTOR, Storage};
use vmm_devices::virtio::testing::ram;
use vmm_memory::{AddressSpace, PinHolder, PinnedBuffers};

/// The bytes of an input that are not the image's: its [mode](Mode), one that is written, and three places.
const PREFIX: usize = 8;

/// Inputs that are well-formed, of which everything has to be done.
const WELL_FORMED: [&[u8]; 6] = [
    PLAIN,
    BACKED,
    include_bytes!("../corpus/qcow2/version-2"),
    include_bytes!("../corpus/qcow2/compressed"),
    include_bytes!("../corpus/qcow2/over-qcow2"),
    include_bytes!("../corpus/qcow2/behind"),
];
const PLAIN: &[u8] = include_bytes!("../corpus/qcow2/plain");
/// Names [`BASE`] as its backing file.
const BACKED: &[u8] = include_bytes!("../corpus/qcow2/backed");

/// Names of files.
const DISK: &str = "disk";
const BASE: &str = "base";
const OTHER: &str = "other";

/// Sectors behind a disk.
const RAW: [u8; 8192] = [0x42; 8192];

/// Bytes that are written at each place, those that are read, and those that become zero or are discarded.
const WRITTEN: usize = 1024;
const READ: usize = 4096;
const RANGE: u64 = 32 << 10;

/// Bytes of address space that one input may need: the tables that a header is let ask for, twice, and clusters of 2 MiB.
const MOST_MEMORY: u64 = 512 << 20;

static MEMORY: LazyLock<Arc<AddressSpace>> = LazyLock::new(ram);

/// What an input says beside its image.
struct Mode {
    read_only: bool,
    /// What is behind the disk is in qcow2 format.
    over_qcow2: bool,
    /// The image is what is behind a disk that is well-formed.
    is_base: bool,
    /// The file is longer than the image: tables may be beyond that.
    extended: bool,
    byte: u8,
    /// In 65536th of the disk.
    places: [u16; 3],
}

impl Mode {
    fn new(prefix: &[u8; PREFIX]) -> Self {
        let [flags, byte, places @ ..] = *prefix;
        let has = |bit: u8| flags & bit != 0;
        let place = |index| u16::from_le_bytes([places[index], places[index + 1]]);
        Self {
            read_only: has(1),
            over_qcow2: has(2),
            is_base: has(4),
            extended: has(8),
            byte,
            places: [place(0), place(2), place(4)],
        }
    }
}

/// The files of one input.
struct Files {
    directory: PathBuf,
    disk: Vec<u8>,
    base: Vec<u8>,
}

impl Files {
    fn new(mode: &Mode, image: &[u8]) -> Self {
        let mut image = image.to_vec();
        if mode.extended {
            image.resize(image.len().max(128 << 10), 0);
        }
        let (disk, base) = match (mode.is_base, mode.over_qcow2) {
            (true, _) => (BACKED[PREFIX..].to_vec(), image),
            (false, true) => (image, PLAIN[PREFIX..].to_vec()),
            (false, false) => (image, RAW.to_vec()),
        };
        // In memory, where a flush costs nothing.
        let shared = Path::new("/dev/shm");
        let parent = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let directory = parent.join(format!("vmm-fuzz-qcow2-{}", std::process::id()));
        // Of a process that has crashed, and had the same id.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).expect("a directory");
        for (name, bytes) in [(DISK, &disk[..]), (BASE, &base[..]), (OTHER, &RAW[..])] {
            fs::write(directory.join(name), bytes).expect("a file");
        }
        Self { directory, disk, base }
    }

    fn image(&self, name: &str, read_only: bool) -> Option<Arc<Image>> {
        let options = ImageOptions { read_only, direct: false };
        Image::open(&self.directory.join(name), options).ok().map(Arc::new)
    }

    fn open(&self, mode: &Mode) -> Option<Qcow2> {
        let disk = self.image(DISK, mode.read_only)?;
        match Qcow2::open(Arc::clone(&disk), None) {
            Err(Qcow2Error::NeedsBacking { .. }) => {
                let base = self.image(BASE, true)?;
                let base = if mode.over_qcow2 { Backing::Qcow2(base) } else { Backing::Raw(base) };
                Qcow2::open(disk, Some(&base)).ok()
            }
            opened => opened.ok(),
        }
    }

    /// Nobody has written to what is only read, or made a file.
    fn ensure_kept(&self, mode: &Mode) {
        let is = |name: &str, bytes: &[u8]| {
            fs::read(self.directory.join(name)).is_ok_and(|contents| contents == bytes)
        };
        assert!(is(BASE, &self.base), "what is behind the disk has changed");
        assert!(is(OTHER, &RAW), "a file that is nobody's has changed");
        assert!(!mode.read_only || is(DISK, &self.disk), "a disk that is only read has changed");
        assert_eq!(entries(&self.directory), 3, "files were made or removed");
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).expect("the directory");
    }
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).expect("a directory").count()
}

/// What came of the requests.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    done: usize,
    failed: usize,
}

/// A disk that is used.
struct User<'a> {
    disk: &'a Qcow2,
    length: u64,
    holder: Arc<PinHolder>,
    outcome: Outcome,
}

impl<'a> User<'a> {
    fn new(disk: &'a Qcow2) -> Self {
        let length = disk.length().unwrap_or(0);
        Self { disk, length, holder: PinHolder::new("fuzz", |_| ()), outcome: Outcome::default() }
    }

    fn note(&mut self, went_well: bool) {
        if went_well {
            self.outcome.done += 1;
        } else {
            self.outcome.failed += 1;
        }
    }

    /// The first sector of a place.
    fn offset(&self, place: u16) -> u64 {
        let sectors = u128::from(self.length / SECTOR);
        SECTOR * u64::try_from(sectors * u128::from(place) >> 16).unwrap_or(0)
    }

    /// As many bytes from `offset` on, if there are: a device checks its requests.
    fn clipped(&self, offset: u64, bytes: u64) -> u64 {
        bytes.min(self.length.saturating_sub(offset))
    }

    fn pin(&self, length: u64) -> PinnedBuffers {
        let piece = [(GuestAddress(0), length)];
        PinnedBuffers::pin(&MEMORY.memory(), &self.holder, piece).expect("guest RAM")
    }

    fn read(&mut self, offset: u64) -> Vec<u8> {
        let length = self.clipped(offset, READ as u64);
        let read = self.disk.read(self.pin(length), offset);
        self.note(read.is_ok());
        let mut bytes = vec![0; length as usize];
        MEMORY.memory().read_slice(&mut bytes, GuestAddress(0)).expect("guest RAM");
        bytes
    }

    fn write(&mut self, offset: u64, byte: u8) {
        let length = self.clipped(offset, WRITTEN as u64);
        MEMORY.memory().write_slice(&[byte; WRITTEN], GuestAddress(0)).expect("guest RAM");
        let written = self.disk.write(self.pin(length), offset, byte & 1 == 0);
        self.note(written.is_ok());
    }

    fn zero(&mut self, mut offset: u64, unmap: bool) {
        let end = offset + self.clipped(offset, RANGE);
        while offset < end {
            let Ok(done) = self.disk.write_zeroes(offset, end - offset, unmap) else { break };
            assert!(done > 0 && done <= end - offset, "{done} bytes of {} were zeroed", end - offset);
            offset += done;
        }
        self.note(offset == end);
    }

    fn discard(&mut self, offset: u64) {
        let discarded = self.disk.discard(offset, self.clipped(offset, RANGE));
        self.note(discarded.is_ok());
    }

    fn flush(&mut self) {
        let flushed = self.disk.flush();
        self.note(flushed.is_ok());
    }

    /// Uses the disk at each of the places. What is written there is read back if the tables are in order.
    fn use_all(&mut self, mode: &Mode) {
        for (index, place) in mode.places.into_iter().enumerate() {
            let (offset, unmap) = (self.offset(place), index & 1 == 0);
            let beginning = |bytes: Vec<u8>, byte| bytes.iter().take(WRITTEN).all(|read| *read == byte);
            self.read(offset);
            self.write(offset, mode.byte);
            let read = self.read(offset);
            self.note(beginning(read, mode.byte));
            self.zero(offset, unmap);
            let read = self.read(offset);
            self.note(beginning(read, 0));
            self.discard(offset);
            self.flush();
            self.write(offset, !mode.byte);
        }
    }

    /// Reads what [`use_all`](Self::use_all) has written last.
    fn look(&mut self, mode: &Mode) {
        let last = self.offset(mode.places[2]);
        let read = self.read(last);
        self.note(read.iter().take(WRITTEN).all(|byte| *byte == !mode.byte));
    }
}

/// What came of an input.
fn play(input: &[u8]) -> Outcome {
    let Some((prefix, image)) = input.split_first_chunk() else { return Outcome::default() };
    let mode = Mode::new(prefix);
    let open_before = entries(Path::new("/proc/self/fd"));
    let files = Files::new(&mode, image);
    let mut outcome = Outcome::default();
    // What is written is again what can be opened, or is refused.
    for is_first in [true, false] {
        let Some(disk) = files.open(&mode) else {
            outcome.failed += 1;
            continue;
        };
        let mut user = User::new(&disk);
        if is_first {
            user.use_all(&mode);
        } else {
            user.look(&mode);
        }
        outcome.done += user.outcome.done;
        outcome.failed += user.outcome.failed;
    }
    files.ensure_kept(&mode);
    assert_eq!(entries(Path::new("/proc/self/fd")), open_before, "files are left open");
    outcome
}

/// Plays an input and sees what memory it has needed.
fn bounded(input: &[u8]) {
    let [peak_before, before] = address_space();
    play(input);
    let [peak, _] = address_space();
    let needed = peak.saturating_sub(before);
    assert!(peak == peak_before || needed <= MOST_MEMORY, "{needed} bytes of address space");
}

/// The most that the process has ever had mapped, and what it has now, in bytes.
fn address_space() -> [u64; 2] {
    let status = fs::read_to_string("/proc/self/status").expect("the status of the process");
    ["VmPeak:", "VmSize:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a size");
        kib << 10
    })
}

/// Whether a panic began in this repository, whose packages cargo knows by absolute paths outside of the fuzz package.
fn is_ours(info: &PanicHookInfo<'_>) -> bool {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let file = info.location().map(|location| Path::new(location.file()));
    file.zip(repository).is_none_or(|(file, repository)| file.is_relative() || file.starts_with(repository))
}

/// Before the first input: nothing found would say anything if no image was served.
fn prepare() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_ours(info) {
            abort(info);
        }
    }));
    for (index, input) in WELL_FORMED.iter().enumerate() {
        let outcome = play(input);
        assert!(outcome.failed == 0 && outcome.done == 32, "{index}: {outcome:?}");
    }
}

fuzz_target!(init: prepare(), |bytes: &[u8]| bounded(bytes));
