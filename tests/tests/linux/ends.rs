//! Ends: every way out that a kernel knows gives the exit code that is documented.

use anyhow::Result;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::LinuxGuest;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_reboot_as_the_kernel_prefers_ends_with_0 on [2],
        a_reboot_through_the_keyboard_controller_ends_with_0 on [1],
        a_reboot_through_port_cf9_ends_with_0 on [1],
        sigterm_presses_the_power_button on [2],
        a_panic_ends_with_4 on [1],
    ]
}

fn reboot(guest: &LinuxGuest, words: &str) -> Result<()> {
    guest.vm("reboot", words).run()?.ensure_code(0)?;
    Ok(())
}

fn a_reboot_as_the_kernel_prefers_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    reboot(guest, "")
}

fn a_reboot_through_the_keyboard_controller_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    reboot(guest, "reboot=k")
}

fn a_reboot_through_port_cf9_ends_with_0(guest: &LinuxGuest) -> Result<()> {
    reboot(guest, "reboot=p")
}

fn sigterm_presses_the_power_button(guest: &LinuxGuest) -> Result<()> {
    let mut vm = guest.vm("button", "").args("--grace-time 60s").spawn()?;
    vm.wait_for_output("vmm: ready=button")?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait_for_output("vmm: button=pressed")?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_panic_ends_with_4(guest: &LinuxGuest) -> Result<()> {
    guest.vm("panic", "").run()?.ensure_code(4)?;
    Ok(())
}
