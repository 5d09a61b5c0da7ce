//! The jail: a stock kernel with a disk boots in one, whoever has started it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::unistd::geteuid;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport, NOBODY, TestVm};

use super::boot::finds;
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![a_guest_boots_in_a_jail on [Shape::new(KernelFormat::BzImage, 1)]]
}

const MIB: u64 = 1 << 20;

fn a_guest_boots_in_a_jail(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().canonicalize()?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let disk = path.join("disk");
    fs::File::create(&disk)?.set_len(16 * MIB)?;
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o666))?;
    let vm = |options: &str| {
        let disk = format!("--disk=path={},format=raw", disk.display());
        guest.vm("poweroff", "one=two").arg(disk).in_jail(options)
    };
    boots(guest, vm("")).context("as who runs the suite")?;
    boots(guest, vm("--user-namespace")).context("in a user namespace")?;
    if geteuid().is_root() {
        let place = path.join("place");
        fs::create_dir(&place)?;
        boots(guest, vm("").as_nobody(&place)?).context("as a user without privileges")?;
        boots(guest, vm(&format!("--uid {NOBODY}")).with_kvm_for_all(&place)?)
            .context("as root's other user")?;
    }
    let left: Vec<PathBuf> = fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    ensure!(left.iter().all(|file| *file == disk || file.ends_with("place")), "{left:?}");
    Ok(())
}

fn boots(guest: &LinuxGuest, vm: TestVm) -> Result<()> {
    let report = LinuxReport::read(&vm.run()?.ensure_code(0)?.text());
    finds(guest, &report).with_context(|| format!("{report:?}"))
}
