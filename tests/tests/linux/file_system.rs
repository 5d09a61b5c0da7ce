//! File systems: a guest starts from a disk, makes a file system on another, and finds what it was promised whatever happens to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport, TestVm, is_full};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const TWO: Shape = Shape::new(KernelFormat::BzImage, 2);
    let by_cpus = |some: &[u32]| {
        let cpus = if is_full() { &[1, 2, 4] } else { some };
        cpus.iter().map(|&cpus| Shape::new(KernelFormat::BzImage, cpus)).collect::<Vec<_>>()
    };
    crate::trials![
        a_guest_starts_from_a_disk_over_pci on by_cpus(&[1, 4]),
        a_guest_starts_from_a_disk_over_mmio on by_cpus(&[2]),
        all_is_there_after_a_power_off on [TWO],
        what_was_flushed_is_there_after_the_monitor_was_killed on [TWO],
        fault_d4_pauses_in_the_middle_cost_nothing on [TWO],
        fault_c3_a_host_that_is_full_costs_the_guest_errors on [TWO],
        fault_c3_an_image_that_is_truncated_costs_the_guest_errors on [TWO],
    ]
}

const MIB: u64 = 1 << 20;

fn a_guest_starts_from_a_disk_over_pci(guest: &LinuxGuest) -> Result<()> {
    starts_from_a_disk(guest, "true")
}

fn a_guest_starts_from_a_disk_over_mmio(guest: &LinuxGuest) -> Result<()> {
    starts_from_a_disk(guest, "false")
}

fn starts_from_a_disk(guest: &LinuxGuest, pci: &str) -> Result<()> {
    let vm = guest.vm_from_disk("poweroff", "").arg(format!("--pci={pci}"));
    let report = LinuxReport::read(&vm.run()?.ensure_code(0)?.text());
    ensure!(report.get("root")? == "/dev/vda", "{report:?}");
    ensure!(report.number("cpus")? == u64::from(guest.cpus), "{report:?}");
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    Ok(())
}

/// Mebibytes that are copied, and seconds for which fio writes and verifies.
fn amount() -> (u64, u64) {
    if is_full() { (1024, 60) } else { (32, 3) }
}

/// What that may take where the host is emulated.
fn patience() -> Duration {
    Duration::from_secs(if is_full() { 1200 } else { 180 })
}

/// A disk on which a guest makes a file system, and fills it.
struct Disk<'a> {
    guest: &'a LinuxGuest,
    image: PathBuf,
    size: u64,
}

impl<'a> Disk<'a> {
    fn new(guest: &'a LinuxGuest, directory: &Path) -> Result<Self> {
        let (image, size) = (directory.join("image"), (amount().0 + 128) * MIB);
        File::create(&image)?.set_len(size)?;
        Ok(Self { guest, image, size })
    }

    /// A guest that does `action` with it.
    fn vm(&self, action: &str) -> TestVm {
        let (mib, seconds) = amount();
        let words = format!("vmm.mib={mib} vmm.seconds={seconds}");
        let disk = format!("--disk=path={},format=raw", self.image.display());
        self.guest.vm_from_disk(action, &words).arg(disk).deadline(patience())
    }

    /// Another guest finds what the first one has flushed.
    fn ensure_kept(&self) -> Result<()> {
        let report = LinuxReport::read(&self.vm("check").run()?.ensure_code(0)?.text());
        // 1: something was corrected, such as what the journal had.
        ensure!(report.number("fsck")? <= 1, "errors: {report:?}");
        ensure!(report.number("kept")? == amount().0 * MIB, "not all of it: {report:?}");
        ensure!(report.get("clean")? == "yes", "{report:?}");
        Ok(())
    }
}

/// That a guest has found everything as it had written it.
fn ensure_whole(console: &str) -> Result<()> {
    let report = LinuxReport::read(console);
    ensure!(report.number("copied")? == amount().0 * MIB, "{console}");
    ensure!(report.number("pieces")? == amount().0 / 4, "read back otherwise: {console}");
    // What fio and fsck have found is in the console.
    let says = |key: &str| report.get(key).is_ok_and(|answer| answer == "yes");
    ensure!(says("verified") && says("clean"), "{console}");
    Ok(())
}

fn all_is_there_after_a_power_off(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = Disk::new(guest, directory.path())?;
    ensure_whole(&disk.vm("filesystem").run()?.ensure_code(0)?.text())?;
    disk.ensure_kept()
}

fn what_was_flushed_is_there_after_the_monitor_was_killed(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = Disk::new(guest, directory.path())?;
    let mut vm = disk.vm("filesystem").spawn()?;
    vm.wait_for_output("vmm: flushed=yes")?;
    // While fio writes.
    sleep(Duration::from_secs(2));
    vm.signal(Signal::SIGKILL)?;
    vm.wait()?;
    disk.ensure_kept()
}

fn fault_d4_pauses_in_the_middle_cost_nothing(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = Disk::new(guest, directory.path())?;
    let place = ControlSocket::new()?;
    let mut vm = place.start(disk.vm("filesystem"))?;
    vm.wait_for_output("vmm: do=")?;
    let mut pauses = 0;
    while vm.is_running()? && !vm.stdout().contains("vmm: verified=") {
        place.ctl("pause")?.ensure_code(0)?;
        sleep(Duration::from_millis(100));
        place.ctl("resume")?.ensure_code(0)?;
        sleep(Duration::from_millis(500));
        pauses += 1;
    }
    ensure!(pauses > 2, "{pauses} pauses only");
    ensure_whole(&vm.wait()?.ensure_code(0)?.text())
}

/// What a guest that writes to the whole disk and reads both its ends says of it.
fn filled(console: &str) -> Result<[u64; 3]> {
    let report = LinuxReport::read(console);
    Ok([report.number("last")?, report.number("written")?, report.number("first")?])
}

fn fault_c3_a_host_that_is_full_costs_the_guest_errors(guest: &LinuxGuest) -> Result<()> {
    const LIMIT_MIB: u64 = 24;
    let directory = tempfile::tempdir()?;
    let disk = Disk::new(guest, directory.path())?;
    // No file may be longer than that, in units of 512 bytes.
    let script = format!("ulimit -f {}; exec \"$@\"", LIMIT_MIB * MIB / 512);
    let console = disk.vm("fill").through_shell(&script).run()?.ensure_code(0)?.text();
    ensure!(filled(&console)? == [MIB, LIMIT_MIB * MIB, MIB], "{console}");
    Ok(())
}

fn fault_c3_an_image_that_is_truncated_costs_the_guest_errors(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = Disk::new(guest, directory.path())?;
    let mut vm = disk.vm("fill").spawn()?;
    // It knows its disks by then.
    vm.wait_for_output("vmm: root=")?;
    File::options().write(true).open(&disk.image)?.set_len(disk.size / 2)?;
    let console = vm.wait()?.ensure_code(0)?.text();
    // What is written makes the image as long as it was.
    ensure!(filled(&console)? == [0, disk.size, MIB], "{console}");
    ensure!(disk.image.metadata()?.len() == disk.size);
    Ok(())
}
