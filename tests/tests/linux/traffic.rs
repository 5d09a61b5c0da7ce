//! Traffic: a thousand connections at once and as many bytes as there is time for, between a guest and its host, over the network and over
//! sockets.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{dup, gettid};
use vmm_devices::virtio::net::{Link, Tap, TapOptions, TapSource};
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, RunningVm, is_full, until};
use vmm_tests::traffic::endpoint::Endpoint;
use vmm_tests::traffic::{Client, server_disk};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const TWO: Shape = Shape::with_memory(KernelFormat::BzImage, 2, 512);
    const ONE: Shape = Shape::with_memory(KernelFormat::Vmlinux, 1, 512);
    crate::trials![
        a_thousand_connections_and_all_their_bytes_pass_over_the_network on [TWO],
        a_thousand_connections_and_all_their_bytes_pass_over_the_network_with_vhost on [TWO],
        a_thousand_connections_and_all_their_bytes_pass_over_sockets on [TWO],
        a_host_in_a_namespace_of_its_own_is_reached on [ONE],
        an_interface_that_is_handed_over_from_another_namespace_is_served on [ONE],
        an_interface_that_is_handed_over_from_another_namespace_is_served_with_vhost on [ONE],
    ]
}

const CONNECTIONS: usize = 1000;
/// How often each of them sends something and gets it back.
const ROUNDS: usize = 5;
const INTERFACE: &str = "vmmtraffic";
const PORT: u16 = 5000;
const CID: u32 = 78;

/// One machine at a time has the interface, and the descriptors.
static HOST: Mutex<()> = Mutex::new(());

fn patience() -> Duration {
    Duration::from_secs(if is_full() { 3600 } else { 300 })
}

/// A guest that serves, and what was made for it.
struct Serving {
    vm: RunningVm,
    control: ControlSocket,
    client: Client,
    _directory: tempfile::TempDir,
    _host: MutexGuard<'static, ()>,
}

impl Serving {
    fn start(guest: &LinuxGuest, with: Connected) -> Result<Self> {
        let host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir()?;
        let server = directory.path().join("server");
        server_disk::make(&server)?;
        let path = directory.path().join("socket");
        let tcp = || Endpoint::Tcp((IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)), PORT).into());
        let (serve, endpoint, device) = match with {
            Connected::Network { queues, vhost } => {
                (tcp(), tcp(), format!("--net=tap={INTERFACE},create,queues={queues},vhost={vhost}"))
            }
            Connected::Descriptor { fd, vhost } => (tcp(), tcp(), format!("--net=fd={fd},vhost={vhost}")),
            Connected::Sockets => (
                Endpoint::Vsock(CID, PORT.into()),
                Endpoint::Guest(PORT.into(), path.clone()),
                format!("--vsock=cid={CID},path={}", path.display()),
            ),
        };
        let words = format!("vmm.disk=/dev/vdb vmm.address=10.0.2.2/24 vmm.serve={serve}");
        let vm = guest.vm_from_disk("traffic", &words);
        let vm = vm.arg(format!("--disk=path={},format=raw,read_only", server.display())).arg(device);
        let control = ControlSocket::new()?;
        let mut vm = control.start(vm.deadline(patience()))?;
        vm.wait_for_output("vmm: ready=traffic")?;
        let client = Client { server: endpoint, time: Duration::from_secs(1) };
        Ok(Self { vm, control, client, _directory: directory, _host: host })
    }

    /// All of it.
    fn exchange(&self) -> Result<()> {
        wait(&self.client)?;
        // Not before: the monitor does with what it is started with.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard)?;
        self.client.crowd(CONNECTIONS, ROUNDS).context("many connections")?;
        let bytes = if is_full() { 1 << 30 } else { 16 << 20 };
        self.client.send_noise(1, bytes).context("to the guest")?;
        self.client.receive_noise(2, bytes).context("from the guest")?;
        // Both at once, and the crowd besides.
        thread::scope(|scope| {
            let client = &self.client;
            let sending = scope.spawn(move || client.send_noise(3, bytes / 4));
            let receiving = scope.spawn(move || client.receive_noise(4, bytes / 4));
            client.crowd(CONNECTIONS / 10, ROUNDS).context("connections beside others")?;
            for stream in [sending, receiving] {
                stream.join().ok().context("a thread has panicked")?.context("both ways at once")?;
            }
            Ok(())
        })
    }

    fn end(self) -> Result<()> {
        ensure!(!self.vm.stdout().contains("vmm: missing="), "{}", self.vm.stdout());
        self.control.ctl("quit")?.ensure_code(0)?;
        self.vm.wait()?.ensure_code(0)?;
        Ok(())
    }
}

/// Waits until the guest serves.
fn wait(client: &Client) -> Result<()> {
    until(Instant::now() + patience(), "a server in the guest", || Ok(client.server.connect().ok().map(drop)))
}

/// A little of what a guest and its host can exchange.
fn exchange_some(client: &Client) -> Result<()> {
    wait(client)?;
    client.crowd(50, ROUNDS)?;
    client.send_noise(1, 4 << 20)?;
    Ok(client.receive_noise(2, 4 << 20)?)
}

/// What a guest is connected with its host by.
#[derive(Clone, Copy)]
enum Connected {
    /// A network device with an interface that is made for it, with so many pairs of queues.
    Network {
        queues: u32,
        vhost: bool,
    },
    /// One whose interface is handed over.
    Descriptor {
        fd: RawFd,
        vhost: bool,
    },
    Sockets,
}

fn a_thousand_connections_and_all_their_bytes_pass_over_the_network(guest: &LinuxGuest) -> Result<()> {
    over_the_network(guest, Connected::Network { queues: 2, vhost: false })
}

fn a_thousand_connections_and_all_their_bytes_pass_over_the_network_with_vhost(
    guest: &LinuxGuest,
) -> Result<()> {
    over_the_network(guest, Connected::Network { queues: 2, vhost: true })
}

fn over_the_network(guest: &LinuxGuest, with: Connected) -> Result<()> {
    let serving = Serving::start(guest, with)?;
    ip(&["addr", "add", "10.0.2.1/24", "dev", INTERFACE])?;
    serving.exchange()?;
    serving.end()
}

fn a_thousand_connections_and_all_their_bytes_pass_over_sockets(guest: &LinuxGuest) -> Result<()> {
    let serving = Serving::start(guest, Connected::Sockets)?;
    serving.exchange()?;
    serving.end()
}

/// The interface goes to the namespace of a thread, from which the guest is reached, and from nowhere else.
fn a_host_in_a_namespace_of_its_own_is_reached(guest: &LinuxGuest) -> Result<()> {
    let serving = Serving::start(guest, Connected::Network { queues: 1, vhost: false })?;
    let ((send, thread), (go, moved)) = (channel(), channel());
    thread::scope(|scope| {
        let serving = &serving;
        let peer = scope.spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("a namespace")?;
            send.send(gettid())?;
            moved.recv()?;
            ip(&["addr", "add", "10.0.2.1/24", "dev", INTERFACE])?;
            ip(&["link", "set", INTERFACE, "up"])?;
            exchange_some(&serving.client)
        });
        // Where there is no such thread any more, it says why.
        if let Ok(thread) = thread.recv() {
            ip(&["link", "set", INTERFACE, "netns", &thread.to_string()])?;
            go.send(())?;
        }
        peer.join().ok().context("a thread has panicked")?
    })?;
    ensure!(!fs::exists(format!("/sys/class/net/{INTERFACE}"))?, "the interface is still here");
    serving.end()
}

fn an_interface_that_is_handed_over_from_another_namespace_is_served(guest: &LinuxGuest) -> Result<()> {
    handed_over(guest, false)
}

fn an_interface_that_is_handed_over_from_another_namespace_is_served_with_vhost(
    guest: &LinuxGuest,
) -> Result<()> {
    handed_over(guest, true)
}

/// The interface is made in the namespace of a thread, and the monitor, which is in another one, is started with its descriptor.
fn handed_over(guest: &LinuxGuest, vhost: bool) -> Result<()> {
    let ((hand_over, handed_over), (go, serves)) = (channel(), channel());
    // What is sent through goes with this closure, so that nobody waits for it.
    thread::scope(move |scope| {
        let peer = scope.spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("a namespace")?;
            let source = TapSource::Created(INTERFACE.into());
            let tap = Tap::open(&TapOptions { source, pairs: 1, mtu: None })?;
            ip(&["addr", "add", "10.0.2.1/24", "dev", INTERFACE])?;
            // One that programs are started with.
            hand_over.send(dup(&*tap.queues()[0])?)?;
            exchange_some(&serves.recv()?)
        });
        let ended = || peer.join().ok().context("a thread has panicked")?;
        // Where there is no such descriptor, the thread says why.
        let Ok(fd) = handed_over.recv() else { return ended() };
        let serving = Serving::start(guest, Connected::Descriptor { fd: fd.as_raw_fd(), vhost })?;
        go.send(serving.client.clone())?;
        ended()?;
        serving.end()
    })
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output().context("cannot start ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", words.join(" "), said.trim_end());
    Ok(())
}
