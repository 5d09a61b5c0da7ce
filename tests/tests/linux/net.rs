//! Network: the stock driver of a guest and the host's own TCP, over a TAP that is made for the guest.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport, is_full};
use vmm_tests::tap::make_persistent;

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const TWO: Shape = Shape::with_memory(KernelFormat::BzImage, 2, 512);
    const ONE: Shape = Shape::with_memory(KernelFormat::Vmlinux, 1, 512);
    crate::trials![
        a_guest_with_one_queue_has_all_that_is_sent_either_way on [ONE],
        a_guest_with_two_queues_has_all_that_is_sent_either_way on [TWO],
        fault_b11_an_interface_that_is_removed_is_a_link_that_is_down_until_it_is_there_again on [ONE],
        vhost_serves_one_queue_without_the_monitor on [ONE],
        vhost_serves_two_queues_without_the_monitor on [TWO],
        vhost_serves_a_guest_again_that_was_reset on [ONE],
        fault_b11_vhost_serves_on_when_an_interface_that_was_removed_is_there_again on [ONE],
    ]
}

pub(super) const MIB: usize = 1 << 20;

/// How often the monitor's thread may go to sleep when the kernel moves the frames, for commands of the guest and news of interfaces. For frames it
/// would be thousands of times.
pub(super) const MOST_SLEEPS: u64 = 200;

/// Connections for each direction: one alone, and four at a time.
pub(super) const STREAMS: usize = 5;

/// One machine at a time has the addresses of the host's side.
pub(super) static HOST: Mutex<()> = Mutex::new(());

fn a_guest_with_one_queue_has_all_that_is_sent_either_way(guest: &LinuxGuest) -> Result<()> {
    exchange(guest, Card { name: "vmmtap1", queues: 1, mtu: 1500, vhost: false })
}

fn a_guest_with_two_queues_has_all_that_is_sent_either_way(guest: &LinuxGuest) -> Result<()> {
    exchange(guest, Card { name: "vmmtap2", queues: 2, mtu: 9000, vhost: false })
}

fn vhost_serves_one_queue_without_the_monitor(guest: &LinuxGuest) -> Result<()> {
    exchange(guest, Card { name: "vmmtap4", queues: 1, mtu: 1500, vhost: true })
}

fn vhost_serves_two_queues_without_the_monitor(guest: &LinuxGuest) -> Result<()> {
    exchange(guest, Card { name: "vmmtap5", queues: 2, mtu: 9000, vhost: true })
}

/// How long a machine may take that exchanges all bytes with its host, where that is emulated.
pub(super) fn patience() -> Duration {
    Duration::from_secs(if is_full() { 1200 } else { 240 })
}

/// A network device whose interface is made for it.
#[derive(Clone, Copy)]
struct Card {
    name: &'static str,
    queues: usize,
    mtu: usize,
    vhost: bool,
}

impl Card {
    fn arg(&self) -> String {
        let Self { name, queues, mtu, vhost } = self;
        format!("--net=tap={name},create,mac=02:00:00:00:00:2a,queues={queues},mtu={mtu},vhost={vhost}")
    }
}

fn exchange(guest: &LinuxGuest, card: Card) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let sent = noise(if is_full() { 128 } else { 4 } * MIB);
    let place = ControlSocket::new()?;
    let mut vm = place.start(guest.vm("net", "").arg(card.arg()).deadline(patience()))?;
    let (peer, gate) = Peer::start(card.name, sent, STREAMS)?;
    vm.wait_for_output("vmm: done=net")?;
    let statistics = place.ctl("stats --json")?.ensure_code(0)?.text();
    let sleeps = vm.process().sleeps("net")?;
    drop(gate);
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    peer.ensure_exchanged(&report, card.queues, card.mtu)?;
    if card.vhost {
        ensure!(sleeps < MOST_SLEEPS, "the monitor has slept {sleeps} times");
        counts_nothing(&statistics)?;
    } else {
        counts(&statistics, peer.sent.len() * STREAMS)?;
    }
    peer.end()?;
    ensure!(!Path::new("/sys/class/net").join(card.name).exists(), "the interface is left");
    Ok(())
}

/// What the host does with its end: it gives the same bytes to each connection to one port, and compares them with what comes to
/// another one.
pub(super) struct Peer {
    sent: Arc<Vec<u8>>,
    giving: JoinHandle<Result<()>>,
    taking: JoinHandle<Result<()>>,
}

impl Peer {
    /// For so many connections that are given the bytes. The interface is there before the guest runs, which goes on to its end
    /// when the listener is dropped.
    pub(super) fn start(interface: &str, sent: Vec<u8>, given: usize) -> Result<(Self, TcpListener)> {
        address(interface)?;
        let sent = Arc::new(sent);
        let (giver, taker) = (TcpListener::bind("10.0.2.1:5001")?, TcpListener::bind("10.0.2.1:5002")?);
        let (to_give, to_take) = (Arc::clone(&sent), Arc::clone(&sent));
        let giving = thread::spawn(move || serve(&giver, given, |stream| give(stream, &to_give)));
        // The one that is given them after a loss gives nothing back.
        let taken = given / STREAMS * STREAMS;
        let taking = thread::spawn(move || serve(&taker, taken, |stream| take(stream, &to_take)));
        Ok((Self { sent, giving, taking }, TcpListener::bind("10.0.2.1:5003")?))
    }

    /// What the guest says of its device with so many queues and this MTU, and of the bytes.
    pub(super) fn ensure_exchanged(&self, report: &LinuxReport, queues: usize, mtu: usize) -> Result<()> {
        ensure!(report.all("missing").next().is_none(), "{report:?}");
        ensure!(report.get("mac")? == "02:00:00:00:00:2a" && report.get("carrier")? == "1", "{report:?}");
        ensure!(report.number("mtu")? == mtu as u64, "{report:?}");
        ensure!(report.number("queues")? == queues as u64, "{report:?}");
        ensure!(report.number("pings")? == 5 && report.number("large")? == 3, "{report:?}");
        ensure!(report.number("received")? == self.sent.len() as u64, "{report:?}");
        ensure!(report.number("same")? == 4, "received otherwise: {report:?}");
        Ok(())
    }

    /// Whether all connections came, and had the bytes.
    pub(super) fn end(self) -> Result<()> {
        for (direction, streams) in [("giving", self.giving), ("taking", self.taking)] {
            streams.join().ok().context("a thread has panicked")?.context(direction)?;
        }
        Ok(())
    }
}

/// Gives the host's side its address.
pub(super) fn address(interface: &str) -> Result<()> {
    command(&format!("ip addr add 10.0.2.1/24 dev {interface}"))
}

/// That the monitor has counted at least so many bytes each way, and no fault.
fn counts(statistics: &str, bytes: usize) -> Result<()> {
    let json: Value = serde_json::from_str(statistics)?;
    let counts = &json["ok"]["nets"][0]["monitor"];
    let number = |name: &str| counts[name].as_u64().with_context(|| format!("no {name} in {statistics}"));
    let bytes = bytes as u64;
    ensure!(number("received_bytes")? >= bytes && number("transmitted_bytes")? >= bytes, "{counts}");
    ensure!(number("notifications")? > 0 && number("interrupts")? > 0, "{counts}");
    for fault in
        ["received_too_long", "received_malformed", "refused_frames", "refused_buffers", "host_errors"]
    {
        ensure!(number(fault)? == 0, "{fault}: {counts}");
    }
    // Segments came whole: more bytes a frame than the MTU.
    ensure!(number("transmitted_bytes")? / number("transmitted_frames")? > 1500, "{counts}");
    Ok(())
}

/// That no frame has passed the monitor, and there was no fault.
fn counts_nothing(statistics: &str) -> Result<()> {
    let json: Value = serde_json::from_str(statistics)?;
    let counts = json["ok"]["nets"][0]["monitor"].as_object().context("no counts")?;
    ensure!(counts.values().all(|count| *count == 0), "{counts:?}");
    Ok(())
}

fn vhost_serves_a_guest_again_that_was_reset(guest: &LinuxGuest) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let card = Card { name: "vmmtap6", queues: 1, mtu: 1500, vhost: true };
    let place = ControlSocket::new()?;
    let vm = guest.vm("net", "").arg(card.arg()).arg("--on-reset=restart");
    let mut vm = place.start(vm.deadline(patience()))?;
    let (peer, gate) = Peer::start(card.name, noise(MIB), 2 * STREAMS)?;
    vm.wait_for_output("vmm: done=net")?;
    place.ctl("reset")?.ensure_code(0)?;
    vm.wait_for_lines("vmm: done=net", 2)?;
    drop(gate);
    let said = vm.wait()?.ensure_code(0)?.text();
    ensure!(said.matches("vmm: same=4").count() == 2, "{said}");
    peer.end()
}

fn fault_b11_an_interface_that_is_removed_is_a_link_that_is_down_until_it_is_there_again(
    guest: &LinuxGuest,
) -> Result<()> {
    comes_and_goes(guest, Card { name: "vmmtap3", queues: 1, mtu: 1500, vhost: false })
}

fn fault_b11_vhost_serves_on_when_an_interface_that_was_removed_is_there_again(
    guest: &LinuxGuest,
) -> Result<()> {
    comes_and_goes(guest, Card { name: "vmmtap7", queues: 1, mtu: 1500, vhost: true })
}

fn comes_and_goes(guest: &LinuxGuest, card: Card) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let place = ControlSocket::new()?;
    let vm = guest.vm("net", "vmm.lost=yes").arg(card.arg()).deadline(patience());
    let mut vm = place.start(vm)?;
    let (peer, gate) = Peer::start(card.name, noise(MIB), STREAMS + 1)?;
    vm.wait_for_output("vmm: done=net")?;
    command(&format!("ip link delete {}", card.name))?;
    vm.wait_for_output("vmm: lost=carrier")?;
    // One that stays, as somebody else makes it.
    make_persistent(card.name)?;
    address(card.name)?;
    command(&format!("ip link set {} up", card.name))?;
    vm.wait_for_output("vmm: whole=")?;
    let statistics = place.ctl("stats --json")?.ensure_code(0)?.text();
    drop(gate);
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    command(&format!("ip link delete {}", card.name))?;
    ensure!(report.number("again")? == 5 && report.get("whole")? == "yes", "{report:?}");
    let json: Value = serde_json::from_str(&statistics)?;
    let counts = &json["ok"]["nets"][0]["monitor"];
    ensure!(counts["link_losses"] == 1 && counts["link_returns"] == 1, "{counts}");
    peer.end()
}

/// Runs a program with its words.
pub(super) fn command(text: &str) -> Result<()> {
    let mut words = text.split(' ');
    let program = words.next().unwrap_or_default();
    let status = Command::new(program)
        .args(words)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{text}: {status}");
    Ok(())
}

/// Bytes that do not repeat.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(step).collect()
}

/// Does `one` with each of so many connections, side by side.
fn serve(listener: &TcpListener, count: usize, one: impl Fn(TcpStream) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let one = &one;
        let streams: Vec<_> = (0..count)
            .map(|_| {
                let (stream, _) = listener.accept()?;
                Ok(scope.spawn(move || one(stream)))
            })
            .collect::<Result<_>>()?;
        streams.into_iter().try_for_each(|stream| stream.join().ok().context("a thread has panicked")?)
    })
}

pub(super) fn give(mut stream: TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

pub(super) fn take(mut stream: TcpStream, bytes: &[u8]) -> Result<()> {
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken)?;
    ensure!(taken == bytes, "{} bytes were taken, and not the same", taken.len());
    Ok(())
}
