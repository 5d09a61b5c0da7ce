//! Control: the control socket and its client, with good clients and bad ones.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmm_tests::harness::{ControlClient, ControlSocket, PATIENCE, RunningVm, TestVm, monitor, rounds, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        ctl_says_what_each_verb_has_come_to,
        a_balloon_is_shown_and_set_before_there_is_a_driver,
        pause_and_resume_may_come_twice,
        a_paused_guest_does_nothing_until_it_is_resumed,
        a_reset_ends_the_machine_or_starts_it_again_on_the_same_socket,
        a_quit_ends_with_0_also_between_two_lives,
        fault_d7_500_rounds_of_every_verb_leave_nothing_behind,
        fault_d5_500_resets_and_quits_end_in_order,
        fault_c11_ten_clients_at_once_are_served,
        fault_c11_the_owner_is_answered_among_fifty_half_open_clients,
        fault_c10_the_owner_is_answered_beside_a_request_of_100_mb,
        fault_c10_malformed_requests_are_answered_and_the_machine_goes_on,
        fault_c11_a_client_that_vanishes_harms_nobody,
        fault_c11_a_killed_monitor_leaves_a_socket_that_the_next_replaces,
        fault_c11_a_socket_in_use_and_a_file_are_refused,
        fault_d7_the_socket_is_private_and_gone_after_every_end,
        fault_c1_without_a_free_descriptor_a_new_client_is_served,
        another_user_is_refused,
        ctl_says_why_there_is_no_answer,
    ]
}

/// What `bench_halt` says once it runs.
const RUNS: &str = "\x1e";

/// Starts a guest that halts for good, and waits until it has done so.
fn halted(place: &ControlSocket, args: &str) -> Result<RunningVm> {
    let mut vm = place.start(TestVm::guest("bench_halt").args(args))?;
    vm.wait_for_output(RUNS)?;
    place.reaches("running")?;
    Ok(vm)
}

fn ensure_ok(answer: &Value) -> Result<()> {
    ensure!(answer.get("ok").is_some(), "{answer}");
    Ok(())
}

fn ensure_error(answer: &Value, code: &str) -> Result<()> {
    ensure!(answer["error"]["code"] == code, "{answer} instead of {code}");
    Ok(())
}

fn ctl_says_what_each_verb_has_come_to() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "--cpus 2 --memory 64M")?;
    let status = place.ctl("status")?.ensure_code(0)?.text();
    for row in ["state    running\n", "vcpus    2\n", "memory   64M\n", &format!("{}\n", vm.process().pid())]
    {
        ensure!(status.contains(row), "{row:?} is missing in {status:?}");
    }
    place.ctl("pause --limit 20s")?.ensure_code(0)?.ensure_output("paused\n")?;
    let line = place.ctl("status --json")?.ensure_code(0)?.text();
    let answer: Value = serde_json::from_str(&line)?;
    ensure!(answer["ok"]["state"] == "paused", "{line}");
    place.ctl("resume")?.ensure_code(0)?.ensure_output("running\n")?;
    let refused = place.ctl("power-button")?.ensure_code(1)?.ensure_output("")?;
    refused.ensure_message(&["vmm-cli: the guest does not listen"])?;
    let refused: Value = serde_json::from_str(&place.ctl("--json power-button")?.ensure_code(1)?.text())?;
    ensure_error(&refused, "not-listening")?;
    let stats = place.ctl("stats")?.ensure_code(0)?.text();
    ensure!(stats.starts_with("vCPUs, counted by vmm-cli") && stats.contains("pauses"), "{stats}");
    let stats: Value = serde_json::from_str(&place.ctl("stats --json")?.ensure_code(0)?.text())?;
    ensure!(stats["ok"]["vcpus"][1]["monitor"]["pauses"] == 1, "{stats}");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    ensure!(!place.path().exists(), "the socket is still there");
    Ok(())
}

fn a_balloon_is_shown_and_set_before_there_is_a_driver() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "--memory 64M --balloon size=4M,statistics_interval=2s")?;
    let shown = place.ask("balloon")?;
    ensure!(shown["ok"]["driver"] == false && shown["ok"]["target_bytes"] == 4 << 20, "{shown}");
    ensure!(shown["ok"]["statistics_interval"] == "2s" && shown["ok"]["statistics"].is_null(), "{shown}");
    let set = place.ctl("balloon-set --size 64M --statistics-interval 0s")?.ensure_code(0)?.text();
    for row in
        ["driver               no\n", "target               67108864 bytes\n", "hinting              idle\n"]
    {
        ensure!(set.contains(row), "{row:?} is missing in {set:?}");
    }
    let refused = place.ctl("balloon-set --size 65M")?.ensure_code(1)?;
    refused.ensure_message(&["larger than the guest's RAM of 67108864"])?;
    place.ctl("balloon-hinting start")?.ensure_code(1)?.ensure_message(&["no driver for its balloon"])?;
    place.ctl("balloon-hinting stop")?.ensure_code(0)?;
    ensure!(vm.process().threads()?.iter().any(|name| name == "balloon"), "there is no thread for it");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    let vm = halted(&place, "")?;
    ensure_error(&place.ask("balloon")?, "no-balloon")?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn pause_and_resume_may_come_twice() -> Result<()> {
    let place = ControlSocket::new()?;
    let _vm = halted(&place, "--cpus 4")?;
    for (verb, state) in [("pause", "paused"), ("resume", "running")] {
        for _ in 0..2 {
            let answer = place.ask(verb)?;
            ensure!(answer == json!({ "ok": { "state": state } }), "{answer}");
            ensure!(place.state()? == state, "not {state}");
        }
    }
    Ok(())
}

/// How many port reads the vCPUs have made.
fn port_reads(place: &ControlSocket) -> Result<u64> {
    let answer = place.ask("stats")?;
    let vcpus = answer["ok"]["vcpus"].as_array().context(format!("{answer}"))?;
    Ok(vcpus.iter().filter_map(|vcpu| vcpu["monitor"]["port_reads"].as_u64()).sum())
}

fn a_paused_guest_does_nothing_until_it_is_resumed() -> Result<()> {
    let place = ControlSocket::new()?;
    let mut vm = place.start(TestVm::guest("port_flood").cmdline("ffffffff"))?;
    place.reaches("running")?;
    for round in 0..rounds(200) {
        ensure_ok(&place.ask("pause")?)?;
        let before = port_reads(&place)?;
        if round == 0 {
            vm.goes_on_for(Duration::from_millis(100))?;
        }
        ensure!(port_reads(&place)? == before, "round {round}: runs while it is paused");
        ensure_ok(&place.ask("resume")?)?;
        until(Instant::now() + PATIENCE, "the guest's next access", || {
            Ok((port_reads(&place)? > before).then_some(()))
        })?;
    }
    ensure_ok(&place.ask("quit")?)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_reset_ends_the_machine_or_starts_it_again_on_the_same_socket() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "--on-reset exit")?;
    ensure_ok(&place.ask("reset")?)?;
    vm.wait()?.ensure_code(0)?;
    let mut vm = halted(&place, "--on-reset restart --cpus 2")?;
    let mut client = place.client()?;
    for life in 2..4 {
        // One that is paused runs again too.
        ensure_ok(&client.ask_for("pause")?)?;
        ensure_ok(&client.ask_for("reset")?)?;
        vm.wait_for_lines(RUNS, life)?;
        place.reaches("running")?;
        let status = client.ask_for("status")?;
        ensure!(status["ok"]["pid"] == vm.process().pid().as_raw(), "{status}");
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn a_quit_ends_with_0_also_between_two_lives() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = place.start(TestVm::guest("bench_reset").args("--on-reset restart"))?;
    // Its lives are short and the time between them is a second.
    place.reaches("starting")?;
    let mut client = place.client()?;
    let answer = client.ask_for("pause")?;
    if answer.get("ok").is_none() {
        let code = answer["error"]["code"].as_str().context("no code")?;
        ensure!(["starting", "stopping"].contains(&code), "{answer}");
    }
    ensure_ok(&client.ask_for("quit")?)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_d7_500_rounds_of_every_verb_leave_nothing_behind() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = place.start(TestVm::guest("port_flood").cmdline("ffffffff").args("--cpus 2"))?;
    place.reaches("running")?;
    let round = || -> Result<()> {
        let mut client = place.client()?;
        for verb in ["status", "pause", "status", "stats", "resume", "status", "stats"] {
            ensure_ok(&client.ask_for(verb)?).context(verb)?;
        }
        ensure_error(&client.ask_for("power-button")?, "not-listening")
    };
    round()?;
    // A connection and a thread that end are seen to do so a moment later.
    let before = (vm.process().descriptors()?, vm.process().threads()?);
    for number in 0..rounds(500) {
        round().with_context(|| format!("round {number}"))?;
    }
    until(Instant::now() + PATIENCE, "as few descriptors and threads as before", || {
        let (descriptors, threads) = (vm.process().descriptors()?, vm.process().threads()?);
        Ok((descriptors <= before.0 && threads.len() <= before.1.len()).then_some(()))
    })?;
    ensure_ok(&place.ask("quit")?)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_d5_500_resets_and_quits_end_in_order() -> Result<()> {
    for round in 0..rounds(500) {
        let place = ControlSocket::new()?;
        for verb in ["reset", "quit"] {
            let vm = place.start(TestVm::guest("bench_halt").args("--cpus 2"))?;
            // At whatever moment of the machine's start; a quit is always taken, a reset once there is something to reset.
            if verb == "reset" {
                place.reaches("running")?;
            }
            // Under a pause that may be answered before or after it.
            let mut pausing = place.client()?;
            pausing.send(b"{\"verb\":\"pause\"}\n")?;
            ensure_ok(&place.ask(verb)?).with_context(|| format!("{verb}, round {round}"))?;
            vm.wait()?.ensure_code(0).with_context(|| format!("{verb}, round {round}"))?;
            let answer = pausing.receive().with_context(|| format!("{verb}, round {round}"))?;
            let code = answer["error"]["code"].as_str();
            ensure!(
                answer.get("ok").is_some() || matches!(code, Some("starting" | "stopping")),
                "{verb}, round {round}: {answer}"
            );
            ensure!(!place.path().exists(), "{verb}, round {round}: the socket is still there");
        }
    }
    Ok(())
}

fn fault_c11_ten_clients_at_once_are_served() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = place.start(TestVm::guest("port_flood").cmdline("ffffffff").args("--cpus 2"))?;
    place.reaches("running")?;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..10)
            .map(|client| {
                let place = &place;
                scope.spawn(move || -> Result<()> {
                    let mut connection = place.client()?;
                    for round in 0..rounds(100) {
                        let verb = ["status", "pause", "resume", "stats"][(client + round) % 4];
                        let answer = connection.ask_for(verb)?;
                        // Somebody else's resume may end a pause.
                        if answer["error"]["code"] != "resumed" {
                            ensure_ok(&answer).with_context(|| format!("client {client}, {verb}"))?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| match client.join() {
            Ok(result) => result,
            Err(_) => bail!("a client panicked"),
        })
    })?;
    ensure_ok(&place.ask("quit")?)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_c11_the_owner_is_answered_among_fifty_half_open_clients() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "")?;
    let mut half_open = Vec::new();
    for client in 0..50 {
        let stream = UnixStream::connect(place.path())?;
        // Half of them say something, and none all of it. Those that had to make room cannot.
        let _ = (&stream).write_all(if client % 2 == 0 { b"{\"verb\":" } else { b"" });
        half_open.push(stream);
        place.ctl("status")?.ensure_code(0).with_context(|| format!("beside {client} others"))?;
    }
    for verb in ["pause", "resume", "stats", "quit"] {
        place.ctl(verb)?.ensure_code(0).context(verb)?;
    }
    vm.wait()?.ensure_code(0)?;
    drop(half_open);
    Ok(())
}

fn fault_c10_the_owner_is_answered_beside_a_request_of_100_mb() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "")?;
    let stream = UnixStream::connect(place.path())?;
    let mut reader = ControlClient::new(stream.try_clone()?)?;
    let flood = thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        (0..100).try_for_each(|_| (&stream).write_all(&chunk)).is_err()
    });
    place.ctl("status")?.ensure_code(0)?;
    ensure_error(&reader.receive()?, "too-long")?;
    ensure!(flood.join().is_ok_and(|refused| refused), "all of it was taken");
    // The same as lines, each a request: one client alone, and as many as there may be.
    let floods: Vec<_> = (0..20)
        .map(|_| {
            let stream = UnixStream::connect(place.path())?;
            Ok(thread::spawn(move || {
                let chunk = b"{\"verb\":\"stats\"}\n".repeat(4096);
                // Ends when it is cut off, by the next ones or by the end.
                while (&stream).write_all(&chunk).is_ok() {}
            }))
        })
        .collect::<Result<_>>()?;
    for _ in 0..rounds(20) {
        place.ctl("status")?.ensure_code(0).context("beside floods")?;
    }
    let peak = vm.process().peak_rss()?;
    ensure!(peak < 24 << 10, "{peak} KiB were resident");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    floods.into_iter().for_each(|flood| drop(flood.join()));
    Ok(())
}

fn fault_c10_malformed_requests_are_answered_and_the_machine_goes_on() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "")?;
    let mut client = place.client()?;
    let deep = ["[".repeat(5000), "]".repeat(5000)].concat();
    for request in [
        String::new(),
        "PRI * HTTP/2.0\r".into(),
        "{\"verb\":\"reboot\"}".into(),
        "{\"verb\":\"status\",\"body\":1}".into(),
        "{\"verb\":\"pause\",\"limit\":-1}".into(),
        format!("{{\"verb\":{deep}}}"),
        deep,
        "x".repeat(60_000),
    ] {
        client.send(format!("{request}\n").as_bytes())?;
        let answer = client.receive()?;
        ensure_error(&answer, "bad-request")?;
        ensure!(answer["error"]["column"].is_u64(), "{answer}");
    }
    client.send(b"\xff\xfe\n")?;
    ensure_error(&client.receive()?, "bad-request")?;
    ensure_ok(&client.ask_for("status")?)?;
    ensure_ok(&client.ask_for("quit")?)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_c11_a_client_that_vanishes_harms_nobody() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = place.start(TestVm::guest("port_flood").cmdline("ffffffff").args("--cpus 2"))?;
    place.reaches("running")?;
    for round in 0..rounds(200) {
        for verb in ["stats", "pause", "resume"] {
            place.client()?.send(format!("{{\"verb\":\"{verb}\"}}\n{{\"verb\":\"sta").as_bytes())?;
        }
        place.state().with_context(|| format!("round {round}"))?;
    }
    ensure_ok(&place.ask("quit")?)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_c11_a_killed_monitor_leaves_a_socket_that_the_next_replaces() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "")?;
    vm.signal(Signal::SIGKILL)?;
    vm.wait()?.ensure_signal(Signal::SIGKILL)?;
    ensure!(place.path().exists(), "who removed it?");
    place.ctl("status")?.ensure_code(3)?.ensure_message(&["nobody listens", "has ended"])?;
    let vm = halted(&place, "")?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    ensure!(!place.path().exists(), "the socket is still there");
    Ok(())
}

fn fault_c11_a_socket_in_use_and_a_file_are_refused() -> Result<()> {
    let place = ControlSocket::new()?;
    let second = || TestVm::guest("bench_reset").arg("--api-sock").arg(place.path()).run();
    let vm = halted(&place, "")?;
    second()?
        .ensure_code(2)?
        .ensure_message(&["control.socket (--api-sock)", "in use by another program"])?;
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    fs::write(place.path(), "precious")?;
    second()?.ensure_code(2)?.ensure_message(&["control.socket (--api-sock)", "not a socket"])?;
    ensure!(fs::read(place.path())? == b"precious", "the file was overwritten");
    let vm = TestVm::guest("bench_reset").args("--api-sock").arg("s".repeat(108)).run()?;
    vm.ensure_code(2)?.ensure_message(&["control.socket (--api-sock)", "above the limit of 107"])?;
    let vm = TestVm::guest("bench_reset").args("--api-sock /nowhere/socket").run()?;
    vm.ensure_code(2)?.ensure_message(&["control.socket (--api-sock)", "/nowhere/socket", "No such file"])?;
    Ok(())
}

fn fault_d7_the_socket_is_private_and_gone_after_every_end() -> Result<()> {
    let place = ControlSocket::new()?;
    let path = place.path().to_owned();
    let is_gone = |how: &str| -> Result<()> {
        ensure!(!path.exists(), "{how}: the socket is still there");
        Ok(())
    };
    let vm = place.start(TestVm::guest("bench_halt").through_shell("umask 0; exec \"$@\""))?;
    let mode = path.metadata()?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the mode of the socket is {mode:o}");
    place.reaches("running")?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    is_gone("after a signal")?;
    for (guest, code) in [("bench_reset", 0), ("triple_fault", 4)] {
        TestVm::guest(guest).arg("--api-sock").arg(&path).run()?.ensure_code(code)?;
        is_gone(guest)?;
    }
    TestVm::bare().arg("--api-sock").arg(&path).args("--cpus 2").run()?.ensure_code(0)?;
    is_gone("after the embedded guest")?;
    // A teardown that takes longer than it may.
    let (reader, stdout) = std::io::pipe()?;
    fcntl(&stdout, FcntlArg::F_SETPIPE_SZ(4096))?;
    let vm = TestVm::guest("serial_flood").cmdline("ffffffff").args("--grace-time 100ms").stdout(stdout);
    let vm = place.start(vm)?;
    until(Instant::now() + PATIENCE, "a flood", || {
        Ok((vm.process().cpu_time()? > Duration::from_millis(500)).then_some(()))
    })?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(143)?.ensure_message(&["stop forced"])?;
    drop(reader);
    is_gone("after a forced stop")
}

fn fault_c1_without_a_free_descriptor_a_new_client_is_served() -> Result<()> {
    let place = ControlSocket::new()?;
    // The fewest with which the machine runs.
    let mut limits = 3..=64;
    let (limit, vm) = loop {
        let limit = limits.next().context("64 descriptors are not enough")?;
        let vm = TestVm::guest("bench_halt").through_shell(&format!("ulimit -n {limit}; exec \"$@\""));
        let mut vm = vm.arg("--api-sock").arg(place.path()).spawn()?;
        if vm.wait_for_output(RUNS).is_ok() {
            break (limit, vm);
        }
        vm.wait()?.ensure_code(3).with_context(|| format!("{limit} descriptors"))?;
    };
    let mut others = Vec::new();
    for round in 0..2 * limit {
        others.push(UnixStream::connect(place.path())?);
        place.ctl("status")?.ensure_code(0).with_context(|| format!("beside {round} others"))?;
    }
    let (watched, before) = (Duration::from_millis(500), vm.process().cpu_time()?);
    thread::sleep(watched);
    let used = vm.process().cpu_time()?.saturating_sub(before);
    ensure!(used < watched / 10, "{used:?} of {watched:?} for clients that say nothing");
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn another_user_is_refused() -> Result<()> {
    let place = ControlSocket::new()?;
    let vm = halted(&place, "")?;
    // Another user needs a way to the socket and the right to connect, so that the monitor itself has to refuse.
    let directory = place.path().parent().context("no directory")?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    let as_nobody = || {
        let ctl = TestVm::program(monitor()).arg("ctl").arg(place.path()).args("status");
        ctl.through("setpriv --reuid=65534 --regid=65534 --clear-groups").run()
    };
    // Only root can be somebody else.
    if fs::metadata("/proc/self")?.uid() == 0 {
        as_nobody()?.ensure_code(3)?.ensure_message(&["no permission"])?;
        fs::set_permissions(place.path(), Permissions::from_mode(0o666))?;
        as_nobody()?.ensure_code(1)?.ensure_message(&["user 65534 is neither root nor"])?;
    }
    place.ctl("quit")?.ensure_code(0)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn ctl_says_why_there_is_no_answer() -> Result<()> {
    let place = ControlSocket::new()?;
    place.ctl("status")?.ensure_code(3)?.ensure_message(&["there is no socket", "--api-sock"])?;
    fs::write(place.path(), "")?;
    place.ctl("status")?.ensure_code(3)?.ensure_message(&["is not a control socket"])?;
    fs::remove_file(place.path())?;
    let listener = UnixListener::bind(place.path())?;
    let late = place.ctl("status --timeout 200ms")?.ensure_code(3)?;
    late.ensure_message(&["no answer", "within 200ms (--timeout)"])?;
    // The one that has given up.
    drop(listener.accept()?);
    // Says something else, or nothing.
    for (said, words) in [("welcome\n", "what is no answer"), ("", "closed without an answer")] {
        let ctl = TestVm::program(monitor()).arg("ctl").arg(place.path()).args("quit").spawn()?;
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut [0; 16])?;
        stream.write_all(said.as_bytes())?;
        drop(stream);
        ctl.wait()?.ensure_code(3)?.ensure_message(&[words])?;
    }
    let long = Path::new("/").join("s".repeat(200));
    let ctl = TestVm::program(monitor()).arg("ctl").arg(long).args("status").run()?;
    ctl.ensure_code(2)?.ensure_message(&["at most 107"])?;
    place.ctl("reboot")?.ensure_code(2)?;
    Ok(())
}
