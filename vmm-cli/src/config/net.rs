//! The tables `[[net]]`: network devices of the guest, and what is behind them on the host.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_devices::virtio::net::{TapOptions, TapSource};

use super::disk::{self, Rate};
use super::keys::{Form, Section, key};
use super::settings::{self, SettingsError};
use super::value::{self, EXPECTED_SWITCH, ValueError};
use super::{DeviceId, DiskConfig, device_id};

/// The flag that stands for a whole table.
const FLAG: &str = "--net";

/// The key of the socket of a back end.
pub(super) const VHOST_USER: &str = "net.vhost_user";

/// The key of the socket of a program that takes a stream of frames.
pub(super) const PASST: &str = "net.passt";

/// Most queues of one device, pairs of which each has a thread.
const MAX_QUEUES: u16 = 64;

/// The least MTU that there is (virtio 1.3, section 5.1.4.1), and the greatest that a TAP takes.
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;

const EXPECTED_TAP: &str = "the name of an interface: 1 to 15 printable characters without `/`, `:` and `%`";
const EXPECTED_FD: &str = "the number of a descriptor, or several with colons between, such as 3 or \"3:4\"";
const EXPECTED_MAC: &str =
    "the address of one device: six bytes in hexadecimal with colons between, such as \"02:00:00:00:00:01\"";
const EXPECTED_MTU: &str = "a whole number from 68 to 65521";
const EXPECTED_QUEUES: &str = "a whole number from 1 to 64";
const EXPECTED_NET: &str =
    "settings with commas between, such as \"tap=tap0,mac=02:00:00:00:00:01,queues=2\"";

/// The keys of a table.
pub(super) const SECTION: Section = Section {
    name: "net",
    keys: &[
        key("tap", FLAG, Form::Text, EXPECTED_TAP),
        key("create", FLAG, Form::Switch, EXPECTED_SWITCH),
        key("fd", FLAG, Form::TextOrInteger, EXPECTED_FD),
        key("id", FLAG, Form::Text, device_id::EXPECTED_CHOSEN),
        key("mac", FLAG, Form::Text, EXPECTED_MAC),
        key("mtu", FLAG, Form::Integer, EXPECTED_MTU),
        key("queues", FLAG, Form::Integer, EXPECTED_QUEUES),
        key("vhost", FLAG, Form::Switch, EXPECTED_SWITCH),
        key("receive_bandwidth", FLAG, Form::Text, disk::EXPECTED_BANDWIDTH),
        key("receive_frames", FLAG, Form::Text, disk::EXPECTED_OPERATIONS),
        key("transmit_bandwidth", FLAG, Form::Text, disk::EXPECTED_BANDWIDTH),
        key("transmit_frames", FLAG, Form::Text, disk::EXPECTED_OPERATIONS),
        key("vhost_user", FLAG, Form::Text, value::EXPECTED_PATH),
        key("passt", FLAG, Form::Text, value::EXPECTED_PATH),
    ],
};

/// The address of a network device: of one, and not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address that is made up here (locally administered), of five bytes.
    #[must_use]
    pub fn made_up([a, b, c, d, e]: [u8; 5]) -> Self {
        Self([0x02, a, b, c, d, e])
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || ValueError::Malformed { value: text.to_owned(), expected: EXPECTED_MAC };
        let byte = |pair: &str| {
            let is_byte = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(pair, 16).ok().filter(|_| is_byte).ok_or_else(malformed)
        };
        let bytes: Vec<u8> = text.split(':').map(byte).collect::<Result<_, _>>()?;
        let bytes = <[u8; 6]>::try_from(bytes).map_err(|_| malformed())?;
        let is_of_one = bytes[0] & 1 == 0 && bytes != [0; 6];
        is_of_one.then_some(Self(bytes)).ok_or_else(malformed)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// Descriptors that the monitor is started with, one for each pair of queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors(Vec<RawFd>);

impl Descriptors {
    /// Their numbers.
    pub(crate) fn numbers(&self) -> &[RawFd] {
        &self.0
    }
}

impl FromStr for Descriptors {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || ValueError::Malformed { value: text.to_owned(), expected: EXPECTED_FD };
        let number = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<RawFd>().ok().filter(|_| is_plain).ok_or_else(malformed)
        };
        let numbers: Vec<RawFd> = text.split(':').map(number).collect::<Result<_, _>>()?;
        let mut seen = HashSet::new();
        let is_set = numbers.iter().all(|number| seen.insert(*number));
        (is_set && numbers.len() <= MAX_QUEUES.into()).then_some(Self(numbers)).ok_or_else(malformed)
    }
}

impl fmt::Display for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join(":"))
    }
}

/// One table `[[net]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// The name of a TAP interface.
    pub tap: Option<String>,
    /// Whether it is created, and gone when the monitor is.
    pub create: bool,
    /// The descriptors of a TAP interface, in the place of its name.
    #[serde(deserialize_with = "descriptors")]
    pub fd: Option<Descriptors>,
    /// What the device is called; `None` leaves it to [`NetConfig::id`].
    #[serde(deserialize_with = "device_id::chosen")]
    pub id: Option<DeviceId>,
    /// The address that the guest is to have; `None`: one that is made up at each start.
    #[serde(deserialize_with = "value::some_from_text")]
    pub mac: Option<MacAddress>,
    /// The MTU that the guest is to have; `None`: that of the interface.
    #[serde(deserialize_with = "mtu")]
    pub mtu: Option<u16>,
    /// Number of queues, pairs of them; `None`: one, or one for each descriptor.
    #[serde(deserialize_with = "queues")]
    pub queues: Option<u16>,
    /// Whether the host's kernel moves the frames.
    pub vhost: bool,
    /// The socket of the vhost-user back end that moves them, in the place of an interface.
    #[serde(deserialize_with = "value::path")]
    pub vhost_user: Option<PathBuf>,
    /// The socket of passt, or of another program that takes a stream of frames, in the place of an interface.
    #[serde(deserialize_with = "value::path")]
    pub passt: Option<PathBuf>,
    /// Bytes that may reach the guest in a time.
    #[serde(deserialize_with = "disk::bandwidth")]
    pub receive_bandwidth: Option<Rate>,
    /// Frames that may reach the guest in a time.
    #[serde(deserialize_with = "disk::operations")]
    pub receive_frames: Option<Rate>,
    /// Bytes that the guest may send in a time.
    #[serde(deserialize_with = "disk::bandwidth")]
    pub transmit_bandwidth: Option<Rate>,
    /// Frames that the guest may send in a time.
    #[serde(deserialize_with = "disk::operations")]
    pub transmit_frames: Option<Rate>,
}

impl NetConfig {
    /// What the device is called that is at `place` in the order of all network devices, from 0.
    #[must_use]
    pub fn id(&self, place: usize) -> DeviceId {
        self.id.clone().unwrap_or_else(|| DeviceId::of_net(place))
    }

    /// The rates, with their keys.
    fn rates(&self) -> [(&'static str, Option<Rate>); 4] {
        [
            ("receive_bandwidth", self.receive_bandwidth),
            ("receive_frames", self.receive_frames),
            ("transmit_bandwidth", self.transmit_bandwidth),
            ("transmit_frames", self.transmit_frames),
        ]
    }

    /// The first of the rates that is limited.
    fn first_rate(&self) -> Option<&'static str> {
        self.rates().into_iter().find_map(|(key, rate)| rate.map(|_| key))
    }

    /// The first of the keys that is set and about an interface of the host.
    fn first_of_interface(&self) -> Option<&'static str> {
        let set = [
            ("tap", self.tap.is_some()),
            ("create", self.create),
            ("fd", self.fd.is_some()),
            ("vhost", self.vhost),
        ];
        set.into_iter().find_map(|(key, is_set)| is_set.then_some(key))
    }

    /// Checks what is said of a device that a back end serves.
    fn check_back_end(&self) -> Result<(), NetError> {
        let key = self.first_of_interface().or(self.passt.as_ref().map(|_| "passt")).or(self.first_rate());
        key.map_or(Ok(()), |key| Err(NetError::OfBackEnd { key }))
    }

    /// Checks what is said of a device whose frames go over a stream.
    fn check_stream(&self) -> Result<(), NetError> {
        let key = self.first_of_interface().or(self.queues.map(|_| "queues"));
        key.map_or(Ok(()), |key| Err(NetError::OfStream { key }))
    }

    /// The interface behind it.
    ///
    /// # Errors
    /// [`NetError`]: none is named, or two are, or it cannot be as it is wanted.
    pub fn tap_options(&self) -> Result<TapOptions, NetError> {
        let sockets = [(VHOST_USER, &self.vhost_user), (PASST, &self.passt)];
        if let Some((key, _)) = sockets.into_iter().find(|(_, path)| path.is_some()) {
            return Err(NetError::NotWhileRunning { key });
        }
        let source = match (&self.tap, &self.fd) {
            (Some(name), None) if self.create => TapSource::Created(name.clone()),
            (Some(name), None) => TapSource::Existing(name.clone()),
            (None, Some(_)) if self.create => return Err(NetError::CreateWithoutTap),
            (None, Some(Descriptors(_))) if self.queues.is_some() => {
                return Err(NetError::QueuesOfDescriptors);
            }
            (None, Some(Descriptors(numbers))) => TapSource::Descriptors(numbers.clone()),
            (None, None) => return Err(NetError::NoInterface),
            (Some(_), Some(_)) => return Err(NetError::TwoInterfaces),
        };
        if let Some(key) = self.first_rate().filter(|_| self.vhost) {
            return Err(NetError::RateWithVhost { key });
        }
        Ok(TapOptions { source, pairs: self.queues.unwrap_or(1), mtu: self.mtu })
    }
}

/// Writes what is set, as a table has it.
impl Serialize for NetConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tap, create, fd, id, mac, mtu, queues, vhost, .. } = self;
        let mut table = serializer.serialize_map(None)?;
        let texts = [
            ("tap", tap.clone()),
            ("fd", fd.as_ref().map(ToString::to_string)),
            ("id", id.as_ref().map(ToString::to_string)),
            ("mac", mac.map(|mac| mac.to_string())),
        ];
        let rates = self.rates().map(|(key, rate)| (key, rate.map(|rate| rate.to_string())));
        for (key, text) in texts.into_iter().chain(rates) {
            if let Some(text) = text {
                table.serialize_entry(key, &text)?;
            }
        }
        for (key, switch) in [("create", create), ("vhost", vhost)] {
            if *switch {
                table.serialize_entry(key, &true)?;
            }
        }
        for (key, number) in [("mtu", mtu), ("queues", queues)] {
            if let Some(number) = number {
                table.serialize_entry(key, number)?;
            }
        }
        table.end()
    }
}

impl FromStr for NetConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        settings::parse(&SECTION, EXPECTED_NET, text)
    }
}

/// A network device that is none, or two devices that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum NetError {
    #[error(
        "net.tap ({FLAG}): a network device needs an interface of the host; name one, or give descriptors as net.fd"
    )]
    NoInterface,
    #[error("net.tap and net.fd ({FLAG}) are two interfaces for one device; leave one of them out")]
    TwoInterfaces,
    #[error("net.create ({FLAG}) = true: descriptors are of an interface that exists; leave it out")]
    CreateWithoutTap,
    #[error("net.queues ({FLAG}): there are as many queues as descriptors in net.fd; leave it out")]
    QueuesOfDescriptors,
    #[error(
        "net.vhost ({FLAG}) = true: the host's kernel moves the frames, and knows no rates; leave net.{key} out, and limit the \
         interface on the host (`tc`)"
    )]
    RateWithVhost { key: &'static str },
    #[error("net.{key} ({FLAG}): the back end of {VHOST_USER} decides that for itself; leave it out")]
    OfBackEnd { key: &'static str },
    #[error(
        "net.{key} ({FLAG}): the program behind {PASST} has one pair of queues, and no interface; leave it out"
    )]
    OfStream { key: &'static str },
    #[error("{key} ({FLAG}): its socket is connected when the monitor starts, and not later")]
    NotWhileRunning { key: &'static str },
    #[error("net.tap ({FLAG}): two devices have the interface {name}; each needs its own")]
    SameTap { name: String },
    #[error("net.fd ({FLAG}): two devices have the descriptor {number}; each needs its own")]
    SameDescriptor { number: RawFd },
    #[error("net.mac ({FLAG}): two devices have the address {mac}; leave one out, or change it")]
    SameAddress { mac: MacAddress },
    #[error(
        "net.id ({FLAG}): two devices are called {id}; a network device without an id is called net0, net1 and so on, by its \
         place"
    )]
    SameId { id: DeviceId },
}

/// Checks each of `nets`, and that no two of them, and none of `disks`, have the same of anything.
pub(super) fn validate(nets: &[NetConfig], disks: &[DiskConfig]) -> Result<(), NetError> {
    let mut ids: HashSet<_> = disks.iter().enumerate().map(|(place, disk)| disk.id(place)).collect();
    let (mut taps, mut numbers, mut addresses) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (place, net) in nets.iter().enumerate() {
        match (&net.vhost_user, &net.passt) {
            (Some(_), _) => net.check_back_end()?,
            (None, Some(_)) => net.check_stream()?,
            (None, None) => net.tap_options().map(drop)?,
        }
        let id = net.id(place);
        if !ids.insert(id.clone()) {
            return Err(NetError::SameId { id });
        }
        if let Some(name) = net.tap.as_ref().filter(|name| !taps.insert(*name)) {
            return Err(NetError::SameTap { name: name.clone() });
        }
        let of_net = net.fd.iter().flat_map(|Descriptors(numbers)| numbers.iter().copied());
        for number in of_net {
            if !numbers.insert(number) {
                return Err(NetError::SameDescriptor { number });
            }
        }
        if let Some(mac) = net.mac.filter(|mac| !addresses.insert(mac.bytes())) {
            return Err(NetError::SameAddress { mac });
        }
    }
    Ok(())
}

/// A number within `range`, or what is expected.
fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: &std::ops::RangeInclusive<u16>,
    expected: &'static str,
) -> Result<Option<u16>, D::Error> {
    let value = i64::deserialize(deserializer)?;
    let number = u16::try_from(value).ok().filter(|number| range.contains(number));
    let refusal = || ValueError::Malformed { value: value.to_string(), expected };
    number.map(Some).ok_or_else(|| D::Error::custom(refusal()))
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    number(deserializer, &MTU, EXPECTED_MTU)
}

fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    number(deserializer, &(1..=MAX_QUEUES), EXPECTED_QUEUES)
}

fn descriptors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Descriptors>, D::Error> {
    /// A number, or a text.
    struct Either;

    impl Visitor<'_> for Either {
        type Value = Descriptors;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED_FD)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Descriptors, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Descriptors, E> {
            number.to_string().parse().map_err(E::custom)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Descriptors, E> {
            number.to_string().parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Either).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<NetConfig>().unwrap_err().to_string()
    }

    #[test]
    fn a_flag_takes_what_a_table_takes() {
        let net: NetConfig = "tap=tap0".parse().unwrap();
        assert_eq!(net.id(3).as_str(), "net3");
        let tap = TapOptions { source: TapSource::Existing("tap0".into()), pairs: 1, mtu: None };
        assert_eq!(net.tap_options().unwrap(), tap);
        let text = "tap=t,create,id=lan,mac=02:AB:00:00:00:1f,mtu=9000,queues=4,receive_bandwidth=10M/1s,\
                    receive_frames=5/1s,transmit_bandwidth=1M/1s+2M,transmit_frames=7/1s";
        let net: NetConfig = text.parse().unwrap();
        assert_eq!((net.id(0).as_str(), net.mac.unwrap().to_string()), ("lan", "02:ab:00:00:00:1f".into()));
        let tap = TapOptions { source: TapSource::Created("t".into()), pairs: 4, mtu: Some(9000) };
        assert_eq!(net.tap_options().unwrap(), tap);
        assert_eq!(net.transmit_frames.unwrap().to_string(), "7/1s");
        let net: NetConfig = "fd=3:7".parse().unwrap();
        assert_eq!(net.tap_options().unwrap().source, TapSource::Descriptors(vec![3, 7]));
        assert_eq!((net.fd.unwrap().to_string(), net.vhost), ("3:7".into(), false));
        for text in ["tap=a,vhost", "vhost=true,tap=a,mtu=9000,queues=2"] {
            let net: NetConfig = text.parse().unwrap();
            assert!(net.vhost && net.tap_options().is_ok());
        }
    }

    #[test]
    fn a_flag_that_is_no_network_device_says_why() {
        for (text, message) in [
            ("", "\"\" is none of tap, create"),
            ("tap0", "tap0 is none of tap, create, fd, id"),
            ("tap=a,tap=b", "tap is there twice"),
            ("tap=a,mac=1", "1 is not the address of one device: six bytes"),
            ("tap=a,mac=01:00:00:00:00:00", "is not the address of one device"),
            ("tap=a,mac=00:00:00:00:00:00", "is not the address of one device"),
            ("tap=a,mac=02:00:00:00:00:+1", "is not the address of one device"),
            ("tap=a,mac=02:00:00:00:00:00:00", "is not the address of one device"),
            ("tap=a,mtu=67", "67 is not a whole number from 68 to 65521"),
            ("tap=a,mtu=big", "mtu = big is not a whole number"),
            ("tap=a,queues=0", "0 is not a whole number from 1 to 64"),
            ("tap=a,queues=65", "65 is not a whole number from 1 to 64"),
            ("fd=-1", "-1 is not the number of a descriptor"),
            ("fd=3:", "3: is not the number of a descriptor"),
            ("fd=3:3", "3:3 is not the number of a descriptor"),
            ("tap=a,receive_frames=0/1s", "0/1s is not a number and a duration"),
            ("tap=a,vhost=on", "vhost = on is not true or false"),
            ("tap=a,id=console", "console is not 1 to 20"),
        ] {
            let error = refusal(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_device_has_one_interface() {
        let error = |text: &str| text.parse::<NetConfig>().unwrap().tap_options().unwrap_err();
        assert_eq!(error("mtu=1500"), NetError::NoInterface);
        assert_eq!(error("tap=a,fd=3"), NetError::TwoInterfaces);
        assert_eq!(error("fd=3,create"), NetError::CreateWithoutTap);
        assert_eq!(error("fd=3,queues=1"), NetError::QueuesOfDescriptors);
        assert_eq!(
            error("tap=a,vhost,transmit_frames=5/1s"),
            NetError::RateWithVhost { key: "transmit_frames" }
        );
    }

    #[test]
    fn a_device_of_a_back_end_has_nothing_of_an_interface() {
        let check = |text: &str| validate(&[text.parse::<NetConfig>().unwrap()], &[]);
        check("vhost_user=/run/net.sock,id=lan,mac=02:00:00:00:00:01,mtu=9000,queues=2").unwrap();
        for more in ["tap=a", "fd=3", "vhost", "receive_frames=1/1s"] {
            let key = more.split('=').next().unwrap();
            let error = check(&format!("vhost_user=x,{more}")).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("net.{key} (--net): the back end of net.vhost_user")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_device_of_a_stream_has_an_address_an_mtu_and_rates() {
        let check = |text: &str| validate(&[text.parse::<NetConfig>().unwrap()], &[]);
        check("passt=/run/passt.sock,id=lan,mac=02:00:00:00:00:01,mtu=9000,receive_frames=1/1s").unwrap();
        for key in ["tap", "fd", "queues", "vhost"] {
            let value = if key == "vhost" { "true" } else { "3" };
            assert_eq!(check(&format!("passt=x,{key}={value}")).unwrap_err(), NetError::OfStream { key });
        }
        assert_eq!(check("passt=x,vhost_user=y").unwrap_err(), NetError::OfBackEnd { key: "passt" });
        let net: NetConfig = "passt=x".parse().unwrap();
        assert_eq!(net.tap_options().unwrap_err(), NetError::NotWhileRunning { key: PASST });
    }

    #[test]
    fn no_two_devices_share_anything() {
        let nets = |texts: [&str; 2]| texts.map(|text| text.parse::<NetConfig>().unwrap());
        let error = |texts| validate(&nets(texts), &[]).unwrap_err();
        assert_eq!(error(["tap=a", "tap=a"]), NetError::SameTap { name: "a".into() });
        assert_eq!(error(["fd=3:4", "fd=4"]), NetError::SameDescriptor { number: 4 });
        assert_eq!(error(["tap=a", "tap=b,id=net0"]), NetError::SameId { id: DeviceId::of_net(0) });
        let same = error(["tap=a,mac=02:00:00:00:00:01", "tap=b,mac=02:00:00:00:00:01"]).to_string();
        assert!(same.contains("two devices have the address 02:00:00:00:00:01"), "{same}");
        let disk: DiskConfig = "path=x,format=raw,id=net1".parse().unwrap();
        let shared = validate(&nets(["tap=a", "tap=b"]), &[disk]).unwrap_err();
        assert_eq!(shared, NetError::SameId { id: DeviceId::of_net(1) });
        validate(&nets(["tap=a", "fd=3"]), &[]).unwrap();
    }
}
