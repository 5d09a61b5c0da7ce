//! Disks: the stock driver finds them, and what it writes is in the image.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport, Qcow2Image};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_writes_and_reads_its_disks_by_io_uring on [Shape::new(KernelFormat::BzImage, 2)],
        a_guest_writes_and_reads_its_disks_by_threads on [Shape::new(KernelFormat::BzImage, 1)],
        a_guest_writes_and_reads_a_disk_in_qcow2_format on [Shape::new(KernelFormat::BzImage, 1)],
        a_guest_sees_its_disk_grow_and_uses_what_it_has_gained on [Shape::new(KernelFormat::Vmlinux, 1)],
    ]
}

fn a_guest_writes_and_reads_its_disks_by_io_uring(guest: &LinuxGuest) -> Result<()> {
    writes_and_reads(guest, "io-uring")
}

fn a_guest_writes_and_reads_its_disks_by_threads(guest: &LinuxGuest) -> Result<()> {
    writes_and_reads(guest, "threads")
}

const MIB: u64 = 1 << 20;

fn writes_and_reads(guest: &LinuxGuest, engine: &str) -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(16 * MIB)?;
    used_as_it_is(guest, &format!("path={},format=raw,engine={engine}", image.path().display()))?;
    // What the guest has written, in the image.
    let mut expected = String::new();
    for number in 1..=200_000 {
        writeln!(expected, "{number}")?;
    }
    let contents = fs::read(image.path())?;
    ensure!(contents.starts_with(expected.as_bytes()), "the image has something else");
    Ok(())
}

fn a_guest_writes_and_reads_a_disk_in_qcow2_format(guest: &LinuxGuest) -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    Qcow2Image::new(16 * MIB).write(image.path())?;
    used_as_it_is(guest, &format!("path={},format=qcow2", image.path().display()))?;
    let length = image.as_file().metadata()?.len();
    ensure!((MIB..16 * MIB).contains(&length), "an image of {length} bytes for 1.3 MB");
    Ok(())
}

fn a_guest_sees_its_disk_grow_and_uses_what_it_has_gained(guest: &LinuxGuest) -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(MIB)?;
    let place = ControlSocket::new()?;
    let disk = format!("--disk=path={},format=raw,id=data", image.path().display());
    let mut vm = place.start(guest.vm("resize", "").arg(disk))?;
    vm.wait_for_output("vmm: ready=resize")?;
    place.ctl("disk-resize data --size 3M")?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    ensure!(report.get("resized")? == "2048 to 6144", "{report:?}");
    ensure!(report.get("last")? == "written", "{report:?}");
    Ok(())
}

/// Has the guest write to a disk of 16 MiB and read it, beside one of the host.
fn used_as_it_is(guest: &LinuxGuest, disk: &str) -> Result<()> {
    let other = tempfile::NamedTempFile::new()?;
    fs::write(other.path(), "from the host\n")?;
    other.as_file().set_len(MIB)?;
    let other = format!("--disk=path={},format=raw,read_only", other.path().display());
    let vm = guest.vm("disk", "").arg(format!("--disk={disk}")).arg(other);
    let report = LinuxReport::read(&vm.run()?.ensure_code(0)?.text());
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    ensure!(report.number("sectors")? == 16 * MIB / 512, "{report:?}");
    ensure!(report.number("queues")? == u64::from(guest.cpus), "{report:?}");
    ensure!((report.get("cache")?, report.get("serial")?) == ("write back", "disk0"), "{report:?}");
    ensure!(report.get("same")? == "yes", "read back otherwise: {report:?}");
    ensure!(report.get("zeroed")? == "yes", "a discard that leaves data: {report:?}");
    ensure!(report.get("host")? == "from the host", "{report:?}");
    ensure!(report.get("read_only")? == "1", "{report:?}");
    Ok(())
}
