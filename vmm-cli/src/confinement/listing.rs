//! `filters`: what each kind of thread may ask of the kernel, printed. `docs/confinement.md` is the user's page.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use vmm_core::thread::{Call, Condition};

use super::kinds;
use crate::args::FiltersArgs;
use crate::outcome::Failure;

/// The version of the JSON form. A field or a kind that is added leaves it as it is.
const SCHEMA: u32 = 1;

#[derive(Debug, Serialize)]
struct Listing {
    schema: u32,
    kinds: Vec<Of>,
}

/// What a kind of thread has. Kinds share tables: those with the same rules are one.
#[derive(Debug, Serialize)]
struct Of {
    kind: &'static str,
    tables: Vec<Vec<Entry>>,
}

/// One rule.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    name: &'static str,
    number: i64,
    /// They hold together.
    conditions: Vec<On>,
    /// Where it is used, if no trial can use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<&'static str>,
}

/// A condition on an argument, counted from 0.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct On {
    argument: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    is: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<u64>,
}

/// Prints the tables.
///
/// # Errors
/// They cannot be put into their form.
pub fn run(args: &FiltersArgs) -> Result<ExitCode, Failure> {
    let listing = Listing { schema: SCHEMA, kinds: all() };
    let text = if args.json {
        serde_json::to_string(&listing).map_err(Failure::internal)? + "\n"
    } else {
        text(&listing.kinds)
    };
    // Whoever closed standard output does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// One for each name: a vCPU has another table while the host is looked at, which is part of its own.
fn all() -> Vec<Of> {
    let mut all: Vec<Of> = Vec::new();
    for &kind in kinds::ALL {
        if all.iter().all(|of| of.kind != kind.name) {
            let tables = kind.all_tables().filter(|table| !table.is_empty());
            let tables = tables.map(|table| table.iter().map(entry).collect()).collect();
            all.push(Of { kind: kind.name, tables });
        }
    }
    all
}

fn entry(call: &Call) -> Entry {
    let conditions = call.conditions.iter().flatten().map(|condition| match *condition {
        Condition::Is { argument, value } => On { argument, is: Some(value), without: None },
        Condition::Without { argument, bits } => On { argument, is: None, without: Some(bits) },
    });
    Entry {
        name: kinds::call_name(call.number.cast_unsigned()).unwrap_or("?"),
        number: call.number,
        conditions: conditions.collect(),
        elsewhere: call.elsewhere,
    }
}

/// A line for each rule: the kind, the call, its conditions.
fn text(all: &[Of]) -> String {
    let mut text = String::new();
    for Of { kind, tables } in all {
        let mut told: Vec<&Entry> = Vec::new();
        for entry in tables.iter().flatten() {
            if told.contains(&entry) {
                continue;
            }
            told.push(entry);
            let conditions: Vec<_> = entry.conditions.iter().map(On::words).collect();
            let line = format!("{kind:<16}{:<20}{}", entry.name, conditions.join(" and "));
            // Formatting into a `String` cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

impl On {
    fn words(&self) -> String {
        let Self { argument, is, without } = self;
        match (is, without) {
            (Some(value), _) => format!("argument {argument} is {value:#x}"),
            (None, bits) => format!("argument {argument} has none of {:#x}", bits.unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_by_the_names_of_its_calls() {
        let all = all();
        let text = text(&all);
        for kind in kinds::ALL {
            assert!(text.lines().any(|line| line.starts_with(kind.name)), "{}", kind.name);
        }
        assert!(!text.contains('?'), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.contains(&"vcpu            ioctl               argument 1 is 0xae80"), "{text}");
        assert!(lines.contains(&"vcpu            mmap                argument 2 has none of 0x4"), "{text}");
        assert!(lines.contains(&"vcpu            futex"), "{text}");
        let mut once = lines.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(lines.len(), once.len(), "{text}");
    }

    #[test]
    fn the_json_form_has_numbers() {
        let listing = Listing { schema: SCHEMA, kinds: all() };
        let json = serde_json::to_string(&listing).unwrap();
        let run = r#"{"name":"ioctl","number":16,"conditions":[{"argument":1,"is":44672}]}"#;
        assert!(json.contains(run), "{json}");
    }
}
