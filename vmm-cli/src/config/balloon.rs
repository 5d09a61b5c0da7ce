//! The section `[balloon]`: how the guest's RAM is given back to the host while it runs.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;

use super::keys::{Form, Key, Section, key};
use super::settings::{self, SettingsError};
use super::size;
use super::value::{EXPECTED_SWITCH, ValueError};
use super::{MemorySize, duration};

/// The flag that stands for the whole section.
const FLAG: &str = "--balloon";

const EXPECTED_SIZE: &str = "a size from 0 to that of the RAM in steps of 4K such as \"512M\" \
     (K, M, G and T are powers of 1024; no unit means bytes)";
const EXPECTED_SETTINGS: &str = "settings with commas between, such as \"size=256M,free_page_reporting\"";

/// The first is not for the flag, which is there only where there is a device.
const KEYS: &[Key] = &[
    key("device", FLAG, Form::Switch, EXPECTED_SWITCH),
    key("size", FLAG, Form::Text, EXPECTED_SIZE),
    key("deflate_on_oom", FLAG, Form::Switch, EXPECTED_SWITCH),
    key("free_page_reporting", FLAG, Form::Switch, EXPECTED_SWITCH),
    key("statistics_interval", FLAG, Form::Text, duration::EXPECTED),
];

/// The keys.
pub(super) const SECTION: Section = Section { name: "balloon", keys: KEYS };

const SETTINGS: Section = Section { name: "balloon", keys: KEYS.split_at(1).1 };

/// The section `[balloon]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonConfig {
    /// Whether there is a balloon.
    pub device: bool,
    /// How large it is to be at first, in bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Whether the guest may take its memory back when it has none left.
    pub deflate_on_oom: bool,
    /// Whether the guest is to say which of its pages are free.
    pub free_page_reporting: bool,
    /// How often the guest is asked for statistics; zero: never.
    #[serde(deserialize_with = "duration::deserialize")]
    pub statistics_interval: Duration,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            device: false,
            size: 0,
            deflate_on_oom: true,
            free_page_reporting: false,
            statistics_interval: Duration::ZERO,
        }
    }
}

/// Why the settings of a balloon do not go together.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum BalloonConfigError {
    #[error(
        "balloon.device ({FLAG}) = false, and other keys of [balloon] are set: there is a balloon only where it is true; set it, or \
         leave the others out"
    )]
    NoDevice,
    #[error(
        "balloon.size ({FLAG}) = {}: the guest has {memory} of RAM; make it smaller, or memory.size (--memory) larger",
        render(*size)
    )]
    TooLarge { size: u64, memory: MemorySize },
}

impl BalloonConfig {
    /// Checks that the settings go together, and with the guest's RAM.
    pub(super) fn validate(&self, memory: MemorySize) -> Result<(), BalloonConfigError> {
        if !self.device && *self != Self::default() {
            return Err(BalloonConfigError::NoDevice);
        }
        let size = self.size;
        if size > memory.bytes() { Err(BalloonConfigError::TooLarge { size, memory }) } else { Ok(()) }
    }
}

/// Reads settings with commas between. Where there are some there is a balloon.
impl FromStr for BalloonConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let config: Self = settings::parse(&SETTINGS, EXPECTED_SETTINGS, text)?;
        Ok(Self { device: true, ..config })
    }
}

/// Reads the size of a balloon.
///
/// # Errors
/// [`ValueError`] if it is anything else.
pub(crate) fn parse_size(text: &str) -> Result<u64, ValueError> {
    let value = || text.to_owned();
    match size::bytes(text) {
        None => Err(ValueError::Malformed { value: value(), expected: EXPECTED_SIZE }),
        Some(bytes) if bytes > MemorySize::MAX.bytes() => {
            Err(ValueError::AboveLimit { value: value(), limit: "1 TiB (1024G)" })
        }
        Some(bytes) if !bytes.is_multiple_of(4096) => {
            Err(ValueError::NotMultiple { value: value(), unit: "4 KiB (4K)" })
        }
        Some(bytes) => Ok(bytes),
    }
}

/// Writes the size of a balloon in the largest unit that divides it.
pub(crate) fn render(bytes: u64) -> String {
    let units = [(1_u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = units.iter().find(|(factor, _)| bytes != 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(factor, unit)| format!("{}{unit}", bytes / factor))
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_size(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_takes_what_is_different_from_the_default() {
        let default = BalloonConfig { device: true, ..BalloonConfig::default() };
        let second = Duration::from_secs(1);
        for (text, config) in [
            ("size=0", default.clone()),
            ("size=256M", BalloonConfig { size: 256 << 20, ..default.clone() }),
            ("deflate_on_oom=false", BalloonConfig { deflate_on_oom: false, ..default.clone() }),
            ("free_page_reporting", BalloonConfig { free_page_reporting: true, ..default.clone() }),
            ("statistics_interval=1s", BalloonConfig { statistics_interval: second, ..default.clone() }),
            (
                "statistics_interval=1s,size=4K,free_page_reporting=true,deflate_on_oom=false",
                BalloonConfig {
                    size: 4096,
                    deflate_on_oom: false,
                    free_page_reporting: true,
                    statistics_interval: second,
                    ..default
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(config), "{text}");
        }
    }

    #[test]
    fn a_flag_that_is_no_balloon_says_why() {
        for (text, message) in [
            (
                "",
                "\"\" is none of size, deflate_on_oom, free_page_reporting, statistics_interval; expected settings",
            ),
            ("device", "device is none of size"),
            ("256M", "256M is none of size"),
            ("size", "size has no value; expected a size from 0"),
            ("size=", "\"\" is not a size from 0"),
            ("size=-1", "-1 is not a size from 0"),
            ("size=4097", "4097 is not a multiple of 4 KiB"),
            ("size=2T", "2T is above the limit of 1 TiB"),
            ("size=99999999999999999999", "is not a size from 0"),
            ("size=1M,size=2M", "size is there twice"),
            ("deflate_on_oom=yes", "deflate_on_oom = yes is not true or false"),
            ("statistics_interval=5", "5 has no unit: write \"5s\""),
            ("statistics_interval=2h", "2h has the unknown unit h"),
        ] {
            let error = text.parse::<BalloonConfig>().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn settings_without_a_device_and_sizes_beyond_the_ram_are_refused() {
        let memory: MemorySize = "256M".parse().unwrap();
        let validate = |text: &str, device| {
            let config: BalloonConfig = text.parse().unwrap();
            BalloonConfig { device, ..config }.validate(memory).map_err(|error| error.to_string())
        };
        BalloonConfig::default().validate(memory).unwrap();
        validate("size=256M", true).unwrap();
        let error = validate("size=4K", false).unwrap_err();
        assert!(error.starts_with("balloon.device (--balloon) = false, and other keys"), "{error}");
        let error = validate("size=262148K", true).unwrap_err();
        assert!(
            error.starts_with("balloon.size (--balloon) = 262148K: the guest has 256M of RAM"),
            "{error}"
        );
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for text in ["0", "4K", "1M", "1028K", "3G", "1T"] {
            assert_eq!(render(parse_size(text).unwrap()), text);
        }
    }
}
