//! The memory benchmark: what each backing of guest memory costs at start, and what a discard leaves; prints the report as
//! JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use vmm_tests::bench::backings::{Measured, Round};
use vmm_tests::bench::first_exit::first_exit;
use vmm_tests::bench::probe::Launch;
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{BASELINE, Case, Recorder};
use vmm_tests::bench::subject::Subject;

const VMM: &str = "vmm";

/// The guest's memory in the rows of a process: that of the raw baseline, or one page of 1 GiB.
const GUEST: u64 = 128 << 20;

#[derive(Debug, Parser)]
struct Args {
    /// The program raw_startup
    #[arg(long)]
    raw: PathBuf,
    /// The program vmm-cli
    #[arg(long)]
    vmm: PathBuf,
    /// The directory of the assembled guest programs
    #[arg(long)]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// MiB of memory that are reserved, prefaulted and discarded
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    size: u32,
}

/// The rows of one backing.
struct Rows {
    measured: Measured,
    reserve: Case,
    prefault: Case,
    discard: Case,
    left: Case,
    start: Case,
    start_prefault: Case,
}

macro_rules! rows {
    ($($measured:ident $name:literal),* $(,)?) => {
        [$(Rows {
            measured: Measured::$measured,
            reserve: Case { name: concat!($name, "_reserve"), unit: "us" },
            prefault: Case { name: concat!($name, "_prefault"), unit: "ms" },
            discard: Case { name: concat!($name, "_discard"), unit: "ms" },
            left: Case { name: concat!($name, "_left"), unit: "KiB" },
            start: Case { name: concat!($name, "_start"), unit: "us" },
            start_prefault: Case { name: concat!($name, "_start_prefault"), unit: "us" },
        }),*]
    };
}

const ROWS: [Rows; 7] = rows![
    Anonymous "anonymous",
    Transparent "transparent",
    Memfd "memfd",
    SharedFile "shared_file",
    PrivateFile "private_file",
    Huge2M "huge_2m",
    Huge1G "huge_1g",
];

fn main() -> Result<()> {
    let args = Args::parse();
    let size = u64::from(args.size) << 20;
    let mut recorder = Recorder::new(&[], &[]);
    for Rows { measured, reserve, prefault, discard, left, start, start_prefault } in &ROWS {
        let timed = [*reserve, *prefault, *discard, *start, *start_prefault];
        recorder = recorder.and(&timed, &[BASELINE, VMM]).and(&[*left], &[VMM]);
        let unit = measured.huge_page_size().unwrap_or(1);
        if let Some(why) = measured.missing(size.next_multiple_of(unit)) {
            timed.iter().chain([left]).for_each(|case| recorder.leave_out(*case, &why));
        }
    }
    // The first round is the warm-up.
    for round in 0..=args.rounds {
        for rows in &ROWS {
            let size = size.next_multiple_of(rows.measured.huge_page_size().unwrap_or(1));
            if rows.measured.missing(size).is_none() {
                rows.measure(size, round, &mut recorder)?;
                rows.start(&args, round, &mut recorder)?;
            }
        }
    }
    let report = recorder.finish("memory", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

impl Rows {
    /// One round inside of this process.
    fn measure(&self, size: u64, round: u32, recorder: &mut Recorder) -> Result<()> {
        let both = || -> Result<[(&str, Round); 2]> {
            // Neither always comes after the other.
            if round.is_multiple_of(2) {
                Ok([(BASELINE, self.measured.raw(size)?), (VMM, self.measured.own(size)?)])
            } else {
                Ok([(VMM, self.measured.own(size)?), (BASELINE, self.measured.raw(size)?)])
            }
        };
        let both = both().with_context(|| format!("{:?}", self.measured))?;
        for (subject, values) in both.into_iter().filter(|_| round > 0) {
            recorder.record(self.reserve, subject, &[values.reserve.as_secs_f64() * 1e6]);
            recorder.record(self.prefault, subject, &[values.prefault.as_secs_f64() * 1e3]);
            recorder.record(self.discard, subject, &[values.discard.as_secs_f64() * 1e3]);
            if subject == VMM {
                recorder.record(self.left, subject, &[(values.left >> 10) as f64]);
            }
        }
        Ok(())
    }

    /// One round of whole processes.
    fn start(&self, args: &Args, round: u32, recorder: &mut Recorder) -> Result<()> {
        let scratch = tempfile::tempdir()?;
        let guest = args.guests.canonicalize()?.join("bench_reset.elf");
        let raw = Subject::raw(&args.raw).launch(&guest, scratch.path())?;
        let vmm = Subject::vmm(&args.vmm).launch(&guest, scratch.path())?;
        for (case, prefault) in [(self.start, false), (self.start_prefault, true)] {
            let vmm = self.with_flags(&vmm, scratch.path(), prefault)?;
            let raw_time = first_exit(&raw).context(BASELINE)?;
            let vmm_time = first_exit(&vmm).context(VMM)?;
            if round > 0 {
                recorder.record(case, BASELINE, &[microseconds(raw_time)]);
                recorder.record(case, VMM, &[microseconds(vmm_time)]);
            }
        }
        Ok(())
    }

    /// The command line with this backing. Its file is new.
    fn with_flags(&self, vmm: &Launch, scratch: &Path, prefault: bool) -> Result<Launch> {
        let path = scratch.join("ram");
        std::fs::File::create(&path)?.set_len(GUEST)?;
        let mut launch = vmm.clone();
        launch.args.extend(self.measured.flags(&path.to_string_lossy()).into_iter().map(Into::into));
        launch.args.extend(prefault.then(|| "--prefault".into()));
        if self.measured == Measured::Huge1G {
            let size = launch.args.iter_mut().find(|word| *word == "128M").context("no size")?;
            *size = "1G".into();
        }
        Ok(launch)
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
