//! The network devices among the devices: by name, for those who limit them while they are in use, and who count what they have done.

use std::sync::Arc;

use super::state::PluggedNet;
use super::{Plugged, Reserved};
use crate::config::NetConfig;
use crate::control::devices::DeviceError;
use crate::control::limits;
use crate::control::nets::{ControlledNets, NetLimits, NetRefusal, NetRequest};
use crate::control::roles::NetFiles;
use crate::kept::Named;
use crate::nets::{Nic, OpenError};
use crate::stats::NetReport;

impl Plugged {
    /// What each network device has counted, in the order in which they were plugged.
    pub(in crate::machine) fn net_counts(&self) -> Vec<NetReport> {
        let counts =
            |PluggedNet { nic, net }: &PluggedNet| NetReport { id: nic.id().clone(), monitor: net.counts() };
        self.lock().nets().map(counts).collect()
    }
}

impl ControlledNets for Plugged {
    fn limit(&self, NetRequest { net: id, receive, transmit }: &NetRequest) -> Result<NetLimits, NetRefusal> {
        let state = self.lock();
        let Some(PluggedNet { nic, .. }) = state.nets().find(|plugged| plugged.nic.id() == id) else {
            let nets = state.nets().map(|plugged| plugged.nic.id().clone()).collect();
            return Err(NetRefusal::Unknown { id: id.clone(), nets });
        };
        if !nic.has_limits() {
            return Err(NetRefusal::NoLimits { id: id.clone() });
        }
        let [receive, transmit] =
            nic.change_limits(|before| receive.applied(before), |before| transmit.applied(before));
        Ok(NetLimits {
            net: id.clone(),
            receive_bandwidth: limits::text(receive.bytes),
            receive_frames: limits::text(receive.operations),
            transmit_bandwidth: limits::text(transmit.bytes),
            transmit_frames: limits::text(transmit.operations),
        })
    }
}

/// Takes the interface of a network device to come.
pub(super) fn adopt(
    config: &NetConfig,
    files: NetFiles,
    reserved: &Reserved<'_>,
) -> Result<Arc<Nic>, DeviceError> {
    config.tap_options().map_err(|error| DeviceError::BadNet { message: error.to_string() })?;
    reserved.plugged.lock().check_card(config.tap.as_deref(), config.mac)?;
    let nic = crate::nets::adopt(config, reserved.id.clone(), files).map_err(OpenError::device_error)?;
    reserved.claim(nic.card())?;
    Ok(Arc::new(nic))
}

#[cfg(test)]
mod tests {
    use vmm_core::VmEvents;
    use vmm_devices::pci::PciAddress;
    use vmm_devices::virtio::vhost::VhostMemory;

    use super::super::state::{Behind, Device, Rest};
    use super::super::{Backing, NET};
    use super::*;
    use crate::config::{DeviceId, VmConfig};
    use crate::control::devices::DeviceControl;
    use crate::control::limits::{NewLimit, NewLimits};
    use crate::disks::Disks;
    use crate::nets::Nets;
    use crate::opener::Opener;

    fn request(receive: NewLimits, transmit: NewLimits) -> NetRequest {
        NetRequest { net: DeviceId::of_net(0), receive, transmit }
    }

    /// A machine with a network device on an interface that is made for it, where the host permits that.
    fn plugged(name: &str) -> Option<(Arc<Plugged>, Arc<Nets>)> {
        let net = format!("tap={name},create,receive_bandwidth=1M/1s").parse().unwrap();
        let config = VmConfig { net: vec![net], ..VmConfig::default() };
        let nets = Arc::new(Nets::open(&config, &Opener::default()).ok()?);
        let nic = nets.of_next_life().remove(0);
        let net = Arc::new(nic.device(&VmEvents::new().unwrap(), &VhostMemory::new()).unwrap());
        let (id, behind) = (nic.id().to_string(), Behind::Net(PluggedNet { nic, net }));
        let device = Device::new(id, NET, PciAddress::new(1, 0), Some(behind));
        let backing = Backing { disks: Arc::new(Disks::new([])), nets: Arc::clone(&nets) };
        Some((Plugged::new(vec![device], backing, None), nets))
    }

    #[test]
    fn limits_of_a_network_device_are_changed_each_way_and_only_where_they_are_given() {
        let name = format!("vp1-{}", std::process::id());
        let Some((plugged, nets)) = plugged(&name) else { return };
        let ten = NewLimits { operations: NewLimit::of_operations("10/1s").unwrap(), ..NewLimits::default() };
        let limits = plugged.limit(&request(NewLimits::default(), ten)).unwrap();
        assert_eq!(limits.receive_bandwidth.as_deref(), Some("1048576/1s"));
        assert_eq!(limits.transmit_frames.as_deref(), Some("10/1s"));
        assert_eq!((limits.receive_frames, limits.transmit_bandwidth), (None, None));
        let lifted = NewLimits { bandwidth: NewLimit::Lifted, ..NewLimits::default() };
        let limits = plugged.limit(&request(lifted, NewLimits::default())).unwrap();
        assert_eq!((limits.receive_bandwidth, limits.transmit_frames.as_deref()), (None, Some("10/1s")));
        // The next life of the machine has them too, and no device that has gone.
        let kept = nets.of_next_life().remove(0).change_limits(|before| before, |before| before);
        assert!(kept[0].bytes.is_none() && kept[1].operations.is_some());
        assert_eq!(plugged.net_counts().len(), 1);
        plugged.gone(0, Rest::Nothing);
        assert!(plugged.list().is_empty() && nets.of_next_life().is_empty());
        let refused = plugged.limit(&request(lifted, lifted)).unwrap_err();
        assert_eq!(refused, NetRefusal::Unknown { id: DeviceId::of_net(0), nets: Vec::new() });
        assert!(!std::path::Path::new("/sys/class/net").join(&name).exists(), "the interface is left");
    }
}
