//! `RunDelay`: how long a thread was ready to run and waited for a CPU, as the kernel counts it (`schedstat`,
//! Documentation/scheduler/sched-stats.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result};

/// The statistics of one thread, kept open.
pub(super) struct RunDelay(File);

thread_local! {
    static OWN: io::Result<RunDelay> = RunDelay::open();
}

impl RunDelay {
    /// Those of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        File::open("/proc/thread-self/schedstat").map(Self)
    }

    /// The delay of the calling thread so far.
    pub(super) fn of_this_thread() -> Result<Duration> {
        OWN.with(|own| own.as_ref().ok().context("schedstat cannot be opened")?.get())
    }

    /// The delay so far.
    pub(super) fn get(&self) -> Result<Duration> {
        let mut buffer = [0; 128];
        let length = self.0.read_at(&mut buffer, 0).context("schedstat")?;
        let text = std::str::from_utf8(buffer.get(..length).unwrap_or_default()).context("schedstat")?;
        let delay = text.split_ascii_whitespace().nth(1).context("schedstat has no run delay")?;
        Ok(Duration::from_nanos(delay.parse().context("schedstat")?))
    }
}
