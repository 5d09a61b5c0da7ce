//! Advice: what to do about a host that cannot; the same words wherever it is given.

use std::io;

use vmm_core::KvmOpenError;

use crate::files::Files;
use crate::host::Extension;

/// What to do about a `/dev/kvm` that cannot be used; `extension` is what the processor offers.
pub(crate) fn about_kvm(error: &KvmOpenError, extension: Option<Extension>) -> Option<String> {
    match error {
        KvmOpenError::Open { source, .. } => match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Some(missing_device(extension)),
            Some(libc::EACCES | libc::EPERM) => Some(
                "add yourself to its group (`sudo usermod -aG kvm $USER`, then log in again), or take it until the \
                 next boot (`sudo setfacl -m u:$USER:rw /dev/kvm`)"
                    .into(),
            ),
            _ => None,
        },
        KvmOpenError::ApiVersion { .. } | KvmOpenError::MissingCapability(_) => {
            Some("a newer host kernel is needed".into())
        }
        KvmOpenError::Ioctl(_) => None,
    }
}

fn missing_device(extension: Option<Extension>) -> String {
    let module = match extension {
        Some(extension) => format!("load the module (`sudo modprobe {}`)", extension.module()),
        None => "enable virtualization in the firmware (in a virtual machine: nested virtualization, at its host) \
                 and load the module (`sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`)"
            .into(),
    };
    format!("{module}; in a container, pass the device in (`--device /dev/kvm`)")
}

/// A setting of the host, which is `value`, and what changes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forbids {
    pub(crate) path: &'static str,
    pub(crate) value: u64,
    pub(crate) mend: &'static str,
}

/// How many user namespaces there may be.
pub(crate) const MOST_USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";

/// The first setting that keeps users without privileges from having user namespaces.
pub(crate) fn forbids_user_namespaces(files: &Files) -> Option<Forbids> {
    let settings = [
        Forbids {
            path: MOST_USER_NAMESPACES,
            value: 0,
            mend: "`sudo sysctl user.max_user_namespaces=10000`",
        },
        // Debian.
        Forbids {
            path: "/proc/sys/kernel/unprivileged_userns_clone",
            value: 0,
            mend: "`sudo sysctl kernel.unprivileged_userns_clone=1`",
        },
        // Ubuntu.
        Forbids {
            path: "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            value: 1,
            mend: "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or a profile of AppArmor with `userns,`",
        },
    ];
    settings.into_iter().find(|setting| files.number(setting.path).is_ok_and(|value| value == setting.value))
}

/// The answer of the kernel that `error` comes from, if it does.
pub(crate) fn errno(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// What to do about an answer of the kernel that means the same wherever it comes from.
pub(crate) fn about(error: &anyhow::Error) -> Option<&'static str> {
    match errno(error)? {
        libc::EMFILE => Some(
            "raise this process's limit of open files (`ulimit -n 1024`): a machine takes some 23, and one for each \
             vCPU, two with `--stats` or `--api-sock`",
        ),
        libc::ENFILE => Some("the host has no open file left (`sysctl fs.file-max`)"),
        libc::ENOMEM => Some("give the guest less memory or the host more"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_error(errno: i32) -> KvmOpenError {
        KvmOpenError::Open { path: "/dev/kvm".into(), source: io::Error::from_raw_os_error(errno) }
    }

    #[test]
    fn a_missing_device_names_the_module_of_this_processor() {
        let advice = |extension| about_kvm(&open_error(libc::ENOENT), extension).unwrap();
        let amd = advice(Some(Extension::Svm));
        assert!(amd.contains("modprobe kvm_amd") && !amd.contains("kvm_intel"), "{amd}");
        assert!(advice(Some(Extension::Vmx)).contains("modprobe kvm_intel"));
        let none = advice(None);
        assert!(none.contains("firmware") && none.contains("--device /dev/kvm"), "{none}");
    }

    #[test]
    fn a_refused_device_names_the_group() {
        assert!(about_kvm(&open_error(libc::EACCES), None).unwrap().contains("usermod -aG kvm"));
        assert_eq!(about_kvm(&open_error(libc::EIO), None), None);
    }
}
