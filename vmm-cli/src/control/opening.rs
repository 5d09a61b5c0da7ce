//! Opening: what a device that is added takes is opened by the client, in its own view of the host and with its own rights.
//!
//! The monitor opens nothing while its machine runs. It checks what it is given as what it opens itself before.

use std::os::fd::OwnedFd;

use super::arrivals::MOST_DESCRIPTORS;
use super::devices::{Addition, DeviceError, NewDevice};
use super::operations::{Operation, OperationError};
use super::roles::{DiskFiles, NetFiles, Roles};
use super::wire::ErrorBody;
use crate::config::{NetConfig, check_settings};
use crate::disks::Images;
use crate::nets;

/// An operation with everything that goes along.
#[derive(Debug)]
pub struct Prepared {
    /// The operation, which says what each descriptor is.
    pub operation: Operation,
    /// In the order of their places. They are to be kept until there is an answer.
    pub descriptors: Vec<OwnedFd>,
    /// Why there are none, though there should be. The monitor is asked all the same: it may have another reason to refuse, which
    /// comes first.
    pub failure: Option<ErrorBody>,
}

/// Opens what `operation` takes.
///
/// # Errors
/// It cannot be had, and without it there is nothing to ask the monitor.
pub fn prepare(operation: Operation) -> Result<Prepared, ErrorBody> {
    let Operation::DeviceAdd(Addition { device, .. }) = operation else {
        return Ok(Prepared { operation, descriptors: Vec::new(), failure: None });
    };
    let (addition, descriptors, failure) = match open(&device) {
        Ok((addition, descriptors)) => (addition, descriptors, None),
        Err(error) => {
            let failure = OperationError::Device(error).into();
            // Numbers of descriptors are this process's, and no name for anything.
            if matches!(&device, NewDevice::Net(net) if net.fd.is_some()) {
                return Err(failure);
            }
            (device.into(), Vec::new(), Some(failure))
        }
    };
    Ok(Prepared { operation: Operation::DeviceAdd(addition), descriptors, failure })
}

fn open(device: &NewDevice) -> Result<(Addition, Vec<OwnedFd>), DeviceError> {
    let mut descriptors = Vec::new();
    let (device, roles) = match device {
        NewDevice::Disk(config) => {
            let bad = |error: anyhow::Error| DeviceError::BadDisk { message: format!("{error:#}") };
            check_settings(config).map_err(|error| bad(error.into()))?;
            let images = Images::open(config).map_err(crate::disks::OpenError::device_error)?;
            let files = images.hand_over().map_err(|error| bad(error.into()))?;
            (NewDevice::Disk(config.clone()), of_disk(files, &mut descriptors))
        }
        NewDevice::Net(config) => {
            let opened = nets::open_for_monitor(config);
            let (interface, pairs, files) = opened.map_err(nets::OpenError::device_error)?;
            (named(config, interface, pairs), of_net(files, &mut descriptors))
        }
    };
    if descriptors.len() > MOST_DESCRIPTORS {
        let count = descriptors.len();
        let message = format!(
            "so many queues take {count} descriptors, and {MOST_DESCRIPTORS} can be handed over: take fewer of them"
        );
        return Err(DeviceError::BadNet { message });
    }
    Ok((Addition { device, roles }, descriptors))
}

/// The device by the name of its interface, also if it was said by descriptors.
fn named(config: &NetConfig, interface: String, pairs: u16) -> NewDevice {
    let mut config = config.clone();
    if config.fd.take().is_some() {
        (config.tap, config.queues) = (Some(interface), Some(pairs));
    }
    NewDevice::Net(Box::new(config))
}

/// The place of a descriptor that goes along.
fn place(all: &mut Vec<OwnedFd>, descriptor: OwnedFd) -> usize {
    all.push(descriptor);
    all.len() - 1
}

fn of_disk(files: DiskFiles, all: &mut Vec<OwnedFd>) -> Roles {
    let DiskFiles { image, direct, backing } = files;
    let [image, direct, backing] = [image, direct, backing].map(|file| file.map(|file| place(all, file)));
    Roles { image, direct, backing, ..Roles::default() }
}

fn of_net(files: NetFiles, all: &mut Vec<OwnedFd>) -> Roles {
    let NetFiles { tap, vhost, interfaces, news } = files;
    let [tap, vhost] = [tap, vhost].map(|files| files.into_iter().map(|file| place(all, file)).collect());
    let [interfaces, news] = [interfaces, news].map(|file| file.map(|file| place(all, file)));
    Roles { tap, vhost, interfaces, news, ..Roles::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::ErrorCode;

    fn prepare(device: NewDevice) -> Result<Prepared, ErrorBody> {
        super::prepare(Operation::DeviceAdd(device.into()))
    }

    fn disk(settings: &str) -> Prepared {
        prepare(NewDevice::Disk(Box::new(settings.parse().unwrap()))).unwrap()
    }

    #[test]
    fn what_is_opened_goes_along_and_is_named_and_the_rest_is_told_when_it_is_missed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let prepared = disk(&format!("path={},format=raw", file.path().display()));
        let roles = Roles { image: Some(0), ..Roles::default() };
        assert_eq!((prepared.operation.roles(), prepared.descriptors.len()), (Some(&roles), 1));
        assert!(prepared.failure.is_none());
        // It is locked until it is dropped.
        let again = disk(&format!("path={},format=raw", file.path().display()));
        assert_eq!(again.failure.unwrap().code, ErrorCode::InUse);
        let missing = disk("path=/nowhere,format=raw");
        assert_eq!((missing.operation.roles(), missing.descriptors.len()), (Some(&Roles::default()), 0));
        assert_eq!(missing.failure.unwrap().code, ErrorCode::BadDisk);
    }

    #[test]
    fn a_number_of_a_descriptor_is_this_process_s_and_no_question_for_the_monitor() {
        let error = prepare(NewDevice::Net(Box::new("fd=9999".parse().unwrap()))).unwrap_err();
        assert!(error.code == ErrorCode::BadNet && error.message.starts_with("there is no descriptor 9999"));
        let prepared = super::prepare(Operation::Status).unwrap();
        assert!(prepared.descriptors.is_empty() && prepared.failure.is_none());
    }
}
