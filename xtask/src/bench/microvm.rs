//! QEMU's machine `microvm`, the peer that is always there: the installed program, its firmware, and the way into the nested host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::host::{find as find_program, need};

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Where its firmware is, on this machine and in the nested host.
pub const FIRMWARE: &str = "/usr/share/qemu";
/// Where Debian has some of it.
const OTHER_FIRMWARE: &str = "/usr/share/seabios";
/// The files that the machine reads.
const FIRMWARE_FILES: [&str; 4] = ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"];

/// The installed program.
pub fn find() -> Result<PathBuf> {
    need(QEMU, QEMU_PACKAGE)?;
    find_program(QEMU)
}

/// Has the nested host that `command` starts get the program, at the same place, and its firmware.
pub fn carry(command: &mut Command, qemu: &Path) {
    command.arg("--file").arg(qemu);
    for file in FIRMWARE_FILES {
        // A package without one of them is said by what needs it.
        let mut places =
            [FIRMWARE, OTHER_FIRMWARE].into_iter().map(|directory| Path::new(directory).join(file));
        if let Some(path) = places.find(|path| path.exists()) {
            command.arg("--file").arg(carried(&path, &format!("{FIRMWARE}/{file}")));
        }
    }
}

/// `HOST:INSIDE`, as the nested host reads it.
pub fn carried(path: &Path, inside: &str) -> OsString {
    let mut word = path.as_os_str().to_owned();
    word.push(":");
    word.push(inside);
    word
}
