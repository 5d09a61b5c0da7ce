//! Benchmarks: builds what is measured, runs the measuring program, and shows its report as table, JSON and
//! chart.

mod block;
mod boot;
mod chart;
mod memory_hotplug;
mod microvm;
mod net;
mod report;
mod samples;
mod table;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::guests;
use crate::nested::Version;
use crate::process::{cargo, run as run_process};
use report::Report;

const PROGRAMS: &str = "target/release";
const RESULTS: &str = "target/bench";
/// Timed boots of each monitor, unless another number is asked for.
const BOOT_ROUNDS: u32 = 15;

/// The benchmarks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Process start to the guest's first exit and to process end, and memory.
    Startup,
    /// The cost of each kind of exit.
    Exits,
    /// What a doorbell's ring costs, in user space and in the kernel, and how long its answer takes.
    Doorbell,
    /// From a decoded exit to its device: the bus, what others do, and cells to publish a table in.
    Dispatch,
    /// The way of each kind of interrupt from an eventfd to the guest's handler, and the cost of its routes.
    Irq,
    /// The cost of exits while the bus changes all the time.
    Reconfigure,
    /// Process start to a Linux guest's first instruction and first program, and exits by reason, beside QEMU's microvm.
    Boot,
    /// fio on the disk of a Linux guest, beside QEMU's microvm and the file itself.
    Block,
    /// Bytes, answers and datagrams between a Linux guest and its host over a network device, beside QEMU's microvm and the loopback.
    Net,
    /// The same over a socket device, beside a Unix socket.
    Vsock,
    /// The time that a Linux guest takes to have 1 GiB more and to give it back, and its vCPUs' pauses, beside a balloon.
    MemoryHotplug,
    /// A request to a vCPU until its thread has seen it, with either mechanism, and the system calls of a kick.
    Kick,
    /// Taking all vCPUs of a machine out of the guest.
    Pause,
    /// A port read served in user space with either mechanism: the experiment that led to `immediate_exit`.
    Inl,
    /// What each backing of guest memory costs at start, and what a discard leaves.
    Memory,
    /// What pages cost that are written to while writes are tracked, and what a harvest costs.
    Dirty,
    /// Reads of the table of guest RAM while it changes, what changes cost, and what the guest notices of them.
    Slots,
}

/// The command line of `cargo xtask bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Which benchmark.
    pub name: Bench,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Run the same guest under another monitor: firecracker=PATH or cloud-hypervisor=PATH.
    #[arg(long = "peer", value_name = "NAME=PATH", value_parser = peer)]
    pub peers: Vec<(String, PathBuf)>,
    /// How often everything is measured; more is better and takes longer.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// For `boot`, `block`, `net`, `vsock` and `memory-hotplug`: the guest's kernel.
    #[arg(long, value_enum, default_value_t = Version::V6_12)]
    pub kernel: Version,
    /// For `boot`: only these of bzimage_1, bzimage_4, vmlinux_1 and vmlinux_4. For `block`: only these jobs, such as
    /// read_4k_32_queues_1. Several with commas between.
    #[arg(long = "shape", value_name = "SHAPE", value_delimiter = ',')]
    pub shapes: Vec<String>,
    /// For `block`, `net` and `vsock`: seconds of each job or measurement.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: Option<u32>,
    /// For `boot`: where; if not said, natively where KVM has VMX or SVM.
    #[arg(long, value_enum)]
    pub host: Option<boot::Host>,
}

/// Runs one benchmark in the root of the repository, which is the working directory. The report goes to
/// standard output and, with a chart, to `target/bench`.
///
/// # Errors
///
/// A program cannot be built or run, or this project's own row has no values; then the report is shown all
/// the same.
pub fn run(args: &BenchArgs) -> Result<()> {
    let name = args.name.name();
    let has_peers = matches!(args.name, Bench::Startup | Bench::Boot);
    ensure!(has_peers || args.peers.is_empty(), "{name} has no peers: it measures inside a process");
    let json = match args.name {
        Bench::Boot => {
            build(&["vmm-cli", "bench_boot"])?;
            boot::measure(args)?
        }
        Bench::Block => {
            build(&["vmm-cli", "bench_block"])?;
            block::measure(args)?
        }
        Bench::Net | Bench::Vsock => {
            build(&["vmm-cli", "bench_net"])?;
            net::measure(args)?
        }
        Bench::MemoryHotplug => {
            build(&["vmm-cli", "bench_memory_hotplug"])?;
            memory_hotplug::measure(args)?
        }
        _ => {
            build(&["vmm-cli", "raw_startup", &format!("bench_{name}")])?;
            guests::build()?;
            measure(args)?
        }
    };
    let report: Report = serde_json::from_str(&json).with_context(|| format!("report of bench_{name}"))?;
    save(&format!("{name}.json"), &json)?;
    save(&format!("{name}.svg"), &chart::svg(&report))?;
    let shown = if args.json { json } else { table::text(&report) };
    writeln!(io::stdout(), "{}", shown.trim_end())?;
    match report.rows.iter().find_map(report::Row::own_failure) {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}

impl Bench {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Exits => "exits",
            Self::Doorbell => "doorbell",
            Self::Dispatch => "dispatch",
            Self::Irq => "irq",
            Self::Reconfigure => "reconfigure",
            Self::Boot => "boot",
            Self::Block => "block",
            Self::Net => "net",
            Self::Vsock => "vsock",
            Self::MemoryHotplug => "memory-hotplug",
            Self::Kick => "kick",
            Self::Pause => "pause",
            Self::Inl => "inl",
            Self::Memory => "memory",
            Self::Dirty => "dirty",
            Self::Slots => "slots",
        }
    }
}

/// Paths are the caller's, whose working directory is left before the task starts.
fn peer(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    if !path.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    Ok((name.to_owned(), path))
}

/// Builds the programs that are measured, and those that measure.
fn build(programs: &[&str]) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--target-dir", "target", "-p", "vmm-cli", "-p", "vmm-tests"]);
    cargo.args(programs.iter().flat_map(|program| ["--bin", program]));
    run_process(&mut cargo)
}

/// Runs the measuring program, and gives the JSON that it prints.
fn measure(args: &BenchArgs) -> Result<String> {
    let program = Path::new(PROGRAMS).join(format!("bench_{}", args.name.name()));
    let mut command = Command::new(&program);
    command.arg("--guests").arg(guests::OUTPUT).stdin(Stdio::null()).stderr(Stdio::inherit());
    if matches!(args.name, Bench::Startup | Bench::Memory) {
        let programs = Path::new(PROGRAMS);
        command.arg("--raw").arg(programs.join("raw_startup")).arg("--vmm").arg(programs.join("vmm-cli"));
    }
    if let Some(rounds) = args.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    for (name, path) in &args.peers {
        let mut peer = std::ffi::OsString::from(name);
        peer.push("=");
        peer.push(path);
        command.arg("--peer").arg(peer);
    }
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{} ended with {}", program.display(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn save(name: &str, content: &str) -> Result<()> {
    let file = Path::new(RESULTS).join(name);
    fs::create_dir_all(RESULTS)
        .and_then(|()| fs::write(&file, content))
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        bench: BenchArgs,
    }

    pub(super) fn parsed(words: &[&str]) -> Result<BenchArgs, clap::Error> {
        CommandLine::try_parse_from(["bench"].iter().chain(words)).map(|line| line.bench)
    }

    /// The words of a command, with spaces between.
    pub(super) fn words(command: &Command) -> String {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_peer_is_an_absolute_path_to_a_file() {
        let args = parsed(&["startup", "--peer", "firecracker=Cargo.toml"]).unwrap();
        let (name, path) = &args.peers[0];
        assert!(name == "firecracker" && path.is_absolute() && path.ends_with("Cargo.toml"));
        assert!(parsed(&["startup", "--peer", "firecracker=no-such-file"]).is_err());
        assert!(parsed(&["startup", "--peer", "firecracker"]).is_err());
    }

    #[test]
    fn what_is_measured_inside_a_process_takes_no_peers() {
        for name in ["exits", "doorbell", "dispatch", "irq", "reconfigure", "kick", "pause", "inl", "memory"]
        {
            let args = parsed(&[name, "--peer", "firecracker=Cargo.toml"]).unwrap();
            assert!(run(&args).unwrap_err().to_string().contains("no peers"), "{name}");
        }
    }
}
