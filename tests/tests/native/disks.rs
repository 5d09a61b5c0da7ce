//! Disks: images that cannot be had are refused before anything is started, and those that are in use change.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_devices::virtio::block::{Image, ImageOptions};
use vmm_tests::harness::{ControlSocket, Finished, Qcow2Image, RunningVm, TestVm};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        fault_c3_what_is_no_disk_is_refused,
        fault_c4_a_disk_in_use_is_refused_and_its_user_named,
        fault_c5_a_disk_without_a_format_is_refused,
        fault_c5_the_header_of_another_format_in_a_raw_disk_changes_nothing,
        a_disk_in_use_has_another_size_and_other_limits_when_asked,
        fault_c5_a_qcow2_disk_is_what_was_said_or_is_refused,
    ]
}

fn run(path: &Path, more: &str) -> Result<Finished> {
    let disk = format!("--disk=path={}{more}", path.display());
    TestVm::bare().arg(disk).run()
}

fn fault_c3_what_is_no_disk_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let short = directory.path().join("short.img");
    fs::write(&short, [0; 511])?;
    for (path, reason) in [
        (directory.path(), "is a directory; a disk is a regular file or a block device"),
        (Path::new("/dev/null"), "is a character device; a disk is"),
        (&short, "has 511 bytes, not even a sector of 512"),
        (Path::new("/nowhere/disk.img"), "disk.path (--disk): /nowhere/disk.img cannot be looked at"),
    ] {
        let vm = run(path, ",format=raw")?.ensure_code(2)?;
        ensure!(vm.stderr.contains(reason), "{}: {}", path.display(), vm.stderr);
    }
    Ok(())
}

fn fault_c4_a_disk_in_use_is_refused_and_its_user_named() -> Result<()> {
    // One for each: a child of another trial, between fork and exec, may still have our open file, and with it the lock.
    let free_image = || {
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(1 << 20)?;
        anyhow::Ok(image)
    };
    let read_only = ImageOptions { read_only: true, direct: false };
    for (options, refused, taken) in
        [(ImageOptions::default(), &["", ",read_only"][..], &[][..]), (read_only, &[""], &[",read_only"])]
    {
        let image = free_image()?;
        let ours = Image::open(image.path(), options)?;
        for more in refused {
            let vm = run(image.path(), &format!(",format=raw{more}"))?.ensure_code(3)?;
            let holder = format!("is in use by process {} (", std::process::id());
            ensure!(vm.stderr.contains(&holder), "{more}: {}", vm.stderr);
        }
        for more in taken {
            run(image.path(), &format!(",format=raw{more}"))?.ensure_code(0)?;
        }
        drop(ours);
    }
    run(free_image()?.path(), ",format=raw,engine=threads")?.ensure_code(0)?;
    Ok(())
}

fn fault_c5_a_disk_without_a_format_is_refused() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;
    let vm = run(image.path(), "")?.ensure_code(2)?;
    ensure!(vm.stderr.contains("missing field `format`"), "{}", vm.stderr);
    Ok(())
}

/// A guest that halts, with the disk at `path`, that can be asked.
fn halted(place: &ControlSocket, path: &Path, more: &str) -> Result<RunningVm> {
    let disk = format!("--disk=path={},format=raw{more}", path.display());
    let vm = place.start(TestVm::guest("bench_halt").args("--memory 64M").arg(disk))?;
    place.reaches("running")?;
    Ok(vm)
}

fn fault_c5_the_header_of_another_format_in_a_raw_disk_changes_nothing() -> Result<()> {
    const LENGTH: usize = 1 << 20;
    let image = tempfile::NamedTempFile::new()?;
    // As a guest has written it: magic, version 3, a backing file, and a disk of 1 TiB.
    let mut contents = vec![0; LENGTH];
    contents[..16].copy_from_slice(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x70");
    contents[16..32].copy_from_slice(&[0, 0, 0, 11, 0, 0, 0, 16, 0, 0, 1, 0, 0, 0, 0, 0]);
    contents[0x70..0x7b].copy_from_slice(b"/etc/passwd");
    fs::write(image.path(), &contents)?;
    for _ in 0..2 {
        let place = ControlSocket::new()?;
        let vm = halted(&place, image.path(), "")?;
        place.ctl("disk-resize disk0")?.ensure_code(0)?.ensure_output("disk0 has 1048576 bytes\n")?;
        place.ctl("quit")?.ensure_code(0)?;
        vm.wait()?.ensure_code(0)?;
        ensure!(fs::read(image.path())? == contents, "the image has changed");
    }
    Ok(())
}

fn a_disk_in_use_has_another_size_and_other_limits_when_asked() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;
    let place = ControlSocket::new()?;
    let vm = halted(&place, image.path(), ",id=root,operations=100/1s")?;
    let ctl = |args: &str| place.ctl(args);
    image.as_file().set_len(2 << 20)?;
    ctl("disk-resize root")?.ensure_code(0)?.ensure_output("root has 2097152 bytes\n")?;
    ctl("disk-resize root --size 4M")?.ensure_code(0)?.ensure_output("root has 4194304 bytes\n")?;
    ensure!(image.as_file().metadata()?.len() == 4 << 20);
    let refused = ctl("disk-resize root --size 1M")?.ensure_code(1)?;
    refused.ensure_message(&["would lose what is behind the first 1048576"])?;
    ensure!(image.as_file().metadata()?.len() == 4 << 20);
    ctl("disk-resize root --size 1M --shrink")?.ensure_code(0)?.ensure_output("root has 1048576 bytes\n")?;
    ensure!(image.as_file().metadata()?.len() == 1 << 20);
    ctl("disk-resize root --size 1000")?.ensure_code(1)?.ensure_message(&["sectors of 512 bytes"])?;
    ctl("disk-resize disk0")?.ensure_code(1)?.ensure_message(&["no disk disk0; the disks are: root"])?;
    let limits =
        |bandwidth: &str, operations: &str| format!("bandwidth  {bandwidth}\noperations {operations}\n");
    ctl("disk-limits root")?.ensure_code(0)?.ensure_output(&limits("unlimited", "100/1s"))?;
    let changed = ctl("disk-limits root --bandwidth 10M/100ms+1G --operations none")?.ensure_code(0)?;
    changed.ensure_output(&limits("10485760/100ms+1073741824", "unlimited"))?;
    ctl("disk-limits root --bandwidth 10M")?.ensure_code(2)?;
    ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_c5_a_qcow2_disk_is_what_was_said_or_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    fs::write(path("raw"), [0; 1 << 16])?;
    Qcow2Image::new(3 << 20).write(&path("alone"))?;
    Qcow2Image::new(3 << 20).backed_by("raw").write(&path("backed"))?;
    Qcow2Image::new(3 << 20).backed_by("/etc/hostname").write(&path("lured"))?;
    let base = format!(",backing={},backing_format=raw", path("raw").display());
    for (name, more, reason) in [
        ("raw", "", "it does not begin as a qcow2 image does"),
        ("backed", "", "has the backing file \"raw\", which is used only if the configuration names it too"),
        ("lured", "", "has the backing file \"/etc/hostname\", which is used only if"),
        ("lured", &base, "and the configuration names another"),
        ("alone", &base, "has no backing file"),
        ("alone", ",engine=io-uring", "images in qcow2 format are served by threads"),
    ] {
        let vm = run(&path(name), &format!(",format=qcow2{more}"))?.ensure_code(2)?;
        ensure!(vm.stderr.contains(reason), "{name}: {}", vm.stderr);
    }
    for (name, more) in [("alone", ""), ("backed", &*base)] {
        let place = ControlSocket::new()?;
        let disk = format!("--disk=path={},format=qcow2{more}", path(name).display());
        let vm = place.start(TestVm::guest("bench_halt").args("--memory 64M").arg(disk))?;
        place.reaches("running")?;
        place.ctl("disk-resize disk0")?.ensure_code(0)?.ensure_output("disk0 has 3145728 bytes\n")?;
        let refused = place.ctl("disk-resize disk0 --size 4M")?.ensure_code(1)?;
        refused.ensure_message(&["its format is not raw"])?;
        // A second writer, and one of the backing file.
        let second = run(&path(name), ",format=raw")?.ensure_code(3)?;
        ensure!(second.stderr.contains("is in use by process"), "{}", second.stderr);
        if !more.is_empty() {
            run(&path("raw"), ",format=raw")?.ensure_code(3)?;
        }
        place.ctl("quit")?.ensure_code(0)?;
        vm.wait()?.ensure_code(0)?;
    }
    Ok(())
}
