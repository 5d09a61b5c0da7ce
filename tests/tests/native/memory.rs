//! Memory: guests on each backing, and what the host cannot give, refused with the numbers.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{DEADLINE, TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_runs_on_each_backing,
        memory_above_4_gib_is_there_on_each_backing,
        a_shared_file_has_what_the_guest_wrote_and_a_private_one_has_not,
        a_restart_reserves_its_memory_again,
        prefault_beyond_what_the_host_has_is_refused_with_the_numbers,
        huge_pages_that_are_not_there_are_refused_with_the_numbers,
        more_than_may_be_locked_is_refused_with_the_numbers,
        a_signal_ends_the_making_of_pages,
        fault_c3_a_file_of_memory_that_cannot_be_used_is_refused,
    ]
}

/// A file of so many bytes in a directory of its own.
fn file(bytes: u64) -> Result<(tempfile::TempDir, String)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ram");
    File::create(&path)?.set_len(bytes)?;
    let path = path.to_str().context("a path")?.to_owned();
    Ok((directory, path))
}

/// Flags for each backing with small pages.
fn backings(path: &str) -> Vec<String> {
    let kinds = ["anonymous", "memfd", &format!("shared-file={path}"), &format!("private-file={path}")];
    kinds.into_iter().map(|kind| format!("--memory-backing {kind}")).collect()
}

fn a_guest_runs_on_each_backing() -> Result<()> {
    let (_directory, path) = file(64 << 20)?;
    for backing in backings(&path) {
        for more in ["", "--prefault", "--huge-pages transparent --dump-memory"] {
            let args = format!("--memory 64M {backing} {more}");
            let vm = TestVm::guest("bench_reset").args(&args).run()?;
            vm.ensure_code(0).context(args)?;
        }
    }
    Ok(())
}

fn memory_above_4_gib_is_there_on_each_backing() -> Result<()> {
    let (_directory, path) = file(6 << 30)?;
    for backing in backings(&path) {
        let vm = TestVm::guest("high_memory").args("--memory 6G").args(&backing).run()?;
        let text = vm.ensure_code(0).with_context(|| backing.clone())?.text();
        ensure!(text.contains("stored 0123456789abcdef"), "{backing}: {text}");
    }
    Ok(())
}

/// What the monitor writes to RAM whatever the guest is: the root pointer of the ACPI tables.
const ROOT_POINTER: &[u8] = b"RSD PTR ";

fn a_shared_file_has_what_the_guest_wrote_and_a_private_one_has_not() -> Result<()> {
    for (kind, expected) in [("private", false), ("shared", true)] {
        let (_directory, path) = file(16 << 20)?;
        let args = format!("--memory 16M --memory-backing {kind}-file={path}");
        TestVm::guest("bench_reset").args(&args).run()?.ensure_code(0)?;
        let mut tables = vec![0; 128 << 10];
        let mut ram = File::open(&path)?;
        ram.seek(SeekFrom::Start(0xe_0000))?;
        ram.read_exact(&mut tables)?;
        let found = tables.windows(ROOT_POINTER.len()).any(|window| window == ROOT_POINTER);
        ensure!(found == expected, "{kind}: {found}");
        ensure!(fs::metadata(&path)?.len() == 16 << 20, "{kind}: its size has changed");
    }
    Ok(())
}

fn a_restart_reserves_its_memory_again() -> Result<()> {
    let args = "--memory 64M --memory-backing memfd --prefault --on-reset restart --log-level info";
    let vm = TestVm::guest("bench_reset").args(args).spawn()?;
    let start = Instant::now();
    until(start + DEADLINE, "a second restart", || {
        Ok((vm.stderr().matches("restart").count() >= 2).then_some(()))
    })?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn prefault_beyond_what_the_host_has_is_refused_with_the_numbers() -> Result<()> {
    let vm = TestVm::guest("bench_reset").args("--memory 1T --prefault").run()?;
    vm.ensure_code(3)?
        .ensure_message(&["memory.prefault (--prefault)", "1024 GiB", "available", "doctor"])?
        .ensure_output("")?;
    Ok(())
}

fn huge_pages_that_are_not_there_are_refused_with_the_numbers() -> Result<()> {
    for (pages, needed) in [("2M", "524288"), ("1G", "1024")] {
        let args = format!("--memory 1T --huge-pages {pages}");
        let vm = TestVm::guest("bench_reset").args(&args).run()?.ensure_code(3)?;
        let directory = if pages == "2M" { "hugepages-2048kB" } else { "hugepages-1048576kB" };
        let words: &[&str] = if Path::new("/sys/kernel/mm/hugepages").join(directory).exists() {
            &["memory.huge_pages (--huge-pages)", needed, "nr_hugepages", directory]
        } else {
            &["memory.huge_pages (--huge-pages)", "no huge pages", directory]
        };
        vm.ensure_message(words)?.ensure_output("")?;
    }
    Ok(())
}

fn more_than_may_be_locked_is_refused_with_the_numbers() -> Result<()> {
    let limited = |kib| {
        let script = format!("ulimit -l {kib}; exec \"$@\"");
        TestVm::guest("bench_reset").args("--memory 4M --lock-memory").through_shell(&script)
    };
    let without = "setpriv --bounding-set=-ipc_lock";
    let vm = limited(64).through(without).run()?.ensure_code(3)?;
    vm.ensure_message(&["memory.lock (--lock-memory)", "4 MiB", "64 KiB", "RLIMIT_MEMLOCK"])?
        .ensure_output("")?;
    limited(4096).through(without).run()?.ensure_code(0)?;
    Ok(())
}

/// `MemAvailable` in MiB.
fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}

fn a_signal_ends_the_making_of_pages() -> Result<()> {
    // As much as a host can clear in many times the time that a signal takes.
    let size = (available_mib()? / 2).min(8 << 10);
    let args = format!("--memory {size}M --prefault");
    let mut vm = TestVm::guest("bench_halt").args(&args).spawn()?;
    until(Instant::now() + DEADLINE, "the thread that makes pages", || {
        let makes = vm.process().threads()?.iter().any(|thread| thread == "memory");
        ensure!(makes || vm.is_running()?, "it has ended: {}", vm.stderr());
        Ok((makes || vm.stdout().contains('\x1e')).then_some(()))
    })?;
    let was_made = vm.stdout().contains('\x1e');
    vm.signal(Signal::SIGTERM)?;
    let vm = vm.wait()?.ensure_code(0)?;
    // Else the guest has started before the signal came, and was stopped by it.
    ensure!(was_made || vm.stdout.is_empty(), "the guest was started: {:?}", vm.text());
    Ok(())
}

fn fault_c3_a_file_of_memory_that_cannot_be_used_is_refused() -> Result<()> {
    let (directory, path) = file(1 << 20)?;
    for kind in ["shared", "private"] {
        for (place, words) in [
            (path.as_str(), "has 1048576 bytes, less than memory.size (--memory) = 128M"),
            ("/dev/zero", "a character device"),
            (directory.path().to_str().context("a path")?, "a directory"),
            ("/no/such/file", "No such file"),
        ] {
            let args = format!("--memory-backing {kind}-file={place}");
            let vm = TestVm::guest("bench_reset").args(&args).run()?;
            vm.ensure_code(2)?
                .ensure_message(&["memory.backing (--memory-backing)", words])?
                .ensure_output("")?;
        }
    }
    Ok(())
}
