//! Network devices that come and go, and whose limits change, while a stock guest runs and uses them.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use vmm_tests::harness::{ControlSocket, Held, KernelFormat, LinuxGuest, RunningVm, is_full, until};

use super::net::{HOST, command, give, noise, take};
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_network_that_comes_and_goes_and_is_limited_leaves_nothing_behind on [Shape::new(KernelFormat::BzImage, 2)],
    ]
}

/// The interface that is made for the device, and goes with it.
const TAP: &str = "vmmtap9";

/// Rounds before anything is counted: threads and memory that are kept for the next time.
const WARM_UP: u64 = 3;

/// How long something that is counted may take to happen: a watchdog, not a measure.
const PATIENCE: Duration = Duration::from_secs(240);

fn a_network_that_comes_and_goes_and_is_limited_leaves_nothing_behind(guest: &LinuxGuest) -> Result<()> {
    let _host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    let (rounds, seconds) = if is_full() { (200, 7200) } else { (10, 900) };
    let mut bench = Bench::start(guest, Duration::from_secs(seconds))?;
    let mut before = None;
    for round in 1..=rounds {
        bench.round(round, "").with_context(|| format!("round {round}"))?;
        if round == WARM_UP {
            before = Some(Held::by(bench.vm.process())?);
        }
    }
    before.context("no rounds")?.is_all_of(bench.vm.process())?;
    // Taken away, of either kind: the slot is not used again before the guest has given it back.
    for round in rounds + 1..=rounds + 2 {
        bench.round(round, "--force").context("by force")?;
    }
    let console = bench.vm.stdout();
    ensure!(!console.contains("vmm: missing="), "{console:?}");
    bench.place.ctl("quit")?.ensure_code(0)?;
    bench.vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// A guest that waits for a network.
struct Bench {
    vm: RunningVm,
    place: ControlSocket,
    /// The devices that stay.
    others: Value,
    giver: TcpListener,
    taker: TcpListener,
}

impl Bench {
    fn start(guest: &LinuxGuest, deadline: Duration) -> Result<Self> {
        let place = ControlSocket::new()?;
        let mut vm = place.start(guest.vm("net-hotplug", "").deadline(deadline))?;
        vm.wait_for_output("vmm: ready=net-hotplug")?;
        let (giver, taker) = (TcpListener::bind("0.0.0.0:5001")?, TcpListener::bind("0.0.0.0:5002")?);
        giver.set_nonblocking(true)?;
        taker.set_nonblocking(true)?;
        let others = place.ask("devices")?;
        Ok(Self { vm, place, others, giver, taker })
    }

    /// A device comes, is used, and goes. The kernel moves the frames of every second one.
    fn round(&mut self, round: u64, how: &str) -> Result<()> {
        let vhost = round.is_multiple_of(2);
        self.plug(vhost)?;
        if round == 1 {
            self.refuses_another()?;
        }
        self.exchange(round)?;
        match (vhost, round) {
            (true, _) => {
                let refused = self.place.ctl("net-limits hot")?.ensure_code(1)?;
                refused.ensure_message(&["hot has no limits"])?;
            }
            (false, ..=WARM_UP) => {
                self.limit("transmit").context("transmit")?;
                self.limit("receive").context("receive")?;
            }
            (false, _) => {}
        }
        self.unplug(round, how)
    }

    fn plug(&self, vhost: bool) -> Result<()> {
        let settings = format!("tap={TAP},create,id=hot,mac=02:00:00:00:00:2a,vhost={vhost}");
        let add = format!("device-add --net {settings}");
        let added = self.place.ctl(&add)?.ensure_code(0)?.text();
        ensure!(added.starts_with("hot is at 00:") && !added.contains("not listen"), "{added:?}");
        command(&format!("ip addr add 10.0.2.1/24 dev {TAP}"))
    }

    /// A second one of the same is refused, and takes nothing along.
    fn refuses_another(&self) -> Result<()> {
        let add = format!("device-add --net tap={TAP},create,id=hot");
        self.place.ctl(&add)?.ensure_code(1)?.ensure_message(&["there is a device hot already"])?;
        let other = format!("device-add --net tap={TAP}");
        self.place.ctl(&other)?.ensure_code(1)?.ensure_message(&["hot of this machine has the interface"])?;
        let address = "device-add --net tap=vmmtap10,create,mac=02:00:00:00:00:2a";
        self.place.ctl(address)?.ensure_code(1)?.ensure_message(&["hot of this machine has the address"])?;
        ensure!(!is_there("vmmtap10"), "what was refused has left an interface");
        Ok(())
    }

    /// The guest gets bytes over one connection and gives them back over another one.
    fn exchange(&mut self, round: u64) -> Result<()> {
        let bytes = noise(1 << 18);
        give(accept(&self.giver)?, &bytes)?;
        take(accept(&self.taker)?, &bytes)?;
        self.vm.wait_for_output(&format!("vmm: passed={round}\r\n"))
    }

    /// Lets one frame pass in an hour each way in turn, until one waits for that, and then again all that come.
    fn limit(&self, way: &str) -> Result<()> {
        let (throttled, frames) = match way {
            "transmit" => ("transmitted_throttled", "transmitted_frames"),
            _ => ("received_throttled", "received_frames"),
        };
        let before = self.count(throttled)?;
        let limits = self.place.ctl(&format!("net-limits hot --{way}-frames 1/60m"))?.ensure_code(0)?.text();
        ensure!(limits.contains(&format!("{:<18} 1/", format!("{way}_frames"))), "{limits:?}");
        self.until_more(throttled, before)?;
        let before = self.count(frames)?;
        let limits = self.place.ctl(&format!("net-limits hot --{way}-frames none"))?.ensure_code(0)?.text();
        ensure!(limits.matches("unlimited").count() == 4, "{limits:?}");
        // The one that has waited, and more than would have passed.
        self.until_more(frames, before + 2)
    }

    fn until_more(&self, name: &str, count: u64) -> Result<()> {
        until(Instant::now() + PATIENCE, name, || Ok((self.count(name)? > count).then_some(())))
    }

    fn count(&self, name: &str) -> Result<u64> {
        let statistics = self.place.ask("stats")?;
        let count = &statistics["ok"]["nets"][0]["monitor"][name];
        count.as_u64().with_context(|| format!("no {name} in {statistics}"))
    }

    /// Removes the device; then nothing of it is left on the host, and soon nothing in the guest.
    fn unplug(&mut self, round: u64, how: &str) -> Result<()> {
        self.place.ctl(&format!("device-remove hot --limit 1m {how}"))?.ensure_code(0)?;
        // Who reads a frame at that moment has it a little longer.
        let has_gone = || Ok((!is_there(TAP)).then_some(()));
        until(Instant::now() + PATIENCE, "the interface goes", has_gone)
            .with_context(|| format!("round {round}"))?;
        let devices = self.place.ask("devices")?;
        ensure!(devices == self.others, "{devices}");
        let statistics = self.place.ask("stats")?;
        ensure!(statistics["ok"]["nets"] == Value::Array(Vec::new()), "{statistics}");
        self.vm.wait_for_output(&format!("vmm: gone={round}\r\n"))
    }
}

/// The next connection, if there is one in time; it blocks, but not for ever.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = until(Instant::now() + PATIENCE, "a connection", || Ok(listener.accept().ok()))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn is_there(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}
