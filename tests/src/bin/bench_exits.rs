//! The exit benchmark: what each kind of exit costs; prints the report as JSON.

use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use vmm_tests::bench::raw_exits::{ExitKind, RawLoop, Step};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{BASELINE, Case, Recorder};

const STRING_IN_ELEMENT: Case = Case { name: "string_in_element", unit: "ns" };

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long)]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Exits of each kind in a round
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    exits: u32,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut loops = Vec::new();
    for kind in ExitKind::ALL {
        let mut raw = RawLoop::new(kind, &args.guests).context(kind.name())?;
        raw.step(args.exits).context(kind.name())?;
        loops.push((kind, raw));
    }

    let mut cases: Vec<Case> = ExitKind::ALL.into_iter().map(case).collect();
    cases.push(STRING_IN_ELEMENT);
    let mut recorder = Recorder::new(&cases, &[BASELINE]);
    for _ in 0..args.rounds {
        for (kind, raw) in &mut loops {
            let step = raw.step(args.exits).context(kind.name())?;
            record(&mut recorder, *kind, BASELINE, args.exits, step);
        }
    }

    let report = recorder.finish("exits", args.rounds, Ratio::Rate)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn case(kind: ExitKind) -> Case {
    Case { name: kind.name(), unit: "ns" }
}

fn record(recorder: &mut Recorder, kind: ExitKind, subject: &str, exits: u32, step: Step) {
    let ns = step.elapsed.as_secs_f64() * 1e9;
    recorder.record(case(kind), subject, &[ns / f64::from(exits)]);
    if kind == ExitKind::StringIn {
        recorder.record(STRING_IN_ELEMENT, subject, &[ns / step.elements as f64]);
    }
}
