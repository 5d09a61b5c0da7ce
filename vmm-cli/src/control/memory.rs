//! Memory under control: how much the guest is asked to have plugged.

use serde::de::{Deserializer, Error as _, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::config::parse_bytes;

/// The memory that the guest can plug, as an answer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What it has plugged.
    pub plugged: u64,
    /// What it is asked to have plugged.
    pub requested: u64,
    /// What it can have plugged at most.
    pub size: u64,
    /// The unit.
    pub block: u64,
}

/// Why the guest is asked for what it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryRefusal {
    /// Nothing can be plugged.
    #[error("the guest cannot plug memory: the machine has no memory_hotplug.size (--memory-hotplug)")]
    None,
    /// There is no such size.
    #[error("{0}")]
    BadSize(String),
}

/// A request, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(default, deserialize_with = "size")]
    pub(super) requested: Option<u64>,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}
