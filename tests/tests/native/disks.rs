//! Disks: images that cannot be had are refused before anything is started.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_devices::virtio::block::{Image, ImageOptions};
use vmm_tests::harness::{Finished, TestVm};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        fault_c3_what_is_no_disk_is_refused,
        fault_c4_a_disk_in_use_is_refused_and_its_user_named,
        fault_c5_a_disk_without_a_format_is_refused,
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
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;
    let read_only = ImageOptions { read_only: true, direct: false };
    for (options, refused, taken) in
        [(ImageOptions::default(), &["", ",read_only"][..], &[][..]), (read_only, &[""], &[",read_only"])]
    {
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
    run(image.path(), ",format=raw,engine=threads")?.ensure_code(0)?;
    Ok(())
}

fn fault_c5_a_disk_without_a_format_is_refused() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;
    let vm = run(image.path(), "")?.ensure_code(2)?;
    ensure!(vm.stderr.contains("missing field `format`"), "{}", vm.stderr);
    Ok(())
}
