//! The programs that run a benchmark's guest: the raw baseline, vmm-cli and peers.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::json;

use crate::bench::probe::Launch;
use crate::bench::series::BASELINE;

/// A program and how it is told to run a guest with one CPU, 128 MiB and COM1 on its standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    kind: Kind,
    program: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Raw,
    Vmm,
    Firecracker,
    CloudHypervisor,
}

/// A peer that is not given as `NAME=PATH` with a known name.
#[derive(Debug, thiserror::Error)]
#[error("peer {0:?}: expected firecracker=PATH or cloud-hypervisor=PATH")]
pub struct UnknownPeer(pub(super) String);

/// Parses a peer.
impl FromStr for Subject {
    type Err = UnknownPeer;

    fn from_str(text: &str) -> Result<Self, UnknownPeer> {
        let kind = |name| match name {
            "firecracker" => Some(Kind::Firecracker),
            "cloud-hypervisor" => Some(Kind::CloudHypervisor),
            _ => None,
        };
        let peer = text.split_once('=').and_then(|(name, path)| Some((kind(name)?, path)));
        match peer {
            Some((kind, path)) if !path.is_empty() => Ok(Self { kind, program: path.into() }),
            _ => Err(UnknownPeer(text.to_owned())),
        }
    }
}

impl Subject {
    /// The baseline.
    pub fn raw(program: &Path) -> Self {
        Self { kind: Kind::Raw, program: program.to_owned() }
    }

    /// vmm-cli.
    pub fn vmm(program: &Path) -> Self {
        Self { kind: Kind::Vmm, program: program.to_owned() }
    }

    /// Its name in the report.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Raw => BASELINE,
            Kind::Vmm => "vmm",
            Kind::Firecracker => "firecracker",
            Kind::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// How it runs `guest`. What it needs in a file is written into the directory `scratch`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn launch(&self, guest: &Path, scratch: &Path) -> io::Result<Launch> {
        let kernel = guest.as_os_str();
        let args: Vec<OsString> = match self.kind {
            Kind::Raw => vec![kernel.into()],
            Kind::Vmm => {
                let mut args = words("run --cpus 1 --memory 128M --serial stdio --kernel");
                args.push(kernel.into());
                args
            }
            Kind::Firecracker => {
                let mut args = words("--no-api --no-seccomp --config-file");
                args.push(firecracker_config(guest, scratch)?.into());
                args
            }
            Kind::CloudHypervisor => {
                let mut args =
                    words("--seccomp false --cpus boot=1 --memory size=128M --serial tty --console off");
                args.extend(["--kernel".into(), kernel.into()]);
                args
            }
        };
        Ok(Launch { program: self.program.clone(), args })
    }
}

fn words(text: &str) -> Vec<OsString> {
    text.split(' ').map(OsString::from).collect()
}

fn firecracker_config(guest: &Path, scratch: &Path) -> io::Result<PathBuf> {
    let config = json!({
        "boot-source": { "kernel_image_path": guest, "boot_args": "console=ttyS0" },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
    });
    let file = scratch.join(guest.file_name().unwrap_or(guest.as_os_str())).with_extension("json");
    fs::write(&file, config.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_known_names_with_a_path() {
        let peer: Subject = "firecracker=/opt/a=b".parse().unwrap();
        assert_eq!((peer.name(), peer.program.as_path()), ("firecracker", Path::new("/opt/a=b")));
        assert_eq!("cloud-hypervisor=x".parse::<Subject>().unwrap().name(), "cloud-hypervisor");
        for bad in ["", "firecracker", "firecracker=", "=x", "qemu=/x"] {
            let error = bad.parse::<Subject>().unwrap_err().to_string();
            assert!(error.contains("firecracker=PATH"), "{error}");
        }
    }

    #[test]
    fn every_subject_is_told_the_guest() {
        let scratch = tempfile::tempdir().unwrap();
        let guest = Path::new("/guests/bench_halt.elf");
        let raw = Subject::raw(Path::new("raw")).launch(guest, scratch.path()).unwrap();
        assert_eq!(raw.args, ["/guests/bench_halt.elf"]);
        let ours = Subject::vmm(Path::new("vmm-cli")).launch(guest, scratch.path()).unwrap();
        assert_eq!(ours.args.last().unwrap(), "/guests/bench_halt.elf");
        let peer: Subject = "cloud-hypervisor=c".parse().unwrap();
        let peer = peer.launch(guest, scratch.path()).unwrap();
        assert_eq!(peer.args.last().unwrap(), "/guests/bench_halt.elf");
    }

    #[test]
    fn firecracker_reads_the_guest_from_a_file_of_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let peer: Subject = "firecracker=f".parse().unwrap();
        let launch = peer.launch(Path::new("/guests/bench_reset.elf"), scratch.path()).unwrap();
        let file = scratch.path().join("bench_reset.json");
        assert_eq!(launch.args.last().unwrap(), file.as_os_str());
        let config: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(config["boot-source"]["kernel_image_path"], "/guests/bench_reset.elf");
    }
}
