//! The section `[vsock]`: the socket device of the guest, and where it is on the host.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;

use super::keys::{Form, Section, key};
use super::settings::{self, SettingsError};
use super::value::{self, ValueError};
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
    ],
};

/// The section `[vsock]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address.
    #[serde(deserialize_with = "cid")]
    pub cid: u32,
    /// The device's socket on the host; `None`: there is no device.
    #[serde(deserialize_with = "value::path")]
    pub path: Option<PathBuf>,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self { cid: FIRST_CID, path: None }
    }
}

/// An address for a guest without a socket device.
#[derive(Debug, Error)]
#[error(
    "vsock.cid ({FLAG}) = {cid}: there is a socket device only where vsock.path is set; set it, or leave vsock.cid out"
)]
pub struct VsockError {
    cid: u32,
}

impl VsockConfig {
    /// Checks that the settings go together.
    pub(super) fn validate(&self) -> Result<(), VsockError> {
        let cid = self.cid;
        if self.path.is_none() && cid != Self::default().cid { Err(VsockError { cid }) } else { Ok(()) }
    }
}

/// Reads settings with commas between, of which one is the path.
impl FromStr for VsockConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let config: Self = settings::parse(&SECTION, EXPECTED_SETTINGS, text)?;
        if config.path.is_none() {
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
    }

    #[test]
    fn a_flag_that_is_no_socket_device_says_why() {
        for (text, message) in [
            ("", "\"\" is none of cid, path; expected settings with commas"),
            ("cid=3", "path has no value; expected settings with commas"),
            ("cid=3,path", "path has no value; expected a path"),
            ("cid=3,path=", "\"\" is empty; expected a path"),
            ("cid=3,cid=4,path=x", "cid is there twice"),
            ("cid=0,path=x", "0 is not a whole number from 3 to 4294967294"),
            ("cid=2,path=x", "2 is not a whole number"),
            ("cid=-1,path=x", "-1 is not a whole number"),
            ("cid=4294967295,path=x", "4294967295 is not a whole number"),
            ("cid=4294967299,path=x", "4294967299 is not a whole number"),
            ("cid=three,path=x", "cid = three is not a whole number"),
            ("port=3,path=x", "port is none of cid, path"),
        ] {
            let error = text.parse::<VsockConfig>().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn an_address_without_a_device_is_refused() {
        VsockConfig::default().validate().unwrap();
        let error = VsockConfig { cid: 4, path: None }.validate().unwrap_err().to_string();
        assert!(error.starts_with("vsock.cid (--vsock) = 4: there is a socket device only where"), "{error}");
        VsockConfig { cid: 4, path: Some("x".into()) }.validate().unwrap();
    }
}
