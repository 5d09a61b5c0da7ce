//! Lifecycle: signals, stops and restarts.

use std::io::{PipeReader, Write};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use vmm_tests::harness::{RunningVm, TestVm, rounds, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        one_signal_stops_and_a_second_one_forces,
        the_end_of_the_grace_time_forces,
        fault_d4_signals_that_mean_nothing_are_ignored,
        fault_d4_a_stopped_and_continued_guest_goes_on,
        fault_d4_a_flood_of_kick_signals_does_no_harm,
        a_restarted_machine_is_a_fresh_one_in_the_same_process,
        fault_d7_50_restarts_cost_no_descriptor_no_thread_and_no_mapping,
        nothing_of_a_life_is_in_the_next_one,
        nothing_of_a_life_is_in_the_next_one_with_the_split_irqchip,
        nothing_of_a_life_is_in_the_next_one_where_signals_are_masked,
        only_a_machine_that_restarts_has_a_thread_for_it,
        restarts_have_a_limited_rate,
        a_stop_between_two_lives_is_not_put_off_to_the_next_one,
    ]
}

/// For what takes a moment on an idle host.
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest that floods an output that nobody reads: its monitor cannot write everything at its end.
fn with_a_full_pipe(args: &str) -> Result<(PipeReader, RunningVm)> {
    let (reader, stdout) = std::io::pipe()?;
    // One page, which the guest fills in a moment.
    fcntl(&stdout, FcntlArg::F_SETPIPE_SZ(4096))?;
    let vm = TestVm::guest("serial_flood").cmdline("ffffffff").args(args).stdout(stdout).spawn()?;
    until(Instant::now() + PATIENCE, "a flood", || {
        Ok((vm.process().cpu_time()? > Duration::from_millis(500)).then_some(()))
    })?;
    Ok((reader, vm))
}

fn one_signal_stops_and_a_second_one_forces() -> Result<()> {
    let (reader, vm) = with_a_full_pipe("")?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0).context("one signal")?;
    drop(reader);
    for (second, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let (reader, vm) = with_a_full_pipe("")?;
        vm.signal(Signal::SIGTERM)?;
        thread::sleep(Duration::from_millis(100));
        vm.signal(second)?;
        vm.wait()?.ensure_code(code)?.ensure_message(&[&format!("stop forced by {second}")])?;
        drop(reader);
    }
    Ok(())
}

fn the_end_of_the_grace_time_forces() -> Result<()> {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let (reader, vm) = with_a_full_pipe("--grace-time 100ms")?;
        vm.signal(signal)?;
        vm.wait()?.ensure_code(code)?.ensure_message(&["stop forced by the end of the grace time"])?;
        drop(reader);
    }
    Ok(())
}

fn fault_d4_signals_that_mean_nothing_are_ignored() -> Result<()> {
    let mut vm = TestVm::guest("serial_echo_irq").stdin(Stdio::piped()).spawn()?;
    vm.wait_for_output("ready\n")?;
    for signal in [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGXCPU, Signal::SIGXFSZ, Signal::SIGWINCH] {
        vm.signal(signal)?;
        vm.goes_on_for(Duration::from_millis(20)).context(signal)?;
    }
    vm.stdin()?.write_all(b"still here\x04")?;
    vm.wait()?.ensure_code(0)?.ensure_output("ready\nstill here")?;
    Ok(())
}

fn fault_d4_a_stopped_and_continued_guest_goes_on() -> Result<()> {
    // About two seconds of exits.
    let flood = format!("{:x}", rounds(0x1ffff));
    let mut vm = TestVm::guest("port_flood").cmdline(&flood).args("--cpus 2").spawn()?;
    for _ in 0..5 {
        vm.goes_on_for(Duration::from_millis(50))?;
        vm.signal(Signal::SIGSTOP)?;
        vm.goes_on_for(Duration::from_millis(200))?;
        ensure!(vm.process().is_stopped()?, "not stopped");
        let before = vm.process().cpu_time()?;
        vm.goes_on_for(Duration::from_millis(50))?;
        ensure!(vm.process().cpu_time()? == before, "runs while it is stopped");
        vm.signal(Signal::SIGCONT)?;
    }
    vm.wait()?.ensure_code(69)?;
    Ok(())
}

fn fault_d4_a_flood_of_kick_signals_does_no_harm() -> Result<()> {
    // The first real-time signal (34 with this libc) to the process and to each of its threads, from its start to its
    // end. Until the monitor has a handler for it, it is ignored, as its parent does.
    let script = "trap '' 34; \"$@\" & vm=$!; \
        { while kill -34 $vm; do for task in /proc/$vm/task/*; do kill -34 ${task##*/}; done; done; } 2>/dev/null; \
        wait $vm";
    let flood = format!("{:x}", rounds(0x8000));
    for cpus in [1, 4] {
        let vm = TestVm::guest("port_flood").cmdline(&flood).args(&format!("--cpus {cpus}"));
        vm.through_shell(script).run()?.ensure_code(69)?;
    }
    Ok(())
}

fn a_restarted_machine_is_a_fresh_one_in_the_same_process() -> Result<()> {
    let mut vm = TestVm::guest("boot_pvh").args("--on-reset restart --cpus 2").cmdline("again").spawn()?;
    vm.wait_for_lines("holes ffffffff\n", 2)?;
    vm.goes_on_for(Duration::from_millis(200))?;
    vm.signal(Signal::SIGTERM)?;
    let vm = vm.wait()?.ensure_code(0)?;
    let said = vm.text();
    let mut lives = said.split_inclusive("holes ffffffff\n");
    let first = lives.next().context("no first life")?;
    ensure!(first.starts_with("magic 336ec578\ncmdline again\n"), "{first:?}");
    ensure!(lives.next() == Some(first), "the lives differ: {said:?}");
    Ok(())
}

fn restarts_have_a_limited_rate() -> Result<()> {
    let start = Instant::now();
    let mut vm = TestVm::guest("debug_console").args("--on-reset restart").spawn()?;
    vm.wait_for_lines("debug console\n", 4)?;
    ensure!(start.elapsed() > Duration::from_millis(2900), "3 restarts in {:?}", start.elapsed());
    let used = vm.process().cpu_time()?;
    ensure!(used < Duration::from_secs(1), "3 restarts took {used:?} of a CPU");
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_stop_between_two_lives_is_not_put_off_to_the_next_one() -> Result<()> {
    let mut vm = TestVm::guest("debug_console").args("--on-reset restart").spawn()?;
    vm.wait_for_lines("debug console\n", 2)?;
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?.ensure_output("debug console\ndebug console\n")?;
    ensure!(start.elapsed() < Duration::from_millis(500), "took {:?}", start.elapsed());
    Ok(())
}

/// What each of `lives` lives says up to the reset.
fn lives(args: &str, lives: usize) -> Result<Vec<String>> {
    const END: &str = "end\n";
    let mut vm = TestVm::guest("reset_state").args("--on-reset restart").args(args).spawn()?;
    vm.wait_for_lines(END, lives)?;
    vm.signal(Signal::SIGTERM)?;
    let said = vm.wait()?.ensure_code(0)?.text();
    Ok(said.split_inclusive(END).take(lives).map(str::to_owned).collect())
}

/// The registers that the guest shows, each time of each CPU.
fn lists(life: &str) -> Vec<Vec<&str>> {
    let lists = life.split("list\n").skip(1);
    lists.map(|list| list.lines().filter(|line| *line != "end").collect()).collect()
}

fn nothing_is_left_of_a_life(args: &str) -> Result<()> {
    let lives = lives(args, 3)?;
    let first = lives.first().context("no life")?;
    let [born, changed, other_born, other_changed] = &lists(first)[..] else {
        bail!("two lists of each of two CPUs: {first}");
    };
    // Otherwise it would show nothing that the lives are alike.
    for (born, changed) in [(born, changed), (other_born, other_changed)] {
        let count = born.iter().zip(changed).filter(|(born, changed)| born != changed).count();
        ensure!(born.len() == changed.len(), "{born:?} {changed:?}");
        ensure!(count > 35, "{count} have changed: {born:?} {changed:?}");
    }
    for life in &lives {
        for (line, expected) in life.lines().zip(first.lines()) {
            ensure!(line == expected, "{line:?} and not {expected:?} in a further life: {life}");
        }
        ensure!(life.lines().count() == first.lines().count(), "{life}");
    }
    Ok(())
}

fn nothing_of_a_life_is_in_the_next_one() -> Result<()> {
    nothing_is_left_of_a_life("--cpus 4 --pit")
}

fn nothing_of_a_life_is_in_the_next_one_with_the_split_irqchip() -> Result<()> {
    nothing_is_left_of_a_life("--cpus 4 --irqchip split --scheduler batch --affinity 0")
}

fn nothing_of_a_life_is_in_the_next_one_where_signals_are_masked() -> Result<()> {
    nothing_is_left_of_a_life("--cpus 2 --kick signal-mask --memory-backing memfd --prefault")
}

fn only_a_machine_that_restarts_has_a_thread_for_it() -> Result<()> {
    for (args, expected) in [("", false), ("--on-reset restart", true)] {
        let mut vm = TestVm::guest("bench_halt").args(args).spawn()?;
        vm.wait_for_output("\x1e")?;
        let threads = vm.process().threads()?;
        ensure!(threads.iter().any(|thread| thread == "renewal") == expected, "{args}: {threads:?}");
        vm.signal(Signal::SIGTERM)?;
        vm.wait()?.ensure_code(0)?;
    }
    Ok(())
}

fn fault_d7_50_restarts_cost_no_descriptor_no_thread_and_no_mapping() -> Result<()> {
    const LIFE: &str = "rings 00002710\n";
    let counts = |vm: &mut RunningVm, lives: usize| -> Result<_> {
        vm.wait_for_lines(LIFE, lives)?;
        // Between two lives what there is belongs to the process, or is what KVM has made of the machine.
        thread::sleep(Duration::from_millis(400));
        let process = vm.process();
        Ok((process.descriptors()?, process.threads()?, process.mappings()?))
    };
    let vm = TestVm::guest("doorbell").args("--selftest --cpus 2 --on-reset restart");
    let mut vm = vm.deadline(Duration::from_secs(180)).spawn()?;
    // Threads of devices have their first stacks by then, and the allocator its arenas.
    let few = rounds(5);
    let (descriptors, threads, mappings) = counts(&mut vm, few)?;
    let more = rounds(50);
    let after_many = counts(&mut vm, few + more)?;
    ensure!(
        (descriptors, &threads) == (after_many.0, &after_many.1),
        "{descriptors} {threads:?} {after_many:?}"
    );
    // The allocator may take another heap, and give it back.
    let most = mappings + more / 10;
    ensure!(after_many.2 <= most, "{mappings} mappings, and {} after {more} more lives", after_many.2);
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}
