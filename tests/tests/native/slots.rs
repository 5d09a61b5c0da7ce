//! Slots: guest RAM that changes while vCPUs and a device use it.

use std::env;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::unistd::Pid;
use vmm_core::Vm;
use vmm_memory::{AddressSpace, Backing, Change, HostMemory, HotplugRegion};
use vmm_tests::existing_slots::existing_slots;
use vmm_tests::harness::{Process, guest, stress, until};
use vmm_tests::live_memory::{self, Copied, Copier, Mirror, Outside};
use vmm_tests::plugging::{self, Plugging};
use vmm_tests::sequence::Sequence;
use vmm_tests::small_machine::SmallMachine;
use vmm_tests::standstill::Standstill;
use vmm_vcpu::{ExitHandler, ThreadOptions, VcpuEnd, VcpuThread, Vcpus};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        ram_changes_under_two_cpus_and_a_device_and_nothing_is_lost,
        code_stack_and_page_tables_are_replaced_and_the_guest_does_not_notice,
        the_clock_page_is_replaced_and_the_time_goes_on,
        what_is_done_while_a_machine_is_paused_leaves_it_paused,
        a_guest_plugs_and_unplugs_the_memory_beside_the_one_it_uses,
    ]
}

/// Longer than anything here may take without progress.
const DEADLINE: Duration = Duration::from_secs(60);

/// Enough for the guests, and little to copy.
const RAM_SIZE: u64 = 4 << 20;

/// A machine whose vCPUs have threads, and whose memory can be changed.
struct Running {
    vcpus: Arc<Vcpus>,
    ended: Receiver<VcpuEnd>,
    space: Arc<AddressSpace>,
    vm: Arc<Vm>,
}

impl Running {
    fn start<H: ExitHandler + 'static>(name: &str, cpus: u32, device: &Arc<H>) -> Result<Self> {
        let SmallMachine { vcpus, memory, vm, .. } = SmallMachine::boot_in(RAM_SIZE, &guest(name), cpus, 0)?;
        let (sender, ended) = channel();
        let threads = vcpus.into_iter().map(|vcpu| {
            let sender = sender.clone();
            VcpuThread::spawn(vcpu, Arc::clone(device), ThreadOptions::default(), move |_, end| {
                // The receiver is there, unless the trial is over.
                let _ = sender.send(end);
            })
        });
        let vcpus = Arc::new(Vcpus::new(threads.collect::<Result<_, _>>()?));
        memory.set_machine(Arc::new(Standstill(Arc::clone(&vcpus))));
        Ok(Self { vcpus, ended, space: Arc::new(memory), vm })
    }

    /// Whether the guest still runs.
    fn ensure_running(&self) -> Result<()> {
        match self.ended.try_recv() {
            Ok(end) => bail!("the guest has ended: {end:?}"),
            Err(_) => Ok(()),
        }
    }
}

/// Runs the trial `name` in a process of its own, of which all can be counted; `run` is what it does there.
fn alone(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    const ALONE: &str = "VMM_ALONE";
    if env::var_os(ALONE).is_some() {
        return run();
    }
    let program = env::current_exe().context("finding this program")?;
    let output =
        Command::new(program).args(["--exact", &format!("slots::{name}")]).env(ALONE, "1").output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success() && said.contains("1 passed"), "{}: {said}{errors}", output.status);
    Ok(())
}

/// What changes may not leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    /// Mappings that can only be regions of [`live_memory`].
    mappings: usize,
    descriptors: usize,
}

impl Footprint {
    fn now() -> Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let is_region = |line: &&str| {
            let (start, end) =
                line.split(' ').next().and_then(|range| range.split_once('-')).unwrap_or_default();
            let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            line.contains(" rw-") && number(end).wrapping_sub(number(start)) == live_memory::SIZE
        };
        let mappings = maps.lines().filter(is_region).count();
        Ok(Self { mappings, descriptors: Process::new(Pid::this()).descriptors()? })
    }
}

fn ram_changes_under_two_cpus_and_a_device_and_nothing_is_lost() -> Result<()> {
    alone("ram_changes_under_two_cpus_and_a_device_and_nothing_is_lost", change_ram)
}

fn change_ram() -> Result<()> {
    let outside = Arc::new(Outside::default());
    let nothing = Footprint::now()?;
    let machine = Running::start("slots", 2, &outside)?;
    live_memory::map_all(&machine.space)?;
    let (before, ranges) = (Footprint::now()?, machine.space.ranges());
    ensure!(before.mappings == 3, "{before:?}");
    let mirror = Arc::new(Mirror::default());
    machine.space.add_observer(mirror.clone())?;
    let over = AtomicBool::new(false);
    machine.vcpus.resume();
    let copied = std::thread::scope(|scope| {
        let copier = Copier::new(Arc::clone(&machine.space));
        let is_over = || over.load(Ordering::Relaxed);
        let device = scope.spawn(move || copier.work(is_over));
        let changed = change(&machine, &outside);
        over.store(true, Ordering::Relaxed);
        let copied = device.join().unwrap_or_else(|_| bail!("the device panicked"));
        changed.and(copied)
    })?;
    let Copied { done, refused, pinned } = copied;
    ensure!(done != 0 && refused != 0 && pinned != 0, "{copied:?}");
    ensure!(outside.accesses() != 0 && outside.rounds() != 0);
    ensure!(machine.space.ranges() == ranges && mirror.ranges() == ranges, "{mirror:?}");
    ensure!(mirror.followed() != 0);
    // The last transaction has waited for all who read the tables before it.
    let after = Footprint::now()?;
    ensure!(after == before, "{after:?}, before {before:?}");
    let Running { vcpus, space, vm, .. } = machine;
    drop(space);
    drop(vcpus);
    let slots = existing_slots(&vm, 0..64);
    ensure!(slots.is_empty(), "KVM has the slots {slots:?}");
    drop(vm);
    let after = Footprint::now()?;
    ensure!(after == nothing, "{after:?}, before {nothing:?}");
    Ok(())
}

/// A million changes, of which no kind has less than a tenth: of 47 in a round, 5 map and 5 unmap. At the end the guest
/// still goes on.
fn change(machine: &Running, outside: &Outside) -> Result<()> {
    let changes = stress(1_000_000);
    let mut done = 0;
    let mut resident = None;
    while done < changes {
        for transaction in live_memory::round()? {
            done += transaction.len() as u64;
            let text = format!("{transaction:?}");
            machine.space.apply(transaction).with_context(|| format!("after {done} changes: {text}"))?;
        }
        outside.ensure_right().with_context(|| format!("after {done} changes"))?;
        machine.ensure_running()?;
        if done >= changes / 50 && resident.is_none() {
            resident = Some(resident_now()?);
        }
    }
    let (before, after) = (resident.context("no changes")?, resident_now()?);
    // Less than a byte for each change, of which one leaves at least a page if it leaves any.
    ensure!(after < before + MOST_GROWTH, "{after} bytes are resident, {before} were");
    let rounds = outside.rounds();
    until(Instant::now() + DEADLINE, "vCPUs that go on", || {
        outside.ensure_right()?;
        Ok((outside.rounds() > rounds).then_some(()))
    })
}

/// What stacks and the allocator may come to need in the course of a trial.
const MOST_GROWTH: u64 = 512 << 10;

fn resident_now() -> Result<u64> {
    Process::new(Pid::this()).resident()
}

/// Replaces all of the guest's RAM, again and again, while it checks itself.
fn replace_all(name: &str) -> Result<()> {
    let device = Arc::new(Sequence::default());
    let machine = Running::start(name, 1, &device)?;
    machine.vcpus.resume();
    let ranges = machine.space.ranges();
    for replacement in 0..stress(20_000) {
        for &range in &ranges {
            let memory = HostMemory::anonymous(range.size)?;
            machine.space.apply([Change::Replace { range, memory }])?;
        }
        device.ensure_right().with_context(|| format!("replacement {replacement}"))?;
        machine.ensure_running()?;
        if replacement % 100 == 0 {
            goes_on(&device)?;
        }
    }
    goes_on(&device)
}

/// Waits until the guest has done some more.
fn goes_on(device: &Sequence) -> Result<()> {
    let rounds = device.rounds();
    until(Instant::now() + DEADLINE, "a guest that goes on", || {
        device.ensure_right()?;
        Ok((device.rounds() > rounds).then_some(()))
    })
}

fn code_stack_and_page_tables_are_replaced_and_the_guest_does_not_notice() -> Result<()> {
    replace_all("state_registers")?;
    replace_all("state_io")
}

/// A round of the guest is 16 times that it was told of a standstill, in the page that KVM writes to.
fn the_clock_page_is_replaced_and_the_time_goes_on() -> Result<()> {
    let device = Arc::new(Sequence::default());
    let machine = Running::start("clock_page", 1, &device)?;
    machine.vcpus.resume();
    let ranges = machine.space.ranges();
    for _ in 0..stress(5_000) {
        for &range in &ranges {
            let memory = HostMemory::anonymous(range.size)?;
            machine.space.apply([Change::Replace { range, memory }])?;
        }
        device.ensure_right()?;
        machine.ensure_running()?;
    }
    // KVM writes to what is the guest's page now.
    let rounds = device.rounds();
    until(Instant::now() + DEADLINE, "a guest that is told of pauses", || {
        machine.vcpus.pause(DEADLINE)?;
        machine.vcpus.resume();
        device.ensure_right()?;
        Ok((device.rounds() > rounds).then_some(()))
    })
}

fn what_is_done_while_a_machine_is_paused_leaves_it_paused() -> Result<()> {
    let device = Arc::new(Sequence::default());
    let machine = Running::start("state_io", 1, &device)?;
    machine.vcpus.resume();
    goes_on(&device)?;
    machine.vcpus.pause(DEADLINE)?;
    let (rounds, ranges) = (device.rounds(), machine.space.ranges());
    for &range in &ranges {
        let memory = HostMemory::anonymous(range.size)?;
        machine.space.apply([Change::Replace { range, memory }])?;
    }
    std::thread::sleep(Duration::from_millis(20));
    ensure!(device.rounds() == rounds, "the guest runs while it is paused");
    // Resumed in the middle of a standstill, it runs afterwards.
    machine.vcpus.hold(DEADLINE)?;
    machine.vcpus.resume();
    std::thread::sleep(Duration::from_millis(20));
    ensure!(device.rounds() == rounds, "the guest runs while it is held");
    machine.vcpus.let_go();
    goes_on(&device)
}

fn a_guest_plugs_and_unplugs_the_memory_beside_the_one_it_uses() -> Result<()> {
    let ports = Arc::new(Plugging::default());
    let machine = Running::start("plug", 2, &ports)?;
    let ranges = machine.space.ranges();
    let region = HotplugRegion::reserve(&machine.space, plugging::LAYOUT, &Backing::default())?;
    let over = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    machine.vcpus.resume();
    let (served, found) = std::thread::scope(|scope| {
        let server =
            scope.spawn(|| ports.serve(&region, |served| done.store(served.done, Ordering::Relaxed)));
        let device = scope.spawn(|| plugging::access_blocks(&machine.space, || over.load(Ordering::Relaxed)));
        let goes_on =
            watch_plugging(&machine, &ports, &done, || server.is_finished() || device.is_finished());
        over.store(true, Ordering::Relaxed);
        ports.end();
        let served = server.join().unwrap_or_else(|_| bail!("the server panicked"));
        let found = device.join().unwrap_or_else(|_| bail!("the device panicked"));
        let (served, found) = (served?, found?);
        goes_on?;
        Ok::<_, anyhow::Error>((served, found))
    })?;
    ensure!(
        served.busy != 0 && found.done != 0 && found.refused != 0 && found.pinned != 0,
        "{served:?} {found:?}"
    );
    ensure!(ports.outside.accesses() != 0);
    region.unplug_all()?;
    ensure!(machine.space.ranges() == ranges && region.plugged_size() == 0);
    Ok(())
}

/// Until so many blocks were plugged and unplugged, or somebody `is_finished`.
fn watch_plugging(
    machine: &Running,
    ports: &Plugging,
    done: &AtomicU64,
    is_finished: impl Fn() -> bool,
) -> Result<()> {
    let changes = stress(200_000);
    let mut before = 0;
    while before < changes && !is_finished() {
        before = until(Instant::now() + DEADLINE, "blocks that are plugged", || {
            ports.outside.ensure_right()?;
            machine.ensure_running()?;
            let done = done.load(Ordering::Relaxed);
            Ok((done > before || is_finished()).then_some(done))
        })?;
    }
    Ok(())
}
