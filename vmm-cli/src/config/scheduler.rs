//! Scheduler: the notation of a scheduling policy.

use serde::de::{Deserialize, Deserializer, Error};
use vmm_vcpu::Scheduler;

use super::value::ValueError;

pub(super) const EXPECTED: &str =
    "one of \"other\", \"batch\", \"idle\", \"fifo:PRIORITY\", \"rr:PRIORITY\" with a priority from 1 to 99";

/// Reads a policy; those that have a priority have it behind a colon.
///
/// # Errors
///
/// [`ValueError`] if the text is anything else.
pub fn parse(text: &str) -> Result<Scheduler, ValueError> {
    let malformed = || ValueError::Malformed { value: text.to_owned(), expected: EXPECTED };
    let (name, priority) = match text.split_once(':') {
        None => (text, None),
        Some((name, priority)) => (name, Some(parse_priority(priority).ok_or_else(malformed)?)),
    };
    match (name, priority) {
        ("other", None) => Ok(Scheduler::Other),
        ("batch", None) => Ok(Scheduler::Batch),
        ("idle", None) => Ok(Scheduler::Idle),
        ("fifo", Some(priority)) => Ok(Scheduler::Fifo(priority)),
        ("rr", Some(priority)) => Ok(Scheduler::Rr(priority)),
        _ => Err(malformed()),
    }
}

fn parse_priority(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|priority| digits && (1..=99).contains(priority))
}

/// Writes what [`parse`] reads.
pub(crate) fn render(scheduler: Scheduler) -> String {
    match scheduler {
        Scheduler::Other => "other".into(),
        Scheduler::Batch => "batch".into(),
        Scheduler::Idle => "idle".into(),
        Scheduler::Fifo(priority) => format!("fifo:{priority}"),
        Scheduler::Rr(priority) => format!("rr:{priority}"),
    }
}

/// Deserializes a string as [`parse`] reads it; a key that is present is always `Some`.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Scheduler>, D::Error> {
    parse(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_read_and_written() {
        for (text, scheduler) in [
            ("other", Scheduler::Other),
            ("batch", Scheduler::Batch),
            ("idle", Scheduler::Idle),
            ("fifo:1", Scheduler::Fifo(1)),
            ("rr:99", Scheduler::Rr(99)),
        ] {
            assert_eq!(parse(text), Ok(scheduler));
            assert_eq!(render(scheduler), text);
        }
    }

    #[test]
    fn any_other_policy_lists_the_permitted_ones() {
        for text in
            ["", "fair", "fifo", "fifo:", "fifo:0", "fifo:100", "rr:+1", "rr:1:2", "other:1", "FIFO:1"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.ends_with(&format!(" is not {EXPECTED}")), "{error}");
        }
    }
}
