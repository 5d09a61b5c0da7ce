//! Dedicated CPUs: where the threads of the monitor are, what the guest is told, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_cli::config::CpuList;
use vmm_core::{DisabledExits, Kvm};
use vmm_tests::harness::{Finished, RunningVm, TestVm, monitor};
use vmm_vcpu::Scheduler;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_dedicated_vcpu_has_its_cpu_and_no_other_thread_has_it,
        an_affinity_confines_the_vcpus_and_no_other_thread,
        a_machine_that_restarts_keeps_its_cpus,
        whether_disabled_hlt_exits_have_an_effect_is_told,
        what_the_guest_is_told_follows_what_is_configured,
        what_cannot_be_had_is_refused_and_nothing_runs,
        an_exit_that_the_host_does_not_offer_is_refused_by_name,
        the_last_cpu_is_left_to_the_other_threads,
        a_policy_without_permission_is_refused_with_what_gives_it,
        a_realtime_policy_is_that_of_the_vcpu_alone,
        the_example_runs,
    ]
}

/// CPUs that this process may use; the first is left to the monitor.
fn cpus() -> Result<Vec<usize>> {
    let list: CpuList = field(&fs::read_to_string("/proc/self/status")?, "Cpus_allowed_list")?.parse()?;
    Ok(list.iter().collect())
}

fn field(status: &str, key: &str) -> Result<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {key} in {status}"))?.trim().to_owned())
}

/// What a file of each thread says, by the thread's name. A thread that ends meanwhile is left out.
fn of_each_thread(vm: &RunningVm, file: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for task in vm.process().tasks()? {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{}/task/{task}/{file}", vm.process().pid()));
        if let (Ok(name), Ok(text)) = (read("comm"), read(file)) {
            found.insert(name.trim_end().to_owned(), text);
        }
    }
    ensure!(!found.is_empty(), "no thread has a file {file}");
    Ok(found)
}

/// On which CPUs each thread may run.
fn places(vm: &RunningVm) -> Result<BTreeMap<String, CpuList>> {
    let place = |(name, status): (String, String)| Ok((name, field(&status, "Cpus_allowed_list")?.parse()?));
    of_each_thread(vm, "status")?.into_iter().map(place).collect()
}

/// A guest that halts for good, when it has said so.
fn halted(args: &str) -> Result<RunningVm> {
    let mut vm = TestVm::guest("bench_halt").args(args).spawn()?;
    vm.wait_for_output("\x1e")?;
    Ok(vm)
}

fn stopped(vm: RunningVm) -> Result<Finished> {
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)
}

/// Whether the processor executes guests here: KVM-PVM accepts more than it does.
fn has_virtualization() -> Result<bool> {
    Ok(fs::read_to_string("/proc/cpuinfo")?.split_whitespace().any(|flag| flag == "svm" || flag == "vmx"))
}

fn a_dedicated_vcpu_has_its_cpu_and_no_other_thread_has_it() -> Result<()> {
    let cpus = cpus()?;
    let [_, .., last] = cpus[..] else { return the_last_cpu_is_left_to_the_other_threads() };
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("vsock");
    let vm = halted(&format!("--dedicated --affinity {last} --vsock path={}", socket.display()))?;
    let mut places = places(&vm)?;
    ensure!(places.contains_key("vcpu0") && places.len() > 1, "{places:?}");
    let opener = *vm.process().children()?.first().context("no opener")?;
    places.insert("the opener".into(), opener.status("Cpus_allowed_list")?.parse()?);
    for (name, place) in places {
        let has_it = place.iter().any(|cpu| cpu == last);
        if name == "vcpu0" {
            ensure!(place.to_string() == last.to_string(), "{name} may run on {place}");
        } else {
            ensure!(
                !has_it && place.len() == cpus.len() - 1,
                "{name} may run on {place}, {last} is dedicated"
            );
        }
    }
    stopped(vm)?;
    Ok(())
}

fn an_affinity_confines_the_vcpus_and_no_other_thread() -> Result<()> {
    let cpus = cpus()?;
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    let all = CpuList::new(cpus).context("no CPU")?.to_string();
    for (args, places_of_vcpus) in [
        (format!("--affinity {last}"), [last.to_string(), last.to_string()]),
        (format!("--affinity {last}:{first}"), [last.to_string(), first.to_string()]),
        (format!("--affinity {last}:{all}"), [last.to_string(), all.clone()]),
        (String::new(), [all.clone(), all.clone()]),
    ] {
        let vm = halted(&format!("--cpus 2 {args}"))?;
        let places = places(&vm)?;
        for (name, place) in &places {
            let expected = match name.as_str() {
                "vcpu0" => &places_of_vcpus[0],
                "vcpu1" => &places_of_vcpus[1],
                _ => &all,
            };
            ensure!(place.to_string() == *expected, "{args}: {places:?}");
        }
        stopped(vm)?;
    }
    Ok(())
}

fn a_machine_that_restarts_keeps_its_cpus() -> Result<()> {
    let cpus = cpus()?;
    let [_, .., last] = cpus[..] else { return the_last_cpu_is_left_to_the_other_threads() };
    let mut vm = TestVm::guest("last_words")
        // Says one letter and resets.
        .cmdline("64 fe")
        .args(&format!("--dedicated --affinity {last} --on-reset restart"))
        .spawn()?;
    vm.wait_for_lines("b", 3)?;
    // Between two lives there is no vCPU; the other threads are where they were.
    for (name, place) in places(&vm)? {
        let has_it = place.iter().any(|cpu| cpu == last);
        ensure!(has_it == (name == "vcpu0"), "{name} may run on {place}, {last} is dedicated");
    }
    stopped(vm)?;
    Ok(())
}

fn whether_disabled_hlt_exits_have_an_effect_is_told() -> Result<()> {
    const WARNING: &str = "it has no effect";
    let has_effect = has_virtualization()?;
    let finished = stopped(halted("--disable-exits hlt")?)?;
    ensure!(finished.stderr.contains(WARNING) != has_effect, "{}", finished.stderr);
    let silent = stopped(halted("--disable-exits none")?)?;
    ensure!(silent.stderr.is_empty(), "{}", silent.stderr);

    let doctor = TestVm::program(monitor()).args("doctor --json").run()?.ensure_code(0)?;
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    let findings = report["dedicated"].as_array().context("no section for dedicated CPUs")?;
    let finding = findings.iter().find(|finding| finding["id"] == "halt-exits").context("no halt-exits")?;
    let expected = if has_effect { "ok" } else { "degraded" };
    ensure!(finding["state"] == expected, "{finding}");
    let found = finding["found"].as_str().unwrap_or_default();
    ensure!(found.starts_with("accepted, no effect") != has_effect, "{finding}");
    Ok(())
}

/// What the guest has found in CPUID: features, hints, MONITOR, C-states.
fn cpuid(args: &str) -> Result<[u32; 4]> {
    const PREFIXES: [&str; 4] = ["features ", "hints ", "monitor ", "mwait "];
    let text = TestVm::guest("cpuid_kvm").args(args).run()?.ensure_code(0)?.text();
    let mut values = [0; 4];
    for (value, prefix) in values.iter_mut().zip(PREFIXES) {
        let line = text.lines().find_map(|line| line.strip_prefix(prefix));
        *value = u32::from_str_radix(line.with_context(|| format!("no {prefix}in {text:?}"))?, 16)?;
    }
    Ok(values)
}

fn what_the_guest_is_told_follows_what_is_configured() -> Result<()> {
    const PV_UNHALT: u32 = 1 << 7;
    let [features, hints, monitor, _] = cpuid("")?;
    ensure!((hints, monitor) == (0, 0), "{hints:#x} {monitor:#x}");
    let [with_hint, hints, ..] = cpuid("--realtime-hint")?;
    ensure!((with_hint, hints) == (features, 1), "{with_hint:#x} {hints:#x}");
    let [halting, ..] = cpuid("--disable-exits hlt")?;
    ensure!(halting == features & !PV_UNHALT, "{halting:#x}");
    if offered()?.contains(DisabledExits::MWAIT) {
        let [.., monitor, states] = cpuid("--disable-exits mwait")?;
        ensure!(monitor != 0 && states & 0b11 == 0b11, "{monitor:#x} {states:#x}");
    }
    Ok(())
}

fn offered() -> Result<DisabledExits> {
    Ok(Kvm::open(Path::new("/dev/kvm"))?.capabilities().disable_exits)
}

/// Runs a guest that would say something, with arguments that are refused.
fn refused(args: &str, code: i32, words: &[&str]) -> Result<()> {
    let finished = TestVm::guest("bench_halt").args(args).run()?;
    finished.ensure_code(code)?.ensure_message(words)?.ensure_output("").with_context(|| args.to_owned())?;
    Ok(())
}

fn what_cannot_be_had_is_refused_and_nothing_runs() -> Result<()> {
    let last = *cpus()?.last().context("no CPU")?;
    for (args, code, words) in [
        (
            "--dedicated",
            2,
            &["cpu.dedicated (--dedicated) needs cpu.affinity (--affinity)", "affinity = \"1\""][..],
        ),
        ("--dedicated --cpus 2 --affinity 0", 2, &["the host CPUs 0 are fewer than 2 vCPUs"]),
        ("--dedicated --cpus 2 --affinity 0:0", 2, &["host CPU 0 is given to vCPU 0 and to vCPU 1"]),
        ("--cpus 3 --affinity 0:0", 2, &["2 lists for 3 vCPUs"]),
        ("--affinity 1-0", 2, &["1-0 runs backwards: write 0-1"]),
        ("--affinity 1023", 3, &["host CPU 1023 is not online; those are ", "vmm-cli doctor"]),
        ("--disable-exits halt", 2, &["halt is not one of hlt, pause, cstate, mwait"]),
        ("--halt-poll-ns 4294967296", 2, &["above the limit of 4294967295"]),
        ("--scheduler fifo:0", 2, &["fifo:0 is not one of"]),
        (
            "--scheduler rr:5 --disable-exits hlt",
            2,
            &["rr:5", "hangs", "--disable-exits", "--monopolize-cpus"],
        ),
    ] {
        refused(args, code, words)?;
    }
    let fifo = format!("--dedicated --affinity {last} --scheduler fifo:1");
    refused(&fifo, 2, &["(--dedicated)", "hangs", "cpu.monopolize_cpus (--monopolize-cpus) = true"])
}

fn an_exit_that_the_host_does_not_offer_is_refused_by_name() -> Result<()> {
    let offered = offered()?;
    for (name, exit) in DisabledExits::ALL {
        let args = format!("--disable-exits {name}");
        if offered.contains(exit) {
            stopped(halted(&args)?).with_context(|| args)?;
        } else {
            refused(&args, 3, &[&format!("does not offer {name}, but {offered}")])?;
        }
    }
    Ok(())
}

fn the_last_cpu_is_left_to_the_other_threads() -> Result<()> {
    let cpus = cpus()?;
    let all = CpuList::new(cpus.clone()).context("no CPU")?;
    let words =
        [format!("no host CPU is left for the other threads of the monitor, which may run on {all}, ")];
    refused(&format!("--dedicated --cpus {} --affinity {all}", cpus.len()), 3, &[&words[0]])?;
    // Confined to one CPU, which is to be dedicated, while there are others.
    let [first, .., last] = cpus[..] else { return Ok(()) };
    let confined = |dedicated: usize| {
        let args = format!("--dedicated --affinity {dedicated}");
        TestVm::guest("bench_reset").args(&args).through(&format!("taskset -c {last}")).run()
    };
    confined(last)?.ensure_code(3)?.ensure_message(&["`taskset -c ", "which may run on "])?;
    confined(first)?.ensure_code(0)?;
    Ok(())
}

fn a_policy_without_permission_is_refused_with_what_gives_it() -> Result<()> {
    let script = "ulimit -r 0; if [ \"$(id -u)\" = 0 ]; then exec \"$@\"; else exec unshare --map-root-user \"$@\"; fi";
    let vm = TestVm::guest("bench_halt").args("--scheduler fifo:10").through_shell(script);
    let finished = vm.through("setpriv --bounding-set=-sys_nice").run()?;
    finished.ensure_code(3)?.ensure_output("")?.ensure_message(&[
        "cpu.scheduler (--scheduler) = fifo:10",
        "ulimit -r",
        "CAP_SYS_NICE",
        "Operation not permitted",
    ])?;
    Ok(())
}

fn a_realtime_policy_is_that_of_the_vcpu_alone() -> Result<()> {
    if let Err(error) = Scheduler::Fifo(10).try_out() {
        return refused("--scheduler fifo:10", 3, &[&error.to_string()]);
    }
    let vm = halted("--scheduler fifo:10")?;
    let stats = of_each_thread(&vm, "stat")?;
    ensure!(stats.contains_key("vcpu0") && stats.len() > 1, "{stats:?}");
    for (name, stat) in stats {
        // Field 41 of proc_pid_stat(5), counted from behind the name, which is field 2.
        let policy = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(38));
        let expected = if name == "vcpu0" { libc::SCHED_FIFO } else { libc::SCHED_OTHER };
        ensure!(policy == Some(expected.to_string().as_str()), "{name}: {policy:?}");
    }
    stopped(vm)?;
    Ok(())
}

fn the_example_runs() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("dedicated.toml");
    fs::write(&file, include_str!("../../../examples/dedicated.toml"))?;
    let cpus = cpus()?;
    let code = if cpus.contains(&1) && cpus.len() > 1 { 0 } else { 3 };
    TestVm::bare().arg(&file).run()?.ensure_code(code)?;
    Ok(())
}
