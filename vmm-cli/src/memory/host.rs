//! What the host has of memory: huge pages, what is available, what may be locked; and whether it is enough.

use std::fmt;

use rustix::process::{Resource, getrlimit};
use thiserror::Error;

use crate::config::{HugePages, MemoryConfig};
use crate::files::Files;

/// Memory that `CAP_IPC_LOCK` lets a process lock whatever its limit is; its bit in `CapEff`.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Why the host cannot give what `[memory]` asks for.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum TooLittle {
    #[error(
        "memory.huge_pages (--huge-pages): the guest needs {needed} huge pages of {page_size}, and of the {total} that \
         this host has set aside {available} can be had; `echo {wanted} | sudo tee {directory}/nr_hugepages`{boot}"
    )]
    HugePages {
        needed: u64,
        page_size: Bytes,
        total: u64,
        available: u64,
        wanted: u64,
        directory: String,
        boot: &'static str,
    },
    #[error("memory.huge_pages (--huge-pages): this host has no huge pages of {page_size} (no {directory})")]
    NoHugePages { page_size: Bytes, directory: String },
    #[error(
        "memory.prefault (--prefault): the guest needs {needed} at once, and this host has {available} available \
         (MemAvailable in /proc/meminfo); give the guest less memory, or leave prefault out"
    )]
    Available { needed: Bytes, available: Bytes },
    #[error(
        "memory.prefault (--prefault): the guest needs {needed} at once, and the cgroup has {room} left ({path}); give the \
         guest less memory or the cgroup more, or leave prefault out"
    )]
    Cgroup { needed: Bytes, room: Bytes, path: String },
    #[error(
        "memory.lock (--lock-memory): the guest needs {needed} locked, and this process may lock {limit} (RLIMIT_MEMLOCK), \
         of which {locked} are; raise the limit (`sudo prlimit --pid $$ --memlock=unlimited:unlimited`, in the same \
         shell), or give it CAP_IPC_LOCK"
    )]
    Lock { needed: Bytes, limit: Bytes, locked: Bytes },
}

/// A number of bytes, for people: exact, with a unit where that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(factor, _)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((factor, unit)) => write!(f, "{} {unit}", self.0 / factor),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// What this process may lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Locked {
    /// The limit; `None` is none.
    limit: Option<u64>,
    locked: u64,
}

impl Locked {
    /// Looks at this process.
    pub(crate) fn look(files: &Files) -> Self {
        let status = files.read("/proc/self/status").unwrap_or_default();
        let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::trim);
        let capabilities = field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
        let limit = getrlimit(Resource::Memlock).current.filter(|_| capabilities & CAP_IPC_LOCK == 0);
        Self { limit, locked: field("VmLck:").and_then(kib).unwrap_or(0) }
    }
}

/// Whether the host can give what `config` asks for, with room for `pluggable` bytes more: huge pages and the limit of what may be locked
/// are for all of that from the beginning.
pub(super) fn check(
    files: &Files,
    locked: Locked,
    config: &MemoryConfig,
    pluggable: u64,
) -> Result<(), TooLittle> {
    let ram = config.size.bytes();
    let needed = ram.saturating_add(pluggable);
    match config.huge_pages {
        HugePages::None | HugePages::Transparent => {}
        // The file system of such a file has its own share of the pool.
        _ if config.backing.path().is_some() => return Ok(()),
        // From here on only the pool matters: it is neither swapped out nor part of what is available.
        HugePages::Size2M => return check_pool(files, needed, &Pool::SIZE_2M),
        HugePages::Size1G => return check_pool(files, needed, &Pool::SIZE_1G),
    }
    if let Some(limit) = locked.limit.filter(|_| config.lock)
        && needed > limit.saturating_sub(locked.locked)
    {
        let locked = Bytes(locked.locked);
        return Err(TooLittle::Lock { needed: Bytes(needed), limit: Bytes(limit), locked });
    }
    if config.prefault { check_available(files, ram) } else { Ok(()) }
}

fn check_available(files: &Files, needed: u64) -> Result<(), TooLittle> {
    // What cannot be read is not guessed: the kernel decides.
    if let Some(available) = available(files).filter(|available| *available < needed) {
        return Err(TooLittle::Available { needed: Bytes(needed), available: Bytes(available) });
    }
    match cgroup_room(files).filter(|(room, _)| *room < needed) {
        Some((room, path)) => Err(TooLittle::Cgroup { needed: Bytes(needed), room: Bytes(room), path }),
        None => Ok(()),
    }
}

fn check_pool(files: &Files, needed: u64, pool: &Pool) -> Result<(), TooLittle> {
    let needed = needed.div_ceil(pool.page_size);
    let page_size = Bytes(pool.page_size);
    let Some(PoolState { total, available }) = pool.state(files) else {
        return Err(TooLittle::NoHugePages { page_size, directory: pool.directory() });
    };
    if available >= needed {
        return Ok(());
    }
    let boot = if pool.page_size == Pool::SIZE_1G.page_size {
        ", or hugepagesz=1G hugepages=… on the command line of the host's kernel"
    } else {
        ""
    };
    let wanted = total.saturating_add(needed - available);
    Err(TooLittle::HugePages {
        needed,
        page_size,
        total,
        available,
        wanted,
        directory: pool.directory(),
        boot,
    })
}

/// A pool of huge pages.
pub(crate) struct Pool {
    page_size: u64,
}

/// What is in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolState {
    /// Pages that are set aside.
    pub(crate) total: u64,
    /// Pages that nobody has or has reserved, and those that the host would set aside on demand.
    pub(crate) available: u64,
}

impl Pool {
    pub(crate) const SIZE_2M: Self = Self { page_size: 2 << 20 };
    pub(crate) const SIZE_1G: Self = Self { page_size: 1 << 30 };

    pub(crate) fn directory(&self) -> String {
        format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.page_size >> 10)
    }

    /// What is in it; `None`, if the host has no pages of this size.
    pub(crate) fn state(&self, files: &Files) -> Option<PoolState> {
        let count = |name: &str| files.number(&format!("{}/{name}", self.directory())).ok();
        let difference =
            |all: &str, less: &str| count(all).unwrap_or(0).saturating_sub(count(less).unwrap_or(0));
        let total = count("nr_hugepages")?;
        let free = difference("free_hugepages", "resv_hugepages");
        let on_demand = difference("nr_overcommit_hugepages", "surplus_hugepages");
        Some(PoolState { total, available: free.saturating_add(on_demand) })
    }
}

/// The host's available memory (`MemAvailable`) in bytes.
pub(crate) fn available(files: &Files) -> Option<u64> {
    let text = files.read("/proc/meminfo").ok()?;
    kib(text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?)
}

/// `N kB` in bytes.
fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The directories of this process's cgroup (version 2) and of those around it, from the inside to the outside; none where
/// memory is under the older cgroups.
pub(crate) fn cgroup_directories(membership: &str, mounts: &str) -> Vec<String> {
    // Fields by proc(5): 4 is the root inside the file system, 5 the mount point; the type follows a lone `-`.
    let mount_point = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4)).flatten()
    });
    let (Some(mount_point), Some(path)) =
        (mount_point, membership.lines().find_map(|line| line.strip_prefix("0::/")))
    else {
        return Vec::new();
    };
    let mut parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut directories = Vec::new();
    loop {
        directories.push([&[mount_point], parts.as_slice()].concat().join("/"));
        if parts.pop().is_none() {
            return directories;
        }
    }
}

/// What the cgroups around this process leave it, in bytes, and the limit that leaves the least. File pages that they could drop
/// count as room.
fn cgroup_room(files: &Files) -> Option<(u64, String)> {
    let membership = files.read("/proc/self/cgroup").ok()?;
    let directories = cgroup_directories(&membership, &files.read("/proc/self/mountinfo").ok()?);
    let rooms = directories.into_iter().filter_map(|directory| {
        let path = format!("{directory}/memory.max");
        let limit = files.number(&path).ok()?;
        let used = files.number(&format!("{directory}/memory.current")).ok()?;
        let stat = files.read(&format!("{directory}/memory.stat")).unwrap_or_default();
        let field = |name| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let droppable =
            field("inactive_file ").unwrap_or(0).saturating_add(field("active_file ").unwrap_or(0));
        Some((limit.saturating_sub(used.saturating_sub(droppable)), path))
    });
    rooms.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MemoryBacking, MemorySize};
    use crate::files::fixture::Fixture;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const GIB: u64 = 1 << 30;
    const UNLIMITED: Locked = Locked { limit: None, locked: 0 };

    fn config(size: &str) -> MemoryConfig {
        MemoryConfig { size: size.parse().unwrap(), ..MemoryConfig::default() }
    }

    #[test]
    fn nothing_is_asked_of_the_host_by_default() {
        let config = MemoryConfig { size: MemorySize::MAX, ..MemoryConfig::default() };
        assert_eq!(check(&Fixture::new(&[]).files, Locked { limit: Some(0), locked: 0 }, &config, 0), Ok(()));
    }

    #[test]
    fn prefault_beyond_what_is_available_is_refused_with_both_numbers() {
        let fixture = Fixture::new(&[("/proc/meminfo", "MemAvailable: 1048576 kB")]);
        let prefault = |size| MemoryConfig { prefault: true, ..config(size) };
        assert_eq!(check(&fixture.files, UNLIMITED, &prefault("1G"), 0), Ok(()));
        let error = check(&fixture.files, UNLIMITED, &prefault("1025M"), 0).unwrap_err();
        assert_eq!(error, TooLittle::Available { needed: Bytes(1025 << 20), available: Bytes(GIB) });
        assert!(
            error.to_string().contains("needs 1025 MiB at once, and this host has 1 GiB available"),
            "{error}"
        );
    }

    #[test]
    fn prefault_beyond_what_the_cgroups_leave_is_refused_by_the_tightest() {
        let fixture = Fixture::new(&[
            ("/proc/meminfo", "MemAvailable: 99999999 kB"),
            ("/proc/self/cgroup", "0::/a/b"),
            ("/proc/self/mountinfo", MOUNTS),
            ("/sys/fs/cgroup/a/b/memory.max", "max"),
            ("/sys/fs/cgroup/a/b/memory.current", "0"),
            ("/sys/fs/cgroup/a/memory.max", "1073741824"),
            ("/sys/fs/cgroup/a/memory.current", "805306368"),
            ("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 134217728\nactive_file 134217728"),
        ]);
        let prefault =
            |size| check(&fixture.files, UNLIMITED, &MemoryConfig { prefault: true, ..config(size) }, 0);
        assert_eq!(prefault("512M"), Ok(()));
        let path = "/sys/fs/cgroup/a/memory.max".to_owned();
        let error = TooLittle::Cgroup { needed: Bytes(513 << 20), room: Bytes(GIB / 2), path };
        assert_eq!(prefault("513M"), Err(error));
    }

    #[test]
    fn huge_pages_that_are_not_there_are_refused_with_the_command_that_sets_them_aside() {
        let at = |name: &str| format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let fixture = Fixture::new(&[
            (&at("nr_hugepages"), "600"),
            (&at("free_hugepages"), "500"),
            (&at("resv_hugepages"), "100"),
            (&at("nr_overcommit_hugepages"), "20"),
            (&at("surplus_hugepages"), "8"),
        ]);
        let huge = |size, huge_pages| MemoryConfig { huge_pages, prefault: true, lock: true, ..config(size) };
        let limit = Locked { limit: Some(0), locked: 0 };
        assert_eq!(check(&fixture.files, limit, &huge("824M", HugePages::Size2M), 0), Ok(()));
        // What can be plugged is set aside with the RAM.
        assert!(check(&fixture.files, limit, &huge("824M", HugePages::Size2M), 2 << 20).is_err());
        let error = check(&fixture.files, limit, &huge("824M", HugePages::Size2M), 200 << 20);
        let error = error.unwrap_err().to_string();
        for words in
            ["needs 512 huge pages of 2 MiB", "of the 600 ", " 412 can be had", "`echo 700 | sudo tee "]
        {
            assert!(error.contains(words), "{error}");
        }
        let error = check(&fixture.files, limit, &huge("1G", HugePages::Size1G), 0).unwrap_err().to_string();
        assert!(error.contains("has no huge pages of 1 GiB"), "{error}");
        let backing = MemoryBacking::SharedFile("/huge/ram".into());
        let of_file = MemoryConfig { backing, ..huge("1G", HugePages::Size1G) };
        assert_eq!(check(&fixture.files, limit, &of_file, 0), Ok(()));
    }

    #[test]
    fn more_than_may_be_locked_is_refused_with_the_numbers() {
        let files = Fixture::new(&[]).files;
        let lock = MemoryConfig { lock: true, ..config("8M") };
        assert_eq!(check(&files, Locked { limit: Some(8 << 20), locked: 0 }, &lock, 0), Ok(()));
        assert!(check(&files, Locked { limit: Some(8 << 20), locked: 0 }, &lock, 4096).is_err());
        assert_eq!(check(&files, UNLIMITED, &lock, 1 << 40), Ok(()));
        let error = check(&files, Locked { limit: Some(8 << 20), locked: 4096 }, &lock, 0).unwrap_err();
        let (needed, locked) = (Bytes(8 << 20), Bytes(4096));
        assert_eq!(error, TooLittle::Lock { needed, limit: needed, locked });
        assert!(error.to_string().contains("may lock 8 MiB (RLIMIT_MEMLOCK), of which 4 KiB are"), "{error}");
    }

    #[test]
    fn the_capability_lifts_the_limit() {
        let limit = |capabilities| {
            let status = format!("VmLck:\t      8 kB\nCapEff:\t{capabilities}\n");
            let fixture = Fixture::new(&[("/proc/self/status", &status)]);
            let found = Locked::look(&fixture.files);
            (found.limit, found.locked)
        };
        assert_eq!(limit("000001ffffffffff"), (None, 8192));
        assert_eq!(limit("0000000000000000"), (getrlimit(Resource::Memlock).current, 8192));
    }

    #[test]
    fn available_memory_is_in_bytes() {
        let of = |text| available(&Fixture::new(&[("/proc/meminfo", text)]).files);
        assert_eq!(of("MemTotal: 9 kB\nMemAvailable:     300 kB\n"), Some(300 << 10));
        assert_eq!(of("MemTotal: 9 kB\n"), None);
        assert_eq!(of("MemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn bytes_are_exact() {
        for (bytes, text) in
            [(0, "0 bytes"), (1, "1 bytes"), (4096, "4 KiB"), (GIB + 1024, "1048577 KiB"), (GIB, "1 GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
