//! The nested host: a Linux system with a hardware-style `/dev/kvm`, emulated by QEMU, in which one command runs.

mod apt;
mod archive;
mod contents;
mod disk_image;
mod images;
mod libraries;
mod machine;
mod modules;
mod packages;
mod payload;
mod qemu;
mod record;
mod run;
mod streams;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::guest_suites::build_monitor;
use crate::{guests, tables};
use contents::{Carried, InnerCommand, inside_path};
use disk_image::Tool;
use machine::MachineArgs;
pub use packages::Version;
use run::{End, Run};

/// The time limit was reached, as `timeout` says it.
const TIMED_OUT: u8 = 124;
/// The nested host could not be started or did not live as long as the command, as container runtimes say it.
const HOST_FAILED: u8 = 125;

/// The script that records calls.
const RECORDER: &str = "target/nested/record.sh";

/// The command line of `cargo xtask nested`.
#[derive(Args, Debug)]
pub struct NestedArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// The kernel that it runs.
    #[arg(long, value_enum, default_value_t = Version::V6_12)]
    kernel: Version,
    /// Another kernel module to load, with those it needs; any number of times.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A file or directory to carry in, a program with its libraries; any number of times.
    #[arg(long = "file", value_name = "HOST[:INSIDE]", value_parser = Carried::parse)]
    files: Vec<Carried>,
    /// Carry in kernel images and an initrd for guests, to /guests/linux/VERSION, and their disk; several with commas between.
    #[arg(long, value_enum, value_name = "VERSION", value_delimiter = ',')]
    guest_kernels: Vec<Version>,
    /// Carry in fio, to /usr/bin/fio.
    #[arg(long)]
    fio: bool,
    /// Carry in QEMU's vhost-user back ends, and what a guest compiles with, to /guests/share.
    #[arg(long)]
    back_ends: bool,
    /// Add to this file which system calls were made under filters, as histograms of the nested host's kernel have them.
    #[arg(long, value_name = "PATH")]
    record: Option<PathBuf>,
    /// A variable of the command's environment; any number of times.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// Seconds that it may take, from start to end.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// The command and its words. A path to a file of this machine carries that file in.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name || name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        return Err(format!("{name:?} is no name of a variable"));
    }
    Ok((name.into(), value.into()))
}

/// Runs the command in a nested host, and ends as it does. `caller` is the directory the task was called from.
pub fn main(args: &NestedArgs, caller: &Path) -> ExitCode {
    match run(args, caller) {
        Ok(End::Status(status)) => status.into(),
        Ok(End::TimedOut) => {
            eprintln!("error: not done after {} seconds; see {}", args.timeout, run::LAST_CONSOLE);
            TIMED_OUT.into()
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            HOST_FAILED.into()
        }
    }
}

fn run(args: &NestedArgs, caller: &Path) -> Result<End> {
    let monitor = build_monitor()?;
    let mut modules = args.modules.clone();
    if args.machine.ext4.is_some() {
        modules.push("loop".into());
    }
    let images = images::host(args.kernel, &modules)?;
    let mut carried = vec![Carried::new(monitor, "/bin/vmm-cli")];
    if Path::new(guests::OUTPUT).is_dir() {
        carried.push(Carried::new(guests::OUTPUT, "/guests"));
    }
    for version in &args.guest_kernels {
        let inside = format!("/guests/linux/{}", version.name());
        carried.push(Carried::new(images::guest(*version)?, inside));
    }
    if !args.guest_kernels.is_empty() {
        carried.push(Carried::new(images::guest_disk()?, "/guests/linux/disk.ext4"));
    }
    let tools = [
        (args.fio, Tool::Fio),
        (args.machine.ext4.is_some(), Tool::Mke2fs),
        (args.back_ends, Tool::StorageDaemon),
        (args.back_ends, Tool::Virtiofsd),
    ];
    for (_, tool) in tools.into_iter().filter(|(is_wanted, _)| *is_wanted) {
        let inside = |(path, file)| Carried::alone(file, Path::new("/").join::<PathBuf>(path));
        carried.extend(images::tool(tool)?.into_iter().map(inside));
    }
    if args.back_ends {
        let share = |(path, file)| Carried::alone(file, Path::new("/guests/share").join::<PathBuf>(path));
        carried.extend(images::compiler()?.into_iter().map(share));
    }
    carried.extend(args.files.iter().cloned());
    carried.extend(program(&args.command, caller)?);
    if args.record.is_some() {
        images::write(Path::new(RECORDER), record::script(&tables::of(monitor)?).as_bytes())?;
        carried.push(Carried::alone(RECORDER, "/etc/nested/record"));
    }
    let command = InnerCommand { words: args.command.clone(), environment: args.environment.clone() };
    let timeout = Duration::from_secs(args.timeout);
    let record = args.record.as_ref().map(|path| caller.join(path));
    Run {
        machine: &args.machine,
        images: &images,
        command: &command,
        carried: &carried,
        timeout,
        record: record.as_deref(),
    }
    .run()
}

/// The file that the command's first word names by a path, if this machine has it. Inside, the working directory is
/// the root, so that the same word finds it.
fn program(command: &[OsString], caller: &Path) -> Result<Option<Carried>> {
    let word = Path::new(&command[0]);
    let here = caller.join(word);
    if word.components().count() < 2 || word.starts_with("/bin") || !here.is_file() {
        return Ok(None);
    }
    Ok(Some(Carried::new(here, inside_path(word)?)))
}

/// Makes what a nested host and Linux guests are started with, where it is missing.
///
/// # Errors
///
/// A program is missing, or a package cannot be fetched.
pub fn prepare(guests: &[Version]) -> Result<()> {
    images::host(Version::V6_12, &[])?;
    linux_images(guests).map(drop)
}

/// Makes the images of Linux guests, where they are missing: the directory that has one of each version, and their disk.
///
/// # Errors
///
/// Those of [`prepare`].
pub fn linux_images(versions: &[Version]) -> Result<&'static Path> {
    versions.iter().try_for_each(|version| images::guest(*version).map(drop))?;
    if !versions.is_empty() {
        images::guest_disk()?;
    }
    Ok(Path::new(images::GUESTS))
}
