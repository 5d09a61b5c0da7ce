//! Sockets: programs of the guest and of its host reach each other, and what becomes of one costs the others nothing.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, RunningVm, is_full, until};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: Shape = Shape::new(KernelFormat::BzImage, 1);
    const TWO: Shape = Shape::new(KernelFormat::BzImage, 2);
    crate::trials![
        bytes_pass_whole_each_way_and_pauses_cost_none on [TWO],
        many_streams_are_open_at_once on [ONE],
        fault_b10_programs_that_are_killed_cost_their_own_stream on [ONE],
        the_path_of_the_socket_goes_with_the_machine on [ONE],
    ]
}

/// Ports of the guest: a shell, and what gives back what it gets (`tests/linux/init`).
const SHELL: u32 = 1;
const ECHO: u32 = 2;

/// What a trial may take where the host is emulated.
fn patience() -> Duration {
    Duration::from_secs(if is_full() { 3600 } else { 300 })
}

/// A guest with a socket device, and its host.
struct Bench {
    vm: RunningVm,
    place: ControlSocket,
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Bench {
    fn start(guest: &LinuxGuest) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("vsock");
        let place = ControlSocket::new()?;
        let vm = guest.vm_from_disk("vsock", "").arg(format!("--vsock=cid=77,path={}", path.display()));
        let mut vm = place.start(vm.deadline(patience()))?;
        vm.wait_for_output("vmm: ready=vsock")?;
        ensure!(!vm.stdout().contains("vmm: missing="), "{}", vm.stdout());
        Ok(Self { vm, place, path, directory })
    }

    /// A stream to `port` of the guest, where something listens, or will.
    fn connect(&self, port: u32) -> Result<UnixStream> {
        let deadline = Instant::now() + patience();
        loop {
            let mut stream = UnixStream::connect(&self.path)?;
            stream.set_read_timeout(Some(patience()))?;
            stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let mut line = String::new();
            BufReader::with_capacity(1, &stream).read_line(&mut line)?;
            if let Some(port) = line.strip_prefix("OK ") {
                ensure!(port.trim_end().parse::<u32>().is_ok(), "{line:?}");
                return Ok(stream);
            }
            ensure!(line.is_empty() && Instant::now() < deadline, "port {port}: {line:?}");
            sleep(Duration::from_millis(100));
        }
    }

    /// Has a shell of the guest carry out `command`; what it says.
    fn run(&self, command: &str) -> Result<String> {
        let mut shell = self.connect(SHELL)?;
        shell.write_all(format!("{command}\nexit\n").as_bytes())?;
        let mut said = String::new();
        shell.read_to_string(&mut said).with_context(|| command.to_owned())?;
        Ok(said.trim_end().to_owned())
    }

    /// Something of the host that listens to the guest's connections to `port`.
    fn listen(&self, port: u32) -> Result<UnixListener> {
        Ok(UnixListener::bind(format!("{}_{port}", self.path.display()))?)
    }

    /// A count of the device.
    fn count(&self, name: &str) -> Result<u64> {
        let stats: Value = self.place.ask("stats")?;
        stats["ok"]["vsock"]["monitor"][name].as_u64().with_context(|| format!("no {name} in {stats}"))
    }

    /// Waits until there are no streams any more.
    fn wait_for_ends(&self) -> Result<()> {
        until(Instant::now() + patience(), "the end of all streams", || {
            Ok((self.count("connections")? == 0).then_some(()))
        })
    }

    fn end(self) -> Result<()> {
        ensure!(!self.vm.stdout().contains("BUG"), "{}", self.vm.stdout());
        self.place.ctl("quit")?.ensure_code(0)?;
        self.vm.wait()?.ensure_code(0)?;
        ensure!(!self.path.exists(), "the socket is still there");
        Ok(())
    }
}

/// As `sha256sum` says it.
fn sum(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("no sum")?.to_owned())
}

/// Bytes of which no two runs are equal, in a file.
fn random_file(path: &Path, length: u64) -> Result<()> {
    let mut random = File::open("/dev/urandom")?.take(length);
    io::copy(&mut random, &mut File::create(path)?)?;
    Ok(())
}

fn bytes_pass_whole_each_way_and_pauses_cost_none(guest: &LinuxGuest) -> Result<()> {
    let mib: u64 = if is_full() { 1024 } else { 8 };
    let bench = Bench::start(guest)?;
    // To the guest and back, both at the same time, while the machine is paused now and then.
    let (there, back) = (bench.directory.path().join("there"), bench.directory.path().join("back"));
    random_file(&there, mib << 20)?;
    let stream = bench.connect(ECHO)?;
    let mut writer = stream.try_clone()?;
    let mut source = File::open(&there)?;
    let sending = thread::spawn(move || -> Result<()> {
        io::copy(&mut source, &mut writer)?;
        Ok(writer.shutdown(Shutdown::Write)?)
    });
    let mut target = File::create(&back)?;
    let mut reader = stream;
    let receiving = thread::spawn(move || io::copy(&mut reader, &mut target));
    let mut pauses = 0;
    while !receiving.is_finished() {
        bench.place.ctl("pause")?.ensure_code(0)?;
        sleep(Duration::from_millis(50));
        bench.place.ctl("resume")?.ensure_code(0)?;
        sleep(Duration::from_millis(300));
        pauses += 1;
    }
    sending.join().ok().context("a panic")??;
    let length = receiving.join().ok().context("a panic")??;
    ensure!(length == mib << 20, "{length} bytes came back of {mib} MiB");
    ensure!(sum(&there)? == sum(&back)?, "other bytes came back, in {pauses} pauses");
    // What the guest sends of its own.
    let listener = bench.listen(3000)?;
    let made = bench.directory.path().join("made");
    let mut target = File::create(&made)?;
    let receiving = thread::spawn(move || io::copy(&mut listener.accept()?.0, &mut target));
    let said = bench.run(&format!(
        "mkfifo /tmp/made; sha256sum </tmp/made & dd if=/dev/urandom bs=1M count={mib} 2>/dev/null | tee /tmp/made | \
         socat -u STDIN VSOCK-CONNECT:2:3000; wait"
    ))?;
    let length = receiving.join().ok().context("a panic")??;
    ensure!(length == mib << 20, "{length} bytes came of {mib} MiB: {said:?}");
    ensure!(said.split_whitespace().next() == Some(&sum(&made)?), "other bytes came: {said:?}");
    // Nobody listens there. What a shell's last command says the guest's socat may lose when the shell ends with it: no packet has it.
    let said = bench.run("socat -u OPEN:/dev/null VSOCK-CONNECT:2:3001; echo code=$?; sleep 0.5")?;
    ensure!(said.ends_with("code=1"), "{said:?}");
    ensure!(bench.count("refused_by_host")? == 1, "{}", bench.count("refused_by_host")?);
    bench.wait_for_ends()?;
    bench.end()
}

fn many_streams_are_open_at_once(guest: &LinuxGuest) -> Result<()> {
    let count = if is_full() { 1000 } else { 100 };
    let bench = Bench::start(guest)?;
    let mut streams = (0..count).map(|_| bench.connect(ECHO)).collect::<Result<Vec<_>>>()?;
    ensure!(bench.count("connections")? == count, "{}", bench.count("connections")?);
    for round in 0..3 {
        let text = |index: usize| format!("stream {index} round {round}\n").repeat(100);
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write_all(text(index).as_bytes())?;
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut back = vec![0; text(index).len()];
            stream.read_exact(&mut back).with_context(|| format!("stream {index}"))?;
            ensure!(back == text(index).as_bytes(), "stream {index} got something else");
        }
    }
    drop(streams);
    bench.wait_for_ends()?;
    // Those that the guest begins, at once.
    let listener = bench.listen(3000)?;
    let clients = count / 5;
    let taking = thread::spawn(move || -> Result<usize> {
        let streams = (0..clients).map(|_| listener.accept()).collect::<io::Result<Vec<_>>>()?;
        for (mut stream, _) in streams {
            stream.write_all(b"welcome\n")?;
        }
        Ok(clients as usize)
    });
    let said = bench
        .run(&format!("for i in $(seq {clients}); do socat -u VSOCK-CONNECT:2:3000 STDOUT & done; wait"))?;
    let taken = taking.join().ok().context("a panic")??;
    ensure!(said.matches("welcome").count() == taken, "{said:?}");
    bench.wait_for_ends()?;
    bench.end()
}

fn fault_b10_programs_that_are_killed_cost_their_own_stream(guest: &LinuxGuest) -> Result<()> {
    let bench = Bench::start(guest)?;
    let mut other = bench.connect(ECHO)?;
    let listener = bench.listen(3000)?;
    // A program of the host goes while the guest's sends, and while it gets.
    for how in ["-u OPEN:/dev/zero VSOCK-CONNECT:2:3000", "-u VSOCK-CONNECT:2:3000 OPEN:/dev/null"] {
        let (mut shell, mut stream) = begin(&bench, &listener, &format!("socat {how}; echo ended"))?;
        if how.contains("zero") {
            stream.read_exact(&mut vec![0; 1 << 20])?;
        } else {
            stream.write_all(&vec![0; 1 << 20])?;
        }
        drop(stream);
        let mut said = String::new();
        shell.read_to_string(&mut said)?;
        ensure!(said.contains("ended"), "{said:?}");
        ensure_echo(&mut other, how)?;
    }
    // A program of the guest is killed while it sends, and while it gets.
    for how in ["-u OPEN:/dev/zero VSOCK-CONNECT:2:3000", "-u VSOCK-CONNECT:2:3000 OPEN:/dev/null"] {
        let kill = format!("socat {how} & read go; kill -9 $!; wait; echo killed");
        let (mut shell, mut stream) = begin(&bench, &listener, &kill)?;
        let sends = how.contains("zero");
        if sends {
            stream.read_exact(&mut vec![0; 1 << 20])?;
        } else {
            stream.write_all(&vec![0; 1 << 20])?;
        }
        shell.write_all(b"go\n")?;
        let ended = if sends {
            io::copy(&mut stream, &mut io::sink()).map(drop)
        } else {
            // Until it is told.
            loop {
                if let Err(error) = stream.write_all(&[0; 4096]) {
                    break Err(error);
                }
            }
        };
        if let Err(error) = ended {
            use io::ErrorKind::{BrokenPipe, ConnectionReset};
            ensure!(matches!(error.kind(), BrokenPipe | ConnectionReset), "{error}");
        }
        let mut said = String::new();
        shell.read_to_string(&mut said)?;
        ensure!(said.contains("killed"), "{said:?}");
        ensure_echo(&mut other, how)?;
    }
    // What says something else is sent away, and what says nothing bothers nobody.
    let _silent = UnixStream::connect(&bench.path)?;
    let mut rude = UnixStream::connect(&bench.path)?;
    rude.write_all(b"GET / HTTP/1.1\n")?;
    let mut byte = [0];
    ensure!(!rude.read(&mut byte).is_ok_and(|count| count != 0));
    ensure_echo(&mut other, "after it")?;
    drop(other);
    bench.wait_for_ends()?;
    bench.end()
}

/// Has the guest carry out `command`, which connects to `listener`; the shell, and the stream.
fn begin(bench: &Bench, listener: &UnixListener, command: &str) -> Result<(UnixStream, UnixStream)> {
    let mut shell = bench.connect(SHELL)?;
    shell.write_all(format!("{command}; exit\n").as_bytes())?;
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(patience()))?;
    stream.set_write_timeout(Some(patience()))?;
    Ok((shell, stream))
}

fn ensure_echo(stream: &mut UnixStream, after: &str) -> Result<()> {
    stream.write_all(after.as_bytes())?;
    let mut back = vec![0; after.len()];
    stream.read_exact(&mut back)?;
    ensure!(back == after.as_bytes(), "something else came back");
    Ok(())
}

fn the_path_of_the_socket_goes_with_the_machine(guest: &LinuxGuest) -> Result<()> {
    let bench = Bench::start(guest)?;
    ensure!(bench.run("echo $((6 * 7))")? == "42");
    // Whoever starts another one with the same path finds it taken.
    let vm = guest.vm("poweroff", "").arg(format!("--vsock=path={}", bench.path.display()));
    vm.run()?.ensure_code(2)?.ensure_message(&["vsock.path (--vsock)", "in use by another program"])?;
    ensure!(bench.run("echo still")? == "still");
    let (path, directory) = (bench.path.clone(), bench.directory.path().to_owned());
    let vm = bench.vm;
    vm.signal(nix::sys::signal::Signal::SIGKILL)?;
    vm.wait()?;
    // Left behind, it is replaced.
    ensure!(path.exists());
    let vm = guest.vm("poweroff", "").arg(format!("--vsock=path={}", path.display()));
    vm.run()?.ensure_code(0)?;
    ensure!(!path.exists());
    if fs::read_dir(directory)?.next().is_some() {
        bail!("something is left in the directory");
    }
    Ok(())
}
