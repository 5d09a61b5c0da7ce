//! The slots benchmark: what readers of the table of guest RAM pay while it changes, what changes cost and where, and what the
//! guest notices; prints the report as JSON.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Parser;
use vm_memory::{Bytes, GuestAddress};
use vmm_core::Vm;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_memory::{AddressSpace, Change};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_tests::bench::buses::{Buses, Status};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{BASELINE, Case, Recorder};
use vmm_tests::bench::slot_probe::{Coming, SlotProbe, Timed};
use vmm_tests::bench::slot_reads::{
    Access, Copies, Fixed, InMutex, InRwLock, Pace, Table, change_until, map_all, read,
};
use vmm_tests::bench::stats::{median, paired_ratio};
use vmm_tests::bench::vcpu_set::missing;
use vmm_tests::cpus;
use vmm_tests::small_machine::SmallMachine;
use vmm_tests::standstill::Standstill;
use vmm_vcpu::{ThreadOptions, VcpuThread, Vcpus};

const VMM: &str = "vmm";

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Changes of each kind in a round
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Milliseconds that each value of a rate is measured for
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
}

const PACES: [Pace; 3] = [Pace::Still, Pace::Thousand, Pace::Full];

/// Tables that are read; each with the names of its rows by pace.
const TABLES: [[&str; 3]; 4] = [
    [BASELINE, "raw_1000", "raw_full"],
    [VMM, "vmm_1000", "vmm_full"],
    ["rwlock", "rwlock_1000", "rwlock_full"],
    ["mutex", "mutex_1000", "mutex_full"],
];
/// Which of them is ours.
const OWN: usize = 1;
const READS: [(usize, Access, Case); 4] = [
    (1, Access::LookUp, Case { name: "look_up_1", unit: "ns" }),
    (2, Access::LookUp, Case { name: "look_up_2", unit: "ns" }),
    (1, Access::Load, Case { name: "read_1", unit: "ns" }),
    (2, Access::Load, Case { name: "read_2", unit: "ns" }),
];
const STORES: Case = Case { name: "guest_store", unit: "ns" };

/// The rows of changes.
struct Changes {
    map: Case,
    unmap: Case,
    both: Case,
    replace: Case,
    after_bus: bool,
}

const CHANGES: [Changes; 2] = [
    Changes {
        map: Case { name: "map", unit: "us" },
        unmap: Case { name: "unmap", unit: "us" },
        both: Case { name: "map_unmap", unit: "us" },
        replace: Case { name: "replace", unit: "us" },
        after_bus: false,
    },
    Changes {
        map: Case { name: "map_after_bus", unit: "us" },
        unmap: Case { name: "unmap_after_bus", unit: "us" },
        both: Case { name: "map_unmap_after_bus", unit: "us" },
        replace: Case { name: "replace_after_bus", unit: "us" },
        after_bus: true,
    },
];
/// Before the changes of each subject. Barriers that follow each other without a rest have to wait for a pace (ADR 0008), which
/// is for those who change as fast as they can, and is seen in the rows of reads and stores.
const REST: Duration = Duration::from_millis(5);
const SPINNING: u32 = 8;
const REPLACE_8: Case = Case { name: "replace_8_vcpus", unit: "us" };

const MAP_ROWS: [&str; 5] = [BASELINE, VMM, "vmm_before", "vmm_ioctl", "vmm_publish"];
const UNMAP_ROWS: [&str; 6] = [BASELINE, VMM, "vmm_publish", "vmm_ioctl", "vmm_grace", "vmm_release"];
const BOTH_ROWS: [&str; 2] = [BASELINE, VMM];
const REPLACE_ROWS: [&str; 5] = [BASELINE, VMM, "vmm_publish", "vmm_ioctls", "vmm_grace"];
const REPLACE_8_ROWS: [&str; 5] = [BASELINE, VMM, "vmm_stop", "vmm_stood", "vmm_ioctls"];

fn main() -> Result<()> {
    let args = Args::parse();
    let mut recorder = recorder();
    let mut notes = Vec::new();
    if let Some(why) = missing() {
        all_cases().iter().for_each(|&case| recorder.leave_out(case, &why));
    } else {
        writeln!(io::stderr(), "reads")?;
        let guest = args.guests.join("bench_halt.elf");
        // Threads of their own, so that this one keeps its CPUs.
        for row in READS {
            apart(|| reads(&args, &guest, row, &mut recorder, &mut notes))?;
        }
        writeln!(io::stderr(), "changes")?;
        changes(&args, &guest, &mut recorder)?;
        writeln!(io::stderr(), "replacements beside {SPINNING} vCPUs")?;
        replacements(&args, &mut recorder)?;
        writeln!(io::stderr(), "stores of the guest")?;
        apart(|| stores(&args, &mut recorder, &mut notes))?;
    }
    let mut report = recorder.finish("slots", args.rounds, Ratio::Cost)?;
    report.notes = notes;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn recorder() -> Recorder {
    let tables: Vec<&str> = TABLES.into_iter().flatten().collect();
    let mut recorder = Recorder::new(&READS.map(|(.., case)| case), &tables);
    for Changes { map, unmap, both, replace, .. } in &CHANGES {
        recorder = recorder.and(&[*map], &MAP_ROWS).and(&[*unmap], &UNMAP_ROWS);
        recorder = recorder.and(&[*both], &BOTH_ROWS).and(&[*replace], &REPLACE_ROWS);
    }
    recorder.and(&[REPLACE_8], &REPLACE_8_ROWS).and(&[STORES], &TABLES[OWN])
}

fn all_cases() -> Vec<Case> {
    let changes =
        CHANGES.iter().flat_map(|changes| [changes.map, changes.unmap, changes.both, changes.replace]);
    READS.map(|(.., case)| case).into_iter().chain(changes).chain([REPLACE_8, STORES]).collect()
}

fn apart(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("a measuring thread panicked"))?
}

/// Reads of each table at each pace.
fn reads(
    args: &Args,
    guest: &Path,
    (readers, access, case): (usize, Access, Case),
    recorder: &mut Recorder,
    notes: &mut Vec<String>,
) -> Result<()> {
    if cpus::allowed()?.len() < readers {
        recorder.leave_out(case, "a CPU for each reader");
        return Ok(());
    }
    let machine = SmallMachine::boot(guest, 1, 0)?;
    let (_, space) = SlotProbe::beside(&machine.vm, None)?;
    map_all(&space)?;
    let copies = Arc::new(Copies::of(&space)?);
    let (rwlock, mutex) = (InRwLock::new(&copies), InMutex::new(&copies));
    let fixed = Fixed(copies);
    let tables: [&dyn Table; 4] = [&fixed, &*space, &rwlock, &mutex];
    let mut subjects: Vec<(&str, &dyn Table, Pace)> = Vec::new();
    for (names, table) in TABLES.into_iter().zip(tables) {
        subjects.extend(names.into_iter().zip(PACES).map(|(name, pace)| (name, table, pace)));
    }
    let mut values = vec![Vec::new(); subjects.len()];
    let mut changes = vec![Vec::new(); subjects.len()];
    for round in 0..=args.rounds {
        let mut order: Vec<usize> = (0..subjects.len()).collect();
        // Neither end of the list always comes first.
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let (name, table, pace) = subjects[index];
            let time = Duration::from_millis(args.time);
            let reading = read(table, (readers, access), pace, time)?;
            if round > 0 {
                recorder.record(case, name, &[reading.read]);
                values[index].push(reading.read);
                changes[index].push(reading.changes as f64 / time.as_secs_f64());
            }
        }
    }
    for (table, names) in TABLES.iter().enumerate() {
        let still = table * PACES.len();
        for (index, name) in names.iter().enumerate().skip(1) {
            let index = still + index;
            let pace = median(&changes[index]).unwrap_or(0.0);
            let kept = paired_ratio(&values[still], &values[index]).unwrap_or(0.0);
            notes.push(format!(
                "{}: {name} reads {kept:.3} times as often as undisturbed, with {pace:.0} changes in a second",
                case.name
            ));
        }
    }
    Ok(())
}

/// A doorbell that goes and comes: a change of an I/O bus of KVM's.
struct BusChange<'a> {
    vm: &'a Vm,
    fd: EventFd,
}

impl<'a> BusChange<'a> {
    const ADDRESS: DoorbellAddress =
        DoorbellAddress { space: DoorbellSpace::Mmio, address: 0xd000_0000, width: 4, datamatch: None };

    fn new(vm: &'a Vm) -> Result<Self> {
        let fd = EventFd::new(EFD_NONBLOCK)?;
        vm.attach_doorbell(&Self::ADDRESS, &fd)?;
        Ok(Self { vm, fd })
    }

    /// To detach waits by itself; what an attachment leaves to be waited for is for the next change of slots.
    fn make(&self) -> Result<()> {
        self.vm.detach_doorbell(&Self::ADDRESS, &self.fd)?;
        Ok(self.vm.attach_doorbell(&Self::ADDRESS, &self.fd)?)
    }
}

/// Changes in a machine whose vCPU does not run, beside the ioctls that they make.
fn changes(args: &Args, guest: &Path, recorder: &mut Recorder) -> Result<()> {
    let machine = SmallMachine::boot(guest, 1, 0)?;
    let (probe, space) = SlotProbe::beside(&machine.vm, None)?;
    let bus = BusChange::new(&machine.vm)?;
    let memory = Coming::memory()?;
    for round in 0..=args.rounds {
        for rows in &CHANGES {
            let before = || if rows.after_bus { bus.make() } else { Ok(()) };
            let mut values = Values::default();
            // After a change of the bus each takes milliseconds.
            let count = if rows.after_bus { args.changes.div_ceil(10) } else { args.changes };
            for turn in 0..count {
                // Neither always comes after the other.
                for own in [turn % 2 == 0, turn % 2 == 1] {
                    thread::sleep(REST);
                    if own {
                        values.own(&probe, &space, &before)?;
                    } else {
                        before()?;
                        let [create, delete] = probe.raw(0x8000_0000, &memory)?;
                        values.raw(create, delete);
                    }
                }
            }
            if round > 0 {
                values.record(rows, recorder);
            }
        }
    }
    Ok(())
}

/// The values of one round.
#[derive(Default)]
struct Values {
    map: [Vec<f64>; MAP_ROWS.len()],
    unmap: [Vec<f64>; UNMAP_ROWS.len()],
    both: [Vec<f64>; BOTH_ROWS.len()],
    replace: [Vec<f64>; REPLACE_ROWS.len()],
}

impl Values {
    fn own(
        &mut self,
        probe: &SlotProbe,
        space: &AddressSpace,
        before: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let time = |change: Change| {
            before()?;
            probe.time(space, change)
        };
        // One right after the other, as the ioctls are that they stand beside.
        let (map, unmap) = (time(Coming::map()?)?, time(Coming::unmap())?);
        space.apply([Coming::map()?])?;
        let replace = time(Coming::replace()?)?;
        space.apply([Coming::unmap()])?;
        push(&mut self.map[1..], [map.whole, map.before, map.ioctls, map.after]);
        push(&mut self.unmap[1..], [unmap.whole, unmap.before, unmap.ioctls, unmap.grace, unmap.after]);
        push(&mut self.both[1..], [map.whole + unmap.whole]);
        push(&mut self.replace[1..], [replace.whole, replace.before, replace.ioctls, replace.grace]);
        Ok(())
    }

    fn raw(&mut self, create: Duration, delete: Duration) {
        push(&mut self.map[..1], [create]);
        push(&mut self.unmap[..1], [delete]);
        push(&mut self.both[..1], [create + delete]);
        push(&mut self.replace[..1], [create + delete]);
    }

    fn record(&self, rows: &Changes, recorder: &mut Recorder) {
        record(recorder, rows.map, &MAP_ROWS, &self.map);
        record(recorder, rows.unmap, &UNMAP_ROWS, &self.unmap);
        record(recorder, rows.both, &BOTH_ROWS, &self.both);
        record(recorder, rows.replace, &REPLACE_ROWS, &self.replace);
    }
}

fn push<const N: usize>(rows: &mut [Vec<f64>], times: [Duration; N]) {
    for (row, time) in rows.iter_mut().zip(times) {
        row.push(time.as_secs_f64() * 1e6);
    }
}

fn record(recorder: &mut Recorder, case: Case, names: &[&str], rows: &[Vec<f64>]) {
    for (name, values) in names.iter().zip(rows) {
        recorder.record(case, name, values);
    }
}

/// A machine whose vCPUs have threads.
fn running(guest: &Path, cpus: u32) -> Result<(Arc<Vcpus>, SmallMachine)> {
    let mut machine = SmallMachine::boot(guest, cpus, 0)?;
    let device = Arc::new(Buses::new(&(Arc::new(Status::default()) as _))?);
    let spawn = |vcpu| VcpuThread::spawn(vcpu, Arc::clone(&device), ThreadOptions::default(), |_, _| {});
    let threads = std::mem::take(&mut machine.vcpus).into_iter().map(spawn);
    Ok((Arc::new(Vcpus::new(threads.collect::<Result<_, _>>()?)), machine))
}

/// Replacements while vCPUs spin, all of which have to be parked.
fn replacements(args: &Args, recorder: &mut Recorder) -> Result<()> {
    let (vcpus, machine) = running(&args.guests.join("spin.elf"), SPINNING)?;
    let standstill = Arc::new(Standstill(Arc::clone(&vcpus)));
    let (probe, space) = SlotProbe::beside(&machine.vm, Some(standstill))?;
    let memory = Coming::memory()?;
    space.apply([Coming::map()?])?;
    vcpus.resume();
    for round in 0..=args.rounds {
        let mut rows: [Vec<f64>; REPLACE_8_ROWS.len()] = Default::default();
        for _ in 0..args.changes {
            // Until those that were parked spin again.
            thread::sleep(Duration::from_millis(2));
            let Timed { whole, ioctls, stop, stood, .. } = probe.time(&space, Coming::replace()?)?;
            push(&mut rows[1..], [whole, stop, stood, ioctls]);
            let [create, delete] = probe.raw(0x8000_0000, &memory)?;
            push(&mut rows[..1], [create + delete]);
        }
        if round > 0 {
            record(recorder, REPLACE_8, &REPLACE_8_ROWS, &rows);
        }
    }
    Ok(())
}

/// Where the guest stores.
const CELL: GuestAddress = GuestAddress(0x9000);

/// What a store of the guest takes while its memory changes.
fn stores(args: &Args, recorder: &mut Recorder, notes: &mut Vec<String>) -> Result<()> {
    let (vcpus, machine) = running(&args.guests.join("bench_stores.elf"), 1)?;
    let (_, space) = SlotProbe::beside(&machine.vm, None)?;
    if let [own, other, ..] = cpus::allowed()?[..] {
        vcpus.perform(0, move |_| cpus::stay_on(own))??;
        cpus::stay_on(other)?;
    }
    vcpus.resume();
    let time = Duration::from_millis(args.time);
    let cell = || machine.memory.memory().read_obj::<u32>(CELL);
    let mut values = vec![Vec::new(); PACES.len()];
    for round in 0..=args.rounds {
        for position in 0..PACES.len() {
            let index = (position + round as usize) % PACES.len();
            let (changes, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
            let (value, changed) = thread::scope(|scope| {
                let changing = scope.spawn(|| change_until(&*space, PACES[index], &changes, &is_over));
                let (start, before) = (Instant::now(), cell());
                thread::sleep(time);
                let (elapsed, after) = (start.elapsed(), cell());
                is_over.store(true, Ordering::Relaxed);
                let stores = after.and_then(|after| Ok(after.wrapping_sub(before?)));
                let value = stores.map(|stores| elapsed.as_secs_f64() * 1e9 / f64::from(stores.max(1)));
                (value, changing.join().map_err(|_| anyhow!("the changes panicked")))
            });
            changed??;
            let value = value?;
            if round > 0 {
                recorder.record(STORES, TABLES[OWN][index], &[value]);
                values[index].push(value);
            }
        }
    }
    for (name, own) in TABLES[OWN].into_iter().zip(&values).skip(1) {
        let kept = paired_ratio(&values[0], own).unwrap_or(0.0);
        notes.push(format!("guest_store: {name} has {kept:.3} times as many stores as vmm undisturbed"));
    }
    Ok(())
}
