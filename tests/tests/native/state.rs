//! State: a vCPU that is saved and restored into a new VM, wherever it is stopped, goes on as if nothing had been.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use vmm_core::Kvm;
use vmm_memory::AddressSpace;
use vmm_tests::harness::{guest, is_pvm, rounds, until};
use vmm_tests::sequence::Sequence;
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::x86_64::{StateError, StateVersion, VcpuState};
use vmm_vcpu::{ExitHandler, RunVcpu, ThreadOptions, Vcpu, VcpuEnd, VcpuExit, VcpuThread, Vcpus};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        every_register_survives_moves_at_any_moment,
        x87_and_sse_registers_survive_moves_at_any_moment,
        fault_e5_every_deadline_is_one_interrupt_across_moves,
        a_cpu_survives_moves_in_every_state_of_its_start,
        fault_d5_a_guest_that_is_stopped_at_every_step_sees_every_value_once,
        fault_d5_a_guest_that_is_paused_at_any_moment_sees_every_value_once,
        fault_e2_a_state_that_does_not_fit_is_refused,
        the_tsc_goes_on_from_its_saved_value,
        every_msr_that_kvm_lists_is_saved_or_named,
    ]
}

const IA32_TSC: u32 = 0x10;

/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Enough for the guests, and little to copy.
const RAM_SIZE: u64 = 4 << 20;

/// Whether this host's KVM supports XSAVE for guests.
fn has_xsave() -> Result<bool> {
    const XSAVE: u32 = 1 << 26;
    let supported = kvm()?.supported_cpuid()?;
    Ok(supported.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & XSAVE != 0))
}

fn kvm() -> Result<Kvm> {
    Ok(Kvm::open(Path::new("/dev/kvm"))?)
}

/// A machine with one vCPU that begins, and `asleep` that wait for INIT and SIPI.
fn boot(name: &str, asleep: u32) -> Result<SmallMachine> {
    SmallMachine::boot_in(RAM_SIZE, &guest(name), 1, asleep)
}

/// A new machine with the memory and the states of one that is not run any more. The states take the way over their serde
/// form, and the new vCPUs are asked for them again.
fn moved(memory: &AddressSpace, states: &[VcpuState]) -> Result<SmallMachine> {
    let form = serde_json::to_vec(states)?;
    let machine = SmallMachine::restored(memory, &serde_json::from_slice::<Vec<_>>(&form)?)?;
    for (state, vcpu) in states.iter().zip(&machine.vcpus) {
        ensure_same(state, &vcpu.save()?)?;
    }
    Ok(machine)
}

/// Compares two states of a vCPU that did not run in between.
fn ensure_same(before: &VcpuState, after: &VcpuState) -> Result<()> {
    let (before, after) = (comparable(before), comparable(after));
    let mut differences = Vec::new();
    compare("", &serde_json::to_value(&before)?, &serde_json::to_value(&after)?, &mut differences);
    ensure!(differences.is_empty(), "restored, it is another state: {}", differences.join(", "));
    ensure!(before == after, "the states differ in what their form does not have");
    Ok(())
}

/// Names each place in which two values differ.
fn compare(place: &str, before: &Value, after: &Value, differences: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                compare(&format!("{place}/{name}"), value, &after[name], differences);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (number, (before, after)) in before.iter().zip(after).enumerate() {
                compare(&format!("{place}/{number}"), before, after, differences);
            }
        }
        _ if before == after => {}
        _ => differences.push(format!("{place} was {before}, is {after}")),
    }
}

/// The state without what counts on, which is the TSC, the times of Hyper-V's interface and the current count of the
/// local APIC's timer, and without the processor priority, which KVM computes anew when somebody asks for it.
fn comparable(state: &VcpuState) -> VcpuState {
    const HV_X64_MSR_VP_RUNTIME: u32 = 0x4000_0010;
    const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
    const COUNTING: [u32; 3] = [IA32_TSC, HV_X64_MSR_VP_RUNTIME, HV_X64_MSR_TIME_REF_COUNT];
    const PROCESSOR_PRIORITY: Range<usize> = 0xa0..0xa4;
    const CURRENT_COUNT: Range<usize> = 0x390..0x394;
    let mut state = state.clone();
    state.msrs.retain(|msr| !COUNTING.contains(&msr.index));
    for register in [PROCESSOR_PRIORITY, CURRENT_COUNT] {
        state.lapic[register].fill(0);
    }
    state
}

/// Numbers without a pattern, the same in each run.
struct Random(u64);

impl Random {
    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A machine whose vCPUs have threads.
struct Running {
    vcpus: Vcpus,
    count: u32,
    ended: Receiver<VcpuEnd>,
    memory: AddressSpace,
}

impl Running {
    fn start(machine: SmallMachine, device: &Arc<Sequence>) -> Result<Self> {
        let SmallMachine { vcpus, memory, .. } = machine;
        let count = u32::try_from(vcpus.len())?;
        let (sender, ended) = channel();
        let threads = vcpus.into_iter().map(|vcpu| {
            let sender = sender.clone();
            VcpuThread::spawn(vcpu, Arc::clone(device), ThreadOptions::default(), move |_, end| {
                // The receiver is there, unless the trial is over.
                let _ = sender.send(end);
            })
        });
        let vcpus = Vcpus::new(threads.collect::<Result<_, _>>()?);
        vcpus.resume();
        Ok(Self { vcpus, count, ended, memory })
    }

    fn pause(&self, device: &Sequence) -> Result<()> {
        if let Err(error) = self.vcpus.pause(DEADLINE) {
            bail!("{error}: {:?}", self.ended.recv_timeout(DEADLINE));
        }
        device.ensure_right()
    }

    fn moved(self, device: &Arc<Sequence>) -> Result<Self> {
        let states = (0..self.count).map(|index| Ok(self.vcpus.perform(index, |vcpu| vcpu.save())??));
        let states: Vec<_> = states.collect::<Result<_>>()?;
        drop(self.vcpus);
        Self::start(moved(&self.memory, &states)?, device)
    }
}

/// Runs a guest that checks itself, moves it `moves` times after at most `longest` each, and lets it go on.
fn move_about(machine: SmallMachine, moves: usize, longest: Duration) -> Result<()> {
    let device = Arc::new(Sequence::new(has_xsave()?));
    let mut random = Random(1);
    let mut machine = Running::start(machine, &device)?;
    for number in 0..moves {
        let micros = random.below(u64::try_from(longest.as_micros())?);
        std::thread::sleep(Duration::from_micros(micros));
        machine.pause(&device).with_context(|| format!("move {number}"))?;
        machine = machine.moved(&device).with_context(|| format!("move {number}"))?;
    }
    let done = device.rounds();
    until(Instant::now() + DEADLINE, "a guest that goes on after the last move", || {
        device.ensure_right()?;
        Ok((device.rounds() >= done + 3).then_some(()))
    })?;
    machine.pause(&device)
}

fn every_register_survives_moves_at_any_moment() -> Result<()> {
    move_about(boot("state_registers", 0)?, rounds(100), Duration::from_millis(5))
}

fn x87_and_sse_registers_survive_moves_at_any_moment() -> Result<()> {
    move_about(boot("state_fpu", 0)?, rounds(50), Duration::from_millis(3))
}

fn fault_e5_every_deadline_is_one_interrupt_across_moves() -> Result<()> {
    move_about(boot("state_deadline", 0)?, rounds(150), Duration::from_millis(1))
}

/// The second CPU is started again and again, so that it is moved waiting for INIT, between INIT and SIPI, running and
/// halted.
fn a_cpu_survives_moves_in_every_state_of_its_start() -> Result<()> {
    move_about(boot("state_startup", 1)?, rounds(150), Duration::from_micros(500))
}

/// Serves one exit on this thread.
fn serve(vcpu: &mut Vcpu, device: &Sequence) -> Result<()> {
    match VcpuExit::decode(vcpu.page()) {
        VcpuExit::PortRead { port, size, data } => device.port_read(port, size, data),
        VcpuExit::PortWrite { port, size, data } => drop(device.port_write(port, size, data)),
        VcpuExit::MmioRead { address, data } => device.mmio_read(address, data),
        VcpuExit::MmioWrite { address, data } => drop(device.mmio_write(address, data)),
        other => bail!("{other:?}"),
    }
    Ok(())
}

/// Enters the guest once. `true`: it was an exit, and was served; `false`: KVM has nothing more to hand out.
fn enter(vcpu: &mut Vcpu, device: &Sequence) -> Result<bool> {
    match vcpu.run() {
        Ok(()) => serve(vcpu, device).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error).context("KVM_RUN"),
    }
}

/// Stopped after each exit: KVM completes the access and runs nothing further. One time in forty the machine is
/// moved then.
fn fault_d5_a_guest_that_is_stopped_at_every_step_sees_every_value_once() -> Result<()> {
    let device = Sequence::default();
    let mut random = Random(2);
    let (mut vcpu, mut memory) = boot("state_io", 0)?.into_one();
    for step in 0..rounds(10_000) {
        let step = || format!("step {step}");
        ensure!(enter(&mut vcpu, &device)?, "{}: interrupted by nobody", step());
        vcpu.immediate_exit().set();
        while enter(&mut vcpu, &device)? {}
        ensure!(vcpu.immediate_exit().take(), "{}: the byte was taken back", step());
        device.ensure_right().with_context(step)?;
        if random.below(40) == 0 {
            let state = vcpu.save()?;
            drop(vcpu);
            (vcpu, memory) = moved(&memory, &[state]).with_context(step)?.into_one();
        }
    }
    ensure!(device.rounds() > 0, "not one round of the guest");
    Ok(())
}

/// Paused wherever the kick meets it, and moved.
fn fault_d5_a_guest_that_is_paused_at_any_moment_sees_every_value_once() -> Result<()> {
    move_about(boot("state_io", 0)?, rounds(150), Duration::from_micros(2000))
}

fn fault_e2_a_state_that_does_not_fit_is_refused() -> Result<()> {
    let (vcpu, _memory) = boot("state_io", 0)?.into_one();
    let state = vcpu.save()?;
    let (fresh, _memory) = SmallMachine::empty(&kvm()?, RAM_SIZE, 1)?.into_one();
    let refused = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = state.clone();
        change(&mut state);
        fresh.restore(&state).err().context("not refused")
    };
    let StateVersion { major, minor } = state.version;
    let error = refused(&|state| state.version = StateVersion { major: major + 1, minor })?;
    ensure!(matches!(error, StateError::Version { .. }), "{error}");
    let error = refused(&|state| state.version = StateVersion { major, minor: minor + 1 })?;
    ensure!(matches!(error, StateError::Version { .. }), "{error}");
    let error = refused(&|state| state.index = 1)?;
    ensure!(matches!(error, StateError::Index { index: 0, saved: 1 }), "{error}");
    let error = refused(&|state| state.cpuid.iter_mut().for_each(|entry| entry.ebx = u32::MAX))?;
    ensure!(matches!(&error, StateError::Cpuid { differences, .. } if !differences.is_empty()), "{error}");
    let error = refused(&|state| state.lapic.clear())?;
    ensure!(matches!(error, StateError::Length { part: "lapic", .. }), "{error}");
    fresh.restore(&state)?;
    ensure_same(&state, &fresh.save()?)
}

fn tsc(state: &mut VcpuState) -> Result<&mut u64> {
    let msr = state.msrs.iter_mut().find(|msr| msr.index == IA32_TSC);
    Ok(&mut msr.context("no TSC in the state")?.value)
}

fn the_tsc_goes_on_from_its_saved_value() -> Result<()> {
    /// Further than any host has come.
    const SAVED: u64 = 1 << 60;
    let (vcpu, memory) = boot("state_io", 0)?.into_one();
    let mut state = vcpu.save()?;
    drop(vcpu);
    *tsc(&mut state)? = SAVED;
    let (vcpu, _memory) = moved(&memory, &[state])?.into_one();
    let found = *tsc(&mut vcpu.save()?)?;
    if found < SAVED && is_pvm() {
        writeln!(io::stdout(), "KVM-PVM: guests have the host's TSC, {found:#x}, whatever is restored")?;
        return Ok(());
    }
    ensure!(found >= SAVED, "the TSC is {found:#x}");
    Ok(())
}

/// What a host's KVM lists and does not let be read is not in a state. That is said, for whoever reads the log.
fn every_msr_that_kvm_lists_is_saved_or_named() -> Result<()> {
    let listed = kvm()?.msr_indices()?;
    let (vcpu, _memory) = boot("state_io", 0)?.into_one();
    let saved: BTreeSet<u32> = vcpu.save()?.msrs.iter().map(|msr| msr.index).collect();
    let unread: Vec<String> =
        listed.iter().filter(|index| !saved.contains(index)).map(|index| format!("{index:#x}")).collect();
    let (listed, others) = (listed.len(), saved.len() + unread.len() - listed.len());
    writeln!(
        io::stdout(),
        "KVM lists {listed} MSRs, {others} others are saved; listed and not readable: [{}]",
        unread.join(" ")
    )?;
    // TSC, LSTAR, KERNEL_GS_BASE, PAT, MTRR default type: without these no guest goes on.
    for needed in [IA32_TSC, 0xc000_0082, 0xc000_0102, 0x277, 0x2ff] {
        ensure!(saved.contains(&needed), "MSR {needed:#x} is not saved");
    }
    Ok(())
}
