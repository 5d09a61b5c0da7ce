//! Limits under control: what becomes of the limits of a device that is in use, and how that is written.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use vmm_devices::rate_limiter::{Limit, Limits};

use crate::config::{Rate, ValueError, disk};

/// The word that lifts a limit.
const NONE: &str = "none";

/// What becomes of the limits of a device, or of one way of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewLimits {
    /// Of the bytes that it moves.
    pub bandwidth: NewLimit,
    /// Of its requests, or its frames.
    pub operations: NewLimit,
}

impl NewLimits {
    /// What there is after them.
    pub(crate) fn applied(self, before: Limits) -> Limits {
        Limits {
            bytes: self.bandwidth.applied(before.bytes),
            operations: self.operations.applied(before.operations),
        }
    }
}

/// What becomes of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewLimit {
    /// It stays.
    #[default]
    Same,
    /// There is none any more.
    Lifted,
    /// It is this.
    To(Limit),
}

impl NewLimit {
    /// What there is after it.
    #[must_use]
    pub fn applied(self, before: Option<Limit>) -> Option<Limit> {
        match self {
            Self::Same => before,
            Self::Lifted => None,
            Self::To(limit) => Some(limit),
        }
    }

    /// Reads a rate of bytes as in a configuration, or `none`.
    ///
    /// # Errors
    /// What it has to be.
    pub(crate) fn of_bytes(text: &str) -> Result<Self, String> {
        Self::parse(text, disk::parse_bandwidth)
    }

    /// Reads a rate of requests or frames as in a configuration, or `none`.
    ///
    /// # Errors
    /// What it has to be.
    pub(crate) fn of_operations(text: &str) -> Result<Self, String> {
        Self::parse(text, disk::parse_operations)
    }

    fn parse(text: &str, rate: fn(&str) -> Result<Rate, ValueError>) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self::Lifted);
        }
        let rate = rate(text).map_err(|error| format!("{error}, or \"{NONE}\""))?;
        rate.limit().map(Self::To).map_err(|error| error.to_string())
    }

    /// As it is written; one that stays is not.
    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Same => None,
            Self::Lifted => Some(NONE.to_owned()),
            Self::To(limit) => Some(Rate::from(limit).to_string()),
        }
    }
}

/// A limit as an answer has it: a rate as in a configuration, or nothing.
pub(crate) fn text(limit: Option<Limit>) -> Option<String> {
    limit.map(|limit| Rate::from(limit).to_string())
}

pub(super) fn bandwidth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NewLimit, D::Error> {
    NewLimit::of_bytes(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn operations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NewLimit, D::Error> {
    NewLimit::of_operations(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_rate_or_none_or_stays() {
        let limit = disk::parse_bandwidth("1M/1s+2M").unwrap().limit().unwrap();
        assert_eq!(NewLimit::of_bytes("1M/1s+2M"), Ok(NewLimit::To(limit)));
        assert_eq!(NewLimit::of_operations("none"), Ok(NewLimit::Lifted));
        for text in ["", "0/1s", "1M", "None", "unlimited"] {
            let error = NewLimit::of_bytes(text).unwrap_err();
            assert!(error.ends_with(", or \"none\""), "{error}");
        }
        let applied =
            [NewLimit::Same, NewLimit::Lifted, NewLimit::To(limit)].map(|new| new.applied(Some(limit)));
        assert_eq!(applied, [Some(limit), None, Some(limit)]);
    }
}
