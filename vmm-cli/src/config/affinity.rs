//! Affinity: lists of host CPUs, and which vCPU may run on which.

use std::fmt;
use std::iter;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use vmm_vcpu::affinity::CpuSet;

use super::value::ValueError;

pub(super) const EXPECTED: &str =
    "host CPUs such as \"2-5,8\", or such a list for each vCPU (\"2:3\" or [\"2\", \"3\"])";

/// What stands between the lists of two vCPUs.
const BETWEEN_VCPUS: char = ':';

/// Host CPUs in the order in which they are named, each once, at least one.
///
/// Written as the kernel writes such lists: numbers and ranges with commas between, `2-5,8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The list of `cpus`; nothing if there are none.
    pub fn new(cpus: impl IntoIterator<Item = usize>) -> Option<Self> {
        let cpus: Vec<_> = cpus.into_iter().collect();
        (!cpus.is_empty()).then_some(Self(cpus))
    }

    /// The numbers, in the order in which they were named.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "a list is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The same without an order.
    pub fn to_set(&self) -> CpuSet {
        self.iter().collect()
    }

    fn add(&mut self, (first, last): (usize, usize), written: &str) -> Result<(), ValueError> {
        for cpu in first..=last {
            if self.0.contains(&cpu) {
                return Err(ValueError::CpuTwice { value: written.to_owned(), cpu });
            }
            self.0.push(cpu);
        }
        Ok(())
    }
}

impl FromStr for CpuList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::Empty { expected: EXPECTED });
        }
        let mut list = Self(Vec::new());
        for part in text.split(',') {
            list.add(range(part.trim(), text)?, text)?;
        }
        Ok(list)
    }
}

/// Reads `3` or `3-5`; `written` is the whole list.
fn range(part: &str, written: &str) -> Result<(usize, usize), ValueError> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (number(first, written)?, number(last, written)?);
    if first > last {
        return Err(ValueError::CpusBackwards { value: written.to_owned(), first, last });
    }
    Ok((first, last))
}

fn number(text: &str, written: &str) -> Result<usize, ValueError> {
    let value = || written.to_owned();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::Malformed { value: value(), expected: EXPECTED });
    }
    // Only digits: `parse` can fail by overflow alone, which is above the limit too.
    match text.parse() {
        Ok(cpu) if cpu < CpuSet::LIMIT => Ok(cpu),
        _ => Err(ValueError::AboveLimit { value: text.to_owned(), limit: "CPU 1023" }),
    }
}

/// Writes the list with every run of ascending numbers as a range.
impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|one, next| one + 1 == *next);
        for (comma, run) in iter::once("").chain(iter::repeat(",")).zip(runs) {
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                run => run.iter().try_for_each(|cpu| write!(f, "{comma}{cpu}"))?,
            }
        }
        Ok(())
    }
}

/// On which host CPUs the vCPUs may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affinity {
    /// One list for all. Dedicated CPUs are given out in its order.
    All(CpuList),
    /// A list for each vCPU.
    Each(Vec<CpuList>),
}

impl Affinity {
    /// Every list, with what it is for.
    pub fn lists(&self) -> impl Iterator<Item = &CpuList> {
        match self {
            Self::All(list) => std::slice::from_ref(list).iter(),
            Self::Each(lists) => lists.iter(),
        }
    }
}

impl FromStr for Affinity {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.contains(BETWEEN_VCPUS) {
            return text.split(BETWEEN_VCPUS).map(str::parse).collect::<Result<_, _>>().map(Self::Each);
        }
        text.parse().map(Self::All)
    }
}

/// Takes a string as [`FromStr`] does, or an array with the list of each vCPU.
impl<'de> Deserialize<'de> for Affinity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AffinityVisitor;

        impl<'de> Visitor<'de> for AffinityVisitor {
            type Value = Affinity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Affinity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut lists: A) -> Result<Affinity, A::Error> {
                let mut each = Vec::new();
                while let Some(list) = lists.next_element::<String>()? {
                    each.push(list.parse().map_err(A::Error::custom)?);
                }
                if each.is_empty() {
                    return Err(A::Error::custom(ValueError::Malformed {
                        value: "[]".into(),
                        expected: EXPECTED,
                    }));
                }
                Ok(Affinity::Each(each))
            }
        }

        deserializer.deserialize_any(AffinityVisitor)
    }
}

/// Deserializes an affinity; a key that is present is always `Some`.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Affinity>, D::Error> {
    Affinity::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(cpus: &[usize]) -> CpuList {
        CpuList(cpus.to_vec())
    }

    #[test]
    fn numbers_and_ranges_are_read_in_the_order_in_which_they_are_written() {
        for (text, cpus, written) in [
            ("0", &[0][..], "0"),
            ("2-5,8", &[2, 3, 4, 5, 8], "2-5,8"),
            ("8, 2-3", &[8, 2, 3], "8,2-3"),
            ("3,4,5", &[3, 4, 5], "3-5"),
            ("1,0", &[1, 0], "1,0"),
            ("7-7", &[7], "7"),
            ("1023", &[1023], "1023"),
        ] {
            assert_eq!(text.parse(), Ok(list(cpus)), "{text}");
            assert_eq!(list(cpus).to_string(), written);
        }
    }

    #[test]
    fn what_is_no_list_of_cpus_says_why() {
        for (text, start) in [
            ("", "\"\" is empty; expected host CPUs such as"),
            ("all", "all is not host CPUs such as"),
            ("1-", "1- is not host CPUs"),
            ("-1", "-1 is not host CPUs"),
            ("1,,2", "1,,2 is not host CPUs"),
            ("1-2-3", "1-2-3 is not host CPUs"),
            ("0x3", "0x3 is not host CPUs"),
            ("5-2", "5-2 runs backwards: write 2-5"),
            ("1,0-2", "1,0-2 names CPU 1 twice"),
            ("0-1024", "1024 is above the limit of CPU 1023"),
            ("99999999999999999999", "99999999999999999999 is above the limit of CPU 1023"),
        ] {
            let error = text.parse::<CpuList>().unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn each_vcpu_can_have_a_list_of_its_own() {
        assert_eq!("2-3".parse(), Ok(Affinity::All(list(&[2, 3]))));
        assert_eq!("2:3-4".parse(), Ok(Affinity::Each(vec![list(&[2]), list(&[3, 4])])));
        // Two vCPUs may share.
        assert_eq!("2:2".parse(), Ok(Affinity::Each(vec![list(&[2]), list(&[2])])));
        for text in [":", "2:", ":2", "2::3"] {
            assert!(matches!(text.parse::<Affinity>(), Err(ValueError::Empty { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(cpus in prop::collection::hash_set(0..CpuSet::LIMIT, 1..40)) {
            let list = CpuList(cpus.into_iter().collect());
            prop_assert_eq!(list.to_string().parse(), Ok(list));
        }

        #[test]
        fn no_text_panics_and_no_list_is_empty_or_names_a_cpu_twice(text in "[0-9,:-]{0,12}|.{0,12}") {
            if let Ok(affinity) = text.parse::<Affinity>() {
                for list in affinity.lists() {
                    prop_assert!(list.len() >= 1);
                    prop_assert_eq!(list.to_set().iter().count(), list.len());
                }
            }
        }
    }
}
