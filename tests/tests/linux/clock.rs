//! Clock: a monitor that is stopped for a while and continued has a guest that knows what time it is.
//!
//! It is stopped for 20 seconds, or for 60 if `VMM_FULL` is in the environment.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{KernelFormat, LinuxGuest};

use super::shell::{Port, Shell};
use crate::{Shape, is_full};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        fault_d4_a_guest_that_was_stopped_for_long_has_the_right_time_and_no_complaint on
            [Shape::new(KernelFormat::BzImage, 1)],
    ]
}

const TIME: Duration = Duration::from_secs(300);

/// By how much a clock may seem wrong that is asked over the serial port of a busy host.
const TOLERANCE: Duration = Duration::from_secs(3);

/// The guest complains of a CPU that does nothing for twice as many seconds: less than it is stopped for.
const WATCHDOG_SECONDS: u32 = 5;

/// A time that the guest tells, and when it has told it.
struct Told {
    at: Instant,
    time: Duration,
}

impl Told {
    fn ask(shell: &mut Shell, command: &str) -> Result<Self> {
        let answer = shell.answer(command)?;
        let time = Duration::from_secs_f64(answer.parse().with_context(|| format!("{command}: {answer:?}"))?);
        Ok(Self { at: Instant::now(), time })
    }

    /// Whether as much time has passed for the guest since `before` as has here.
    fn ensure_since(&self, before: &Self) -> Result<()> {
        let (here, there) = (self.at - before.at, self.time.saturating_sub(before.time));
        ensure!(here.abs_diff(there) <= TOLERANCE, "{there:?} in the guest are {here:?} here");
        Ok(())
    }
}

fn fault_d4_a_guest_that_was_stopped_for_long_has_the_right_time_and_no_complaint(
    guest: &LinuxGuest,
) -> Result<()> {
    const CLOCKS: [&str; 2] = ["cut -d' ' -f1 /proc/uptime", "date +%s"];
    const CLOCKSOURCE: &str = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    let stopped = Duration::from_secs(if is_full() { 60 } else { 20 });
    let mut shell = Shell::start(guest, "", Port::Pipe, TIME)?;
    let watch = format!(
        "echo {WATCHDOG_SECONDS} >/proc/sys/kernel/watchdog_thresh; cat /proc/sys/kernel/watchdog_thresh"
    );
    let watching = shell.answer(&watch)?;
    ensure!(watching == WATCHDOG_SECONDS.to_string(), "the guest watches for {watching:?}");
    // So that the CPU is in the guest when it is stopped.
    shell.types("while :; do :; done &\n")?;
    let source = shell.answer(CLOCKSOURCE)?;
    let before = CLOCKS.map(|clock| Told::ask(&mut shell, clock));

    // What it complained of before, of an emulated TSC for instance, is not about the stop.
    shell.answer("dmesg -c >/dev/null; echo forgotten")?;
    // The prompt is out: the CPU is in the guest, and not about to leave it for the serial port.
    thread::sleep(Duration::from_secs(1));
    shell.vm().signal(Signal::SIGSTOP)?;
    thread::sleep(stopped);
    ensure!(shell.vm().process().is_stopped()?, "not stopped");
    shell.vm().signal(Signal::SIGCONT)?;
    // The guest looks whether a CPU hangs every fifth of the time after which it complains.
    let looked = Duration::from_secs(u64::from(WATCHDOG_SECONDS) * 2);
    shell.answer(&format!("sleep {}", looked.as_secs()))?;

    for (clock, before) in CLOCKS.into_iter().zip(before) {
        Told::ask(&mut shell, clock)?.ensure_since(&before?).context(clock)?;
    }
    let complaints = shell.answer("dmesg | grep -E 'lockup|detected stall|unstable'")?;
    ensure!(complaints.is_empty(), "{complaints}");
    let source_now = shell.answer(CLOCKSOURCE)?;
    ensure!(source_now == source, "{source_now} instead of {source}");
    shell.types("poweroff -f\n")?;
    shell.into_vm().wait()?.ensure_code(0)?;
    Ok(())
}
