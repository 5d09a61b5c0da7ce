//! Settings with commas between: what a flag takes that stands for a whole table.

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::keys::{Form, Key, Section};
use super::value;

/// Why the text of a flag is no table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum FlagError {
    #[error("{} is none of {keys}; expected {expected}", value::quote(name))]
    UnknownKey { name: String, keys: String, expected: &'static str },
    #[error("{name} is there twice")]
    Twice { name: String },
    #[error("{name} has no value; expected {expected}")]
    NoValue { name: String, expected: &'static str },
    #[error("{name} = {} is not {expected}", value::quote(text))]
    NotOfForm { name: String, text: String, expected: &'static str },
    #[error("{0}")]
    Table(String),
}

/// Reads the settings of `section`, with commas between, which therefore cannot be in a value. A switch alone is true. `expected`
/// is an example.
pub(super) fn parse<T: DeserializeOwned>(
    section: &Section,
    expected: &'static str,
    text: &str,
) -> Result<T, FlagError> {
    let mut table = toml::Table::new();
    for setting in text.split(',') {
        let (name, text) = setting.split_once('=').map_or((setting, None), |(n, text)| (n, Some(text)));
        let known = section.keys.iter().find(|key| key.name == name);
        let keys = || section.keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", ");
        let unknown = || FlagError::UnknownKey { name: name.to_owned(), keys: keys(), expected };
        let value = setting_value(known.ok_or_else(unknown)?, text)?;
        if table.insert(name.to_owned(), value).is_some() {
            return Err(FlagError::Twice { name: name.to_owned() });
        }
    }
    T::deserialize(table).map_err(|error| FlagError::Table(error.message().to_owned()))
}

fn setting_value(key: &Key, text: Option<&str>) -> Result<toml::Value, FlagError> {
    let (name, expected) = (key.name.to_owned(), key.expected);
    let text = match (key.form, text) {
        (Form::Switch, None) => return Ok(true.into()),
        (_, None) => return Err(FlagError::NoValue { name, expected }),
        (_, Some(text)) => text,
    };
    let not_of_form = || FlagError::NotOfForm { name, text: text.to_owned(), expected };
    match key.form {
        Form::Switch => text.parse::<bool>().map(Into::into).map_err(|_| not_of_form()),
        Form::Integer => text.parse::<i64>().map(Into::into).map_err(|_| not_of_form()),
        _ => Ok(text.into()),
    }
}
