//! Hot-plug: disks that come and go while a stock guest runs and uses them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tempfile::NamedTempFile;
use vmm_tests::harness::{ControlSocket, Held, KernelFormat, LinuxGuest, RunningVm, is_full};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_disk_that_comes_and_goes_under_io_leaves_nothing_behind on [Shape::new(KernelFormat::BzImage, 2)],
    ]
}

const MIB: u64 = 1 << 20;

/// Rounds before anything is counted: threads and memory that are kept for the next time.
const WARM_UP: u64 = 3;

fn a_disk_that_comes_and_goes_under_io_leaves_nothing_behind(guest: &LinuxGuest) -> Result<()> {
    let rounds = if is_full() { 200 } else { 20 };
    let image = NamedTempFile::new()?;
    image.as_file().set_len(16 * MIB)?;
    let place = ControlSocket::new()?;
    let vm = guest.vm("hotplug", "").deadline(Duration::from_secs(if is_full() { 3600 } else { 600 }));
    let mut vm = place.start(vm)?;
    vm.wait_for_output("vmm: ready=hotplug")?;
    ensure!(vm.stdout().contains("vmm: slots=31"), "no slots: {:?}", vm.stdout());
    let mut before = None;
    for round in 1..=rounds {
        plug(&place, &mut vm, image.path(), round)?;
        unplug(&place, &mut vm, image.path(), round, "").with_context(|| format!("round {round}"))?;
        if round == WARM_UP {
            before = Some(Held::by(vm.process())?);
        }
    }
    before.context("no rounds")?.is_all_of(vm.process())?;
    // Taken away, and once more in the same way: the slot is not used again before the guest has given it back.
    for round in rounds + 1..=rounds + 2 {
        plug(&place, &mut vm, image.path(), round)?;
        unplug(&place, &mut vm, image.path(), round, "--force").context("by force")?;
    }
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// Adds the disk, and waits until the guest has written to it and goes on.
fn plug(place: &ControlSocket, vm: &mut RunningVm, image: &Path, round: u64) -> Result<()> {
    let settings = format!("path={},format=raw,id=hot", image.display());
    let added = place.ctl(&format!("device-add --disk {settings}"))?.ensure_code(0)?.text();
    ensure!(added.starts_with("hot is at 00:") && !added.contains("not listen"), "{added:?}");
    vm.wait_for_output(&format!("vmm: written={round}\r\n"))
}

/// Removes the disk while the guest writes to it; then the image has what was flushed, and is nobody's.
fn unplug(place: &ControlSocket, vm: &mut RunningVm, image: &Path, round: u64, how: &str) -> Result<()> {
    place.ctl(&format!("device-remove hot --limit 1m {how}"))?.ensure_code(0)?;
    let devices = place.ask("devices")?;
    ensure!(devices["ok"]["devices"] == serde_json::json!([]), "{devices}");
    let process = vm.process();
    let open = fs::read_dir(format!("/proc/{}/fd", process.pid()))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|path| path == image);
    ensure!(!open, "the image is open still");
    let mut written = String::new();
    for number in round..=20_000 {
        writeln!(written, "{number}")?;
    }
    ensure!(fs::read(image)?.starts_with(written.as_bytes()), "the image has something else");
    vm.wait_for_output(&format!("vmm: gone={round}\r\n"))
}
