//! The monitors that boot Linux, and how each is told to.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::json;

use crate::bench::probe::Launch;
use crate::bench::subject::UnknownPeer;

/// The subject that the others are compared with.
pub const MICROVM: &str = "microvm";

/// This project, and this project with devices.
pub const VMM: &str = "vmm";
/// See [`VMM`].
pub const VMM_DEVICES: &str = "vmm_devices";

/// The guest's memory, in MiB.
const MEMORY: u32 = 256;

/// What vmm-cli is given kernel, initrd and command line by.
const VMM_NAMES: [&str; 3] = ["--kernel", "--initrd", "--cmdline"];

/// Its disks where it has some, and their bytes.
const DISKS: [&str; 2] = ["disk0", "disk1"];
const DISK: u64 = 1 << 20;

/// QEMU's microvm without what Linux can do without. The clock stays: Linux asks at its port 20,000 times for one that
/// is not there. So does ACPI: without it, this does not boot.
pub(super) const MICROVM_WORDS: &str = "-M microvm,pit=off,pic=off,isa-serial=on,rtc=on -cpu host -accel kvm -nodefaults \
                             -no-user-config -nographic -serial stdio -no-reboot";
/// What it starts with.
const MICROVM_FIRMWARE: &str = "bios-microvm.bin";

/// A program, and how it is told to boot Linux with COM1 on its standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootMonitor {
    kind: Kind,
    program: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Vmm,
    /// With four devices on its PCI bus.
    VmmDevices,
    /// With the directory of its firmware.
    Microvm(PathBuf),
    Firecracker,
    CloudHypervisor,
}

/// The form in which a kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As distributions install it.
    BzImage,
    /// The ELF file inside, with a PVH entry.
    Vmlinux,
}

/// What is booted.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The directory of `bzImage`, `vmlinux` and `initrd`.
    pub images: &'a Path,
    /// The kernel's form.
    pub format: Format,
    /// CPUs.
    pub cpus: u32,
}

impl Format {
    fn file(self) -> &'static str {
        match self {
            Self::BzImage => "bzImage",
            Self::Vmlinux => "vmlinux",
        }
    }
}

impl Guest<'_> {
    fn kernel(self) -> OsString {
        self.images.join(self.format.file()).into()
    }

    fn initrd(self) -> OsString {
        self.images.join("initrd").into()
    }
}

/// Parses a peer.
impl FromStr for BootMonitor {
    type Err = UnknownPeer;

    fn from_str(text: &str) -> Result<Self, UnknownPeer> {
        let kind = match text.split_once('=') {
            Some(("firecracker", path)) if !path.is_empty() => Kind::Firecracker,
            Some(("cloud-hypervisor", path)) if !path.is_empty() => Kind::CloudHypervisor,
            _ => return Err(UnknownPeer(text.to_owned())),
        };
        let program = text.split_once('=').map(|(_, path)| path.into()).unwrap_or_default();
        Ok(Self { kind, program })
    }
}

impl BootMonitor {
    /// vmm-cli.
    pub fn vmm(program: &Path) -> Self {
        Self { kind: Kind::Vmm, program: program.to_owned() }
    }

    /// vmm-cli with four virtio devices: two disks, a source of entropy and a console.
    pub fn vmm_with_devices(program: &Path) -> Self {
        Self { kind: Kind::VmmDevices, program: program.to_owned() }
    }

    /// QEMU's machine `microvm`, with the firmware files of a directory.
    pub fn microvm(program: &Path, firmware: &Path) -> Self {
        Self { kind: Kind::Microvm(firmware.to_owned()), program: program.to_owned() }
    }

    /// Its name in the report.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Vmm => VMM,
            Kind::VmmDevices => VMM_DEVICES,
            Kind::Microvm(_) => MICROVM,
            Kind::Firecracker => "firecracker",
            Kind::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// What it lacks to boot a kernel of this form, if it does.
    pub fn lacks(&self, format: Format) -> Option<String> {
        if !self.program.is_file() {
            return Some(format!("not available: there is no {}", self.program.display()));
        }
        match (&self.kind, format) {
            (Kind::Firecracker | Kind::CloudHypervisor, Format::BzImage) => {
                Some("not available: it is given vmlinux".to_owned())
            }
            (Kind::Microvm(firmware), _) if !firmware.join(MICROVM_FIRMWARE).is_file() => {
                Some(format!("not available: there is no {MICROVM_FIRMWARE} in {}", firmware.display()))
            }
            _ => None,
        }
    }

    /// How it boots `guest`, which makes a mark and then ends the monitor. What it needs in a file is written into the
    /// directory `scratch`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn launch(&self, guest: Guest<'_>, scratch: &Path) -> io::Result<Launch> {
        let cpus = guest.cpus;
        let (mut args, names) = match &self.kind {
            Kind::Vmm => (vmm_words(cpus), VMM_NAMES),
            Kind::VmmDevices => {
                let mut args = vmm_words(cpus);
                args.extend(words("--entropy --virtio-console null"));
                for name in DISKS {
                    let disk = scratch.join(name);
                    fs::File::create(&disk)?.set_len(DISK)?;
                    args.push(format!("--disk=path={},format=raw", disk.display()).into());
                }
                (args, VMM_NAMES)
            }
            Kind::Microvm(firmware) => {
                let mut args = vec!["-L".into(), firmware.into()];
                args.extend(words(&format!("{MICROVM_WORDS} -smp {cpus} -m {MEMORY}M")));
                (args, ["-kernel", "-initrd", "-append"])
            }
            Kind::CloudHypervisor => (
                words(&format!(
                    "--seccomp false --cpus boot={cpus} --memory size={MEMORY}M --serial tty --console off"
                )),
                ["--kernel", "--initramfs", "--cmdline"],
            ),
            Kind::Firecracker => {
                let mut args = words("--no-api --no-seccomp --config-file");
                args.push(self.firecracker_config(guest, scratch)?.into());
                return Ok(Launch { program: self.program.clone(), args });
            }
        };
        let values = [guest.kernel(), guest.initrd(), self.command_line().into()];
        args.extend(names.into_iter().zip(values).flat_map(|(name, value)| [name.into(), value]));
        Ok(Launch { program: self.program.clone(), args })
    }

    /// The guest's command line. It ends with words for the guest's first program.
    fn command_line(&self) -> String {
        // A triple fault ends every monitor but one, which starts again; that one ends by ACPI.
        let end = if self.kind == Kind::CloudHypervisor { "poweroff" } else { "reboot" };
        format!("console=ttyS0 quiet reboot=t panic=-1 -- boot {end}")
    }

    fn firecracker_config(&self, guest: Guest<'_>, scratch: &Path) -> io::Result<PathBuf> {
        let config = json!({
            "boot-source": {
                "kernel_image_path": guest.kernel().to_string_lossy(),
                "initrd_path": guest.initrd().to_string_lossy(),
                "boot_args": self.command_line(),
            },
            "drives": [],
            "machine-config": { "vcpu_count": guest.cpus, "mem_size_mib": MEMORY },
        });
        let file = scratch.join(format!("{}-{}.json", guest.format.file(), guest.cpus));
        fs::write(&file, config.to_string())?;
        Ok(file)
    }
}

fn vmm_words(cpus: u32) -> Vec<OsString> {
    words(&format!("run --cpus {cpus} --memory {MEMORY}M --serial stdio --on-triple-fault reset"))
}

pub(super) fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest<'static> {
        Guest { images: Path::new("/images"), format: Format::Vmlinux, cpus: 4 }
    }

    fn launched(monitor: &BootMonitor) -> Vec<String> {
        let launch = monitor.launch(guest(), Path::new("/nonexistent")).unwrap();
        launch.args.iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    fn value_of<'a>(args: &'a [String], name: &str) -> &'a str {
        &args[args.iter().position(|word| word == name).unwrap() + 1]
    }

    #[test]
    fn every_monitor_gets_the_same_guest() {
        let ours = launched(&BootMonitor::vmm(Path::new("vmm-cli")));
        let microvm = launched(&BootMonitor::microvm(Path::new("qemu"), Path::new("/firmware")));
        let peer = launched(&"cloud-hypervisor=/c".parse().unwrap());
        assert_eq!(value_of(&ours, "--kernel"), "/images/vmlinux");
        assert_eq!(value_of(&microvm, "-kernel"), "/images/vmlinux");
        assert_eq!(value_of(&peer, "--initramfs"), "/images/initrd");
        assert_eq!((value_of(&ours, "--cpus"), value_of(&microvm, "-smp")), ("4", "4"));
        assert_eq!(value_of(&ours, "--cmdline"), value_of(&microvm, "-append"));
        assert_eq!(value_of(&microvm, "-L"), "/firmware");
        assert!(value_of(&peer, "--cmdline").ends_with("-- boot poweroff"));
    }

    #[test]
    fn devices_are_added_to_the_same_guest() {
        let scratch = tempfile::tempdir().unwrap();
        let program = Path::new("vmm-cli");
        let with = BootMonitor::vmm_with_devices(program).launch(guest(), scratch.path()).unwrap().args;
        let without = BootMonitor::vmm(program).launch(guest(), scratch.path()).unwrap().args;
        let added: Vec<_> = with.iter().filter(|word| !without.contains(word)).collect();
        // The console's word is two.
        assert_eq!(added.len(), 1 + 2 + 2, "{added:?}");
        assert!(without.iter().all(|word| with.contains(word)));
        assert_eq!(fs::metadata(scratch.path().join("disk1")).unwrap().len(), DISK);
    }

    #[test]
    fn firecracker_reads_the_guest_from_a_file_of_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let peer: BootMonitor = "firecracker=/f".parse().unwrap();
        let launch = peer.launch(guest(), scratch.path()).unwrap();
        let config = fs::read(launch.args.last().unwrap()).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["boot-source"]["kernel_image_path"], "/images/vmlinux");
        assert_eq!(config["machine-config"]["vcpu_count"], 4);
    }

    #[test]
    fn what_a_monitor_lacks_is_said_and_nothing_else() {
        let here = tempfile::tempdir().unwrap();
        let program = here.path().join("program");
        let microvm = BootMonitor::microvm(&program, here.path());
        assert!(microvm.lacks(Format::Vmlinux).unwrap().contains("there is no"));
        fs::write(&program, "").unwrap();
        assert!(microvm.lacks(Format::Vmlinux).unwrap().contains(MICROVM_FIRMWARE));
        fs::write(here.path().join(MICROVM_FIRMWARE), "").unwrap();
        assert_eq!(microvm.lacks(Format::Vmlinux), None);
        let peer: BootMonitor = format!("firecracker={}", program.display()).parse().unwrap();
        assert!(peer.lacks(Format::BzImage).is_some() && peer.lacks(Format::Vmlinux).is_none());
        assert!("raw=/x".parse::<BootMonitor>().is_err() && "firecracker=".parse::<BootMonitor>().is_err());
    }
}
