//! The block benchmark: fio in guests of several monitors, on a disk, and on the host, on the file behind it. Measures,
//! printing samples as they come, and makes the report of them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use serde_json::Value;
use vmm_tests::bench::block_group::Group;
use vmm_tests::bench::block_job::{JOBS, Job, Measured};
use vmm_tests::bench::block_samples::report;
use vmm_tests::bench::block_subject::{Files, Subject};
use vmm_tests::bench::linux_boot::Running;
use vmm_tests::bench::programs::Programs;
use vmm_tests::bench::report::Host;
use vmm_tests::bench::samples::{Line, Part, Run, print_report};
use vmm_tests::bench::series::{Case, Sample, Taken};
use vmm_tests::harness::ControlSocket;

#[derive(Debug, Parser)]
enum Task {
    /// Measure one round, and print samples as lines of JSON, each group as soon as it is complete
    Measure(Box<Measure>),
    /// Print the report of such lines as JSON
    Report {
        /// A file of them
        samples: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Measure {
    #[command(flatten)]
    programs: Programs,
    /// The disk that guests start from
    #[arg(long)]
    root: PathBuf,
    /// The program fio
    #[arg(long)]
    fio: PathBuf,
    /// Its jobs
    #[arg(long)]
    jobs: PathBuf,
    /// Where the disk's file is made
    #[arg(long)]
    directory: PathBuf,
    /// Only these: read_4k_1_queues_1 and so on; several with commas between
    #[arg(long = "shape", value_name = "JOB", value_delimiter = ',', value_parser = Job::named)]
    shapes: Vec<&'static Job>,
    /// Which round it is
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    round: u32,
    /// Groups that were measured before, by another run; several with commas between
    #[arg(long, value_name = "ROUND/QUEUES/SUBJECT", value_delimiter = ',')]
    done: Vec<Group>,
    /// Seconds of each job
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Of the disk. All of it has been written to.
const SIZE_MIB: u64 = 64;
/// For what is done to a guest by a host that may be emulated: it only tells hung from slow.
const DEADLINE: Duration = Duration::from_secs(100);
/// How often a guest is started that fails: an emulated host fails now and then.
const ATTEMPTS: u32 = 2;

/// A job as it was done.
struct Done {
    measured: Measured,
    /// Of a guest.
    interrupts: Option<f64>,
    /// Only vmm-cli counts them.
    host_calls: Option<f64>,
}

impl Done {
    /// What there is of `job`.
    fn values(&self, job: &Job) -> Vec<(Case, f64)> {
        let Self { measured, interrupts, host_calls } = self;
        let of_requests = [(job.interrupts, interrupts), (job.host_calls, host_calls)];
        let of_requests =
            of_requests.into_iter().filter_map(|(case, all)| Some((case, all.as_ref()? / measured.requests)));
        [(job.rate, measured.rate), (job.latency, measured.latency)].into_iter().chain(of_requests).collect()
    }
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Measure(args) => measure(&args),
        Task::Report { samples } => print_report(&samples, report),
    }
}

/// Measures all groups of the round that are not done. One that fails is left for another run, which this one's end says.
fn measure(args: &Measure) -> Result<()> {
    let jobs: Vec<_> =
        JOBS.iter().filter(|job| args.shapes.is_empty() || args.shapes.contains(job)).collect();
    let run = Run {
        host: Host::read(),
        shapes: jobs.iter().map(|job| job.rate.name.to_owned()).collect(),
        subjects: Group::all(1, 1).into_iter().map(|group| group.subject().to_owned()).collect(),
    };
    print(&Line::Run(run))?;
    let disk = tempfile::Builder::new().prefix("disk-").tempfile_in(&args.directory)?;
    let files =
        Files { programs: args.programs.clone(), root: args.root.clone(), disk: disk.path().to_owned() };
    let start = Instant::now();
    let mut failed = Vec::new();
    for jobs in jobs.chunk_by(|one, next| one.queues == next.queues) {
        let mut groups = Group::all(args.round, jobs[0].queues);
        groups.retain(|group| !args.done.contains(group));
        if !groups.is_empty() {
            fill(disk.as_file())?;
        }
        for group in groups {
            match one(args, &files, group, jobs) {
                Ok(samples) => {
                    print(&Line::Part(Part { name: group.to_string(), samples, counts: Vec::new() }))?;
                }
                Err(error) => {
                    print(&Line::Note(format!("{group} has failed in a run: {error:#}")))?;
                    failed.push(group.to_string());
                }
            }
            writeln!(io::stderr(), "{:6} s  {group}", start.elapsed().as_secs())?;
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

fn print(line: &Line) -> Result<()> {
    line.print().context("standard output")
}

/// Writes all of the disk, so that nobody finds holes, pages that are not in memory, or blocks that are still to be allocated.
fn fill(mut disk: &File) -> Result<()> {
    io::Seek::rewind(&mut disk)?;
    let piece = vec![0xa5; 1 << 20];
    let written = (0..SIZE_MIB).try_for_each(|_| disk.write_all(&piece)).and_then(|()| disk.sync_all());
    written.context("filling the disk")
}

/// Does a job on the file itself.
fn on_host(args: &Measure, files: &Files, job: &Job) -> Result<Done> {
    let output = Command::new(&args.fio)
        .args(["--minimal", "--section", job.section])
        .arg(&args.jobs)
        .env("BLOCK_FILE", &files.disk)
        .env("BLOCK_SIZE", format!("{SIZE_MIB}m"))
        .env("BLOCK_QUEUES", job.queues.to_string())
        .env("BLOCK_SECONDS", args.seconds.to_string())
        // As guests' requests are served: from the page cache.
        .env("BLOCK_DIRECT", "0")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", args.fio.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let measured = said.lines().find_map(Measured::parse);
    let measured = measured.with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("{}: fio said {said:?} and {error:?}", job.section)
    })?;
    Ok(Done { measured, interrupts: None, host_calls: None })
}

/// Measures a group, at most as often as allowed. What failed is noted.
fn one(args: &Measure, files: &Files, group: Group, jobs: &[&Job]) -> Result<Vec<Sample>> {
    let name = group.subject();
    if let Some(lack) = group.subject.and_then(|subject| subject.lacks(files)) {
        let without = |case| Sample::new(case, name, Taken::NotRun(lack.clone()));
        return Ok(jobs.iter().flat_map(|job| job.cases()).map(without).collect());
    }
    let attempt = || match group.subject {
        Some(subject) => in_guest(args, files, subject, jobs),
        None => jobs.iter().map(|job| on_host(args, files, job)).collect(),
    };
    let mut tried = attempt();
    for _ in 1..ATTEMPTS {
        let Err(error) = &tried else { break };
        print(&Line::Note(format!("{group} was tried again, as {error:#}")))?;
        tried = attempt();
    }
    let samples = |(job, done): (&&Job, &Done)| {
        let values = done.values(job).into_iter();
        values.map(|(case, value)| Sample::new(case, name, Taken::Values(vec![value]))).collect::<Vec<_>>()
    };
    Ok(jobs.iter().zip(&tried?).flat_map(samples).collect())
}

/// Starts a guest, which does all of `jobs` and ends.
fn in_guest(args: &Measure, files: &Files, subject: Subject, jobs: &[&Job]) -> Result<Vec<Done>> {
    let socket = ControlSocket::new()?;
    let sections: Vec<_> = jobs.iter().map(|job| job.section).collect();
    let words =
        format!("vmm.sections={} vmm.size={SIZE_MIB}m vmm.seconds={}", sections.join(","), args.seconds);
    let queues = jobs.first().map_or(1, |job| job.queues);
    let launch = subject.launch(files, queues, &words, socket.path());
    let child = Command::new(&launch.program)
        .args(&launch.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", launch.program.display()))?;
    let mut running = Running(child);
    let output = running.0.stdout.take().context("no pipe")?;
    let (send, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut heard = Vec::new();
    let mut next = |key: &str| -> Result<String> {
        let start = format!("vmm: {key}=");
        loop {
            let line = lines.recv_timeout(DEADLINE);
            let line =
                line.with_context(|| format!("no {key} from the guest, which last said {:?}", last(&heard)))?;
            if let Some(value) = line.strip_prefix(&start) {
                return Ok(value.to_owned());
            }
            heard.push(line);
        }
    };
    let calls = || match subject {
        Subject::Vmm(_) => host_calls(&socket).map(Some),
        Subject::Microvm(_) => Ok(None),
    };
    let mut done = Vec::new();
    for job in jobs {
        let section = next("begin")?;
        ensure!(section == job.section, "{section} instead of {}", job.section);
        let before = calls()?;
        let interrupts = next("interrupts")?;
        let after = calls()?;
        let line = next("fio")?;
        let measured =
            Measured::parse(&line).with_context(|| format!("{}: fio said {line:?}", job.section))?;
        let interrupts = interrupts.parse().with_context(|| format!("interrupts={interrupts}"))?;
        let host_calls = before.zip(after).map(|(before, after)| after - before);
        done.push(Done { measured, interrupts: Some(interrupts), host_calls });
    }
    drop(running);
    if reader.join().is_err() {
        bail!("the reader of the console panicked");
    }
    Ok(done)
}

/// The end of what was heard: enough to see how far a guest has come.
fn last(heard: &[String]) -> &[String] {
    heard.split_at(heard.len().saturating_sub(3)).1
}

/// The calls for the second disk, the one that is measured.
fn host_calls(socket: &ControlSocket) -> Result<f64> {
    let answer: Value = socket.ask("stats")?;
    let calls = &answer["ok"]["disks"][1]["monitor"]["host_calls"];
    calls.as_f64().with_context(|| format!("no calls in {answer}"))
}
