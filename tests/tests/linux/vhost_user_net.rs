//! A network device whose frames another program moves, by vhost-user. Debian has no such program; this one is it too.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::PoisonError;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport, TestVm, is_full};
use vmm_tests::vhost_user_net;

use super::net::{HOST, MIB, MOST_SLEEPS, Peer, STREAMS, address, noise, patience};
use super::vhost_user::BackEnd;
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const TWO: Shape = Shape::with_memory(KernelFormat::BzImage, 2, 512);
    const ONE: Shape = Shape::with_memory(KernelFormat::Vmlinux, 1, 512);
    crate::trials![
        a_back_end_moves_the_frames_of_two_queues on [TWO],
        a_back_end_that_is_killed_is_a_link_that_is_down_until_the_driver_begins_anew on [ONE],
    ]
}

/// The first word with which this program is a back end; a socket, an interface and a number of pairs follow.
pub const SERVE: &str = "vhost-user-net";

/// What it does then.
pub fn serve(socket: &str, interface: &str, pairs: &str) -> Result<()> {
    vhost_user_net::serve(Path::new(socket), interface, pairs.parse()?)
}

/// Starts a back end, whose interface is there then.
fn start(socket: &Path, interface: &str, pairs: usize) -> Result<BackEnd> {
    if socket.exists() {
        // Of the one before.
        fs::remove_file(socket)?;
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg(SERVE).arg(socket).arg(interface).arg(pairs.to_string());
    BackEnd::start(&mut command, socket.to_owned())
}

/// A guest whose network device is behind `socket`.
fn guest_of(guest: &LinuxGuest, words: &str, socket: &Path, more: &str) -> TestVm {
    let device = format!("--net=vhost_user={},mac=02:00:00:00:00:2a,mtu=1500{more}", socket.display());
    guest.vm("net", words).arg(device).args("--memory-backing memfd").deadline(patience())
}

fn a_back_end_moves_the_frames_of_two_queues(guest: &LinuxGuest) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let interface = "vmmuser2";
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("socket");
    // With more than are asked for.
    let back_end = start(&socket, interface, 3)?;
    let (peer, gate) = Peer::start(interface, noise(if is_full() { 128 } else { 4 } * MIB), STREAMS)?;
    let place = ControlSocket::new()?;
    let mut vm = place.start(guest_of(guest, "", &socket, ",queues=2"))?;
    vm.wait_for_output("vmm: done=net")?;
    let sleeps = vm.process().sleeps("vhost-user")?;
    drop(gate);
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    back_end.kill()?;
    peer.ensure_exchanged(&report, 2, 1500)?;
    ensure!(report.number("busy")? == 2, "a queue has no frames: {report:?}");
    ensure!(sleeps < MOST_SLEEPS, "the monitor has slept {sleeps} times");
    peer.end()?;
    // More than it has are refused.
    let back_end = start(&socket, interface, 1)?;
    let refused = guest_of(guest, "", &socket, ",queues=2").run()?;
    refused.ensure_code(3)?.ensure_message(&["net.vhost_user (--net)", "serves 2 queues, not 4"])?;
    back_end.kill()
}

fn a_back_end_that_is_killed_is_a_link_that_is_down_until_the_driver_begins_anew(
    guest: &LinuxGuest,
) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let interface = "vmmuser1";
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("socket");
    let back_end = start(&socket, interface, 1)?;
    let (peer, gate) = Peer::start(interface, noise(MIB), STREAMS + 1)?;
    let place = ControlSocket::new()?;
    let mut vm = place.start(guest_of(guest, "vmm.lost=rebind", &socket, ""))?;
    vm.wait_for_output("vmm: done=net")?;
    back_end.kill()?;
    vm.wait_for_output("vmm: lost=carrier")?;
    let again = start(&socket, interface, 1)?;
    address(interface)?;
    vm.wait_for_output("vmm: whole=")?;
    let statistics = place.ask("stats")?;
    drop(gate);
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    again.kill()?;
    peer.ensure_exchanged(&report, 1, 1500)?;
    ensure!(report.number("again")? == 5 && report.get("whole")? == "yes", "{report:?}");
    let counts = &statistics["ok"]["vhost_user"][0]["monitor"];
    ensure!(counts["connected"] == 1 && counts["connections"] == 2 && counts["losses"] == 1, "{statistics}");
    peer.end()
}
