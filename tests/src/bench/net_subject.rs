//! The subjects of the network benchmarks: monitors whose guests are connected with their host, and the host itself.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;

use crate::bench::boot_monitor::{MICROVM_WORDS, words};
use crate::bench::probe::Launch;
use crate::bench::programs::Programs;
use crate::bench::series::Case;
use crate::traffic::endpoint::Endpoint;

/// What the others are compared with: both sides on the host.
pub const LOOPBACK: &str = "loopback";

/// The interface of the host that a guest is connected to.
pub const INTERFACE: &str = "vmmbench";
/// The host's address on it, with the length of the network's prefix.
pub const HOST_ADDRESS: &str = "10.0.2.1/24";
const GUEST_ADDRESS: &str = "10.0.2.2/24";

/// The guest's memory, in MiB, and its CPUs.
const MEMORY: u32 = 512;
const CPUS: u32 = 2;
/// Where the server listens.
const PORT: u32 = 5000;
/// The guest's context.
const CID: u32 = 77;

/// Besides what starts it for a boot: the registers of virtio 1.
const MODERN: &str = "-global virtio-mmio.force-legacy=false";

/// What a guest and its host are connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// A network device, over a TAP interface.
    Net,
    /// A socket device.
    Vsock,
}

/// Who connects them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Nobody: the server is on the host.
    Loopback,
    /// vmm-cli.
    Vmm,
    /// QEMU's microvm.
    Microvm,
}

const STREAM_TO_GUEST: Case = Case { name: "stream_to_guest", unit: "MiB/s" };
const STREAM_FROM_GUEST: Case = Case { name: "stream_from_guest", unit: "MiB/s" };
const ECHO: Case = Case { name: "echo", unit: "us" };
const ECHO_P99: Case = Case { name: "echo_p99", unit: "us" };
const DATAGRAMS_TO_GUEST: Case = Case { name: "datagrams_to_guest", unit: "1/s" };
const DATAGRAMS_FROM_GUEST: Case = Case { name: "datagrams_from_guest", unit: "1/s" };

/// What is measured of every transport, and of a network besides.
pub const STREAMS: [Case; 4] = [STREAM_TO_GUEST, STREAM_FROM_GUEST, ECHO, ECHO_P99];
/// See [`STREAMS`].
pub const DATAGRAMS: [Case; 2] = [DATAGRAMS_TO_GUEST, DATAGRAMS_FROM_GUEST];

impl Transport {
    /// Whom it is measured of, the baseline first.
    #[must_use]
    pub fn subjects(self) -> &'static [Subject] {
        match self {
            Self::Net => &[Subject::Loopback, Subject::Vmm, Subject::Microvm],
            // QEMU has sockets only where the kernel serves them.
            Self::Vsock => &[Subject::Loopback, Subject::Vmm],
        }
    }

    /// What is measured.
    #[must_use]
    pub fn cases(self) -> Vec<Case> {
        match self {
            Self::Net => [&STREAMS[..], &DATAGRAMS].concat(),
            Self::Vsock => STREAMS.to_vec(),
        }
    }

    /// The name of the benchmark.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Vsock => "vsock",
        }
    }
}

/// There is no such subject.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no subject of this benchmark")]
pub struct UnknownSubject(String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Subject {
    type Err = UnknownSubject;

    fn from_str(text: &str) -> Result<Self, UnknownSubject> {
        let all = [Self::Loopback, Self::Vmm, Self::Microvm];
        all.into_iter().find(|subject| subject.name() == text).ok_or_else(|| UnknownSubject(text.to_owned()))
    }
}

/// Programs and files.
#[derive(Debug)]
pub struct Files {
    /// The monitors and the kernel.
    pub programs: Programs,
    /// The root of the guest.
    pub root: PathBuf,
    /// The disk with the program that serves in the guest.
    pub server: PathBuf,
    /// Where sockets are made.
    pub directory: PathBuf,
}

impl Subject {
    /// Its name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => LOOPBACK,
            Self::Vmm => "vmm",
            Self::Microvm => "microvm",
        }
    }

    /// What it lacks, if it does.
    #[must_use]
    pub fn lacks(self, programs: &Programs) -> Option<String> {
        let program = match self {
            Self::Loopback => return None,
            Self::Vmm => &programs.vmm,
            Self::Microvm => &programs.qemu,
        };
        (!program.is_file()).then(|| format!("not available: there is no {}", program.display()))
    }

    /// Where the server listens, as its own side says it, and as the client does.
    #[must_use]
    pub fn endpoints(self, transport: Transport, directory: &Path) -> (Endpoint, Endpoint) {
        let socket = directory.join("socket");
        let at = |address: &str| {
            let address = address.split('/').next().unwrap_or_default();
            // Only where an address above is none.
            let address = address.parse().unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
            Endpoint::Tcp((address, PORT as u16).into())
        };
        match (self, transport) {
            (Self::Loopback, Transport::Net) => (at("127.0.0.1"), at("127.0.0.1")),
            (Self::Loopback, Transport::Vsock) => (Endpoint::Unix(socket.clone()), Endpoint::Unix(socket)),
            (Self::Vmm | Self::Microvm, Transport::Net) => (at(GUEST_ADDRESS), at(GUEST_ADDRESS)),
            (Self::Vmm | Self::Microvm, Transport::Vsock) => {
                (Endpoint::Vsock(CID, PORT), Endpoint::Guest(PORT, socket))
            }
        }
    }

    /// How it starts a guest that serves over `transport`; the loopback has none.
    #[must_use]
    pub fn launch(self, files: &Files, transport: Transport) -> Option<Launch> {
        let Files { programs, root, server, directory } = files;
        let (root, server) = (root.display(), server.display());
        let (serves, client) = self.endpoints(transport, directory);
        let line = OsString::from(format!(
            "console=ttyS0 quiet reboot=t panic=-1 vmm.do=traffic vmm.root=/dev/vda vmm.disk=/dev/vdb \
             vmm.address={GUEST_ADDRESS} vmm.serve={serves}"
        ));
        let image = |name: &str| OsString::from(programs.images.join(name));
        match self {
            Self::Loopback => None,
            Self::Vmm => {
                let mut args = words(&format!("run --cpus {CPUS} --memory {MEMORY}M --serial stdio"));
                args.push(format!("--disk=path={root},format=raw,read_only").into());
                args.push(format!("--disk=path={server},format=raw,read_only").into());
                args.push(match client {
                    Endpoint::Guest(_, path) => format!("--vsock=cid={CID},path={}", path.display()).into(),
                    _ => format!("--net=tap={INTERFACE},create").into(),
                });
                args.extend(["--kernel".into(), image("bzImage"), "--initrd".into(), image("initrd")]);
                args.extend(["--cmdline".into(), line]);
                Some(Launch { program: programs.vmm.clone(), args })
            }
            Self::Microvm => {
                let mut args = vec!["-L".into(), programs.firmware.clone().into()];
                args.extend(words(&format!("{MICROVM_WORDS} {MODERN} -smp {CPUS} -m {MEMORY}M")));
                args.extend(words(&format!(
                    "-drive id=root,file={root},format=raw,if=none,readonly=on -device virtio-blk-device,drive=root \
                     -drive id=server,file={server},format=raw,if=none,readonly=on \
                     -device virtio-blk-device,drive=server \
                     -netdev tap,id=net,ifname={INTERFACE},script=no,downscript=no,vhost=off \
                     -device virtio-net-device,netdev=net"
                )));
                args.extend(["-kernel".into(), image("bzImage"), "-initrd".into(), image("initrd")]);
                args.extend(["-append".into(), line]);
                Some(Launch { program: programs.qemu.clone(), args })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        let programs =
            Programs { vmm: "/v".into(), qemu: "/q".into(), firmware: "/f".into(), images: "/i".into() };
        Files { programs, root: "/root.ext4".into(), server: "/server".into(), directory: "/d".into() }
    }

    fn text(subject: Subject, transport: Transport) -> String {
        let launch = subject.launch(&files(), transport).unwrap();
        let words: Vec<_> = launch.args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn every_guest_serves_where_its_client_looks_for_it() {
        for subject in [Subject::Vmm, Subject::Microvm] {
            let text = text(subject, Transport::Net);
            assert!(text.contains(INTERFACE) && text.contains("vmm.serve=tcp:10.0.2.2:5000"), "{text}");
            assert_eq!(subject.endpoints(Transport::Net, Path::new("/d")).1.to_string(), "tcp:10.0.2.2:5000");
        }
        let text = text(Subject::Vmm, Transport::Vsock);
        assert!(text.contains("cid=77,path=/d/socket") && text.contains("vmm.serve=vsock:77:5000"), "{text}");
        assert!(Subject::Loopback.launch(&files(), Transport::Net).is_none());
    }

    #[test]
    fn every_subject_is_found_by_its_name() {
        for &subject in Transport::Net.subjects() {
            assert_eq!(subject.to_string().parse::<Subject>().unwrap(), subject);
        }
        assert!("nobody".parse::<Subject>().is_err());
        assert!(Subject::Vmm.lacks(&files().programs).unwrap().contains("there is no"));
    }
}
