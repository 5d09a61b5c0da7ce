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
/// The monitor's socket, and the loopback's.
const SOCKET: &str = "socket";
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
    /// The host's kernel, for vmm-cli.
    VmmVhost,
    /// The host's kernel, for QEMU's microvm.
    MicrovmVhost,
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
            Self::Net => &Subject::ALL,
            // QEMU has sockets only where the kernel serves them.
            Self::Vsock => &[Subject::Loopback, Subject::Vmm, Subject::VmmVhost, Subject::MicrovmVhost],
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
        Self::ALL
            .into_iter()
            .find(|subject| subject.name() == text)
            .ok_or_else(|| UnknownSubject(text.to_owned()))
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
    const ALL: [Self; 5] = [Self::Loopback, Self::Vmm, Self::Microvm, Self::VmmVhost, Self::MicrovmVhost];

    fn is_vhost(self) -> bool {
        matches!(self, Self::VmmVhost | Self::MicrovmVhost)
    }

    /// Its name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => LOOPBACK,
            Self::Vmm => "vmm",
            Self::Microvm => "microvm",
            Self::VmmVhost => "vmm_vhost",
            Self::MicrovmVhost => "microvm_vhost",
        }
    }

    /// What it lacks, if it does.
    #[must_use]
    pub fn lacks(self, programs: &Programs) -> Option<String> {
        let program = match self {
            Self::Loopback => return None,
            Self::Vmm | Self::VmmVhost => &programs.vmm,
            Self::Microvm | Self::MicrovmVhost => &programs.qemu,
        };
        (!program.is_file()).then(|| format!("not available: there is no {}", program.display()))
    }

    /// Where the server listens, as its own side says it, and as the client does.
    #[must_use]
    pub fn endpoints(self, transport: Transport, directory: &Path) -> (Endpoint, Endpoint) {
        let socket = directory.join(SOCKET);
        let at = |address: &str| {
            let address = address.split('/').next().unwrap_or_default();
            // Only where an address above is none.
            let address = address.parse().unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
            Endpoint::Tcp((address, PORT as u16).into())
        };
        match (self, transport) {
            (Self::Loopback, Transport::Net) => (at("127.0.0.1"), at("127.0.0.1")),
            (Self::Loopback, Transport::Vsock) => (Endpoint::Unix(socket.clone()), Endpoint::Unix(socket)),
            (_, Transport::Net) => (at(GUEST_ADDRESS), at(GUEST_ADDRESS)),
            (_, Transport::Vsock) if self.is_vhost() => {
                (Endpoint::Vsock(CID, PORT), Endpoint::Vsock(CID, PORT))
            }
            (_, Transport::Vsock) => (Endpoint::Vsock(CID, PORT), Endpoint::Guest(PORT, socket)),
        }
    }

    /// How it starts a guest that serves over `transport`; the loopback has none.
    #[must_use]
    pub fn launch(self, files: &Files, transport: Transport) -> Option<Launch> {
        let Files { programs, root, server, directory } = files;
        let (root, server) = (root.display(), server.display());
        let serves = self.endpoints(transport, directory).0;
        let line = OsString::from(format!(
            "console=ttyS0 quiet reboot=t panic=-1 vmm.do=traffic vmm.root=/dev/vda vmm.disk=/dev/vdb \
             vmm.address={GUEST_ADDRESS} vmm.serve={serves}"
        ));
        let image = |name: &str| OsString::from(programs.images.join(name));
        match self {
            Self::Loopback => None,
            Self::Vmm | Self::VmmVhost => {
                let mut args = words(&format!("run --cpus {CPUS} --memory {MEMORY}M --serial stdio"));
                args.push(format!("--disk=path={root},format=raw,read_only").into());
                args.push(format!("--disk=path={server},format=raw,read_only").into());
                let vhost = self.is_vhost();
                args.push(match transport {
                    Transport::Vsock if vhost => format!("--vsock=cid={CID},vhost").into(),
                    Transport::Vsock => {
                        format!("--vsock=cid={CID},path={}", directory.join(SOCKET).display()).into()
                    }
                    Transport::Net => format!("--net=tap={INTERFACE},create,vhost={vhost}").into(),
                });
                args.extend(["--kernel".into(), image("bzImage"), "--initrd".into(), image("initrd")]);
                args.extend(["--cmdline".into(), line]);
                Some(Launch { program: programs.vmm.clone(), args })
            }
            Self::Microvm | Self::MicrovmVhost => {
                let mut args = vec!["-L".into(), programs.firmware.clone().into()];
                args.extend(words(&format!("{MICROVM_WORDS} {MODERN} -smp {CPUS} -m {MEMORY}M")));
                args.extend(words(&format!(
                    "-drive id=root,file={root},format=raw,if=none,readonly=on -device virtio-blk-device,drive=root \
                     -drive id=server,file={server},format=raw,if=none,readonly=on \
                     -device virtio-blk-device,drive=server"
                )));
                let vhost = if self.is_vhost() { "on" } else { "off" };
                args.extend(words(&match transport {
                    Transport::Net => format!(
                        "-netdev tap,id=net,ifname={INTERFACE},script=no,downscript=no,vhost={vhost} \
                         -device virtio-net-device,netdev=net"
                    ),
                    Transport::Vsock => format!("-device vhost-vsock-device,guest-cid={CID}"),
                }));
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
        for subject in [Subject::Vmm, Subject::Microvm, Subject::VmmVhost, Subject::MicrovmVhost] {
            let text = text(subject, Transport::Net);
            assert!(text.contains(INTERFACE) && text.contains("vmm.serve=tcp:10.0.2.2:5000"), "{text}");
            assert_eq!(subject.endpoints(Transport::Net, Path::new("/d")).1.to_string(), "tcp:10.0.2.2:5000");
        }
        let own = text(Subject::Vmm, Transport::Vsock);
        assert!(own.contains("cid=77,path=/d/socket") && own.contains("vmm.serve=vsock:77:5000"), "{own}");
        for subject in [Subject::VmmVhost, Subject::MicrovmVhost] {
            let text = text(subject, Transport::Vsock);
            assert!(text.contains("cid=77") && text.contains("vhost") && !text.contains("socket"), "{text}");
            assert_eq!(subject.endpoints(Transport::Vsock, Path::new("/d")).1.to_string(), "vsock:77:5000");
        }
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
