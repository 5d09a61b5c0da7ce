//! The dirty benchmark: what a page costs that is written to while writes are tracked, and what a harvest costs; prints the
//! report as JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmm_core::{Capabilities, DirtyMechanism, Kvm};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{Case, Recorder};
use vmm_tests::sweep::Sweep;

/// Nothing is tracked.
const NONE: &str = "none";
/// Memory of which nothing can be tracked.
const PLAIN: &str = "plain";
/// Those that track.
const BITMAP: &str = "bitmap";
const MANUAL: &str = "manual";
const RING: &str = "ring";

const DEVICE_WRITE: Case = Case { name: "device_write", unit: "ns" };
const DEVICE_WRITES: usize = 1000;

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// MiB of memory that are tracked
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(4..=1024))]
    size: u32,
}

/// A share of the memory that is written to, in thousandths.
struct Share {
    thousandths: u32,
    write: Case,
    harvest: Case,
}

const SHARES: [Share; 3] = [
    Share {
        thousandths: 1,
        write: Case { name: "write_0.1%", unit: "ns" },
        harvest: Case { name: "harvest_0.1%", unit: "us" },
    },
    Share {
        thousandths: 100,
        write: Case { name: "write_10%", unit: "ns" },
        harvest: Case { name: "harvest_10%", unit: "us" },
    },
    Share {
        thousandths: 1000,
        write: Case { name: "write_100%", unit: "ns" },
        harvest: Case { name: "harvest_100%", unit: "us" },
    },
];

/// A guest whose writes are tracked by the subject's mechanism, or not.
struct Tracked {
    subject: &'static str,
    sweep: Sweep,
}

impl Tracked {
    /// `None`: the host does not have it.
    fn new(args: &Args, subject: &'static str, capabilities: &Capabilities) -> Result<Option<Self>> {
        let pages = args.size << 8;
        let mechanism = match subject {
            MANUAL => match capabilities.manual_dirty_log {
                Some(initially_set) => DirtyMechanism::ManualProtect { initially_set },
                None => return Ok(None),
            },
            RING => match capabilities.dirty_ring {
                0 => return Ok(None),
                bytes => DirtyMechanism::Ring { bytes },
            },
            _ => DirtyMechanism::Bitmap,
        };
        let sweep = Sweep::new(&args.guests, pages, mechanism)?;
        if subject != NONE {
            sweep.tracker.start()?;
            sweep.tracker.harvest()?;
        }
        Ok(Some(Self { subject, sweep }))
    }

    /// One round.
    fn measure(&mut self, pages: u32, share: &Share) -> Result<(f64, Option<f64>)> {
        let count = (pages * share.thousandths / 1000).max(1);
        let time = self.sweep.write(count)?.as_secs_f64() * 1e9 / f64::from(count);
        if self.subject == NONE {
            return Ok((time, None));
        }
        let start = Instant::now();
        let harvest = self.sweep.tracker.harvest()?;
        let harvest_time = start.elapsed();
        let found: u64 = harvest.iter().map(vmm_memory::DirtyPages::count).sum();
        ensure!(found == u64::from(count), "{}: {found} of {count} pages", self.subject);
        Ok((time, Some(harvest_time.as_secs_f64() * 1e6)))
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let capabilities = *Kvm::open(Path::new("/dev/kvm"))?.capabilities();
    let mut recorder = Recorder::new(&[], &[]).against(NONE);
    for share in &SHARES {
        recorder = recorder.and(&[share.write], &[NONE, BITMAP, MANUAL, RING]);
        recorder = recorder.and(&[share.harvest], &[BITMAP, MANUAL, RING]);
    }
    recorder = recorder.and(&[DEVICE_WRITE], &[NONE, PLAIN, BITMAP]);
    let mut machines = Vec::new();
    for subject in [NONE, BITMAP, MANUAL, RING] {
        match Tracked::new(&args, subject, &capabilities).context(subject)? {
            Some(machine) => machines.push(machine),
            None => SHARES.iter().flat_map(|share| [share.write, share.harvest]).for_each(|case| {
                recorder.leave_out_subject(case, subject, "KVM lacks the capability");
            }),
        }
    }
    // The first round is the warm-up.
    for round in 0..=args.rounds {
        for share in &SHARES {
            for machine in &mut machines {
                let (write, harvest) = machine.measure(args.size << 8, share)?;
                if round > 0 {
                    recorder.record(share.write, machine.subject, &[write]);
                    let harvest = harvest.as_slice();
                    recorder.record(share.harvest, machine.subject, harvest);
                }
            }
            // Neither always comes after the other.
            machines.rotate_left(1);
        }
        let writes = device_writes(&machines)?;
        if round > 0 {
            writes.iter().for_each(|(subject, time)| recorder.record(DEVICE_WRITE, subject, &[*time]));
        }
    }
    let report = recorder.finish("dirty", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// A write of a device, eight bytes through a slice, where nothing is tracked, where nothing can be, and where it is.
fn device_writes(machines: &[Tracked]) -> Result<Vec<(&'static str, f64)>> {
    let mut times = Vec::new();
    for machine in machines.iter().filter(|machine| [NONE, BITMAP].contains(&machine.subject)) {
        let memory = machine.sweep.memory.memory();
        let slice = memory.get_slice(GuestAddress(1 << 20), 1 << 20)?;
        times.push((machine.subject, time_of(|number, at| slice.write_obj(number, at))?));
    }
    let mut plain = vec![0_u8; 1 << 20];
    let slice = VolatileSlice::from(&mut plain[..]);
    times.push((PLAIN, time_of(|number, at| slice.write_obj(number, at))?));
    for machine in machines.iter().filter(|machine| machine.subject == BITMAP) {
        machine.sweep.tracker.harvest()?;
    }
    Ok(times)
}

/// What a write takes, in nanoseconds. Each goes to another page than the one before.
fn time_of<E: std::error::Error + Send + Sync + 'static>(
    write: impl Fn(usize, usize) -> Result<(), E>,
) -> Result<f64> {
    let start = Instant::now();
    for number in 0..DEVICE_WRITES {
        write(number, std::hint::black_box(number % 250 * 4096 + number % 4096 * 8 % 4096))?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / DEVICE_WRITES as f64)
}
