//! The descriptor behind guest memory: memfds that are made here, and files that are checked before they are mapped.

use std::fs::{File, read_link, read_to_string};
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, fstatfs, memfd_create};
use vmm_core::file_kind;

use super::{BackingError, HugePages};
use crate::PAGE;

/// The file system of huge pages, by statfs(2).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What a file is mapped for, as far as its descriptor must permit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) shared: bool,
}

/// A file without a name, of `size` bytes that nobody can take away or add to.
pub(super) fn memfd(size: u64, huge_pages: HugePages) -> Result<File, BackingError> {
    let page_size = huge_pages.fixed_size().unwrap_or(PAGE);
    let failed = |step| move |source: io::Error| BackingError::Memfd { size, page_size, step, source };
    let pages = match huge_pages {
        HugePages::None | HugePages::Transparent => MemfdFlags::empty(),
        HugePages::Size2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        HugePages::Size1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages;
    let made = match memfd_create("guest-memory", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => memfd_create("guest-memory", flags),
        made => made,
    };
    let file = File::from(made.map_err(io::Error::from).map_err(failed("memfd_create"))?);
    file.set_len(size).map_err(failed("ftruncate"))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(io::Error::from).map_err(failed("F_ADD_SEALS"))?;
    Ok(file)
}

/// Checks that `part` of `file` can be mapped; returns the size of the file's pages.
pub(super) fn check(file: &File, part: Part, huge_pages: HugePages) -> Result<u64, BackingError> {
    let Part { offset, size, shared } = part;
    let look = |source: io::Error| BackingError::Look { name: name(file), source };
    let metadata = file.metadata().map_err(look)?;
    if !metadata.is_file() {
        return Err(BackingError::NotRegular { name: name(file), kind: file_kind(metadata.file_type()) });
    }
    check_access(file, shared)?;
    let page_size = page_size(file).map_err(look)?;
    if let Some(wanted) = huge_pages.fixed_size().filter(|wanted| *wanted != page_size) {
        return Err(BackingError::OtherPages { name: name(file), found: page_size, wanted });
    }
    if !offset.is_multiple_of(page_size) {
        return Err(BackingError::BadOffset { name: name(file), offset, page_size });
    }
    let length = metadata.len();
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return Err(BackingError::TooShort { name: name(file), length, offset, size });
    }
    Ok(page_size)
}

fn check_access(file: &File, shared: bool) -> Result<(), BackingError> {
    let look = |source: rustix::io::Errno| BackingError::Look { name: name(file), source: source.into() };
    let mode = fcntl_getfl(file).map_err(look)? & OFlags::RWMODE;
    let (readable, writable) = (mode != OFlags::WRONLY, mode != OFlags::RDONLY);
    let missing = match (readable, writable) {
        (false, _) => "reading",
        (true, false) if shared => "writing",
        (true, _) => return Ok(()),
    };
    let purpose = if shared { "shared with the file" } else { "copied from the file" };
    Err(BackingError::NotOpenFor { name: name(file), missing, purpose })
}

/// The size of the pages in which `file` is mapped.
fn page_size(file: &File) -> io::Result<u64> {
    let system = fstatfs(file)?;
    #[expect(clippy::cast_sign_loss, reason = "a magic number and a size of blocks")]
    let (magic, block) = (system.f_type as u64, system.f_bsize as u64);
    Ok(if magic == HUGETLBFS_MAGIC { block } else { PAGE })
}

/// What the process knows `file` by; for a file that was deleted meanwhile, the kernel says that.
pub(super) fn name(file: &File) -> String {
    read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_or_else(|_| format!("file descriptor {}", file.as_raw_fd()), |path| format!("{path:?}"))
}

/// How many huge pages of this size nobody has or has reserved, with those that the host would make on demand; 0 where the
/// host has none of this size.
pub(super) fn available_huge_pages(page_size: u64) -> u64 {
    let directory = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_size >> 10);
    let count = |name: &str| {
        let text = read_to_string(format!("{directory}/{name}")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let free = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    let on_demand = count("nr_overcommit_hugepages").saturating_sub(count("surplus_hugepages"));
    free.saturating_add(on_demand)
}
