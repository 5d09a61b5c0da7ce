//! Disks under control: what is asked of a disk that is in use, how it is written, and what it comes to.

use std::time::Duration;

use serde::de::{Deserializer, Error as _, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::limits::{self, NewLimit, NewLimits};
use super::operations::OperationError;
use crate::config::{DeviceId, parse_bytes};

/// How long requests that are in flight may keep a disk from becoming smaller.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What is asked of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskChange {
    /// To have the size that its file or device has now, or this one.
    Resize(Option<NewSize>),
    /// To have these limits.
    Limits(NewLimits),
}

/// The size that a file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSize {
    /// In bytes.
    pub bytes: u64,
    /// Whether it may be less than before.
    pub may_shrink: bool,
}

/// The size of a disk, as an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSize {
    /// Which.
    pub disk: DeviceId,
    /// What its guest sees, in bytes.
    pub bytes: u64,
}

/// The limits of a disk, as an answer: rates as in a configuration, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Which.
    pub disk: DeviceId,
    /// Of the bytes that it moves.
    pub bandwidth: Option<String>,
    /// Of its requests.
    pub operations: Option<String>,
}

/// Why a disk is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskRefusal {
    /// There is none of this name.
    #[error("there is no disk {id}; {}", known(.disks))]
    Unknown {
        /// What was asked for.
        id: DeviceId,
        /// What there is.
        disks: Vec<DeviceId>,
    },
    /// Somebody changes its size, or its requests do not end.
    #[error("{0}")]
    Busy(String),
    /// It is not possible for this disk.
    #[error("{0}")]
    Refused(String),
    /// The host has failed.
    #[error("{0}")]
    Failed(String),
}

fn known(disks: &[DeviceId]) -> String {
    match disks {
        [] => "the machine has none".to_owned(),
        disks => {
            let disks: Vec<_> = disks.iter().map(DeviceId::as_str).collect();
            format!("the disks are: {}", disks.join(", "))
        }
    }
}

/// The disks of a machine.
pub trait ControlledDisks {
    /// Gives a disk the size of its file or device, or another one. May wait for the host.
    ///
    /// # Errors
    /// [`DiskRefusal`].
    fn resize(&self, id: &DeviceId, size: Option<NewSize>) -> Result<DiskSize, DiskRefusal>;

    /// Gives a disk other limits.
    ///
    /// # Errors
    /// [`DiskRefusal::Unknown`].
    fn limit(&self, id: &DeviceId, limits: NewLimits) -> Result<DiskLimits, DiskRefusal>;
}

/// A request for a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// Which.
    pub disk: DeviceId,
    /// What is asked of it.
    pub change: DiskChange,
}

/// What a request for a disk has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DiskOutcome {
    /// Of [`DiskChange::Resize`].
    Size(DiskSize),
    /// Of [`DiskChange::Limits`].
    Limits(DiskLimits),
}

impl DiskRequest {
    /// Carries it out.
    pub(super) fn execute(&self, disks: &dyn ControlledDisks) -> Result<DiskOutcome, OperationError> {
        Ok(match self.change {
            DiskChange::Resize(size) => DiskOutcome::Size(disks.resize(&self.disk, size)?),
            DiskChange::Limits(limits) => DiskOutcome::Limits(disks.limit(&self.disk, limits)?),
        })
    }

    /// The fields of the request, beside its verb.
    pub(super) fn fields(&self) -> Fields {
        let mut fields = Fields { disk: Some(self.disk.clone()), ..Fields::default() };
        match self.change {
            DiskChange::Resize(size) => {
                fields.size = size.map(|size| size.bytes.to_string());
                fields.shrink = size.filter(|size| size.may_shrink).map(|_| true);
            }
            DiskChange::Limits(NewLimits { bandwidth, operations }) => {
                (fields.bandwidth, fields.operations) = (bandwidth.text(), operations.text());
            }
        }
        fields
    }
}

/// What a request for a disk has beside its verb, as it is written.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<DeviceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shrink: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operations: Option<String>,
}

/// A request for another size, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resize {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    disk: DeviceId,
    #[serde(default, deserialize_with = "size")]
    size: Option<u64>,
    #[serde(default)]
    shrink: bool,
}

impl From<Resize> for DiskRequest {
    fn from(Resize { disk, size, shrink, .. }: Resize) -> Self {
        let size = size.map(|bytes| NewSize { bytes, may_shrink: shrink });
        Self { disk, change: DiskChange::Resize(size) }
    }
}

/// A request for other limits, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    disk: DeviceId,
    #[serde(default, deserialize_with = "limits::bandwidth")]
    bandwidth: NewLimit,
    #[serde(default, deserialize_with = "limits::operations")]
    operations: NewLimit,
}

impl From<Limits> for DiskRequest {
    fn from(Limits { disk, bandwidth, operations, .. }: Limits) -> Self {
        Self { disk, change: DiskChange::Limits(NewLimits { bandwidth, operations }) }
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_not_there_is_told_which_are() {
        let id = || "data".parse::<DeviceId>().unwrap();
        let refusal = |disks: &[&str]| {
            let disks = disks.iter().map(|id| id.parse().unwrap()).collect();
            DiskRefusal::Unknown { id: id(), disks }.to_string()
        };
        assert_eq!(refusal(&[]), "there is no disk data; the machine has none");
        assert_eq!(refusal(&["root", "disk1"]), "there is no disk data; the disks are: root, disk1");
    }
}
