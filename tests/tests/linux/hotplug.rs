//! Hot-plug: disks that come and go while a stock guest runs and uses them.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tempfile::NamedTempFile;
use vmm_tests::harness::{ControlSocket, Held, KernelFormat, LinuxGuest, RunningVm, is_full};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_disk_that_comes_and_goes_under_fio_leaves_nothing_behind on [Shape::new(KernelFormat::BzImage, 2)],
    ]
}

const MIB: u64 = 1 << 20;

/// Rounds before anything is counted: threads and memory that are kept for the next time.
const WARM_UP: u64 = 3;

fn a_disk_that_comes_and_goes_under_fio_leaves_nothing_behind(guest: &LinuxGuest) -> Result<()> {
    let (rounds, seconds) = if is_full() { (200, 7200) } else { (10, 600) };
    let mut bench = Bench::start(guest, Duration::from_secs(seconds))?;
    let mut before = None;
    for round in 1..=rounds {
        bench.plug(round)?;
        bench.unplug(round, "").with_context(|| format!("round {round}"))?;
        if round == WARM_UP {
            before = Some(Held::by(bench.vm.process())?);
        }
    }
    before.context("no rounds")?.is_all_of(bench.vm.process())?;
    let console = bench.vm.stdout();
    ensure!(!console.contains("vmm: failed="), "{console:?}");
    // Taken away, and once more in the same way: the slot is not used again before the guest has given it back.
    for round in rounds + 1..=rounds + 2 {
        bench.plug(round)?;
        bench.unplug(round, "--force").context("by force")?;
    }
    bench.place.ctl("quit")?.ensure_code(0)?;
    bench.vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// A guest that waits for a disk, and the image of that.
struct Bench {
    vm: RunningVm,
    place: ControlSocket,
    image: NamedTempFile,
    /// The devices that stay.
    others: Value,
}

impl Bench {
    fn start(guest: &LinuxGuest, deadline: Duration) -> Result<Self> {
        let image = NamedTempFile::new()?;
        image.as_file().set_len(16 * MIB)?;
        let place = ControlSocket::new()?;
        let mut vm = place.start(guest.vm_from_disk("hotplug", "").deadline(deadline))?;
        vm.wait_for_output("vmm: ready=hotplug")?;
        ensure!(vm.stdout().contains("vmm: slots=31"), "no slots: {:?}", vm.stdout());
        let others = place.ask("devices")?;
        Ok(Self { vm, place, image, others })
    }

    /// Adds the disk, and waits until fio in the guest has written to it and read some of that, and goes on.
    fn plug(&mut self, round: u64) -> Result<()> {
        let settings = format!("path={},format=raw,id=hot", self.image.path().display());
        let added = self.place.ctl(&format!("device-add --disk {settings}"))?.ensure_code(0)?.text();
        ensure!(added.starts_with("hot is at 00:") && !added.contains("not listen"), "{added:?}");
        self.vm.wait_for_output(&format!("vmm: written={round}\r\n"))
    }

    /// Removes the disk under fio; then the image has what was flushed before, and is nobody's.
    fn unplug(&mut self, round: u64, how: &str) -> Result<()> {
        self.place.ctl(&format!("device-remove hot --limit 1m {how}"))?.ensure_code(0)?;
        let devices = self.place.ask("devices")?;
        ensure!(devices == self.others, "{devices}");
        let image = self.image.path();
        let open = fs::read_dir(format!("/proc/{}/fd", self.vm.process().pid()))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .any(|path| path == image);
        ensure!(!open, "the image is open still");
        let mut written = String::new();
        for number in round..=20_000 {
            writeln!(written, "{number}")?;
        }
        ensure!(fs::read(image)?.starts_with(written.as_bytes()), "the image has something else");
        self.vm.wait_for_output(&format!("vmm: gone={round}\r\n"))
    }
}
