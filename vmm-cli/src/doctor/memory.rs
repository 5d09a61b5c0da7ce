//! Memory: how much there is for guests, and in which pages.

use super::files::Files;
use super::finding::Finding;

/// The default guest with what the monitor takes, in bytes.
const SMALL_MACHINE: u64 = 256 << 20;

/// All findings.
pub(super) fn check(files: &Files) -> Vec<Finding> {
    vec![
        available(files),
        cgroup(files),
        transparent(files),
        huge_pages(files, "huge-pages-2m", "2 MiB", "hugepages-2048kB"),
        huge_pages(files, "huge-pages-1g", "1 GiB", "hugepages-1048576kB"),
    ]
}

fn available(files: &Files) -> Finding {
    const ID: &str = "memory";
    const PATH: &str = "/proc/meminfo";
    let bytes = match files.read(PATH) {
        Ok(text) => mem_available(&text),
        Err(error) => return Finding::unknown(ID, PATH, &error),
    };
    match bytes {
        None => Finding::note(ID, format!("not known: {PATH} has no MemAvailable")),
        Some(bytes @ ..SMALL_MACHINE) => Finding::degraded(ID, format!("{} available", size(bytes)))
            .lost("guests that use more are killed, or other programs")
            .mend_by("end programs, or give the host more memory"),
        Some(bytes) => Finding::ok(ID, format!("{} available", size(bytes))),
    }
}

/// `MemAvailable` in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
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

/// The directories of this process's cgroup (version 2) and of those around it, from the inside to the outside.
fn cgroup_directories(membership: &str, mounts: &str) -> Vec<String> {
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

fn transparent(files: &Files) -> Finding {
    const ID: &str = "huge-pages-auto";
    const PATH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let found = match files.read(PATH) {
        Ok(text) => text,
        Err(error) => return Finding::unknown(ID, PATH, &error),
    };
    if found.contains("[always]") {
        return Finding::ok(ID, "transparent huge pages: always");
    }
    let mode = if found.contains("[madvise]") { "madvise" } else { "never" };
    Finding::degraded(ID, format!("transparent huge pages: {mode}"))
        .lost("speed: guest memory is in pages of 4 KiB")
        .mend(format!("`echo always | sudo tee {PATH}`"))
}

fn huge_pages(files: &Files, id: &'static str, name: &str, directory: &str) -> Finding {
    let path = format!("/sys/kernel/mm/hugepages/{directory}");
    let count = |name| files.number(&format!("{path}/{name}"));
    let (total, free) = match (count("nr_hugepages"), count("free_hugepages")) {
        (Ok(total), Ok(free)) => (total, free),
        (Err(error), _) | (_, Err(error)) => return Finding::unknown(id, &path, &error),
    };
    if free > 0 {
        return Finding::ok(id, format!("{free} of {total} reserved pages of {name} are free"));
    }
    let found = match total {
        0 => format!("no pages of {name} are reserved"),
        _ => format!("all {total} reserved pages of {name} are in use"),
    };
    Finding::note(id, found)
        .lost("later: guest memory in reserved huge pages")
        .mend(format!("`echo {} | sudo tee {path}/nr_hugepages`", total + 1))
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
    use super::super::files::fixture::Fixture;
    use super::super::finding::State;
    use super::*;

    const MOUNTS: &str = "22 27 0:21 / /proc rw - proc proc rw\n\
                          31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn available_memory_is_in_bytes() {
        assert_eq!(mem_available("MemTotal: 9 kB\nMemAvailable:     300 kB\n"), Some(300 << 10));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        assert_eq!(mem_available("MemAvailable: 99999999999999999999 kB\n"), None);
    }

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
        let check = || huge_pages(&fixture.files, "huge-pages-2m", "2 MiB", "hugepages-2048kB");
        assert_eq!(check().state, State::Ok);
        fixture.write(&at("free_hugepages"), "0");
        assert!(check().found.starts_with("all 4 "));
        assert!(check().mend.unwrap().starts_with("`echo 5 | sudo tee "));
    }

    #[test]
    fn transparent_huge_pages_are_used_only_in_the_mode_always() {
        const PATH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
        let state = |text| transparent(&Fixture::new(&[(PATH, text)]).files).state;
        assert_eq!(state("[always] madvise never"), State::Ok);
        assert_eq!(state("always [madvise] never"), State::Degraded);
        assert_eq!(state("always madvise [never]"), State::Degraded);
    }
}
