//! `/dev/kvm`: whether it is there, may be opened, is KVM, and runs a machine.

use std::os::unix::fs::FileTypeExt;

use vmm_core::{Kvm, KvmOpenError};

use super::finding::Finding;
use super::machine::{self, Execution};
use crate::advice;
use crate::files::Files;
use crate::host::Extension;
use crate::run::KVM;

const DEVICE: &str = "kvm-device";
const MACHINE: &str = "machine";

/// Opens KVM as `run` does; without a KVM there is only the finding that says why.
pub(super) fn open(files: &Files, extension: Option<Extension>) -> (Finding, Option<Kvm>) {
    if let Some(finding) = wrong_node(files) {
        return (finding, None);
    }
    match Kvm::open(&files.path(KVM)) {
        Ok(kvm) => (Finding::ok(DEVICE, "/dev/kvm: API version 12, every required capability"), Some(kvm)),
        Err(error) => (unusable(error, extension), None),
    }
}

/// Something that is there, but is no device: it is not opened, which could wait for ever.
fn wrong_node(files: &Files) -> Option<Finding> {
    let kind = files.metadata(KVM).ok()?.file_type();
    if kind.is_char_device() {
        return None;
    }
    let what = if kind.is_dir() { "a directory" } else { "a file" };
    Some(
        Finding::broken(DEVICE, format!("{KVM} is {what}, not a character device"))
            .mend_by("`sudo rm -r /dev/kvm && sudo mknod -m 660 /dev/kvm c 10 232`"),
    )
}

fn unusable(error: KvmOpenError, extension: Option<Extension>) -> Finding {
    let advice = advice::about_kvm(&error, extension);
    let error = anyhow::Error::new(error);
    let mend = advice.or_else(|| advice::about(&error).map(str::to_owned));
    Finding::broken(DEVICE, format!("{error:#}")).mend(mend)
}

/// Tries a machine out: that KVM can be opened does not say that it works.
pub(super) fn machine(kvm: &Kvm) -> (Finding, Option<Execution>) {
    match machine::try_out(kvm) {
        Ok((execution, time)) => {
            let found = format!("built, run and taken apart in {} ms", time.as_millis());
            (Finding::ok(MACHINE, found), Some(execution))
        }
        Err(error) => (no_machine(&error), None),
    }
}

fn no_machine(error: &anyhow::Error) -> Finding {
    let mend = match advice::errno(error) {
        Some(libc::EBUSY) => Some(
            "another hypervisor (VirtualBox, VMware) has taken the processor's extension: end its machines, or \
             `sudo modprobe -r vboxnetadp vboxnetflt vboxdrv`",
        ),
        _ => advice::about(error),
    };
    Finding::broken(MACHINE, format!("{error:#}")).mend(mend.map(str::to_owned))
}

/// How many vCPUs a machine can have.
pub(super) fn max_vcpus(kvm: &Kvm) -> Finding {
    const ID: &str = "kvm-max-vcpus";
    match kvm.capabilities().max_vcpus {
        most @ ..254 => Finding::note(ID, format!("{most} vCPUs a machine"))
            .lost(format!("machines with more than {most} vCPUs")),
        most => Finding::ok(ID, format!("{most} vCPUs a machine")),
    }
}

/// How long KVM waits for work on behalf of a vCPU that halts, before it lets the host's processor go.
pub(super) fn halt_polling(files: &Files) -> Finding {
    const ID: &str = "halt-polling";
    const PATH: &str = "/sys/module/kvm/parameters/halt_poll_ns";
    match files.number(PATH) {
        Ok(0) => Finding::note(ID, "off")
            .lost("latency: a guest that halts wakes up some microseconds later; idle guests cost less")
            .mend(format!("`echo 200000 | sudo tee {PATH}`")),
        Ok(time) => Finding::ok(ID, format!("up to {} us when a vCPU halts", time / 1000)),
        Err(error) => Finding::unknown(ID, PATH, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use crate::files::fixture::Fixture;
    use std::io;

    use super::*;

    fn opened(files: &[(&str, &str)]) -> Finding {
        let (finding, kvm) = open(&Fixture::new(files).files, Some(Extension::Svm));
        assert!(kvm.is_none());
        assert_eq!((finding.id, finding.state), (DEVICE, State::Broken));
        finding
    }

    #[test]
    fn a_missing_device_names_the_module_of_the_processor() {
        let finding = opened(&[]);
        assert!(finding.found.contains("No such file"), "{finding:?}");
        assert!(finding.mend.unwrap().contains("modprobe kvm_amd"));
    }

    #[test]
    fn a_file_in_its_place_is_told_from_the_device() {
        let finding = opened(&[("/dev/kvm", "")]);
        assert_eq!(finding.found, "/dev/kvm is a file, not a character device");
        assert!(finding.mend.unwrap().contains("mknod"));
        assert_eq!(opened(&[("/dev/kvm/x", "")]).found, "/dev/kvm is a directory, not a character device");
    }

    #[test]
    fn a_refused_device_and_an_old_kernel_say_what_to_do() {
        let open_error =
            |errno| KvmOpenError::Open { path: KVM.into(), source: io::Error::from_raw_os_error(errno) };
        let mend = |error| unusable(error, None).mend;
        assert!(mend(open_error(libc::EACCES)).unwrap().contains("usermod -aG kvm"));
        assert!(mend(open_error(libc::EMFILE)).unwrap().contains("ulimit -n"));
        assert!(
            mend(KvmOpenError::MissingCapability("KVM_CAP_EXT_CPUID")).unwrap().contains("newer host kernel")
        );
    }

    #[test]
    fn the_step_that_failed_and_its_cause_are_found() {
        let cause =
            anyhow::Error::new(io::Error::from_raw_os_error(libc::EBUSY)).context("no VM can be made");
        let finding = no_machine(&cause);
        assert!(finding.found.starts_with("no VM can be made: "), "{finding:?}");
        assert!(finding.mend.unwrap().contains("VirtualBox"));
        assert_eq!(no_machine(&anyhow::anyhow!("the guest does not answer")).mend, None);
    }
}
