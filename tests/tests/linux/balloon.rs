//! The balloon: memory that a stock guest does not need is its host's, and the guest's again when it needs it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, is_emulated, until};

use super::memory::POOL;
use super::shell::{Port, Shell};
use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: Shape = Shape::new(KernelFormat::BzImage, 1);
    const TWO: Shape = Shape::new(KernelFormat::Vmlinux, 2);
    const LARGE: Shape = Shape::with_memory(KernelFormat::BzImage, 1, 512);
    const LARGE_TWO: Shape = Shape::with_memory(KernelFormat::Vmlinux, 2, 512);
    crate::trials![
        what_goes_into_the_balloon_is_the_hosts_until_it_comes_out on [ONE, TWO],
        of_a_memfd_the_file_gets_holes on [ONE],
        of_huge_pages_those_go_that_are_in_the_balloon_as_a_whole on [ONE],
        pages_that_are_reported_as_free_are_the_hosts on [LARGE, LARGE_TWO],
        a_guest_without_memory_takes_it_out_of_the_balloon on [ONE],
        statistics_follow_the_guest_and_a_restart_leaves_an_empty_balloon on [ONE],
        free_pages_are_hinted_at_and_are_the_guests_again on [ONE],
    ]
}

const MIB: u64 = 1 << 20;

/// What a trial may take where the host is emulated.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the guest's memory has to be given back of at least, in percent.
const RETURNED: u64 = 95;

/// A guest with a balloon, at whose shell somebody sits.
struct Bench {
    shell: Shell,
    place: ControlSocket,
}

impl Bench {
    /// With more `args` of the monitor.
    fn start(guest: &LinuxGuest, args: &str) -> Result<Self> {
        let place = ControlSocket::new()?;
        let args = format!("{args} --api-sock {}", place.path().display());
        let mut bench = Self { shell: Shell::start(guest, &args, Port::Pipe, PATIENCE)?, place };
        bench.load()?;
        Ok(bench)
    }

    /// Has the guest load its driver.
    fn load(&mut self) -> Result<()> {
        let modules = "virtio_ring virtio virtio_mmio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_balloon";
        let load = "if [ -e /lib/modules/$m.ko ]; then insmod /lib/modules/$m.ko; fi";
        self.answer(&format!("for m in {modules}; do {load}; done; mkdir -p /fill"))?;
        self.reaches("a driver", |balloon| balloon["driver"] == true)?;
        Ok(())
    }

    fn answer(&mut self, command: &str) -> Result<String> {
        Ok(self.shell.answer(command)?.trim().to_owned())
    }

    /// Has the guest fill so much of its memory, and say what came of it.
    fn fill(&mut self, mib: u64) -> Result<()> {
        self.answer(&format!("mount -t tmpfs -o size={}M tmpfs /fill", mib + 1))?;
        let filled = format!("dd if=/dev/zero of=/fill/a bs=1M count={mib} 2>/dev/null; stat -c %s /fill/a");
        ensure!(self.answer(&filled)? == (mib * MIB).to_string(), "the guest cannot fill {mib} MiB");
        Ok(())
    }

    /// Has it free that again.
    fn empty(&mut self) -> Result<()> {
        self.answer("umount /fill; echo 3 >/proc/sys/vm/drop_caches").map(drop)
    }

    /// How the balloon is.
    fn balloon(&self) -> Result<Value> {
        let answer = self.place.ask("balloon")?;
        ensure!(answer["ok"].is_object(), "{answer}");
        Ok(answer["ok"].clone())
    }

    /// Waits until the balloon is as `is_so` says.
    fn reaches(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let reached = until(Instant::now() + PATIENCE, what, || {
            last = self.balloon()?;
            // It takes the guest's time.
            sleep(Duration::from_millis(50));
            Ok(is_so(&last).then(|| last.clone()))
        });
        reached.with_context(|| last.to_string())
    }

    /// Asks for another size, and waits until the balloon has it.
    fn inflate(&self, mib: u64) -> Result<()> {
        self.place.ctl(&format!("balloon-set --size {mib}M"))?.ensure_code(0)?;
        self.reaches("the new size", |balloon| balloon["actual_bytes"] == mib * MIB).map(drop)
    }

    /// Memory of the monitor.
    fn resident(&self) -> Result<u64> {
        self.shell.vm().process().resident()
    }

    /// Waits until the monitor has at least [`RETURNED`] percent of `bytes` less than `before`.
    fn returns(&self, before: u64, bytes: u64) -> Result<()> {
        let mut now = before;
        let returned = until(Instant::now() + PATIENCE, "the memory on the host", || {
            now = self.resident()?;
            sleep(Duration::from_millis(50));
            Ok((before.saturating_sub(now) >= bytes / 100 * RETURNED).then_some(()))
        });
        returned.with_context(|| format!("{before} bytes became {now}, of which {bytes} were to go"))
    }

    /// A count of the device.
    fn count(&self, name: &str) -> Result<u64> {
        let stats: Value = self.place.ask("stats")?;
        stats["ok"]["balloon"]["monitor"][name].as_u64().with_context(|| format!("no {name} in {stats}"))
    }

    /// The guest goes on, and has nothing to complain of.
    fn end(mut self) -> Result<()> {
        ensure!(self.answer("echo $((6 * 7))")? == "42");
        let complaints = self.answer("dmesg | grep -c -e 'Out of memory' -e 'BUG:' -e 'oom-kill'")?;
        ensure!(complaints == "0", "{}", self.answer("dmesg | tail -n 40")?);
        ensure!(
            self.count("refused_pages")? == 0
                && self.count("failed_bytes")? == 0
                && self.count("broken")? == 0
        );
        self.place.ctl("quit")?.ensure_code(0)?;
        self.shell.into_vm().wait()?.ensure_code(0)?;
        Ok(())
    }
}

fn what_goes_into_the_balloon_is_the_hosts_until_it_comes_out(guest: &LinuxGuest) -> Result<()> {
    // All of the RAM is there from the beginning: what goes into the balloon was the monitor's.
    let mut bench = Bench::start(guest, "--prefault --balloon size=0")?;
    bench.fill(96)?;
    bench.empty()?;
    let before = bench.resident()?;
    bench.inflate(128)?;
    bench.returns(before, 128 * MIB)?;
    // There is not as much left.
    let free = bench.answer("awk '/^MemFree/ { print $2 }' /proc/meminfo")?;
    ensure!(free.parse::<u64>()? < 96 << 10, "{free} kB are free");
    bench.inflate(32)?;
    bench.fill(96)?;
    ensure!(bench.count("deflated_pages")? >= 96 * MIB / 4096);
    bench.empty()?;
    bench.inflate(128)?;
    bench.returns(before, 128 * MIB)?;
    bench.inflate(0)?;
    bench.fill(128)?;
    bench.end()
}

fn of_a_memfd_the_file_gets_holes(guest: &LinuxGuest) -> Result<()> {
    let mut bench = Bench::start(guest, "--memory-backing memfd --prefault --balloon size=0")?;
    let directory = format!("/proc/{}/fd", bench.shell.vm().process().pid());
    let is_ram = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("guest-memory"))
    };
    let ram = fs::read_dir(&directory)?.filter_map(Result::ok).find(is_ram).context("no memfd")?.path();
    let blocks = || Ok::<_, anyhow::Error>(fs::metadata(&ram)?.blocks() * 512);
    let (before, whole) = (bench.resident()?, blocks()?);
    bench.inflate(128)?;
    bench.returns(before, 128 * MIB)?;
    let freed = whole.saturating_sub(blocks()?);
    ensure!(freed >= 128 * MIB / 100 * RETURNED, "the file has only {freed} bytes less");
    bench.inflate(0)?;
    bench.fill(128)?;
    bench.end()
}

fn of_huge_pages_those_go_that_are_in_the_balloon_as_a_whole(guest: &LinuxGuest) -> Result<()> {
    const PAGE: u64 = 2 * MIB;
    let _pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let count = |name: &str| -> Result<u64> {
        let text = fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
        Ok(text.context("no huge pages")?.trim().parse()?)
    };
    let free = || count("free_hugepages");
    if !is_emulated() && free()? < guest.memory_mib * MIB / PAGE {
        // A failure to say so must not fail the trial.
        let _ = writeln!(io::stdout(), "not run: too few huge pages of 2 MiB are free on this host");
        return Ok(());
    }
    let mut bench = Bench::start(guest, "--huge-pages 2M --prefault --balloon size=0")?;
    let before = free()?;
    bench.inflate(128)?;
    // Linux takes single pages, those first that are left over: some parts stay alone.
    let (returned, partial) = (bench.count("returned_bytes")?, bench.count("partial_bytes")?);
    ensure!(returned + partial >= 128 * MIB, "{returned} and {partial}");
    ensure!(returned >= 96 * MIB, "only {returned} bytes were given back, {partial} wait");
    ensure!((free()? - before) * PAGE == returned, "{returned} bytes are not {} pages", free()? - before);
    bench.inflate(0)?;
    ensure!(bench.count("partial_bytes")? == 0);
    bench.fill(128)?;
    bench.end()
}

fn pages_that_are_reported_as_free_are_the_hosts(guest: &LinuxGuest) -> Result<()> {
    const FILLED: u64 = 352;
    let mut bench = Bench::start(guest, "--balloon free_page_reporting")?;
    // Linux reports free blocks of 2 MiB: what it has free in smaller ones, some 10 MiB, stays.
    for _ in 0..3 {
        bench.fill(FILLED)?;
        let before = bench.resident()?;
        bench.empty()?;
        bench.returns(before, FILLED * MIB)?;
    }
    ensure!(bench.balloon()?["actual_bytes"] == 0);
    ensure!(bench.count("reported_bytes")? >= 3 * FILLED * MIB / 100 * RETURNED);
    bench.end()
}

fn a_guest_without_memory_takes_it_out_of_the_balloon(guest: &LinuxGuest) -> Result<()> {
    let mut bench = Bench::start(guest, "--balloon size=144M,deflate_on_oom")?;
    bench.reaches("its size", |balloon| balloon["actual_bytes"] == 144 * MIB)?;
    bench.fill(112)?;
    let balloon = bench.balloon()?;
    let actual = balloon["actual_bytes"].as_u64().context("no size")?;
    ensure!(actual < 144 * MIB && balloon["target_bytes"] == 144 * MIB, "{balloon}");
    bench.empty()?;
    bench.inflate(128)?;
    bench.end()
}

fn statistics_follow_the_guest_and_a_restart_leaves_an_empty_balloon(guest: &LinuxGuest) -> Result<()> {
    let arguments = "--on-reset restart --balloon size=0,statistics_interval=1s";
    let mut bench = Bench::start(guest, arguments)?;
    let free = |balloon: &Value| balloon["statistics"]["free_bytes"].as_u64();
    let first = bench.reaches("statistics", |balloon| free(balloon).is_some())?;
    let total = first["statistics"]["total_bytes"].as_u64().context("no total")?;
    ensure!(total < guest.memory_mib * MIB && total > guest.memory_mib / 2 * MIB, "{first}");
    bench.fill(96)?;
    let before = free(&first).context("no free memory")?;
    bench.reaches("the fall", |balloon| free(balloon).is_some_and(|now| now + 80 * MIB < before))?;
    bench.empty()?;
    bench.reaches("the rise", |balloon| free(balloon).is_some_and(|now| now + 40 * MIB > before))?;
    ensure!(bench.place.ctl("balloon")?.ensure_code(0)?.text().contains("available_bytes"));
    bench.inflate(64)?;
    // The driver goes.
    bench.answer("rmmod virtio_balloon")?;
    let gone = bench.balloon()?;
    ensure!(gone["driver"] == false && gone["actual_bytes"] == 0 && gone["statistics"].is_null(), "{gone}");
    bench.load()?;
    bench.reaches("its size again", |balloon| balloon["actual_bytes"] == 64 * MIB)?;
    // The guest goes, and what was asked for last stays.
    bench.shell.types("reboot -f\n")?;
    bench.shell.comes_up()?;
    let gone = bench.reaches("the next life", |balloon| balloon["driver"] == false)?;
    ensure!(gone["actual_bytes"] == 0 && gone["target_bytes"] == 64 * MIB, "{gone}");
    bench.load()?;
    bench.reaches("its size in the next life", |balloon| balloon["actual_bytes"] == 64 * MIB)?;
    bench.reaches("statistics of the next life", |balloon| free(balloon).is_some())?;
    bench.end()
}

fn free_pages_are_hinted_at_and_are_the_guests_again(guest: &LinuxGuest) -> Result<()> {
    let mut bench = Bench::start(guest, "--balloon size=0")?;
    for _ in 0..2 {
        bench.place.ctl("balloon-hinting start")?.ensure_code(0)?;
        let complete = bench.reaches("all hints", |balloon| balloon["hinting"]["state"] == "complete")?;
        let bytes = complete["hinting"]["bytes"].as_u64().context("no hints")?;
        ensure!(bytes > 32 * MIB && bytes < guest.memory_mib * MIB, "{complete}");
        bench.place.ctl("balloon-hinting stop")?.ensure_code(0)?;
        ensure!(bench.balloon()?["hinting"]["state"] == "idle");
        bench.fill(128)?;
        bench.empty()?;
    }
    bench.end()
}
