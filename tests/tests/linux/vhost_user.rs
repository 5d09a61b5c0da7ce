//! Devices that programs of QEMU's packages serve: a disk by qemu-storage-daemon, a file system by virtiofsd. They are killed, and the
//! guest lives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, LinuxReport};

use super::shell::{Port, Shell};
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: Shape = Shape::new(KernelFormat::BzImage, 1);
    crate::trials![
        a_guest_whose_disk_loses_its_back_end_finds_errors_and_lives on [ONE],
        a_guest_that_restarts_has_the_disk_of_its_back_end_again on [ONE],
        a_guest_builds_a_program_on_a_file_system_and_outlives_its_back_end on [ONE],
        a_back_end_that_is_not_there_is_named on [ONE],
    ]
}

/// How long a back end may take until it listens, where the host is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the packages' programs are, and what a guest compiles with.
const STORAGE_DAEMON: &str = "/usr/bin/qemu-storage-daemon";
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
const SHARE: &str = "/guests/share";

const PROGRAM: &str =
    "#include <stdio.h>\nint main(void) { printf(\"%d from a share\\n\", 6 * 7); return 0; }\n";

/// A back end that runs, and its socket. Dropped, it is killed.
pub(super) struct BackEnd {
    child: Child,
    socket: PathBuf,
}

impl BackEnd {
    /// Starts `command`, which makes `socket`.
    pub(super) fn start(command: &mut Command, socket: PathBuf) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut back_end = Self { child, socket };
        let deadline = Instant::now() + PATIENCE;
        while !back_end.socket.exists() {
            let ended = back_end.child.try_wait()?;
            ensure!(ended.is_none(), "{command:?} has ended: {ended:?}");
            ensure!(Instant::now() < deadline, "{command:?} has made no socket");
            sleep(Duration::from_millis(50));
        }
        Ok(back_end)
    }

    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        // It fails only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MIB: u64 = 1 << 20;

/// A back end of a disk, and its image, in `directory`.
fn disk_in(directory: &Path) -> Result<(BackEnd, PathBuf)> {
    let (image, socket) = (directory.join("image"), directory.join("socket"));
    fs::File::create(&image)?.set_len(16 * MIB)?;
    let mut command = Command::new(STORAGE_DAEMON);
    command.args([
        "--blockdev",
        &format!("driver=file,node-name=disk,filename={}", image.display()),
        "--export",
    ]);
    command.arg(format!(
        "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    ));
    Ok((BackEnd::start(&mut command, socket)?, image))
}

/// What a life has written the next one reads, in RAM that the back end has anew.
fn a_guest_that_restarts_has_the_disk_of_its_back_end_again(guest: &LinuxGuest) -> Result<()> {
    const LOAD: &str = "for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do \
                        [ ! -e /lib/modules/$module.ko ] || insmod /lib/modules/$module.ko; done; ";
    let directory = tempfile::tempdir()?;
    let (daemon, image) = disk_in(directory.path())?;
    let socket = daemon.socket.display();
    let args = format!("--on-reset restart --disk=vhost_user={socket} --memory-backing memfd");
    let mut shell = Shell::start(guest, &args, Port::Pipe, PATIENCE)?;
    shell.types(LOAD)?;
    shell.types("echo of the first life >/dev/vda; sync; echo writ''ten\n")?;
    shell.wait_for("written")?;
    shell.types("reboot -f\n")?;
    shell.comes_up()?;
    shell.types(LOAD)?;
    shell.types("head -n 1 /dev/vda; poweroff -f\n")?;
    shell.wait_for("of the first life")?;
    shell.into_vm().wait()?.ensure_code(0)?;
    ensure!(fs::read(&image)?.starts_with(b"of the first life\n"), "the image has something else");
    Ok(())
}

fn a_guest_whose_disk_loses_its_back_end_finds_errors_and_lives(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (daemon, image) = disk_in(directory.path())?;
    let place = ControlSocket::new()?;
    let disk = format!("--disk=vhost_user={},id=data", daemon.socket.display());
    let mut vm = place.start(guest.vm("lost_disk", "").arg(disk).args("--memory-backing memfd"))?;
    vm.wait_for_output("vmm: ready=lost_disk")?;
    let written = fs::read(&image)?;
    ensure!(written.starts_with(b"1\n2\n3\n"), "the image has something else");
    daemon.kill()?;
    vm.wait_for_output("vmm: failed=read")?;
    counts_a_loss(&place, "data")?;
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    ensure!(report.number("sectors")? == 16 * MIB / 512, "{report:?}");
    ensure!(report.get("same")? == "yes", "read back otherwise: {report:?}");
    ensure!(report.all("failed").collect::<Vec<_>>() == ["read", "write"], "{report:?}");
    Ok(())
}

fn a_guest_builds_a_program_on_a_file_system_and_outlives_its_back_end(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (share, socket) = (directory.path().join("share"), directory.path().join("socket"));
    copy(Path::new(SHARE), &share)?;
    fs::create_dir_all(share.join("tmp"))?;
    fs::write(share.join("hello.c"), PROGRAM)?;
    let mut command = Command::new(VIRTIOFSD);
    command.arg("-f").arg(format!("--socket-path={}", socket.display()));
    // The root of the nested host cannot be left by pivot_root.
    command.args(["-o", &format!("source={}", share.display()), "-o", "sandbox=chroot"]);
    let daemon = BackEnd::start(&mut command, socket)?;
    let place = ControlSocket::new()?;
    let fs = format!("--fs=tag=share,socket={}", daemon.socket.display());
    let mut vm = place.start(guest.vm("share", "").arg(fs).args("--memory-backing memfd"))?;
    vm.wait_for_output("vmm: ready=share")?;
    // On the host it is a program as any other.
    ensure!(share.join("hello").metadata()?.len() > 0, "there is no program");
    daemon.kill()?;
    vm.wait_for_output("vmm: failed=write")?;
    counts_a_loss(&place, "fs0")?;
    let report = LinuxReport::read(&vm.wait()?.ensure_code(0)?.text());
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    ensure!(report.get("said")? == "42 from a share", "{report:?}");
    ensure!(report.all("failed").collect::<Vec<_>>() == ["write", "read", "list"], "{report:?}");
    Ok(())
}

fn a_back_end_that_is_not_there_is_named(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = format!("--disk=vhost_user={}/socket", directory.path().display());
    let start = |more: &str| guest.vm("poweroff", "").arg(&disk).args(more).run();
    let words = ["disk.vhost_user (--disk)", "start the back end first"];
    start("--memory-backing memfd")?.ensure_code(3)?.ensure_message(&words)?;
    start("")?.ensure_code(2)?.ensure_message(&["disk.vhost_user", "memory.backing", "memfd"])?;
    Ok(())
}

/// Whether the monitor has noticed that the back end of the device `id` is gone, and answers.
fn counts_a_loss(place: &ControlSocket, id: &str) -> Result<()> {
    let statistics = place.ask("stats")?;
    let back_end = &statistics["ok"]["vhost_user"][0];
    ensure!(back_end["id"] == id && back_end["monitor"]["losses"] == 1, "{statistics}");
    ensure!(back_end["monitor"]["failed_requests"].as_u64().is_some_and(|count| count > 0), "{statistics}");
    Ok(())
}

/// All below `from`, with what the files may be used for.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| from.display().to_string())?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
