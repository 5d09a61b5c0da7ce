//! What the guest's RAM is on this host: asked for in `[memory]`, checked, and reserved.

pub(crate) mod host;
pub(crate) mod hotplug;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use host::Locked;
use vmm_core::{DirtyMechanism, Kvm};
use vmm_memory::{Backing, BackingError, BackingKind, HostMemory, RamRange};

use crate::config::{DirtyLogKind, HugePages, MemoryBacking, MemoryConfig};
use crate::files::Files;
use crate::outcome::Failure;

/// The setting of transparent huge pages.
pub(crate) const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Host memory for one life of a machine, each part with its guest-physical address.
pub(crate) type Ram = Vec<(u64, Arc<HostMemory>)>;

/// Checks what `config` asks of the host, before anything is built; `pluggable` bytes can be plugged besides.
///
/// # Errors
/// What this host does not have or allow, with the numbers and what to do.
pub(crate) fn check(config: &MemoryConfig, pluggable: u64) -> Result<(), Failure> {
    let files = Files::below("/");
    // Looked at only if it matters: every start pays for it.
    let locked = if config.lock { Locked::look(&files) } else { Locked::default() };
    host::check(&files, locked, config, pluggable).map_err(Failure::host_cannot)?;
    let is_off = || files.read(TRANSPARENT).is_ok_and(|mode| mode.contains("[never]"));
    if config.huge_pages == HugePages::Transparent && is_off() {
        tracing::warn!(
            "memory.huge_pages: transparent huge pages are off on this host ({TRANSPARENT}): no effect"
        );
    }
    Ok(())
}

/// Reserves the RAM of a machine in these ranges, all of its pages if that is asked for. `None`: `stop` was true meanwhile.
///
/// # Errors
/// What the host does not give, or what is wrong with the file; nothing is left reserved.
pub(crate) fn reserve(
    backing: &Backing,
    ranges: &[RamRange],
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Ram>, Failure> {
    let mut ram = Ram::with_capacity(ranges.len());
    let mut before = 0;
    for range in ranges {
        match HostMemory::reserve_unless(&backing.further(before), range.size, stop) {
            Ok(memory) => ram.push((range.start, Arc::new(memory))),
            Err(BackingError::Stopped { .. }) => return Ok(None),
            Err(error) => return Err(failure(error)),
        }
        before += range.size;
    }
    Ok(Some(ram))
}

/// Makes `ram`, which was reserved as `backing` says, ready for the next life of the machine: as [`reserve`] would make it, at the same
/// host addresses. A part that somebody still has, for a request that did not end with the last life, is left to him, and reserved
/// anew; so is all of it with `anew`.
///
/// # Errors
/// As [`reserve`].
pub(crate) fn renew(
    backing: &Backing,
    ram: Ram,
    anew: bool,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Ram>, Failure> {
    let mut renewed = Ram::with_capacity(ram.len());
    let mut before = 0;
    for (start, memory) in ram {
        let (size, backing) = (memory.len(), backing.further(before));
        let own = if anew { None } else { Arc::into_inner(memory) };
        let made = match own {
            Some(mut memory) => memory.renew(&backing, stop).map(|()| memory),
            None => HostMemory::reserve_unless(&backing, size, stop),
        };
        match made {
            Ok(memory) => renewed.push((start, Arc::new(memory))),
            Err(BackingError::Stopped { .. }) => return Ok(None),
            Err(error) => return Err(failure(error)),
        }
        before += size;
    }
    Ok(Some(renewed))
}

/// The size of a dirty ring for which nobody has asked otherwise: 65,536 pages, what every KVM with rings can.
const RING_BYTES: u32 = 1 << 20;

/// How KVM is to say what the guest has written to.
///
/// # Errors
/// This host has no rings.
pub(crate) fn dirty_mechanism(kvm: &Kvm, config: &MemoryConfig) -> Result<DirtyMechanism, Failure> {
    let capabilities = kvm.capabilities();
    let no_rings = |why| {
        Failure::host_cannot(anyhow!(
            "memory.dirty_log (--dirty-log): this host has no usable dirty rings: {why}; use \"auto\""
        ))
    };
    match config.dirty_log {
        DirtyLogKind::Auto => Ok(DirtyMechanism::of_host(capabilities)),
        DirtyLogKind::Bitmap => Ok(DirtyMechanism::Bitmap),
        DirtyLogKind::Ring if capabilities.dirty_ring == 0 => {
            Err(no_rings("its KVM lacks KVM_CAP_DIRTY_LOG_RING (Linux 5.11)"))
        }
        DirtyLogKind::Ring if Files::below("/").exists("/sys/module/kvm_pvm") => {
            Err(no_rings("KVM-PVM, which interprets guests, names more pages than a ring has entries"))
        }
        DirtyLogKind::Ring => Ok(DirtyMechanism::Ring { bytes: RING_BYTES.min(capabilities.dirty_ring) }),
    }
}

fn failure(error: BackingError) -> Failure {
    failure_of(error, "the guest's memory (section [memory])")
}

fn failure_of(error: BackingError, what: &'static str) -> Failure {
    let is_about_file = error.is_about_file();
    let error = anyhow::Error::new(error).context(what);
    if is_about_file { Failure::bad_input(error) } else { Failure::host_cannot(error) }
}

/// What the RAM of all lives of a machine is made of: its file, if there is one, is opened here and not again.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn backing(config: &MemoryConfig) -> Result<Backing, Failure> {
    let file = |path: &Path, shared| {
        let file = Arc::new(open(path, shared).map_err(Failure::bad_input)?);
        Ok::<_, Failure>(BackingKind::File { file, shared, offset: 0 })
    };
    let kind = match &config.backing {
        MemoryBacking::Anonymous => BackingKind::Anonymous,
        MemoryBacking::Memfd => BackingKind::Memfd,
        MemoryBacking::SharedFile(path) => file(path, true)?,
        MemoryBacking::PrivateFile(path) => file(path, false)?,
    };
    let MemoryConfig { huge_pages, prefault, lock, dump, .. } = *config;
    Ok(Backing { kind, huge_pages: huge_pages.into(), prefault, lock, dump })
}

/// Opens the file without blocking, whatever it is; its kind is looked at by whoever maps it.
fn open(path: &Path, shared: bool) -> anyhow::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).write(shared).custom_flags(flags).open(path);
    let purpose = if shared { "for reading and writing" } else { "for reading" };
    file.with_context(|| {
        format!("memory.backing (--memory-backing): cannot open {} {purpose}", path.display())
    })
}

/// What to say where a thread that was to make pages is not there any more.
pub(crate) fn lost() -> Failure {
    Failure::internal(anyhow!("the thread that makes the pages of guest memory panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ranges() -> [RamRange; 2] {
        [RamRange { start: 0, size: MIB }, RamRange { start: 1 << 32, size: MIB }]
    }

    #[test]
    fn every_range_has_its_part_and_of_a_file_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ram");
        File::create(&path).unwrap().set_len(2 * MIB).unwrap();
        for (backing, offsets) in [
            (MemoryBacking::Anonymous, [None, None]),
            (MemoryBacking::Memfd, [Some(0), Some(0)]),
            (MemoryBacking::SharedFile(path.clone()), [Some(0), Some(MIB)]),
            (MemoryBacking::PrivateFile(path.clone()), [Some(0), Some(MIB)]),
        ] {
            let config = MemoryConfig { backing, ..MemoryConfig::default() };
            let backing = super::backing(&config).unwrap();
            let ram = reserve(&backing, &ranges(), &|| false).unwrap().unwrap();
            let check = |ram: &Ram| {
                let found: Vec<_> =
                    ram.iter().map(|(_, memory)| memory.file().map(|(_, offset)| offset)).collect();
                assert_eq!(found, offsets, "{config:?}");
                assert_eq!((ram[1].0, ram[1].1.len()), (1 << 32, MIB));
            };
            check(&ram);
            let places = |ram: &Ram| [0, 1].map(|part: usize| ram[part].1.as_ptr());
            let (before, held) = (places(&ram), Arc::clone(&ram[1].1));
            let ram = renew(&backing, ram, false, &|| false).unwrap().unwrap();
            check(&ram);
            assert_eq!(
                (places(&ram)[0], places(&ram)[1] == before[1]),
                (before[0], false),
                "held by somebody"
            );
            drop(held);
            check(&renew(&backing, ram, true, &|| false).unwrap().unwrap());
        }
    }

    #[test]
    fn a_stop_while_pages_are_made_is_no_failure() {
        let config = MemoryConfig { prefault: true, ..MemoryConfig::default() };
        let backing = backing(&config).unwrap();
        assert!(reserve(&backing, &ranges(), &|| true).unwrap().is_none());
        let ram = reserve(&backing, &ranges(), &|| false).unwrap().unwrap();
        assert!(renew(&backing, ram, false, &|| true).unwrap().is_none());
    }

    #[test]
    fn fault_c3_a_file_that_became_shorter_or_is_no_file_is_the_users_to_mend() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let short = directory.path().join("short");
        File::create(&short).unwrap().set_len(MIB).unwrap();
        for backing in [
            MemoryBacking::SharedFile(fifo.clone()),
            MemoryBacking::PrivateFile(fifo),
            MemoryBacking::SharedFile(short.clone()),
            MemoryBacking::PrivateFile(short),
            MemoryBacking::PrivateFile("/no-such-file".into()),
        ] {
            let config = MemoryConfig { backing, ..MemoryConfig::default() };
            let reserved =
                super::backing(&config).and_then(|backing| reserve(&backing, &ranges(), &|| false));
            let failure = reserved.unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{failure}");
        }
    }
}
