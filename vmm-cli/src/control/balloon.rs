//! The balloon under control: what is asked of it, how it is written, and what it comes to.

use std::time::{Duration, Instant};

use serde::de::{Deserializer, Error as _, IgnoredAny};
use serde::{Deserialize, Serialize};
use vmm_devices::virtio::balloon::{
    BalloonError, BalloonStatus, GuestStatistics, HintState, HintStatus, Sample,
};

use super::operations::OperationError;
use super::render::seconds;
use crate::config::{balloon, duration};

/// What is asked of the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonRequest {
    /// How it is.
    Show,
    /// To be another one from now on.
    Set(BalloonSetting),
    /// A round of free page hinting is to begin.
    StartHinting,
    /// The round is to end.
    StopHinting,
}

/// What becomes of the settings of a balloon; what is left out stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonSetting {
    /// How large it is to be, in bytes.
    pub size: Option<u64>,
    /// How often the guest is asked for statistics; zero: never.
    pub statistics_interval: Option<Duration>,
}

/// How the balloon is, as an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonReport {
    /// Whether the guest has a driver for it.
    pub driver: bool,
    /// How large it is to be.
    pub target_bytes: u64,
    /// How large it is, as its driver says.
    pub actual_bytes: u64,
    /// How often the guest is asked for statistics, as in a configuration.
    pub statistics_interval: String,
    /// What the guest has said last; nothing before it has.
    pub statistics: Option<StatisticsReport>,
    /// The round of free page hinting.
    pub hinting: HintStatus,
}

/// Statistics of the guest, and how fresh they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatisticsReport {
    /// Milliseconds since they came.
    pub age_ms: u64,
    /// What the guest's driver says of its memory.
    #[serde(flatten)]
    pub guest: GuestStatistics,
}

impl From<BalloonStatus> for BalloonReport {
    fn from(status: BalloonStatus) -> Self {
        let report = |Sample { at, statistics }| {
            let age = Instant::now().saturating_duration_since(at);
            StatisticsReport { age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX), guest: statistics }
        };
        Self {
            driver: status.has_driver,
            target_bytes: status.target,
            actual_bytes: status.actual,
            statistics_interval: duration::render(status.statistics_interval),
            statistics: status.sample.map(report),
            hinting: status.hints,
        }
    }
}

/// Why the balloon is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonRefusal {
    /// There is none.
    #[error("the machine has no balloon: it has one with balloon.device = true (--balloon)")]
    NoBalloon,
    /// It is not possible.
    #[error(transparent)]
    Refused(#[from] BalloonError),
}

/// The balloon of a machine. Nothing here waits, neither for the guest nor for the host.
pub trait ControlledBalloon {
    /// How it is.
    ///
    /// # Errors
    /// [`BalloonRefusal::NoBalloon`].
    fn show(&self) -> Result<BalloonReport, BalloonRefusal>;

    /// Has it become as `setting` says, in the guest's own time.
    ///
    /// # Errors
    /// [`BalloonRefusal`]: nothing has changed then.
    fn set(&self, setting: BalloonSetting) -> Result<(), BalloonRefusal>;

    /// Starts a round of free page hinting, or ends it.
    ///
    /// # Errors
    /// [`BalloonRefusal`].
    fn hint(&self, start: bool) -> Result<(), BalloonRefusal>;
}

impl BalloonRequest {
    /// Carries it out; how the balloon is then.
    pub(super) fn execute(self, balloon: &dyn ControlledBalloon) -> Result<BalloonReport, OperationError> {
        match self {
            Self::Show => {}
            Self::Set(setting) => balloon.set(setting)?,
            Self::StartHinting => balloon.hint(true)?,
            Self::StopHinting => balloon.hint(false)?,
        }
        Ok(balloon.show()?)
    }

    /// The fields of the request, beside its verb.
    pub(super) fn fields(self) -> Fields {
        match self {
            Self::Show => Fields::default(),
            Self::Set(BalloonSetting { size, statistics_interval }) => Fields {
                size: size.map(balloon::render),
                statistics_interval: statistics_interval.map(duration::render),
                ..Fields::default()
            },
            Self::StartHinting => Fields { action: Some(Action::Start), ..Fields::default() },
            Self::StopHinting => Fields { action: Some(Action::Stop), ..Fields::default() },
        }
    }
}

/// What a request for the balloon has beside its verb, as it is written.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Fields {
    #[serde(rename = "size", skip_serializing_if = "Option::is_none")]
    size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Action>,
}

/// What becomes of a round of hinting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It begins.
    Start,
    /// It ends.
    Stop,
}

impl From<Action> for BalloonRequest {
    fn from(action: Action) -> Self {
        match action {
            Action::Start => Self::StartHinting,
            Action::Stop => Self::StopHinting,
        }
    }
}

/// A request to change the balloon, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    #[serde(default, deserialize_with = "size")]
    size: Option<u64>,
    #[serde(default, deserialize_with = "interval")]
    statistics_interval: Option<Duration>,
}

impl From<Set> for BalloonRequest {
    fn from(Set { size, statistics_interval, .. }: Set) -> Self {
        Self::Set(BalloonSetting { size, statistics_interval })
    }
}

/// A request about hinting, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hinting {
    #[serde(rename = "verb")]
    _verb: IgnoredAny,
    action: Action,
}

impl From<Hinting> for BalloonRequest {
    fn from(hinting: Hinting) -> Self {
        hinting.action.into()
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    balloon::parse_size(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::parse(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// The balloon as text for people.
pub(super) fn table(report: &BalloonReport) -> String {
    let state = match report.hinting.state {
        HintState::Idle => "idle",
        HintState::Asked => "asked",
        HintState::Hinting => "hinting",
        HintState::Complete => "complete",
    };
    let hinting = match report.hinting {
        HintStatus { state: HintState::Idle, .. } => state.to_owned(),
        HintStatus { bytes, .. } => format!("{state}, {bytes} bytes"),
    };
    let mut rows = vec![
        ("driver".to_owned(), if report.driver { "yes" } else { "no" }.to_owned()),
        ("target".to_owned(), format!("{} bytes", report.target_bytes)),
        ("actual".to_owned(), format!("{} bytes", report.actual_bytes)),
        ("hinting".to_owned(), hinting),
        ("statistics_interval".to_owned(), super::render::printable(&report.statistics_interval)),
    ];
    if let Some(StatisticsReport { age_ms, guest }) = &report.statistics {
        rows.push(("statistics_age".to_owned(), seconds(*age_ms)));
        let guest = serde_json::to_value(guest).unwrap_or_default();
        let guest = guest.as_object().into_iter().flatten();
        rows.extend(guest.map(|(name, value)| (name.clone(), value.to_string())));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_a_small_table_with_what_the_guest_says() {
        let guest: GuestStatistics = serde_json::from_str(r#"{"total_bytes":1000,"free_bytes":10}"#).unwrap();
        let mut report = BalloonReport {
            driver: true,
            target_bytes: 4096,
            actual_bytes: 0,
            statistics_interval: "2s".into(),
            statistics: None,
            hinting: HintStatus::default(),
        };
        let expected = "driver               yes\ntarget               4096 bytes\nactual               0 bytes\n\
                        hinting              idle\nstatistics_interval  2s\n";
        assert_eq!(table(&report), expected);
        report.statistics = Some(StatisticsReport { age_ms: 1503, guest });
        report.hinting = HintStatus { state: HintState::Complete, bytes: 8192 };
        let text = table(&report);
        for line in [
            "hinting              complete, 8192 bytes\n",
            "statistics_age       1.503 s\n",
            "free_bytes           10\n",
            "total_bytes          1000\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("cache_bytes"), "{text}");
    }
}
