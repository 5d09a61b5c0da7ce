//! `run`: the main job, from a configuration to an exit code.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::sys::eventfd::EventFd;
use vmm_core::{Kvm, KvmOpenError, VmEvent, VmEvents, prepare_readers};
use vmm_memory::Backing;

use crate::acpi;
use crate::boot::{self, BootSource, Image, Platform};
use crate::config::{OnReset, VmConfig};
use crate::confinement;
use crate::console::{Consoles, OpenError};
use crate::control::{self, Control, Publication};
use crate::disks::Disks;
use crate::event_loop::{self, Ended, Inputs, Until};
use crate::machine::{Chassis, Machine, Resources, StopAtEnd, layout};
use crate::memory::hotplug::Hotplug;
use crate::memory::{self, Ram};
use crate::nets::Nets;
use crate::opener::Opener;
use crate::outcome::{self, Failure};
use crate::processors::Processors;
use crate::renewal::{Built, Renewal};
use crate::signals::Signals;
use crate::stats::Report;
use crate::vhost_user;
use crate::vsock::Socket;
use crate::{advice, balloon, default_guest, host, logging, messages, stats};

/// The device node of KVM.
pub(crate) const KVM: &str = "/dev/kvm";

/// Shortest time between two restarts; a guest that resets at once would otherwise spin.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the machine of `config` to its end and returns the exit code of that end.
///
/// # Errors
/// What kept the machine from running; nothing of it is left then.
pub fn run(config: &VmConfig) -> Result<ExitCode, Failure> {
    run_saying(config, &[])
}

/// The same, of a machine of which something is to be said first.
pub(crate) fn run_saying(config: &VmConfig, notes: &[String]) -> Result<ExitCode, Failure> {
    // Before there is a second thread, of the log or the console: it takes microseconds then, and 10 ms later.
    prepare_readers();
    // The threads that are started from here on inherit what is blocked.
    let signals = Signals::take().context("signals").map_err(Failure::host_cannot)?;
    // Before there is a second thread, too.
    let opener = Opener::start(config)?;
    prepare(config)?;
    notes.iter().for_each(|note| messages::tell(format_args!("vmm-cli: {note}\n")));
    let result = catch_unwind(AssertUnwindSafe(|| run_to_end(config, signals, &opener)))
        .unwrap_or_else(|_| Err(Failure::internal(anyhow!("the main thread panicked"))));
    logging::flush();
    result
}

/// Confines the threads that are started from here on, and starts the log.
///
/// # Errors
/// The host has no filters, descriptors or threads; the log cannot be opened.
pub fn prepare(config: &VmConfig) -> Result<(), Failure> {
    confinement::prepare(config)?;
    logging::start(&config.log).map_err(Failure::bad_input)
}

fn run_to_end(config: &VmConfig, signals: Signals, opener: &Opener) -> Result<ExitCode, Failure> {
    vmm_vcpu::install_kick_signal().context("the kick signal").map_err(Failure::host_cannot)?;
    let source = open_images(config)?;
    // Before anything is opened for writing, or built.
    inspect(config, &source)?;
    let kvm = Kvm::open(Path::new(KVM)).map_err(kvm_failure)?;
    let processors = Processors::prepare(&kvm, &config.cpu)?;
    memory::check(&config.memory, config.memory_hotplug.bytes())?;
    let backing = memory::backing(&config.memory)?;
    let hotplug = Hotplug::of(config, &backing);
    let disks = Arc::new(Disks::open(config)?);
    let nets = Arc::new(Nets::open(config, opener)?);
    let back_ends = vhost_user::open(config, opener)?;
    let stats = stats::Output::open(&config.stats).map_err(Failure::bad_input)?;
    let mut consoles = Consoles::open(&config.console).map_err(console_failure)?;
    let vsock = Socket::open(&config.vsock, opener)?;
    opener.seal()?;
    let balloon = balloon::settings(&config.balloon);
    // Before the first vCPU runs: no path is opened after that.
    let control = Control::open(config).map_err(control_failure)?;
    let outlets = consoles.outlets();
    let resources = Resources {
        kvm: &kvm,
        config,
        source: &source,
        processors: &processors,
        outlets: &outlets,
        disks: &disks,
        nets: &nets,
        back_ends: &back_ends,
        vsock: vsock.as_ref(),
        hotplug: hotplug.as_ref(),
        balloon: balloon.as_ref(),
    };
    let End { ended, life, mut report } = thread::scope(|scope| {
        let lives_again = config.machine.on_reset == OnReset::Restart;
        let renewal = lives_again.then(|| Renewal::start(scope, &resources, &backing)).transpose()?;
        let counts = stats.is_some();
        let (signals, control, consoles) = (&signals, &control, &mut consoles);
        Lives { resources: &resources, signals, control, consoles, renewal, counts }.live(&backing)
    })?;
    let code = ended.forced.map_or_else(|| outcome::exit_code(&ended.event), outcome::forced);
    signals.watch_over_teardown(ended.asked, config.machine.grace_time, code);
    if let Some(life) = life {
        report = stats.is_some().then(|| life.machine.final_report());
    }
    drop((outlets, consoles, vsock));
    // Last: until then a client is told that the machine is being stopped.
    drop(control);
    tell_end(&ended);
    if let (Some(output), Some(report)) = (stats, report) {
        // What was said before is to stand before.
        logging::flush();
        output.write(&report);
    }
    Ok(ExitCode::from(code))
}

/// The lives of a machine, one after the other.
struct Lives<'a> {
    resources: &'a Resources<'a>,
    signals: &'a Signals,
    control: &'a Control,
    consoles: &'a mut Consoles,
    /// Absent where there is one life only.
    renewal: Option<Renewal>,
    /// Whether somebody wants to know what was counted.
    counts: bool,
}

/// How they end.
struct End {
    ended: Ended,
    /// The last one, unless it had not begun.
    life: Option<Life>,
    /// What was counted in the last one but that.
    report: Option<Report>,
}

impl Lives<'_> {
    fn live(mut self, backing: &Backing) -> Result<End, Failure> {
        let config = self.resources.config;
        let mut report = None;
        let mut started = Instant::now();
        let mut next = self.first(backing)?;
        loop {
            let Built { machine, events } = match next {
                ControlFlow::Continue(built) => built,
                ControlFlow::Break(ended) => return Ok(End { ended, life: None, report }),
            };
            // Before the driver looks.
            self.consoles.tell_sizes(&machine.ports());
            machine.resume();
            // Not before: a client's pause would be undone.
            let published = self.control.publish(machine.handle());
            let life = Life { _stop: machine.stop_at_end(), _published: published, machine };
            let inputs = Inputs { events: &events, signals: self.signals, control: self.control };
            let ended = event_loop::run(inputs, self.consoles, &life.machine, config.machine.grace_time);
            let lives_again = matches!(ended.event, VmEvent::Reset(_)) && ended.asked.is_none();
            let Some(renewal) = self.renewal.as_ref().filter(|_| lives_again) else {
                return Ok(End { ended, life: Some(life), report });
            };
            tracing::info!(event = ?ended.event, "restart");
            report = self.counts.then(|| life.machine.final_report());
            let chassis = life.end()?;
            self.control.starts_again();
            let left = RESTART_INTERVAL.saturating_sub(started.elapsed());
            if let Some(ended) =
                event_loop::pause(self.signals, self.control, self.consoles, Until::Passed(left))
            {
                return Ok(End { ended, life: None, report });
            }
            started = Instant::now();
            renewal.begin(chassis);
            let until = Until::Ready(renewal.ready());
            let ended = event_loop::pause(self.signals, self.control, self.consoles, until);
            next = match (renewal.take(ended.is_some()), ended) {
                // Whatever has come of it.
                (_, Some(ended)) => ControlFlow::Break(ended),
                (made, None) => ControlFlow::Continue(made?.ok_or_else(memory::lost)?),
            };
        }
    }

    /// Builds the machine of the first life.
    fn first(&mut self, backing: &Backing) -> Result<ControlFlow<Ended, Built>, Failure> {
        let ram = match self.reserve(backing)? {
            ControlFlow::Continue(ram) => ram,
            ControlFlow::Break(ended) => return Ok(ControlFlow::Break(ended)),
        };
        let Resources { kvm, config, processors, .. } = *self.resources;
        let events = VmEvents::new().context("an eventfd").map_err(Failure::host_cannot)?;
        let bare = Chassis::build(kvm, config, processors, ram)?;
        let machine = Machine::build(bare, self.resources, &events)?;
        // Everything is open, and no guest has run yet.
        confinement::complete(config);
        Ok(ControlFlow::Continue(Built { machine, events }))
    }

    /// Reserves RAM. While pages are made, which may take minutes, the machine can be asked not to live.
    fn reserve(&mut self, backing: &Backing) -> Result<ControlFlow<Ended, Ram>, Failure> {
        let ranges = layout::ram(self.resources.config.memory.size.bytes());
        let stop = AtomicBool::new(false);
        let reserve = || memory::reserve(backing, &ranges, &|| stop.load(Ordering::Relaxed));
        if !backing.prefault {
            return reserve()?.map(ControlFlow::Continue).ok_or_else(memory::lost);
        }
        let done = EventFd::new().context("an eventfd").map_err(Failure::host_cannot)?;
        thread::scope(|scope| {
            let making = thread::Builder::new().name("memory".into()).spawn_scoped(scope, || {
                let _done = Done(&done);
                reserve()
            });
            let making = making.context("a thread").map_err(Failure::host_cannot)?;
            let until = Until::Ready(done.as_fd());
            let ended = event_loop::pause(self.signals, self.control, self.consoles, until);
            stop.store(ended.is_some(), Ordering::Relaxed);
            let made = making.join().map_err(|_| memory::lost())?;
            match ended {
                Some(ended) => Ok(ControlFlow::Break(ended)),
                None => made?.map(ControlFlow::Continue).ok_or_else(memory::lost),
            }
        })
    }
}

/// Says that a thread has come to its end, however.
struct Done<'a>(&'a EventFd);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        // It fails only where the count is at its end.
        let _ = self.0.write(1);
    }
}

/// A machine from its start to its end. Nobody else has it when it is dropped.
struct Life {
    /// First: whoever waits for a vCPU has the machine, no longer than this.
    _stop: StopAtEnd,
    _published: Publication,
    machine: Machine,
}

impl Life {
    /// Ends this life, and returns what the next one is made of.
    fn end(self) -> Result<Chassis, Failure> {
        let Self { _stop: stop, _published: published, machine } = self;
        drop(stop);
        drop(published);
        machine.end()
    }
}

/// Checks what `vmm-cli check` can check without KVM: that the images can be loaded.
///
/// # Errors
/// The first thing at fault.
pub fn check(config: &VmConfig) -> Result<(), Failure> {
    let source = open_images(config)?;
    inspect(config, &source)
}

fn inspect(config: &VmConfig, source: &BootSource<'_>) -> Result<(), Failure> {
    let platform = Platform { map: &layout::e820(config.memory.size.bytes()), rsdp: Some(acpi::RSDP) };
    boot::inspect(&platform, source).map(drop).map_err(Failure::bad_input)
}

fn open_images(config: &VmConfig) -> Result<BootSource<'_>, Failure> {
    let open = |path: &Path| Image::open(path).map_err(Failure::bad_input);
    let kernel = match &config.boot.kernel {
        Some(path) => open(path)?,
        None => Image::from_bytes("the embedded guest", default_guest::IMAGE).map_err(Failure::internal)?,
    };
    let initrd = config.boot.initrd.as_deref().map(open).transpose()?;
    Ok(BootSource { kernel, initrd, cmdline: &config.boot.cmdline })
}

/// Says what to do about a `/dev/kvm` that cannot be used.
fn kvm_failure(error: KvmOpenError) -> Failure {
    let advice =
        advice::about_kvm(&error, host::extension()).map_or_else(String::new, |text| format!("; {text}"));
    Failure::host_cannot(anyhow::Error::new(error).context(format!("KVM cannot be used{advice}")))
}

fn console_failure(error: OpenError) -> Failure {
    match error {
        OpenError::Host { .. } => Failure::host_cannot(error),
        OpenError::Path { .. } | OpenError::Socket { .. } => Failure::bad_input(error),
    }
}

fn control_failure(error: control::OpenError) -> Failure {
    match error {
        control::OpenError::Host(_) => Failure::host_cannot(error),
        control::OpenError::Socket(_) => Failure::bad_input(error),
    }
}

/// Tells the user about an end that is not an ordinary one.
fn tell_end(ended: &Ended) {
    match &ended.event {
        VmEvent::GuestCrash(report) => messages::tell(format_args!("vmm-cli: the guest crashed\n{report}\n")),
        VmEvent::Internal(report) => messages::tell(format_args!("vmm-cli: internal failure\n{report}\n")),
        VmEvent::UserStop(by) if ended.forced.is_some() => {
            messages::tell(format_args!("vmm-cli: stop forced by {by}: the guest has not shut down\n"));
        }
        event @ (VmEvent::Shutdown(_) | VmEvent::Reset(_) | VmEvent::DebugExit(_) | VmEvent::UserStop(_)) => {
            tracing::info!(?event, "the machine has ended");
        }
    }
}
