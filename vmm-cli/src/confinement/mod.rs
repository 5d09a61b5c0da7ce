//! Confinement: what this process gives up before a guest runs, so that a guest that takes one of its threads gains little.
//!
//! Each thread gives up on its own: capabilities, the file system and the network (`paths`, Landlock), and every system call that the
//! table of its kind does not have (`filters`, seccomp). Threads that have others started for them have the `nursery` do it, which
//! also tells of a `violation`. `docs/confinement.md` is the user's page.

mod allocator;
mod filters;
mod kinds;
pub mod listing;
mod nursery;
mod paths;
mod process;
pub(crate) mod rights;
mod syscalls;
#[cfg(test)]
mod tests;
mod violation;

use anyhow::Context;
use vmm_core::thread::{Kind, Policy, confine, set_policy};

use self::nursery::Nursery;
use self::paths::Paths;
use crate::config::{Seccomp, VmConfig};
use crate::machine::calls::MAIN;
use crate::outcome::{self, Failure};
use crate::{logging, messages};

/// Every kind of thread that a machine has.
#[must_use]
pub fn kinds() -> &'static [&'static Kind] {
    kinds::ALL
}

/// Prepares the process, and has every thread that is started from here on confined to its table. The calling thread is so when it says
/// so itself ([`vmm_core::thread::confine`]). To be called before the second thread is started; in a process that has called it already,
/// what was prepared then stays.
///
/// # Errors
/// The host has no filters, or no descriptors or threads.
pub(crate) fn prepare(config: &VmConfig) -> Result<(), Failure> {
    let mode = config.confinement.seccomp;
    filters::check(mode).map_err(Failure::host_cannot)?;
    process::settle(config).context("settings of the process").map_err(Failure::host_cannot)?;
    allocator::settle();
    let nursery = Nursery::new().context("an eventfd").map_err(Failure::host_cannot)?;
    if mode == Seccomp::On {
        violation::install(&nursery).context("the handler of SIGSYS").map_err(Failure::host_cannot)?;
    }
    let paths = Paths::new(config);
    if set_policy(Box::new(Confinement { mode, paths, nursery: nursery.clone() })) {
        nursery.start().context("a thread").map_err(Failure::host_cannot)?;
        // Now: a thread that is confined has no descriptor to give it.
        messages::start();
    }
    Ok(())
}

/// Confines the main thread, when everything is open that the machine of `config` is started with.
pub(crate) fn complete(config: &VmConfig) {
    process::limit_descriptors(config);
    confine(&MAIN);
}

/// Confines a process of the machine of `config` that has one thread, of `kind`, and will have no others.
///
/// # Errors
/// The host's. What was given up before is given up.
pub(crate) fn confine_alone(config: &VmConfig, kind: &'static Kind) -> anyhow::Result<()> {
    process::settle(config).context("settings of the process")?;
    apply(config.confinement.seccomp, &Paths::none(), kind)
}

/// Confines the calling thread.
fn apply(mode: Seccomp, paths: &Paths, kind: &'static Kind) -> anyhow::Result<()> {
    paths.confine(kind).context("Landlock")?;
    rights::drop_all().context("capabilities")?;
    // Last: what comes before is not in the tables.
    filters::confine(kind, mode)
}

/// The policy of a process that runs a machine.
struct Confinement {
    mode: Seccomp,
    paths: Paths,
    nursery: Nursery,
}

impl Policy for Confinement {
    fn confine(&self, kind: &'static Kind) {
        if let Err(error) = apply(self.mode, &self.paths, kind) {
            // An unconfined thread must not go on, and a machine without one of its threads cannot.
            messages::tell(format_args!("vmm-cli: the thread {} cannot be confined: {error:#}\n", kind.name));
            logging::flush();
            std::process::exit(i32::from(outcome::HOST_CANNOT));
        }
    }

    fn on_nursery(&self, task: Box<dyn FnOnce() + Send>) {
        self.nursery.ask(task);
    }
}
