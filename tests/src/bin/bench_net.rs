//! The network benchmarks: bytes, answers and datagrams between guests of several monitors and their host, and within the host. Measures,
//! printing samples as they come, and makes the report of them. The same program serves in the guest.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use vmm_tests::bench::linux_boot::Running;
use vmm_tests::bench::net_samples::{part_name, report};
use vmm_tests::bench::net_subject::{DATAGRAMS, Files, HOST_ADDRESS, INTERFACE, STREAMS, Subject, Transport};
use vmm_tests::bench::programs::Programs;
use vmm_tests::bench::report::Host;
use vmm_tests::bench::samples::{Line, Part, Run, print_report};
use vmm_tests::bench::series::{Case, Sample, Taken};
use vmm_tests::bench::stats::Summary;
use vmm_tests::harness::until;
use vmm_tests::traffic::endpoint::Endpoint;
use vmm_tests::traffic::{Client, serve_at, server_disk};

#[derive(Debug, Parser)]
enum Task {
    /// Measure one round, and print samples as lines of JSON, each subject's as soon as they are complete
    Measure(Box<Measure>),
    /// Print the report of such lines as JSON
    Report {
        /// Of which benchmark
        #[arg(long, value_enum)]
        transport: Transport,
        /// A file of them
        samples: PathBuf,
    },
    /// Serve whoever connects
    Serve {
        /// Where
        #[arg(long)]
        at: Endpoint,
    },
}

#[derive(Debug, Args)]
struct Measure {
    #[command(flatten)]
    programs: Programs,
    /// What guests and host are connected by
    #[arg(long, value_enum)]
    transport: Transport,
    /// The disk that guests start from
    #[arg(long)]
    root: PathBuf,
    /// Which round it is
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    round: u32,
    /// Subjects that were measured before, by another run; several with commas between
    #[arg(long, value_name = "ROUND/SUBJECT", value_delimiter = ',')]
    done: Vec<String>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// For what is done by a guest of a host that may be emulated: it only tells hung from slow.
const DEADLINE: Duration = Duration::from_secs(100);
/// How often a guest is started that fails: an emulated host fails now and then.
const ATTEMPTS: u32 = 2;

fn main() -> Result<()> {
    match Task::parse() {
        Task::Measure(args) => measure(&args),
        Task::Report { transport: Transport::Net, samples } => {
            print_report(&samples, |text| report(text, Transport::Net))
        }
        Task::Report { transport: Transport::Vsock, samples } => {
            print_report(&samples, |text| report(text, Transport::Vsock))
        }
        Task::Serve { at } => serve_at(&at),
    }
}

/// Measures all subjects of the round that are not done. One that fails is left for another run, which this one's end says.
fn measure(args: &Measure) -> Result<()> {
    let transport = args.transport;
    let run = Run {
        host: Host::read(),
        shapes: transport.cases().iter().map(|case| case.name.to_owned()).collect(),
        subjects: transport.subjects().iter().map(|subject| subject.name().to_owned()).collect(),
    };
    print(&Line::Run(run))?;
    let directory = tempfile::tempdir()?;
    let files = Files {
        programs: args.programs.clone(),
        root: args.root.clone(),
        server: directory.path().join("server"),
        directory: directory.path().to_owned(),
    };
    server_disk::make(&files.server)?;
    let start = Instant::now();
    let mut failed = Vec::new();
    for &subject in transport.subjects() {
        let name = part_name(args.round, subject);
        if args.done.contains(&name) {
            continue;
        }
        match one(args, &files, subject) {
            Ok(samples) => print(&Line::Part(Part { name: name.clone(), samples, counts: Vec::new() }))?,
            Err(error) => {
                print(&Line::Note(format!("{name} has failed in a run: {error:#}")))?;
                failed.push(name.clone());
            }
        }
        writeln!(io::stderr(), "{:6} s  {name}", start.elapsed().as_secs())?;
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

fn print(line: &Line) -> Result<()> {
    line.print().context("standard output")
}

fn command(program: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim_end());
    Ok(())
}

/// Measures a subject, at most as often as allowed. What failed is noted.
fn one(args: &Measure, files: &Files, subject: Subject) -> Result<Vec<Sample>> {
    if let Some(lack) = subject.lacks(&args.programs) {
        let without = |case| Sample::new(case, subject.name(), Taken::NotRun(lack.clone()));
        return Ok(args.transport.cases().into_iter().map(without).collect());
    }
    let attempt = || connected(args, files, subject);
    let mut tried = attempt();
    for _ in 1..ATTEMPTS {
        let Err(error) = &tried else { break };
        print(&Line::Note(format!("{subject} was tried again, as {error:#}")))?;
        tried = attempt();
    }
    let sample = |(case, value)| Sample::new(case, subject.name(), Taken::Values(vec![value]));
    Ok(tried?.into_iter().map(sample).collect())
}

/// Starts what serves, and measures.
fn connected(args: &Measure, files: &Files, subject: Subject) -> Result<Vec<(Case, f64)>> {
    let (listens, server) = subject.endpoints(args.transport, &files.directory);
    if let Endpoint::Unix(path) | Endpoint::Guest(_, path) = &server {
        // Of an attempt before.
        let _ = fs::remove_file(path);
    }
    let _running = match subject.launch(files, args.transport) {
        Some(launch) => {
            let (running, lines) = start(Command::new(&launch.program).args(&launch.args))?;
            ready(&lines)?;
            if args.transport == Transport::Net {
                command("ip", &["addr", "add", HOST_ADDRESS, "dev", INTERFACE])?;
                command("ip", &["link", "set", INTERFACE, "up"])?;
            }
            // What the guest says further is not of interest, but has to be taken.
            thread::spawn(move || lines.iter().for_each(drop));
            running
        }
        None => start(Command::new("/proc/self/exe").args(["serve", "--at", &listens.to_string()]))?.0,
    };
    let client = Client { server, time: Duration::from_secs(args.seconds.into()) };
    until(Instant::now() + DEADLINE, "a server", || Ok(client.server.connect().ok().map(drop)))?;
    let echoes = Summary::of(&client.echoes().context("echoes")?).context("no echoes")?;
    let values = [
        client.write().context("to the server")?,
        client.read().context("from the server")?,
        echoes.median,
        echoes.p99,
    ];
    let mut measured: Vec<_> = STREAMS.into_iter().zip(values).collect();
    if args.transport == Transport::Net {
        let values = [
            client.send_datagrams().context("datagrams to the server")?,
            client.receive_datagrams().context("datagrams from the server")?,
        ];
        measured.extend(DATAGRAMS.into_iter().zip(values));
    }
    Ok(measured)
}

/// Starts a program, and reads what it says.
fn start(command: &mut Command) -> Result<(Running, Receiver<String>)> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.with_context(|| format!("cannot start {command:?}"))?);
    let output = running.0.stdout.take().context("no pipe")?;
    let (send, lines) = channel();
    thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        let text = |line: Vec<u8>| String::from_utf8_lossy(&line).trim_end().to_owned();
        lines.map(text).map_while(|line| send.send(line).ok()).for_each(drop);
    });
    Ok((running, lines))
}

/// Waits until the guest serves.
fn ready(lines: &Receiver<String>) -> Result<()> {
    let mut last = String::new();
    loop {
        match lines.recv_timeout(DEADLINE) {
            Ok(line) if line == "vmm: ready=traffic" => return Ok(()),
            Ok(line) => last = line,
            Err(error) => bail!("no server in the guest ({error}), which last said {last:?}"),
        }
    }
}
