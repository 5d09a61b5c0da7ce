//! `Process`: what the kernel tells about a process that runs.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process by its id.
#[derive(Clone, Copy, Debug)]
pub struct Process(Pid);

impl Process {
    /// The process with this id.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self(pid)
    }

    /// Its id.
    #[must_use]
    pub fn pid(self) -> Pid {
        self.0
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn signal(self, signal: Signal) -> Result<()> {
        kill(self.0, signal).with_context(|| format!("{signal} to process {}", self.0))
    }

    /// The processes that it has made and that are there.
    ///
    /// # Errors
    ///
    /// There is no /proc.
    pub fn children(self) -> Result<Vec<Self>> {
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
            let process = Self(Pid::from_raw(pid));
            // One that has ended meanwhile has no parent.
            if process.status("PPid").is_ok_and(|parent| parent == self.0.to_string()) {
                children.push(process);
            }
        }
        Ok(children)
    }

    /// The number of its open descriptors.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn descriptors(self) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.0);
        Ok(fs::read_dir(&directory).with_context(|| directory.clone())?.count())
    }

    /// The number of its mappings.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn mappings(self) -> Result<usize> {
        let file = format!("/proc/{}/maps", self.0);
        Ok(fs::read_to_string(&file).with_context(|| file.clone())?.lines().count())
    }

    /// The names of its threads, sorted.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn threads(self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for task in self.tasks()? {
            match fs::read_to_string(format!("/proc/{}/task/{task}/comm", self.0)) {
                Ok(name) => names.push(name.trim_end().to_owned()),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error).context("comm"),
            }
        }
        names.sort();
        Ok(names)
    }

    /// The ids of its threads.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn tasks(self) -> Result<Vec<Pid>> {
        let directory = format!("/proc/{}/task", self.0);
        let mut tasks = Vec::new();
        for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
            tasks.push(Pid::from_raw(entry?.file_name().to_string_lossy().parse()?));
        }
        Ok(tasks)
    }

    /// The time its threads, those that have ended not counted, have spent on a CPU.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn cpu_time(self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for task in self.tasks()? {
            let text = match fs::read_to_string(format!("/proc/{}/task/{task}/schedstat", self.0)) {
                Err(error) if gone(&error) => continue,
                text => text.context("schedstat")?,
            };
            let on_cpu = text.split_whitespace().next().context("schedstat is empty")?;
            sum += Duration::from_nanos(on_cpu.parse()?);
        }
        Ok(sum)
    }

    /// How often its threads of this name, which are there, have gone to sleep.
    ///
    /// # Errors
    ///
    /// It is gone, or has no such thread.
    pub fn sleeps(self, name: &str) -> Result<u64> {
        const KEY: &str = "voluntary_ctxt_switches:";
        let mut sum = None;
        for task in self.tasks()? {
            let file = |file| fs::read_to_string(format!("/proc/{}/task/{task}/{file}", self.0));
            let (comm, status) = match (file("comm"), file("status")) {
                (Err(error), _) | (_, Err(error)) if gone(&error) => continue,
                (comm, status) => (comm.context("comm")?, status.context("status")?),
            };
            if comm.trim_end() == name {
                let count = status.lines().find_map(|line| line.strip_prefix(KEY));
                let count: u64 = count.context("no count of switches")?.trim().parse()?;
                sum = Some(sum.unwrap_or(0) + count);
            }
        }
        sum.with_context(|| format!("no thread {name}"))
    }

    /// The most memory that was resident at any time, in KiB.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn peak_rss(self) -> Result<u64> {
        let text = self.status("VmHWM")?;
        Ok(text.trim_end_matches("kB").trim().parse()?)
    }

    /// Memory that is resident now, in bytes.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn resident(self) -> Result<u64> {
        let text = self.status("VmRSS")?;
        Ok(text.trim_end_matches("kB").trim().parse::<u64>()? << 10)
    }

    /// Whether it was stopped by a signal.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn is_stopped(self) -> Result<bool> {
        Ok(self.status("State")?.starts_with('T'))
    }

    /// A field of its status.
    ///
    /// # Errors
    ///
    /// It is gone, or has no such field.
    pub fn status(self, key: &str) -> Result<String> {
        let file = format!("/proc/{}/status", self.0);
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(':')
                && name == key
            {
                return Ok(value.trim().to_owned());
            }
        }
        bail!("{file} has no {key}");
    }
}

/// Whether a thread ended while it was looked at.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_names_and_a_process_has_costs() {
        let this = Process::new(Pid::this());
        let named = |name: &str| this.threads().unwrap().iter().any(|thread| thread == name);
        assert!(!named("counted"));
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("counted".into());
        let thread = thread.spawn(move || receive.recv().is_err()).unwrap();
        while !named("counted") {
            std::thread::yield_now();
        }
        assert!(this.sleeps("counted").unwrap() > 0 && this.sleeps("other").is_err());
        drop(send);
        assert!(thread.join().unwrap());
        assert!(this.descriptors().unwrap() >= 3);
        assert!(this.mappings().unwrap() > 3);
        assert!(this.peak_rss().unwrap() > 0);
        assert!(this.cpu_time().unwrap() > Duration::ZERO);
        assert!(!this.is_stopped().unwrap());
    }
}
