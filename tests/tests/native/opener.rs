//! The opener: the process that connects to sockets for a machine, what it is, and what becomes of one without the other.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{ControlSocket, PATIENCE, Process, RunningVm, TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        the_opener_has_a_filter_and_no_privileges_and_one_socket,
        only_a_machine_that_connects_has_an_opener,
        the_opener_ends_with_its_machine,
        the_opener_ends_with_a_monitor_that_is_killed,
        a_machine_goes_on_without_its_opener,
        signals_of_all_processes_are_the_monitors,
        a_stream_that_is_lost_is_connected_to_again,
        a_stream_is_connected_to_again_from_a_jail,
        a_directory_that_is_not_there_is_told_of,
    ]
}

/// Halts until it is stopped, when it has said so.
const HALTS: &str = "bench_halt";
const RUNS: &str = "\x1e";

/// A machine with a socket device, which runs.
fn with_vsock(place: &ControlSocket) -> Result<(RunningVm, PathBuf)> {
    let directory = place.path().parent().context("a directory")?.canonicalize()?;
    let args = format!("--seccomp on --vsock cid=3,path={}", directory.join("vsock").display());
    let mut vm = place.start(TestVm::guest(HALTS).args(&args))?;
    vm.wait_for_output(RUNS)?;
    Ok((vm, directory))
}

fn opener(monitor: Process) -> Result<Process> {
    let children = monitor.children()?;
    ensure!(children.len() == 1, "{children:?}");
    ensure!(children[0].threads()? == ["vmm-opener"], "{:?}", children[0].threads()?);
    Ok(children[0])
}

/// Waits until `process` has ended, whether or not it has been taken leave of.
fn ends(process: Process) -> Result<()> {
    until(Instant::now() + PATIENCE, "the end of a process", || {
        let state = process.status("State").unwrap_or_else(|_| "X".into());
        Ok(state.starts_with(['Z', 'X']).then_some(()))
    })
}

fn quits(vm: RunningVm, place: &ControlSocket) -> Result<()> {
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn the_opener_has_a_filter_and_no_privileges_and_one_socket() -> Result<()> {
    const NONE: &str = "0000000000000000";
    let place = ControlSocket::new()?;
    let (vm, directory) = with_vsock(&place)?;
    let opener = opener(vm.process())?;
    for (key, wanted) in
        [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", NONE), ("CapPrm", NONE), ("CapBnd", NONE)]
    {
        let value = opener.status(key)?;
        // The bounding set is emptied by who may do that.
        ensure!(value == wanted || key == "CapBnd" && value != NONE, "{key} is {value}");
    }
    let links = fs::read_dir(format!("/proc/{}/fd", opener.pid()))?;
    let links = links.map(|link| Ok(fs::read_link(link?.path())?)).collect::<Result<Vec<_>>>()?;
    let (sockets, others): (Vec<_>, Vec<_>) =
        links.into_iter().partition(|link| link.to_string_lossy().starts_with("socket:"));
    ensure!(sockets.len() == 1 && others == [directory], "{sockets:?} and {others:?}");
    quits(vm, &place)
}

fn only_a_machine_that_connects_has_an_opener() -> Result<()> {
    let place = ControlSocket::new()?;
    let mut vm = place.start(TestVm::guest(HALTS).args("--seccomp on"))?;
    vm.wait_for_output(RUNS)?;
    ensure!(vm.process().children()?.is_empty(), "{:?}", vm.process().children()?);
    quits(vm, &place)
}

fn the_opener_ends_with_its_machine() -> Result<()> {
    let place = ControlSocket::new()?;
    let (vm, _) = with_vsock(&place)?;
    let opener = opener(vm.process())?;
    quits(vm, &place)?;
    // The monitor has waited for it.
    ensure!(opener.status("State").is_err(), "it is {:?}", opener.status("State"));
    Ok(())
}

fn the_opener_ends_with_a_monitor_that_is_killed() -> Result<()> {
    let place = ControlSocket::new()?;
    let (vm, _) = with_vsock(&place)?;
    let opener = opener(vm.process())?;
    vm.signal(Signal::SIGKILL)?;
    ends(opener)
}

fn a_machine_goes_on_without_its_opener() -> Result<()> {
    let place = ControlSocket::new()?;
    let (vm, _) = with_vsock(&place)?;
    let opener = opener(vm.process())?;
    opener.signal(Signal::SIGKILL)?;
    ends(opener)?;
    place.reaches("running")?;
    quits(vm, &place)
}

fn signals_of_all_processes_are_the_monitors() -> Result<()> {
    let place = ControlSocket::new()?;
    let (vm, _) = with_vsock(&place)?;
    let opener = opener(vm.process())?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP] {
        opener.signal(signal)?;
    }
    place.reaches("running")?;
    let state = opener.status("State")?;
    ensure!(state.starts_with('S'), "it is {state}");
    quits(vm, &place)
}

/// The machine of `vm`, whose stream ends at `path`, loses it and has it again.
fn loses_its_stream(vm: TestVm, path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let next = || -> Result<UnixStream> {
        until(Instant::now() + PATIENCE, "a connection", || {
            Ok(listener.accept().ok().map(|(stream, _)| stream))
        })
    };
    let net = format!("--net passt={} --seccomp on", path.display());
    let mut vm = vm.args(&net).spawn()?;
    let first = next()?;
    vm.wait_for_output(RUNS)?;
    drop(first);
    let second = next()?;
    drop(second);
    next()?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_stream_that_is_lost_is_connected_to_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    loses_its_stream(TestVm::guest(HALTS), &directory.path().join("passt"))
}

fn a_stream_is_connected_to_again_from_a_jail() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path().canonicalize()?;
    let kernel = directory.join("guest");
    fs::copy(vmm_tests::harness::guest(HALTS), &kernel)?;
    let vm = TestVm::bare().arg("--kernel").arg(&kernel).in_jail("");
    loses_its_stream(vm, &directory.join("passt"))
}

fn a_directory_that_is_not_there_is_told_of() -> Result<()> {
    let vm = TestVm::guest(HALTS).args("--net passt=/nowhere/passt").run()?.ensure_code(3)?;
    vm.ensure_message(&[
        "cannot connect to /nowhere/passt: start who has the other end first",
        "No such file",
    ])?;
    Ok(())
}
