//! Console: what becomes of the guest's serial port on pipes, files and sockets, good ones and bad ones.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use vmm_tests::harness::{RunningVm, TestVm, status_flags, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        input_through_a_pipe_arrives_complete_and_in_order,
        input_through_a_pty_arrives_complete_and_in_order,
        input_through_a_socket_arrives_complete_and_in_order,
        an_end_of_input_is_no_end_of_the_guest,
        fault_b12_the_guest_goes_on_when_nobody_reads_its_output,
        fault_b12_the_guest_goes_on_when_nobody_reads_the_log,
        fault_b12_the_guest_goes_on_when_its_reader_is_gone,
        fault_b12_the_guest_goes_on_without_standard_descriptors,
        fault_b12_the_guest_goes_on_when_the_disk_is_full,
        fault_b12_the_guest_goes_on_when_its_file_is_at_the_limit,
        fault_b13_input_that_the_guest_never_reads_is_bounded,
        null_takes_everything_and_says_nothing,
        a_file_gets_the_output_and_is_private,
        a_socket_serves_one_client_after_the_other_and_goes_with_the_monitor,
        a_client_that_leaves_unread_input_makes_room_for_the_next,
        fault_c11_a_stale_socket_is_replaced_and_a_file_is_not,
        inherited_descriptors_keep_their_flags,
    ]
}

const ECHOES: [&str; 2] = ["serial_echo", "serial_echo_irq"];
const END_OF_TRANSMISSION: u8 = 4;

/// More than the console's buffer and a pipe of one page hold together, in hexadecimal.
const FLOOD: &str = "44000";
/// The code that says that the flood is over.
const FLOODED: i32 = 69;

/// Of a machine of 128 MiB whose guest uses none of it.
const RSS_LIMIT_KIB: u64 = 16 << 10;

/// Bytes that tell where in the stream they are, none of them the end of transmission.
fn input() -> Vec<u8> {
    (0..10_000_u32).map(|at| b' ' + ((at / 89 + at) % 89) as u8).collect()
}

/// What the guest says, and then echoes.
fn expected() -> Vec<u8> {
    [b"ready\n".as_slice(), &input()].concat()
}

fn same(guest: &str, received: &[u8]) -> Result<()> {
    let expected = expected();
    let equal = received.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let (got, wanted) = (received.len(), expected.len());
    ensure!(received == expected, "{guest}: {got} bytes instead of {wanted}, the same up to {equal}");
    Ok(())
}

/// Sends the input to the guest, compares what comes back, and ends it: only then, because what nobody has read from a
/// pseudo-terminal goes with it. Reading and writing are two threads: neither side has to take more than it has room
/// for.
fn exchange(guest: &str, mut reader: impl Read, mut writer: impl Write + Send + 'static) -> Result<()> {
    let sender = thread::spawn(move || writer.write_all(&input()).map(|()| writer));
    let mut received = vec![0; expected().len()];
    reader.read_exact(&mut received).context("the guest's echo")?;
    same(guest, &received)?;
    match sender.join() {
        Ok(writer) => Ok(writer?.write_all(&[END_OF_TRANSMISSION])?),
        Err(_) => bail!("the sender panicked"),
    }
}

fn input_through_a_pipe_arrives_complete_and_in_order() -> Result<()> {
    for guest in ECHOES {
        let (stdin, mut writer) = std::io::pipe()?;
        let vm = TestVm::guest(guest).stdin(stdin).spawn()?;
        writer.write_all(&input())?;
        writer.write_all(&[END_OF_TRANSMISSION])?;
        let vm = vm.wait()?.ensure_code(0)?;
        same(guest, &vm.stdout)?;
    }
    Ok(())
}

fn input_through_a_pty_arrives_complete_and_in_order() -> Result<()> {
    for guest in ECHOES {
        let vm = TestVm::guest(guest).args("--serial pty").spawn()?;
        let name = vm.wait_for_message("serial port: ")?;
        let terminal = File::options().read(true).write(true).open(name)?;
        exchange(guest, terminal.try_clone()?, terminal)?;
        vm.wait()?.ensure_code(0)?.ensure_output("")?;
    }
    Ok(())
}

/// Connects as soon as somebody listens.
fn connect(path: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let client = until(deadline, "the socket", || Ok(UnixStream::connect(path).ok()))?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(client)
}

fn input_through_a_socket_arrives_complete_and_in_order() -> Result<()> {
    for guest in ECHOES {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("socket");
        let vm = TestVm::guest(guest).arg("--serial").arg(format!("unix={}", path.display())).spawn()?;
        let client = connect(&path)?;
        exchange(guest, client.try_clone()?, client)?;
        vm.wait()?.ensure_code(0)?.ensure_output("")?;
    }
    Ok(())
}

fn an_end_of_input_is_no_end_of_the_guest() -> Result<()> {
    let (stdin, writer) = std::io::pipe()?;
    let mut vm = TestVm::guest("serial_echo_irq").stdin(stdin).spawn()?;
    vm.wait_for_output("ready\n")?;
    drop(writer);
    thread::sleep(Duration::from_millis(100));
    let before = vm.process().cpu_time()?;
    vm.goes_on_for(Duration::from_millis(500))?;
    let used = vm.process().cpu_time()?.saturating_sub(before);
    ensure!(used < Duration::from_millis(50), "input at its end takes {used:?} of half a second");
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

/// The most memory that `vm` has until it ends; looked at all the time, so that its end is not missed.
fn peak_until_end(mut vm: RunningVm, code: i32) -> Result<u64> {
    let mut peak = 0;
    while vm.is_running()? {
        if let Ok(now) = vm.process().peak_rss() {
            peak = now.max(peak);
        }
        thread::sleep(Duration::from_millis(10));
    }
    vm.wait()?.ensure_code(code)?;
    Ok(peak)
}

fn fault_b12_the_guest_goes_on_when_nobody_reads_its_output() -> Result<()> {
    let (reader, stdout) = std::io::pipe()?;
    fcntl(&stdout, FcntlArg::F_SETPIPE_SZ(4096))?;
    let vm = TestVm::guest("serial_flood").cmdline(FLOOD).stdout(stdout).spawn()?;
    let peak = peak_until_end(vm, FLOODED)?;
    ensure!(peak < RSS_LIMIT_KIB, "{peak} KiB were resident");
    drop(reader);
    Ok(())
}

fn fault_b12_the_guest_goes_on_when_nobody_reads_the_log() -> Result<()> {
    for (guest, code) in [("port_flood", 69), ("triple_fault", 4), ("bench_reset", 0)] {
        let (reader, stderr) = std::io::pipe()?;
        // Full before the monitor writes its first byte.
        fcntl(&stderr, FcntlArg::F_SETPIPE_SZ(4096))?;
        (&stderr).write_all(&[b'x'; 4096])?;
        let vm = TestVm::guest(guest).cmdline("1000").args("--log-level trace").stderr(stderr);
        vm.deadline(Duration::from_secs(20)).run()?.ensure_code(code).context(guest)?;
        drop(reader);
    }
    Ok(())
}

fn fault_b12_the_guest_goes_on_when_its_reader_is_gone() -> Result<()> {
    let (reader, stdout) = std::io::pipe()?;
    drop(reader);
    let vm = TestVm::guest("serial_flood").cmdline("1000").stdout(stdout).run()?.ensure_code(FLOODED)?;
    ensure!(!vm.stderr.contains("panicked"), "{:?}", vm.stderr);
    Ok(())
}

fn fault_b12_the_guest_goes_on_without_standard_descriptors() -> Result<()> {
    for closed in [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"] {
        let script = format!("exec \"$@\" {closed}");
        let vm = TestVm::guest("serial_flood").cmdline("1000").through_shell(&script).run()?;
        vm.ensure_code(FLOODED).context(closed)?;
        let vm = TestVm::guest("triple_fault").through_shell(&script).run()?;
        vm.ensure_code(4).context(closed)?;
    }
    Ok(())
}

fn fault_b12_the_guest_goes_on_when_the_disk_is_full() -> Result<()> {
    let full = || File::options().write(true).open("/dev/full");
    let vm = TestVm::guest("serial_flood").cmdline("1000").stdout(full()?).run()?;
    vm.ensure_code(FLOODED)?.ensure_message(&["4096", "dropped"])?;
    TestVm::guest("triple_fault").stderr(full()?).run()?.ensure_code(4)?;
    let vm = TestVm::guest("serial_flood").cmdline("1000").args("--serial file=/dev/full").run()?;
    vm.ensure_code(FLOODED)?;
    Ok(())
}

fn fault_b12_the_guest_goes_on_when_its_file_is_at_the_limit() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    // Blocks of 512 bytes.
    let vm = TestVm::guest("serial_flood").cmdline("1000").through_shell("ulimit -f 2; exec \"$@\"");
    vm.arg("--serial").arg(format!("file={}", file.path().display())).run()?.ensure_code(FLOODED)?;
    let length = file.as_file().metadata()?.len();
    ensure!((1..=1024).contains(&length), "the file has {length} bytes");
    Ok(())
}

fn fault_b13_input_that_the_guest_never_reads_is_bounded() -> Result<()> {
    let (stdin, mut writer) = std::io::pipe()?;
    let mut vm = TestVm::guest("bench_halt").stdin(stdin).spawn()?;
    vm.wait_for_output("\x1e")?;
    // A pipe takes 64 KiB; a write ends early when the other end is closed.
    let flood = thread::spawn(move || (0..1000).try_for_each(|_| writer.write_all(&[b'i'; 4096])).is_err());
    vm.goes_on_for(Duration::from_millis(500))?;
    let before = vm.process().cpu_time()?;
    vm.goes_on_for(Duration::from_millis(500))?;
    let used = vm.process().cpu_time()?.saturating_sub(before);
    ensure!(used < Duration::from_millis(50), "input that nobody reads takes {used:?} of half a second");
    let peak = vm.process().peak_rss()?;
    ensure!(peak < RSS_LIMIT_KIB, "{peak} KiB were resident");
    ensure!(!flood.is_finished(), "all of the input was taken");
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    ensure!(flood.join().is_ok_and(|broken| broken), "the pipe is still open");
    Ok(())
}

fn null_takes_everything_and_says_nothing() -> Result<()> {
    TestVm::guest("boot_pvh").args("--serial null").run()?.ensure_code(0)?.ensure_output("")?;
    TestVm::guest("debug_console").args("--serial null").run()?.ensure_code(0)?.ensure_output("")?;
    Ok(())
}

fn a_file_gets_the_output_and_is_private() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("serial");
    let vm = TestVm::guest("debug_console").arg("--serial").arg(format!("file={}", path.display())).run()?;
    vm.ensure_code(0)?.ensure_output("")?;
    ensure!(fs::read(&path)? == b"debug console\n", "{:?}", fs::read(&path)?);
    let mode = path.metadata()?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the mode of the file is {mode:o}");
    Ok(())
}

fn a_socket_serves_one_client_after_the_other_and_goes_with_the_monitor() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let vm = TestVm::guest("serial_echo_irq").arg("--serial").arg(format!("unix={}", path.display()));
    let vm = vm.spawn()?;
    for (round, greeting) in ["ready\n", "", ""].into_iter().enumerate() {
        let mut client = connect(&path)?;
        let line = format!("client {round}\n");
        client.write_all(line.as_bytes())?;
        let mut received = vec![0; greeting.len() + line.len()];
        client.read_exact(&mut received).with_context(|| format!("client {round}"))?;
        ensure!(received == [greeting, &line].concat().as_bytes(), "client {round} got {received:?}");
    }
    let mut last = connect(&path)?;
    last.write_all(&[END_OF_TRANSMISSION])?;
    vm.wait()?.ensure_code(0)?;
    ensure!(!path.exists(), "the socket is still there");
    Ok(())
}

fn a_client_that_leaves_unread_input_makes_room_for_the_next() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let vm = TestVm::guest("serial_flood").cmdline("ffffffff").arg("--serial");
    let vm = vm.arg(format!("unix={}", path.display())).spawn()?;
    for client in 0..3 {
        let mut stream = connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut said = [0; 16];
        stream.read_exact(&mut said).with_context(|| format!("client {client}"))?;
        ensure!(said == [b'f'; 16], "client {client} got {said:?}");
        // More than the guest's FIFO and what is read ahead for it.
        stream.write_all(&[b'i'; 1000])?;
        thread::sleep(Duration::from_millis(50));
    }
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn fault_c11_a_stale_socket_is_replaced_and_a_file_is_not() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let run = || TestVm::guest("bench_reset").arg("--serial").arg(format!("unix={}", path.display())).run();
    drop(UnixListener::bind(&path)?);
    run()?.ensure_code(0).context("over a stale socket")?;
    let other = UnixListener::bind(&path)?;
    run()?.ensure_code(2)?.ensure_message(&["in use by another program"])?;
    drop(other);
    fs::remove_file(&path)?;
    fs::write(&path, "precious")?;
    run()?.ensure_code(2)?.ensure_message(&["not a socket", "socket exists"])?;
    ensure!(fs::read(&path)? == b"precious", "the file was overwritten");
    Ok(())
}

fn inherited_descriptors_keep_their_flags() -> Result<()> {
    let (stdin, input) = std::io::pipe()?;
    let (output, stdout) = std::io::pipe()?;
    let (errors, stderr) = std::io::pipe()?;
    let flags =
        || -> Result<_> { Ok([status_flags(&stdin)?, status_flags(&stdout)?, status_flags(&stderr)?]) };
    let before = flags()?;
    let start = |guest| -> Result<_> {
        let vm = TestVm::guest(guest).stdin(stdin.try_clone()?).stdout(stdout.try_clone()?);
        vm.stderr(stderr.try_clone()?).spawn()
    };
    let vm = start("bench_halt")?;
    (&output).read_exact(&mut [0])?;
    ensure!(flags()? == before, "changed while the guest runs");
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    start("triple_fault")?.wait()?.ensure_code(4)?;
    ensure!(flags()? == before, "changed from {before:?} to {:?}", flags()?);
    drop((input, errors));
    Ok(())
}
