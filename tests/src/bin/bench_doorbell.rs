//! The doorbell benchmark, the experiment of 2009: what a ring costs, served in user space and in the kernel, and how long
//! its answer takes; prints the report as JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vm_memory::{Bytes, GuestAddress};
use vmm_core::Deferred;
use vmm_core::seam::DoorbellSpace::{self, Mmio, Pio};
use vmm_tests::bench::doorbells::{Answer, BURST, COUNT, Counted, DONE_PORT, Rings, VALUE, Way};
use vmm_tests::bench::raw_doorbell::RawDoorbell;
use vmm_tests::bench::report::{Count, Ratio};
use vmm_tests::bench::series::{BASELINE, Case, Recorder};
use vmm_tests::bench::stats::{median, paired_ratio};
use vmm_tests::ringing::Ringing;
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::{ExitHandler, ThreadOptions, VcpuThread};

const VMM: &str = "vmm";
const YEAR_2009: &str = "2009";

const HYPERCALL: Case = iops("hypercall");

/// How long a few hypercalls may take where they end at all.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Rings of each kind in a round, by tens
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    bursts: u32,
    /// Round trips of each kind in a round, by tens
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    trips: u32,
}

/// Who takes a ring, what is measured of it, and what was measured in 2009: rings in a second, and the microseconds from one
/// to the next.
struct Row {
    space: DoorbellSpace,
    kernel: Option<(u32, Option<u64>)>,
    rings: Case,
    trip: Case,
    interrupt: Case,
    history: Option<(f64, f64)>,
}

const fn iops(name: &'static str) -> Case {
    Case { name, unit: "iops" }
}

const fn us(name: &'static str) -> Case {
    Case { name, unit: "us" }
}

/// The width and the value of virtio-mmio's doorbells, and those of virtio-pci's.
const FOUR: Option<(u32, Option<u64>)> = Some((4, Some(VALUE)));
const ANY: Option<(u32, Option<u64>)> = Some((0, None));

const ROWS: [Row; 5] = [
    Row {
        space: Mmio,
        kernel: None,
        rings: iops("mmio"),
        trip: us("mmio_round_trip"),
        interrupt: us("mmio_interrupt"),
        history: Some((110_000.0, 9.09)),
    },
    Row {
        space: Pio,
        kernel: None,
        rings: iops("pio"),
        trip: us("pio_round_trip"),
        interrupt: us("pio_interrupt"),
        history: None,
    },
    Row {
        space: Mmio,
        kernel: FOUR,
        rings: iops("ioeventfd_mmio"),
        trip: us("ioeventfd_mmio_round_trip"),
        interrupt: us("ioeventfd_mmio_interrupt"),
        history: None,
    },
    Row {
        space: Mmio,
        kernel: ANY,
        rings: iops("ioeventfd_mmio_any_width"),
        trip: us("ioeventfd_mmio_any_width_round_trip"),
        interrupt: us("ioeventfd_mmio_any_width_interrupt"),
        history: None,
    },
    Row {
        space: Pio,
        kernel: FOUR,
        rings: iops("ioeventfd_pio"),
        trip: us("ioeventfd_pio_round_trip"),
        interrupt: us("ioeventfd_pio_interrupt"),
        history: Some((367_300.0, 2.72)),
    },
];

/// One case on both subjects.
struct Pair {
    case: Case,
    raw: RawDoorbell,
    vmm: Ringing,
    /// Our rings in a second, round by round.
    rates: Vec<f64>,
}

impl Pair {
    fn boot(guests: &Path, case: Case, way: Way) -> Result<Self> {
        let raw = RawDoorbell::boot(guests, way).with_context(|| format!("{BASELINE}, {}", case.name))?;
        let vmm = Ringing::boot(guests, way).with_context(|| format!("{VMM}, {}", case.name))?;
        Ok(Self { case, raw, vmm, rates: Vec::new() })
    }

    /// One round: some rings on each, the first one first in every other round.
    fn measure(&mut self, args: &Args, round: u32, recorder: &mut Recorder) -> Result<()> {
        let order = if round.is_multiple_of(2) { [BASELINE, VMM] } else { [VMM, BASELINE] };
        for name in order {
            let subject: &mut dyn Rings = if name == VMM { &mut self.vmm } else { &mut self.raw };
            let values = if self.case.unit == "iops" {
                let rings = args.bursts * BURST;
                let time = subject.step(rings).with_context(|| format!("{name}, {}", self.case.name))?;
                vec![f64::from(rings) / time.as_secs_f64()]
            } else {
                subject.step(args.trips * BURST).with_context(|| format!("{name}, {}", self.case.name))?;
                subject.trips()
            };
            if round > 0 {
                recorder.record(self.case, name, &values);
                if name == VMM {
                    self.rates.extend(median(&values));
                }
            }
        }
        Ok(())
    }

    /// What both sides counted; an error where they should agree and do not.
    fn counts(&self, way: &Way) -> Result<Vec<Count>> {
        let mut counts = Vec::new();
        let subjects: [(&str, &dyn Rings); 2] = [(BASELINE, &self.raw), (VMM, &self.vmm)];
        for (subject, rings) in subjects {
            let Counted { rung, counted, returns } = rings.counted()?;
            ensure!(rung == counted, "{subject}, {}: {rung} rings, {counted} counted", self.case.name);
            let expected = if way.is_in_kernel { 0 } else { rung };
            ensure!(returns == expected, "{subject}, {}: {returns} exits for {rung} rings", self.case.name);
            for (name, value) in
                [("rung", rung), ("counted", counted), ("returns of KVM_RUN for them", returns)]
            {
                counts.push(Count {
                    case: self.case.name.to_owned(),
                    subject: subject.to_owned(),
                    kind: "rings".to_owned(),
                    name: name.to_owned(),
                    values: vec![value],
                });
            }
        }
        Ok(counts)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut recorder = Recorder::new(&[], &[]);
    let mut pairs = Vec::new();
    for row in &ROWS {
        for (case, answer) in
            [(row.rings, Answer::None), (row.trip, Answer::Memory), (row.interrupt, Answer::Interrupt)]
        {
            let has_history = row.history.is_some() && answer != Answer::Interrupt;
            let subjects: &[&str] = if has_history { &[BASELINE, VMM, YEAR_2009] } else { &[BASELINE, VMM] };
            recorder = recorder.and(&[case], subjects);
            let way = Way::new(row.space, row.kernel, answer);
            pairs.push((Pair::boot(&args.guests, case, way)?, way));
        }
    }
    recorder = recorder.and(&[HYPERCALL], &[BASELINE, VMM]);
    if hypercalls_end(&args.guests)? {
        let way = Way::hypercalls();
        pairs.push((Pair::boot(&args.guests, HYPERCALL, way)?, way));
    } else {
        recorder.leave_out(HYPERCALL, "VMCALL does not end on this host");
    }
    for round in 0..=args.rounds {
        for (pair, _) in &mut pairs {
            pair.measure(&args, round, &mut recorder)?;
        }
        for row in ROWS.iter().filter(|_| round > 0) {
            if let Some((rings, trip)) = row.history {
                recorder.record(row.rings, YEAR_2009, &[rings]);
                recorder.record(row.trip, YEAR_2009, &[trip]);
            }
        }
    }
    let mut report = recorder.finish("doorbell", args.rounds, Ratio::Cost)?;
    for (pair, way) in pairs.iter().filter(|(pair, _)| ROWS.iter().any(|row| row.rings == pair.case)) {
        report.counts.extend(pair.counts(way)?);
    }
    report.notes = gains(&pairs);
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// What the kernel's taking our rings gains, as the median of the rounds.
fn gains(pairs: &[(Pair, Way)]) -> Vec<String> {
    let rates = |case: Case| pairs.iter().find(|(pair, _)| pair.case == case).map(|(pair, _)| &pair.rates);
    let gain = |row: &Row| {
        let user = ROWS.iter().find(|user| user.space == row.space && user.kernel.is_none())?;
        let gain = paired_ratio(rates(row.rings)?, rates(user.rings)?)?;
        Some(format!("{VMM}: {} rings {gain:.2} times as often as {}", row.rings.name, user.rings.name))
    };
    ROWS.iter().filter(|row| row.kernel.is_some()).filter_map(gain).collect()
}

/// Told when the guest is done.
struct Done(Sender<()>);

impl ExitHandler for Done {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        if port == DONE_PORT {
            // Who asked may have gone.
            let _ = self.0.send(());
        }
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// Whether this host's KVM comes to the end of a hypercall.
fn hypercalls_end(guests: &Path) -> Result<bool> {
    let guest = guests.join(Way::hypercalls().guest).with_extension("elf");
    let (vcpu, memory) = SmallMachine::boot(&guest, 1, 0)?.into_one();
    memory.memory().write_obj(BURST, GuestAddress(COUNT as u64))?;
    let (done, is_done) = channel();
    let vcpu = VcpuThread::spawn(vcpu, Arc::new(Done(done)), ThreadOptions::default(), |_, _| ())?;
    vcpu.resume();
    let ended = is_done.recv_timeout(PATIENCE).is_ok();
    // Before its memory.
    drop(vcpu);
    Ok(ended)
}
