//! The host: what a task needs from the machine it runs on, and the command that brings it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, run, succeeds};

/// Whether this is a CI run, where nothing may be left out.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Makes sure that `program` is on the path; root installs its Debian `package`, anyone else is told how.
pub fn need(program: &str, package: &str) -> Result<()> {
    need_all(&[(program, package)])
}

/// The same for several programs, each with its package, at once.
pub fn need_all(programs: &[(&str, &str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| !succeeds(Command::new(program).arg("--version")));
    let (missing, packages): (Vec<_>, Vec<_>) = missing.copied().unzip();
    if missing.is_empty() {
        return Ok(());
    }
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let missing = format!("{} missing", missing.join(", "));
    let packages = packages.join(" ");
    if !is_root || !succeeds(Command::new("apt-get").arg("--version")) {
        bail!("{missing}: sudo apt-get install {packages}");
    }
    run(Command::new("apt-get").args(["update", "--quiet"]).stdout(std::io::stderr()))
        .and_then(|()| {
            let mut install = Command::new("apt-get");
            install.args(["install", "--yes", "--no-install-recommends"]).args(packages.split(' '));
            run(install.stdout(std::io::stderr()))
        })
        .with_context(|| format!("{missing}: apt-get install {packages}"))
}

/// The file that `program` is, as the search path has it.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("{program} is not on the search path"))
}

/// Makes sure that `cargo SUBCOMMAND`, which comes with the rustup component `component`, can be called.
pub fn need_component(subcommand: &str, component: &str) -> Result<()> {
    if !succeeds(cargo().args([subcommand, "--version"])) {
        bail!("cargo {subcommand} is missing: rustup component add {component}");
    }
    Ok(())
}

/// Why virtual machines cannot be run here and what mends it, or nothing where they can.
pub fn kvm_missing() -> Option<String> {
    let error = File::options().read(true).write(true).open("/dev/kvm").err()?;
    let mend = match error.kind() {
        ErrorKind::PermissionDenied => "sudo usermod --append --groups kvm $USER, then log in again",
        _ => "sudo modprobe --all kvm_intel kvm_amd, or enable virtualization in the firmware",
    };
    Some(format!("/dev/kvm cannot be opened ({error}): {mend}"))
}
