//! Network: the stock driver of a guest and the host's own TCP, over a TAP that is made for the guest.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport, is_full};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const TWO: Shape = Shape::with_memory(KernelFormat::BzImage, 2, 512);
    const ONE: Shape = Shape::with_memory(KernelFormat::Vmlinux, 1, 512);
    crate::trials![
        a_guest_with_one_queue_has_all_that_is_sent_either_way on [ONE],
        a_guest_with_two_queues_has_all_that_is_sent_either_way on [TWO],
        fault_b11_an_interface_that_is_removed_is_a_link_that_is_down on [ONE],
    ]
}

const MIB: usize = 1 << 20;

/// Connections for each direction: one alone, and four at a time.
const STREAMS: usize = 5;

/// One machine at a time has the addresses of the host's side.
static HOST: Mutex<()> = Mutex::new(());

fn a_guest_with_one_queue_has_all_that_is_sent_either_way(guest: &LinuxGuest) -> Result<()> {
    exchange(guest, Card { name: "vmmtap1", queues: 1, mtu: 1500 })
}

fn a_guest_with_two_queues_has_all_that_is_sent_either_way(guest: &LinuxGuest) -> Result<()> {
    exchange(guest, Card { name: "vmmtap2", queues: 2, mtu: 9000 })
}

/// A network device whose interface is made for it.
struct Card {
    name: &'static str,
    queues: usize,
    mtu: usize,
}

impl Card {
    fn arg(&self) -> String {
        let Self { name, queues, mtu } = self;
        format!("--net=tap={name},create,mac=02:00:00:00:00:2a,queues={queues},mtu={mtu}")
    }
}

fn exchange(guest: &LinuxGuest, card: Card) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let sent: Arc<Vec<u8>> = Arc::new(noise(if is_full() { 128 } else { 4 } * MIB));
    let patience = Duration::from_secs(if is_full() { 1200 } else { 240 });
    let place = ControlSocket::new()?;
    let mut vm = place.start(guest.vm("net", "").arg(card.arg()).deadline(patience))?;
    // It is there before the guest runs.
    ip(&format!("addr add 10.0.2.1/24 dev {}", card.name))?;
    let (sender, receiver) = (TcpListener::bind("10.0.2.1:5001")?, TcpListener::bind("10.0.2.1:5002")?);
    let bytes = Arc::clone(&sent);
    let sending = thread::spawn(move || serve(&sender, |stream| give(stream, &bytes)));
    let bytes = Arc::clone(&sent);
    let receiving = thread::spawn(move || serve(&receiver, |stream| take(stream, &bytes)));
    vm.wait_for_output("vmm: done=net")?;
    let statistics = place.ctl("stats --json")?.ensure_code(0)?.text();
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    ensure!(report.get("mac")? == "02:00:00:00:00:2a" && report.get("carrier")? == "1", "{report:?}");
    ensure!(report.number("mtu")? == card.mtu as u64, "{report:?}");
    ensure!(report.number("queues")? == card.queues as u64, "{report:?}");
    ensure!(report.number("pings")? == 5 && report.number("large")? == 3, "{report:?}");
    ensure!(report.number("received")? == sent.len() as u64, "{report:?}");
    ensure!(report.number("same")? == 4, "received otherwise: {report:?}");
    for (direction, streams) in [("sending", sending), ("receiving", receiving)] {
        let streams = streams.join().ok().context("a thread has panicked")?;
        streams.with_context(|| direction.to_owned())?;
    }
    counts(&statistics, &sent)?;
    ensure!(!Path::new("/sys/class/net").join(card.name).exists(), "the interface is left");
    Ok(())
}

/// That the monitor has counted at least what was sent, and no fault.
fn counts(statistics: &str, sent: &[u8]) -> Result<()> {
    let json: serde_json::Value = serde_json::from_str(statistics)?;
    let counts = &json["ok"]["nets"][0]["monitor"];
    let number = |name: &str| counts[name].as_u64().with_context(|| format!("no {name} in {statistics}"));
    let bytes = (STREAMS * sent.len()) as u64;
    ensure!(number("received_bytes")? >= bytes && number("transmitted_bytes")? >= bytes, "{counts}");
    for fault in
        ["received_too_long", "received_malformed", "refused_frames", "refused_buffers", "host_errors"]
    {
        ensure!(number(fault)? == 0, "{fault}: {counts}");
    }
    // Segments came whole: more bytes a frame than the MTU.
    ensure!(number("transmitted_bytes")? / number("transmitted_frames")? > 1500, "{counts}");
    Ok(())
}

fn fault_b11_an_interface_that_is_removed_is_a_link_that_is_down(guest: &LinuxGuest) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let card = Card { name: "vmmtap3", queues: 1, mtu: 1500 };
    let sent: Arc<Vec<u8>> = Arc::new(noise(MIB));
    let place = ControlSocket::new()?;
    let vm = guest.vm("net", "vmm.lost=yes").arg(card.arg()).deadline(Duration::from_secs(240));
    let mut vm = place.start(vm)?;
    ip(&format!("addr add 10.0.2.1/24 dev {}", card.name))?;
    let (sender, receiver) = (TcpListener::bind("10.0.2.1:5001")?, TcpListener::bind("10.0.2.1:5002")?);
    let bytes = Arc::clone(&sent);
    let sending = thread::spawn(move || serve(&sender, |stream| give(stream, &bytes)));
    let bytes = Arc::clone(&sent);
    let receiving = thread::spawn(move || serve(&receiver, |stream| take(stream, &bytes)));
    vm.wait_for_output("vmm: done=net")?;
    ip(&format!("link delete {}", card.name))?;
    vm.wait_for_output("vmm: lost=carrier")?;
    let statistics = place.ctl("stats --json")?.ensure_code(0)?.text();
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    ensure!(report.get("lives")? == "yes", "{report:?}");
    let json: serde_json::Value = serde_json::from_str(&statistics)?;
    ensure!(json["ok"]["nets"][0]["monitor"]["link_losses"] == 1, "{statistics}");
    for streams in [sending, receiving] {
        streams.join().ok().context("a thread has panicked")??;
    }
    Ok(())
}

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status().context("cannot start ip")?;
    ensure!(status.success(), "ip {words}: {status}");
    Ok(())
}

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(step).collect()
}

/// Does `one` with each of the connections, side by side.
fn serve(listener: &TcpListener, one: impl Fn(TcpStream) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let one = &one;
        let streams: Vec<_> = (0..STREAMS)
            .map(|_| {
                let (stream, _) = listener.accept()?;
                Ok(scope.spawn(move || one(stream)))
            })
            .collect::<Result<_>>()?;
        streams.into_iter().try_for_each(|stream| stream.join().ok().context("a thread has panicked")?)
    })
}

fn give(mut stream: TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn take(mut stream: TcpStream, bytes: &[u8]) -> Result<()> {
    let mut taken = Vec::new();
    stream.read_to_end(&mut taken)?;
    ensure!(taken == bytes, "{} bytes were taken, and not the same", taken.len());
    Ok(())
}
