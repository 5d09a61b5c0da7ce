//! Affinity: on which host CPUs the threads of this process run (sched(7)).

use std::fmt;
use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::thread::{self, Pid, sched_getaffinity, sched_setaffinity};

/// The threads of this process.
const TASKS: &str = "/proc/self/task";

/// A set of host CPUs, by their numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuSet(thread::CpuSet);

impl CpuSet {
    /// One more than the highest number that a set can hold.
    pub const LIMIT: usize = thread::CpuSet::MAX_CPU;

    /// Whether `cpu` is in the set.
    #[must_use]
    pub fn contains(&self, cpu: usize) -> bool {
        cpu < Self::LIMIT && self.0.is_set(cpu)
    }

    /// The numbers, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..Self::LIMIT).filter(|cpu| self.0.is_set(*cpu))
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.iter().filter(|cpu| !other.contains(*cpu)).collect()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.count() == 0
    }

    /// Every number, whether or not the host has such a CPU.
    fn all() -> Self {
        (0..Self::LIMIT).collect()
    }
}

/// Numbers from [`LIMIT`](CpuSet::LIMIT) on are left out.
impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut set = thread::CpuSet::new();
        cpus.into_iter().filter(|cpu| *cpu < Self::LIMIT).for_each(|cpu| set.set(cpu));
        Self(set)
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The CPUs on which the calling thread may run at present.
pub fn current() -> io::Result<CpuSet> {
    Ok(CpuSet(sched_getaffinity(None)?))
}

/// The CPUs that the kernel lets the threads of this process have: those of its cpuset, isolated ones included, that
/// are online. The affinity it was started with does not count: under `isolcpus`, nobody is started with an isolated CPU.
pub fn permitted() -> io::Result<CpuSet> {
    // A thread that asks for every CPU has exactly these.
    on_scratch_thread(|| {
        confine(None, &CpuSet::all())?;
        current()
    })
}

/// Calls `f` on a thread that then ends, for what would change the calling one.
pub(crate) fn on_scratch_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("scratch".into()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

/// Confines a thread to `cpus`, the calling one if none is named.
pub(crate) fn confine(thread: Option<Pid>, cpus: &CpuSet) -> io::Result<()> {
    Ok(sched_setaffinity(thread, &cpus.0)?)
}

/// Why threads cannot be kept off some CPUs.
#[derive(Debug, thiserror::Error)]
pub enum AffinityError {
    /// `/proc` is not mounted, or does not show this process.
    #[error("cannot list this process's threads in {TASKS}")]
    Tasks(#[source] io::Error),
    /// A thread has no other CPU. It may be a vCPU of another machine in this process.
    #[error("thread {thread} of this process may run on no other CPU")]
    NoneLeft {
        /// The thread's id.
        thread: i32,
    },
    /// The kernel does not let a thread be moved.
    #[error("cannot move thread {thread} of this process")]
    Move {
        /// The thread's id.
        thread: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Threads that are kept off some CPUs. Dropped, those that are still there get back what they had.
#[derive(Debug, Default)]
pub struct KeptOff(Vec<Moved>);

#[derive(Debug)]
struct Moved {
    thread: Pid,
    before: CpuSet,
    after: CpuSet,
}

/// Takes `cpus` out of the affinity of every thread of this process. Threads inherit theirs from the one that starts
/// them, so those started later are kept off too, unless a thread that was given one of the CPUs starts them.
///
/// # Errors
/// Any [`AffinityError`]; every thread has what it had then.
pub fn keep_off(cpus: &CpuSet) -> Result<KeptOff, AffinityError> {
    KeptOff::of(tasks, cpus)
}

impl KeptOff {
    /// Keeps those off that `threads` lists.
    fn of(threads: impl Fn() -> io::Result<Vec<Pid>>, cpus: &CpuSet) -> Result<Self, AffinityError> {
        let mut kept = Self::default();
        // A thread may have started another one just before it was moved itself. After a round in which none had to be
        // moved, none can be started that has.
        loop {
            let moved = kept.0.len();
            for thread in threads().map_err(AffinityError::Tasks)? {
                kept.add(thread, cpus)?;
            }
            if kept.0.len() == moved {
                return Ok(kept);
            }
        }
    }

    fn add(&mut self, thread: Pid, cpus: &CpuSet) -> Result<(), AffinityError> {
        let id = thread.as_raw_nonzero().get();
        let failed = |errno: Errno| AffinityError::Move { thread: id, source: errno.into() };
        let before = match sched_getaffinity(Some(thread)) {
            // It has ended.
            Err(Errno::SRCH) => return Ok(()),
            before => CpuSet(before.map_err(failed)?),
        };
        let after = before.without(cpus);
        if after == before {
            return Ok(());
        }
        if after.is_empty() {
            return Err(AffinityError::NoneLeft { thread: id });
        }
        match sched_setaffinity(Some(thread), &after.0) {
            Err(Errno::SRCH) => return Ok(()),
            result => result.map_err(failed)?,
        }
        self.0.push(Moved { thread, before, after });
        Ok(())
    }
}

impl Drop for KeptOff {
    fn drop(&mut self) {
        for Moved { thread, before, after } in self.0.drain(..).rev() {
            // Not of a thread that somebody has moved since.
            if sched_getaffinity(Some(thread)).is_ok_and(|now| CpuSet(now) == after)
                && let Err(errno) = sched_setaffinity(Some(thread), &before.0)
                && errno != Errno::SRCH
            {
                tracing::warn!(?thread, %errno, "a thread cannot be given back its CPUs");
            }
        }
    }
}

fn tasks() -> io::Result<Vec<Pid>> {
    let mut tasks = Vec::new();
    for entry in fs::read_dir(TASKS)? {
        let name = entry?.file_name();
        tasks.extend(name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)));
    }
    Ok(tasks)
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn set(cpus: &[usize]) -> CpuSet {
        cpus.iter().copied().collect()
    }

    #[test]
    fn a_set_holds_what_it_was_made_of_up_to_its_limit() {
        let cpus = set(&[3, 0, CpuSet::LIMIT - 1, CpuSet::LIMIT, usize::MAX]);
        assert_eq!(cpus.iter().collect::<Vec<_>>(), [0, 3, CpuSet::LIMIT - 1]);
        assert!(cpus.contains(3) && !cpus.contains(1) && !cpus.contains(CpuSet::LIMIT));
        assert_eq!(cpus.without(&set(&[0, 7])), set(&[3, CpuSet::LIMIT - 1]));
        assert!(cpus.without(&cpus).is_empty());
    }

    #[test]
    fn a_thread_that_is_confined_is_still_permitted_the_other_cpus() {
        let all = permitted().unwrap();
        let first = all.iter().next().unwrap();
        let (confined, permitted) = on_scratch_thread(|| {
            confine(None, &set(&[first]))?;
            Ok((current()?, permitted()?))
        })
        .unwrap();
        assert_eq!(confined, set(&[first]));
        assert_eq!(permitted, all);
    }

    /// A thread with every CPU that is permitted, which says its id, and what it may run on whenever it is asked.
    struct Witness {
        thread: std::thread::JoinHandle<()>,
        ask: mpsc::Sender<()>,
        answers: mpsc::Receiver<CpuSet>,
        id: Pid,
    }

    impl Witness {
        fn start() -> Self {
            let (ask, asked) = mpsc::channel();
            let (answer, answers) = mpsc::channel();
            let (say, said) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                confine(None, &CpuSet::all()).unwrap();
                say.send(thread::gettid()).unwrap();
                asked.iter().for_each(|()| answer.send(current().unwrap()).unwrap());
            });
            let id = said.recv().unwrap();
            Self { thread, ask, answers, id }
        }

        fn cpus(&self) -> CpuSet {
            self.ask.send(()).unwrap();
            self.answers.recv().unwrap()
        }

        fn end(self) -> Pid {
            drop(self.ask);
            self.thread.join().unwrap();
            self.id
        }
    }

    #[test]
    fn threads_are_kept_off_until_that_ends() {
        let all = permitted().unwrap();
        let last = set(&[all.iter().last().unwrap()]);
        let witness = Witness::start();
        let gone = Witness::start().end();
        let kept = KeptOff::of(|| Ok(vec![gone, witness.id]), &last);
        if all.without(&last).is_empty() {
            assert!(
                matches!(kept, Err(AffinityError::NoneLeft { .. })),
                "nothing is left of one CPU: {kept:?}"
            );
        } else {
            let kept = kept.unwrap();
            assert_eq!(witness.cpus(), all.without(&last));
            drop(kept);
        }
        assert_eq!(witness.cpus(), all);
        witness.end();
    }

    #[test]
    fn a_thread_that_has_no_other_cpu_is_a_refusal_that_names_it_and_none_stays_moved() {
        let all = permitted().unwrap();
        let last = set(&[all.iter().last().unwrap()]);
        let (free, bound) = (Witness::start(), Witness::start());
        confine(Some(bound.id), &last).unwrap();
        let refused = KeptOff::of(|| Ok(vec![free.id, bound.id]), &last);
        let named = if all == last { free.id } else { bound.id }.as_raw_nonzero().get();
        assert!(matches!(refused, Err(AffinityError::NoneLeft { thread }) if thread == named), "{refused:?}");
        assert_eq!(free.cpus(), all);
        free.end();
        bound.end();
    }

    #[test]
    fn every_thread_of_the_process_is_listed() {
        let witness = Witness::start();
        let listed = tasks().unwrap();
        assert!(listed.contains(&thread::gettid()) && listed.contains(&witness.id), "{listed:?}");
        witness.end();
    }
}
