//! Memory: how much there is for guests, and in which pages.

use std::io;

use super::finding::Finding;
use super::syscalls::try_prefault;
use crate::files::Files;
use crate::memory::TRANSPARENT;
use crate::memory::host::{self, Pool, cgroup_directories};

/// The default guest with what the monitor takes, in bytes.
const SMALL_MACHINE: u64 = 256 << 20;

/// All findings.
pub(super) fn check(files: &Files) -> Vec<Finding> {
    vec![
        available(files),
        cgroup(files),
        transparent(files),
        huge_pages(files, "huge-pages-2m", "2M", &Pool::SIZE_2M),
        huge_pages(files, "huge-pages-1g", "1G", &Pool::SIZE_1G),
        prefault(try_prefault()),
    ]
}

fn available(files: &Files) -> Finding {
    const ID: &str = "memory";
    const PATH: &str = "/proc/meminfo";
    if let Err(error) = files.read(PATH) {
        return Finding::unknown(ID, PATH, &error);
    }
    match host::available(files) {
        None => Finding::note(ID, format!("not known: {PATH} has no MemAvailable")),
        Some(bytes @ ..SMALL_MACHINE) => Finding::degraded(ID, format!("{} available", size(bytes)))
            .lost("guests that use more are killed, or other programs")
            .mend_by("end programs, or give the host more memory"),
        Some(bytes) => Finding::ok(ID, format!("{} available", size(bytes))),
    }
}

fn cgroup(files: &Files) -> Finding {
    const ID: &str = "memory-cgroup";
    let read = || Ok((files.read("/proc/self/cgroup")?, files.read("/proc/self/mountinfo")?));
    let (membership, mounts) = match read() {
        Ok(texts) => texts,
        Err(error) => return Finding::unknown(ID, "/proc/self", &error),
    };
    if membership
        .lines()
        .any(|line| line.split(':').nth(1).is_some_and(|list| list.split(',').any(|c| c == "memory")))
    {
        return Finding::note(ID, "not known: memory is under the older cgroups (version 1)");
    }
    let directories = cgroup_directories(&membership, &mounts);
    if directories.is_empty() {
        return Finding::note(ID, "not known: no cgroups (version 2) are mounted");
    }
    let limits = directories.into_iter().filter_map(|directory| {
        let path = format!("{directory}/memory.max");
        Some((files.number(&path).ok()?, path))
    });
    match limits.min() {
        None => Finding::ok(ID, "no limit"),
        Some((bytes, path)) => {
            let limited = if bytes < SMALL_MACHINE { Finding::degraded } else { Finding::note };
            limited(ID, format!("at most {}, by {path}", size(bytes)))
                .lost("guests that use more are killed")
                .mend(format!("`echo max | sudo tee {path}`"))
        }
    }
}

fn transparent(files: &Files) -> Finding {
    const ID: &str = "huge-pages-auto";
    let found = match files.read(TRANSPARENT) {
        Ok(text) => text,
        Err(error) => return Finding::unknown(ID, TRANSPARENT, &error),
    };
    if found.contains("[always]") {
        return Finding::ok(ID, "transparent huge pages: always");
    }
    let always = format!("`echo always | sudo tee {TRANSPARENT}`");
    let (mode, mend) = if found.contains("[madvise]") {
        ("madvise", format!("`vmm-cli run --huge-pages transparent`, or {always}"))
    } else {
        ("never", always)
    };
    Finding::degraded(ID, format!("transparent huge pages: {mode}"))
        .lost("speed: guest memory is in pages of 4 KiB")
        .mend(mend)
}

fn huge_pages(files: &Files, id: &'static str, word: &str, pool: &Pool) -> Finding {
    let path = pool.directory();
    let Some(state) = pool.state(files) else {
        return Finding::note(id, format!("this host has none (no {path})"))
            .lost(format!("`--huge-pages {word}`"));
    };
    let (total, available) = (state.total, state.available);
    if available > 0 {
        return Finding::ok(id, format!("{available} pages can be had, {total} are set aside"));
    }
    let found = match total {
        0 => "no pages are set aside".to_owned(),
        _ => format!("all {total} pages that are set aside are in use"),
    };
    Finding::note(id, found)
        .lost(format!("guest memory in them: `--huge-pages {word}`"))
        .mend(format!("`echo {} | sudo tee {path}/nr_hugepages`", total + 1))
}

fn prefault(tried: io::Result<()>) -> Finding {
    const ID: &str = "prefault";
    match tried {
        Ok(()) => Finding::ok(ID, "pages can be made ahead of their use"),
        Err(error) => Finding::note(ID, format!("MADV_POPULATE_WRITE: {error}"))
            .lost("`--prefault`")
            .mend_by("a newer kernel (Linux 5.14)"),
    }
}

/// `bytes` for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib @ 10240.. => format!("{} GiB", mib >> 10),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::files::fixture::Fixture;

    const MOUNTS: &str = "22 27 0:21 / /proc rw - proc proc rw\n\
                          31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn little_memory_degrades_and_no_proc_is_said() {
        let state = |text: &str| available(&Fixture::new(&[("/proc/meminfo", text)]).files).state;
        assert_eq!(state("MemAvailable: 262143 kB"), State::Degraded);
        assert_eq!(state("MemAvailable: 262144 kB"), State::Ok);
        let unknown = available(&Fixture::new(&[]).files);
        assert!(unknown.found.starts_with("not known: /proc/meminfo: No such file"), "{unknown:?}");
    }

    #[test]
    fn the_tightest_limit_of_the_cgroups_around_counts() {
        let fixture = Fixture::new(&[
            ("/proc/self/cgroup", "0::/user.slice/a.scope\n"),
            ("/proc/self/mountinfo", MOUNTS),
            ("/sys/fs/cgroup/user.slice/a.scope/memory.max", "max\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", "1073741824\n"),
        ]);
        let finding = cgroup(&fixture.files);
        assert_eq!(finding.found, "at most 1024 MiB, by /sys/fs/cgroup/user.slice/memory.max");
        assert_eq!(finding.state, State::Note);
        fixture.write("/sys/fs/cgroup/user.slice/a.scope/memory.max", "1048576\n");
        let finding = cgroup(&fixture.files);
        assert_eq!(finding.state, State::Degraded);
        assert_eq!(
            finding.mend.unwrap(),
            "`echo max | sudo tee /sys/fs/cgroup/user.slice/a.scope/memory.max`"
        );
    }

    #[test]
    fn the_root_cgroup_has_no_limit_and_version_1_is_not_guessed() {
        let of = |membership| {
            cgroup(
                &Fixture::new(&[("/proc/self/cgroup", membership), ("/proc/self/mountinfo", MOUNTS)]).files,
            )
            .found
        };
        assert_eq!(of("0::/\n"), "no limit");
        assert!(of("4:memory:/x\n0::/\n").contains("version 1"));
        assert_eq!(
            cgroup_directories("0::/a/b", MOUNTS),
            ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]
        );
        let unmounted = Fixture::new(&[("/proc/self/cgroup", "0::/a\n"), ("/proc/self/mountinfo", "")]);
        assert!(cgroup(&unmounted.files).found.starts_with("not known: "));
    }

    #[test]
    fn huge_pages_that_are_not_there_are_reserved_by_a_command() {
        let at = |name| format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let fixture = Fixture::new(&[(&at("nr_hugepages"), "4"), (&at("free_hugepages"), "1")]);
        let check = || huge_pages(&fixture.files, "huge-pages-2m", "2M", &Pool::SIZE_2M);
        assert_eq!(check().state, State::Ok);
        fixture.write(&at("free_hugepages"), "0");
        assert!(check().found.starts_with("all 4 "));
        assert!(check().mend.unwrap().starts_with("`echo 5 | sudo tee "));
        let none = huge_pages(&fixture.files, "huge-pages-1g", "1G", &Pool::SIZE_1G);
        assert!(none.found.starts_with("this host has none"), "{none:?}");
    }

    #[test]
    fn an_old_kernel_cannot_prefault() {
        assert_eq!(prefault(Ok(())).state, State::Ok);
        let old = prefault(Err(io::Error::from_raw_os_error(libc::EINVAL)));
        assert_eq!((old.state, old.lost.as_deref()), (State::Note, Some("`--prefault`")));
    }

    #[test]
    fn transparent_huge_pages_are_used_only_in_the_mode_always() {
        let state = |text| transparent(&Fixture::new(&[(TRANSPARENT, text)]).files).state;
        assert_eq!(state("[always] madvise never"), State::Ok);
        assert_eq!(state("always [madvise] never"), State::Degraded);
        assert_eq!(state("always madvise [never]"), State::Degraded);
    }
}
