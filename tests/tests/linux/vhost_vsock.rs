//! Sockets of the family AF_VSOCK on both sides: the host's kernel carries the streams.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, RunningVm, is_full};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const ONE: Shape = Shape::new(KernelFormat::BzImage, 1);
    const TWO: Shape = Shape::new(KernelFormat::BzImage, 2);
    crate::trials![
        bytes_pass_whole_each_way_without_the_monitor on [TWO],
        an_address_has_one_guest_which_keeps_it_through_restarts on [ONE],
    ]
}

/// The guest's address.
const CID: u32 = 78;

/// Ports of the guest: a shell, and what gives back what it gets (`tests/linux/init`).
const SHELL: u32 = 1;
const ECHO: u32 = 2;

/// A port of the host.
const HOST: u32 = 3000;

/// How often the monitor's thread may go to sleep, whatever passes.
const MOST_SLEEPS: u64 = 50;

/// What a trial may take where the host is emulated.
fn patience() -> Duration {
    Duration::from_secs(if is_full() { 3600 } else { 300 })
}

/// A guest whose socket device is the kernel's.
struct Bench {
    vm: RunningVm,
    place: ControlSocket,
}

impl Bench {
    fn start(guest: &LinuxGuest, args: &str) -> Result<Self> {
        let place = ControlSocket::new()?;
        let vm = guest.vm_from_disk("vsock", "").arg(format!("--vsock=cid={CID},vhost")).args(args);
        let mut vm = place.start(vm.deadline(patience()))?;
        vm.wait_for_output("vmm: ready=vsock")?;
        ensure!(!vm.stdout().contains("vmm: missing="), "{}", vm.stdout());
        Ok(Self { vm, place })
    }

    /// Has a shell of the guest carry out `command`; what it says.
    fn run(&self, command: &str) -> Result<String> {
        let mut shell = connected(SHELL)?;
        shell.write_all(format!("{command}\nexit\n").as_bytes())?;
        let mut said = String::new();
        shell.read_to_string(&mut said).with_context(|| command.to_owned())?;
        Ok(said.trim_end().to_owned())
    }

    fn end(self) -> Result<()> {
        ensure!(!self.vm.stdout().contains("BUG"), "{}", self.vm.stdout());
        self.place.ctl("quit")?.ensure_code(0)?;
        self.vm.wait()?.ensure_code(0)?;
        Ok(())
    }
}

/// A stream to `port` of the guest, where something listens, or will.
fn connected(port: u32) -> Result<UnixStream> {
    let deadline = Instant::now() + patience();
    loop {
        let fd = vsock()?;
        match connect(fd.as_raw_fd(), &VsockAddr::new(CID, port)) {
            Ok(()) => return stream(fd),
            Err(error) => ensure!(Instant::now() < deadline, "port {port}: {error}"),
        }
        sleep(Duration::from_millis(100));
    }
}

fn vsock() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The standard library has no type for it; of this one nothing is used that is about addresses.
fn stream(fd: OwnedFd) -> Result<UnixStream> {
    let stream = UnixStream::from(fd);
    stream.set_read_timeout(Some(patience()))?;
    stream.set_write_timeout(Some(patience()))?;
    Ok(stream)
}

/// The next connection of the guest to `listener`.
fn accepted(listener: &OwnedFd) -> Result<UnixStream> {
    stream(rustix::net::accept(listener)?)
}

fn noise(length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn bytes_pass_whole_each_way_without_the_monitor(guest: &LinuxGuest) -> Result<()> {
    let mib = if is_full() { 1024 } else { 8 };
    let bench = Bench::start(guest, "")?;
    let before = bench.vm.process().sleeps("vsock")?;
    // To the guest and back, both at the same time.
    let sent = noise(mib << 20)?;
    let mut reader = connected(ECHO)?;
    let mut writer = reader.try_clone()?;
    let back = thread::scope(|scope| -> Result<Vec<u8>> {
        let sending = scope.spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut back = Vec::new();
        reader.read_to_end(&mut back)?;
        sending.join().ok().context("a panic")??;
        Ok(back)
    })?;
    ensure!(back == sent, "{} bytes came back of {mib} MiB, or others", back.len());
    // What the guest sends of its own, compared by its sum.
    let listener = vsock()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, HOST))?;
    listen(&listener, Backlog::new(8)?)?;
    let directory = tempfile::tempdir()?;
    let made = directory.path().join("made");
    let mut target = std::fs::File::create(&made)?;
    let receiving =
        thread::spawn(move || -> Result<u64> { Ok(io::copy(&mut accepted(&listener)?, &mut target)?) });
    let said = bench.run(&format!(
        "mkfifo /tmp/made; sha256sum </tmp/made & dd if=/dev/urandom bs=1M count={mib} 2>/dev/null | tee /tmp/made | \
         socat -u STDIN VSOCK-CONNECT:2:{HOST}; wait"
    ))?;
    let length = receiving.join().ok().context("a panic")??;
    ensure!(length == (mib as u64) << 20, "{length} bytes came of {mib} MiB: {said:?}");
    let output = std::process::Command::new("sha256sum").arg(&made).output()?;
    let sum = String::from_utf8(output.stdout)?;
    ensure!(said.split_whitespace().next() == sum.split_whitespace().next(), "other bytes came: {said:?}");
    let sleeps = bench.vm.process().sleeps("vsock")? - before;
    ensure!(sleeps < MOST_SLEEPS, "the monitor has slept {sleeps} times");
    bench.end()
}

fn an_address_has_one_guest_which_keeps_it_through_restarts(guest: &LinuxGuest) -> Result<()> {
    let mut bench = Bench::start(guest, "--on-reset restart")?;
    ensure!(bench.run("echo $((6 * 7))")? == "42");
    let other = guest.vm("poweroff", "").arg(format!("--vsock=cid={CID},vhost"));
    other.run()?.ensure_code(3)?.ensure_message(&["vsock.vhost (--vsock)", "is that of another guest"])?;
    bench.place.ctl("reset")?.ensure_code(0)?;
    bench.vm.wait_for_lines("vmm: ready=vsock", 2)?;
    ensure!(bench.run("echo again")? == "again");
    bench.end()?;
    // It is free then.
    let other = guest.vm("poweroff", "").arg(format!("--vsock=cid={CID},vhost"));
    other.run()?.ensure_code(0)?;
    Ok(())
}
