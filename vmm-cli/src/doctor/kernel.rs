//! The host's kernel: its version, its clock, and what it has for devices and for confinement.

use std::io;

use super::finding::Finding;
use super::syscalls;
use crate::advice::{self, Forbids};
use crate::files::Files;

/// The release of the running kernel, such as `6.12.0-1-amd64`.
pub(super) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Major and minor version of a kernel's `release`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// All findings.
pub(super) fn check(files: &Files) -> Vec<Finding> {
    vec![
        Finding::ok("kernel", format!("Linux {}", release())),
        mounted(files, "proc"),
        mounted(files, "sys"),
        clock_source(files),
        device(files, &TUN),
        device(files, &VHOST_NET),
        device(files, &VHOST_VSOCK),
        io_uring(files, syscalls::try_io_uring()),
        userfaultfd(files, syscalls::try_userfaultfd()),
        seccomp(files),
        landlock(syscalls::landlock_abi()),
        user_namespaces(files),
    ]
}

/// Whether the file system of this name, from which much of this is read, is mounted at its place.
fn mounted(files: &Files, name: &'static str) -> Finding {
    let (inside, kind) = if name == "proc" { ("/proc/self", "proc") } else { ("/sys/module", "sysfs") };
    if files.exists(inside) {
        return Finding::ok(name, format!("/{name} is mounted"));
    }
    Finding::note(name, format!("/{name} is not mounted"))
        .lost("what could be said here from its files")
        .mend(format!("`sudo mount -t {kind} {kind} /{name}`"))
}

fn clock_source(files: &Files) -> Finding {
    const ID: &str = "clock-source";
    const DIRECTORY: &str = "/sys/devices/system/clocksource/clocksource0";
    let path = format!("{DIRECTORY}/current_clocksource");
    let current = match files.read(&path) {
        Ok(text) => text,
        Err(error) => return Finding::unknown(ID, &path, &error),
    };
    if matches!(current.as_str(), "tsc" | "hyperv_clocksource_tsc_page") {
        return Finding::ok(ID, current);
    }
    let available = files.read(&format!("{DIRECTORY}/available_clocksource")).unwrap_or_default();
    let has_tsc = available.split_whitespace().any(|name| name == "tsc");
    Finding::degraded(ID, format!("{current}, not tsc"))
        .lost("a guest clock that all vCPUs read alike and without an exit")
        .mend(has_tsc.then(|| format!("`echo tsc | sudo tee {path}`")))
}

/// A device node that machines are given parts of.
struct Device {
    id: &'static str,
    path: &'static str,
    module: &'static str,
    lost: &'static str,
}

const TUN: Device =
    Device { id: "tun", path: "/dev/net/tun", module: "tun", lost: "network devices on a tap (`--net`)" };
const VHOST_NET: Device = Device {
    id: "vhost-net",
    path: "/dev/vhost-net",
    module: "vhost_net",
    lost: "network devices that the kernel serves (`vhost` of `--net`)",
};
const VHOST_VSOCK: Device = Device {
    id: "vhost-vsock",
    path: "/dev/vhost-vsock",
    module: "vhost_vsock",
    lost: "sockets to the guest that the kernel serves (`vhost` of `--vsock`)",
};

fn device(files: &Files, device: &Device) -> Finding {
    let Device { id, path, module, lost } = *device;
    match files.may_open(path) {
        Ok(()) => Finding::ok(id, path),
        Err(error) => {
            let mend = match error.kind() {
                io::ErrorKind::NotFound => format!("`sudo modprobe {module}`"),
                _ => format!("`sudo setfacl -m u:$USER:rw {path}`"),
            };
            Finding::note(id, format!("{path}: {error}")).lost(lost).mend(mend)
        }
    }
}

fn io_uring(files: &Files, tried: io::Result<()>) -> Finding {
    const ID: &str = "io-uring";
    let Err(error) = tried else {
        return Finding::ok(ID, "may be used");
    };
    let is_disabled = files.number("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value > 0);
    let mend = is_disabled.then(|| "`sudo sysctl kernel.io_uring_disabled=0`".into());
    Finding::note(ID, format!("may not be used: {error}"))
        .lost("later: disks whose requests do not each cost a system call")
        .mend(mend)
}

fn userfaultfd(files: &Files, tried: io::Result<()>) -> Finding {
    const ID: &str = "userfaultfd";
    const NODE: &str = "/dev/userfaultfd";
    let Err(error) = tried else {
        return Finding::ok(ID, "may be used");
    };
    if files.may_open(NODE).is_ok() {
        return Finding::ok(ID, format!("may be used, by {NODE}"));
    }
    let mend = match error.raw_os_error() {
        Some(libc::EPERM) if files.exists(NODE) => Some(format!("`sudo setfacl -m u:$USER:rw {NODE}`")),
        Some(libc::EPERM) => Some("`sudo sysctl vm.unprivileged_userfaultfd=1`".into()),
        _ => None,
    };
    Finding::note(ID, format!("may not be used: {error}"))
        .lost("later: guests that start before their memory is loaded")
        .mend(mend)
}

fn seccomp(files: &Files) -> Finding {
    const ID: &str = "seccomp";
    const PATH: &str = "/proc/self/status";
    let status = match files.read(PATH) {
        Ok(text) => text,
        Err(error) => return Finding::unknown(ID, PATH, &error),
    };
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
    match mode {
        Some("0") => Finding::ok(ID, "filters can be set; none is"),
        Some(_) => Finding::note(ID, "a filter is set on this process")
            .lost("what it forbids; a refusal that nothing else explains may come from it"),
        None => Finding::note(ID, "this kernel has no filters")
            .lost("the table of system calls of each thread; machines need `--seccomp off` here")
            .mend_by("a host kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn landlock(abi: io::Result<i64>) -> Finding {
    const ID: &str = "landlock";
    match abi {
        Ok(abi) => Finding::ok(ID, format!("version {abi}")),
        Err(error) => {
            let is_off = error.raw_os_error() == Some(libc::EOPNOTSUPP);
            let mend = if is_off {
                "boot the host with `lsm=landlock,…`"
            } else {
                "a host kernel with CONFIG_SECURITY_LANDLOCK"
            };
            Finding::note(ID, format!("may not be used: {error}"))
                .lost("a layer of confinement: threads without paths and TCP connections, whatever their tables have")
                .mend_by(mend)
        }
    }
}

/// Whether users without privileges may have namespaces, by the settings that forbid them.
fn user_namespaces(files: &Files) -> Finding {
    const ID: &str = "user-namespaces";
    match advice::forbids_user_namespaces(files) {
        None => Finding::ok(ID, "users without privileges may have them"),
        Some(Forbids { path, value, mend }) => Finding::note(ID, format!("root's alone: {path} is {value}"))
            .lost("`vmm-cli jail` by others than root")
            .mend_by(mend),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::files::fixture::Fixture;

    fn refused(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_setting_that_forbids_user_namespaces_is_named_with_its_command() {
        let fixture = Fixture::new(&[("/proc/sys/user/max_user_namespaces", "9000")]);
        assert_eq!(user_namespaces(&fixture.files).state, State::Ok);
        fixture.write("/proc/sys/kernel/unprivileged_userns_clone", "0\n");
        let forbidden = user_namespaces(&fixture.files);
        assert_eq!(forbidden.state, State::Note);
        assert_eq!(forbidden.mend.unwrap(), "`sudo sysctl kernel.unprivileged_userns_clone=1`");
    }

    #[test]
    fn a_release_has_a_version() {
        assert_eq!(version("6.12.117+deb12-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("5.4-custom"), Some((5, 4)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn a_clock_that_is_not_the_tsc_is_mended_where_there_is_one() {
        let directory = "/sys/devices/system/clocksource/clocksource0";
        let current = format!("{directory}/current_clocksource");
        let fixture = Fixture::new(&[(&current, "tsc\n")]);
        assert_eq!(clock_source(&fixture.files).state, State::Ok);
        fixture.write(&current, "hpet\n");
        let without = clock_source(&fixture.files);
        assert_eq!((without.state, without.mend), (State::Degraded, None));
        fixture.write(&format!("{directory}/available_clocksource"), "hpet tsc\n");
        assert!(clock_source(&fixture.files).mend.unwrap().starts_with("`echo tsc | sudo tee "));
    }

    #[test]
    fn a_device_that_is_missing_names_its_module() {
        let fixture = Fixture::new(&[("/dev/net/tun", "")]);
        assert_eq!(device(&fixture.files, &TUN).state, State::Ok);
        let missing = device(&fixture.files, &VHOST_NET);
        assert_eq!(missing.state, State::Note);
        assert_eq!(missing.mend.unwrap(), "`sudo modprobe vhost_net`");
    }

    #[test]
    fn io_uring_is_mended_by_its_sysctl_only_where_that_forbids_it() {
        let fixture = Fixture::new(&[("/proc/sys/kernel/io_uring_disabled", "0")]);
        assert_eq!(io_uring(&fixture.files, Ok(())).state, State::Ok);
        assert_eq!(io_uring(&fixture.files, refused(libc::ENOSYS)).mend, None);
        fixture.write("/proc/sys/kernel/io_uring_disabled", "2");
        let finding = io_uring(&fixture.files, refused(libc::EPERM));
        assert_eq!(finding.mend.unwrap(), "`sudo sysctl kernel.io_uring_disabled=0`");
    }

    #[test]
    fn userfaultfd_has_three_ways_in() {
        let none = Fixture::new(&[]);
        assert_eq!(userfaultfd(&none.files, Ok(())).state, State::Ok);
        let finding = userfaultfd(&none.files, refused(libc::EPERM));
        assert_eq!(finding.mend.unwrap(), "`sudo sysctl vm.unprivileged_userfaultfd=1`");
        assert_eq!(userfaultfd(&none.files, refused(libc::ENOSYS)).mend, None);
        let node = Fixture::new(&[("/dev/userfaultfd", "")]);
        assert_eq!(userfaultfd(&node.files, refused(libc::EPERM)).state, State::Ok);
    }

    #[test]
    fn a_filter_that_is_set_is_noted() {
        let of = |status| seccomp(&Fixture::new(&[("/proc/self/status", status)]).files);
        assert_eq!(of("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n").state, State::Ok);
        assert_eq!(of("Seccomp:\t2\n").found, "a filter is set on this process");
        assert_eq!(of("Name:\tx\n").found, "this kernel has no filters");
    }

    #[test]
    fn landlock_that_is_off_is_told_from_landlock_that_is_not_there() {
        assert_eq!(landlock(Ok(6)).found, "version 6");
        let mend = |errno| landlock(Err(io::Error::from_raw_os_error(errno))).mend.unwrap();
        assert!(mend(libc::EOPNOTSUPP).contains("lsm="));
        assert!(mend(libc::ENOSYS).contains("CONFIG_SECURITY_LANDLOCK"));
    }

    #[test]
    fn a_file_system_that_is_not_mounted_is_noted() {
        let fixture = Fixture::new(&[("/proc/self/status", "")]);
        assert_eq!(mounted(&fixture.files, "proc").state, State::Ok);
        assert_eq!(mounted(&fixture.files, "sys").mend.unwrap(), "`sudo mount -t sysfs sysfs /sys`");
    }
}
