//! Threads, and what each kind of them may ask of the kernel.
//!
//! Every thread of the monitor is started by [`spawn`] and belongs to a [`Kind`], whose table of [`Call`]s stands beside the code that it
//! runs. A process that sets a [`Policy`] has each thread confined to its table before the thread does anything else. Without one (a
//! program that embeds these crates, a unit test) threads are ordinary threads.
//!
//! What a thread may not do, a thread that it starts may not do either: filters are inherited. So a thread that is confined has a
//! *nursery*, a thread of the policy, start others, and do for it what it may not do itself ([`aside`]).

pub mod calls;
pub mod requests;

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

pub use calls::{Call, Condition};

/// What a thread is for, and what it needs for it.
#[derive(Debug)]
pub struct Kind {
    /// What messages and `docs/confinement.md` call it. Threads of the kind are named after it, some with a number.
    pub name: &'static str,
    /// The system calls that it may make, in tables that kinds share; [`calls::EVERY`] comes with each.
    pub tables: &'static [&'static [Call]],
}

impl Kind {
    /// All of its tables, with those that every kind has.
    pub fn all_tables(&self) -> impl Iterator<Item = &'static [Call]> {
        [calls::EVERY, calls::CHECKED].iter().chain(self.tables).copied()
    }

    /// Everything that a thread of this kind may ask for.
    pub fn calls(&self) -> impl Iterator<Item = &'static Call> {
        self.all_tables().flatten()
    }
}

/// What confines the threads of a process.
pub trait Policy: Send + Sync {
    /// Confines the calling thread to what `kind` may do, for good. Where that cannot be done the process ends.
    fn confine(&self, kind: &'static Kind);

    /// Has `task`, which does not wait, done by the nursery. It is dropped where there is none any more.
    fn on_nursery(&self, task: Box<dyn FnOnce() + Send>);
}

static POLICY: OnceLock<Box<dyn Policy>> = OnceLock::new();

thread_local! {
    static KIND: Cell<Option<&'static Kind>> = const { Cell::new(None) };
}

/// Sets the policy of this process; the first one stays. Whether it is this one.
pub fn set_policy(policy: Box<dyn Policy>) -> bool {
    POLICY.set(policy).is_ok()
}

/// Confines the calling thread as a thread of `kind`, if there is a policy.
pub fn confine(kind: &'static Kind) {
    if let Some(policy) = POLICY.get() {
        policy.confine(kind);
        KIND.set(Some(kind));
    }
}

/// Whether the calling thread is confined.
#[must_use]
pub fn is_confined() -> bool {
    current_kind().is_some()
}

/// The kind of the calling thread, once it is confined. May be called by a signal handler.
#[must_use]
pub fn current_kind() -> Option<&'static Kind> {
    KIND.get()
}

/// Starts a thread of `kind`, called `name`.
///
/// # Errors
/// The host has no thread for it.
pub fn spawn<T: Send + 'static>(
    kind: &'static Kind,
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    spawn_prepared(kind, name, || (), |()| body())
}

/// As [`spawn`], of a thread that has something to do before it is confined: `body` gets what `prepare` comes to.
///
/// # Errors
/// The host has no thread for it.
pub fn spawn_prepared<P, T: Send + 'static>(
    kind: &'static Kind,
    name: impl Into<String>,
    prepare: impl FnOnce() -> P + Send + 'static,
    body: impl FnOnce(P) -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.into());
    let start = move || {
        builder.spawn(move || {
            let prepared = prepare();
            confine(kind);
            body(prepared)
        })
    };
    aside(start)
}

/// Has `task`, which does not wait, done by the nursery if the calling thread is confined, and does it otherwise. For what makes something
/// that is harmless from then on, by a system call that is not.
///
/// # Errors
/// Those of `task`; or the nursery has ended.
pub fn aside<T: Send + 'static>(task: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match POLICY.get() {
        Some(policy) if is_confined() => {
            let (sender, done) = channel();
            policy.on_nursery(Box::new(move || {
                // Whoever asked for it waits for it.
                let _ = sender.send(task());
            }));
            done.recv()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that does such things has ended")))
        }
        _ => task(),
    }
}

/// As [`spawn`], of a thread that ends with `scope`. A thread that is confined cannot start one.
///
/// # Errors
/// The host has no thread for it, or the caller is confined.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    kind: &'static Kind,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    if is_confined() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Builder::new().name(name.into()).spawn_scoped(scope, move || {
        confine(kind);
        body()
    })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    static KIND: Kind = Kind { name: "test", tables: &[&[Call::any(libc::SYS_getppid)]] };

    #[test]
    fn a_kind_has_its_calls_and_those_of_every_thread() {
        let numbers: Vec<_> = KIND.calls().map(|call| call.number).collect();
        assert!(numbers.contains(&libc::SYS_getppid) && numbers.contains(&libc::SYS_futex));
    }

    #[test]
    fn without_a_policy_a_thread_is_a_thread() {
        let thread = spawn_prepared(
            &KIND,
            "test7",
            || 3,
            |three| (three, std::thread::current().name().map(ToOwned::to_owned), is_confined()),
        );
        assert_eq!(thread.unwrap().join().unwrap(), (3, Some("test7".to_owned()), false));
    }
}
