//! Statistics: what a run says it has counted is what the guest has done.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;
use vmm_tests::harness::{TestVm, rounds};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        each_port_access_is_counted_once,
        each_mmio_access_is_counted_once,
        a_doorbell_in_the_kernel_is_no_return_of_kvm_run,
        the_kernel_has_counted_too,
        each_vcpu_has_its_own_counts,
        a_crash_has_its_counts,
        a_machine_that_restarts_is_counted_from_its_last_start,
        the_table_follows_the_guests_output,
        json_goes_to_standard_output_too,
        a_path_that_cannot_be_made_is_refused_before_the_guest_runs,
        fault_c3_a_full_device_costs_the_counts_and_not_the_exit_code,
        fault_c3_a_file_at_its_limit_is_left_empty,
        fault_b12_a_closed_standard_output_costs_the_counts_and_not_the_exit_code,
        descriptors_are_opened_only_where_counts_are_wanted,
    ]
}

/// Runs `vm` with its counts in a file, expects `code`, returns the counts.
fn counted(vm: TestVm, code: i32) -> Result<Value> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("stats.json");
    vm.arg("--stats").arg(&path).run()?.ensure_code(code)?;
    read(&path)
}

fn read(path: &Path) -> Result<Value> {
    let counts: Value = serde_json::from_slice(&fs::read(path)?).context("the file is not JSON")?;
    ensure!(counts["schema"] == 1, "{counts}");
    Ok(counts)
}

/// The number at `pointer` (RFC 6901).
fn number(counts: &Value, pointer: &str) -> Result<u64> {
    let value = counts.pointer(pointer).and_then(Value::as_u64);
    value.with_context(|| format!("{pointer} is no number in {counts}"))
}

/// Expects that the first vCPU has counted exactly `expected`, and nothing else of these names.
fn ensure_first_vcpu(counts: &Value, expected: &[(&str, u64)]) -> Result<()> {
    for (name, expected) in expected {
        let found = number(counts, &format!("/vcpus/0/monitor/{name}"))?;
        ensure!(found == *expected, "{name} is {found} instead of {expected}: {counts}");
    }
    Ok(())
}

fn each_port_access_is_counted_once() -> Result<()> {
    let rounds = rounds(1000) as u64;
    let vm = TestVm::guest("port_flood").cmdline(&format!("{rounds:x}"));
    let counts = counted(vm, 69)?;
    // The last write is the end.
    ensure_first_vcpu(
        &counts,
        &[
            ("port_reads", rounds),
            ("port_writes", rounds + 1),
            ("mmio_reads", 0),
            ("mmio_writes", 0),
            ("other_exits", 0),
            ("kicked", 0),
            ("returns", 2 * rounds + 1),
        ],
    )?;
    ensure!(number(&counts, "/machine/monitor/unclaimed_ports")? == 2 * rounds, "{counts}");
    ensure!(number(&counts, "/machine/monitor/unclaimed_mmio")? == 0, "{counts}");
    Ok(())
}

fn each_mmio_access_is_counted_once() -> Result<()> {
    let counts = counted(TestVm::guest("mmio_holes"), 0)?;
    ensure_first_vcpu(&counts, &[("mmio_reads", 800), ("mmio_writes", 400)])?;
    ensure!(number(&counts, "/machine/monitor/unclaimed_mmio")? == 1200, "{counts}");
    Ok(())
}

fn a_doorbell_in_the_kernel_is_no_return_of_kvm_run() -> Result<()> {
    let counts = counted(TestVm::guest("doorbell").args("--selftest"), 0)?;
    ensure_first_vcpu(&counts, &[("mmio_writes", 0)])?;
    ensure!(number(&counts, "/vcpus/0/monitor/mmio_reads")? > 100, "{counts}");
    Ok(())
}

fn the_kernel_has_counted_too() -> Result<()> {
    let counts = counted(TestVm::guest("mmio_holes"), 0)?;
    // Each of these accesses leaves the kernel, whatever executes the guest.
    ensure!(number(&counts, "/vcpus/0/kernel/mmio_exits")? >= 1200, "{counts}");
    number(&counts, "/machine/kernel/remote_tlb_flush")?;
    let waits = counts.pointer("/vcpus/0/kernel/halt_wait_hist").and_then(Value::as_array);
    ensure!(waits.is_some_and(|buckets| buckets.len() > 1), "{counts}");
    let definition = |name: &str| &counts["kernel"]["vcpu"][name];
    ensure!(definition("exits")["kind"] == "cumulative", "{counts}");
    ensure!(definition("halt_wait_hist")["kind"] == "log_histogram", "{counts}");
    let wait = definition("halt_wait_ns");
    ensure!(wait["unit"] == "seconds" && wait["base"] == 10 && wait["exponent"] == -9, "{counts}");
    Ok(())
}

fn each_vcpu_has_its_own_counts() -> Result<()> {
    let counts = counted(TestVm::guest("bench_reset").args("--cpus 5"), 0)?;
    let vcpus = counts["vcpus"].as_array().context("no vCPUs")?;
    ensure!(vcpus.len() == 5, "{counts}");
    for (index, vcpu) in vcpus.iter().enumerate() {
        ensure!(vcpu["index"] == index, "{counts}");
        let writes = u64::from(index == 0);
        ensure!(vcpu["monitor"]["port_writes"] == writes, "{counts}");
        ensure!(vcpu["kernel"].is_object(), "{counts}");
    }
    Ok(())
}

fn a_crash_has_its_counts() -> Result<()> {
    let counts = counted(TestVm::guest("triple_fault"), 4)?;
    ensure!(number(&counts, "/vcpus/0/monitor/other_exits")? == 1, "{counts}");
    Ok(())
}

fn a_machine_that_restarts_is_counted_from_its_last_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("stats.json");
    let vm = TestVm::guest("debug_console").args("--on-reset restart").arg("--stats").arg(&path);
    let mut vm = vm.spawn()?;
    vm.wait_for_lines("debug console\n", 2)?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    let (counts, once) = (read(&path)?, counted(TestVm::guest("debug_console"), 0)?);
    let writes = |counts: &Value| number(counts, "/vcpus/0/monitor/port_writes");
    let (found, expected) = (writes(&counts)?, writes(&once)?);
    // The signal may have come before the end of that life.
    ensure!((1..=expected).contains(&found), "{found} port writes, and {expected} in one life");
    Ok(())
}

fn the_table_follows_the_guests_output() -> Result<()> {
    let vm = TestVm::guest("debug_console").args("--stats -").run()?.ensure_code(0)?;
    let text = vm.text();
    let table = text.strip_prefix("debug console\n").with_context(|| format!("{text:?}"))?;
    ensure!(table.starts_with("vCPUs, counted by vmm-cli"), "{table:?}");
    for title in ["\nvCPUs, counted by KVM", "\nmachine, counted by vmm-cli", "\nmachine, counted by KVM"] {
        ensure!(table.contains(title), "{title:?} is missing in {table}");
    }
    let writes = table.lines().find(|line| line.starts_with("  port_writes ")).context("no port_writes")?;
    ensure!(writes.split_whitespace().last().is_some_and(|count| count != "0"), "{writes}");
    ensure!(vm.stderr.is_empty(), "{:?}", vm.stderr);
    Ok(())
}

fn json_goes_to_standard_output_too() -> Result<()> {
    let vm = TestVm::guest("bench_reset").args("--serial null --stats - --stats-format json").run()?;
    let counts: Value = serde_json::from_slice(&vm.ensure_code(0)?.stdout)?;
    ensure_first_vcpu(&counts, &[("returns", 1), ("port_writes", 1)])
}

fn a_path_that_cannot_be_made_is_refused_before_the_guest_runs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for path in [Path::new("/nonexistent/x"), directory.path()] {
        let vm = TestVm::guest("debug_console").arg("--stats").arg(path).run()?;
        let vm = vm.ensure_code(2)?.ensure_output("")?;
        vm.ensure_message(&["stats.output (--stats): cannot open ", &path.display().to_string()])?;
    }
    Ok(())
}

fn fault_c3_a_full_device_costs_the_counts_and_not_the_exit_code() -> Result<()> {
    let vm = TestVm::guest("port_flood").cmdline("1").args("--stats /dev/full").run()?;
    vm.ensure_code(69)?.ensure_message(&["statistics are lost", "/dev/full", "No space left"])?;
    Ok(())
}

fn fault_c3_a_file_at_its_limit_is_left_empty() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("stats.json");
    let vm = TestVm::guest("port_flood").cmdline("1").arg("--stats").arg(&path);
    // One block of 512 bytes, or of 1024 with some shells.
    let vm = vm.through_shell("ulimit -f 1; exec \"$@\"").run()?;
    vm.ensure_code(69)?.ensure_message(&["statistics are lost", "File too large"])?;
    ensure!(fs::metadata(&path)?.len() == 0, "{:?}", fs::read_to_string(&path));
    Ok(())
}

fn fault_b12_a_closed_standard_output_costs_the_counts_and_not_the_exit_code() -> Result<()> {
    let (reader, writer) = io::pipe()?;
    drop(reader);
    let vm = TestVm::guest("port_flood").cmdline("1").args("--stats -").stdout(writer).run()?;
    vm.ensure_code(69)?.ensure_message(&["statistics are lost", "standard output", "Broken pipe"])?;
    Ok(())
}

fn descriptors_are_opened_only_where_counts_are_wanted() -> Result<()> {
    let descriptors = |args: &str| -> Result<usize> {
        let vm = TestVm::guest("bench_halt").args("--cpus 3").args(args).stdin(File::open("/dev/null")?);
        let mut vm = vm.spawn()?;
        vm.wait_for_output("\u{1e}")?;
        let count = vm.process().descriptors()?;
        vm.signal(Signal::SIGTERM)?;
        vm.wait()?.ensure_code(0)?;
        Ok(count)
    };
    let (without, with) = (descriptors("")?, descriptors("--stats /dev/null")?);
    // The file, the VM, and each vCPU.
    ensure!(with == without + 5, "{without} descriptors without counts, {with} with them");
    Ok(())
}
