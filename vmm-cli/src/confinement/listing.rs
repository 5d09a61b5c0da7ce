//! `filters`: what each kind of thread may ask of the kernel, printed. `docs/confinement.md` is the user's page.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use vmm_core::thread::{Call, Condition, Kind};

use super::kinds;
use crate::args::FiltersArgs;
use crate::outcome::Failure;

/// The version of the JSON form. A field or a kind that is added leaves it as it is.
const SCHEMA: u32 = 1;

#[derive(Debug, Serialize)]
struct Listing {
    schema: u32,
    kinds: Vec<Table>,
}

/// Of one kind of thread.
#[derive(Debug, Serialize)]
struct Table {
    kind: &'static str,
    calls: Vec<Entry>,
}

/// One rule.
#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    number: i64,
    /// They hold together.
    conditions: Vec<Of>,
}

/// A condition of an argument, counted from 0.
#[derive(Debug, Serialize)]
struct Of {
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
    let listing = Listing { schema: SCHEMA, kinds: tables() };
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
fn tables() -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for &kind in kinds::ALL {
        if tables.iter().all(|table| table.kind != kind.name) {
            tables.push(Table { kind: kind.name, calls: entries(kind) });
        }
    }
    tables
}

fn entries(kind: &'static Kind) -> Vec<Entry> {
    let mut calls: Vec<&Call> = Vec::new();
    for call in kind.calls() {
        if !calls.contains(&call) {
            calls.push(call);
        }
    }
    calls.into_iter().map(entry).collect()
}

fn entry(call: &Call) -> Entry {
    let name = usize::try_from(call.number).ok().and_then(::syscalls::Sysno::new);
    let conditions = call.conditions.iter().flatten().map(|condition| match *condition {
        Condition::Is { argument, value } => Of { argument, is: Some(value), without: None },
        Condition::Without { argument, bits } => Of { argument, is: None, without: Some(bits) },
    });
    Entry {
        name: name.map_or("?", |name| name.name()),
        number: call.number,
        conditions: conditions.collect(),
    }
}

/// A line for each rule: the kind, the call, its conditions.
fn text(tables: &[Table]) -> String {
    let mut text = String::new();
    for Table { kind, calls } in tables {
        for Entry { name, conditions, .. } in calls {
            let conditions: Vec<_> = conditions.iter().map(Of::words).collect();
            let line = format!("{kind:<16}{name:<20}{}", conditions.join(" and "));
            // Formatting into a `String` cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

impl Of {
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
        let tables = tables();
        let text = text(&tables);
        for kind in kinds::ALL {
            assert!(text.lines().any(|line| line.starts_with(kind.name)), "{}", kind.name);
        }
        assert!(!text.contains('?'), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.contains(&"vcpu            ioctl               argument 1 is 0xae80"), "{text}");
        assert!(lines.contains(&"vcpu            mmap                argument 2 has none of 0x4"), "{text}");
        assert!(lines.contains(&"vcpu            futex"), "{text}");
        let rules: usize = tables.iter().map(|table| table.calls.len()).sum();
        assert_eq!(lines.len(), rules);
    }

    #[test]
    fn the_json_form_has_numbers() {
        let listing = Listing { schema: SCHEMA, kinds: tables() };
        let json = serde_json::to_string(&listing).unwrap();
        let run = r#"{"name":"ioctl","number":16,"conditions":[{"argument":1,"is":44672}]}"#;
        assert!(json.contains(run), "{json}");
    }
}
