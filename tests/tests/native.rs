//! The native guest suite: guest programs under the monitor, on this machine's own KVM.
//!
//! `cargo xtask test-guest` builds what it needs and says in the environment where it is.

mod native {
    pub mod bench;
    pub mod boot;
    pub mod bus;
    pub mod confinement;
    pub mod console;
    pub mod control;
    pub mod dedicated;
    pub mod dirty;
    pub mod disks;
    pub mod doctor;
    pub mod doorbell;
    pub mod embed;
    pub mod ends;
    pub mod handed;
    pub mod hotplug;
    pub mod images;
    pub mod io;
    pub mod irq;
    pub mod jail;
    pub mod kicks;
    pub mod lifecycle;
    pub mod limits;
    pub mod memory;
    pub mod net_hotplug;
    pub mod opener;
    pub mod outputs;
    pub mod pause;
    pub mod pci;
    pub mod slots;
    pub mod smp;
    pub mod state;
    pub mod stats;
    pub mod terminal;
    pub mod virtio;
}

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmm_tests::harness::{VMM_CLI, VMM_GUESTS, is_emulated};

/// A trial of the suite in `module`.
fn trial(module: &str, name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let suite = module.rsplit("::").next().unwrap_or(module);
    Trial::test(format!("{suite}::{name}"), || run().map_err(|error| Failed::from(format!("{error:#}"))))
}

/// The functions named, each a trial of the suite that names it.
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        vec![$(crate::trial(module_path!(), stringify!($name), $name)),*]
    };
}
pub(crate) use trials;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = [
        native::bench::trials(),
        native::boot::trials(),
        native::bus::trials(),
        native::confinement::trials(),
        native::console::trials(),
        native::control::trials(),
        native::dedicated::trials(),
        native::dirty::trials(),
        native::disks::trials(),
        native::doctor::trials(),
        native::doorbell::trials(),
        native::embed::trials(),
        native::ends::trials(),
        native::handed::trials(),
        native::hotplug::trials(),
        native::images::trials(),
        native::io::trials(),
        native::irq::trials(),
        native::jail::trials(),
        native::kicks::trials(),
        native::lifecycle::trials(),
        native::limits::trials(),
        native::memory::trials(),
        native::net_hotplug::trials(),
        native::opener::trials(),
        native::outputs::trials(),
        native::pause::trials(),
        native::pci::trials(),
        native::slots::trials(),
        native::smp::trials(),
        native::state::trials(),
        native::stats::trials(),
        native::terminal::trials(),
        native::virtio::trials(),
    ];
    let trials = trials.into_iter().flatten();
    let missing = |name| env::var_os(name).is_none();
    let trials = if missing(VMM_CLI) || missing(VMM_GUESTS) {
        trials.map(|trial| not_run(&trial, "run by cargo xtask test-guest", false)).collect()
    } else if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        // In CI nothing is skipped.
        let in_ci = env::var_os("CI").is_some_and(|value| value == "true");
        trials.map(|trial| not_run(&trial, "no /dev/kvm", in_ci)).collect()
    } else {
        trials.collect()
    };
    if is_emulated() {
        // A failure to say so must not fail the suite.
        let _ = writeln!(io::stdout(), "KVM is emulated: trials that repeat do a tenth of their rounds");
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// In the place of `trial`, one that does not run, or fails, for `reason`.
fn not_run(trial: &Trial, reason: &'static str, fails: bool) -> Trial {
    Trial::ignorable_test(trial.name(), move || {
        if fails { Err(Failed::from(reason)) } else { Ok(Completion::ignored_with(reason)) }
    })
}
