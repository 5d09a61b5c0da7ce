//! Wire form: requests and answers as JSON, one a line. `docs/control.md` is the user's page.

mod answer;

use std::time::Duration;

use serde::de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::balloon::{self, BalloonRequest};
use super::devices::{Addition, NewDevice, Removal};
use super::disks::{self, DiskChange};
use super::operations::Operation;
use super::roles::Roles;
use super::{memory, nets};
use crate::config::{DeviceId, DiskConfig, NetConfig, StatsFormat, choice, duration};
pub use answer::{Answer, ErrorBody, ErrorCode};

/// Longest request in bytes, its newline not counted.
pub const MAX_REQUEST: usize = 64 << 10;

/// How long a pause may take that names no limit.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(5);

/// How long pages are counted by a request that does not say.
pub const DEFAULT_TIME: Duration = Duration::from_secs(1);

/// The longest limit of a pause, and the longest that pages are counted.
pub const LONGEST_LIMIT: Duration = Duration::from_secs(60);

/// Most characters of a message, and of a name in it: they may repeat what the client has sent.
const LONGEST_MESSAGE: usize = 300;
const LONGEST_NAME: usize = 80;

/// What a request asks for, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Status,
    Pause,
    Resume,
    PowerButton,
    Reset,
    Quit,
    Stats,
    DirtyRate,
    DiskResize,
    DiskLimits,
    NetLimits,
    Memory,
    Devices,
    DeviceAdd,
    DeviceRemove,
    Balloon,
    BalloonSet,
    BalloonHinting,
    Vsock,
}

/// The verbs as they are written.
pub(super) const VERBS: [(&str, Verb); 19] = [
    ("status", Verb::Status),
    ("pause", Verb::Pause),
    ("resume", Verb::Resume),
    ("power-button", Verb::PowerButton),
    ("reset", Verb::Reset),
    ("quit", Verb::Quit),
    ("stats", Verb::Stats),
    ("dirty-rate", Verb::DirtyRate),
    ("disk-resize", Verb::DiskResize),
    ("disk-limits", Verb::DiskLimits),
    ("net-limits", Verb::NetLimits),
    ("memory", Verb::Memory),
    ("devices", Verb::Devices),
    ("device-add", Verb::DeviceAdd),
    ("device-remove", Verb::DeviceRemove),
    ("balloon", Verb::Balloon),
    ("balloon-set", Verb::BalloonSet),
    ("balloon-hinting", Verb::BalloonHinting),
    ("vsock", Verb::Vsock),
];

/// Only the verb, whatever stands beside it.
#[derive(Deserialize)]
struct Named {
    #[serde(deserialize_with = "verb")]
    verb: Verb,
}

fn verb<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Verb, D::Error> {
    let text = String::deserialize(deserializer)?;
    let known = VERBS.iter().find(|(name, _)| *name == text);
    known.map(|(_, verb)| *verb).ok_or_else(|| {
        let names = VERBS.map(|(name, _)| name).join(", ");
        D::Error::custom(format!("unknown verb `{}`; the verbs are: {names}", cut(&text, LONGEST_NAME)))
    })
}

/// A request that is nothing but its verb.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bare {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
}

/// A request to pause.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(default = "default_limit", deserialize_with = "limit")]
    limit: Duration,
}

/// A request for statistics.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stats {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(default, deserialize_with = "choice::deserialize_some")]
    format: Option<StatsFormat>,
}

/// A request to count the pages that are written to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DirtyRate {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(default = "default_time", deserialize_with = "time")]
    time: Duration,
}

/// A request to add a device.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceAdd {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(default, deserialize_with = "new_disk")]
    disk: Option<DiskConfig>,
    #[serde(default, deserialize_with = "new_net")]
    net: Option<NetConfig>,
    #[serde(default)]
    descriptors: Roles,
}

/// A request to remove a device.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceRemove {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    id: DeviceId,
    #[serde(default = "default_limit", deserialize_with = "limit")]
    limit: Duration,
    #[serde(default)]
    force: bool,
}

/// A disk as in a configuration, but the monitor has no directory from which a path could start.
fn new_disk<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DiskConfig>, D::Error> {
    let mut disk = DiskConfig::deserialize(deserializer)?;
    if let Some(field) = disk.missing() {
        return Err(D::Error::missing_field(field));
    }
    if let Some((_, path)) = disk.paths_mut().find(|(_, path)| !path.is_absolute()) {
        let path = cut(&path.to_string_lossy(), LONGEST_NAME);
        return Err(D::Error::custom(format!("the path `{path}` is relative; write it from the root on")));
    }
    Ok(Some(disk))
}

/// A network device as in a configuration, but numbers of descriptors are those of this process, and the client has others.
fn new_net<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NetConfig>, D::Error> {
    let net = NetConfig::deserialize(deserializer)?;
    match net.fd {
        None => Ok(Some(net)),
        Some(_) => Err(D::Error::custom(
            "a number of a descriptor (fd) says nothing here; name the interface (tap), and send the descriptor along",
        )),
    }
}

fn default_time() -> Duration {
    DEFAULT_TIME
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_time(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads how long pages are to be counted: a duration as in a configuration, up to [`LONGEST_LIMIT`].
///
/// # Errors
/// What it has to be.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    parse_duration("time", text)
}

fn default_limit() -> Duration {
    DEFAULT_LIMIT
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_limit(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads the limit of a pause: a duration as in a configuration, up to [`LONGEST_LIMIT`].
///
/// # Errors
/// What it has to be.
pub(crate) fn parse_limit(text: &str) -> Result<Duration, String> {
    parse_duration("limit", text)
}

fn parse_duration(name: &str, text: &str) -> Result<Duration, String> {
    let limit = duration::parse(text).ok().filter(|limit| *limit <= LONGEST_LIMIT);
    limit.ok_or_else(|| {
        let (found, longest) = (cut(text, LONGEST_NAME), duration::render(LONGEST_LIMIT));
        format!("the {name} `{found}` is no duration from 0s to {longest}, such as 5s or 250ms")
    })
}

/// Why a line is no request. Columns count bytes from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Its bytes are no text.
    #[error("the request is not UTF-8")]
    NotUtf8 {
        /// The first byte that is none.
        column: usize,
    },
    /// It is not JSON, or no request.
    #[error("{reason}")]
    Malformed {
        /// Where the reader stopped.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// It does not end in time.
    #[error("the request is longer than {MAX_REQUEST} bytes")]
    TooLong,
}

/// Reads one request, without its newline.
///
/// # Errors
/// [`RequestError`] with the place of what is wrong.
pub fn parse(line: &[u8]) -> Result<Operation, RequestError> {
    if line.len() > MAX_REQUEST {
        return Err(RequestError::TooLong);
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| RequestError::NotUtf8 { column: error.valid_up_to().saturating_add(1) })?;
    let body = text.trim_start_matches([' ', '\t', '\r']);
    if !body.starts_with('{') {
        // An array of the fields' values would be read as well.
        let reason = r#"expected an object, such as {"verb":"status"}"#.to_owned();
        return Err(RequestError::Malformed { column: text.len() - body.len() + 1, reason });
    }
    // The verb decides which fields there may be. A second reading keeps the places of errors, which a reading by way
    // of a tree would lose.
    let named: Named = from_text(text)?;
    let bare = |operation| from_text::<Bare>(text).map(|_| operation);
    match named.verb {
        Verb::Status => bare(Operation::Status),
        Verb::Pause => from_text::<Pause>(text).map(|pause| Operation::Pause { limit: pause.limit }),
        Verb::Resume => bare(Operation::Resume),
        Verb::PowerButton => bare(Operation::PowerButton),
        Verb::Reset => bare(Operation::Reset),
        Verb::Quit => bare(Operation::Quit),
        Verb::DirtyRate => from_text::<DirtyRate>(text).map(|rate| Operation::DirtyRate { time: rate.time }),
        Verb::Memory => {
            from_text::<memory::Memory>(text).map(|memory| Operation::Memory { requested: memory.requested })
        }
        Verb::Devices => bare(Operation::Devices),
        Verb::DeviceAdd => new_device(from_text(text)?, text.len()).map(Operation::DeviceAdd),
        Verb::DeviceRemove => from_text::<DeviceRemove>(text).map(|remove| {
            let DeviceRemove { id, limit, force, .. } = remove;
            Operation::DeviceRemove(Removal { id, limit, force })
        }),
        Verb::Stats => from_text::<Stats>(text)
            .map(|stats| Operation::Stats { format: stats.format.unwrap_or(StatsFormat::Json) }),
        Verb::Balloon => bare(Operation::Balloon(BalloonRequest::Show)),
        Verb::BalloonSet => from_text::<balloon::Set>(text).map(|set| Operation::Balloon(set.into())),
        Verb::BalloonHinting => {
            from_text::<balloon::Hinting>(text).map(|hinting| Operation::Balloon(hinting.into()))
        }
        Verb::DiskResize => from_text::<disks::Resize>(text).map(|resize| Operation::Disk(resize.into())),
        Verb::NetLimits => from_text::<nets::Limits>(text).map(|limits| Operation::Net(limits.into())),
        Verb::Vsock => bare(Operation::Vsock),
        Verb::DiskLimits => from_text::<disks::Limits>(text).map(|limits| Operation::Disk(limits.into())),
    }
}

/// The one device of a request that ends at `column`.
fn new_device(add: DeviceAdd, column: usize) -> Result<Addition, RequestError> {
    let DeviceAdd { disk, net, descriptors: roles, .. } = add;
    let bad = |reason: String| Err(RequestError::Malformed { column, reason });
    let (device, other) = match (disk, net) {
        (Some(disk), None) => (NewDevice::Disk(Box::new(disk)), roles.first_of_net()),
        (None, Some(net)) => (NewDevice::Net(Box::new(net)), roles.first_of_disk()),
        _ => return bad("expected one device to add, `disk` or `net`".to_owned()),
    };
    match other {
        Some(name) => bad(format!("the device has no descriptor `{name}`")),
        None => Ok(Addition { device, roles }),
    }
}

fn from_text<T: DeserializeOwned>(text: &str) -> Result<T, RequestError> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let reason = message.strip_suffix(&place).unwrap_or(&message);
        RequestError::Malformed { column: error.column(), reason: cut(reason, LONGEST_MESSAGE) }
    })
}

/// The beginning of `text`.
fn cut(text: &str, length: usize) -> String {
    let mut message: String = text.chars().take(length).collect();
    if message.len() < text.len() {
        message.push('…');
    }
    message
}

/// Writes `operation` as [`parse`] reads it, with its newline.
#[must_use]
pub fn request(operation: &Operation) -> String {
    #[derive(Default, Serialize)]
    struct Request<'a> {
        verb: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        disk: Option<&'a DiskConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        net: Option<&'a NetConfig>,
        #[serde(skip_serializing_if = "Option::is_none")]
        descriptors: Option<&'a Roles>,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a DeviceId>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        format: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        time: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        requested: Option<String>,
        #[serde(flatten)]
        change: disks::Fields,
        #[serde(flatten)]
        limits: nets::Fields,
        #[serde(flatten)]
        balloon: balloon::Fields,
    }
    let mut request = Request::default();
    let verb = match operation {
        Operation::Status => Verb::Status,
        Operation::Pause { limit: longest } => {
            request.limit = Some(duration::render(*longest));
            Verb::Pause
        }
        Operation::Resume => Verb::Resume,
        Operation::PowerButton => Verb::PowerButton,
        Operation::Reset => Verb::Reset,
        Operation::Quit => Verb::Quit,
        Operation::Stats { format: chosen } => {
            request.format = Some(choice::word(chosen));
            Verb::Stats
        }
        Operation::DirtyRate { time: whole } => {
            request.time = Some(duration::render(*whole));
            Verb::DirtyRate
        }
        Operation::Disk(change) => {
            request.change = change.fields();
            match change.change {
                DiskChange::Resize(_) => Verb::DiskResize,
                DiskChange::Limits(_) => Verb::DiskLimits,
            }
        }
        Operation::Net(change) => {
            request.limits = change.fields();
            Verb::NetLimits
        }
        Operation::Vsock => Verb::Vsock,
        Operation::Memory { requested: bytes } => {
            request.requested = bytes.map(|bytes| bytes.to_string());
            Verb::Memory
        }
        Operation::Devices => Verb::Devices,
        Operation::DeviceAdd(Addition { device, roles }) => {
            request.descriptors = (*roles != Roles::default()).then_some(roles);
            match device {
                NewDevice::Disk(disk) => request.disk = Some(disk),
                NewDevice::Net(net) => request.net = Some(net),
            }
            Verb::DeviceAdd
        }
        Operation::DeviceRemove(Removal { id, limit, force }) => {
            (request.id, request.force) = (Some(id), *force);
            request.limit = Some(duration::render(*limit));
            Verb::DeviceRemove
        }
        Operation::Balloon(asked) => {
            request.balloon = asked.fields();
            match asked {
                BalloonRequest::Show => Verb::Balloon,
                BalloonRequest::Set(_) => Verb::BalloonSet,
                BalloonRequest::StartHinting | BalloonRequest::StopHinting => Verb::BalloonHinting,
            }
        }
    };
    let name = VERBS.iter().find(|(_, known)| *known == verb).map_or("", |(name, _)| name);
    line(&Request { verb: name, ..request })
}

/// `value` as a line. Only a value that is no JSON cannot be written, and there is none here.
pub(super) fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
