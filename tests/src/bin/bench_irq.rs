//! The interrupt benchmark: eventfd to handler, and the routes; prints the report as JSON.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use vmm_tests::bench::irq::{Interrupted, IrqKind, ROUTED, latency, timed};
use vmm_tests::bench::raw_irq::RawIrq;
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{BASELINE, Case, Recorder};
use vmm_tests::bench::vmm_irq::VmmIrq;
use vmm_tests::small_machine::allow_many_descriptors;

const VMM: &str = "vmm";

const ONE_BY_ONE: Case = Case { name: "1000_routes_one_by_one", unit: "us" };
const AT_ONCE: Case = Case { name: "1000_routes_at_once", unit: "us" };

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Interrupts of each kind in a round
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    interrupts: u32,
}

fn main() -> Result<()> {
    let args = Args::parse();
    allow_many_descriptors()?;
    let cases: Vec<Case> = IrqKind::ALL.into_iter().map(case).chain([ONE_BY_ONE, AT_ONCE]).collect();
    let mut recorder = Recorder::new(&cases, &[BASELINE, VMM]);
    let raw = RawIrq::boot(&args.guests).context(BASELINE)?;
    let vmm = VmmIrq::boot(&args.guests).context(VMM)?;
    // The first round is the warm-up.
    for round in 0..=args.rounds {
        let mut measured = [(BASELINE, Vec::new()), (VMM, Vec::new())];
        // Neither always comes after the other.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for subject in order {
            let (name, values) = &mut measured[subject];
            *values = if subject == 0 {
                measure(&raw, round, args.interrupts)
            } else {
                measure(&vmm, round, args.interrupts)
            }
            .context(*name)?;
        }
        for (name, values) in measured.iter().filter(|_| round > 0) {
            values.iter().for_each(|(case, values)| recorder.record(*case, name, values));
        }
    }
    let report = recorder.finish("irq", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// One round of everything on one subject.
fn measure(subject: &impl Interrupted, round: u32, interrupts: u32) -> Result<Vec<(Case, Vec<f64>)>> {
    let mut values = Vec::new();
    for kind in IrqKind::ALL {
        let times = (0..interrupts).map(|_| Ok(microseconds(latency(subject, kind)?)));
        values.push((case(kind), times.collect::<Result<Vec<_>>>()?));
    }
    // Each time other data, so that there is something to change.
    let data = round * 2 * ROUTED as u32;
    let one_by_one = timed(|| subject.route_one_by_one(data))?;
    let at_once = timed(|| subject.route_at_once(data + ROUTED as u32))?;
    values.push((ONE_BY_ONE, vec![microseconds(one_by_one)]));
    values.push((AT_ONCE, vec![microseconds(at_once)]));
    Ok(values)
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn case(kind: IrqKind) -> Case {
    let name = match kind {
        IrqKind::Edge => "edge",
        IrqKind::Level => "level",
        IrqKind::Message => "message",
    };
    Case { name, unit: "us" }
}
