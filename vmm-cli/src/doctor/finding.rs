//! `Finding`: what one check found, what is lost by it, and what mends it.

use std::io;

use serde::Serialize;

/// How a finding bears on `vmm-cli run`. From best to worst, the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// Good to know; what is lost is seldom wanted, or not used by this version.
    Note,
    /// `run` works, but does less or is slower.
    Degraded,
    /// `run` cannot work.
    Broken,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The check's name: lower case, words joined by `-`; it stays from version to version.
    pub id: &'static str,
    pub state: State,
    pub found: String,
    /// What is lost by it. `later: …` is what this version does not use yet.
    pub lost: Option<String>,
    /// What mends it, commands in backticks.
    pub mend: Option<String>,
}

impl Finding {
    fn new(id: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { id, state, found: found.into(), lost: None, mend: None }
    }

    pub fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, State::Ok, found)
    }

    pub fn note(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, State::Note, found)
    }

    pub fn degraded(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, State::Degraded, found)
    }

    pub fn broken(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, State::Broken, found).lost("every machine")
    }

    /// The check could not look at `path`.
    pub fn unknown(id: &'static str, path: &str, error: &io::Error) -> Self {
        Self::note(id, format!("not known: {path}: {error}"))
    }

    pub fn lost(self, lost: impl Into<String>) -> Self {
        Self { lost: Some(lost.into()), ..self }
    }

    pub fn mend(self, mend: impl Into<Option<String>>) -> Self {
        Self { mend: mend.into(), ..self }
    }

    /// Mended by this text.
    pub fn mend_by(self, mend: &str) -> Self {
        self.mend(mend.to_owned())
    }
}
