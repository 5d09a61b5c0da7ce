//! Wire form: requests and answers as JSON, one a line. `docs/control.md` is the user's page.

use std::time::Duration;

use serde::de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::balloon::{self, BalloonRefusal, BalloonRequest};
use super::devices::Removal;
use super::disks::{self, DiskChange, DiskRefusal};
use super::memory::{self, MemoryRefusal};
use super::operations::{Operation, OperationError, Outcome};
use crate::config::{DiskConfig, DiskId, StatsFormat, choice, duration};

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
    Memory,
    Devices,
    DeviceAdd,
    DeviceRemove,
    Balloon,
    BalloonSet,
    BalloonHinting,
}

/// The verbs as they are written.
pub(super) const VERBS: [(&str, Verb); 17] = [
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
    ("memory", Verb::Memory),
    ("devices", Verb::Devices),
    ("device-add", Verb::DeviceAdd),
    ("device-remove", Verb::DeviceRemove),
    ("balloon", Verb::Balloon),
    ("balloon-set", Verb::BalloonSet),
    ("balloon-hinting", Verb::BalloonHinting),
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

/// A request to add a disk.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceAdd {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(deserialize_with = "new_disk")]
    disk: DiskConfig,
}

/// A request to remove a device.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceRemove {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    id: DiskId,
    #[serde(default = "default_limit", deserialize_with = "limit")]
    limit: Duration,
    #[serde(default)]
    force: bool,
}

/// A disk as in a configuration, but the monitor has no directory from which a path could start.
fn new_disk<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DiskConfig, D::Error> {
    let mut disk = DiskConfig::deserialize(deserializer)?;
    if let Some(field) = disk.missing() {
        return Err(D::Error::missing_field(field));
    }
    if let Some((_, path)) = disk.paths_mut().find(|(_, path)| !path.is_absolute()) {
        let path = cut(&path.to_string_lossy(), LONGEST_NAME);
        return Err(D::Error::custom(format!("the path `{path}` is relative; write it from the root on")));
    }
    Ok(disk)
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
        Verb::DeviceAdd => {
            from_text::<DeviceAdd>(text).map(|add| Operation::DeviceAdd { disk: Box::new(add.disk) })
        }
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
        Verb::DiskLimits => from_text::<disks::Limits>(text).map(|limits| Operation::Disk(limits.into())),
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
        id: Option<&'a DiskId>,
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
        Operation::Memory { requested: bytes } => {
            request.requested = bytes.map(|bytes| bytes.to_string());
            Verb::Memory
        }
        Operation::Devices => Verb::Devices,
        Operation::DeviceAdd { disk } => {
            request.disk = Some(disk);
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

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    /// It has been carried out.
    Ok(T),
    /// It has not.
    Error(ErrorBody),
}

/// Why a request has not been carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people; the words may change.
    pub message: String,
    /// Of [`ErrorCode::NoAnswer`]: the vCPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Of [`ErrorCode::BadRequest`]: the place in the line, counting bytes from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

/// The kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// [`RequestError`], but for its length.
    BadRequest,
    /// [`RequestError::TooLong`].
    TooLong,
    /// [`OperationError::Starting`].
    Starting,
    /// [`OperationError::Stopping`].
    Stopping,
    /// [`OperationError::NoAnswer`], or [`DeviceError::NotEjected`](super::devices::DeviceError::NotEjected).
    NoAnswer,
    /// [`OperationError::Resumed`].
    Resumed,
    /// [`OperationError::NotListening`].
    NotListening,
    /// As many operations wait as may, [`OperationError::Tracking`], or [`DiskRefusal::Busy`].
    Busy,
    /// [`OperationError::NotTracked`].
    NotTracked,
    /// [`DiskRefusal::Unknown`].
    NoSuchDisk,
    /// [`DiskRefusal::Refused`].
    DiskRefused,
    /// [`DiskRefusal::Failed`].
    DiskFailed,
    /// [`MemoryRefusal::None`].
    NoHotplug,
    /// [`MemoryRefusal::BadSize`].
    BadSize,
    /// The host has no thread for it, or not what a device takes.
    Exhausted,
    /// There is no PCI bus.
    NoBus,
    /// Every slot is taken.
    NoSlot,
    /// Another device has the name.
    IdTaken,
    /// No device has the name.
    UnknownId,
    /// The device cannot be removed.
    NotRemovable,
    /// The image of a disk cannot be had.
    BadDisk,
    /// Somebody has the image of a disk.
    InUse,
    /// [`BalloonRefusal::NoBalloon`].
    NoBalloon,
    /// [`BalloonRefusal::Refused`].
    BalloonRefused,
    /// The client is somebody else.
    Forbidden,
    /// The client has sent no request for too long.
    Idle,
    /// Another client needed the place.
    Evicted,
}

impl ErrorBody {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), vcpu: None, column: None }
    }
}

impl From<RequestError> for ErrorBody {
    fn from(error: RequestError) -> Self {
        let (code, column) = match &error {
            RequestError::NotUtf8 { column } | RequestError::Malformed { column, .. } => {
                (ErrorCode::BadRequest, Some(*column))
            }
            RequestError::TooLong => (ErrorCode::TooLong, None),
        };
        Self { column, ..Self::new(code, error.to_string()) }
    }
}

impl From<OperationError> for ErrorBody {
    fn from(error: OperationError) -> Self {
        let (code, vcpu) = match &error {
            OperationError::Starting => (ErrorCode::Starting, None),
            OperationError::Stopping => (ErrorCode::Stopping, None),
            OperationError::NoAnswer { vcpu, .. } => (ErrorCode::NoAnswer, Some(*vcpu)),
            OperationError::Resumed => (ErrorCode::Resumed, None),
            OperationError::NotListening => (ErrorCode::NotListening, None),
            OperationError::Tracking => (ErrorCode::Busy, None),
            OperationError::NotTracked => (ErrorCode::NotTracked, None),
            OperationError::Disk(DiskRefusal::Unknown { .. }) => (ErrorCode::NoSuchDisk, None),
            OperationError::Disk(DiskRefusal::Busy(_)) => (ErrorCode::Busy, None),
            OperationError::Disk(DiskRefusal::Refused(_)) => (ErrorCode::DiskRefused, None),
            OperationError::Disk(DiskRefusal::Failed(_)) => (ErrorCode::DiskFailed, None),
            OperationError::Memory(MemoryRefusal::None) => (ErrorCode::NoHotplug, None),
            OperationError::Memory(MemoryRefusal::BadSize(_)) => (ErrorCode::BadSize, None),
            OperationError::Device(error) => (error.code(), None),
            OperationError::Balloon(BalloonRefusal::NoBalloon) => (ErrorCode::NoBalloon, None),
            OperationError::Balloon(BalloonRefusal::Refused(_)) => (ErrorCode::BalloonRefused, None),
        };
        Self { vcpu, ..Self::new(code, error.to_string()) }
    }
}

impl<E: Into<ErrorBody>> From<Result<Outcome, E>> for Answer<Outcome> {
    fn from(result: Result<Outcome, E>) -> Self {
        result.map_or_else(|error| Self::Error(error.into()), Self::Ok)
    }
}

/// `value` as a line. Only a value that is no JSON cannot be written, and there is none here.
pub(super) fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_devices::rate_limiter::Limit;

    use super::*;
    use crate::control::balloon::BalloonSetting;
    use crate::control::disks::{DiskRequest, NewLimit, NewLimits, NewSize};

    fn refusal(line: &[u8]) -> (usize, String) {
        match parse(line).unwrap_err() {
            RequestError::NotUtf8 { column } => (column, "not UTF-8".into()),
            RequestError::Malformed { column, reason } => (column, reason),
            RequestError::TooLong => (0, "too long".into()),
        }
    }

    fn every_operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0_u64..=60_000).prop_map(|ms| Operation::Pause { limit: Duration::from_millis(ms) }),
            (0_u64..=60_000).prop_map(|ms| Operation::DirtyRate { time: Duration::from_millis(ms) }),
            every_disk_request().prop_map(Operation::Disk),
            any::<Option<u64>>().prop_map(|requested| Operation::Memory { requested }),
            every_balloon_request().prop_map(Operation::Balloon),
            ("[a-zA-Z0-9_-]{1,20}", 0_u64..=60_000, any::<bool>()).prop_map(|(id, ms, force)| {
                let id = id.parse().unwrap();
                Operation::DeviceRemove(Removal { id, limit: Duration::from_millis(ms), force })
            }),
            prop::sample::select(&[
                "path=/a,format=raw",
                "path=/a,format=qcow2,backing=/b,backing_format=raw",
                "id=x,path=/a b/ü,format=raw,read_only,direct,engine=threads,queues=2,bandwidth=1M/1s+1G",
            ])
            .prop_map(|disk| Operation::DeviceAdd { disk: Box::new(disk.parse().unwrap()) }),
            prop::sample::select(vec![
                Operation::Devices,
                Operation::Status,
                Operation::Resume,
                Operation::PowerButton,
                Operation::Reset,
                Operation::Quit,
                Operation::Stats { format: StatsFormat::Json },
                Operation::Stats { format: StatsFormat::Table },
            ]),
        ]
    }

    fn every_balloon_request() -> impl Strategy<Value = BalloonRequest> {
        let setting = (prop::option::of(0..=1_u64 << 28), prop::option::of(0..=3_600_000_u64));
        prop_oneof![
            Just(BalloonRequest::Show),
            Just(BalloonRequest::StartHinting),
            Just(BalloonRequest::StopHinting),
            setting.prop_map(|(pages, milliseconds)| BalloonRequest::Set(BalloonSetting {
                size: pages.map(|pages| pages * 4096),
                statistics_interval: milliseconds.map(Duration::from_millis),
            })),
        ]
    }

    fn every_disk_request() -> impl Strategy<Value = DiskRequest> {
        let size = prop::option::of((any::<u64>(), any::<bool>()));
        let size = size.prop_map(|size| size.map(|(bytes, may_shrink)| NewSize { bytes, may_shrink }));
        let limit = (1..=u64::MAX, 1..3_600_000_u64, any::<u64>()).prop_map(|(tokens, ms, burst)| {
            NewLimit::To(Limit::new(tokens, Duration::from_millis(ms), burst).unwrap())
        });
        let limit = prop_oneof![Just(NewLimit::Same), Just(NewLimit::Lifted), limit];
        let limits = prop::array::uniform2(limit);
        let limits = limits.prop_map(|[bandwidth, operations]| NewLimits { bandwidth, operations });
        let change = prop_oneof![size.prop_map(DiskChange::Resize), limits.prop_map(DiskChange::Limits)];
        ("[a-zA-Z0-9_-]{1,20}", change)
            .prop_map(|(disk, change)| DiskRequest { disk: disk.parse().unwrap(), change })
    }

    #[test]
    fn a_request_is_read_with_any_spacing_and_order() {
        assert_eq!(parse(br#"{"verb":"status"}"#), Ok(Operation::Status));
        assert_eq!(parse(b" { \"verb\" :\t\"power-button\" } \r"), Ok(Operation::PowerButton));
        assert_eq!(parse(br#"{"verb":"pause"}"#), Ok(Operation::Pause { limit: DEFAULT_LIMIT }));
        let limit = Duration::from_millis(250);
        assert_eq!(parse(br#"{"limit":"250ms","verb":"pause"}"#), Ok(Operation::Pause { limit }));
        assert_eq!(parse(br#"{"verb":"\u0071uit"}"#), Ok(Operation::Quit));
    }

    #[test]
    fn fault_c10_what_is_no_request_is_refused_with_its_place() {
        for (line, column, reason) in [
            ("", 1, "expected an object"),
            ("  status", 3, "expected an object"),
            (r#"["status"]"#, 1, "expected an object"),
            ("GET / HTTP/1.1\r", 1, "expected an object"),
            ("PRI * HTTP/2.0\r", 1, "expected an object"),
            (r#"{"verb":"status""#, 16, "EOF while parsing"),
            (r#"{"verb":"status"} x"#, 19, "trailing characters"),
            (r#"{"verb":"reboot"}"#, 17, "unknown verb `reboot`; the verbs are: status, pause"),
            (r#"{"verb":1}"#, 9, "invalid type: integer `1`"),
            (r#"{"verb":null}"#, 12, "invalid type: null"),
            (r#"{"vreb":"status"}"#, 17, "missing field `verb`"),
            (r#"{}"#, 2, "missing field `verb`"),
            (r#"{"verb":"status","limit":"1s"}"#, 24, "unknown field `limit`, expected `verb`"),
            (r#"{"verb":"pause","limti":"1s"}"#, 23, "unknown field `limti`, expected `verb` or `limit`"),
            (r#"{"verb":"status","verb":"quit"}"#, 23, "duplicate field `verb`"),
            (r#"{"verb":"pause","limit":1}"#, 25, "invalid type: integer `1`, expected a string"),
            (r#"{"verb":"pause","limit":"1"}"#, 28, "the limit `1` is no duration from 0s to 1m"),
            (r#"{"verb":"pause","limit":"2m"}"#, 29, "the limit `2m` is no duration from 0s to 1m"),
            (r#"{"verb":"stats","format":"xml"}"#, 31, "xml is not one of table, json"),
            (r#"{"verb":"stats","limit":"1s"}"#, 23, "unknown field `limit`, expected `verb` or `format`"),
            (r#"{"verb":"pause","limit":null}"#, 28, "invalid type: null"),
            (r#"{"verb":"disk-resize"}"#, 22, "missing field `disk`"),
            (r#"{"verb":"disk-limits","disk":"a b"}"#, 35, "\"a b\" is not 1 to 20 of the characters"),
            (r#"{"verb":"disk-resize","disk":"a","size":"1X"}"#, 45, "1X is not a size such as"),
            (
                r#"{"verb":"disk-resize","disk":"a","size":1}"#,
                41,
                "invalid type: integer `1`, expected a string",
            ),
            (r#"{"verb":"disk-resize","disk":"a","bandwidth":"1/1s"}"#, 44, "unknown field `bandwidth`"),
            (r#"{"verb":"disk-limits","disk":"a","operations":"1"}"#, 50, "1 is not a number and a duration"),
            (r#"{"verb":"memory","size":"1G"}"#, 23, "unknown field `size`, expected `verb` or `requested`"),
            (r#"{"verb":"memory","requested":"much"}"#, 36, "much is not a size such as"),
            (r#"{"verb":"device-remove"}"#, 24, "missing field `id`"),
            (r#"{"verb":"device-remove","id":"a/b"}"#, 35, "a/b is not 1 to 20 of the characters"),
            (
                r#"{"verb":"device-remove","id":"a","force":1}"#,
                42,
                "invalid type: integer `1`, expected a boolean",
            ),
            (r#"{"verb":"device-add","disk":{"path":"/x"}}"#, 42, "missing field `format`"),
            (r#"{"verb":"device-add","disk":{"path":"x","format":"raw"}}"#, 56, "the path `x` is relative"),
            (
                r#"{"verb":"device-add","disk":{"path":"/x","format":"qcow2","backing":"y"}}"#,
                73,
                "the path `y` is relative",
            ),
            (r#"{"verb":"balloon","size":"1M"}"#, 24, "unknown field `size`, expected `verb`"),
            (r#"{"verb":"balloon-set","size":"1"}"#, 33, "1 is not a multiple of 4 KiB (4K)"),
            (r#"{"verb":"balloon-set","size":4096}"#, 33, "invalid type: integer `4096`, expected a string"),
            (r#"{"verb":"balloon-set","statistics_interval":"1"}"#, 48, "1 has no unit"),
            (r#"{"verb":"balloon-hinting"}"#, 26, "missing field `action`"),
            (
                r#"{"verb":"balloon-hinting","action":"go"}"#,
                39,
                "unknown variant `go`, expected `start` or `stop`",
            ),
            (r#"{"verb":"dirty-rate","time":"2m"}"#, 33, "the time `2m` is no duration from 0s to 1m"),
        ] {
            let (found_column, found) = refusal(line.as_bytes());
            assert!(found.starts_with(reason), "{line}: {found}");
            assert_eq!(found_column, column, "{line}: {found}");
        }
        assert_eq!(refusal(b"{\"verb\":\"\xff\"}"), (10, "not UTF-8".into()));
    }

    #[test]
    fn fault_c10_nesting_of_any_depth_is_refused_wherever_it_stands() {
        let deep = "[".repeat(5000) + &"]".repeat(5000);
        for line in [
            deep.clone(),
            format!(r#"{{"verb":{deep}}}"#),
            format!(r#"{{"verb":"pause","limit":{deep}}}"#),
            format!(r#"{{"verb":"status","x":{deep}}}"#),
            format!(r#"{{"x":{deep}}}"#),
            r#"{"a":"#.repeat(5000),
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(RequestError::Malformed { .. })), "{}", &line[..20]);
        }
    }

    #[test]
    fn fault_c10_a_message_repeats_no_more_than_a_little() {
        for request in [r#"{"verb":"X"}"#, r#"{"verb":"status","X":1}"#, r#"{"verb":"pause","limit":"X"}"#] {
            let (_, reason) = refusal(request.replace('X', &"x".repeat(60_000)).as_bytes());
            assert!(reason.chars().count() <= LONGEST_MESSAGE + 1, "{reason}");
        }
        assert_eq!(refusal(&vec![b' '; MAX_REQUEST + 1]).1, "too long");
    }

    #[test]
    fn the_first_error_is_an_answer_of_one_line() {
        let error = parse(b"{\"verb\":\"a\\nb\"}").unwrap_err();
        let answer = line(&Answer::<Outcome>::Error(error.into()));
        assert_eq!(answer.matches('\n').count(), 1);
        assert!(
            answer.starts_with(r#"{"error":{"code":"bad-request","message":"unknown verb `a"#),
            "{answer}"
        );
        assert!(answer.ends_with("\"column\":15}}\n"), "{answer}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(operation in every_operation()) {
            let line = request(&operation);
            prop_assert_eq!(parse(line.strip_suffix('\n').unwrap().as_bytes()), Ok(operation));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
        }

        /// Lines that are nearly right go deeper than random bytes do.
        #[test]
        fn no_request_that_is_nearly_right_panics(
            line in r#"\{"(verb|limit|x)":("(pause|status|1s|2m|)"|1|null|[\[\{]{0,3})(,"(verb|limit)":"(pause|1ms)")?\}?"#,
        ) {
            if let Ok(operation) = parse(line.as_bytes()) {
                let is_possible = operation == Operation::Status || operation.waits();
                prop_assert!(is_possible, "{:?}", operation);
            }
        }
    }
}
