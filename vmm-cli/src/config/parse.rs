//! TOML text: read into a configuration, or refused with its place.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Deserializer};

use super::VmConfig;
use super::error::{ConfigError, Place};
use super::keys::{self, Hint, Key, Section};
use super::value::ValueError;

/// Reads the text of a configuration file. `origin` is the file's path: it is named in errors, and relative paths
/// in the text are joined to its directory. Neither the file system nor the environment is looked at.
///
/// # Errors
///
/// [`ConfigError`] with the place in `text`: a syntax error, an unknown key, a value of the wrong type or
/// outside of its range.
pub fn parse_toml(text: &str, origin: &Path) -> Result<VmConfig, ConfigError> {
    let source = Source { text, origin };
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        at: source.place(error.span()),
        reason: error.message().to_owned(),
    })?;
    let settings = source.settings(document.get_ref())?;
    let mut config = VmConfig::deserialize(Deserializer::from(document)).map_err(|error| {
        let at = source.place(error.span());
        let reason = error.message().to_owned();
        match settings.into_iter().find(|(span, _)| Some(span) == error.span().as_ref()) {
            Some((_, key)) => ConfigError::Value { at, key, reason },
            None => ConfigError::Syntax { at, reason },
        }
    })?;
    let directory = origin.parent().unwrap_or(Path::new(""));
    for (_, path) in config.paths_mut() {
        *path = directory.join(&*path);
    }
    Ok(config)
}

struct Source<'a> {
    text: &'a str,
    origin: &'a Path,
}

impl Source<'_> {
    fn place(&self, span: Option<Range<usize>>) -> Place {
        Place::new(self.origin, self.text, span)
    }

    /// Checks every key and the type of every value against the key table, in the order of the file. Gives the
    /// place of each value with its key: serde's errors know only the place.
    fn settings(&self, document: &DeTable<'_>) -> Result<Vec<(Range<usize>, String)>, ConfigError> {
        let mut settings = Vec::new();
        for (name, value) in in_file_order(document) {
            if let Some(section) = keys::repeated(name.get_ref()) {
                self.repeated(section, name, value, &mut settings)?;
                continue;
            }
            let section = keys::section(name.get_ref()).ok_or_else(|| ConfigError::UnknownKey {
                at: self.place(Some(name.span())),
                key: name.get_ref().to_string(),
                hint: Hint::unknown(None, name.get_ref()),
            })?;
            let table = value.get_ref().as_table().ok_or_else(|| ConfigError::NotASection {
                at: self.place(Some(name.span())),
                section: section.name,
                found: type_name(value.get_ref()),
                hint: Hint::not_a_table(section),
            })?;
            for (name, value) in in_file_order(table) {
                settings.push((value.span(), self.setting(section, name, value)?));
            }
        }
        Ok(settings)
    }

    /// Checks the tables of which there may be several.
    fn repeated(
        &self,
        section: &'static Section,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        settings: &mut Vec<(Range<usize>, String)>,
    ) -> Result<(), ConfigError> {
        let not_tables = || ConfigError::NotTables {
            at: self.place(Some(name.span())),
            section: section.name,
            found: type_name(value.get_ref()),
        };
        for item in value.get_ref().as_array().ok_or_else(not_tables)? {
            for (name, value) in in_file_order(item.get_ref().as_table().ok_or_else(not_tables)?) {
                settings.push((value.span(), self.setting(section, name, value)?));
            }
        }
        Ok(())
    }

    fn setting(
        &self,
        section: &'static Section,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<String, ConfigError> {
        let dotted = format!("{}.{}", section.name, name.get_ref());
        let Some(key) = section.keys.iter().find(|key| key.name == name.get_ref()) else {
            return Err(ConfigError::UnknownKey {
                at: self.place(Some(name.span())),
                key: dotted,
                hint: Hint::unknown(Some(section), name.get_ref()),
            });
        };
        match self.type_error(key, value) {
            Some(error) => Err(ConfigError::Value {
                at: self.place(Some(value.span())),
                key: dotted,
                reason: error.to_string(),
            }),
            None => Ok(dotted),
        }
    }

    fn type_error(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Option<ValueError> {
        let expected = key.expected;
        let written = || self.text.get(value.span()).unwrap_or_default().to_owned();
        if !key.form.takes(value.get_ref()) {
            return Some(ValueError::WrongType {
                value: written(),
                found: key.form.misfit(value.get_ref()).unwrap_or_else(|| type_name(value.get_ref())),
                expected,
            });
        }
        let integer = value.get_ref().as_integer()?;
        let fits = i64::from_str_radix(integer.as_str(), integer.radix()).is_ok();
        (!fits).then(|| ValueError::TooWide { value: written(), expected })
    }
}

fn in_file_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
