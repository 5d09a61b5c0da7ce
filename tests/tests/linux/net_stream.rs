//! A network device behind a stream socket, as passt has it: this program is at the other end.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_devices::virtio::net::{Tap, TapOptions, TapSource};
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport, is_full};
use vmm_tests::stream_peer;

use super::net::{HOST, MIB, Peer, STREAMS, noise, patience};
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: Shape = Shape::with_memory(KernelFormat::BzImage, 1, 512);
    crate::trials![
        all_that_is_sent_passes_a_stream_whose_other_end_goes_and_comes_again on [ONE],
        a_stream_that_nobody_has_is_named on [ONE],
    ]
}

/// The other end of one stream, which is listened for.
struct Other {
    stream: JoinHandle<Result<UnixStream>>,
    serving: JoinHandle<Result<()>>,
}

impl Other {
    fn listen(socket: &Path, tap: &Arc<Tap>) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let (path, tap) = (socket.to_owned(), Arc::clone(tap));
        let (sender, serving) = std::sync::mpsc::channel::<UnixStream>();
        let stream = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            // The next one has to listen itself.
            fs::remove_file(path)?;
            sender.send(stream.try_clone()?)?;
            Ok(stream)
        });
        let serving = thread::spawn(move || stream_peer::serve(&serving.recv()?, &tap));
        Ok(Self { stream, serving })
    }

    /// Is gone.
    fn end(self) -> Result<()> {
        let stream = self.stream.join().ok().context("a thread has panicked")??;
        // It fails where the monitor has ended.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        self.serving.join().ok().context("a thread has panicked")?
    }
}

fn all_that_is_sent_passes_a_stream_whose_other_end_goes_and_comes_again(guest: &LinuxGuest) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let interface = "vmmstream1";
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("socket");
    let source = TapSource::Created(interface.into());
    let tap = Arc::new(Tap::open(&TapOptions { source, pairs: 1, mtu: None })?);
    let (peer, gate) = Peer::start(interface, noise(if is_full() { 128 } else { 1 } * MIB), STREAMS + 1)?;
    let other = Other::listen(&socket, &tap)?;
    let device = format!("--net=passt={},mac=02:00:00:00:00:2a,mtu=1500", socket.display());
    let place = ControlSocket::new()?;
    let mut vm = place.start(guest.vm("net", "vmm.lost=yes").arg(device).deadline(patience()))?;
    vm.wait_for_output("vmm: done=net")?;
    other.end()?;
    vm.wait_for_output("vmm: lost=carrier")?;
    let other = Other::listen(&socket, &tap)?;
    vm.wait_for_output("vmm: whole=")?;
    let statistics = place.ask("stats")?;
    drop(gate);
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    other.end()?;
    peer.ensure_exchanged(&report, 1, 1500)?;
    ensure!(report.number("again")? == 5 && report.get("whole")? == "yes", "{report:?}");
    let counts = &statistics["ok"]["nets"][0]["monitor"];
    ensure!(counts["link_losses"] == 1 && counts["link_returns"] == 1, "{counts}");
    peer.end()
}

fn a_stream_that_nobody_has_is_named(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let device = format!("--net=passt={}/socket", directory.path().display());
    let refused = guest.vm("poweroff", "").arg(device).run()?;
    refused.ensure_code(3)?.ensure_message(&["passt --socket", "start who has the other end first"])?;
    Ok(())
}
