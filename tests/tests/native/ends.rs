//! Ends: each way in which a guest ends has its exit code, every time.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use vmm_tests::harness::{TestVm, rounds};

/// How often each fatal end is run on each number of vCPUs.
const TIMES: usize = 200;

/// A guest's fatal end, and what only its report says.
const FATAL: [(&str, &[&str]); 3] = [
    ("triple_fault", &["  cs 0", "code at 0x20"]),
    ("bad_fetch", &["  cs 0", "rip is at guest-physical 0xc0000000, where there is no RAM"]),
    ("internal_error", &["  cs 0", "code at 0x20"]),
];

/// The same of a triple fault where KVM is built on SVM: the processor leaves no state behind, and KVM resets the vCPU.
const RESET: &[&str] = &["  rip 000000000000fff0", "  cs f000 base ffff0000", "hint: on this host (SVM)"];

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    let mut trials = crate::trials![
        fault_d1_a_reset_through_the_keyboard_controller_ends_with_0,
        fault_d1_a_reset_through_port_cf9_ends_with_0,
        the_debug_exit_value_comes_out_as_documented,
        a_guest_that_has_asked_for_its_end_executes_nothing_after_it,
        fault_d1_a_triple_fault_may_be_a_reset,
        fault_d1_halted_cpus_are_no_end_and_cost_no_time,
        fault_d7_300_runs_leave_nothing_behind,
    ];
    for (guest, words) in FATAL {
        for cpus in [1, 2, 4] {
            // A fault on a vCPU: D1 and D2 at the only level where KVM itself gives them.
            let class = if guest == "internal_error" { "fault_d2_" } else { "fault_d1_" };
            let name = format!("{class}{guest}_of_{cpus}_cpus_is_always_4_with_a_report");
            trials.push(crate::trial(module_path!(), &name, move || is_always_4(guest, cpus, words)));
        }
    }
    trials
}

fn is_always_4(guest: &str, cpus: usize, words: &[&str]) -> Result<()> {
    let vcpu = format!("vCPU {}: ", cpus - 1);
    let words = if guest == "triple_fault" && has_svm()? { RESET } else { words };
    let words = [&["the guest crashed", &vcpu, "  rip 0"], words].concat();
    for run in 0..rounds(TIMES) {
        let vm = TestVm::guest(guest).args(&format!("--cpus {cpus}")).run()?;
        vm.ensure_code(4).and_then(|vm| vm.ensure_message(&words)).with_context(|| format!("run {run}"))?;
    }
    Ok(())
}

fn has_svm() -> Result<bool> {
    Ok(fs::read_to_string("/proc/cpuinfo")?.split_whitespace().any(|flag| flag == "svm"))
}

fn port_write(port: u16, value: u32, width: u8) -> TestVm {
    TestVm::guest("port_write").cmdline(&format!("{port:x} {value:x} {width}"))
}

fn fault_d1_a_reset_through_the_keyboard_controller_ends_with_0() -> Result<()> {
    port_write(0x64, 0xfe, 1).run()?.ensure_code(0)?.ensure_output("")?;
    Ok(())
}

fn fault_d1_a_reset_through_port_cf9_ends_with_0() -> Result<()> {
    port_write(0xcf9, 0x06, 1).run()?.ensure_code(0)?.ensure_output("")?;
    Ok(())
}

fn the_debug_exit_value_comes_out_as_documented() -> Result<()> {
    for width in [1, 2, 4] {
        for (value, code) in [(0, 0), (1, 65), (63, 127), (64, 64), (255, 127)] {
            port_write(0xf4, value, width).run()?.ensure_code(code)?;
        }
    }
    port_write(0xf4, 0x100, 2).run()?.ensure_code(64)?;
    port_write(0xf4, 0xffff_ffff, 4).run()?.ensure_code(127)?;
    Ok(())
}

fn a_guest_that_has_asked_for_its_end_executes_nothing_after_it() -> Result<()> {
    // Debug exit, i8042, port 0xcf9, the ACPI sleep and reset registers.
    for (port, value) in [(0xf4, 0), (0x64, 0xfe), (0xcf9, 6), (0xb00, 0x34), (0xb02, 1)] {
        let vm = TestVm::guest("last_words").cmdline(&format!("{port:x} {value:x}")).args("--cpus 2");
        vm.run()?.ensure_code(0)?.ensure_output("b").with_context(|| format!("port {port:#x}"))?;
    }
    Ok(())
}

fn fault_d1_a_triple_fault_may_be_a_reset() -> Result<()> {
    for cpus in [1, 2, 4] {
        let vm = TestVm::guest("triple_fault").args(&format!("--on-triple-fault reset --cpus {cpus}"));
        vm.run()?.ensure_code(0)?;
    }
    Ok(())
}

fn fault_d1_halted_cpus_are_no_end_and_cost_no_time() -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(1);
    for (cpus, signal) in [(1, Signal::SIGTERM), (4, Signal::SIGINT)] {
        let mut vm = TestVm::guest("smp_count").args(&format!("--cpus {cpus}")).spawn()?;
        vm.wait_for_output("ids ")?;
        // The rest of the last line.
        thread::sleep(Duration::from_millis(100));
        let before = vm.process().cpu_time()?;
        vm.goes_on_for(WATCHED)?;
        let used = vm.process().cpu_time()?.saturating_sub(before);
        ensure!(used < WATCHED / 50, "{cpus} halted vCPUs took {used:?} of {WATCHED:?}");
        vm.signal(signal)?;
        vm.wait()?.ensure_code(0).with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

fn fault_d7_300_runs_leave_nothing_behind() -> Result<()> {
    const KINDS: [&str; 3] = ["--cpus 2 --selftest", "--serial pty", "--serial null --cpus 4"];
    for (run, args) in KINDS.into_iter().cycle().enumerate().take(rounds(300)) {
        // Its own session and process group, so that whatever it leaves there is found.
        let vm = TestVm::guest("bench_reset").args(args).through("setsid").spawn()?;
        let group = vm.process().pid();
        // Fails also when somebody still holds the output.
        vm.wait()?.ensure_code(0).with_context(|| format!("run {run}: {args}"))?;
        ensure!(killpg(group, None) == Err(Errno::ESRCH), "run {run}: {args}: a process is left");
    }
    Ok(())
}
