//! Settings with commas between: how a flag stands for a whole table.

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::keys::{Form, Key, Section};
use super::value;

/// Why the text of a flag is none of its table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum SettingsError {
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

/// Reads `text`, settings of `section` as `expected` says, as the table reads them. A comma can therefore not be in a path. A
/// switch alone is true.
///
/// # Errors
/// [`SettingsError`]
pub(super) fn parse<T: DeserializeOwned>(
    section: &Section,
    expected: &'static str,
    text: &str,
) -> Result<T, SettingsError> {
    let mut table = toml::Table::new();
    for setting in text.split(',') {
        let (name, text) = setting.split_once('=').map_or((setting, None), |(n, text)| (n, Some(text)));
        let known = section.keys.iter().find(|key| key.name == name);
        let key = known.ok_or_else(|| {
            let keys = section.keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", ");
            SettingsError::UnknownKey { name: name.to_owned(), keys, expected }
        })?;
        let value = setting_value(key, text)?;
        if table.insert(name.to_owned(), value).is_some() {
            return Err(SettingsError::Twice { name: name.to_owned() });
        }
    }
    T::deserialize(table).map_err(|error| SettingsError::Table(error.message().to_owned()))
}

fn setting_value(key: &Key, text: Option<&str>) -> Result<toml::Value, SettingsError> {
    let (name, expected) = (key.name.to_owned(), key.expected);
    let text = match (key.form, text) {
        (Form::Switch, None) => return Ok(true.into()),
        (_, None) => return Err(SettingsError::NoValue { name, expected }),
        (_, Some(text)) => text,
    };
    let not_of_form = || SettingsError::NotOfForm { name, text: text.to_owned(), expected };
    match key.form {
        Form::Switch => text.parse::<bool>().map(Into::into).map_err(|_| not_of_form()),
        Form::Integer => text.parse::<i64>().map(Into::into).map_err(|_| not_of_form()),
        _ => Ok(text.into()),
    }
}
