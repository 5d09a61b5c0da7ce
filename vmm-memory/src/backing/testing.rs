//! What the tests of backings look at: this process's mappings, as the kernel tells of them.

use std::fs;
use std::ops::Range;

/// One mapping of this process, as `/proc/self/smaps` describes it.
#[derive(Debug)]
pub(crate) struct Vma(String);

impl Vma {
    /// The mapping that contains `address`.
    pub(crate) fn at(address: usize) -> Option<Self> {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = text.lines();
        let first = lines.find(|line| range(line).is_some_and(|range| range.contains(&address)))?;
        let rest = lines.take_while(|line| range(line).is_none());
        Some(Self(std::iter::once(first).chain(rest).collect::<Vec<_>>().join("\n")))
    }

    pub(crate) fn range(&self) -> Range<usize> {
        range(self.0.lines().next().unwrap()).unwrap()
    }

    /// `rw-p` and so on.
    pub(crate) fn access(&self) -> &str {
        self.0.split(' ').nth(1).unwrap()
    }

    /// The value of a field in bytes.
    pub(crate) fn bytes(&self, field: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let text = lines.next().unwrap_or_else(|| panic!("no {field} in {}", self.0));
        text.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Whether the flag of two letters is there, by proc(5).
    pub(crate) fn has(&self, flag: &str) -> bool {
        let flags = self.0.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        flags.split_whitespace().any(|word| word == flag)
    }
}

fn range(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}
