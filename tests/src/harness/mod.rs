//! The harness: the monitor as a user has it, a program that is started, watched from outside and that ends.

mod control;
mod held;
mod linux;
mod process;
mod qcow2;
mod running;
mod terminal;
mod vm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use control::{ControlClient, ControlSocket, PATIENCE};
pub use held::Held;
pub use linux::{KernelFormat, LinuxGuest, LinuxReport, VMM_LINUX, VMM_LINUX_KERNELS, kernel_versions};
pub use process::Process;
pub use qcow2::Qcow2Image;
pub use running::{Finished, RunningVm};
pub use terminal::{Terminal, status_flags};
pub use vm::{NOBODY, TestVm};

/// Names the monitor's binary in the environment.
pub const VMM_CLI: &str = "VMM_CLI";
/// Names the directory of the assembled guest programs in the environment.
pub const VMM_GUESTS: &str = "VMM_GUESTS";
/// Set in the environment to have trials that are shortened by default take the time that they need.
const VMM_FULL: &str = "VMM_FULL";
/// Set in the environment where KVM itself is emulated, as in the nested host.
const VMM_EMULATED: &str = "VMM_EMULATED";

/// How often a trial does what it repeats only to meet a rare case: `times`, a tenth of it where KVM is emulated.
#[must_use]
pub fn rounds(times: usize) -> usize {
    if is_emulated() { times.div_ceil(10) } else { times }
}

/// Whether trials take the time that they need, as the environment says.
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os(VMM_FULL).is_some()
}

/// How often a stress trial does what its name says: `times` if trials take the time that they need, else a fiftieth, as
/// everybody has time for; a tenth of that where KVM is emulated.
#[must_use]
pub fn stress(times: u64) -> u64 {
    let times = if is_full() { times } else { times.div_ceil(50) };
    if is_emulated() { times.div_ceil(10) } else { times }
}

/// The longest that a machine may take that takes at most `time` on hardware: three times as long where KVM is emulated.
fn allowed(time: Duration) -> Duration {
    if is_emulated() { time * 3 } else { time }
}

/// Whether KVM is emulated here, as the environment says.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os(VMM_EMULATED).is_some()
}

/// Whether KVM is KVM-PVM, which differs from KVM on hardware where trials say so.
#[must_use]
pub fn is_pvm() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
}

/// How long the machines of the suites may take, from start to end, on a busy host with hardware.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time between two looks at something that tells nobody when it changes.
const TICK: Duration = Duration::from_millis(1);

/// The monitor's binary. Empty if the environment does not name it: then nothing can be started.
#[must_use]
pub fn monitor() -> PathBuf {
    std::env::var_os(VMM_CLI).unwrap_or_default().into()
}

/// The guest program `name`, an ELF file.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(VMM_GUESTS).unwrap_or_default()).join(format!("{name}.elf"))
}

/// Looks until there is something to see.
///
/// # Errors
///
/// That of `look`, or `deadline` has passed without `what`.
pub fn until<T>(deadline: Instant, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not in time");
        }
        std::thread::sleep(TICK);
    }
}

/// The words of `text`.
fn words(text: &str) -> impl Iterator<Item = OsString> + '_ {
    text.split_whitespace().map(OsString::from)
}
