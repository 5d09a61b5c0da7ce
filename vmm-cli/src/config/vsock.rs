//! The section `[vsock]`: the socket device of the guest, and where it is on the host.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;

use super::keys::{Form, Section, key};
use super::settings::{self, SettingsError};
use super::value::{self, EXPECTED_SWITCH, ValueError};
use crate::listener;

/// The flag that stands for the whole section.
const FLAG: &str = "--vsock";

/// The key of its path.
pub(super) const PATH: &str = "vsock.path";

/// Longest path: what a port of the guest adds to it, `_4294967295`, still fits.
pub(super) const MAX_PATH: usize = listener::MAX_PATH - 11;

/// The addresses that a guest may have: the others are the hypervisor's, the host's own, the host's, and any (virtio 1.3, section
/// 5.10.4).
const FIRST_CID: u32 = 3;
const LAST_CID: u32 = u32::MAX - 1;

const EXPECTED_CID: &str = "a whole number from 3 to 4294967294";
const EXPECTED_SETTINGS: &str = "settings with commas between, such as \"cid=3,path=vsock.sock\"";

/// The keys.
pub(super) const SECTION: Section = Section {
    name: "vsock",
    keys: &[
        key("cid", FLAG, Form::Integer, EXPECTED_CID),
        key("path", FLAG, Form::Text, value::EXPECTED_PATH),
        key("vhost", FLAG, Form::Switch, EXPECTED_SWITCH),
    ],
};

/// The section `[vsock]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address.
    #[serde(deserialize_with = "cid")]
    pub cid: u32,
    /// The device's socket on the host; `None`: there is no device, unless it is the kernel's.
    #[serde(deserialize_with = "value::path")]
    pub path: Option<PathBuf>,
    /// Whether the host's kernel carries the streams, between sockets of the family AF_VSOCK.
    pub vhost: bool,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self { cid: FIRST_CID, path: None, vhost: false }
    }
}

/// Settings that do not go together.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum VsockError {
    #[error(
        "vsock.cid ({FLAG}) = {cid}: there is a socket device only where vsock.path or vsock.vhost is set; set one, or leave \
         vsock.cid out"
    )]
    NoDevice { cid: u32 },
    #[error(
        "vsock.vhost ({FLAG}) = true: the sockets on the host are of the family AF_VSOCK, and have no path; leave vsock.path out"
    )]
    PathWithVhost,
}

impl VsockConfig {
    /// Whether there is a device.
    #[must_use]
    pub fn has_device(&self) -> bool {
        self.vhost || self.path.is_some()
    }

    /// Checks that the settings go together.
    pub(super) fn validate(&self) -> Result<(), VsockError> {
        let cid = self.cid;
        match (&self.path, self.vhost) {
            (Some(_), true) => Err(VsockError::PathWithVhost),
            (None, false) if cid != Self::default().cid => Err(VsockError::NoDevice { cid }),
            _ => Ok(()),
        }
    }
}

/// Reads settings with commas between, of which one is the path or `vhost`.
impl FromStr for VsockConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let config: Self = settings::parse(&SECTION, EXPECTED_SETTINGS, text)?;
        if !config.has_device() {
            return Err(SettingsError::NoValue { name: "path".into(), expected: EXPECTED_SETTINGS });
        }
        Ok(config)
    }
}

fn cid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = i64::deserialize(deserializer)?;
    let cid = u32::try_from(value).ok().filter(|cid| (FIRST_CID..=LAST_CID).contains(cid));
    let refusal = || ValueError::Malformed { value: value.to_string(), expected: EXPECTED_CID };
    cid.ok_or_else(|| D::Error::custom(refusal()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_takes_an_address_and_a_path() {
        for (text, cid, path) in [
            ("cid=3,path=a=b", 3, "a=b"),
            ("path=x,cid=4294967294", u32::MAX - 1, "x"),
            ("path=/run/vm.vsock", 3, "/run/vm.vsock"),
        ] {
            let config: VsockConfig = text.parse().unwrap();
            assert_eq!((config.cid, config.path.unwrap().to_str()), (cid, Some(path)));
        }
        for (text, cid) in [("vhost", 3), ("cid=9,vhost=true", 9)] {
            let config: VsockConfig = text.parse().unwrap();
            assert_eq!(config, VsockConfig { cid, path: None, vhost: true });
            config.validate().unwrap();
        }
    }

    #[test]
    fn a_flag_that_is_no_socket_device_says_why() {
        for (text, message) in [
            ("", "\"\" is none of cid, path, vhost; expected settings with commas"),
            ("cid=3", "path has no value; expected settings with commas"),
            ("cid=3,vhost=false", "path has no value; expected settings with commas"),
            ("cid=3,path", "path has no value; expected a path"),
            ("cid=3,path=", "\"\" is empty; expected a path"),
            ("cid=3,cid=4,path=x", "cid is there twice"),
            ("cid=0,path=x", "0 is not a whole number from 3 to 4294967294"),
            ("cid=2,path=x", "2 is not a whole number"),
            ("cid=-1,path=x", "-1 is not a whole number"),
            ("cid=4294967295,path=x", "4294967295 is not a whole number"),
            ("cid=4294967299,path=x", "4294967299 is not a whole number"),
            ("cid=three,path=x", "cid = three is not a whole number"),
            ("port=3,path=x", "port is none of cid, path, vhost"),
        ] {
            let error = text.parse::<VsockConfig>().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn an_address_without_a_device_is_refused() {
        VsockConfig::default().validate().unwrap();
        let error = VsockConfig { cid: 4, ..VsockConfig::default() }.validate().unwrap_err().to_string();
        assert!(error.starts_with("vsock.cid (--vsock) = 4: there is a socket device only where"), "{error}");
        let config = VsockConfig { cid: 4, path: Some("x".into()), vhost: false };
        config.validate().unwrap();
        let error = VsockConfig { vhost: true, ..config }.validate().unwrap_err().to_string();
        assert!(error.starts_with("vsock.vhost (--vsock) = true: the sockets on the host"), "{error}");
    }
}
