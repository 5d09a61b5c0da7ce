//! The tables `[[disk]]`: block devices of the guest, and what is behind them on the host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::de::{Deserializer, Error as _};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_devices::rate_limiter::Limit;

use super::file::show;
use super::keys::{Form, Section, key};
use super::settings::{self, SettingsError};
use super::value::{self, EXPECTED_SWITCH, ValueError};
use super::{DeviceId, choice, device_id, duration, size};

/// The flag that stands for a whole table.
const FLAG: &str = "--disk";

/// The keys of its paths.
pub(super) const PATH: &str = "disk.path";
pub(super) const BACKING: &str = "disk.backing";
pub(super) const VHOST_USER: &str = "disk.vhost_user";

/// Most queues of one disk, as many as there are vCPUs.
const MAX_QUEUES: u16 = 1024;

const EXPECTED_FORMAT: &str = "\"raw\" or \"qcow2\"";
const EXPECTED_ENGINE: &str = "one of \"auto\", \"io-uring\", \"threads\"";
const EXPECTED_QUEUES: &str = "a whole number from 1 to 1024";
pub(super) const EXPECTED_BANDWIDTH: &str =
    "a size and a duration, and perhaps a size that passes once, such as \"100M/1s\" or \"100M/1s+1G\"";
pub(super) const EXPECTED_OPERATIONS: &str =
    "a number and a duration, and perhaps a number that passes once, such as \"1000/1s\" or \"1000/1s+5000\"";
const EXPECTED_DISK: &str =
    "settings with commas between, such as \"path=disk.img,format=raw,read_only=true\"";

/// The keys of a table.
pub(super) const SECTION: Section = Section {
    name: "disk",
    keys: &[
        key("path", FLAG, Form::Text, value::EXPECTED_PATH),
        key("format", FLAG, Form::Text, EXPECTED_FORMAT),
        key("id", FLAG, Form::Text, device_id::EXPECTED_CHOSEN),
        key("backing", FLAG, Form::Text, value::EXPECTED_PATH),
        key("backing_format", FLAG, Form::Text, EXPECTED_FORMAT),
        key("read_only", FLAG, Form::Switch, EXPECTED_SWITCH),
        key("direct", FLAG, Form::Switch, EXPECTED_SWITCH),
        key("engine", FLAG, Form::Text, EXPECTED_ENGINE),
        key("queues", FLAG, Form::Integer, EXPECTED_QUEUES),
        key("bandwidth", FLAG, Form::Text, EXPECTED_BANDWIDTH),
        key("operations", FLAG, Form::Text, EXPECTED_OPERATIONS),
        key("vhost_user", FLAG, Form::Text, value::EXPECTED_PATH),
    ],
};

/// What is in an image. It is never guessed: the contents are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskFormat {
    /// The sectors, one after the other
    Raw,
    /// Those that were written, and where they are
    Qcow2,
}

/// How requests reach the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DiskEngine {
    /// io_uring where the host has it, else threads
    #[default]
    Auto,
    /// io_uring, or nothing
    IoUring,
    /// Threads
    Threads,
}

impl From<DiskEngine> for vmm_devices::virtio::block::EngineChoice {
    fn from(engine: DiskEngine) -> Self {
        match engine {
            DiskEngine::Auto => Self::Auto,
            DiskEngine::IoUring => Self::Uring,
            DiskEngine::Threads => Self::Threads,
        }
    }
}

/// One table `[[disk]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The image: a regular file or a block device; there unless a back end serves the disk.
    #[serde(default, deserialize_with = "value::path")]
    pub path: Option<PathBuf>,
    /// What is in it; there exactly if it is.
    #[serde(default, deserialize_with = "choice::deserialize_some")]
    pub format: Option<DiskFormat>,
    /// What it is called; `None` leaves it to [`DiskConfig::id`].
    #[serde(default, deserialize_with = "device_id::chosen")]
    pub id: Option<DeviceId>,
    /// The backing file of a qcow2 image, which its header must name too; `None`: it has none.
    #[serde(default, deserialize_with = "value::path")]
    pub backing: Option<PathBuf>,
    /// What is in that; there exactly if it is.
    #[serde(default, deserialize_with = "choice::deserialize_some")]
    pub backing_format: Option<DiskFormat>,
    /// Whether the guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the host's page cache is passed by.
    #[serde(default)]
    pub direct: bool,
    /// How requests reach the host.
    #[serde(default, deserialize_with = "choice::deserialize")]
    pub engine: DiskEngine,
    /// Number of queues; `None` leaves it to [`DiskConfig::queues`].
    #[serde(default, deserialize_with = "queues")]
    pub queues: Option<u16>,
    /// Bytes that may pass in a time.
    #[serde(default, deserialize_with = "bandwidth")]
    pub bandwidth: Option<Rate>,
    /// Requests that may pass in a time.
    #[serde(default, deserialize_with = "operations")]
    pub operations: Option<Rate>,
    /// The socket of the vhost-user back end that serves it; `None`: it has an image.
    #[serde(default, deserialize_with = "value::path")]
    pub vhost_user: Option<PathBuf>,
}

impl DiskConfig {
    /// Queues of a disk for which none are configured: one a vCPU, but not more than this.
    const DEFAULT_QUEUES: u16 = 8;

    /// What the disk is called that is at `place` in the order of all disks, from 0.
    #[must_use]
    pub fn id(&self, place: usize) -> DeviceId {
        self.id.clone().unwrap_or_else(|| DeviceId::of_disk(place))
    }

    /// The number of queues beside `vcpus` vCPUs.
    #[must_use]
    pub fn queues(&self, vcpus: u16) -> u16 {
        self.queues.unwrap_or(vcpus.min(Self::DEFAULT_QUEUES))
    }
}

/// Writes what is set, as a table has it.
impl Serialize for DiskConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { path, format, id, backing, backing_format, .. } = self;
        let Self { read_only, direct, engine, queues, bandwidth, operations, vhost_user, .. } = self;
        let mut table = serializer.serialize_map(None)?;
        if let Some(path) = path {
            table.serialize_entry("path", path)?;
        }
        if let Some(format) = format {
            table.serialize_entry("format", &choice::word(format))?;
        }
        if let Some(id) = id {
            table.serialize_entry("id", id)?;
        }
        if let Some(backing) = backing {
            table.serialize_entry("backing", backing)?;
        }
        if let Some(format) = backing_format {
            table.serialize_entry("backing_format", &choice::word(format))?;
        }
        for (key, switch) in [("read_only", read_only), ("direct", direct)] {
            if *switch {
                table.serialize_entry(key, &true)?;
            }
        }
        table.serialize_entry("engine", &choice::word(engine))?;
        if let Some(queues) = queues {
            table.serialize_entry("queues", queues)?;
        }
        for (key, rate) in [("bandwidth", bandwidth), ("operations", operations)] {
            if let Some(rate) = rate {
                table.serialize_entry(key, &rate.to_string())?;
            }
        }
        if let Some(socket) = vhost_user {
            table.serialize_entry("vhost_user", socket)?;
        }
        table.end()
    }
}

/// What may pass in which time; see [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub(super) amount: u64,
    pub(super) time: Duration,
    pub(super) burst: u64,
}

impl Rate {
    /// Reads `AMOUNT/DURATION` or `AMOUNT/DURATION+BURST`, amounts by `number`.
    fn parse(
        text: &str,
        number: fn(&str) -> Option<u64>,
        expected: &'static str,
    ) -> Result<Self, ValueError> {
        let malformed = || ValueError::Malformed { value: text.to_owned(), expected };
        let (amount, rest) = text.split_once('/').ok_or_else(malformed)?;
        let (time, burst) = rest.split_once('+').map_or((rest, None), |(time, burst)| (time, Some(burst)));
        let rate = Self {
            amount: number(amount).ok_or_else(malformed)?,
            time: duration::parse(time)?,
            burst: burst.map_or(Some(0), number).ok_or_else(malformed)?,
        };
        // What makes no limit says why.
        rate.limit().map(|_| rate).map_err(|_| malformed())
    }

    /// The limit of a device.
    ///
    /// # Errors
    /// Nothing may pass, or in no time; no rate that was read is like that.
    pub fn limit(&self) -> Result<Limit, vmm_devices::rate_limiter::LimitError> {
        Limit::new(self.amount, self.time, self.burst)
    }
}

/// The rate of a limit that was a rate.
impl From<Limit> for Rate {
    fn from(limit: Limit) -> Self {
        Self { amount: limit.tokens(), time: limit.refill(), burst: limit.burst() }
    }
}

/// Writes what both readers read: amounts without units.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.amount, duration::render(self.time))?;
        if self.burst == 0 { Ok(()) } else { write!(f, "+{}", self.burst) }
    }
}

fn decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Reads how many bytes may pass.
///
/// # Errors
/// [`ValueError`] if the text is anything else.
pub(crate) fn parse_bandwidth(text: &str) -> Result<Rate, ValueError> {
    Rate::parse(text, size::bytes, EXPECTED_BANDWIDTH)
}

/// Reads how many requests may pass.
///
/// # Errors
/// [`ValueError`] if the text is anything else.
pub(crate) fn parse_operations(text: &str) -> Result<Rate, ValueError> {
    Rate::parse(text, decimal, EXPECTED_OPERATIONS)
}

pub(super) fn bandwidth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    parse_bandwidth(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

pub(super) fn operations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    parse_operations(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let value = i64::deserialize(deserializer)?;
    let queues = u16::try_from(value).ok().filter(|queues| (1..=MAX_QUEUES).contains(queues));
    let refusal = || ValueError::Malformed { value: value.to_string(), expected: EXPECTED_QUEUES };
    queues.map(Some).ok_or_else(|| D::Error::custom(refusal()))
}

/// Reads settings with commas between, which therefore cannot be in a path. A switch alone is true.
impl FromStr for DiskConfig {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let disk: Self = settings::parse(&SECTION, EXPECTED_DISK, text)?;
        let missing = |field| SettingsError::Table(format!("missing field `{field}`"));
        disk.missing().map_or(Ok(disk), |field| Err(missing(field)))
    }
}

/// Two disks, or a disk and another file, that do not go together.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum DiskError {
    #[error("{key} ({FLAG}): {} cannot be looked at", show(path))]
    Look {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "disk.id ({FLAG}): two disks are called {id}; one without an id is called disk0, disk1 and so on, by its place"
    )]
    SameId { id: DeviceId },
    #[error("{BACKING} ({FLAG}): an image in raw format has no backing file; leave it out")]
    RawWithBacking,
    #[error("disk.{given} ({FLAG}) needs disk.{missing} beside it: a format is never guessed")]
    HalfBacking { given: &'static str, missing: &'static str },
    #[error(
        "disk.engine ({FLAG}) = io-uring: images in qcow2 format are served by threads; set it to threads, or leave it out"
    )]
    NeedsThreads,
    #[error(
        "disk.direct ({FLAG}) = true: images in qcow2 format go through the host's page cache; leave it out"
    )]
    NotDirect,
    #[error(
        "disk.{missing} ({FLAG}) is missing: a disk has an image and its format, or a back end ({VHOST_USER})"
    )]
    NoImage { missing: &'static str },
    #[error("disk.{key} ({FLAG}): the back end of {VHOST_USER} decides that for itself; leave it out")]
    OfBackEnd { key: &'static str },
    #[error("{VHOST_USER} ({FLAG}): a back end is connected when the monitor starts, and not later")]
    NotWhileRunning,
}

impl DiskConfig {
    /// Checks that the settings go together, and that there is something at the paths; what it is, is checked when it is opened.
    pub(super) fn validate(&self) -> Result<(), DiskError> {
        self.validate_settings()?;
        let paths = [(PATH, self.path.as_ref()), (BACKING, self.backing.as_ref())];
        for (key, path) in paths.into_iter().filter_map(|(key, path)| Some((key, path?))) {
            let look = |source| DiskError::Look { key, path: path.clone(), source };
            path.metadata().map_err(look)?;
        }
        Ok(())
    }

    /// Checks that the settings go together.
    pub(super) fn validate_settings(&self) -> Result<(), DiskError> {
        if self.vhost_user.is_some() {
            return self.first_of_back_end().map_or(Ok(()), |key| Err(DiskError::OfBackEnd { key }));
        }
        let (Some(_), Some(format)) = (&self.path, self.format) else {
            return Err(DiskError::NoImage { missing: self.missing().unwrap_or("path") });
        };
        match (format, &self.backing, self.backing_format) {
            (DiskFormat::Raw, None, None) | (DiskFormat::Qcow2, None, None) => {}
            (DiskFormat::Raw, ..) => return Err(DiskError::RawWithBacking),
            (DiskFormat::Qcow2, Some(_), Some(_)) => {}
            (DiskFormat::Qcow2, Some(_), None) => {
                return Err(DiskError::HalfBacking { given: "backing", missing: "backing_format" });
            }
            (DiskFormat::Qcow2, None, Some(_)) => {
                return Err(DiskError::HalfBacking { given: "backing_format", missing: "backing" });
            }
        }
        if format == DiskFormat::Qcow2 && self.engine == DiskEngine::IoUring {
            return Err(DiskError::NeedsThreads);
        }
        if format == DiskFormat::Qcow2 && self.direct {
            return Err(DiskError::NotDirect);
        }
        Ok(())
    }

    /// What a disk without a back end lacks.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        let fields = [("path", self.path.is_some()), ("format", self.format.is_some())];
        let missing = fields.into_iter().find_map(|(field, is_set)| (!is_set).then_some(field));
        missing.filter(|_| self.vhost_user.is_none())
    }

    /// The first setting that only a disk with an image has.
    fn first_of_back_end(&self) -> Option<&'static str> {
        let set = [
            ("path", self.path.is_some()),
            ("format", self.format.is_some()),
            ("backing", self.backing.is_some()),
            ("backing_format", self.backing_format.is_some()),
            ("read_only", self.read_only),
            ("direct", self.direct),
            ("engine", self.engine != DiskEngine::default()),
            ("bandwidth", self.bandwidth.is_some()),
            ("operations", self.operations.is_some()),
        ];
        set.into_iter().find_map(|(key, is_set)| is_set.then_some(key))
    }

    /// Its paths, with their keys.
    pub(crate) fn paths_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
        let Self { path, backing, vhost_user, .. } = self;
        let paths = [(PATH, path), (BACKING, backing), (VHOST_USER, vhost_user)];
        paths.into_iter().filter_map(|(key, path)| path.as_mut().map(|path| (key, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<DiskConfig>().unwrap_err().to_string()
    }

    #[test]
    fn a_flag_takes_what_a_table_takes() {
        let disk: DiskConfig = "path=a=b.img,format=raw".parse().unwrap();
        assert_eq!((disk.path.clone(), disk.engine), (Some("a=b.img".into()), DiskEngine::Auto));
        assert!(!disk.read_only && !disk.direct);
        assert_eq!((disk.queues(3), disk.queues(200)), (3, 8));
        assert_eq!(disk.id(7).as_str(), "disk7");
        let text = "path=x,format=raw,id=root,read_only,direct=true,engine=io-uring,queues=2,bandwidth=10M/100ms+1G,\
                    operations=500/1s";
        let disk: DiskConfig = text.parse().unwrap();
        assert!(disk.read_only && disk.direct);
        assert_eq!(disk.id(7).as_str(), "root");
        assert_eq!((disk.engine, disk.queues(9)), (DiskEngine::IoUring, 2));
        let bandwidth = Rate { amount: 10 << 20, time: Duration::from_millis(100), burst: 1 << 30 };
        assert_eq!(
            (disk.bandwidth, bandwidth.to_string().as_str()),
            (Some(bandwidth), "10485760/100ms+1073741824")
        );
        assert_eq!(disk.operations.unwrap().to_string(), "500/1s");
    }

    #[test]
    fn fault_c5_a_format_is_never_guessed() {
        assert!(refusal("path=x").contains("missing field `format`"));
        assert!(refusal("path=x,format=vmdk").contains("vmdk is not one of raw, qcow2"));
        assert!(refusal("format=raw").contains("missing field `path`"));
    }

    #[test]
    fn a_disk_of_a_back_end_has_a_name_and_queues_and_nothing_else() {
        let disk: DiskConfig = "vhost_user=/run/disk.sock,id=a,queues=2".parse().unwrap();
        disk.validate().unwrap();
        for more in ["path=x", "format=raw", "read_only", "direct", "engine=threads", "bandwidth=1/1s"] {
            let disk: DiskConfig = format!("vhost_user=a,{more}").parse().unwrap();
            let error = disk.validate().unwrap_err().to_string();
            let key = more.split('=').next().unwrap();
            assert!(
                error.starts_with(&format!("disk.{key} (--disk): the back end of disk.vhost_user")),
                "{error}"
            );
        }
    }

    #[test]
    fn fault_c5_a_backing_file_has_a_format_and_only_qcow2_has_one() {
        let refusal = |more: &str| {
            let disk: DiskConfig = format!("path=/dev/null{more}").parse().unwrap();
            disk.validate().unwrap_err().to_string()
        };
        let backing = ",backing=/dev/null,backing_format=raw";
        assert!(
            refusal(&format!(",format=raw{backing}")).contains("an image in raw format has no backing file")
        );
        let error = refusal(",format=qcow2,backing=/dev/null");
        assert!(error.contains("disk.backing (--disk) needs disk.backing_format beside it"), "{error}");
        let error = refusal(",format=qcow2,backing_format=qcow2");
        assert!(error.contains("disk.backing_format (--disk) needs disk.backing beside it"), "{error}");
        assert!(refusal(",format=qcow2,engine=io-uring").contains("are served by threads"));
        assert!(refusal(",format=qcow2,direct").contains("go through the host's page cache"));
        let error = refusal(",format=qcow2,backing=/nowhere/base,backing_format=raw");
        assert!(error.starts_with("disk.backing (--disk): /nowhere/base cannot be looked at"), "{error}");
        let disk: DiskConfig = format!("path=/dev/null,format=qcow2{backing}").parse().unwrap();
        disk.validate().unwrap();
    }

    #[test]
    fn a_flag_that_is_no_disk_says_why() {
        for (text, message) in [
            ("", "\"\" is none of path, format"),
            ("path=x,format=raw,cache=none", "cache is none of path, format"),
            ("path=x,format=raw,path=y", "path is there twice"),
            ("path=x,format", "format has no value; expected \"raw\""),
            ("path=x,format=raw,read_only=yes", "read_only = yes is not true or false"),
            ("path=x,format=raw,id=", "\"\" is not 1 to 20 of the characters a-z"),
            ("path=x,format=raw,id=a b", "\"a b\" is not 1 to 20 of the characters a-z"),
            ("path=x,format=raw,queues=two", "queues = two is not a whole number"),
            ("path=x,format=raw,queues=0", "0 is not a whole number from 1 to 1024"),
            ("path=x,format=raw,queues=1025", "1025 is not a whole number from 1 to 1024"),
            ("path=x,format=raw,engine=aio", "aio is not one of auto, io-uring, threads"),
            ("path=,format=raw", "\"\" is empty; expected a path"),
        ] {
            let error = refusal(text);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn what_is_written_as_a_table_is_read_back() {
        for text in [
            "path=/x,format=raw",
            "path=/x,format=qcow2,backing=/base,backing_format=raw",
            "vhost_user=/z,queues=2",
            "id=a,path=/y,format=raw,read_only,direct,engine=threads,queues=3,bandwidth=1M/1s+2M,operations=5/1s",
        ] {
            let disk: DiskConfig = text.parse().unwrap();
            let written = serde_json::to_value(&disk).unwrap();
            assert_eq!(serde_json::from_value::<DiskConfig>(written).unwrap(), disk);
        }
    }

    #[test]
    fn fault_b15_a_rate_that_is_no_limit_is_refused() {
        for rate in
            ["", "1", "1/", "/1s", "0/1s", "1/0s", "1/1s+", "-1/1s", "1/1", "1.5/1s", "1X/1s", "+1/1s"]
        {
            for key in ["bandwidth", "operations"] {
                let error = refusal(&format!("path=x,format=raw,{key}={rate}"));
                assert!(error.contains("expected") || error.contains(" is not "), "{key} = {rate}: {error}");
            }
        }
        assert!(
            refusal("path=x,format=raw,operations=1K/1s").contains("1K/1s is not a number and a duration")
        );
        assert!("path=x,format=raw,bandwidth=18446744073709551615/60m".parse::<DiskConfig>().is_ok());
        assert!(refusal("path=x,format=raw,bandwidth=18446744073709551616/60m").contains("is not a size"));
    }
}
