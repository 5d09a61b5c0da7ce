//! The Linux suite: stock kernels under the monitor, on a host whose KVM is built on virtualization of the CPU.
//!
//! `cargo xtask test-guest` builds what it needs and says in the environment where it is.

mod linux {
    pub mod balloon;
    pub mod boot;
    pub mod clock;
    pub mod console;
    pub mod dedicated;
    pub mod disk;
    pub mod ends;
    pub mod file_system;
    pub mod hotplug;
    pub mod irqchip;
    pub mod jail;
    pub mod memory;
    pub mod memory_hotplug;
    pub mod net;
    pub mod net_hotplug;
    pub mod net_stream;
    pub mod shell;
    pub mod traffic;
    pub mod vhost_user;
    pub mod vhost_user_net;
    pub mod vhost_vsock;
    pub mod virtio;
    pub mod vsock;
}

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmm_tests::harness::{
    KernelFormat, LinuxGuest, VMM_CLI, VMM_LINUX, is_emulated, is_full, kernel_versions,
};
use vmm_tests::traffic;

/// In the environment, the number of CPUs of an emulated host: only trials for which that many are the fewest run there.
const VMM_HOST_CPUS: &str = "VMM_HOST_CPUS";

/// Whether trials that need `cpus` CPUs of the host run on this one.
fn runs_on(cpus: usize) -> bool {
    env::var_os(VMM_HOST_CPUS).is_none_or(|host| host == *cpus.to_string())
}

/// How much of the `whole` a trial does: a hundredth of it where KVM is emulated, unless it is asked for everything.
fn scaled(whole: usize) -> usize {
    if is_emulated() && !is_full() { whole / 100 } else { whole }
}

/// What a trial asks for; the version of the kernel is not part of it, because each trial runs with each.
#[derive(Clone, Copy)]
struct Shape {
    format: KernelFormat,
    cpus: u32,
    memory_mib: u64,
}

impl Shape {
    /// With 256 MiB.
    const fn new(format: KernelFormat, cpus: u32) -> Self {
        Self::with_memory(format, cpus, 256)
    }

    const fn with_memory(format: KernelFormat, cpus: u32, memory_mib: u64) -> Self {
        Self { format, cpus, memory_mib }
    }
}

/// One trial `SUITE::NAME::VERSION_FORMAT_CPUS_MEMORY` for each kernel there is, in each of `shapes`.
fn for_each_guest(
    module: &str,
    name: &str,
    shapes: &[Shape],
    run: impl Fn(&LinuxGuest) -> Result<()> + Clone + Send + 'static,
) -> Vec<Trial> {
    let suite = module.rsplit("::").next().unwrap_or(module);
    let mut trials = Vec::new();
    for version in kernel_versions() {
        for &Shape { format, cpus, memory_mib } in shapes {
            let guest = LinuxGuest { cpus, memory_mib, ..LinuxGuest::new(&version, format) };
            let name = format!("{suite}::{name}::{version}_{format}_{cpus}_cpus_{memory_mib}M");
            let run = run.clone();
            trials.push(Trial::test(name, move || {
                run(&guest).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    trials
}

/// The functions named, each a trial for each kernel in each shape.
macro_rules! trials {
    ($($name:ident on $shapes:expr),* $(,)?) => {
        [$(crate::for_each_guest(module_path!(), stringify!($name), &$shapes, $name)),*]
            .into_iter()
            .flatten()
            .collect()
    };
}
pub(crate) use trials;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", "--at", endpoint] => return ended(serve_in_guest(endpoint)),
        [linux::vhost_user_net::SERVE, socket, interface, pairs] => {
            return ended(linux::vhost_user_net::serve(socket, interface, pairs));
        }
        _ => {}
    }
    let arguments = Arguments::from_args();
    let small = [
        linux::balloon::trials(),
        linux::boot::trials(),
        linux::clock::trials(),
        linux::console::trials(),
        linux::disk::trials(),
        linux::ends::trials(),
        linux::file_system::trials(),
        linux::hotplug::trials(),
        linux::irqchip::trials(),
        linux::jail::trials(),
        linux::memory::trials(),
        linux::memory_hotplug::trials(),
        linux::net::trials(),
        linux::net_hotplug::trials(),
        linux::net_stream::trials(),
        linux::traffic::trials(),
        linux::vhost_user::trials(),
        linux::vhost_user_net::trials(),
        linux::vhost_vsock::trials(),
        linux::virtio::trials(),
        linux::vsock::trials(),
    ];
    let small = small.into_iter().flatten().map(|trial| (1, trial));
    let large = linux::dedicated::trials().into_iter().map(|trial| (2, trial));
    let trials = small.chain(large).filter(|(cpus, _)| runs_on(*cpus)).map(|(_, trial)| trial);
    let missing = |name| env::var_os(name).is_none();
    let trials = if missing(VMM_CLI) || missing(VMM_LINUX) {
        trials.map(|trial| not_run(&trial)).collect()
    } else {
        trials.collect()
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What this program does in a guest that has it on a disk.
fn serve_in_guest(at: &str) -> Result<()> {
    traffic::serve_at(&at.parse()?)
}

/// How it ends where it is another program than the suite.
fn ended(served: Result<()>) -> ExitCode {
    if let Err(error) = served {
        // On the guest's console, or with what the suite says, where somebody looks for it.
        let _ = writeln!(io::stderr(), "{error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// In the place of `trial`, one that does not run.
fn not_run(trial: &Trial) -> Trial {
    Trial::ignorable_test(trial.name(), || Ok(Completion::ignored_with("run by cargo xtask test-guest")))
}
