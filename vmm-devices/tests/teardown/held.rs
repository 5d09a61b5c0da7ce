//! What a process holds: descriptors and threads.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmm_core::thread::Kind;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The name of the worker's thread in every test.
pub(crate) static WORKER: Kind = Kind { name: "test worker", tables: &[] };

/// Locks `mutex`, whoever has panicked under it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held by each test that counts: the others wait.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    lock(&ALONE)
}

/// Far more than anything takes; what has not come then waits for ever.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Numbers of the open descriptors.
pub(crate) fn descriptors() -> BTreeSet<u64> {
    let number = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().to_str()?.parse().ok();
    let mut open: BTreeSet<u64> = fs::read_dir("/proc/self/fd").unwrap().filter_map(number).collect();
    // Not the one that was needed to look.
    open.retain(|number| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
    open
}

/// Calls `act` where so many descriptors can be had and no more. To be called [`alone`]: the limit is the process's.
pub(crate) fn with_descriptors<T>(left: usize, act: impl FnOnce() -> T) -> T {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let open = descriptors();
    let limit = (0..soft).filter(|number| !open.contains(number)).nth(left).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    let done = act();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    done
}

/// Open descriptors, and the threads of machines; those of the test harness come and go as it likes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    /// Waits until as much is held as this: a thread that was joined is seen for a moment still.
    pub(crate) fn ensure_again(&self, what: impl Display) {
        let deadline = Instant::now() + DEADLINE;
        while Self::now() != *self && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(Self::now(), *self, "{what}");
    }

    /// What is held now.
    pub(crate) fn now() -> Self {
        let threads = fs::read_dir("/proc/self/task").unwrap();
        // One that ends meanwhile has no name.
        let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        let threads = names.filter(|name| [WORKER.name, "reconfigure"].contains(&name.trim_end())).count();
        Self { descriptors: descriptors().len(), threads }
    }
}
