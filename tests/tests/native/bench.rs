//! The benchmarks' raw baseline on the guests that it measures, and those benchmarks that need nothing but KVM, in little.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use vmm_tests::bench::first_exit::first_exit;
use vmm_tests::bench::raw_exits::{ExitKind, RawLoop};
use vmm_tests::bench::subject::Subject;
use vmm_tests::harness::{guest, monitor};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        the_raw_loop_steps_through_every_kind_of_exit,
        the_first_exit_of_the_baseline_and_of_the_monitor_has_a_time,
        a_kick_is_measured_in_every_state_and_is_one_system_call_or_none,
        a_pause_is_measured_with_and_without_load,
        a_port_read_is_measured_with_either_mechanism,
        a_ring_is_measured_and_counted_in_user_space_and_in_the_kernel,
        an_exit_is_measured_while_the_bus_changes,
        changes_of_guest_ram_are_measured_with_their_readers,
    ]
}

fn the_raw_loop_steps_through_every_kind_of_exit() -> Result<()> {
    const EXITS: u32 = 100;
    let any = guest("any");
    let guests = any.parent().context("a directory of guests")?;
    for kind in ExitKind::ALL {
        let step = RawLoop::new(kind, guests)?.step(EXITS)?;
        let elements = match kind {
            // How many elements an exit covers is KVM's choice.
            ExitKind::StringIn => u64::from(EXITS) + 1..=u64::from(EXITS) * 256,
            _ => u64::from(EXITS)..=u64::from(EXITS),
        };
        ensure!(elements.contains(&step.elements), "{}: {} elements", kind.name(), step.elements);
        ensure!(step.elapsed > Duration::ZERO, "{}: no time", kind.name());
    }
    Ok(())
}

fn the_first_exit_of_the_baseline_and_of_the_monitor_has_a_time() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let baseline = env!("CARGO_BIN_EXE_raw_startup");
    for subject in [Subject::raw(baseline.as_ref()), Subject::vmm(&monitor())] {
        let launch = subject.launch(&guest("bench_reset"), scratch.path())?;
        let time = first_exit(&launch).context(subject.name())?;
        ensure!(time > Duration::ZERO, "{}: no time", subject.name());
        launch.process_end().context(subject.name())?;
    }
    Ok(())
}

/// Runs a benchmark, and gives its report.
fn report(program: &str, args: &[&str]) -> Result<Value> {
    let any = guest("any");
    let guests = any.parent().context("a directory of guests")?;
    let output = Command::new(program).arg("--guests").arg(guests).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}: {said}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Checks that the report has a median above 0 for each of `cases` and both mechanisms.
fn ensure_rows(report: &Value, cases: &[&str]) -> Result<()> {
    ensure_rows_of(report, cases, &["raw", "vmm", "vmm_mask"])
}

/// The same for each of `subjects`.
fn ensure_rows_of(report: &Value, cases: &[&str], subjects: &[&str]) -> Result<()> {
    let rows = report["rows"].as_array().context("no rows")?;
    for case in cases {
        for subject in subjects {
            let mut found = rows.iter().filter(|row| row["case"] == *case && row["subject"] == *subject);
            let row = found.next().with_context(|| format!("no row {case}, {subject}"))?;
            ensure!(row["median"].as_f64() > Some(0.0), "{row}");
        }
    }
    Ok(())
}

fn a_kick_is_measured_in_every_state_and_is_one_system_call_or_none() -> Result<()> {
    let args = ["--rounds", "1", "--kicks", "10", "--vcpus", "1,2"];
    let report = report(env!("CARGO_BIN_EXE_bench_kick"), &args)?;
    ensure_rows(&report, &["spinning_1", "halted_2", "exiting_1", "spinning_2_beside_idle"])?;
    let counts = report["counts"].as_array().with_context(|| report["notes"].to_string())?;
    let made = |subject: &str, outcome: &str, name: &str| {
        let mut found = counts
            .iter()
            .filter(|count| count["subject"] == subject && count["kind"] == outcome && count["name"] == name);
        found.next().map_or(Value::Null, |count| count["values"].clone())
    };
    for subject in ["vmm", "vmm_mask"] {
        for (outcome, name, number) in [
            ("signalled", "tgkill", 1),
            ("signalled", "all", 1),
            ("elided", "all", 0),
            ("woken", "futex", 1),
            ("woken", "all", 1),
        ] {
            let values = made(subject, outcome, name);
            ensure!(values == serde_json::json!([number]), "{subject}, {outcome}, {name}: {values}");
        }
    }
    Ok(())
}

fn a_pause_is_measured_with_and_without_load() -> Result<()> {
    let args = ["--rounds", "1", "--pauses", "3", "--vcpus", "1,8"];
    let report = report(env!("CARGO_BIN_EXE_bench_pause"), &args)?;
    ensure_rows(&report, &["pause_1", "resume_1", "pause_8", "pause_8_loaded", "resume_8_loaded"])
}

fn a_port_read_is_measured_with_either_mechanism() -> Result<()> {
    let args = ["--rounds", "2", "--window", "300", "--vcpus", "1,2"];
    let report = report(env!("CARGO_BIN_EXE_bench_inl"), &args)?;
    ensure_rows(&report, &["inl_1", "inl_2", "inl_1_beside_masks", "inl_2_beside_masks"])?;
    let notes = report["notes"].as_array().context("no notes")?;
    ensure!(notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains("2017"))), "{notes:?}");
    Ok(())
}

/// That all rings were counted, the benchmark itself sees to.
fn a_ring_is_measured_and_counted_in_user_space_and_in_the_kernel() -> Result<()> {
    let args = ["--rounds", "1", "--bursts", "5", "--trips", "1"];
    let report = report(env!("CARGO_BIN_EXE_bench_doorbell"), &args)?;
    let cases = ["mmio", "pio", "ioeventfd_mmio", "ioeventfd_mmio_any_width", "ioeventfd_pio"];
    ensure_rows_of(&report, &cases, &["raw", "vmm"])?;
    let answered = ["pio_round_trip", "ioeventfd_mmio_round_trip", "ioeventfd_pio_interrupt"];
    ensure_rows_of(&report, &answered, &["raw", "vmm"])?;
    ensure_rows_of(&report, &["mmio", "ioeventfd_pio", "ioeventfd_pio_round_trip"], &["2009"])?;
    ensure!(report["notes"].as_array().is_some_and(|notes| notes.len() == 3), "{}", report["notes"]);
    Ok(())
}

fn an_exit_is_measured_while_the_bus_changes() -> Result<()> {
    let report = report(env!("CARGO_BIN_EXE_bench_reconfigure"), &["--rounds", "2", "--exits", "50"])?;
    ensure_rows_of(&report, &["port_write", "mmio_read"], &["raw", "still", "vmm"])
}

fn changes_of_guest_ram_are_measured_with_their_readers() -> Result<()> {
    let args = ["--rounds", "1", "--changes", "10", "--time", "2"];
    let report = report(env!("CARGO_BIN_EXE_bench_slots"), &args)?;
    let changes = ["map", "unmap", "map_unmap", "replace", "map_unmap_after_bus", "replace_8_vcpus"];
    ensure_rows_of(&report, &changes, &["raw", "vmm"])?;
    ensure_rows_of(&report, &["read_1"], &["raw", "vmm", "vmm_full", "rwlock_1000", "mutex_full"])?;
    ensure_rows_of(&report, &["guest_store"], &["vmm", "vmm_1000", "vmm_full"])
}
