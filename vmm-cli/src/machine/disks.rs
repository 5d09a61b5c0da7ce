//! `LiveDisks`: the disks of a machine that runs, by name, for those who control them.

use std::sync::Arc;

use vmm_devices::rate_limiter::{Limit, Limits};
use vmm_devices::virtio::block::{Block, ResizeError};

use crate::config::{DiskId, Rate};
use crate::control::disks::{
    ControlledDisks, DiskLimits, DiskRefusal, DiskSize, NewLimits, NewSize, SETTLE_LIMIT,
};
use crate::stats::DiskCounts;

/// The disks, in the order in which the guest has them.
#[derive(Default)]
pub(super) struct LiveDisks(Vec<(DiskId, Arc<Block>)>);

impl LiveDisks {
    /// Adds one whose name no other has.
    pub(super) fn add(&mut self, id: DiskId, disk: Arc<Block>) {
        self.0.push((id, disk));
    }

    /// What each has counted.
    pub(super) fn counts(&self) -> Vec<DiskCounts> {
        let counts =
            |(id, disk): &(DiskId, Arc<Block>)| DiskCounts { id: id.clone(), monitor: disk.counts() };
        self.0.iter().map(counts).collect()
    }

    fn find(&self, id: &DiskId) -> Result<&Block, DiskRefusal> {
        let found = self.0.iter().find(|(known, _)| known == id);
        found.map(|(_, disk)| &**disk).ok_or_else(|| DiskRefusal::Unknown {
            id: id.clone(),
            disks: self.0.iter().map(|(id, _)| id.clone()).collect(),
        })
    }
}

impl ControlledDisks for LiveDisks {
    fn resize(&self, id: &DiskId, size: Option<NewSize>) -> Result<DiskSize, DiskRefusal> {
        let disk = self.find(id)?;
        let resized = match size {
            None => disk.rescan(),
            Some(NewSize { bytes, may_shrink }) => disk.resize(bytes, may_shrink, SETTLE_LIMIT),
        };
        resized.map(|bytes| DiskSize { disk: id.clone(), bytes }).map_err(refusal)
    }

    fn limit(&self, id: &DiskId, new: NewLimits) -> Result<DiskLimits, DiskRefusal> {
        let limits = self.find(id)?.change_limits(|before| Limits {
            bytes: new.bandwidth.applied(before.bytes),
            operations: new.operations.applied(before.operations),
        });
        let text = |limit: Option<Limit>| limit.map(|limit| Rate::from(limit).to_string());
        let (bandwidth, operations) = (text(limits.bytes), text(limits.operations));
        Ok(DiskLimits { disk: id.clone(), bandwidth, operations })
    }
}

/// By whose it is to mend.
fn refusal(error: ResizeError) -> DiskRefusal {
    let kind = match &error {
        ResizeError::Busy { .. } | ResizeError::InFlight { .. } => DiskRefusal::Busy,
        ResizeError::Fixed { .. } | ResizeError::NotSectors { .. } | ResizeError::Shrinks { .. } => {
            DiskRefusal::Refused
        }
        ResizeError::Length { .. } | ResizeError::Host { .. } => DiskRefusal::Failed,
    };
    kind(format!("{:#}", anyhow::Error::new(error)))
}
