//! Resizing: a disk that is in use takes note of the size of its storage, or gives a raw file another one.
//!
//! What grows, grows before its driver is told. What shrinks is cut off last: the capacity is less from then on, what was
//! checked against the one before comes to its end, and then the file ends there too. A write that is still in flight would
//! otherwise make it longer again.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::SECTOR;
use super::control::Control;
use super::device::{Backend, Block, Shared};
use super::image::Image;
use crate::sync::lock;

/// Why a disk does not have another size.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum ResizeError {
    #[error("the disk {name} is being resized already: ask again when that has ended")]
    Busy { name: String },
    #[error("the host cannot say how large the disk {name} is")]
    Length {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("the size of the disk {name} cannot be chosen: {reason}")]
    Fixed { name: String, reason: &'static str },
    #[error(
        "the disk {name} cannot have {length} bytes: it has sectors of {SECTOR} bytes, and at least one of them"
    )]
    NotSectors { name: String, length: u64 },
    #[error(
        "the disk {name} has {from} bytes, and would lose what is behind the first {to}; \
         if that is meant, say that it may shrink"
    )]
    Shrinks { name: String, from: u64, to: u64 },
    #[error("requests of the disk {name} have not ended within {limit:?}; its size is as it was")]
    InFlight { name: String, limit: Duration },
    #[error("the host does not give the disk {name} a size of {length} bytes")]
    Host {
        name: String,
        length: u64,
        #[source]
        source: io::Error,
    },
}

impl Block {
    /// Looks how large the storage is now, and tells the guest if that has changed; returns the size in bytes.
    ///
    /// # Errors
    /// [`ResizeError::Length`], [`ResizeError::Busy`].
    pub fn rescan(&self) -> Result<u64, ResizeError> {
        let shared = &*self.shared;
        let name = || shared.name().to_owned();
        let _alone = shared.resizing.try_lock().map_err(|_| ResizeError::Busy { name: name() })?;
        shared.rescan()
    }

    /// Gives the file behind the disk a length of so many bytes, and tells the guest; returns the size in bytes. What shrinks
    /// waits for requests in flight, no longer than `limit`, on the calling thread.
    ///
    /// # Errors
    /// [`ResizeError`]. The size is then as it was.
    pub fn resize(&self, length: u64, may_shrink: bool, limit: Duration) -> Result<u64, ResizeError> {
        let shared = &*self.shared;
        let name = || shared.name().to_owned();
        let _alone = shared.resizing.try_lock().map_err(|_| ResizeError::Busy { name: name() })?;
        let image = shared.image_to_resize()?;
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(ResizeError::NotSectors { name: name(), length });
        }
        let from = image.length().map_err(|source| ResizeError::Length { name: name(), source })?;
        if length < from {
            if !may_shrink {
                return Err(ResizeError::Shrinks { name: name(), from, to: length });
            }
            shared.set_capacity(length / SECTOR);
            if !shared.settle(limit) {
                shared.set_capacity(from / SECTOR);
                return Err(ResizeError::InFlight { name: name(), limit });
            }
        }
        let given = image.set_length(length);
        // Whatever has come of it, the guest is to know.
        let now = shared.rescan();
        given.map_err(|source| ResizeError::Host { name: name(), length, source })?;
        now
    }
}

impl Shared {
    fn rescan(&self) -> Result<u64, ResizeError> {
        let length = self.backend().and_then(|backend| backend.storage().length());
        let length = length.map_err(|source| ResizeError::Length { name: self.name().to_owned(), source })?;
        let capacity = length / SECTOR;
        self.set_capacity(capacity);
        Ok(capacity.saturating_mul(SECTOR))
    }

    /// Tells the driver of a capacity in sectors that is another than before. One that is not ready yet is told when it is: it
    /// may have read the one before.
    fn set_capacity(&self, capacity: u64) {
        let status = lock(&self.status);
        if self.capacity() == capacity {
            return;
        }
        let change = || self.capacity.store(capacity, Ordering::Release);
        match &*status {
            Some(status) => status.change_config(change),
            None => {
                change();
                self.untold.store(true, Ordering::Release);
            }
        }
    }

    fn image_to_resize(&self) -> Result<Arc<Image>, ResizeError> {
        let fixed = |reason| ResizeError::Fixed { name: self.name().to_owned(), reason };
        let backend = self.backend().map_err(|_| fixed("it was taken away"))?;
        match backend {
            Backend::Raw(_) if self.is_read_only() => Err(fixed("it is only read")),
            Backend::Raw(image) if image.is_device() => {
                Err(fixed("it is a block device; resize that with its own tools, and then look again"))
            }
            Backend::Raw(image) => Ok(image),
            Backend::Other(_) => Err(fixed("its format is not raw")),
        }
    }

    /// Waits until all has ended that is in flight, and returns whether that was within `limit`.
    pub(super) fn settle(&self, limit: Duration) -> bool {
        let (share, settled) = channel::<Infallible>();
        let controls: Vec<Arc<Control>> = lock(&self.controls).iter().filter_map(Weak::upgrade).collect();
        controls.iter().for_each(|control| control.settle(share.clone()));
        // What is kept here would keep a queue that ends from being gone.
        drop((controls, share));
        // Nobody ever sends: each queue drops its share when it has settled, or with itself.
        matches!(settled.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }
}
