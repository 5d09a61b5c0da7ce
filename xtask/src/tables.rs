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
/// The kind of the thread that starts others.
const NURSERY: &str = "nursery";
/// What the process is called that connects to sockets.
const OPENER: &str = "vmm-opener";

#[derive(Debug, Deserialize)]
struct Listing {
    kinds: Vec<Kind>,
}

/// A kind of thread, with its tables, which it may share with others.
#[derive(Debug, Deserialize)]
pub struct Kind {
    kind: String,
    tables: Vec<Vec<Rule>>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Rule {
    name: String,
    number: i64,
    conditions: Vec<Condition>,
    /// Where it is used, if no trial can use it.
    elsewhere: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
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

impl Kind {
    /// The numbers of the calls of which `argument` is looked at.
    pub fn looks_at(&self, argument: u8) -> impl Iterator<Item = i64> {
        let looked = move |rule: &&Rule| rule.conditions.iter().any(|on| on.argument == argument);
        self.tables.iter().flatten().filter(looked).map(|rule| rule.number)
    }

    /// Whether a thread of this name is of the kind: several have a number behind it.
    fn has(&self, thread: &str) -> bool {
        match self.kind.as_str() {
            "main" => thread == PROGRAM,
            "opener" => thread == OPENER,
            kind => thread.trim_end_matches(|c: char| c.is_ascii_digit()) == kind,
        }
    }

    fn uses(&self, rule: &Rule, seen: &BTreeSet<Seen>) -> bool {
        let own = || seen.iter().filter(|seen| seen.number == rule.number && self.has(&seen.thread));
        let met = |on: &Condition| {
            own().filter_map(|seen| seen.argument).any(|(at, value)| at == on.argument && on.holds(value))
        };
        own().next().is_some() && rule.conditions.iter().all(met)
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
    fn words(&self) -> String {
        let conditions: Vec<_> = self.conditions.iter().map(Condition::words).collect();
        format!("{} {}", self.name, conditions.join(" and ")).trim_end().to_owned()
    }
}

/// The tables of the built monitor.
///
/// # Errors
/// It cannot be run.
pub fn of(monitor: &Path) -> Result<Vec<Kind>> {
    let json = capture(Command::new(monitor).args(["filters", "--json"]))?;
    Ok(serde_json::from_str::<Listing>(&json).context("the tables of the monitor")?.kinds)
}

/// The rules that `record` does not show to be used by any kind that has their table, a line each, but for those that say where they
/// are used otherwise. A table that kinds share is of one piece of code that threads of all of them may come to, whichever of its ways
/// they took in the trials.
///
/// # Errors
/// The record has no calls, is no record, or is not whole.
pub fn unused(kinds: &[Kind], record: &str) -> Result<Vec<String>> {
    let seen = read(record)?;
    ensure!(!seen.is_empty(), "no call was recorded");
    let mut unused = Vec::new();
    let mut looked: Vec<&Vec<Rule>> = Vec::new();
    for table in kinds.iter().flat_map(|kind| &kind.tables) {
        if looked.contains(&table) {
            continue;
        }
        looked.push(table);
        let owners: Vec<_> = kinds.iter().filter(|kind| kind.tables.contains(table)).collect();
        let uses = |kind: &Kind, rule: &Rule| {
            kind.uses(rule, &seen) || kind.kind == NURSERY && is_used_on_the_way(kinds, rule, &seen)
        };
        let is_idle = |rule: &&Rule| rule.elsewhere.is_none() && !owners.iter().any(|kind| uses(kind, rule));
        let names: Vec<_> = owners.iter().map(|kind| kind.kind.as_str()).collect();
        let idle = table.iter().filter(is_idle);
        unused.extend(idle.map(|rule| format!("{}: {}", names.join(", "), rule.words())));
    }
    Ok(unused)
}

/// Whether a thread has made the call whose kind has no rule for it: it has the filter of the nursery, which has started it, until it has
/// its own.
fn is_used_on_the_way(kinds: &[Kind], rule: &Rule, seen: &BTreeSet<Seen>) -> bool {
    let lacks = |kind: &&Kind| kind.tables.iter().flatten().all(|own| own != rule);
    kinds.iter().filter(lacks).any(|kind| kind.uses(rule, seen))
}

/// How many rules the kinds have, each with its own.
pub fn count(kinds: &[Kind]) -> usize {
    kinds.iter().flat_map(|kind| &kind.tables).map(Vec::len).sum()
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

    const KINDS: &str = r#"{"schema":1,"kinds":[
        {"kind":"vcpu","tables":[
            [{"name":"futex","number":202,"conditions":[]}, {"name":"exit","number":60,"conditions":[]}],
            [{"name":"ioctl","number":16,"conditions":[{"argument":1,"is":44672}]},
             {"name":"mmap","number":9,"conditions":[{"argument":2,"without":4}]}]]},
        {"kind":"main","tables":[
            [{"name":"futex","number":202,"conditions":[]}, {"name":"exit","number":60,"conditions":[]}]]}]}"#;

    const RECORD: [&str; 6] = [
        "{ comm: vcpu0       , nr:        202 } hitcount:          1",
        "{ comm: vmm-cli     , nr:         60 } hitcount:          1",
        "{ comm: vcpu12      , nr:         16 } hitcount:         70",
        "{ comm: vcpu12      , nr:         16, a1:      44672 } hitcount:         70",
        "{ comm: vcpu1       , nr:          9, a2:          3 } hitcount:          2",
        "Dropped: 0",
    ];

    fn kinds() -> Vec<Kind> {
        serde_json::from_str::<Listing>(KINDS).unwrap().kinds
    }

    /// With line `at` of the record as `line`.
    fn unused_with(at: usize, line: &str) -> Vec<String> {
        let mut record = RECORD;
        record[at] = line;
        unused(&kinds(), &record.join("\n")).unwrap()
    }

    #[test]
    fn what_each_kind_uses_or_another_one_that_has_the_same_table_is_used() {
        assert_eq!(unused_with(5, RECORD[5]), [""; 0]);
    }

    #[test]
    fn a_rule_that_no_kind_uses_is_told_with_those_that_have_it() {
        assert_eq!(unused_with(0, "{ comm: vcpu3, nr: 60 } hitcount: 1"), ["vcpu, main: futex"]);
        assert_eq!(
            unused_with(3, "{ comm: vcpu12, nr: 16, a1: 44673 } hitcount: 1"),
            ["vcpu: ioctl argument 1 is 0xae80"]
        );
        assert_eq!(
            unused_with(4, "{ comm: vcpu1, nr: 9, a2: 7 } hitcount: 1"),
            ["vcpu: mmap argument 2 has none of 0x4"]
        );
    }

    #[test]
    fn threads_of_other_programs_use_nothing() {
        assert_eq!(unused_with(1, "{ comm: vmm-client, nr: 60 } hitcount: 1"), ["vcpu, main: exit"]);
    }

    #[test]
    fn what_a_thread_does_before_it_has_its_own_filter_the_nurserys_permits() {
        let nursery = r#"{"kind":"nursery","tables":[[{"name":"seccomp","number":317,"conditions":[]},
            {"name":"mmap","number":9,"conditions":[{"argument":2,"without":4}]}]]},{"kind":"vcpu","#;
        let kinds = KINDS.replacen(r#"{"kind":"vcpu","#, nursery, 1);
        let kinds = serde_json::from_str::<Listing>(&kinds).unwrap().kinds;
        let unused_with = |line| unused(&kinds, &[&RECORD[..], &[line]].concat().join("\n")).unwrap();
        // That a vCPU maps memory says nothing of the nursery: it may do so itself.
        let mmap = "nursery: mmap argument 2 has none of 0x4";
        assert_eq!(unused_with("{ comm: vcpu0, nr: 317 } hitcount: 1"), [mmap]);
        assert_eq!(unused_with("{ comm: nursery, nr: 9, a2: 3 } hitcount: 1"), ["nursery: seccomp"]);
    }

    #[test]
    fn a_rule_that_says_where_it_is_used_need_not_be_here() {
        let json = KINDS.replace("\"without\":4}]", "\"without\":4}],\"elsewhere\":\"on Mars\"");
        let kinds = serde_json::from_str::<Listing>(&json).unwrap().kinds;
        assert_eq!(unused(&kinds, &RECORD[..4].join("\n")).unwrap(), [""; 0]);
    }

    #[test]
    fn a_record_that_is_empty_or_not_whole_proves_nothing() {
        for (record, why) in [
            ("", "no call was recorded"),
            ("Dropped: 3", "3 calls were dropped"),
            ("nonsense", "this is no record"),
            ("{ comm: vcpu0 } hitcount: 1", "a place of the record"),
        ] {
            assert!(unused(&kinds(), record).unwrap_err().to_string().contains(why), "{record}");
        }
    }

    #[test]
    fn calls_are_counted_by_the_arguments_that_tables_look_at() {
        let looked: Vec<_> =
            (0..3).map(|argument| kinds()[0].looks_at(argument).collect::<Vec<_>>()).collect();
        assert_eq!(looked, [vec![], vec![16], vec![9]]);
    }
}
