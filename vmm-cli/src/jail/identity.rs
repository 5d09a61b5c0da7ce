//! `Identity`: as whom the machine runs, and that it can do nothing that this user cannot.

use std::path::Path;

use nix::unistd::{AccessFlags, Gid, Uid, access, setgroups, setresgid, setresuid};
use rustix::process::{getegid, geteuid};
use rustix::thread::{clear_ambient_capability_set, set_no_new_privs};

use super::error::JailError;
use crate::config::{HostPlace, Need};
use crate::confinement::rights;

/// Another user, or the one that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity(Option<(u32, u32)>);

impl Identity {
    /// The user and group with these numbers; without a group, the one that has the number of the user.
    pub(super) fn new(uid: Option<u32>, gid: Option<u32>) -> Self {
        Self(uid.map(|uid| (uid, gid.unwrap_or(uid))))
    }

    /// The numbers of another user and group than those of this process.
    pub(super) fn ids(self) -> Option<(u32, u32)> {
        self.0
    }

    /// Becomes that user, in no other group, and gives up all capabilities and every way to get some.
    ///
    /// # Errors
    /// This process may not.
    pub(super) fn take(self) -> Result<(), JailError> {
        // First: it takes a capability.
        rights::empty_bounding_set().map_err(JailError::step("an empty bounding set of capabilities"))?;
        // Linux before 4.3 has none.
        let _ = clear_ambient_capability_set();
        if let Some((uid, gid)) = self.0 {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            setgroups(&[])
                .and_then(|()| setresgid(gid, gid, gid))
                .and_then(|()| setresuid(uid, uid, uid))
                .map_err(JailError::step("another user (--uid)"))?;
        }
        rights::drop_all().map_err(JailError::step("no capabilities"))?;
        set_no_new_privs(true).map_err(JailError::step("no_new_privs"))
    }
}

/// Checks that this process, in the jail, may do what is needed of each place.
///
/// # Errors
/// The first one that is not for this user.
pub(super) fn check_access(places: &[HostPlace]) -> Result<(), JailError> {
    for place in places {
        let path = match place.need {
            Need::Listen => place.path.parent().unwrap_or(&place.path),
            _ => &place.path,
        };
        let (flags, purpose) = match place.need {
            Need::Look => continue,
            Need::Read => (AccessFlags::R_OK, "read"),
            Need::Connect => (AccessFlags::W_OK, "connect to"),
            Need::Output => (AccessFlags::W_OK, "write to"),
            Need::Write => (AccessFlags::R_OK | AccessFlags::W_OK, "read and write"),
            Need::Listen => (AccessFlags::W_OK | AccessFlags::X_OK, "make sockets in"),
        };
        access(path, flags).map_err(|errno| refused(place, path, purpose, errno.into()))?;
    }
    Ok(())
}

fn refused(place: &HostPlace, path: &Path, purpose: &'static str, source: std::io::Error) -> JailError {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let rights = match place.need {
        Need::Read => "r",
        Need::Listen => "rwx",
        _ => "rw",
    };
    JailError::Access {
        name: place.name(),
        path: path.to_owned(),
        purpose,
        uid,
        gid,
        mend: format!("`sudo setfacl -m u:{uid}:{rights} {}`, or take its group (--gid)", path.display()),
        is_device: path.starts_with("/dev"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_not_named_has_the_number_of_the_user() {
        assert_eq!(Identity::new(None, None).ids(), None);
        assert_eq!(Identity::new(Some(7), None).ids(), Some((7, 7)));
        assert_eq!(Identity::new(Some(7), Some(8)).ids(), Some((7, 8)));
    }
}
