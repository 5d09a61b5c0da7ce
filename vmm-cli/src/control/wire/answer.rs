//! Answers: what a request has come to, as it is written.

use serde::{Deserialize, Serialize};

use super::RequestError;
use crate::control::balloon::BalloonRefusal;
use crate::control::disks::DiskRefusal;
use crate::control::memory::MemoryRefusal;
use crate::control::nets::NetRefusal;
use crate::control::operations::{OperationError, Outcome};
use crate::control::roles::GivenError;
use crate::control::vsock::NoVsock;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    /// It has been carried out.
    Ok(T),
    /// It has not.
    Error(ErrorBody),
}

/// Why a request has not been carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people; the words may change.
    pub message: String,
    /// Of [`ErrorCode::NoAnswer`]: the vCPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Of [`ErrorCode::BadRequest`]: the place in the line, counting bytes from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

/// The kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// [`RequestError`], but for its length.
    BadRequest,
    /// [`RequestError::TooLong`].
    TooLong,
    /// [`OperationError::Starting`].
    Starting,
    /// [`OperationError::Stopping`].
    Stopping,
    /// [`OperationError::NoAnswer`], or [`DeviceError::NotEjected`](crate::control::devices::DeviceError::NotEjected).
    NoAnswer,
    /// [`OperationError::Resumed`].
    Resumed,
    /// [`OperationError::NotListening`].
    NotListening,
    /// As many operations wait as may, [`OperationError::Tracking`], or [`DiskRefusal::Busy`].
    Busy,
    /// [`OperationError::NotTracked`].
    NotTracked,
    /// [`DiskRefusal::Unknown`].
    NoSuchDisk,
    /// [`DiskRefusal::Refused`].
    DiskRefused,
    /// [`DiskRefusal::Failed`].
    DiskFailed,
    /// [`NetRefusal::Unknown`].
    NoSuchNet,
    /// [`NetRefusal::NoLimits`].
    NetRefused,
    /// [`MemoryRefusal::None`].
    NoHotplug,
    /// [`MemoryRefusal::BadSize`].
    BadSize,
    /// The host has no thread for it, or not what a device takes.
    Exhausted,
    /// There is no PCI bus.
    NoBus,
    /// Every slot is taken.
    NoSlot,
    /// Another device has the name.
    IdTaken,
    /// No device has the name.
    UnknownId,
    /// The device cannot be removed.
    NotRemovable,
    /// The image of a disk cannot be had.
    BadDisk,
    /// The interface of a network device cannot be had.
    BadNet,
    /// [`GivenError`].
    BadDescriptors,
    /// The client has not opened what a device takes.
    NoDescriptor,
    /// Somebody has the image of a disk, or the interface of a network device.
    InUse,
    /// [`BalloonRefusal::NoBalloon`].
    NoBalloon,
    /// [`BalloonRefusal::Refused`].
    BalloonRefused,
    /// [`NoVsock`].
    NoVsock,
    /// The client is somebody else.
    Forbidden,
    /// The client has sent no request for too long.
    Idle,
    /// Another client needed the place.
    Evicted,
}

impl ErrorBody {
    pub(in crate::control) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), vcpu: None, column: None }
    }
}

impl From<RequestError> for ErrorBody {
    fn from(error: RequestError) -> Self {
        let (code, column) = match &error {
            RequestError::NotUtf8 { column } | RequestError::Malformed { column, .. } => {
                (ErrorCode::BadRequest, Some(*column))
            }
            RequestError::TooLong => (ErrorCode::TooLong, None),
        };
        Self { column, ..Self::new(code, error.to_string()) }
    }
}

impl From<GivenError> for ErrorBody {
    fn from(error: GivenError) -> Self {
        let code = match &error {
            GivenError::Lost => ErrorCode::Exhausted,
            _ => ErrorCode::BadDescriptors,
        };
        Self::new(code, error.to_string())
    }
}

impl From<OperationError> for ErrorBody {
    fn from(error: OperationError) -> Self {
        let (code, vcpu) = match &error {
            OperationError::Starting => (ErrorCode::Starting, None),
            OperationError::Stopping => (ErrorCode::Stopping, None),
            OperationError::NoAnswer { vcpu, .. } => (ErrorCode::NoAnswer, Some(*vcpu)),
            OperationError::Resumed => (ErrorCode::Resumed, None),
            OperationError::NotListening => (ErrorCode::NotListening, None),
            OperationError::Tracking => (ErrorCode::Busy, None),
            OperationError::NotTracked => (ErrorCode::NotTracked, None),
            OperationError::Disk(DiskRefusal::Unknown { .. }) => (ErrorCode::NoSuchDisk, None),
            OperationError::Disk(DiskRefusal::Busy(_)) => (ErrorCode::Busy, None),
            OperationError::Disk(DiskRefusal::Refused(_)) => (ErrorCode::DiskRefused, None),
            OperationError::Disk(DiskRefusal::Failed(_)) => (ErrorCode::DiskFailed, None),
            OperationError::Net(NetRefusal::Unknown { .. }) => (ErrorCode::NoSuchNet, None),
            OperationError::Net(NetRefusal::NoLimits { .. }) => (ErrorCode::NetRefused, None),
            OperationError::Vsock(NoVsock) => (ErrorCode::NoVsock, None),
            OperationError::Memory(MemoryRefusal::None) => (ErrorCode::NoHotplug, None),
            OperationError::Memory(MemoryRefusal::BadSize(_)) => (ErrorCode::BadSize, None),
            OperationError::Device(error) => (error.code(), None),
            OperationError::Balloon(BalloonRefusal::NoBalloon) => (ErrorCode::NoBalloon, None),
            OperationError::Balloon(BalloonRefusal::Refused(_)) => (ErrorCode::BalloonRefused, None),
        };
        Self { vcpu, ..Self::new(code, error.to_string()) }
    }
}

impl<E: Into<ErrorBody>> From<Result<Outcome, E>> for Answer<Outcome> {
    fn from(result: Result<Outcome, E>) -> Self {
        result.map_or_else(|error| Self::Error(error.into()), Self::Ok)
    }
}
