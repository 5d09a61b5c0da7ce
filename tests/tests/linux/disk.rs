//! Disks: the stock driver finds them, and what it writes is in the image.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_writes_and_reads_its_disks_by_io_uring on [Shape::new(KernelFormat::BzImage, 2)],
        a_guest_writes_and_reads_its_disks_by_threads on [Shape::new(KernelFormat::BzImage, 1)],
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
    let (image, other) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    image.as_file().set_len(16 * MIB)?;
    fs::write(other.path(), "from the host\n")?;
    other.as_file().set_len(MIB)?;
    let disk = |path: &std::path::Path, more: &str| {
        format!("--disk=path={},format=raw,engine={engine}{more}", path.display())
    };
    let vm = guest.vm("disk", "").arg(disk(image.path(), "")).arg(disk(other.path(), ",read_only"));
    let report = LinuxReport::read(&vm.run()?.ensure_code(0)?.text());
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    ensure!(report.number("sectors")? == 16 * MIB / 512, "{report:?}");
    ensure!(report.number("queues")? == u64::from(guest.cpus), "{report:?}");
    ensure!((report.get("cache")?, report.get("serial")?) == ("write back", "disk0"), "{report:?}");
    ensure!(report.get("same")? == "yes", "read back otherwise: {report:?}");
    ensure!(report.get("zeroed")? == "yes", "a discard that leaves data: {report:?}");
    ensure!(report.get("host")? == "from the host", "{report:?}");
    ensure!(report.get("read_only")? == "1", "{report:?}");
    // What the guest has written, in the image.
    let mut expected = String::new();
    for number in 1..=200_000 {
        writeln!(expected, "{number}")?;
    }
    let contents = fs::read(image.path())?;
    ensure!(contents.starts_with(expected.as_bytes()), "the image has something else");
    Ok(())
}
