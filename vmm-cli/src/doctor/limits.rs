//! Limits: what this process may have of descriptors, address space, threads, locked memory and processors.

use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit};

use super::finding::Finding;
use super::memory::size;
use crate::files::Files;

/// Descriptors of a machine with one vCPU and the default devices, beside those that the process was started with.
const MACHINE_DESCRIPTORS: u64 = 19;
/// Most vCPUs of a machine. Each after the first takes a descriptor.
const MOST_VCPUS: u64 = 254;
/// Descriptors of the statistics, beside one for each vCPU: of the VM, and where they go.
const STATS_DESCRIPTORS: u64 = 2;
/// Descriptors of the largest machine, with statistics.
const LARGE_MACHINE_DESCRIPTORS: u64 = MACHINE_DESCRIPTORS + MOST_VCPUS - 1 + STATS_DESCRIPTORS + MOST_VCPUS;
/// Address space of the default machine: guest memory, stacks and heaps of its threads.
const MACHINE_ADDRESSES: u64 = 1 << 30;
/// Threads of the largest machine, and room for other programs of this user.
const TASKS: u64 = 512;

/// All findings.
pub(super) fn check(files: &Files) -> Vec<Finding> {
    // Standard input, output and error, where the directory cannot be read; it is open itself while it is read.
    let open = files.count("/proc/self/fd").map_or(3, |count| (count as u64).saturating_sub(1));
    vec![
        open_files(getrlimit(Resource::Nofile), open),
        address_space(getrlimit(Resource::As)),
        tasks(getrlimit(Resource::Nproc)),
        locked_memory(getrlimit(Resource::Memlock)),
        cpus(files, thread::available_parallelism().map_or(1, usize::from)),
    ]
}

fn open_files(limit: Rlimit, open: u64) -> Finding {
    const ID: &str = "open-files";
    let Some(most) = limit.current else {
        return Finding::ok(ID, "no limit");
    };
    let found = format!("at most {most}, {open} in use");
    let mend = if limit.maximum.is_none_or(|maximum| maximum >= 1024) {
        "`ulimit -n 1024`"
    } else {
        "`sudo prlimit --pid $$ --nofile=1024:1024`, in the same shell"
    };
    let left = most.saturating_sub(open);
    if left < MACHINE_DESCRIPTORS {
        return Finding::broken(ID, found).mend_by(mend);
    }
    if left < LARGE_MACHINE_DESCRIPTORS {
        return Finding::note(ID, found).lost(too_large(left)).mend_by(mend);
    }
    Finding::ok(ID, found)
}

/// The machines for which `left` descriptors are too few.
fn too_large(left: u64) -> String {
    let vcpus = left - MACHINE_DESCRIPTORS + 1;
    let counted = vcpus.saturating_sub(STATS_DESCRIPTORS) / 2;
    if vcpus < MOST_VCPUS {
        format!("machines with more than some {vcpus} vCPUs, or {counted} with `--stats` or `--api-sock`")
    } else {
        format!("`--stats` and `--api-sock` for machines with more than some {counted} vCPUs")
    }
}

fn address_space(limit: Rlimit) -> Finding {
    const ID: &str = "address-space";
    match limit.current {
        None => Finding::ok(ID, "no limit"),
        Some(bytes) => {
            let limited = if bytes < MACHINE_ADDRESSES { Finding::degraded } else { Finding::note };
            limited(ID, format!("at most {}", size(bytes)))
                .lost("guests with more memory than what the monitor leaves of it")
                .mend_by("`ulimit -v unlimited`")
        }
    }
}

fn tasks(limit: Rlimit) -> Finding {
    const ID: &str = "tasks";
    match limit.current {
        None => Finding::ok(ID, "no limit"),
        Some(most @ ..TASKS) => Finding::note(ID, format!("at most {most} of this user"))
            .lost("machines with many vCPUs: each is a thread")
            .mend(format!("`ulimit -u {TASKS}`")),
        Some(most) => Finding::ok(ID, format!("at most {most} of this user")),
    }
}

fn locked_memory(limit: Rlimit) -> Finding {
    const ID: &str = "locked-memory";
    match limit.current {
        None => Finding::ok(ID, "no limit"),
        Some(bytes) => Finding::note(ID, format!("at most {}", size(bytes)))
            .lost("`--lock-memory` for more; later: guest memory that is given to devices of the host")
            .mend_by("`sudo prlimit --pid $$ --memlock=unlimited:unlimited`, in the same shell"),
    }
}

fn cpus(files: &Files, usable: usize) -> Finding {
    const ID: &str = "cpus";
    const PATH: &str = "/sys/devices/system/cpu/online";
    let online = files.read(PATH).ok().and_then(|list| count(&list));
    let found = match online {
        Some(online) => format!("{usable} of {online} may be used"),
        None => format!("{usable} may be used"),
    };
    let mend = online
        .filter(|online| *online > usable)
        .map(|online| format!("`taskset -pc 0-{} $$`, or a higher CPU quota of the cgroup", online - 1));
    if usable == 1 {
        Finding::degraded(ID, found).lost("speed: vCPUs and devices take turns").mend(mend)
    } else if mend.is_some() {
        Finding::note(ID, found).lost("speed of machines with more vCPUs than that").mend(mend)
    } else {
        Finding::ok(ID, found)
    }
}

/// How many numbers a list like `0-3,5` has.
fn count(list: &str) -> Option<usize> {
    list.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::files::fixture::Fixture;

    fn limit(current: u64, maximum: u64) -> Rlimit {
        Rlimit { current: Some(current), maximum: Some(maximum) }
    }

    const NONE: Rlimit = Rlimit { current: None, maximum: None };

    #[test]
    fn fault_c1_too_few_descriptors_are_broken_and_the_command_fits_the_hard_limit() {
        let few = open_files(limit(3, 4096), 3);
        assert_eq!((few.state, few.mend.as_deref()), (State::Broken, Some("`ulimit -n 1024`")));
        assert!(open_files(limit(3, 3), 3).mend.unwrap().starts_with("`sudo prlimit"));
        let one = open_files(limit(3 + MACHINE_DESCRIPTORS, 4096), 3);
        assert_eq!(one.state, State::Note);
        assert!(one.lost.unwrap().contains("some 1 vCPUs"));
        let many = open_files(limit(3 + LARGE_MACHINE_DESCRIPTORS - 2, 4096), 3);
        assert!(many.lost.unwrap().ends_with("more than some 253 vCPUs"));
        assert_eq!(open_files(limit(3 + LARGE_MACHINE_DESCRIPTORS, 4096), 3).state, State::Ok);
        assert_eq!(open_files(limit(1024, 4096), 3).state, State::Ok);
        assert_eq!(open_files(limit(1024, 4096), 1020).state, State::Broken);
        assert_eq!(open_files(NONE, 3).state, State::Ok);
    }

    #[test]
    fn limits_that_only_some_machines_meet_leave_run_working() {
        assert_eq!(address_space(limit(100 << 20, 1 << 40)).state, State::Degraded);
        assert_eq!(address_space(limit(1 << 40, 1 << 40)).state, State::Note);
        assert_eq!(tasks(limit(100, 100)).state, State::Note);
        assert_eq!(locked_memory(limit(8 << 20, 8 << 20)).found, "at most 8 MiB");
        for check in [address_space, tasks, locked_memory] {
            assert_eq!(check(NONE).state, State::Ok);
        }
    }

    #[test]
    fn a_list_of_processors_is_counted() {
        for (list, expected) in
            [("0", Some(1)), ("0-1", Some(2)), ("0-3,5,8-9", Some(7)), ("", None), ("3-1", None)]
        {
            assert_eq!(count(list), expected, "{list}");
        }
    }

    #[test]
    fn processors_that_may_not_be_used_are_noted() {
        let fixture = Fixture::new(&[("/sys/devices/system/cpu/online", "0-7\n")]);
        assert_eq!(cpus(&fixture.files, 8).state, State::Ok);
        let four = cpus(&fixture.files, 4);
        assert_eq!((four.state, four.found.as_str()), (State::Note, "4 of 8 may be used"));
        assert!(four.mend.unwrap().contains("taskset -pc 0-7 $$"));
        assert_eq!(cpus(&fixture.files, 1).state, State::Degraded);
    }
}
