//! The vhost-user back ends of a machine: connected before it is built, and kept through its restarts.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use vmm_core::VmEvents;
use vmm_devices::virtio::vhost::VhostMemory;
use vmm_devices::virtio::vhost_user::{
    Class, FsTag, VhostUser, VhostUserCounts, VhostUserDevice, VhostUserError,
};

use crate::config::{DeviceId, DiskConfig, FsConfig, NetConfig, VmConfig};
use crate::nets::mac_address;
use crate::opener::Opener;
use crate::outcome::Failure;

/// One back end, and what its device is called.
pub(crate) struct BackEnd {
    id: DeviceId,
    /// What it is to a driver.
    name: &'static str,
    user: Arc<VhostUser>,
}

/// What was counted of one.
#[derive(Debug, Serialize)]
pub(crate) struct BackEndReport {
    /// What its device is called.
    pub(crate) id: DeviceId,
    /// By this program.
    pub(crate) monitor: VhostUserCounts,
}

/// Connects to the back ends of `config`: of disks, of network devices, of file systems.
///
/// # Errors
/// The first one that cannot be had.
pub(crate) fn open(config: &VmConfig, opener: &Opener) -> Result<Vec<BackEnd>, Failure> {
    let mut all = Vec::new();
    for (place, disk) in config.disk.iter().enumerate() {
        if let Some(socket) = &disk.vhost_user {
            let class = of_disk(disk, config.cpu.count);
            all.push(BackEnd::open(
                opener,
                socket,
                class,
                disk.id(place),
                ("virtio-blk", "disk.vhost_user (--disk)"),
            )?);
        }
    }
    for (place, net) in config.net.iter().enumerate() {
        if let Some(socket) = &net.vhost_user {
            all.push(BackEnd::open(
                opener,
                socket,
                of_net(net)?,
                net.id(place),
                ("virtio-net", "net.vhost_user (--net)"),
            )?);
        }
    }
    for (place, fs) in config.fs.iter().enumerate() {
        let id = DeviceId::of_fs(place);
        all.push(BackEnd::open(opener, &fs.socket, of_fs(fs)?, id, ("virtio-fs", "fs.socket (--fs)"))?);
    }
    Ok(all)
}

fn of_disk(disk: &DiskConfig, vcpus: u16) -> Class {
    Class::Block { queues: disk.queues(vcpus), exactly: disk.queues.is_some() }
}

fn of_net(net: &NetConfig) -> Result<Class, Failure> {
    let mac = mac_address(net).context("random bytes").map_err(Failure::host_cannot)?;
    Ok(Class::Net { mac: mac.bytes(), mtu: net.mtu, pairs: net.queues.unwrap_or(1) })
}

fn of_fs(fs: &FsConfig) -> Result<Class, Failure> {
    let tag = FsTag::new(fs.tag.as_str()).context("fs.tag (--fs)").map_err(Failure::bad_input)?;
    Ok(Class::Fs { tag })
}

impl BackEnd {
    fn open(
        opener: &Opener,
        socket: &Path,
        class: Class,
        id: DeviceId,
        (name, key): (&'static str, &'static str),
    ) -> Result<Self, Failure> {
        let failed = |source| VhostUserError::Connect { path: socket.into(), source };
        let user = opener.place(socket).map_err(failed).and_then(|socket| VhostUser::open(socket, class));
        let user =
            user.with_context(|| format!("{key}: {}", socket.display())).map_err(Failure::host_cannot)?;
        tracing::info!(device = id.as_str(), socket = %socket.display(), queues = user.queues(), "a vhost-user back end");
        Ok(Self { id, name, user: Arc::new(user) })
    }

    /// What its device is called.
    pub(crate) fn id(&self) -> &DeviceId {
        &self.id
    }

    /// What its device is to a driver.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What counts what becomes of it.
    pub(crate) fn user(&self) -> Arc<VhostUser> {
        Arc::clone(&self.user)
    }

    /// The device of one life of the machine, whose guest memory is that of `memory`.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents, memory: &VhostMemory) -> Result<VhostUserDevice, Failure> {
        let device = VhostUserDevice::new(&self.user, memory, events);
        device
            .with_context(|| format!("the device {} of a vhost-user back end", self.id))
            .map_err(Failure::host_cannot)
    }
}
