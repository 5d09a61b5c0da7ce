//! Namespaces: what the jail has of its own in the place of what all processes of the host share.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rustix::process::{getegid, geteuid};

use super::error::JailError;
use crate::advice::{self, Forbids, MOST_USER_NAMESPACES};
use crate::files::Files;

/// What the jail is called inside.
const HOST_NAME: &[u8] = b"jail";

/// Enters a new user namespace, in which this user and group have the numbers that they have outside, and nobody else has one:
/// messages, modes of files and the owner of the control socket mean the same on both sides.
///
/// # Errors
/// The host does not let this user have one.
pub(super) fn enter_user() -> Result<(), JailError> {
    // Inside, before there is a map, they are nobody's.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| refused("a user namespace", errno.into()))?;
    // The kernel takes a map of groups from somebody without privileges only then.
    let files = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    files.iter().try_for_each(|(name, text)| {
        fs::write(format!("/proc/self/{name}"), text).map_err(|error| refused("the map of users", error))
    })
}

/// Has the next process that is made be the first one of a new PID namespace.
pub(super) fn next_process_is_first() -> Result<(), JailError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| refused("a PID namespace", errno.into()))
}

/// Enters new mount, IPC and UTS namespaces, and a network namespace without interfaces if `network`.
pub(super) fn enter_others(network: bool) -> Result<(), JailError> {
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWNET, network);
    unshare(flags).map_err(|errno| refused("mount, IPC and UTS namespaces", errno.into()))?;
    rustix::system::sethostname(HOST_NAME).map_err(JailError::step("a host name"))
}

fn refused(what: &'static str, source: io::Error) -> JailError {
    let advice = about(&Files::below("/"), source.raw_os_error().map(Errno::from_raw));
    JailError::Namespaces { what, advice, source }
}

/// What to do about a kernel that answers with `errno`.
fn about(files: &Files, errno: Option<Errno>) -> Option<String> {
    let errno = errno?;
    let is_full = matches!(errno, Errno::ENOSPC | Errno::EUSERS);
    let may_not = matches!(errno, Errno::EPERM | Errno::EACCES);
    if let Some(Forbids { path, value, mend }) = advice::forbids_user_namespaces(files)
        && (is_full && path == MOST_USER_NAMESPACES || may_not && path != MOST_USER_NAMESPACES)
    {
        return Some(format!("{path} is {value}: {mend}"));
    }
    match errno {
        _ if is_full => Some("this host has no more of them (`sysctl user`), or they are nested too deeply".into()),
        _ if may_not => Some(
            "this user may not: run it as root, or have a user namespace (--user-namespace); a container may forbid both \
             (seccomp, capabilities)"
                .into(),
        ),
        Errno::EINVAL => Some("this kernel was built without them".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::fixture::Fixture;

    #[test]
    fn the_setting_that_forbids_is_named_with_what_permits() {
        for (file, text, errno, words) in [
            ("user/max_user_namespaces", "0", Errno::ENOSPC, "sysctl user.max_user_namespaces=10000"),
            ("user/max_user_namespaces", "9", Errno::ENOSPC, "no more of them"),
            ("kernel/unprivileged_userns_clone", "0", Errno::EPERM, "kernel.unprivileged_userns_clone=1"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", Errno::EACCES, "AppArmor"),
            ("kernel/unprivileged_userns_clone", "1", Errno::EPERM, "run it as root"),
            ("none", "", Errno::EINVAL, "built without"),
        ] {
            let fixture = Fixture::new(&[(&format!("/proc/sys/{file}"), text)]);
            let advice = about(&fixture.files, Some(errno)).unwrap();
            assert!(advice.contains(words), "{advice}");
        }
        assert_eq!(about(&Fixture::new(&[]).files, Some(Errno::EIO)), None);
    }
}
