//! The benchmarks' raw baseline on the guests that it measures.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::bench::first_exit::first_exit;
use vmm_tests::bench::raw_exits::{ExitKind, RawLoop};
use vmm_tests::bench::subject::Subject;
use vmm_tests::harness::{guest, monitor};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        the_raw_loop_steps_through_every_kind_of_exit,
        the_first_exit_of_the_baseline_and_of_the_monitor_has_a_time,
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
