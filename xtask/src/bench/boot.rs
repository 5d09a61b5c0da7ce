//! The boot benchmark's surroundings: the kernels, the peers and the host, this machine or the nested one.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::{BenchArgs, PROGRAMS};
use crate::guest_suites::has_virtualization;
use crate::host::{find, kvm_missing, need};
use crate::nested;

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Where Debian has QEMU's firmware, the files of it that the machine `microvm` reads, and where they are carried to.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];
const FIRMWARE_FILES: [&str; 4] = ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"];
const NESTED_FIRMWARE: &str = "/usr/share/qemu";

/// Seconds that the nested host may take for itself, and for one round.
const NESTED_START: u32 = 600;
const NESTED_ROUND: u32 = 600;

/// Where the guests are booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// On this machine's own `/dev/kvm`.
    Native,
    /// In the nested host.
    Nested,
}

impl Host {
    /// The one that boots Linux: this machine if its KVM has VMX or SVM.
    fn that_boots_linux() -> Self {
        if kvm_missing().is_none() && has_virtualization() { Self::Native } else { Self::Nested }
    }
}

/// Runs the measuring program where `args` says, and gives the JSON that it prints.
pub fn measure(args: &BenchArgs) -> Result<String> {
    need(QEMU, QEMU_PACKAGE)?;
    let mut command = match args.host.unwrap_or_else(Host::that_boots_linux) {
        Host::Native => native(args)?,
        Host::Nested => in_nested(args)?,
    };
    command.args(["--rounds", &args.rounds.unwrap_or(super::BOOT_ROUNDS).to_string()]);
    if !args.shapes.is_empty() {
        command.args(["--shape", &args.shapes.join(",")]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start the measuring program")?;
    ensure!(output.status.success(), "the measuring program ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn native(args: &BenchArgs) -> Result<Command> {
    let images = nested::linux_images(&[args.kernel])?.join(args.kernel.name());
    let mut command = Command::new(Path::new(PROGRAMS).join("bench_boot"));
    command.arg("--vmm").arg(Path::new(PROGRAMS).join("vmm-cli")).arg("--qemu").arg(find(QEMU)?);
    command.args(["--firmware", FIRMWARE[0]]).arg("--images").arg(images);
    for (name, path) in &args.peers {
        command.arg("--peer").arg(joined(name, path));
    }
    Ok(command)
}

/// The nested host with everything that is measured in it. The measuring program's own words follow.
fn in_nested(args: &BenchArgs) -> Result<Command> {
    let version = args.kernel.name();
    let rounds = args.rounds.unwrap_or(super::BOOT_ROUNDS);
    let timeout = NESTED_START + NESTED_ROUND.saturating_mul(rounds);
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(["nested", "--guest-kernels", version, "--timeout", &timeout.to_string()]);
    let qemu = find(QEMU)?;
    command.arg("--file").arg(&qemu);
    for file in FIRMWARE_FILES {
        // A package without one of them is said by what needs it.
        let found =
            FIRMWARE.iter().map(|directory| Path::new(directory).join(file)).find(|path| path.exists());
        if let Some(path) = found {
            command.arg("--file").arg(carried(&path, &format!("{NESTED_FIRMWARE}/{file}")));
        }
    }
    for (name, path) in &args.peers {
        command.arg("--file").arg(carried(path, &format!("/bin/{name}")));
    }
    command.arg("--").arg(Path::new(PROGRAMS).join("bench_boot"));
    command.args(["--vmm", "/bin/vmm-cli", "--firmware", NESTED_FIRMWARE]).arg("--qemu").arg(&qemu);
    command.args(["--images", &format!("/guests/linux/{version}")]);
    for (name, _) in &args.peers {
        command.args(["--peer", &format!("{name}=/bin/{name}")]);
    }
    Ok(command)
}

/// `HOST:INSIDE`, as the nested host reads it.
fn carried(path: &Path, inside: &str) -> OsString {
    let mut word = path.as_os_str().to_owned();
    word.push(":");
    word.push(inside);
    word
}

fn joined(name: &str, path: &Path) -> OsString {
    let mut word = OsString::from(format!("{name}="));
    word.push(path);
    word
}
