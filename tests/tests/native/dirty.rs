//! Dirty: every mechanism tells exactly the pages that were written to, while they are being written to.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;
use vmm_core::{DirtyMechanism, Kvm};
use vmm_memory::{AddressSpace, Backing, Change, DirtyTracker, RamRange};
use vmm_tests::harness::{ControlSocket, TestVm, guest, is_full, is_pvm, rounds, until};
use vmm_tests::live_dirty::{CPUS, Session, WINDOW, Writers};
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::{ThreadOptions, VcpuThread, Vcpus};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        bitmaps_tell_what_two_cpus_and_a_device_have_written,
        manual_bitmaps_tell_what_two_cpus_and_a_device_have_written,
        bitmaps_of_which_all_is_set_tell_it_from_the_second_harvest_on,
        rings_tell_what_two_cpus_and_a_device_have_written,
        rings_that_fill_while_all_write_lose_nothing,
        tracking_starts_and_stops_while_the_guest_runs,
        slots_come_and_go_while_they_are_tracked,
        a_vm_has_one_mechanism_from_the_beginning,
        ctl_counts_the_pages_that_a_guest_writes_to,
        rings_are_refused_where_kvm_overruns_them,
    ]
}

/// Longer than anything here may take without progress.
const DEADLINE: Duration = Duration::from_secs(60);

/// Enough for the guest.
const RAM_SIZE: u64 = 4 << 20;

const BITMAP: DirtyMechanism = DirtyMechanism::Bitmap;
const MANUAL: DirtyMechanism = DirtyMechanism::ManualProtect { initially_set: false };
const ALL_SET: DirtyMechanism = DirtyMechanism::ManualProtect { initially_set: true };
const RING: DirtyMechanism = DirtyMechanism::Ring { bytes: 64 << 10 };
/// The least that KVM takes.
const SMALL_RING: DirtyMechanism = DirtyMechanism::Ring { bytes: 256 * 16 };

/// Whether this host's KVM has the mechanism. Says so if not.
fn has(mechanism: DirtyMechanism) -> Result<bool> {
    let kvm = Kvm::open(Path::new("/dev/kvm"))?;
    let capabilities = kvm.capabilities();
    let has = match mechanism {
        DirtyMechanism::Bitmap => true,
        DirtyMechanism::ManualProtect { initially_set } => {
            capabilities.manual_dirty_log.is_some_and(|can| can || !initially_set)
        }
        DirtyMechanism::Ring { bytes } => capabilities.dirty_ring >= bytes,
    };
    if !has {
        writeln!(io::stdout(), "this KVM lacks {mechanism:?}, which is not tried")?;
    }
    Ok(has)
}

/// A machine whose vCPUs write, and a device that does.
struct Writing {
    vcpus: Vcpus,
    space: Arc<AddressSpace>,
    tracker: Arc<DirtyTracker>,
    writers: Arc<Writers>,
}

impl Writing {
    fn new(mechanism: DirtyMechanism) -> Result<Self> {
        let count = u32::try_from(CPUS)?;
        let size = (RAM_SIZE, WINDOW);
        let (machine, tracker) = SmallMachine::boot_tracked(size, &guest("dirty"), count, mechanism)?;
        let writers = Arc::new(Writers::default());
        let threads = machine
            .vcpus
            .into_iter()
            .map(|vcpu| VcpuThread::spawn(vcpu, Arc::clone(&writers), ThreadOptions::default(), |_, _| ()));
        let vcpus = Vcpus::new(threads.collect::<Result<_, _>>()?);
        Ok(Self { vcpus, space: Arc::new(machine.memory), tracker, writers })
    }

    /// Does `work` while vCPUs and device write, and pauses the vCPUs then.
    fn run(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::Relaxed);
        self.vcpus.resume();
        std::thread::scope(|scope| {
            let device = scope.spawn(|| self.writers.work(&self.space, is_over));
            // Their first instructions have the processor mark descriptors in their own RAM.
            let begun = until(Instant::now() + DEADLINE, "the first writes", || {
                Ok(self.writers.all_have_begun().then_some(()))
            });
            let worked = begun.and_then(|()| work());
            over.store(true, Ordering::Relaxed);
            worked?;
            device.join().unwrap_or_else(|_| bail!("the device panicked"))
        })?;
        self.vcpus.pause(DEADLINE)?;
        self.writers.ensure_right()
    }

    /// Waits until the vCPUs have written so much more.
    fn wait(&self, writes: usize) -> Result<()> {
        let count = self.writers.count();
        until(Instant::now() + DEADLINE, "writes", || {
            Ok((self.writers.count() >= count + writes).then_some(()))
        })
    }

    /// Harvests so often, while all write; the vCPUs so much before each.
    fn harvest(&self, session: &mut Session, times: usize, writes: usize) -> Result<()> {
        for number in 0..times {
            self.wait(writes)?;
            session
                .harvest(&self.writers, &self.tracker, &[])
                .with_context(|| format!("harvest {number}"))?;
        }
        Ok(())
    }
}

/// So many harvests (where KVM is emulated a tenth, unless trials take their time) while two vCPUs and a device write, the vCPUs so much before each, and one when all are at rest.
fn exact(mechanism: DirtyMechanism, times: usize, writes: usize) -> Result<()> {
    if !has(mechanism)? {
        return Ok(());
    }
    let machine = Writing::new(mechanism)?;
    let has_all = mechanism == ALL_SET;
    let mut session = None;
    machine.run(|| {
        let session = session.insert(machine.writers.start(&machine.tracker)?);
        if has_all {
            let all = [RamRange { start: 0, size: RAM_SIZE }];
            let pages = session.harvest(&machine.writers, &machine.tracker, &all)?;
            ensure!(pages as u64 == WINDOW.size / 4096, "the first harvest has {pages} pages");
        }
        machine.harvest(session, if is_full() { times } else { rounds(times) }, writes)
    })?;
    let mut session = session.context("no session")?;
    session.harvest(&machine.writers, &machine.tracker, &[])?;
    session.check(&machine.writers, has_all.into())?;
    let left = session.harvest(&machine.writers, &machine.tracker, &[])?;
    ensure!(left == 0, "{left} pages are dirty when nobody writes");
    Ok(())
}

fn bitmaps_tell_what_two_cpus_and_a_device_have_written() -> Result<()> {
    exact(BITMAP, 1000, 20)
}

fn manual_bitmaps_tell_what_two_cpus_and_a_device_have_written() -> Result<()> {
    exact(MANUAL, 1000, 20)
}

fn bitmaps_of_which_all_is_set_tell_it_from_the_second_harvest_on() -> Result<()> {
    exact(ALL_SET, 1000, 20)
}

fn rings_tell_what_two_cpus_and_a_device_have_written() -> Result<()> {
    exact(RING, 1000, 20)
}

/// Each vCPU fills its ring about three times from harvest to harvest.
fn rings_that_fill_while_all_write_lose_nothing() -> Result<()> {
    if is_pvm() { a_ring_that_is_overrun_says_so() } else { exact(SMALL_RING, 1000, 2000) }
}

/// KVM-PVM names more pages than a ring has entries. The harvests then have every page, so no write is lost, and the vCPU
/// ends when KVM takes its ring for full for ever.
fn a_ring_that_is_overrun_says_so() -> Result<()> {
    let all = [RamRange { start: 0, size: RAM_SIZE }];
    let machine = Writing::new(SMALL_RING)?;
    let mut session = machine.writers.start(&machine.tracker)?;
    let is_over = AtomicBool::new(false);
    machine.vcpus.resume();
    std::thread::scope(|scope| {
        let device = scope.spawn(|| machine.writers.work(&machine.space, || is_over.load(Ordering::Relaxed)));
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(2));
            session.harvest(&machine.writers, &machine.tracker, &all)?;
        }
        is_over.store(true, Ordering::Relaxed);
        device.join().unwrap_or_else(|_| bail!("the device panicked"))
    })?;
    machine.vcpus.request_stop();
    for index in 0..u32::try_from(CPUS)? {
        // Whatever the answer: it executes nothing any more.
        let _ = machine.vcpus.perform(index, |_| ());
    }
    session.harvest(&machine.writers, &machine.tracker, &all)?;
    session.check(&machine.writers, usize::MAX)
}

fn tracking_starts_and_stops_while_the_guest_runs() -> Result<()> {
    for mechanism in [BITMAP, MANUAL, RING] {
        if !has(mechanism)? {
            continue;
        }
        let machine = Writing::new(mechanism)?;
        machine.run(|| {
            for _ in 0..rounds(100) {
                let mut session = machine.writers.start(&machine.tracker)?;
                machine.harvest(&mut session, 5, 20)?;
                session.check(&machine.writers, 0).with_context(|| format!("{mechanism:?}"))?;
                machine.tracker.stop()?;
                machine.wait(20)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Where RAM comes, and where it moves to.
const COMES: RamRange = RamRange { start: 0x5000_0000, size: 64 * 4096 };
const MOVED: RamRange = RamRange { start: 0x6000_0000, ..COMES };

fn slots_come_and_go_while_they_are_tracked() -> Result<()> {
    for mechanism in [BITMAP, MANUAL, RING] {
        if !has(mechanism)? {
            continue;
        }
        let machine = Writing::new(mechanism)?;
        machine.run(|| {
            let mut session = machine.writers.start(&machine.tracker)?;
            let mut harvest = || {
                machine.wait(20)?;
                // A slot that goes has KVM forget every page that it has mapped; what the guest only reads or executes it maps
                // writable again, and takes for written to: the guest's own code.
                let own = RamRange { start: 0, size: RAM_SIZE };
                session.harvest(&machine.writers, &machine.tracker, &[COMES, MOVED, own])
            };
            for _ in 0..rounds(100) {
                machine.space.map(&[COMES], &Backing::default())?;
                harvest()?;
                machine.space.apply([Change::Move { range: COMES, to: MOVED.start }])?;
                harvest()?;
                machine.space.apply([Change::Unmap(MOVED)])?;
            }
            session.check(&machine.writers, 0).with_context(|| format!("{mechanism:?}"))
        })?;
    }
    Ok(())
}

fn a_vm_has_one_mechanism_from_the_beginning() -> Result<()> {
    let kvm = Kvm::open(Path::new("/dev/kvm"))?;
    let vm = vmm_core::Vm::create(&kvm)?;
    ensure!(vm.set_dirty_mechanism(DirtyMechanism::Ring { bytes: 1000 }).is_err(), "a ring of 1000 bytes");
    vm.set_dirty_mechanism(BITMAP)?;
    ensure!(vm.set_dirty_mechanism(MANUAL).is_err(), "two mechanisms");
    Ok(())
}

/// The guest writes to 512 pages of the GiB above this one, and says so on a port that nobody has.
const WRITING: &str = "--memory 1040M --on-triple-fault crash";

/// Counts for longer and longer, until the guest, which takes its pages by lot, has met each of them: thousands of exits, of
/// which an emulated host has but a few thousand in a second.
fn counts_all_of(count: u64, place: &ControlSocket) -> Result<()> {
    for seconds in [1, 2, 4, 8, 16, 32] {
        let line = place.ctl(&format!("--json dirty-rate --time {seconds}s"))?.ensure_code(0)?.text();
        let answer: Value = serde_json::from_str(&line)?;
        let pages = answer["ok"]["pages"].as_u64().with_context(|| answer.to_string())?;
        ensure!(pages <= count, "the guest writes to {pages} pages");
        if pages == count {
            return Ok(());
        }
    }
    bail!("the guest has not written to {count} pages")
}

fn ctl_counts_the_pages_that_a_guest_writes_to() -> Result<()> {
    for log in ["auto", "bitmap", "ring"] {
        if log == "ring" && is_pvm() {
            writeln!(io::stdout(), "KVM-PVM: rings are refused, and not tried")?;
            continue;
        }
        let place = ControlSocket::new()?;
        let vm = place.start(TestVm::guest("dirty").args(WRITING).arg(format!("--dirty-log={log}")))?;
        place.reaches("running")?;
        counts_all_of(512, &place).context(log)?;
        place.ctl("pause")?.ensure_code(0)?;
        let said = place.ctl("dirty-rate --time 0s")?.ensure_code(0)?.text();
        ensure!(said.starts_with("0 pages, 0 KiB in "), "{log}: {said}");
        place.ctl("resume")?.ensure_code(0)?;
        // A machine that ends does not wait for those who count.
        let mut counting = place.client()?;
        until(Instant::now() + DEADLINE, "somebody counts", || {
            counting.send(b"{\"verb\":\"dirty-rate\",\"time\":\"1m\"}\n")?;
            std::thread::sleep(Duration::from_millis(100));
            if place.ask("dirty-rate")?["error"]["code"] == "busy" {
                return Ok(Some(()));
            }
            // The other one was first.
            ensure!(counting.receive()?["error"]["code"] == "busy", "{log}: two count");
            Ok(None)
        })?;
        place.ctl("quit")?.ensure_code(0)?;
        vm.wait()?.ensure_code(0)?;
        let answer = counting.receive()?;
        ensure!(answer["error"]["code"] == "stopping", "{log}: {answer}");
    }
    Ok(())
}

fn rings_are_refused_where_kvm_overruns_them() -> Result<()> {
    let ended = TestVm::guest("bench_halt").arg("--dirty-log=ring");
    if is_pvm() || !has(SMALL_RING)? {
        let refused = ended.run()?.ensure_code(3)?;
        refused.ensure_message(&["memory.dirty_log (--dirty-log)", "use \"auto\""])?;
    } else {
        let mut vm = ended.spawn()?;
        vm.wait_for_output("\x1e")?;
        vm.signal(Signal::SIGTERM)?;
        vm.wait()?.ensure_code(0)?;
    }
    Ok(())
}
