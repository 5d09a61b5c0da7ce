//! Why a TAP interface cannot be had, and what mends that.

use std::io;

/// See the message of each.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum TapError {
    #[error(
        "{name:?} is no name of an interface: 1 to 15 printable characters of ASCII, without `/`, `:` and `%`"
    )]
    Name { name: String },
    #[error("cannot open /dev/net/tun{}", device_advice(source))]
    Device {
        #[source]
        source: io::Error,
    },
    #[error("no socket to ask for network interfaces")]
    Socket {
        #[source]
        source: io::Error,
    },
    #[error(
        "there is no interface {name}: make it (`sudo ip tuntap add {name} mode tap user $USER{}`, \
         `sudo ip link set {name} up`), or have it created (`create`)",
        if *pairs > 1 { " multi_queue" } else { "" }
    )]
    NotThere {
        name: String,
        pairs: u16,
        #[source]
        source: io::Error,
    },
    #[error(
        "the interface {name} is in use: another process has its TAP open; end that, or take another one"
    )]
    Busy { name: String },
    #[error(
        "the interface {name} belongs to somebody else: make it with `user $USER`, or run with the capability \
         CAP_NET_ADMIN"
    )]
    NotOwner { name: String },
    #[error(
        "the interface {name} is no TAP: make one (`sudo ip tuntap add NAME mode tap`), and put both into a bridge"
    )]
    NotATap { name: String },
    #[error(
        "the interface {name} has one queue, and {pairs} are wanted: make it with `multi_queue`, or leave `queues` out"
    )]
    OneQueue { name: String, pairs: u16 },
    #[error("the interface {name} cannot be used as a TAP")]
    Attach {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("an interface {name} exists already: leave `create` out to use it, or take another name")]
    Exists { name: String },
    #[error(
        "no permission to create the interface {name}: that takes the capability CAP_NET_ADMIN; or have it made before \
         (`sudo ip tuntap add {name} mode tap user $USER`), and leave `create` out"
    )]
    MayNotCreate { name: String },
    #[error("cannot create the interface {name}")]
    Create {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot set the interface {name} up")]
    SetUp {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the MTU of the interface {name} is {mtu}, below {wanted}: raise it (`sudo ip link set {name} mtu {wanted}`)"
    )]
    Mtu { name: String, wanted: u16, mtu: u16 },
    #[error("there is no descriptor {number}: start the monitor with it open")]
    Descriptor {
        number: i32,
        #[source]
        source: io::Error,
    },
    #[error("the descriptor {number} is no TAP that belongs to an interface")]
    NotATapDescriptor {
        number: i32,
        #[source]
        source: io::Error,
    },
    #[error("the TAP of descriptor {number} lacks {missing}: whoever opens it has to set that (TUNSETIFF)")]
    Flags { number: i32, missing: String },
    #[error("the descriptor {number} blocks: whoever opens it has to set O_NONBLOCK")]
    Blocks { number: i32 },
    #[error("the descriptors are of two interfaces, {one} and {other}")]
    TwoInterfaces { one: String, other: String },
    #[error("there is no descriptor of a TAP")]
    NoDescriptor,
    #[error(
        "there are {found} descriptors of the interface {name}, and {pairs} are needed, one for each pair of queues"
    )]
    Pairs { name: String, found: usize, pairs: u16 },
    #[error("the descriptors are of the interface {found}, and not of {name}")]
    OtherInterface { name: String, found: String },
    #[error("the descriptor of {what} {problem}")]
    Companion { what: &'static str, problem: &'static str },
}

fn device_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            ": load the module (`sudo modprobe tun`); in a container, pass the device in (`--device /dev/net/tun`)"
        }
        Some(libc::EACCES | libc::EPERM) => {
            ": it should be open to everybody (`sudo chmod 0666 /dev/net/tun`); in a container, pass the device in"
        }
        _ => "",
    }
}

impl TapError {
    /// Whether the host is to be mended, and not what was asked for.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        !matches!(
            self,
            Self::Name { .. }
                | Self::NotATap { .. }
                | Self::OneQueue { .. }
                | Self::Exists { .. }
                | Self::Mtu { .. }
                | Self::Descriptor { .. }
                | Self::NotATapDescriptor { .. }
                | Self::Flags { .. }
                | Self::Blocks { .. }
                | Self::TwoInterfaces { .. }
                | Self::NoDescriptor
                | Self::Pairs { .. }
                | Self::OtherInterface { .. }
                | Self::Companion { .. }
        )
    }
}
