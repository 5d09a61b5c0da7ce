//! The user's terminal: given to the guest in raw mode, and given back on every way out.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::sys::termios::LocalFlags;
use vmm_tests::harness::{RunningVm, Terminal, TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        ctrl_a_x_quits,
        ctrl_a_x_quits_also_when_the_guest_reads_no_input,
        ctrl_a_h_shows_help,
        keys_reach_the_guest_as_they_are_typed,
        the_terminal_is_given_back_at_every_end,
        the_terminal_is_given_back_when_a_signal_kills,
        the_terminal_is_untouched_by_a_kernel_that_cannot_be_loaded,
        fault_d4_the_guest_goes_on_when_the_terminal_hangs_up,
        fault_d4_a_stop_and_a_continue_leave_the_terminal_to_the_guest,
        a_background_process_is_not_stopped,
    ]
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts `vm` as the leader of a session on `terminal`.
fn on(terminal: &Terminal, vm: TestVm) -> Result<RunningVm> {
    vm.through("setsid --ctty").stdin(terminal.end()?).stdout(terminal.end()?).stderr(terminal.end()?).spawn()
}

/// A halted guest on a terminal; what it says when it runs was shown.
fn halted() -> Result<(Terminal, RunningVm)> {
    let mut terminal = Terminal::new()?;
    let vm = on(&terminal, TestVm::guest("bench_halt").deadline(PATIENCE))?;
    terminal.wait_for("\x1e", PATIENCE)?;
    Ok((terminal, vm))
}

fn is_raw(terminal: &Terminal) -> Result<bool> {
    Ok(!terminal.mode()?.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
}

fn ctrl_a_x_quits() -> Result<()> {
    let (terminal, vm) = halted()?;
    terminal.type_keys(b"\x01x")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn ctrl_a_x_quits_also_when_the_guest_reads_no_input() -> Result<()> {
    let (terminal, mut vm) = halted()?;
    // More than the guest's FIFO holds, and the keys apart from it.
    for _ in 0..4 {
        terminal.type_keys(&[b'k'; 50])?;
        vm.goes_on_for(Duration::from_millis(20))?;
    }
    terminal.type_keys(b"\x01x")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn ctrl_a_h_shows_help() -> Result<()> {
    let (mut terminal, mut vm) = halted()?;
    terminal.type_keys(b"\x01h")?;
    terminal.wait_for("Ctrl-A X  end the machine", PATIENCE)?;
    vm.goes_on_for(Duration::from_millis(100))?;
    terminal.type_keys(b"\x01")?;
    terminal.type_keys(b"X")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn keys_reach_the_guest_as_they_are_typed() -> Result<()> {
    let mut terminal = Terminal::new()?;
    let vm = on(&terminal, TestVm::guest("serial_echo_irq"))?;
    terminal.wait_for("ready", PATIENCE)?;
    // In the kernel's own mode the first three would be an interrupt, an erased letter and a stop of the output.
    terminal.type_keys(b"a\x03b\x7fc\x13d\x01\x01e")?;
    terminal.wait_for("a\x03b\x7fc\x13d\x01e", PATIENCE)?;
    terminal.type_keys(b"\x04")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn the_terminal_is_given_back_at_every_end() -> Result<()> {
    let ends = [("bench_reset", "", 0), ("triple_fault", "--cpus 2", 4), ("port_write", "", 65)];
    for (guest, args, code) in ends {
        let terminal = Terminal::new()?;
        let before = (terminal.mode()?, terminal.flags()?);
        let vm = TestVm::guest(guest).args(args).cmdline("f4 1 1");
        on(&terminal, vm)?.wait()?.ensure_code(code).context(guest)?;
        ensure!((terminal.mode()?, terminal.flags()?) == before, "{guest} left the terminal changed");
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (terminal, vm) = halted()?;
        ensure!(is_raw(&terminal)?, "the terminal is not in raw mode");
        vm.signal(signal)?;
        vm.wait()?.ensure_code(0).context(signal)?;
        ensure!(terminal.mode()? == Terminal::new()?.mode()?, "{signal} left the terminal changed");
    }
    let (terminal, vm) = halted()?;
    terminal.type_keys(b"\x01x")?;
    vm.wait()?.ensure_code(0)?;
    ensure!(terminal.mode()? == Terminal::new()?.mode()?, "Ctrl-A X left the terminal changed");
    Ok(())
}

fn the_terminal_is_given_back_when_a_signal_kills() -> Result<()> {
    for signal in [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGALRM] {
        let (terminal, vm) = halted()?;
        ensure!(is_raw(&terminal)?, "the terminal is not in raw mode");
        vm.signal(signal)?;
        vm.wait()?.ensure_signal(signal)?;
        let mode = terminal.mode()?;
        ensure!(mode == Terminal::new()?.mode()?, "{signal} left the terminal changed: {mode:?}");
    }
    Ok(())
}

fn the_terminal_is_untouched_by_a_kernel_that_cannot_be_loaded() -> Result<()> {
    let kernel = tempfile::NamedTempFile::new()?;
    std::fs::write(kernel.path(), [0x55; 4096])?;
    let mut terminal = Terminal::new()?;
    let before = (terminal.mode()?, terminal.flags()?);
    let vm = on(&terminal, TestVm::bare().arg("--kernel").arg(kernel.path()))?;
    terminal.wait_for("in no known format", PATIENCE)?;
    vm.wait()?.ensure_code(2)?;
    ensure!((terminal.mode()?, terminal.flags()?) == before, "the terminal is changed");
    Ok(())
}

fn fault_d4_the_guest_goes_on_when_the_terminal_hangs_up() -> Result<()> {
    let (terminal, mut vm) = halted()?;
    drop(terminal);
    thread::sleep(Duration::from_millis(100));
    let before = vm.process().cpu_time()?;
    vm.goes_on_for(Duration::from_millis(500))?;
    let used = vm.process().cpu_time()?.saturating_sub(before);
    ensure!(used < Duration::from_millis(50), "a terminal that is gone takes {used:?} of half a second");
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;

    let mut terminal = Terminal::new()?;
    let vm = on(&terminal, TestVm::guest("serial_flood").cmdline("8000"))?;
    terminal.wait_for("ffff", PATIENCE)?;
    drop(terminal);
    vm.wait()?.ensure_code(69)?;
    Ok(())
}

fn fault_d4_a_stop_and_a_continue_leave_the_terminal_to_the_guest() -> Result<()> {
    let (terminal, vm) = halted()?;
    let raw = terminal.mode()?;
    vm.signal(Signal::SIGSTOP)?;
    thread::sleep(Duration::from_millis(100));
    ensure!(vm.process().is_stopped()?, "not stopped");
    // A shell takes the terminal back when it stops a job.
    terminal.set_mode(&Terminal::new()?.mode()?)?;
    vm.signal(Signal::SIGCONT)?;
    let deadline = Instant::now() + PATIENCE;
    until(deadline, "raw mode", || Ok((terminal.mode()? == raw).then_some(())))?;
    terminal.type_keys(b"\x01x")?;
    vm.wait()?.ensure_code(0)?;
    ensure!(terminal.mode()? == Terminal::new()?.mode()?, "the terminal is changed");
    Ok(())
}

fn a_background_process_is_not_stopped() -> Result<()> {
    let mut terminal = Terminal::new()?;
    let before = terminal.mode()?;
    // With job control (`set -m`), what is started with `&` is not in the foreground.
    let script = "set -m; \"$@\" & wait $!; echo \"code $?\"";
    let vm = TestVm::guest("port_write").cmdline("f4 1 1").through("setsid --ctty").through_shell(script);
    let vm = vm.stdin(terminal.end()?).stdout(terminal.end()?).stderr(terminal.end()?).spawn()?;
    terminal.wait_for("code 65\r\n", PATIENCE)?;
    vm.wait()?.ensure_code(0)?;
    ensure!(terminal.mode()? == before, "the terminal is changed");
    Ok(())
}
