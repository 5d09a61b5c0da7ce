//! Network devices under control: what is asked of one that is in use, how it is written, and what it comes to.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::limits::{self, NewLimit, NewLimits};
use crate::config::DeviceId;

/// What becomes of the limits of a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetRequest {
    /// Which.
    pub net: DeviceId,
    /// Of what reaches the guest.
    pub receive: NewLimits,
    /// Of what the guest sends.
    pub transmit: NewLimits,
}

/// The limits of a network device, as an answer: rates as in a configuration, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetLimits {
    /// Which.
    pub net: DeviceId,
    /// Of the bytes that reach the guest.
    pub receive_bandwidth: Option<String>,
    /// Of the frames that reach the guest.
    pub receive_frames: Option<String>,
    /// Of the bytes that the guest sends.
    pub transmit_bandwidth: Option<String>,
    /// Of the frames that the guest sends.
    pub transmit_frames: Option<String>,
}

impl NetLimits {
    /// Each with its name.
    pub(super) fn rows(&self) -> [(&'static str, &Option<String>); 4] {
        [
            ("receive_bandwidth", &self.receive_bandwidth),
            ("receive_frames", &self.receive_frames),
            ("transmit_bandwidth", &self.transmit_bandwidth),
            ("transmit_frames", &self.transmit_frames),
        ]
    }
}

/// Why a network device is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetRefusal {
    /// There is none of this name.
    #[error("there is no network device {id}; {}", known(.nets))]
    Unknown {
        /// What was asked for.
        id: DeviceId,
        /// What there is.
        nets: Vec<DeviceId>,
    },
    /// Its frames do not pass the monitor.
    #[error(
        "{id} has no limits: the host's kernel moves its frames (vhost); limit its interface on the host (`tc`)"
    )]
    NoLimits {
        /// Which.
        id: DeviceId,
    },
}

fn known(nets: &[DeviceId]) -> String {
    match nets {
        [] => "the machine has none".to_owned(),
        nets => {
            let nets: Vec<_> = nets.iter().map(DeviceId::as_str).collect();
            format!("the network devices are: {}", nets.join(", "))
        }
    }
}

/// The network devices of a machine.
pub trait ControlledNets {
    /// Gives a network device other limits; what they are then. Does not wait.
    ///
    /// # Errors
    /// [`NetRefusal`].
    fn limit(&self, request: &NetRequest) -> Result<NetLimits, NetRefusal>;
}

impl NetRequest {
    /// The fields of the request, beside its verb.
    pub(super) fn fields(&self) -> Fields {
        let Self { net, receive, transmit } = self;
        Fields {
            net: Some(net.clone()),
            receive_bandwidth: receive.bandwidth.text(),
            receive_frames: receive.operations.text(),
            transmit_bandwidth: transmit.bandwidth.text(),
            transmit_frames: transmit.operations.text(),
        }
    }
}

/// What a request has beside its verb, as it is written.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    net: Option<DeviceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_bandwidth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_frames: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transmit_bandwidth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transmit_frames: Option<String>,
}

/// A request, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    net: DeviceId,
    #[serde(default, deserialize_with = "limits::bandwidth")]
    receive_bandwidth: NewLimit,
    #[serde(default, deserialize_with = "limits::operations")]
    receive_frames: NewLimit,
    #[serde(default, deserialize_with = "limits::bandwidth")]
    transmit_bandwidth: NewLimit,
    #[serde(default, deserialize_with = "limits::operations")]
    transmit_frames: NewLimit,
}

impl From<Limits> for NetRequest {
    fn from(read: Limits) -> Self {
        let Limits { net, receive_bandwidth, receive_frames, transmit_bandwidth, transmit_frames, .. } = read;
        Self {
            net,
            receive: NewLimits { bandwidth: receive_bandwidth, operations: receive_frames },
            transmit: NewLimits { bandwidth: transmit_bandwidth, operations: transmit_frames },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_device_that_is_not_there_is_told_which_are() {
        let refusal = |nets| NetRefusal::Unknown { id: DeviceId::of_net(7), nets }.to_string();
        assert_eq!(refusal(Vec::new()), "there is no network device net7; the machine has none");
        let nets = vec![DeviceId::of_net(0), "lan".parse().unwrap()];
        assert_eq!(refusal(nets), "there is no network device net7; the network devices are: net0, lan");
    }
}
