//! The balloon: what the host sets of it, kept through restarts of the machine, and the device of one life.

use std::sync::Arc;
use vmm_devices::virtio::balloon::calls::BALLOON;

use vm_memory::GuestMemoryBackend;
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::balloon::{Balloon, BalloonOptions, BalloonSettings, PAGE};
use vmm_memory::MemoryReader;

use crate::config::{BalloonConfig, VmConfig};
use crate::outcome::Failure;

/// What is set at first, if there is to be a balloon.
pub(crate) fn settings(config: &BalloonConfig) -> Option<Arc<BalloonSettings>> {
    config.device.then(|| BalloonSettings::new(config.size, config.statistics_interval))
}

/// The device of one life of the machine, with a thread of its own, which may wait for the host when memory goes.
///
/// # Errors
/// The host has no thread for it.
pub(crate) fn device(
    config: &VmConfig,
    settings: &Arc<BalloonSettings>,
    memory: &MemoryReader,
    events: &VmEvents,
) -> Result<Balloon, Failure> {
    let worker = Worker::spawn(&BALLOON, events.clone()).map_err(Failure::host_cannot)?;
    let options = BalloonOptions {
        settings: Arc::clone(settings),
        deflate_on_oom: config.balloon.deflate_on_oom,
        free_page_reporting: config.balloon.free_page_reporting,
        large_pages: memory.load().iter().any(|region| region.page_size() > PAGE),
        most: config.memory.size.bytes(),
    };
    Ok(Balloon::new(Arc::new(worker), options))
}
