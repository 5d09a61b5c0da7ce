//! A vhost-user back end of a network device, for trials: what the front end says is passed on to the kernel's vhost-net, which moves the
//! frames between the rings and a TAP interface that is made here.

mod back_end;
mod eventfd;
mod memory;
mod pair;

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_devices::virtio::net::{Tap, TapOptions, TapSource};

use back_end::BackEnd;

/// Serves whoever connects to `socket`, one after the other, until the process is killed: a device with `pairs` pairs of queues. The interface
/// is there before the socket is, and goes with the process.
///
/// # Errors
///
/// The host does not give what it takes.
pub fn serve(socket: &Path, interface: &str, pairs: u16) -> Result<()> {
    let source = TapSource::Created(interface.to_owned());
    let tap = Arc::new(Tap::open(&TapOptions { source, pairs, mtu: None })?);
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    loop {
        let (stream, _) = listener.accept()?;
        let back_end = Arc::new(Mutex::new(BackEnd::new(&tap)?));
        let mut front_end = BackendReqHandler::from_stream(stream, back_end);
        let error = loop {
            if let Err(error) = front_end.handle_request() {
                break error;
            }
        };
        if !matches!(error, Error::Disconnected) {
            // For whoever looks for the reason of a trial's failure.
            let _ = writeln!(io::stderr(), "the back end of {interface} gives up: {error}");
        }
    }
}
