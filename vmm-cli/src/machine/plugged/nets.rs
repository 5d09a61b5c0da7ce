//! The network devices among the devices: by name, for those who limit them while they are in use, and who count what they have done.

use std::sync::Arc;

use super::state::PluggedNet;
use super::{Plugged, Reserved};
use crate::config::NetConfig;
use crate::control::devices::DeviceError;
use crate::control::limits;
use crate::control::nets::{ControlledNets, NetLimits, NetRefusal, NetRequest};
use crate::kept::Named;
use crate::nets::Nic;
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

/// Opens the interface of a network device to come.
pub(super) fn open(config: &NetConfig, reserved: &Reserved<'_>) -> Result<Arc<Nic>, DeviceError> {
    reserved.plugged.lock().check_card(config.tap.as_deref(), config.mac)?;
    let nic = crate::nets::open(config, reserved.id.clone()).map_err(|error| {
        let is_in_use = error.is_in_use();
        let message = format!("{:#}", anyhow::Error::new(error));
        if is_in_use { DeviceError::InUse { message } } else { DeviceError::BadNet { message } }
    })?;
    reserved.claim(nic.card())?;
    Ok(Arc::new(nic))
}
