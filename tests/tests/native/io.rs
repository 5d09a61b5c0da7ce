//! I/O: port and MMIO accesses, doorbells and interrupts, as the guest sees them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{TestVm, rounds};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        string_instructions_reach_the_device_element_by_element,
        fault_b1_holes_read_as_ones_in_every_width,
        fault_b14_a_flood_of_unclaimed_accesses_has_a_bounded_log,
        the_clock_shows_the_time_of_the_host,
        the_debug_console_prints,
        the_doorbell_is_rung_as_often_as_the_guest_rings_it,
        every_interrupt_through_the_ioapic_arrives,
    ]
}

fn string_instructions_reach_the_device_element_by_element() -> Result<()> {
    let sum = (0..600_u32).fold(0, |sum, element| (sum + element) & 0xff);
    let mut expected = String::new();
    for size in [1, 2, 4] {
        expected += &format!("wrong of size {size}: 00000000\n");
    }
    expected += &format!("sum {sum:08x}\n");
    let vm = TestVm::guest("string_io").args("--selftest").run()?;
    vm.ensure_code(0)?.ensure_output(&expected)?;
    Ok(())
}

fn fault_b1_holes_read_as_ones_in_every_width() -> Result<()> {
    let expected: String = [1, 2, 4, 8].map(|width| format!("width {width}: {:016x}\n", u64::MAX)).concat();
    TestVm::guest("mmio_holes").run()?.ensure_code(0)?.ensure_output(&expected)?;
    Ok(())
}

fn fault_b14_a_flood_of_unclaimed_accesses_has_a_bounded_log() -> Result<()> {
    const LOG_LINES: usize = 1000;
    let rounds = rounds(50_000);
    let flood = TestVm::guest("port_flood").cmdline(&format!("{rounds:x}"));
    let vm = flood.args("--log-level debug").run()?.ensure_code(69)?;
    let lines = vm.stderr.lines().filter(|line| line.contains("0x580")).count();
    ensure!((1..LOG_LINES).contains(&lines), "{lines} lines about {rounds} reads and writes");
    let log = tempfile::NamedTempFile::new()?;
    let flood = TestVm::guest("port_flood").cmdline(&format!("{rounds:x}")).args("--log-level debug");
    flood.arg("--log-file").arg(log.path()).run()?.ensure_code(69)?;
    let length = log.as_file().metadata()?.len();
    ensure!((1..1 << 18).contains(&length), "a log of {length} bytes");
    Ok(())
}

fn the_clock_shows_the_time_of_the_host() -> Result<()> {
    let before = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let vm = TestVm::guest("cmos").run()?.ensure_code(0)?;
    let after = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let said = vm.text();
    let digits: Vec<i64> = said
        .split_whitespace()
        .map(|byte| byte.parse().with_context(|| format!("{byte} in {said:?} is not BCD")))
        .collect::<Result<_>>()?;
    let [century, year, month, day, hour, minute, second] = digits[..] else {
        anyhow::bail!("{said:?} is not seven registers");
    };
    let days = days_since_1970(century * 100 + year, month, day);
    let shown = Duration::from_secs(((days * 24 + hour) * 3600 + minute * 60 + second).try_into()?);
    // The registers are read one after the other: a minute may end in between.
    let slack = Duration::from_secs(61);
    ensure!(
        before < shown + slack && shown < after + slack,
        "{said:?} is not between {before:?} and {after:?}"
    );
    Ok(())
}

/// The days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March: the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    days - 719_468
}

fn the_debug_console_prints() -> Result<()> {
    TestVm::guest("debug_console").run()?.ensure_code(0)?.ensure_output("debug console\n")?;
    Ok(())
}

fn the_doorbell_is_rung_as_often_as_the_guest_rings_it() -> Result<()> {
    let expected = format!("magic {:08x}\nrings {:08x}\n", u32::from_le_bytes(*b"VMST"), 10_000);
    TestVm::guest("doorbell").args("--selftest").run()?.ensure_code(0)?.ensure_output(&expected)?;
    // Without the device the same addresses are a hole.
    let ones = "magic ffffffff\nrings ffffffff\n";
    TestVm::guest("doorbell").args("--selftest=false").run()?.ensure_code(0)?.ensure_output(ones)?;
    Ok(())
}

fn every_interrupt_through_the_ioapic_arrives() -> Result<()> {
    let expected = format!("line {:08x}\ninterrupts {:08x}\n", 5, 100);
    for irqchip in ["kernel", "split"] {
        let vm = TestVm::guest("interrupt").args("--selftest --irqchip").arg(irqchip);
        vm.run()?.ensure_code(0)?.ensure_output(&expected)?;
    }
    Ok(())
}
