//! Memory: stock kernels run on each backing of guest RAM, huge pages of the host's pool included.

use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport, is_emulated};

use super::boot::finds;
use crate::Shape;

/// The trials of this suite. The nested host sets huge pages aside for them.
pub fn trials() -> Vec<Trial> {
    use KernelFormat::{BzImage, Vmlinux};
    let mut trials: Vec<Trial> = crate::trials![
        a_guest_boots_on_small_pages_of_each_backing on [Shape::with_memory(BzImage, 1, 128)],
        a_guest_boots_in_pages_of_2_mib on [Shape::with_memory(Vmlinux, 1, 256)],
    ];
    let large: Vec<Trial> =
        crate::trials![a_guest_boots_in_a_page_of_1_gib on [Shape::with_memory(BzImage, 1, 1024)]];
    trials.extend(large);
    trials
}

/// Held by each trial that takes huge pages of the host's pool: there are as many as one of them needs.
pub static POOL: Mutex<()> = Mutex::new(());

fn a_guest_boots_on_small_pages_of_each_backing(guest: &LinuxGuest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ram");
    File::create(&path)?.set_len(guest.memory_mib << 20)?;
    let path = path.display();
    for args in [
        "--prefault --lock-memory",
        "--huge-pages transparent",
        "--memory-backing memfd --prefault",
        &format!("--memory-backing private-file={path}"),
        &format!("--memory-backing shared-file={path}"),
    ] {
        boots(guest, args).with_context(|| args.to_owned())?;
    }
    Ok(())
}

fn a_guest_boots_in_pages_of_2_mib(guest: &LinuxGuest) -> Result<()> {
    boots_in_pool(guest, "2M", "hugepages-2048kB", guest.memory_mib / 2)
}

fn a_guest_boots_in_a_page_of_1_gib(guest: &LinuxGuest) -> Result<()> {
    boots_in_pool(guest, "1G", "hugepages-1048576kB", guest.memory_mib / 1024)
}

fn boots(guest: &LinuxGuest, args: &str) -> Result<()> {
    let vm = guest.vm("poweroff", "one=two").args(args).run()?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.text());
    finds(guest, &report).with_context(|| format!("{report:?}"))
}

/// Boots in `pages` of a pool, all of which are in use meanwhile and free afterwards.
fn boots_in_pool(guest: &LinuxGuest, word: &str, pool: &str, pages: u64) -> Result<()> {
    let _pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let count = |name: &str| -> Result<u64> {
        let text = fs::read_to_string(format!("/sys/kernel/mm/hugepages/{pool}/{name}"));
        Ok(text.context(pool.to_owned())?.trim().parse()?)
    };
    let free = || Ok::<_, anyhow::Error>(count("free_hugepages")? - count("resv_hugepages")?);
    let before = free()?;
    if before < pages && !is_emulated() {
        // A failure to say so must not fail the trial.
        let _ =
            writeln!(io::stdout(), "not run: {before} of {pages} huge pages of {word} are free on this host");
        return Ok(());
    }
    ensure!(before >= pages, "{before} of {pages} huge pages of {word} are free");
    let mut vm = guest.vm("poweroff", "one=two").args(&format!("--huge-pages {word}")).spawn()?;
    vm.wait_for_output("vmm: release")?;
    let used = before - free()?;
    let ended = vm.wait()?.ensure_code(0)?;
    ensure!(used == pages, "{used} of {pages} huge pages of {word} were used");
    ensure!(free()? == before, "{} of {before} huge pages of {word} are free afterwards", free()?);
    let report = LinuxReport::read(&ended.text());
    finds(guest, &report).with_context(|| format!("{report:?}"))
}
