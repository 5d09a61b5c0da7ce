//! Host memory of each backing, as the kernel sees it.
//!
//! Tests of huge pages of a fixed size need a host that has reserved some; where there are none, they say so.
#![cfg(not(miri))]
#![expect(unsafe_code, reason = "touches the memory")]

use std::fs::OpenOptions;
use std::io::{Write, stderr};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{SealFlags, fcntl_add_seals};

use super::super::DiscardError;
use super::super::testing::Vma;
use super::*;

const MIB: u64 = 1 << 20;

/// In the environment, tests use the amount of memory that they are about.
const FULL: &str = "VMM_FULL";

/// Bytes of a discard.
fn discarded() -> u64 {
    if std::env::var_os(FULL).is_some() { 1 << 30 } else { 32 * MIB }
}

fn write(memory: &HostMemory, offset: u64, value: u8) {
    assert!(offset < memory.len());
    // SAFETY:
    // - the byte is inside, and this thread alone uses the memory.
    unsafe { memory.as_ptr().wrapping_add(offset as usize).write_volatile(value) }
}

fn read(memory: &HostMemory, offset: u64) -> u8 {
    assert!(offset < memory.len());
    // SAFETY:
    // - the byte is inside, and this thread alone uses the memory.
    unsafe { memory.as_ptr().wrapping_add(offset as usize).read_volatile() }
}

/// Writes to every page.
fn touch(memory: &HostMemory) {
    (0..memory.len()).step_by(4096).for_each(|offset| write(memory, offset, 0xa5));
}

fn vma(memory: &HostMemory) -> Vma {
    Vma::at(memory.as_ptr() as usize).unwrap()
}

fn memfd() -> Backing {
    Backing::new(BackingKind::Memfd)
}

/// A file without a name, of so many bytes of `0x11`.
fn file(size: u64) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0x11; size as usize]).unwrap();
    Arc::new(file)
}

fn of_file(file: &Arc<File>, shared: bool, offset: u64) -> Backing {
    Backing::new(BackingKind::File { file: Arc::clone(file), shared, offset })
}

fn refusal(backing: &Backing, size: u64) -> BackingError {
    HostMemory::reserve(backing, size).unwrap_err()
}

/// Whether the host has so many bytes of these pages; says so if not.
fn has_huge_pages(pages: HugePages, bytes: u64) -> bool {
    let page_size = pages.fixed_size().unwrap();
    let has = descriptor::available_huge_pages(page_size) >= bytes.div_ceil(page_size);
    if !has {
        writeln!(stderr(), "not run: {bytes} bytes of {pages:?} pages are not reserved on this host")
            .unwrap();
    }
    has
}

#[test]
fn every_backing_reads_as_it_should_and_keeps_what_is_written() {
    let file = file(MIB);
    for (backing, first) in [
        (Backing::default(), 0),
        (memfd(), 0),
        (of_file(&file, false, 4096), 0x11),
        (of_file(&file, true, 4096), 0x11),
    ] {
        let memory = HostMemory::reserve(&backing, MIB - 4096).unwrap();
        assert_eq!((memory.len(), memory.page_size()), (MIB - 4096, 4096));
        assert_eq!(read(&memory, memory.len() - 1), first, "{backing:?}");
        write(&memory, memory.len() - 1, 7);
        assert_eq!(read(&memory, memory.len() - 1), 7, "{backing:?}");
    }
}

#[test]
fn what_is_shared_is_in_the_file_and_what_is_private_is_not() {
    let file = file(MIB);
    let at = |file: &File, offset| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    };
    let private = HostMemory::reserve(&of_file(&file, false, 8192), 4096).unwrap();
    write(&private, 5, 7);
    assert_eq!(at(&file, 8192 + 5), 0x11);
    let shared = HostMemory::reserve(&of_file(&file, true, 8192), 4096).unwrap();
    write(&shared, 5, 7);
    let (found, offset) = shared.file().unwrap();
    assert_eq!((at(found, offset + 5), offset), (7, 8192));
    let memfd = HostMemory::reserve(&memfd(), 4096).unwrap();
    write(&memfd, 5, 7);
    assert_eq!(at(memfd.file().unwrap().0, 5), 7);
    assert!(HostMemory::anonymous(4096).unwrap().file().is_none());
}

#[test]
fn nothing_is_touched_without_prefault_and_all_with_it() {
    for mut backing in [Backing::default(), memfd(), of_file(&file(4 * MIB), false, 0)] {
        for prefault in [false, true] {
            backing.prefault = prefault;
            let memory = HostMemory::reserve(&backing, 4 * MIB).unwrap();
            assert_eq!(vma(&memory).bytes("Rss"), if prefault { 4 * MIB } else { 0 }, "{backing:?}");
        }
    }
}

#[test]
fn memory_is_in_core_dumps_only_if_it_is_to_be() {
    for dump in [false, true] {
        let memory = HostMemory::reserve(&Backing { dump, ..memfd() }, MIB).unwrap();
        assert_eq!(vma(&memory).has("dd"), !dump);
    }
}

#[test]
fn locked_pages_are_locked_when_they_are_there_and_can_be_discarded() {
    // As little as any limit allows.
    let backing = Backing { lock: true, ..Backing::default() };
    let memory = HostMemory::reserve(&backing, 16 << 10).unwrap();
    assert!(vma(&memory).has("lo"));
    assert_eq!(vma(&memory).bytes("Locked"), 0);
    write(&memory, 0, 1);
    assert_eq!(vma(&memory).bytes("Locked"), 4096);
    memory.discard(0, 16 << 10).unwrap();
    assert_eq!((read(&memory, 0), vma(&memory).bytes("Locked")), (0, 0));
    write(&memory, 0, 1);
    assert_eq!(vma(&memory).bytes("Locked"), 4096);
    let prefaulted = HostMemory::reserve(&Backing { prefault: true, ..backing }, 16 << 10).unwrap();
    assert_eq!(vma(&prefaulted).bytes("Locked"), 16 << 10);
}

#[test]
fn transparent_huge_pages_are_advised_and_aligned() {
    let backing = Backing { huge_pages: HugePages::Transparent, ..Backing::default() };
    let memory = HostMemory::reserve(&backing, 4 * MIB).unwrap();
    assert!(vma(&memory).has("hg"));
    assert!((memory.as_ptr() as u64).is_multiple_of(2 * MIB));
    assert_eq!(memory.page_size(), 4096);
}

#[test]
fn a_memfd_keeps_its_size_whoever_has_it() {
    let memory = HostMemory::reserve(&memfd(), MIB).unwrap();
    let (file, _) = memory.file().unwrap();
    for length in [0, 4096, 2 * MIB] {
        assert_eq!(file.set_len(length).unwrap_err().raw_os_error(), Some(libc::EPERM), "{length}");
    }
    assert!(fcntl_add_seals(file, SealFlags::WRITE).is_err());
}

#[test]
fn sizes_that_are_not_whole_pages_are_refused() {
    for (pages, size) in [
        (HugePages::None, 0),
        (HugePages::None, 4097),
        (HugePages::Size2M, MIB),
        (HugePages::Size1G, 512 * MIB),
        (HugePages::Size2M, 0),
    ] {
        for kind in [BackingKind::Anonymous, BackingKind::Memfd] {
            let error = refusal(&Backing { huge_pages: pages, ..Backing::new(kind) }, size);
            assert!(matches!(error, BackingError::BadSize { .. }), "{error}");
        }
    }
}

#[test]
fn fault_c2_more_than_the_host_has_is_an_error() {
    let error = refusal(&Backing::default(), 1 << 50);
    assert!(matches!(error, BackingError::Addresses { .. }), "{error}");
    let huge = Backing { huge_pages: HugePages::Size2M, ..Backing::default() };
    // A host has no pool of 64 TiB. One without pools of this size has no such file system.
    match refusal(&huge, 1 << 46) {
        BackingError::HugePages { needed, available, .. } => assert!(available < needed && needed == 1 << 25),
        other => {
            assert!(matches!(other, BackingError::Memfd { .. } | BackingError::Addresses { .. }), "{other}");
        }
    }
}

#[test]
fn fault_c3_a_file_that_cannot_be_memory_is_refused_with_names_and_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ram");
    std::fs::write(&path, vec![0; 8192]).unwrap();
    let open = |read, write| Arc::new(OpenOptions::new().read(read).write(write).open(&path).unwrap());
    let text = |backing: &Backing, size| {
        let error = refusal(backing, size);
        assert!(error.is_about_file(), "{error:?}");
        error.to_string()
    };
    let name = format!("{path:?}");
    for (file, shared, offset, size, expected) in [
        (
            open(true, true),
            true,
            4096,
            8192,
            "has 8192 bytes, but guest memory takes 8192 from offset 4096 on",
        ),
        (open(true, true), true, 1 << 62, 4096, "has 8192 bytes"),
        (open(true, true), true, u64::MAX - 4095, 4096, "has 8192 bytes"),
        (open(true, false), true, 0, 4096, "is not open for writing"),
        (open(false, true), true, 0, 4096, "is not open for reading"),
        (open(false, true), false, 0, 4096, "is not open for reading"),
        (open(true, true), true, 1, 4096, "offset 1 of"),
    ] {
        let text = text(&of_file(&file, shared, offset), size);
        assert!(text.contains(expected) && text.contains(&name), "{text}");
    }
    HostMemory::reserve(&of_file(&open(true, false), false, 4096), 4096).unwrap();
    let huge = Backing { huge_pages: HugePages::Size2M, ..of_file(&open(true, true), true, 0) };
    assert!(text(&huge, 2 * MIB).contains("has pages of 4096 bytes, not of 2097152"));
    let other = Arc::new(File::open(directory.path()).unwrap());
    assert!(text(&of_file(&other, false, 0), 4096).contains("is a directory"));
    let other = Arc::new(File::open("/dev/null").unwrap());
    assert!(text(&of_file(&other, false, 0), 4096).contains("is a character device"));
}

#[test]
fn a_stop_leaves_nothing_behind() {
    let backing = Backing { prefault: true, ..Backing::default() };
    let error = HostMemory::reserve_unless(&backing, 4 * MIB, &|| true).unwrap_err();
    assert!(matches!(error, BackingError::Stopped { done: 0, .. }), "{error}");
}

#[test]
fn a_discard_outside_or_of_parts_of_pages_is_refused() {
    for backing in [Backing::default(), memfd(), of_file(&file(2 * MIB), true, MIB)] {
        let memory = HostMemory::reserve(&backing, MIB).unwrap();
        for (offset, length) in [(MIB, 4096), (0, MIB + 4096), (4096, MIB), (u64::MAX - 4095, 8192)] {
            let error = memory.discard(offset, length).unwrap_err();
            assert!(matches!(error, DiscardError::Outside { .. }), "{error}");
        }
        for (offset, length) in [(1, 4096), (0, 1), (4096, 4097)] {
            let error = memory.discard(offset, length).unwrap_err();
            assert!(matches!(error, DiscardError::NotPages { .. }), "{error}");
        }
        memory.discard(MIB, 0).unwrap();
    }
}

#[test]
fn a_discard_takes_its_pages_and_no_other() {
    let file = file(3 * MIB);
    for (backing, left) in [
        (Backing::default(), 0),
        (memfd(), 0),
        (of_file(&file, false, MIB), 0x11),
        (of_file(&file, true, MIB), 0),
    ] {
        let memory = HostMemory::reserve(&backing, MIB).unwrap();
        touch(&memory);
        memory.discard(8192, 4096).unwrap();
        let bytes = [4096, 8192, 12288].map(|offset| read(&memory, offset));
        assert_eq!(bytes, [0xa5, left, 0xa5], "{backing:?}");
    }
    // The file keeps its size, and what lies before and behind.
    assert_eq!(file.metadata().unwrap().len(), 3 * MIB);
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, MIB - 2).unwrap();
    assert_eq!(bytes, [0x11; 2]);
}

#[test]
fn a_discard_returns_private_memory_to_the_host() {
    for huge_pages in [HugePages::None, HugePages::Transparent] {
        let memory = HostMemory::reserve(&Backing { huge_pages, ..Backing::default() }, discarded()).unwrap();
        touch(&memory);
        assert_eq!(vma(&memory).bytes("Rss"), memory.len());
        memory.discard(0, memory.len()).unwrap();
        assert!(vma(&memory).bytes("Rss") <= memory.len() / 100);
    }
}

#[test]
fn a_discard_returns_the_pages_of_a_memfd_and_of_a_shared_file_to_the_host() {
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(discarded()).unwrap();
    for backing in [memfd(), of_file(&Arc::new(sparse), true, 0)] {
        let memory = HostMemory::reserve(&backing, discarded()).unwrap();
        let blocks = || memory.file().unwrap().0.metadata().unwrap().blocks() * 512;
        touch(&memory);
        memory.file().unwrap().0.sync_all().unwrap();
        assert!(blocks() >= memory.len() && vma(&memory).bytes("Rss") == memory.len(), "{backing:?}");
        memory.discard(0, memory.len()).unwrap();
        assert!(blocks() <= memory.len() / 100 && vma(&memory).bytes("Rss") == 0, "{backing:?}");
    }
}

#[test]
fn a_discard_returns_huge_pages_to_the_pool() {
    for (pages, bytes) in [(HugePages::Size2M, discarded()), (HugePages::Size1G, 1 << 30)] {
        if !has_huge_pages(pages, bytes) {
            continue;
        }
        let page_size = pages.fixed_size().unwrap();
        let before = descriptor::available_huge_pages(page_size);
        for kind in [BackingKind::Anonymous, BackingKind::Memfd] {
            let backing = Backing { huge_pages: pages, prefault: true, lock: true, ..Backing::new(kind) };
            let memory = HostMemory::reserve(&backing, bytes).unwrap();
            assert_eq!((memory.page_size(), memory.as_ptr() as u64 % page_size), (page_size, 0));
            assert_eq!(descriptor::available_huge_pages(page_size), before - bytes / page_size);
            write(&memory, bytes - 1, 1);
            let error = memory.discard(4096, 4096).unwrap_err();
            assert!(matches!(error, DiscardError::NotPages { .. }), "{error}");
            memory.discard(0, bytes).unwrap();
            assert_eq!(descriptor::available_huge_pages(page_size), before);
            assert_eq!(read(&memory, bytes - 1), 0);
        }
        assert_eq!(descriptor::available_huge_pages(page_size), before);
    }
}

#[test]
fn huge_pages_that_are_not_there_are_refused_before_they_are_touched() {
    let pages = HugePages::Size2M;
    if !has_huge_pages(pages, 2 * MIB) {
        return;
    }
    let available = descriptor::available_huge_pages(2 * MIB);
    let size = (available + 1) * 2 * MIB;
    match refusal(&Backing { huge_pages: pages, ..memfd() }, size) {
        BackingError::HugePages { needed, available: found, .. } => {
            assert_eq!((needed, found), (available + 1, available));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn renewed_memory_is_what_it_was_at_first_at_the_same_addresses() {
    let kinds: [(Backing, u8); 4] = [
        (Backing::default(), 0),
        (memfd(), 0),
        (Backing::new(BackingKind::File { file: file(MIB), shared: false, offset: 0 }), 0x11),
        (Backing::new(BackingKind::File { file: file(MIB), shared: true, offset: 0 }), 0xa5),
    ];
    for (kind, expected) in kinds {
        for prefault in [false, true] {
            let backing = Backing { prefault, ..kind.clone() };
            let mut memory = HostMemory::reserve(&backing, MIB).unwrap();
            let start = memory.as_ptr();
            touch(&memory);
            memory.renew(&backing, &|| false).unwrap();
            assert_eq!(memory.as_ptr(), start);
            assert!((0..MIB).step_by(4096).all(|offset| read(&memory, offset) == expected), "{backing:?}");
        }
    }
}

#[test]
fn making_the_pages_of_renewed_memory_can_be_stopped() {
    let backing = Backing { prefault: true, ..memfd() };
    let mut memory = HostMemory::reserve(&backing, MIB).unwrap();
    let error = memory.renew(&backing, &|| true).unwrap_err();
    assert!(matches!(error, BackingError::Stopped { .. }), "{error}");
}

#[test]
fn fault_c3_a_file_that_became_shorter_is_not_renewed() {
    let file = file(MIB);
    let kind = BackingKind::File { file: Arc::clone(&file), shared: true, offset: 0 };
    let mut memory = HostMemory::reserve(&Backing::new(kind.clone()), MIB).unwrap();
    file.set_len(MIB / 2).unwrap();
    let error = memory.renew(&Backing::new(kind), &|| false).unwrap_err();
    assert!(matches!(error, BackingError::TooShort { .. }), "{error}");
}

#[test]
fn renewed_huge_pages_are_set_aside_again() {
    let backing = Backing { huge_pages: HugePages::Size2M, ..memfd() };
    let Ok(mut memory) = HostMemory::reserve(&backing, 2 * MIB) else {
        return writeln!(stderr(), "no huge pages on this host").unwrap();
    };
    touch(&memory);
    memory.renew(&backing, &|| false).unwrap();
    assert_eq!(read(&memory, 0), 0);
}
