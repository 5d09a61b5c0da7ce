//! Ends: every way out that a kernel knows gives the exit code that is documented.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport, RunningVm};

use super::shell::{Port, Shell};
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: [Shape; 1] = [Shape::new(KernelFormat::Vmlinux, 1)];
    const TWO: [Shape; 1] = [Shape::new(KernelFormat::BzImage, 2)];
    crate::trials![
        a_poweroff_ends_with_0 on TWO,
        a_reboot_as_the_kernel_prefers_ends_with_0 on TWO,
        a_reboot_through_acpi_ends_with_0 on ONE,
        a_reboot_through_the_keyboard_controller_ends_with_0 on ONE,
        a_reboot_through_port_cf9_ends_with_0 on ONE,
        a_reboot_by_triple_fault_ends_with_4 on ONE,
        a_reboot_by_triple_fault_ends_with_0_if_that_is_a_reset on TWO,
        a_panic_ends_with_4_and_names_pvpanic on ONE,
        sigterm_presses_the_power_button on TWO,
        a_guest_that_ignores_sigterm_is_stopped_after_the_grace_time on ONE,
        a_guest_that_ignores_sigint_is_stopped_after_the_grace_time on ONE,
        a_second_sigterm_stops_at_once on TWO,
        a_guest_that_cannot_hear_the_button_is_stopped_at_once on ONE,
        a_guest_that_restarts_lives_until_sigterm on ONE,
        a_guest_that_restarts_finds_the_same_machine on TWO,
        a_guest_that_restarts_finds_the_same_machine_with_the_split_irqchip on TWO,
    ]
}

/// More than any trial takes.
const LONG: Duration = Duration::from_secs(50);

/// The guest ends by itself; `how`: what the log calls the way.
fn ends(guest: &LinuxGuest, (action, words): (&str, &str), how: &str) -> Result<()> {
    let vm = guest.vm(action, words).args("--log-level info").run()?;
    vm.ensure_code(0)?.ensure_message(&["the machine has ended", how])?;
    Ok(())
}

fn a_poweroff_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    ends(guest, ("poweroff", ""), "ACPI S5")
}

fn a_reboot_as_the_kernel_prefers_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    ends(guest, ("reboot", ""), "Reset(")
}

fn a_reboot_through_acpi_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    ends(guest, ("reboot", "reboot=a"), "ACPI reset register")
}

fn a_reboot_through_the_keyboard_controller_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    ends(guest, ("reboot", "reboot=k"), "i8042")
}

fn a_reboot_through_port_cf9_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    ends(guest, ("reboot", "reboot=p"), "port 0xcf9")
}

fn a_reboot_by_triple_fault_ends_with_4(guest: &LinuxGuest) -> Result<()> {
    guest.vm("reboot", "reboot=t").run()?.ensure_code(4)?.ensure_message(&["triple fault"])?;
    Ok(())
}

fn a_reboot_by_triple_fault_ends_with_0_if_that_is_a_reset(guest: &LinuxGuest) -> Result<()> {
    let vm = guest.vm("reboot", "reboot=t").args("--on-triple-fault reset --log-level info").run()?;
    vm.ensure_code(0)?.ensure_message(&["Reset(\"triple fault\")"])?;
    Ok(())
}

fn a_panic_ends_with_4_and_names_pvpanic(guest: &LinuxGuest) -> Result<()> {
    guest.vm("panic", "").run()?.ensure_code(4)?.ensure_message(&["the guest crashed", "pvpanic"])?;
    Ok(())
}

fn sigterm_presses_the_power_button(guest: &LinuxGuest) -> Result<()> {
    let mut vm = guest.vm("button", "").args("--grace-time 60s").spawn()?;
    vm.wait_for_output("vmm: ready=button")?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait_for_output("vmm: button=pressed")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// A guest that has the driver of the button, and nobody who listens to that.
fn deaf(guest: &LinuxGuest, grace: Duration) -> Result<RunningVm> {
    let mut vm = guest.vm("deaf", "").arg("--grace-time").arg(format!("{}s", grace.as_secs())).spawn()?;
    vm.wait_for_output("vmm: ready=deaf")?;
    Ok(vm)
}

fn forced_after_the_grace_time(guest: &LinuxGuest, signal: Signal, code: i32) -> Result<()> {
    const GRACE: Duration = Duration::from_secs(3);
    let vm = deaf(guest, GRACE)?;
    let asked = Instant::now();
    vm.signal(signal)?;
    vm.wait()?.ensure_code(code)?.ensure_message(&["stop forced by the end of the grace time"])?;
    ensure!(asked.elapsed() >= GRACE, "forced after {:?}", asked.elapsed());
    Ok(())
}

fn a_guest_that_ignores_sigterm_is_stopped_after_the_grace_time(guest: &LinuxGuest) -> Result<()> {
    forced_after_the_grace_time(guest, Signal::SIGTERM, 143)
}

fn a_guest_that_ignores_sigint_is_stopped_after_the_grace_time(guest: &LinuxGuest) -> Result<()> {
    forced_after_the_grace_time(guest, Signal::SIGINT, 130)
}

fn a_second_sigterm_stops_at_once(guest: &LinuxGuest) -> Result<()> {
    let mut vm = deaf(guest, LONG)?;
    let asked = Instant::now();
    vm.signal(Signal::SIGTERM)?;
    vm.goes_on_for(Duration::from_secs(1))?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(143)?.ensure_message(&["stop forced by SIGTERM"])?;
    ensure!(asked.elapsed() < LONG, "stopped at the end of the grace time");
    Ok(())
}

fn a_guest_that_cannot_hear_the_button_is_stopped_at_once(guest: &LinuxGuest) -> Result<()> {
    // Without the driver of the device that has the button's interrupt.
    let vm = guest.vm("deaf", "initcall_blacklist=ged_driver_init");
    let mut vm = vm.arg("--grace-time").arg(format!("{}s", LONG.as_secs())).spawn()?;
    vm.wait_for_output("vmm: ready=deaf")?;
    let asked = Instant::now();
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    ensure!(asked.elapsed() < LONG, "stopped at the end of the grace time");
    Ok(())
}

/// What a kernel says of its machine in the first life it says in each: as many CPUs, the same clock, no more to complain about.
fn each_life_is_as_the_first(guest: &LinuxGuest, irqchip: &str) -> Result<()> {
    const LIVES: usize = 3;
    let vm = guest.vm("reboot", "").args("--on-reset restart --irqchip").arg(irqchip);
    let mut vm = vm.deadline(Duration::from_secs(150)).spawn()?;
    vm.wait_for_lines(LinuxReport::END, LIVES)?;
    vm.signal(Signal::SIGTERM)?;
    let said = vm.wait()?.ensure_code(0)?.text();
    let lives: Vec<_> = said.split_inclusive(LinuxReport::END).take(LIVES).map(LinuxReport::read).collect();
    let about = |life: &LinuxReport| -> Result<_> {
        let errors = life.all("error").filter(|error| error.contains("APIC") || error.contains("MTRR"));
        Ok((life.get("online")?.to_owned(), life.get("clocksource")?.to_owned(), errors.count()))
    };
    for life in &lives {
        ensure!(life.number("cpus")? == u64::from(guest.cpus), "other CPUs: {life:?}");
        ensure!(about(life)? == about(&lives[0])?, "{life:?} after {:?}", lives[0]);
    }
    Ok(())
}

fn a_guest_that_restarts_finds_the_same_machine(guest: &LinuxGuest) -> Result<()> {
    each_life_is_as_the_first(guest, "kernel")
}

fn a_guest_that_restarts_finds_the_same_machine_with_the_split_irqchip(guest: &LinuxGuest) -> Result<()> {
    each_life_is_as_the_first(guest, "split")
}

fn a_guest_that_restarts_lives_until_sigterm(guest: &LinuxGuest) -> Result<()> {
    let args = "--on-reset restart --grace-time 50s --log-level info";
    let mut shell = Shell::start(guest, args, Port::Pipe, Duration::from_secs(120))?;
    shell.types("reboot -f\n")?;
    shell.comes_up()?;
    // It answers the button by another reboot.
    shell.types("insmod /lib/modules/button.ko; insmod /lib/modules/evdev.ko; ")?;
    // Open before it says so: an event that comes earlier is lost.
    shell.types("exec 3</dev/input/event0; echo hea''ring; ")?;
    shell.types("head -c 24 <&3 >/dev/null; echo hea''rd; reboot -f\n")?;
    shell.wait_for("hearing")?;
    shell.vm().signal(Signal::SIGTERM)?;
    shell.wait_for("heard")?;
    let lives = shell.wait_for(LinuxReport::END);
    ensure!(lives.is_err(), "it lives again");
    shell.into_vm().wait()?.ensure_code(0)?.ensure_message(&["the machine has ended", "Reset("])?;
    Ok(())
}
