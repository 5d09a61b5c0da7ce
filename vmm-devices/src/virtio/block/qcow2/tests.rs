//! qcow2 images, well-formed, hostile and broken, and what may be behind them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use imago::FormatCreateBuilder;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Backing as RamBacking, PinHolder, RamRange};

use super::*;
use crate::virtio::block::{ImageError, ImageOptions};

const SIZE: u64 = 4 << 20;
const RAM: u64 = 1 << 20;

/// A directory of images, and guest RAM to read into.
struct Bench {
    directory: tempfile::TempDir,
    memory: AddressSpace,
    holder: Arc<PinHolder>,
}

impl Bench {
    fn new() -> Self {
        let memory = AddressSpace::new(Arc::new(FakeVm::default()));
        memory.map(&[RamRange { start: 0, size: RAM }], &RamBacking::default()).unwrap();
        Self { directory: tempfile::tempdir().unwrap(), memory, holder: PinHolder::new("qcow2", |_| ()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An empty image, with the backing file and its format that its header is to name.
    fn create(&self, name: &str, backing: Option<(&str, &str)>) -> PathBuf {
        self.create_with(name, backing, 65536)
    }

    fn create_with(&self, name: &str, backing: Option<(&str, &str)>, cluster: usize) -> PathBuf {
        let path = self.path(name);
        let file =
            fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let file = File::try_from(file).unwrap();
        let mut builder = Format::<File>::create_builder(file).size(SIZE).cluster_size(cluster);
        if let Some((name, format)) = backing {
            builder = builder.backing(name.into(), format.into());
        }
        builder.create().unwrap();
        path
    }

    fn pin(&self, address: u64, length: u64) -> PinnedBuffers {
        PinnedBuffers::pin(&self.memory.memory(), &self.holder, [(GuestAddress(address), length)]).unwrap()
    }

    fn write(&self, disk: &Qcow2, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.memory().write_slice(bytes, GuestAddress(0)).unwrap();
        disk.write(self.pin(0, bytes.len() as u64), offset, false)
    }

    fn read(&self, disk: &Qcow2, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        disk.read(self.pin(0, length as u64), offset)?;
        let mut bytes = vec![0; length];
        self.memory.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        Ok(bytes)
    }
}

fn image(path: &Path, read_only: bool) -> Arc<Image> {
    Arc::new(Image::open(path, ImageOptions { read_only, direct: false }).unwrap())
}

fn open(path: &Path) -> Result<Qcow2, Qcow2Error> {
    Qcow2::open(image(path, false), None)
}

/// The message of a refusal and of what led to it.
fn refusal(result: Result<Qcow2, Qcow2Error>) -> String {
    let error = result.unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// Writes `bytes` into the file at `offset`.
fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn what_is_written_is_there_when_the_image_is_opened_again() {
    let bench = Bench::new();
    for cluster in [512, 65536, 2 << 20] {
        let path = bench.create_with("disk", None, cluster);
        let disk = open(&path).unwrap();
        assert_eq!(disk.length().unwrap(), SIZE);
        let text: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        bench.write(&disk, 512, &text).unwrap();
        bench.write(&disk, SIZE - 512, &[7; 512]).unwrap();
        drop(disk);
        let disk = open(&path).unwrap();
        assert!(bench.read(&disk, 512, text.len()).unwrap() == text, "{cluster}");
        assert_eq!(bench.read(&disk, SIZE - 512, 512).unwrap(), [7; 512]);
        assert_eq!(bench.read(&disk, 1 << 20, 4096).unwrap(), [0; 4096]);
        drop(disk);
        assert!(cluster != 65536 || fs::metadata(&path).unwrap().len() < SIZE);
    }
}

#[test]
fn a_flush_leaves_a_file_in_which_everything_is_found_without_the_first_monitor() {
    let bench = Bench::new();
    let path = bench.create("disk", None);
    let disk = open(&path).unwrap();
    bench.memory.memory().write_slice(&[5; 512], GuestAddress(0)).unwrap();
    // As after a flush: a durable write is one.
    disk.write(bench.pin(0, 512), 1 << 20, true).unwrap();
    let copy = bench.path("copy");
    fs::copy(&path, &copy).unwrap();
    assert_eq!(bench.read(&open(&copy).unwrap(), 1 << 20, 512).unwrap(), [5; 512]);
}

#[test]
fn zeroes_and_discards_read_as_zero_and_give_clusters_back() {
    let bench = Bench::new();
    let path = bench.create("disk", None);
    let disk = open(&path).unwrap();
    for (unmap, offset) in [(false, 0), (true, 1 << 20)] {
        bench.write(&disk, offset, &[9; 3 << 16]).unwrap();
        // Neither end is that of a cluster.
        disk.write_zeroes(offset + 512, 2 << 16, unmap).unwrap();
        let bytes = bench.read(&disk, offset, 3 << 16).unwrap();
        let (head, rest) = bytes.split_at(512);
        let (zeros, tail) = rest.split_at(2 << 16);
        assert!(head.iter().chain(tail).all(|byte| *byte == 9) && zeros.iter().all(|byte| *byte == 0));
    }
    bench.write(&disk, 2 << 20, &[9; 1 << 16]).unwrap();
    disk.flush().unwrap();
    let before = fs::metadata(&path).unwrap().len();
    disk.discard(2 << 20, 1 << 16).unwrap();
    disk.flush().unwrap();
    assert_eq!(bench.read(&disk, 2 << 20, 1 << 16).unwrap(), vec![0; 1 << 16]);
    // The cluster that was given back is used again.
    bench.write(&disk, 3 << 20, &[8; 1 << 16]).unwrap();
    disk.flush().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), before);
}

#[test]
fn zeroes_that_version_2_does_not_have_are_written_in_pieces() {
    const LENGTH: u64 = 2 << 16;
    let bench = Bench::new();
    let path = bench.create("disk", None);
    patch(&path, 4, &2_u32.to_be_bytes());
    let disk = open(&path).unwrap();
    for unmap in [false, true] {
        bench.write(&disk, 0, &[9; 3 << 16]).unwrap();
        let mut pieces = Vec::new();
        while pieces.iter().sum::<u64>() < LENGTH {
            let done = pieces.iter().sum::<u64>();
            pieces.push(disk.write_zeroes(512 + done, LENGTH - done, unmap).unwrap());
        }
        assert_eq!(pieces, [1 << 16; 2]);
        let bytes = bench.read(&disk, 0, 3 << 16).unwrap();
        let zeros = 512..512 + LENGTH as usize;
        assert!(bytes[zeros.clone()].iter().all(|byte| *byte == 0));
        assert!(bytes[..zeros.start].iter().chain(&bytes[zeros.end..]).all(|byte| *byte == 9));
    }
}

#[test]
fn requests_of_many_threads_do_not_disturb_each_other() {
    let bench = Bench::new();
    let disk = open(&bench.create("disk", None)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (bench, disk) = (&bench, &disk);
            scope.spawn(move || {
                let address = thread << 16;
                let pinned = || bench.pin(address, 512);
                for round in 0..50_u64 {
                    let offset = round * 4 * 65536 % SIZE + thread * 65536;
                    let bytes = [(thread * 50 + round) as u8; 512];
                    bench.memory.memory().write_slice(&bytes, GuestAddress(address)).unwrap();
                    disk.write(pinned(), offset, round % 10 == 0).unwrap();
                    bench.memory.memory().write_slice(&[0; 512], GuestAddress(address)).unwrap();
                    disk.read(pinned(), offset).unwrap();
                    let mut read = [0; 512];
                    bench.memory.memory().read_slice(&mut read, GuestAddress(address)).unwrap();
                    assert_eq!(read, bytes);
                    disk.discard(offset, 65536).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_disk_that_is_only_read_is_left_as_it_is() {
    let bench = Bench::new();
    let path = bench.create("disk", None);
    bench.write(&open(&path).unwrap(), 0, &[3; 512]).unwrap();
    let before = fs::read(&path).unwrap();
    let disk = Qcow2::open(image(&path, true), None).unwrap();
    let other = Qcow2::open(image(&path, true), None).unwrap();
    assert_eq!(bench.read(&disk, 0, 512).unwrap(), [3; 512]);
    assert!(bench.write(&disk, 0, &[4; 512]).is_err() && disk.write_zeroes(0, 512, false).is_err());
    drop((disk, other));
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn fault_c4_an_image_stays_locked_as_long_as_the_disk_is_there() {
    let bench = Bench::new();
    let path = bench.create("disk", None);
    let disk = open(&path).unwrap();
    let second = Image::open(&path, ImageOptions { read_only: true, direct: false });
    assert!(matches!(second, Err(ImageError::InUse { .. })));
    drop(disk);
    // A child of another test, between fork and exec, may still have its open files.
    while Image::open(&path, ImageOptions::default()).is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn fault_c5_what_is_no_qcow2_image_is_refused_with_the_reason() {
    let bench = Bench::new();
    let fresh = || bench.create("disk", None);
    let raw = bench.path("raw");
    fs::write(&raw, [0; 4096]).unwrap();
    assert!(refusal(open(&raw)).contains("it does not begin as a qcow2 image does"));
    for (offset, bytes, reason) in [
        (4, &4_u32.to_be_bytes()[..], "version 4 of the format is not known"),
        (20, &8_u32.to_be_bytes(), "cluster_bits = 8 is not possible"),
        (20, &22_u32.to_be_bytes(), "cluster_bits = 22 is not possible"),
        (24, &u64::MAX.to_be_bytes(), "size = 18446744073709551615 is not possible"),
        (24, &511_u64.to_be_bytes(), "has 511 bytes, not even a sector"),
        (32, &1_u32.to_be_bytes(), "it is encrypted"),
        (36, &u32::MAX.to_be_bytes(), "l1_size = 4294967295 is not possible"),
        (40, &1_u64.to_be_bytes(), "l1_table_offset = 1 is not possible"),
        (56, &0_u32.to_be_bytes(), "it does not count the references"),
        (48, &(1_u64 << 20).to_be_bytes(), "it does not count the references"),
        (56, &u32::MAX.to_be_bytes(), "refcount_table_clusters = 4294967295 is not possible"),
        (72, &1_u64.to_be_bytes(), "it was not closed in order"),
        (72, &2_u64.to_be_bytes(), "it is marked as corrupt"),
        (72, &4_u64.to_be_bytes(), "its data is in another file"),
        (72, &0x10_u64.to_be_bytes(), "incompatible_features = 0x10"),
        (100, &103_u32.to_be_bytes(), "header_length = 103 is not possible"),
        (100, &u32::MAX.to_be_bytes(), "header_length = 4294967295 is not possible"),
        (8, &(1_u64 << 40).to_be_bytes(), "backing_file_offset = 1099511627776 is not possible"),
    ] {
        let path = fresh();
        patch(&path, offset, bytes);
        let error = refusal(open(&path));
        assert!(error.contains(reason), "{error}");
    }
    let path = fresh();
    fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    patch(&path, 511, &[0]);
    assert!(open(&path).is_err());
}

#[test]
fn fault_c5_reference_counts_that_would_be_searched_for_hours_are_refused() {
    let bench = Bench::new();
    let path = bench.create("disk", None);
    let number = |offset| {
        let mut bytes = [0; 8];
        fs::File::open(&path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    };
    let table = number(48);
    let block = number(table);
    patch(&path, table + 8, &block.to_be_bytes());
    let error = refusal(open(&path));
    assert!(error.contains(&format!("two entries of its refcount table are {block:#x}")), "{error}");
    patch(&path, table + 8, &(block + 512).to_be_bytes());
    let error = refusal(open(&path));
    assert!(error.contains("an entry of the refcount table = "), "{error}");
    patch(&path, table + 8, &0_u64.to_be_bytes());
    open(&path).unwrap();
}

#[test]
fn fault_c5_a_backing_file_is_used_only_if_the_user_names_it_too() {
    let bench = Bench::new();
    let base = bench.path("base");
    fs::write(&base, [0x42; 1 << 16]).unwrap();
    let other = bench.path("other");
    fs::write(&other, [0x66; 1 << 16]).unwrap();
    let path = bench.create("disk", Some(("base", "raw")));
    let raw = |path: &Path| Backing::Raw(image(path, true));
    assert!(refusal(open(&path)).contains("has the backing file \"base\", which is used only if"));
    let error = refusal(Qcow2::open(image(&path, false), Some(&raw(&other))));
    assert!(error.contains("and the configuration names another: "), "{error}");
    let error = refusal(Qcow2::open(image(&path, false), Some(&Backing::Qcow2(image(&base, true)))));
    assert!(error.contains("is in the format \"raw\", and the configuration says qcow2"), "{error}");
    let error = refusal(Qcow2::open(image(&bench.create("alone", None), false), Some(&raw(&base))));
    assert!(error.contains("has no backing file"), "{error}");
    let disk = Qcow2::open(image(&path, false), Some(&raw(&base))).unwrap();
    assert_eq!(bench.read(&disk, 512, 512).unwrap(), [0x42; 512]);
    // Beyond its end.
    assert_eq!(bench.read(&disk, 1 << 16, 512).unwrap(), [0; 512]);
    bench.write(&disk, 1024, &[1; 512]).unwrap();
    assert_eq!(
        bench.read(&disk, 0, 2048).unwrap(),
        [[0x42; 1024], [1; 1024]].concat()[..1536].iter().copied().chain([0x42; 512]).collect::<Vec<_>>()
    );
    drop(disk);
    assert!(fs::read(&base).unwrap() == [0x42; 1 << 16]);
}

#[test]
fn fault_c5_a_name_in_a_header_opens_nothing() {
    let bench = Bench::new();
    let base = bench.path("base");
    fs::write(&base, [0; 1 << 16]).unwrap();
    for name in
        ["/etc/passwd", "json:{\"driver\":\"file\"}", "nbd://localhost", "../base/../../etc/passwd", ""]
    {
        let path = bench.create("disk", Some((name, "raw")));
        let given = Backing::Raw(image(&base, true));
        assert!(open(&path).is_err() || name.is_empty(), "{name}");
        assert!(Qcow2::open(image(&path, false), Some(&given)).is_err(), "{name}");
    }
}

#[test]
fn fault_c5_the_backing_file_of_a_backing_file_is_refused() {
    let bench = Bench::new();
    bench.create("first", None);
    let middle = bench.create("middle", Some(("first", "qcow2")));
    let path = bench.create("disk", Some(("middle", "qcow2")));
    let error = refusal(Qcow2::open(image(&path, false), Some(&Backing::Qcow2(image(&middle, true)))));
    assert!(error.contains("has a backing file itself, \"first\""), "{error}");
    let two = bench.create("two", Some(("first", "qcow2")));
    bench.write(&open(&bench.path("first")).unwrap(), 0, &[6; 512]).unwrap();
    let first = Backing::Qcow2(image(&bench.path("first"), true));
    let disk = Qcow2::open(image(&two, false), Some(&first)).unwrap();
    assert_eq!(bench.read(&disk, 0, 512).unwrap(), [6; 512]);
}

/// Reads the whole disk, writes all over it, and gives some back: nothing of that may do more than fail.
fn exercise(bench: &Bench, disk: &Qcow2) {
    let length = disk.length().unwrap_or(0).min(SIZE);
    for offset in (0..length).step_by(1 << 18) {
        let _ = bench.read(disk, offset, 4096);
        let _ = bench.write(disk, offset, &[0xa5; 1024]);
        let _ = disk.write_zeroes(offset + 512, 1 << 16, offset & 1 << 18 != 0);
    }
    let _ = disk.discard(0, length / 2);
    let _ = disk.flush();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn fault_c5_no_header_panics_or_takes_memory_without_bound(
        patches in prop::collection::vec(
            (
                prop_oneof![0_u64..144, 144_u64..512],
                prop_oneof![Just(0_u8), Just(1), Just(0x80), Just(0xff), any::<u8>()],
            ),
            1..12,
        ),
    ) {
        let bench = Bench::new();
        let path = bench.create_with("disk", None, 512);
        patches.iter().for_each(|(offset, byte)| patch(&path, *offset, &[*byte]));
        // The magic and the version let it get farther.
        patch(&path, 0, b"QFI\xfb\0\0\0\x03");
        if let Ok(disk) = open(&path) {
            exercise(&bench, &disk);
        }
    }

    #[test]
    fn fault_c5_no_tables_do_more_than_fail_requests(
        words in prop::collection::vec(
            (0_u64..4096, prop_oneof![any::<u64>(), (0_u64..64).prop_map(|n| n << 9), (0_u64..64).prop_map(|n| 1 << 63 | n << 9)]),
            1..200,
        ),
        header in any::<bool>(),
    ) {
        let bench = Bench::new();
        let path = bench.create_with("disk", None, 512);
        {
            let disk = open(&path).unwrap();
            for offset in (0..SIZE).step_by(1 << 18) {
                bench.write(&disk, offset, &[1; 512]).unwrap();
            }
        }
        let clusters = fs::metadata(&path).unwrap().len() / 8;
        let first = if header { 0 } else { 64 };
        for (at, word) in words {
            patch(&path, (first + at % (clusters - first)) * 8, &word.to_be_bytes());
        }
        if let Ok(disk) = open(&path) {
            exercise(&bench, &disk);
        }
        // What it has written is again what can be opened, or is refused.
        if let Ok(disk) = open(&path) {
            exercise(&bench, &disk);
        }
    }
}
