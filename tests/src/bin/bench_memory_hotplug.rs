//! The benchmark of plugged memory: how long a Linux guest takes to have 1 GiB more and to give it back, how long its vCPUs are stopped
//! for it, and what the host has back; beside a balloon. Prints the report as JSON.

use std::io::{self, Write};
use std::process::{ChildStdin, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{Case, Recorder};
use vmm_tests::harness::{
    ControlClient, ControlSocket, KernelFormat, LinuxGuest, RunningVm, kernel_versions, until,
};

const MIB: u64 = 1 << 20;

/// What comes and goes, beside this much RAM.
const SIZE: u64 = 1 << 30;
const RAM: u64 = 512 * MIB;
const CPUS: u32 = 2;

/// What the guest fills of its memory when it has come once more.
const FILLED: u64 = 768 * MIB;

/// For what is done by a guest of a host that may be emulated: it only tells hung from slow.
const DEADLINE: Duration = Duration::from_secs(1800);
/// How long is waited between two looks.
const PAUSE: Duration = Duration::from_millis(2);

const GROW: Case = Case { name: "grow", unit: "ms" };
const GROW_STOPPED: Case = Case { name: "grow_stopped", unit: "us" };
const SHRINK: Case = Case { name: "shrink", unit: "ms" };
const SHRINK_STOPPED: Case = Case { name: "shrink_stopped", unit: "us" };
const SHRINK_FILLED: Case = Case { name: "shrink_filled", unit: "ms" };
const SHRINK_FILLED_STOPPED: Case = Case { name: "shrink_filled_stopped", unit: "us" };
const RETURNED: Case = Case { name: "returned", unit: "MiB" };
const CASES: [Case; 7] =
    [GROW, GROW_STOPPED, SHRINK, SHRINK_STOPPED, SHRINK_FILLED, SHRINK_FILLED_STOPPED, RETURNED];

#[derive(Debug, Parser)]
struct Args {
    /// Rounds, in each of which each guest is started once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// How memory comes and goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// It is RAM from the beginning, and goes into a balloon.
    Balloon,
    /// It is plugged.
    Blocks,
}

impl Way {
    const ALL: [Self; 2] = [Self::Balloon, Self::Blocks];

    fn name(self) -> &'static str {
        match self {
            Self::Balloon => "balloon",
            Self::Blocks => "blocks",
        }
    }

    /// The guest's RAM from the beginning, in bytes.
    fn ram(self) -> u64 {
        match self {
            Self::Balloon => RAM + SIZE,
            Self::Blocks => RAM,
        }
    }

    /// The monitor's words.
    fn words(self) -> String {
        match self {
            Self::Balloon => format!("--balloon size={SIZE}"),
            Self::Blocks => format!("--memory-hotplug size={SIZE}"),
        }
    }

    /// The request for so many bytes beside the RAM.
    fn request(self, bytes: u64) -> Value {
        match self {
            Self::Balloon => json!({ "verb": "balloon-set", "size": (SIZE - bytes).to_string() }),
            Self::Blocks => json!({ "verb": "memory", "requested": bytes.to_string() }),
        }
    }

    /// How many bytes the guest has beside the RAM, if it has a driver yet.
    fn present(self, client: &mut ControlClient) -> Result<Option<u64>> {
        let (verb, field) = match self {
            Self::Balloon => ("balloon", "actual_bytes"),
            Self::Blocks => ("memory", "plugged"),
        };
        let answer = client.ask_for(verb)?;
        let bytes = answer["ok"][field].as_u64().with_context(|| answer.to_string())?;
        Ok(match self {
            Self::Balloon => SIZE.checked_sub(bytes),
            Self::Blocks => Some(bytes),
        })
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let kernel = kernel_versions().into_iter().next().context("the environment names no kernel")?;
    let names = Way::ALL.map(Way::name);
    let mut recorder = Recorder::new(&CASES, &names).against(Way::Balloon.name());
    for round in 0..args.rounds {
        let mut ways = Way::ALL;
        // Neither always comes after the other.
        if round % 2 == 1 {
            ways.reverse();
        }
        for way in ways {
            let mut guest = Guest::start(way, &kernel).with_context(|| way.name())?;
            for (case, values) in guest.measure().with_context(|| way.name())? {
                recorder.record(case, way.name(), &values);
            }
            guest.end().with_context(|| way.name())?;
        }
    }
    let report = recorder.finish("memory-hotplug", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// A guest under measurement.
struct Guest {
    way: Way,
    vm: RunningVm,
    commands: ChildStdin,
    place: ControlSocket,
}

impl Guest {
    /// Starts it with nothing beside its RAM.
    fn start(way: Way, kernel: &str) -> Result<Self> {
        let guest = LinuxGuest::new(kernel, KernelFormat::BzImage);
        let guest = LinuxGuest { cpus: CPUS, memory_mib: way.ram() / MIB, ..guest };
        let place = ControlSocket::new()?;
        let vm = guest.vm("memory", "").args(&way.words()).stdin(Stdio::piped());
        let mut vm = place.start(vm.deadline(DEADLINE))?;
        vm.wait_for_output("vmm: ready=memory")?;
        let commands = vm.stdin()?;
        let mut client = place.client()?;
        until(Instant::now() + DEADLINE, "a guest with its RAM", || {
            sleep(PAUSE);
            Ok((way.present(&mut client)? == Some(0)).then_some(()))
        })?;
        Ok(Self { way, vm, commands, place })
    }

    fn measure(&mut self) -> Result<Vec<(Case, Vec<f64>)>> {
        let mut values: Vec<_> = CASES.map(|case| (case, Vec::new())).into();
        let mut take = |case: Case, value: f64| {
            values.iter_mut().filter(|(known, _)| *known == case).for_each(|(_, all)| all.push(value));
        };
        for (bytes, time, stopped) in [(SIZE, GROW, GROW_STOPPED), (0, SHRINK, SHRINK_STOPPED)] {
            let change = self.resize(bytes)?;
            take(time, change.milliseconds);
            take(stopped, change.stopped_us);
        }
        self.resize(SIZE)?;
        self.fill()?;
        let full = self.vm.process().resident()?;
        self.command("empty", 0)?;
        let change = self.resize(0)?;
        take(SHRINK_FILLED, change.milliseconds);
        take(SHRINK_FILLED_STOPPED, change.stopped_us);
        let left = self.vm.process().resident()?;
        take(RETURNED, full.saturating_sub(left) as f64 / MIB as f64);
        Ok(values)
    }

    /// Asks for so many bytes beside the RAM, and waits until the guest has them and no more.
    fn resize(&mut self, bytes: u64) -> Result<Change> {
        // One that says nothing for a while is closed.
        let mut client = self.place.client()?;
        let before = stopped(&mut client)?;
        let start = Instant::now();
        let answer = client.ask(&self.way.request(bytes))?;
        ensure!(answer["ok"].is_object(), "{answer}");
        while self.way.present(&mut client)? != Some(bytes) {
            ensure!(start.elapsed() < DEADLINE, "the guest does not follow: {}", self.vm.stdout());
            sleep(PAUSE);
        }
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        let after = stopped(&mut client)?;
        let longest = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).max();
        Ok(Change { milliseconds, stopped_us: longest.context("no vCPUs")? as f64 / 1e3 })
    }

    fn fill(&mut self) -> Result<()> {
        let filled = self.command("fill", FILLED / MIB)?;
        ensure!(filled == FILLED, "the guest cannot fill more than {filled} bytes");
        Ok(())
    }

    /// Gives the guest a command, and returns the number that it answers.
    fn command(&mut self, verb: &str, argument: u64) -> Result<u64> {
        writeln!(self.commands, "{verb} 1 {argument}")?;
        let start = format!("vmm: {verb}=1 ");
        until(Instant::now() + DEADLINE, verb, || {
            let console = self.vm.stdout();
            let answer = console.split_once(&start).and_then(|(_, rest)| rest.split_once("\r\n"));
            answer.map(|(answer, _)| answer.trim().parse().with_context(|| answer.to_owned())).transpose()
        })
    }

    fn end(self) -> Result<()> {
        let answer = self.place.ask("quit")?;
        ensure!(answer.get("ok").is_some(), "{answer}");
        self.vm.wait()?.ensure_code(0)?;
        Ok(())
    }
}

/// How long each vCPU was stopped so far, in nanoseconds.
fn stopped(client: &mut ControlClient) -> Result<Vec<u64>> {
    let stats = client.ask_for("stats")?;
    let vcpus = stats["ok"]["vcpus"].as_array().with_context(|| stats.to_string())?;
    let of = |vcpu: &Value| vcpu["monitor"]["paused_ns"].as_u64();
    vcpus.iter().map(of).collect::<Option<_>>().with_context(|| stats.to_string())
}

/// What a change has cost.
struct Change {
    milliseconds: f64,
    /// Of that vCPU which was stopped longest.
    stopped_us: f64,
}
