//! Tables: what each kind of thread may ask of the kernel, as the built monitor lists it; and which rules of them a record of the nested
//! host shows to be used.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::capture;

/// What the main thread is called: as the program.
const PROGRAM: &str = "vmm-cli";
/// What the process is called that connects to sockets.
const OPENER: &str = "vmm-opener";

#[derive(Debug, Deserialize)]
struct Listing {
    kinds: Vec<Table>,
}

/// Of one kind of thread.
#[derive(Debug, Deserialize)]
pub struct Table {
    kind: String,
    calls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    name: String,
    number: i64,
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    argument: u8,
    is: Option<u32>,
    without: Option<u64>,
}

/// One place of a histogram: a thread's name, the number of a call, and an argument where that was counted.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    thread: String,
    number: i64,
    argument: Option<(u8, u32)>,
}

impl Table {
    /// The numbers of the calls of which `argument` is looked at.
    pub fn looks_at(&self, argument: u8) -> impl Iterator<Item = i64> {
        let looked = move |rule: &&Rule| rule.conditions.iter().any(|of| of.argument == argument);
        self.calls.iter().filter(looked).map(|rule| rule.number)
    }

    /// Whether a thread of this name is of the kind: several have a number behind it.
    fn has(&self, thread: &str) -> bool {
        match self.kind.as_str() {
            "main" => thread == PROGRAM,
            "opener" => thread == OPENER,
            kind => thread.trim_end_matches(|c: char| c.is_ascii_digit()) == kind,
        }
    }
}

impl Condition {
    fn holds(&self, value: u32) -> bool {
        self.is.is_none_or(|is| is == value) && self.without.is_none_or(|bits| u64::from(value) & bits == 0)
    }

    fn words(&self) -> String {
        let value = self.is.map_or_else(String::new, |is| format!("is {is:#x}"));
        let bits = self.without.map_or_else(String::new, |bits| format!("has none of {bits:#x}"));
        format!("argument {} {value}{bits}", self.argument)
    }
}

impl Rule {
    fn is_used(&self, table: &Table, seen: &BTreeSet<Seen>) -> bool {
        let of_kind = || seen.iter().filter(|seen| seen.number == self.number && table.has(&seen.thread));
        of_kind().next().is_some()
            && self.conditions.iter().all(|condition| {
                of_kind()
                    .filter_map(|seen| seen.argument)
                    .any(|(argument, value)| argument == condition.argument && condition.holds(value))
            })
    }

    fn words(&self) -> String {
        let conditions: Vec<_> = self.conditions.iter().map(Condition::words).collect();
        format!("{} {}", self.name, conditions.join(" and ")).trim_end().to_owned()
    }
}

/// The tables of the built monitor.
///
/// # Errors
/// It cannot be run.
pub fn of(monitor: &Path) -> Result<Vec<Table>> {
    let json = capture(Command::new(monitor).args(["filters", "--json"]))?;
    Ok(serde_json::from_str::<Listing>(&json).context("the tables of the monitor")?.kinds)
}

/// The rules that `record` does not show to be used, a line for each.
///
/// # Errors
/// The record has no calls, is no record, or is not whole.
pub fn unused(tables: &[Table], record: &str) -> Result<Vec<String>> {
    let seen = read(record)?;
    ensure!(!seen.is_empty(), "no call was recorded");
    let mut unused = Vec::new();
    for table in tables {
        let idle = table.calls.iter().filter(|rule| !rule.is_used(table, &seen));
        unused.extend(idle.map(|rule| format!("{}: {}", table.kind, rule.words())));
    }
    Ok(unused)
}

/// How many rules there are.
pub fn count(tables: &[Table]) -> usize {
    tables.iter().map(|table| table.calls.len()).sum()
}

/// Reads histograms, as `Documentation/trace/histogram.rst` shows them.
fn read(record: &str) -> Result<BTreeSet<Seen>> {
    let mut seen = BTreeSet::new();
    for line in record.lines() {
        if let Some(dropped) = line.strip_prefix("Dropped:") {
            ensure!(dropped.trim() == "0", "the record is not whole: {} calls were dropped", dropped.trim());
            continue;
        }
        let keys = line.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (keys, _) = keys.with_context(|| format!("this is no record: {line}"))?;
        seen.insert(place(keys).with_context(|| format!("a place of the record: {line}"))?);
    }
    Ok(seen)
}

fn place(keys: &str) -> Result<Seen> {
    let mut seen = Seen { thread: String::new(), number: -1, argument: None };
    for key in keys.split(',') {
        let (name, value) = key.split_once(':').context("a key without a value")?;
        let value = value.trim();
        match name.trim() {
            "comm" => value.clone_into(&mut seen.thread),
            "nr" => seen.number = value.parse()?,
            name => match name.strip_prefix('a') {
                Some(argument) => seen.argument = Some((argument.parse()?, value.parse()?)),
                None => bail!("the key {name}"),
            },
        }
    }
    ensure!(seen.number >= 0, "no number of a call");
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = r#"{"schema":1,"kinds":[
        {"kind":"vcpu","calls":[
            {"name":"futex","number":202,"conditions":[]},
            {"name":"ioctl","number":16,"conditions":[{"argument":1,"is":44672}]},
            {"name":"mmap","number":9,"conditions":[{"argument":2,"without":4}]}]},
        {"kind":"main","calls":[{"name":"futex","number":202,"conditions":[]}]}]}"#;

    fn tables() -> Vec<Table> {
        serde_json::from_str::<Listing>(TABLES).unwrap().kinds
    }

    fn unused_of(record: &[&str]) -> Vec<String> {
        unused(&tables(), &record.join("\n")).unwrap()
    }

    #[test]
    fn a_rule_is_used_if_a_thread_of_its_kind_has_made_the_call_under_its_conditions() {
        let record = [
            "{ comm: vcpu0       , nr:        202 } hitcount:          1",
            "{ comm: vcpu12      , nr:         16 } hitcount:         70",
            "{ comm: vcpu12      , nr:         16, a1:      44672 } hitcount:         70",
            "{ comm: vcpu1       , nr:          9 } hitcount:          2",
            "{ comm: vcpu1       , nr:          9, a2:          3 } hitcount:          2",
            "{ comm: vmm-cli     , nr:        202 } hitcount:          1",
            "Dropped: 0",
        ];
        assert_eq!(unused_of(&record), [""; 0]);
        assert_eq!(unused_of(&record[1..]), ["vcpu: futex"]);
        assert_eq!(unused_of(&record[..5]), ["main: futex"]);
        let (others, wrong) = (record[0].replace("vcpu0", "vcpus"), record[2].replace("44672", "44673"));
        assert_eq!(unused_of(&[&[others.as_str()], &record[1..]].concat()), ["vcpu: futex"]);
        let with = |at: usize, line| [&record[..at], &[line], &record[at + 1..]].concat();
        assert_eq!(unused_of(&with(2, wrong.as_str())), ["vcpu: ioctl argument 1 is 0xae80"]);
        let executable = record[4].replace(":          3", ":          7");
        assert_eq!(unused_of(&with(4, executable.as_str())), ["vcpu: mmap argument 2 has none of 0x4"]);
    }

    #[test]
    fn a_record_that_is_empty_or_not_whole_proves_nothing() {
        for (record, why) in [
            ("", "no call was recorded"),
            ("Dropped: 3", "3 calls were dropped"),
            ("nonsense", "this is no record"),
            ("{ comm: vcpu0 } hitcount: 1", "a place of the record"),
        ] {
            assert!(unused(&tables(), record).unwrap_err().to_string().contains(why), "{record}");
        }
    }

    #[test]
    fn calls_are_counted_by_the_arguments_that_tables_look_at() {
        let looked: Vec<_> =
            (0..3).map(|argument| tables()[0].looks_at(argument).collect::<Vec<_>>()).collect();
        assert_eq!(looked, [vec![], vec![16], vec![9]]);
    }
}
