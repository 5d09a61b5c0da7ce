//! The section `[memory_hotplug]`: RAM that is plugged and unplugged while the guest runs.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

use super::file::show;
use super::keys::{Form, Section, key};
use super::memory::{HugePages, MemoryConfig};
use super::settings::{self, SettingsError};
use super::size::{self, MemorySize};
use super::{choice, keys};

/// The flag that stands for the whole section.
const FLAG: &str = "--memory-hotplug";

/// The smallest block, that of the huge pages that a host puts together, and the largest.
const SMALLEST_BLOCK: u64 = 2 << 20;
const LARGEST_BLOCK: u64 = 1 << 30;

/// Most blocks. Every other one plugged, each with a slot, KVM still has slots for.
const MOST_BLOCKS: u64 = 1 << 16;

const EXPECTED_SETTINGS: &str = "settings with commas between, such as \"size=4G,requested=1G\"";

/// The keys.
pub(super) const SECTION: Section = Section {
    name: "memory_hotplug",
    keys: &[
        key("size", FLAG, Form::TextOrInteger, size::EXPECTED),
        key("block", FLAG, Form::TextOrInteger, size::EXPECTED),
        key("requested", FLAG, Form::TextOrInteger, size::EXPECTED),
    ],
};

/// The section `[memory_hotplug]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryHotplugConfig {
    /// Most that can be plugged; `None`: there is no device for it.
    pub size: Option<MemorySize>,
    /// The unit in which it is plugged; `None` leaves it to [`MemoryHotplugConfig::block_of`].
    pub block: Option<MemorySize>,
    /// What the guest is asked to plug when it starts; `None`: nothing.
    pub requested: Option<MemorySize>,
}

/// Settings of `[memory_hotplug]` that do not go together, or not with `[memory]`.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum MemoryHotplugError {
    #[error(
        "memory_hotplug.{key} ({FLAG}) = {value}: memory is plugged only where memory_hotplug.size is set; set it, or leave memory_hotplug.{key} out"
    )]
    NoSize { key: &'static str, value: MemorySize },
    #[error("memory_hotplug.block ({FLAG}) = {block} is not a power of two from 2M to 1G")]
    BadBlock { block: MemorySize },
    #[error(
        "memory_hotplug.block ({FLAG}) = {block} is less than a page: with {} = \"{pages}\" it is at least {pages}",
        keys::with_flag("memory.huge_pages")
    )]
    LessThanPage { block: MemorySize, pages: String },
    #[error(
        "memory_hotplug.block ({FLAG}) = {block}: {size} would be more than {MOST_BLOCKS} blocks; take blocks of {needed} or more"
    )]
    TooManyBlocks { block: MemorySize, size: MemorySize, needed: MemorySize },
    #[error(
        "memory_hotplug.{key} ({FLAG}) = {value} is not made of blocks of {block} (memory_hotplug.block)"
    )]
    NotBlocks { key: &'static str, value: MemorySize, block: MemorySize },
    #[error(
        "memory_hotplug.requested ({FLAG}) = {requested} is more than memory_hotplug.size = {size}; ask for less, or make that larger"
    )]
    BeyondSize { requested: MemorySize, size: MemorySize },
    #[error(
        "memory_hotplug.size ({FLAG}) = {size}: what is plugged is behind the {} bytes of memory.size in {}, which has {length} bytes; make it \
         larger: `truncate -s {} {}`",
        ram.bytes(),
        show(path),
        ram.bytes().saturating_add(size.bytes()),
        show(path)
    )]
    TooShort { path: PathBuf, length: u64, ram: MemorySize, size: MemorySize },
}

impl MemoryHotplugConfig {
    /// Most bytes that can be plugged.
    pub fn bytes(&self) -> u64 {
        self.size.map_or(0, MemorySize::bytes)
    }

    /// Bytes of a block: as configured, else the smallest that can be.
    pub fn block_of(&self, memory: &MemoryConfig) -> u64 {
        self.block.map_or_else(|| smallest_block(memory.huge_pages, self.bytes()), MemorySize::bytes)
    }

    /// Checks that the settings go together and with those of the RAM.
    pub(super) fn validate(&self, memory: &MemoryConfig) -> Result<(), MemoryHotplugError> {
        let Some(size) = self.size else {
            let set = [("block", self.block), ("requested", self.requested)];
            let stray = set.into_iter().find_map(|(key, value)| value.map(|value| (key, value)));
            return stray.map_or(Ok(()), |(key, value)| Err(MemoryHotplugError::NoSize { key, value }));
        };
        self.validate_block(size, memory)?;
        let bytes = self.block_of(memory);
        // In range, as it has been checked or is a default.
        let block = MemorySize::try_from(bytes).unwrap_or(size);
        let blocks = [("size", Some(size)), ("requested", self.requested)];
        for (key, value) in blocks.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            if !value.bytes().is_multiple_of(bytes) {
                return Err(MemoryHotplugError::NotBlocks { key, value, block });
            }
        }
        if let Some(requested) = self.requested.filter(|requested| *requested > size) {
            return Err(MemoryHotplugError::BeyondSize { requested, size });
        }
        let file = memory.backing.path().and_then(|path| Some((path, path.metadata().ok()?.len())));
        let ram = memory.size;
        match file.filter(|(_, length)| *length < ram.bytes().saturating_add(size.bytes())) {
            Some((path, length)) => {
                Err(MemoryHotplugError::TooShort { path: path.clone(), length, ram, size })
            }
            None => Ok(()),
        }
    }

    fn validate_block(&self, size: MemorySize, memory: &MemoryConfig) -> Result<(), MemoryHotplugError> {
        let Some(block) = self.block else { return Ok(()) };
        let bytes = block.bytes();
        if !bytes.is_power_of_two() || !(SMALLEST_BLOCK..=LARGEST_BLOCK).contains(&bytes) {
            return Err(MemoryHotplugError::BadBlock { block });
        }
        if page_size(memory.huge_pages).is_some_and(|page_size| bytes < page_size) {
            let pages = choice::word(&memory.huge_pages);
            return Err(MemoryHotplugError::LessThanPage { block, pages });
        }
        let needed = smallest_block(memory.huge_pages, size.bytes());
        match MemorySize::try_from(needed) {
            Ok(needed) if needed > block => Err(MemoryHotplugError::TooManyBlocks { block, size, needed }),
            _ => Ok(()),
        }
    }
}

fn page_size(pages: HugePages) -> Option<u64> {
    vmm_memory::HugePages::from(pages).fixed_size()
}

/// The smallest block that is whole pages, and of which there are not too many in `size`.
fn smallest_block(pages: HugePages, size: u64) -> u64 {
    let by_count = size.div_ceil(MOST_BLOCKS).next_power_of_two();
    by_count.max(SMALLEST_BLOCK).max(page_size(pages).unwrap_or(0))
}

/// Reads settings with commas between, of which one is the size.
impl FromStr for MemoryHotplugConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let config: Self = settings::parse(&SECTION, EXPECTED_SETTINGS, text)?;
        if config.size.is_none() {
            return Err(SettingsError::NoValue { name: "size".into(), expected: EXPECTED_SETTINGS });
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryBacking;

    fn size(text: &str) -> Option<MemorySize> {
        Some(text.parse().unwrap())
    }

    fn validate(text: &str, memory: &MemoryConfig) -> Result<u64, String> {
        let config: MemoryHotplugConfig = text.parse().unwrap();
        config.validate(memory).map_err(|error| error.to_string())?;
        Ok(config.block_of(memory))
    }

    #[test]
    fn a_flag_takes_a_size_and_the_rest_as_it_likes() {
        let full = MemoryHotplugConfig { size: size("4G"), block: size("8M"), requested: size("1G") };
        assert_eq!("size=4G,block=8MiB,requested=1024M".parse(), Ok(full));
        let least = MemoryHotplugConfig { size: size("512M"), ..MemoryHotplugConfig::default() };
        assert_eq!("size=512M".parse(), Ok(least));
        for (text, message) in [
            ("", "\"\" is none of size, block, requested; expected settings with commas"),
            ("block=2M", "size has no value; expected settings with commas"),
            ("size", "size has no value; expected a size from 1M to 1T"),
            ("size=4G,size=4G", "size is there twice"),
            ("size=much", "much is not a size from 1M to 1T"),
            ("size=2T", "2T is above the limit of 1 TiB"),
            ("max=4G", "max is none of size, block, requested"),
        ] {
            let error = text.parse::<MemoryHotplugConfig>().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn blocks_are_whole_pages_and_not_too_many_unless_it_is_said() {
        let memory = |huge_pages| MemoryConfig { huge_pages, ..MemoryConfig::default() };
        for (text, pages, block) in [
            ("size=128M", HugePages::None, 2 << 20),
            ("size=128G", HugePages::Size2M, 2 << 20),
            ("size=256G", HugePages::None, 4 << 20),
            ("size=1T", HugePages::Transparent, 16 << 20),
            ("size=4G", HugePages::Size1G, 1 << 30),
            ("size=4G,block=1G,requested=4G", HugePages::Size1G, 1 << 30),
            ("size=1T,block=16M", HugePages::None, 16 << 20),
        ] {
            assert_eq!(validate(text, &memory(pages)), Ok(block), "{text}");
        }
        for (text, pages, message) in [
            (
                "size=4G,block=1M",
                HugePages::None,
                "(--memory-hotplug) = 1M is not a power of two from 2M to 1G",
            ),
            ("size=4G,block=3M", HugePages::None, "= 3M is not a power of two from 2M to 1G"),
            ("size=4G,block=2G", HugePages::None, "= 2G is not a power of two from 2M to 1G"),
            (
                "size=4G,block=2M",
                HugePages::Size1G,
                "with memory.huge_pages (--huge-pages) = \"1G\" it is at least 1G",
            ),
            (
                "size=1T,block=8M",
                HugePages::None,
                "1T would be more than 65536 blocks; take blocks of 16M or more",
            ),
            (
                "size=129M",
                HugePages::None,
                "memory_hotplug.size (--memory-hotplug) = 129M is not made of blocks of 2M",
            ),
            (
                "size=4G,requested=3M",
                HugePages::None,
                "memory_hotplug.requested (--memory-hotplug) = 3M is not made of blocks",
            ),
            ("size=1537M", HugePages::Size1G, "= 1537M is not made of blocks of 1G"),
            ("size=1G,requested=2G", HugePages::None, "= 2G is more than memory_hotplug.size = 1G"),
        ] {
            let error = validate(text, &memory(pages)).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn settings_without_a_device_are_refused() {
        let memory = MemoryConfig::default();
        MemoryHotplugConfig::default().validate(&memory).unwrap();
        let config = MemoryHotplugConfig { requested: size("1G"), ..MemoryHotplugConfig::default() };
        let error = config.validate(&memory).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "memory_hotplug.requested (--memory-hotplug) = 1G: memory is plugged only where"
            ),
            "{error}"
        );
    }

    #[test]
    fn fault_c3_a_file_has_room_for_what_is_plugged_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(255 << 20).unwrap();
        let backing = MemoryBacking::PrivateFile(file.path().to_owned());
        let memory = MemoryConfig { backing, ..MemoryConfig::default() };
        let error = validate("size=128M", &memory).unwrap_err();
        assert!(
            error.contains("which has 267386880 bytes; make it larger: `truncate -s 268435456 /"),
            "{error}"
        );
        file.as_file().set_len(256 << 20).unwrap();
        validate("size=128M", &memory).unwrap();
    }
}
