//! The block benchmark: fio in guests of several monitors, on a disk, and on the host, on the file behind it; prints the report as JSON.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;
use vmm_tests::bench::block_job::{JOBS, Job, Measured};
use vmm_tests::bench::block_subject::{Files, HOST, SUBJECTS, Subject};
use vmm_tests::bench::linux_boot::Running;
use vmm_tests::bench::programs::Programs;
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::Recorder;
use vmm_tests::harness::ControlSocket;

#[derive(Debug, Parser)]
struct Args {
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
    #[arg(long, default_value = "/dev/shm")]
    directory: PathBuf,
    /// Times that each job is done by each subject
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
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

/// A job as a guest has done it.
struct Done {
    measured: Measured,
    interrupts: f64,
    /// Only vmm-cli counts them.
    host_calls: Option<f64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let disk = tempfile::Builder::new().prefix("disk-").tempfile_in(&args.directory)?;
    let files =
        Files { programs: args.programs.clone(), root: args.root.clone(), disk: disk.path().to_owned() };
    let mut recorder = recorder();
    let start = Instant::now();
    for round in 1..=args.rounds {
        for jobs in JOBS.chunk_by(|one, next| one.queues == next.queues) {
            fill(disk.as_file())?;
            for job in jobs {
                let measured = on_host(&args, &files, job).with_context(|| job.rate.name)?;
                recorder.record(job.rate, HOST, &[measured.rate]);
                recorder.record(job.latency, HOST, &[measured.latency]);
            }
            let mut order: Vec<Subject> = SUBJECTS.to_vec();
            // Nobody always comes after the same one.
            order.rotate_left(round as usize % SUBJECTS.len());
            for subject in order {
                one(&args, &files, subject, jobs, &mut recorder);
                let (name, queues) = (subject.name(), jobs[0].queues);
                let elapsed = start.elapsed().as_secs();
                writeln!(io::stderr(), "{elapsed:6} s  round {round}, {name}, {queues} queues")?;
            }
        }
    }
    let report = recorder.finish("block", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn recorder() -> Recorder {
    let subjects = SUBJECTS.map(Subject::name);
    let all: Vec<_> = [HOST].into_iter().chain(subjects).collect();
    let own: Vec<_> = SUBJECTS.iter().filter(|subject| matches!(subject, Subject::Vmm(_))).collect();
    let own: Vec<_> = own.into_iter().map(|subject| subject.name()).collect();
    let mut recorder = Recorder::new(&[], &[]).against(HOST);
    for job in &JOBS {
        recorder = recorder.and(&[job.rate, job.latency], &all);
        recorder = recorder.and(&[job.interrupts], &subjects).and(&[job.host_calls], &own);
    }
    recorder
}

/// Writes all of the disk, so that nobody finds holes.
fn fill(mut disk: &File) -> Result<()> {
    io::Seek::rewind(&mut disk)?;
    let piece = vec![0xa5; 1 << 20];
    (0..SIZE_MIB).try_for_each(|_| disk.write_all(&piece)).context("filling the disk")
}

/// Does a job on the file itself.
fn on_host(args: &Args, files: &Files, job: &Job) -> Result<Measured> {
    let output = Command::new(&args.fio)
        .args(["--minimal", "--section", job.section])
        .arg(&args.jobs)
        .env("BLOCK_FILE", &files.disk)
        .env("BLOCK_SIZE", format!("{SIZE_MIB}m"))
        .env("BLOCK_QUEUES", job.queues.to_string())
        .env("BLOCK_SECONDS", args.seconds.to_string())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", args.fio.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let measured = said.lines().find_map(Measured::parse);
    measured.with_context(|| format!("fio said {said:?} and {:?}", String::from_utf8_lossy(&output.stderr)))
}

/// Does `jobs` in one guest and records them.
fn one(args: &Args, files: &Files, subject: Subject, jobs: &[Job], recorder: &mut Recorder) {
    let name = subject.name();
    if let Some(lack) = subject.lacks(files) {
        for case in jobs.iter().flat_map(|job| [job.rate, job.latency, job.interrupts, job.host_calls]) {
            recorder.leave_out_subject(case, name, &lack);
        }
        return;
    }
    let mut tried = in_guest(args, files, subject, jobs);
    for _ in 1..ATTEMPTS {
        if let Err(error) = &tried {
            let _ = writeln!(io::stderr(), "{name} is started again, as {error:#}");
            tried = in_guest(args, files, subject, jobs);
        }
    }
    match tried {
        Err(error) => jobs.iter().for_each(|job| recorder.fail(job.rate, name, &format!("{error:#}"))),
        Ok(all) => {
            for (job, Done { measured, interrupts, host_calls }) in jobs.iter().zip(all) {
                recorder.record(job.rate, name, &[measured.rate]);
                recorder.record(job.latency, name, &[measured.latency]);
                recorder.record(job.interrupts, name, &[interrupts / measured.requests]);
                if let Some(calls) = host_calls {
                    recorder.record(job.host_calls, name, &[calls / measured.requests]);
                }
            }
        }
    }
}

/// Starts a guest, which does all of `jobs` and ends.
fn in_guest(args: &Args, files: &Files, subject: Subject, jobs: &[Job]) -> Result<Vec<Done>> {
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
            let line = line.with_context(|| format!("no {key} from the guest, which has said {heard:?}"))?;
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
        done.push(Done { measured, interrupts, host_calls });
    }
    drop(running);
    if reader.join().is_err() {
        bail!("the reader of the console panicked");
    }
    Ok(done)
}

/// The calls for the second disk, the one that is measured.
fn host_calls(socket: &ControlSocket) -> Result<f64> {
    let answer: Value = socket.ask("stats")?;
    let calls = &answer["ok"]["disks"][1]["monitor"]["host_calls"];
    calls.as_f64().with_context(|| format!("no calls in {answer}"))
}
