//! The native guest suite: guest programs under the monitor, on this machine's own KVM.
//!
//! `cargo xtask test-guest` builds what it needs and says in the environment where it is.

mod native {
    pub mod bench;
    pub mod boot;
    pub mod console;
    pub mod ends;
    pub mod images;
    pub mod io;
    pub mod lifecycle;
    pub mod limits;
    pub mod smp;
    pub mod terminal;
}

use std::env;
use std::fs::File;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmm_tests::harness::{VMM_CLI, VMM_GUESTS};

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
        native::console::trials(),
        native::ends::trials(),
        native::images::trials(),
        native::io::trials(),
        native::lifecycle::trials(),
        native::limits::trials(),
        native::smp::trials(),
        native::terminal::trials(),
    ];
    let trials = trials.into_iter().flatten();
    let trials = match missing() {
        None => trials.collect(),
        Some(reason) => trials.map(|trial| not_run(trial.name(), reason)).collect(),
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why no guest can run, if so.
fn missing() -> Option<&'static str> {
    if env::var_os(VMM_CLI).is_none() || env::var_os(VMM_GUESTS).is_none() {
        Some("run by cargo xtask test-guest")
    } else if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        Some("no /dev/kvm")
    } else {
        None
    }
}

/// The trial `name` as one that does not run; in CI that is a failure.
fn not_run(name: &str, reason: &'static str) -> Trial {
    let in_ci = env::var_os("CI").is_some_and(|value| value == "true");
    Trial::ignorable_test(name, move || {
        if in_ci { Err(Failed::from(reason)) } else { Ok(Completion::ignored_with(reason)) }
    })
}
