//! `DeviceId`: what a device is called, by its user, its guest and whoever changes it while it is in use.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::value::ValueError;

pub(super) const EXPECTED: &str = "1 to 20 of the characters a-z, A-Z, 0-9, _ and -";

/// Most bytes: as many as the identification of a virtio disk has (virtio 1.3, section 5.2.6).
const LONGEST: usize = 20;

/// What those devices of a machine are called of which there is one.
pub(crate) const ENTROPY: &str = "entropy";
pub(crate) const CONSOLE: &str = "console";
pub(crate) const VSOCK: &str = "vsock";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const BALLOON: &str = "balloon";

pub(super) const EXPECTED_CHOSEN: &str = "1 to 20 of the characters a-z, A-Z, 0-9, _ and -, other than \"entropy\", \"console\", \"vsock\", \"memory\" and \"balloon\"";

/// The name of a device: no other one of its machine has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

impl DeviceId {
    /// What the disk at `place` is called that has no other name.
    #[must_use]
    pub fn of_disk(place: usize) -> Self {
        Self(format!("disk{place}"))
    }

    /// What the network device at `place` is called that has no other name.
    #[must_use]
    pub fn of_net(place: usize) -> Self {
        Self(format!("net{place}"))
    }

    /// What the file system at `place` is called.
    #[must_use]
    pub fn of_fs(place: usize) -> Self {
        Self(format!("fs{place}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::Malformed { value: text.to_owned(), expected: EXPECTED })
        }
    }
}

impl TryFrom<String> for DeviceId {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads what a user calls a device: not as those are called that have their names of themselves.
pub(super) fn chosen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DeviceId>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if [ENTROPY, CONSOLE, VSOCK, MEMORY, BALLOON].contains(&text.as_str()) {
        return Err(D::Error::custom(ValueError::Malformed { value: text, expected: EXPECTED_CHOSEN }));
    }
    text.parse().map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DiskConfig;

    #[test]
    fn an_id_is_short_and_plain() {
        for text in ["a", "root", "Data-2_x", "01234567890123456789"] {
            assert_eq!(text.parse::<DeviceId>().unwrap().to_string(), text);
        }
        for text in ["", "012345678901234567890", "a b", "a/b", "größe", "a.b", "a\0", "a,b"] {
            let error = text.parse::<DeviceId>().unwrap_err().to_string();
            assert!(error.ends_with(&format!(" is not {EXPECTED}")), "{error}");
        }
    }

    #[test]
    fn nothing_is_called_as_a_device_of_which_there_is_one() {
        for id in [ENTROPY, CONSOLE, VSOCK, MEMORY, BALLOON] {
            let error = format!("path=x,format=raw,id={id}").parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(&format!("{id} is not {EXPECTED_CHOSEN}")), "{error}");
        }
    }

    #[test]
    fn a_disk_without_an_id_is_called_after_its_place() {
        assert_eq!(DeviceId::of_disk(3).as_str(), "disk3");
    }
}
