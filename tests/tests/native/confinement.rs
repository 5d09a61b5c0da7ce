//! Confinement: what a machine that runs has given up, without being asked.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{ControlSocket, Process, RunningVm, TestVm, stress};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        each_thread_has_a_filter_and_no_privileges,
        without_filters_nothing_else_is_different,
        what_is_only_logged_is_a_filter_too,
        a_machine_may_open_what_it_is_started_with_and_nothing_later,
        fault_d7_machines_in_turn_leave_nothing_behind,
        fault_d7_machines_at_once_leave_nothing_behind,
    ]
}

/// Says something when it runs, and halts until it is stopped.
const HALTS: &str = "bench_halt";
const RUNS: &str = "\x1e";

/// Everything that can be had without a network interface.
const EVERYTHING: &str =
    "--cpus 2 --entropy --selftest --balloon size=1M --memory-hotplug size=128M --virtio-console null";

/// A machine with one of each device, which runs.
fn machine(place: &ControlSocket, args: &str) -> Result<RunningVm> {
    let directory = place.path().parent().context("a directory")?;
    let disk = |name: &str| -> Result<String> {
        let path = directory.join(name);
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.set_len(1 << 20)?;
        Ok(path.display().to_string())
    };
    let (rings, threads) = (disk("rings")?, disk("threads")?);
    let vsock = directory.join("vsock");
    let args = format!(
        "{EVERYTHING} --disk path={rings},format=raw --disk path={threads},format=raw,engine=threads \
         --vsock cid=3,path={} {args}",
        vsock.display()
    );
    let mut vm = place.start(TestVm::guest(HALTS).args(&args))?;
    vm.wait_for_output(RUNS)?;
    place.reaches("running")?;
    Ok(vm)
}

/// Each thread with the lines of its status that `wanted` names.
fn statuses(process: Process, wanted: &[&str]) -> Result<Vec<(String, Vec<String>)>> {
    let of_task = |task: nix::unistd::Pid| -> Result<_> {
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/task/{task}/{name}", process.pid()));
        let status = file("status")?;
        let value = |key: &&str| {
            let line = status.lines().find_map(|line| line.strip_prefix(*key)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("no {key}"))
        };
        Ok((file("comm")?.trim().to_owned(), wanted.iter().map(value).collect::<Result<_>>()?))
    };
    process.tasks()?.into_iter().map(of_task).collect()
}

const NONE: &str = "0000000000000000";
const PRIVILEGES: [&str; 5] = ["NoNewPrivs", "CapEff", "CapPrm", "CapInh", "CapAmb"];

fn ensure_unprivileged(vm: &RunningVm) -> Result<()> {
    for (name, values) in statuses(vm.process(), &PRIVILEGES)? {
        ensure!(values == ["1", NONE, NONE, NONE, NONE], "{name}: {PRIVILEGES:?} are {values:?}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", vm.process().pid()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
    let words: Vec<_> = core.split_whitespace().collect();
    ensure!(words[4..6] == ["0", "0"], "{core}");
    Ok(())
}

fn ensure_filters(vm: &RunningVm, mode: &str) -> Result<()> {
    let threads = statuses(vm.process(), &["Seccomp"])?;
    for (name, values) in &threads {
        ensure!(values == &[mode], "{name} has {values:?}");
    }
    for name in [
        "vcpu0",
        "vcpu1",
        "console",
        "control",
        "virtio",
        "disk",
        "vsock",
        "balloon",
        "virtio-mem",
        "nursery",
    ] {
        ensure!(threads.iter().any(|(thread, _)| thread == name), "no {name} in {threads:?}");
    }
    Ok(())
}

fn each_thread_has_a_filter_and_no_privileges() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = machine(&place, "--seccomp on")?;
    ensure_filters(&vm, "2")?;
    ensure_unprivileged(&vm)?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn without_filters_nothing_else_is_different() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = machine(&place, "--seccomp off")?;
    ensure_filters(&vm, "0")?;
    ensure_unprivileged(&vm)?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn what_is_only_logged_is_a_filter_too() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = machine(&place, "--seccomp log")?;
    ensure_filters(&vm, "2")?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// A violation in a machine that runs, made from outside: a tracer has a thread make a call that is not in its table.
fn a_machine_may_open_what_it_is_started_with_and_nothing_later() -> Result<()> {
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let place = ControlSocket::new()?;
    let vm = machine(&place, "--seccomp on")?;
    // One that sleeps in a system call, which is made again as another when it goes on.
    let tasks = statuses(vm.process(), &["Pid"])?;
    let (_, pid) = tasks.iter().find(|(name, _)| name == "balloon").context("no balloon")?;
    let task = nix::unistd::Pid::from_raw(pid[0].parse()?);
    ptrace::seize(task, ptrace::Options::empty())?;
    ptrace::interrupt(task)?;
    waitpid(task, Some(WaitPidFlag::__WALL))?;
    let mut registers = ptrace::getregs(task)?;
    // The two bytes before are the instruction that enters the kernel.
    registers.rip -= 2;
    registers.rax = u64::try_from(libc::SYS_openat)?;
    registers.orig_rax = u64::MAX;
    ptrace::setregs(task, registers)?;
    ptrace::detach(task, None)?;
    let vm = vm.wait()?.ensure_code(5)?;
    vm.ensure_message(&["the thread balloon (", "asked the kernel for openat(", "--seccomp log"])?;
    ensure!(!place.path().exists(), "the control socket is left");
    Ok(())
}

/// Runs a machine that resets at once.
fn short_life() -> Result<()> {
    let vm =
        TestVm::guest("bench_reset").args("--cpus 2 --entropy --seccomp on").through("setsid").spawn()?;
    let group = vm.process().pid();
    vm.wait()?.ensure_code(0)?.ensure_message(&[])?;
    ensure!(nix::sys::signal::killpg(group, None::<Signal>).is_err(), "a process is left");
    Ok(())
}

fn fault_d7_machines_in_turn_leave_nothing_behind() -> Result<()> {
    let before = leftovers()?;
    for run in 0..stress(10_000) {
        short_life().with_context(|| format!("run {run}"))?;
    }
    ensure!(leftovers()? == before, "{before:?} and then {:?}", leftovers()?);
    Ok(())
}

fn fault_d7_machines_at_once_leave_nothing_behind() -> Result<()> {
    let places: Vec<_> = (0..stress(500)).map(|_| ControlSocket::new()).collect::<Result<_>>()?;
    let start = |place: &ControlSocket| -> Result<RunningVm> {
        let mut vm = place.start(TestVm::guest(HALTS).args("--memory 16M --entropy --seccomp on"))?;
        vm.wait_for_output(RUNS)?;
        Ok(vm)
    };
    // All at once, so far as the host can.
    let machines = thread::scope(|scope| {
        let starting: Vec<_> = places.iter().map(|place| scope.spawn(move || start(place))).collect();
        let ended = starting.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|machine| machine.unwrap_or_else(|_| bail!("a panic"))).collect::<Result<Vec<_>>>()
    })?;
    for vm in &machines {
        vm.signal(Signal::SIGTERM)?;
    }
    for vm in machines {
        vm.wait()?.ensure_code(0)?;
    }
    for place in &places {
        let directory = place.path().parent().context("a directory")?;
        let left: Vec<_> = fs::read_dir(directory)?.collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

/// What machines could leave on the host: shared memory and network interfaces.
fn leftovers() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for directory in ["/dev/shm", "/sys/class/net"] {
        for entry in fs::read_dir(directory)? {
            names.push(entry?.path().display().to_string());
        }
    }
    names.sort();
    Ok(names)
}
