//! The subjects of the block benchmark: monitors whose guests read and write a disk, and the host itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::bench::boot_monitor::{MICROVM_WORDS, words};
use crate::bench::probe::Launch;
use crate::bench::programs::Programs;

/// What the others are compared with.
pub const HOST: &str = "host";

/// The guest's memory, in MiB.
const MEMORY: u32 = 512;
/// Its CPUs, however many queues its disk has.
const CPUS: u32 = 2;

/// Besides what starts it for a boot: the registers of virtio 1.
const MODERN: &str = "-global virtio-mmio.force-legacy=false";

/// Who serves the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// vmm-cli with this engine.
    Vmm(&'static str),
    /// QEMU's microvm with this kind of asynchronous I/O.
    Microvm(&'static str),
}

/// All of them.
pub const SUBJECTS: [Subject; 4] = [
    Subject::Vmm("io-uring"),
    Subject::Vmm("threads"),
    Subject::Microvm("io_uring"),
    Subject::Microvm("threads"),
];

/// Programs and files.
#[derive(Debug)]
pub struct Files {
    /// The monitors and the kernel.
    pub programs: Programs,
    /// The root of the guest.
    pub root: PathBuf,
    /// What is read and written.
    pub disk: PathBuf,
}

impl Subject {
    /// Its name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm("threads") => "vmm_threads",
            Self::Vmm(_) => "vmm",
            Self::Microvm("threads") => "microvm_threads",
            Self::Microvm(_) => "microvm",
        }
    }

    /// What it lacks, if it does.
    #[must_use]
    pub fn lacks(self, files: &Files) -> Option<String> {
        let program = match self {
            Self::Vmm(_) => &files.programs.vmm,
            Self::Microvm(_) => &files.programs.qemu,
        };
        (!program.is_file()).then(|| format!("not available: there is no {}", program.display()))
    }

    /// How it starts a guest whose disk has `queues`, and whose command line ends with `more`; vmm-cli with its control socket at `socket`.
    #[must_use]
    pub fn launch(self, files: &Files, queues: u32, more: &str, socket: &Path) -> Launch {
        let programs = &files.programs;
        let (root, disk) = (files.root.display(), files.disk.display());
        let line = OsString::from(format!(
            "console=ttyS0 quiet reboot=t panic=-1 vmm.do=fio vmm.root=/dev/vda vmm.disk=/dev/vdb vmm.queues={queues} {more}"
        ));
        let image = |name: &str| OsString::from(programs.images.join(name));
        match self {
            Self::Vmm(engine) => {
                let mut args = words(&format!("run --cpus {CPUS} --memory {MEMORY}M --serial stdio"));
                args.extend(["--api-sock".into(), socket.into()]);
                args.push(format!("--disk=path={root},format=raw,read_only").into());
                args.push(format!("--disk=path={disk},format=raw,engine={engine},queues={queues}").into());
                args.extend(["--kernel".into(), image("bzImage"), "--initrd".into(), image("initrd")]);
                args.extend(["--cmdline".into(), line]);
                Launch { program: programs.vmm.clone(), args }
            }
            Self::Microvm(aio) => {
                let mut args = vec!["-L".into(), programs.firmware.clone().into()];
                args.extend(words(&format!("{MICROVM_WORDS} {MODERN} -smp {CPUS} -m {MEMORY}M")));
                args.extend(words(&format!(
                    "-drive id=root,file={root},format=raw,if=none,readonly=on -device virtio-blk-device,drive=root \
                     -drive id=disk,file={disk},format=raw,if=none,aio={aio} \
                     -device virtio-blk-device,drive=disk,num-queues={queues}"
                )));
                args.extend(["-kernel".into(), image("bzImage"), "-initrd".into(), image("initrd")]);
                args.extend(["-append".into(), line]);
                Launch { program: programs.qemu.clone(), args }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_gets_the_same_disk_with_the_same_queues() {
        let files = Files {
            programs: Programs {
                vmm: "/v".into(),
                qemu: "/q".into(),
                firmware: "/f".into(),
                images: "/i".into(),
            },
            root: "/root.ext4".into(),
            disk: "/disk.raw".into(),
        };
        for subject in SUBJECTS {
            let launch = subject.launch(&files, 2, "vmm.sections=a", Path::new("/s"));
            let words: Vec<_> = launch.args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            let text = words.join(" ");
            assert!(text.contains("/disk.raw") && text.contains("vmm.queues=2 vmm.sections=a"), "{text}");
            assert!(text.contains("queues=2,") || text.contains("queues=2 "), "{text}");
            assert!(subject.lacks(&files).unwrap().contains("there is no"));
        }
    }
}
