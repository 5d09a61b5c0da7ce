//! Memory that is plugged: a stock guest grows and shrinks under load, and its host has the memory back.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tempfile::NamedTempFile;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, RunningVm, is_full, until};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const SMALL: Shape = Shape::with_memory(KernelFormat::BzImage, 1, 160);
    crate::trials![
        blocks_that_go_one_by_one_leave_their_neighbours_and_a_disk_alone on [SMALL],
        a_guest_grows_and_shrinks_and_its_host_has_the_memory_back on [SMALL],
        a_guest_that_restarts_begins_with_nothing_and_is_asked_for_as_much on [SMALL],
    ]
}

const MIB: u64 = 1 << 20;

/// What can be plugged, more than the guest has else, and what of it is.
const SIZE: u64 = 512 * MIB;
const PLUGGED: u64 = 128 * MIB;

/// What a program of the guest fills, more than there is without what is plugged.
const FILLED: u64 = 136 * MIB;

/// What a trial may take where the host is emulated.
fn patience() -> Duration {
    Duration::from_secs(if is_full() { 3600 } else { 400 })
}

/// A guest that plugs memory and reads a disk all the time.
struct Bench {
    vm: RunningVm,
    place: ControlSocket,
    commands: ChildStdin,
    /// How many commands it was given.
    given: u32,
    _image: NamedTempFile,
}

impl Bench {
    fn start(guest: &LinuxGuest, args: &str) -> Result<Self> {
        let mut image = NamedTempFile::new()?;
        let mut random = fs::File::open("/dev/urandom")?.take(2 * MIB);
        io::copy(&mut random, &mut image)?;
        let place = ControlSocket::new()?;
        let vm = guest.vm("memory", "").args(args).stdin(Stdio::piped()).deadline(patience());
        let vm = vm.arg(format!("--memory-hotplug=size={SIZE}"));
        let vm = vm.arg(format!("--disk=path={},format=raw,read_only", image.path().display()));
        let mut vm = place.start(vm)?;
        vm.wait_for_output("vmm: ready=memory")?;
        ensure!(!vm.stdout().contains("vmm: missing="), "{}", vm.stdout());
        let commands = vm.stdin()?;
        Ok(Self { vm, place, commands, given: 0, _image: image })
    }

    /// Gives the guest a command, and returns the number that it answers.
    fn command(&mut self, verb: &str, argument: u64) -> Result<u64> {
        self.given += 1;
        writeln!(self.commands, "{verb} {} {argument}", self.given)?;
        let start = format!("vmm: {verb}={} ", self.given);
        let said = || {
            let console = self.vm.stdout();
            let answer = console.split_once(&start).and_then(|(_, rest)| rest.split_once("\r\n"));
            answer.map(|(answer, _)| answer.trim().parse().with_context(|| answer.to_owned())).transpose()
        };
        until(Instant::now() + patience(), verb, said)
    }

    /// The guest's memory in bytes, as its kernel counts it.
    fn total(&mut self) -> Result<u64> {
        Ok(self.command("total", 0)? << 10)
    }

    /// Asks for a size, and waits until the guest has it plugged and counts it as its own, beside `before`.
    fn resize(&mut self, bytes: u64, before: u64) -> Result<()> {
        self.place.ctl(&format!("memory --requested {bytes}"))?.ensure_code(0)?;
        self.reaches(bytes, before)
    }

    fn reaches(&mut self, bytes: u64, before: u64) -> Result<()> {
        let plugged = || Ok((self.status("plugged")? == bytes).then_some(()));
        until(Instant::now() + patience(), "the guest follows", plugged).with_context(|| self.vm.stdout())?;
        let deadline = Instant::now() + patience();
        loop {
            let total = self.total()?;
            // What a kernel keeps for itself differs a little from one boot to the next.
            if total.abs_diff(before + bytes) < MIB {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the guest has {total}, not {before} and {bytes}");
        }
    }

    fn status(&self, field: &str) -> Result<u64> {
        let status: Value = self.place.ask("memory")?;
        status["ok"][field].as_u64().with_context(|| status.to_string())
    }

    /// A count of the device.
    fn count(&self, name: &str) -> Result<u64> {
        let stats: Value = self.place.ask("stats")?;
        stats["ok"]["memory"]["monitor"][name].as_u64().with_context(|| format!("no {name} in {stats}"))
    }

    /// What of the memory that can be plugged is there on the host, in bytes.
    fn held(&self) -> Result<u64> {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", self.vm.process().pid()))?;
        let size = format!("Size: {:>18} kB", SIZE >> 10);
        let (_, rest) = maps.split_once(&size).with_context(|| maps.clone())?;
        let resident = rest.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
        Ok(resident.trim().trim_end_matches("kB").trim().parse::<u64>()? << 10)
    }

    /// What the file of the memory that can be plugged has, in bytes: of the host's `Shmem` the part that is this guest's, whatever other
    /// guests do meanwhile.
    fn in_file(&self) -> Result<u64> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.vm.process().pid()))? {
            let path = entry?.path();
            let is_memory =
                fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("guest-memory"));
            let metadata = fs::metadata(&path);
            if let (true, Ok(metadata)) = (is_memory, metadata)
                && metadata.len() == SIZE
            {
                return Ok(metadata.blocks() * 512);
            }
        }
        bail!("the monitor has no such file open")
    }

    /// Waits until the disk was read from its beginning to its end once more, and all that it has was as ever.
    fn disk_goes_on(&mut self) -> Result<()> {
        let before = self.command("rounds", 0)?;
        let deadline = Instant::now() + patience();
        while self.command("rounds", 0)? < before + 2 {
            ensure!(Instant::now() < deadline, "the disk is not read any more");
        }
        let console = self.vm.stdout();
        // A guest that restarts has its disk taken from under a read.
        let life = console.rsplit("vmm: ready=memory").next().unwrap_or_default();
        ensure!(!life.contains("vmm: failed=") && !console.contains("BUG"), "{console}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.disk_goes_on()?;
        ensure!(self.count("broken")? == 0, "the driver has broken a rule");
        self.place.ctl("quit")?.ensure_code(0)?;
        self.vm.wait()?.ensure_code(0)?;
        Ok(())
    }
}

/// Whether of `full` bytes, 95 in a hundred at least are no more among those that are left.
fn is_back(full: u64, left: u64) -> bool {
    left <= full / 20
}

fn a_guest_grows_and_shrinks_and_its_host_has_the_memory_back(guest: &LinuxGuest) -> Result<()> {
    for backing in ["anonymous", "memfd"] {
        let mut bench = Bench::start(guest, &format!("--memory-backing {backing}"))?;
        let before = bench.total()?;
        ensure!(before < FILLED && bench.held()? == 0, "{before} {}", bench.held()?);
        for _ in 0..if is_full() { 3 } else { 1 } {
            bench.resize(PLUGGED, before)?;
            let filled = bench.command("fill", FILLED / MIB)?;
            ensure!(filled == FILLED, "{filled} bytes have found room");
            let full = bench.held()?;
            ensure!(full >= FILLED / 2, "{full} bytes are on the host");
            ensure!(backing != "memfd" || bench.in_file()? >= full, "{} of {full} bytes", bench.in_file()?);
            bench.disk_goes_on()?;
            bench.command("empty", 0)?;
            bench.resize(0, before)?;
            let left = bench.held()?;
            ensure!(is_back(full, left), "{left} of {full} bytes are left");
            // A file has a hole there.
            if backing == "memfd" {
                let left = bench.in_file()?;
                ensure!(is_back(full, left), "{left} of {full} bytes are left in the file");
            }
            bench.disk_goes_on()?;
        }
        bench.end()?;
    }
    Ok(())
}

fn a_guest_that_restarts_begins_with_nothing_and_is_asked_for_as_much(guest: &LinuxGuest) -> Result<()> {
    let mut bench = Bench::start(guest, "--on-reset restart --lock-memory")?;
    let before = bench.total()?;
    bench.resize(PLUGGED, before)?;
    let plugs = bench.count("plugs")?;
    writeln!(bench.commands, "reboot 0 0")?;
    bench.vm.wait_for_lines("vmm: ready=memory", 2)?;
    // Another machine, which has counted for itself.
    bench.reaches(PLUGGED, before)?;
    ensure!(plugs > 0 && bench.status("requested")? == PLUGGED);
    let filled = bench.command("fill", FILLED / MIB)?;
    ensure!(filled == FILLED, "{filled} bytes have found room");
    bench.end()
}

fn blocks_that_go_one_by_one_leave_their_neighbours_and_a_disk_alone(guest: &LinuxGuest) -> Result<()> {
    let mut bench = Bench::start(guest, "")?;
    let before = bench.total()?;
    bench.resize(PLUGGED, before)?;
    // Linux takes them from its memory blocks of 128 MiB, each of which has been one slot.
    for left in [124, 112, 60, 28, 32, 64] {
        bench.resize(left * MIB, before).with_context(|| format!("{left} MiB"))?;
        bench.disk_goes_on()?;
    }
    bench.resize(0, before)?;
    ensure!(bench.count("plugged_bytes")? == 0);
    bench.end()
}
