//! The Linux suite: stock kernels under the monitor, on a host whose KVM is built on virtualization of the CPU.
//!
//! `cargo xtask test-guest` builds what it needs and says in the environment where it is.

mod linux {
    pub mod boot;
    pub mod ends;
}

use std::env;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmm_tests::harness::{KernelFormat, LinuxGuest, VMM_CLI, VMM_LINUX, kernel_versions};

/// One trial `SUITE::NAME::VERSION_FORMAT_CPUS` for each kernel there is, in both formats, with each number of CPUs.
fn for_each_guest(
    module: &str,
    name: &str,
    cpus: &[u32],
    run: impl Fn(&LinuxGuest) -> Result<()> + Clone + Send + 'static,
) -> Vec<Trial> {
    let suite = module.rsplit("::").next().unwrap_or(module);
    let mut trials = Vec::new();
    for version in kernel_versions() {
        for format in KernelFormat::ALL {
            for cpus in cpus {
                let guest = LinuxGuest { cpus: *cpus, ..LinuxGuest::new(&version, format) };
                let name = format!("{suite}::{name}::{version}_{format}_{cpus}_cpus");
                let run = run.clone();
                trials.push(Trial::test(name, move || {
                    run(&guest).map_err(|error| Failed::from(format!("{error:#}")))
                }));
            }
        }
    }
    trials
}

/// The functions named, each a trial for each kernel, format and number of CPUs.
macro_rules! trials {
    ($($name:ident on $cpus:expr),* $(,)?) => {
        [$(crate::for_each_guest(module_path!(), stringify!($name), &$cpus, $name)),*]
            .into_iter()
            .flatten()
            .collect()
    };
}
pub(crate) use trials;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = [linux::boot::trials(), linux::ends::trials()].into_iter().flatten();
    let missing = |name| env::var_os(name).is_none();
    let trials = if missing(VMM_CLI) || missing(VMM_LINUX) {
        trials.map(|trial| not_run(&trial)).collect()
    } else {
        trials.collect()
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// In the place of `trial`, one that does not run.
fn not_run(trial: &Trial) -> Trial {
    Trial::ignorable_test(trial.name(), || Ok(Completion::ignored_with("run by cargo xtask test-guest")))
}
