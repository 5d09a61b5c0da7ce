//! The Linux suite: stock kernels under the monitor, on a host whose KVM is built on virtualization of the CPU.
//!
//! `cargo xtask test-guest` builds what it needs and says in the environment where it is.

mod linux {
    pub mod boot;
}

use std::env;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmm_tests::harness::{KernelFormat, VMM_CLI, VMM_LINUX, kernel_versions};

/// One trial `SUITE::NAME::VERSION_FORMAT` for each kernel there is, in both formats.
fn for_each_kernel(
    module: &str,
    name: &str,
    run: impl Fn(&str, KernelFormat) -> Result<()> + Clone + Send + 'static,
) -> Vec<Trial> {
    let suite = module.rsplit("::").next().unwrap_or(module);
    let mut trials = Vec::new();
    for version in kernel_versions() {
        for format in KernelFormat::ALL {
            let (run, version) = (run.clone(), version.clone());
            trials.push(Trial::test(format!("{suite}::{name}::{version}_{format}"), move || {
                run(&version, format).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    trials
}

/// The functions named, each a trial for each kernel.
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        [$(crate::for_each_kernel(module_path!(), stringify!($name), $name)),*].into_iter().flatten().collect()
    };
}
pub(crate) use trials;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials: Vec<Trial> = linux::boot::trials();
    let missing = |name| env::var_os(name).is_none();
    let trials =
        if missing(VMM_CLI) || missing(VMM_LINUX) { trials.iter().map(not_run).collect() } else { trials };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// In the place of `trial`, one that does not run.
fn not_run(trial: &Trial) -> Trial {
    Trial::ignorable_test(trial.name(), || Ok(Completion::ignored_with("run by cargo xtask test-guest")))
}
