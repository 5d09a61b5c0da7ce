//! Pause and resume of machines in this process: from many threads, beside a slow device, a deferred access, CPUs that come
//! online and the end of the machine.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use vmm_core::{Completer, Deferred, deferred};
use vmm_memory::AddressSpace;
use vmm_tests::harness::{guest, rounds};
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::{ExitHandler, Mechanism, PauseError, RunState, ThreadOptions, VcpuThread, Vcpus};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_paused_guest_makes_no_step_until_it_is_resumed,
        fault_d5_pauses_and_resumes_from_many_threads_leave_a_machine_that_runs,
        fault_d5_a_pause_waits_for_a_slow_device_and_names_the_vcpu_that_is_late,
        fault_d5_a_pause_is_answered_while_an_access_is_deferred,
        fault_d5_a_pause_beside_the_end_of_the_machine_comes_to_an_end,
        fault_d5_cpus_that_come_online_are_paused_with_the_rest,
        a_vcpu_does_not_wait_for_itself,
    ]
}

/// Longer than any pause may take here.
const LIMIT: Duration = Duration::from_secs(30);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn joined(thread: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| bail!("a thread of the trial panicked"))
}

/// Counts the writes to ports, each of which takes some time.
#[derive(Default)]
struct Device {
    writes: AtomicU64,
    /// How long the next write takes, and who is told that it has begun.
    slow: Mutex<Option<(Duration, Sender<()>)>>,
    /// Defers the next write, and tells who ends it.
    defer: Mutex<Option<Sender<Completer>>>,
}

impl ExitHandler for Device {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some((time, began)) = lock(&self.slow).take() {
            // The trial waits for it, unless it has failed.
            let _ = began.send(());
            thread::sleep(time);
        }
        let defer = lock(&self.defer).take()?;
        let (completer, access) = deferred();
        // As above; a completer that nobody takes ends the access.
        let _ = defer.send(completer);
        Some(access)
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// A machine whose vCPUs write to a port all the time.
struct Machine {
    vcpus: Vcpus,
    device: Arc<Device>,
    _memory: AddressSpace,
}

impl Machine {
    fn start(name: &str, started: u32, asleep: u32, mechanism: Mechanism) -> Result<Self> {
        let SmallMachine { vcpus, memory, .. } = SmallMachine::boot(&guest(name), started, asleep)?;
        let device = Arc::new(Device::default());
        let options = ThreadOptions { mechanism, ..ThreadOptions::default() };
        let threads = vcpus
            .into_iter()
            .map(|vcpu| VcpuThread::spawn(vcpu, Arc::clone(&device), options, |_, _| {}))
            .collect::<Result<Vec<_>, _>>()?;
        let vcpus = Vcpus::new(threads);
        vcpus.resume();
        Ok(Self { vcpus, device, _memory: memory })
    }

    fn exiting(count: u32) -> Result<Self> {
        Self::start("bench_exits_port_write", count, 0, Mechanism::default())
    }

    fn writes(&self) -> u64 {
        self.device.writes.load(Ordering::Relaxed)
    }

    fn ensure_running(&self) -> Result<()> {
        let before = self.writes();
        let start = std::time::Instant::now();
        while self.writes() == before {
            ensure!(start.elapsed() < LIMIT, "the guest does not go on");
            thread::yield_now();
        }
        Ok(())
    }
}

fn a_paused_guest_makes_no_step_until_it_is_resumed() -> Result<()> {
    for mechanism in [Mechanism::ImmediateExit, Mechanism::SignalMask] {
        let machine = Machine::start("bench_exits_port_write", 2, 0, mechanism)?;
        for _ in 0..rounds(200) {
            machine.ensure_running()?;
            machine.vcpus.pause(LIMIT)?;
            machine.vcpus.pause(LIMIT).context("a second pause")?;
            ensure!(machine.vcpus.run_state() == RunState::Paused);
            let writes = machine.writes();
            // What runs although it should not has the time to.
            thread::sleep(Duration::from_micros(100));
            ensure!(machine.writes() == writes, "the guest runs while it is paused");
            machine.vcpus.resume();
            machine.vcpus.resume();
            ensure!(machine.vcpus.run_state() == RunState::Running);
        }
        for counters in machine.vcpus.counters() {
            // Paused again before it has woken, a vCPU has one pause of the two.
            ensure!((1..=rounds(200) as u64).contains(&counters.pauses), "{counters:?}");
        }
    }
    Ok(())
}

fn fault_d5_pauses_and_resumes_from_many_threads_leave_a_machine_that_runs() -> Result<()> {
    let machine = Machine::exiting(4)?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..rounds(300) {
                        match machine.vcpus.pause(LIMIT) {
                            Ok(()) | Err(PauseError::Resumed) => {}
                            Err(error) => bail!(error),
                        }
                        machine.vcpus.resume();
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(joined)
    })?;
    machine.ensure_running()?;
    machine.vcpus.pause(LIMIT)?;
    ensure!(machine.vcpus.run_state() == RunState::Paused);
    Ok(())
}

fn fault_d5_a_pause_waits_for_a_slow_device_and_names_the_vcpu_that_is_late() -> Result<()> {
    let machine = Machine::exiting(1)?;
    let (began, begun) = channel();
    *lock(&machine.device.slow) = Some((Duration::from_millis(500), began));
    begun.recv_timeout(LIMIT).context("no slow write")?;
    let short = Duration::from_millis(5);
    let late = PauseError::NoAnswer { index: 0, limit: short };
    ensure!(machine.vcpus.pause(short) == Err(late.clone()), "a pause did not wait for the device");
    ensure!(late.to_string() == "vCPU 0 has not answered within 5ms", "{late}");
    ensure!(machine.vcpus.run_state() == RunState::Pausing);
    // The pause stays asked for: waiting again is enough.
    machine.vcpus.pause(LIMIT)?;
    machine.vcpus.resume();
    machine.ensure_running()
}

fn fault_d5_a_pause_is_answered_while_an_access_is_deferred() -> Result<()> {
    let machine = Machine::exiting(2)?;
    let (defer, completers) = channel();
    *lock(&machine.device.defer) = Some(defer);
    let completer = completers.recv_timeout(LIMIT).context("no access was deferred")?;
    machine.vcpus.pause(LIMIT)?;
    let writes = machine.writes();
    // Its end under the pause lets no guest go on.
    completer.complete();
    thread::sleep(Duration::from_millis(20));
    ensure!(machine.writes() == writes, "the guest runs while it is paused");
    machine.vcpus.resume();
    machine.ensure_running()?;
    ensure!(machine.vcpus.counters().iter().map(|counters| counters.deferred).sum::<u64>() == 1);
    Ok(())
}

fn fault_d5_a_pause_beside_the_end_of_the_machine_comes_to_an_end() -> Result<()> {
    for round in 0..rounds(200) {
        let machine = Machine::exiting(2)?;
        machine.ensure_running()?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let pausing = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    match machine.vcpus.pause(LIMIT) {
                        Ok(()) => machine.vcpus.resume(),
                        Err(PauseError::Ended { .. }) => return Ok(()),
                        Err(error) => bail!("round {round}: {error}"),
                    }
                }
                Ok(())
            });
            thread::sleep(Duration::from_micros(round as u64));
            machine.vcpus.request_stop();
            let result = joined(pausing);
            over.store(true, Ordering::Relaxed);
            result
        })?;
        // Performed before its end or not at all: it comes back.
        let _ = machine.vcpus.perform(0, |_| ());
    }
    Ok(())
}

/// The guest starts its other vCPUs while it is paused and resumed all the time.
fn fault_d5_cpus_that_come_online_are_paused_with_the_rest() -> Result<()> {
    for _ in 0..rounds(10) {
        let machine = Machine::start("smp_count", 1, 7, Mechanism::default())?;
        for _ in 0..50 {
            machine.vcpus.pause(LIMIT)?;
            machine.vcpus.resume();
        }
        machine.vcpus.pause(LIMIT)?;
        for index in 0..8 {
            machine.vcpus.perform(index, |vcpu| vcpu.regs().map(drop))??;
        }
    }
    Ok(())
}

fn a_vcpu_does_not_wait_for_itself() -> Result<()> {
    let machine = Arc::new(Machine::exiting(2)?);
    let other = Arc::clone(&machine);
    let result = machine.vcpus.perform(1, move |_| other.vcpus.pause(LIMIT))?;
    ensure!(result == Err(PauseError::OwnThread { index: 1 }), "{result:?}");
    Ok(())
}
