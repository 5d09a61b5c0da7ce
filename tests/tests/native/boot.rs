//! Boot: guests by both protocols run, and find what they were given.

use std::io::Write;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{Finished, TestVm};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_pvh_guest_as_elf64_finds_what_it_was_given,
        a_pvh_guest_as_elf32_finds_the_same,
        a_pvh_entry_of_8_bytes_behind_another_note_is_found,
        a_64_bit_guest_without_a_note_is_entered_by_the_linux_protocol,
        a_guest_of_1_mib_runs_below_640_kib,
        ram_above_4_gib_is_fresh_and_keeps_what_is_stored,
        ram_of_512_gib_is_reserved_and_not_touched,
        the_embedded_guest_runs_without_an_argument,
        the_embedded_guest_finds_every_cpu,
    ]
}

const KIB_640: &str = "\
start 00000000
  low 00000000
  size 00000000
  low 0009fc00
  type 00000001
start 00000000
  low 0009fc00
  size 00000000
  low 00060400
  type 00000002
";

/// What the guest says about 128 MiB.
const ABOVE_1_MIB: &str = "\
start 00000000
  low 00100000
  size 00000000
  low 07f00000
  type 00000001
";

const ZEROED_AND_HOLES: &str = "bss 00000000\nholes ffffffff\n";

const INITRD: &str = "an initial RAM disk";

/// Runs `guest` to its end with a command line and an initrd.
fn with_initrd(guest: &str) -> Result<Finished> {
    let mut initrd = tempfile::NamedTempFile::new()?;
    initrd.write_all(INITRD.as_bytes())?;
    TestVm::guest(guest).cmdline("root=/dev/none -- one two").arg("--initrd").arg(initrd.path()).run()
}

fn pvh_finds_what_it_was_given(guest: &str) -> Result<()> {
    let expected = format!(
        "magic 336ec578\ncmdline root=/dev/none -- one two\nmodules 00000001\nmodule {INITRD}\n\
         {KIB_640}{ABOVE_1_MIB}{ZEROED_AND_HOLES}"
    );
    with_initrd(guest)?.ensure_code(0)?.ensure_output(&expected)?;
    Ok(())
}

fn a_pvh_guest_as_elf64_finds_what_it_was_given() -> Result<()> {
    pvh_finds_what_it_was_given("boot_pvh")
}

fn a_pvh_guest_as_elf32_finds_the_same() -> Result<()> {
    pvh_finds_what_it_was_given("boot_pvh32")
}

fn a_pvh_entry_of_8_bytes_behind_another_note_is_found() -> Result<()> {
    pvh_finds_what_it_was_given("boot_notes")
}

fn a_64_bit_guest_without_a_note_is_entered_by_the_linux_protocol() -> Result<()> {
    let header = u32::from_le_bytes(*b"HdrS");
    let mut expected = format!(
        "cs {:016x}\nds {:016x}\nheader {header:016x}\ncmdline root=/dev/none -- one two\ninitrd {INITRD}\n",
        0x10, 0x18
    );
    for (start, size, kind) in [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (0x10_0000, 0x7f0_0000, 1)] {
        expected += &format!("start {start:016x}\n  size {size:016x}\n  type {kind:016x}\n");
    }
    with_initrd("boot_linux64")?.ensure_code(0)?.ensure_output(&expected)?;
    Ok(())
}

fn a_guest_of_1_mib_runs_below_640_kib() -> Result<()> {
    let expected = format!("magic 336ec578\ncmdline \nmodules 00000000\n{KIB_640}{ZEROED_AND_HOLES}");
    TestVm::guest("boot_low").args("--memory 1M").run()?.ensure_code(0)?.ensure_output(&expected)?;
    Ok(())
}

fn ram_above_4_gib_is_fresh_and_keeps_what_is_stored() -> Result<()> {
    let vm = TestVm::guest("high_memory").args("--memory 6G").run()?.ensure_code(0)?;
    vm.ensure_output("fresh 0000000000000000\nstored 0123456789abcdef\n")?;
    Ok(())
}

fn ram_of_512_gib_is_reserved_and_not_touched() -> Result<()> {
    const LIMIT_KIB: u64 = 64 << 10;
    let mut vm = TestVm::guest("bench_halt").args("--memory 512G").spawn()?;
    vm.wait_for_output("\x1e")?;
    let peak = vm.process().peak_rss()?;
    ensure!(peak < LIMIT_KIB, "{peak} KiB were resident");
    Ok(())
}

fn the_embedded_guest_runs_without_an_argument() -> Result<()> {
    let vm = TestVm::bare().run()?.ensure_code(0)?;
    ensure!(vm.text().contains("checks passed"), "{:?}", vm.text());
    Ok(())
}

fn the_embedded_guest_finds_every_cpu() -> Result<()> {
    for cpus in [2, 5, 32] {
        let vm = TestVm::bare().args(&format!("--cpus {cpus}")).run()?.ensure_code(0)?;
        let said = vm.text();
        ensure!(said.contains(&format!("{cpus} of {cpus}")) && said.contains("checks passed"), "{said:?}");
    }
    Ok(())
}
