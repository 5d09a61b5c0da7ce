//! The section `[cpu]`: the guest's processors, and what they get of the host's.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use thiserror::Error;
use vmm_core::DisabledExits;
use vmm_vcpu::Scheduler;

use super::affinity::{self, Affinity, CpuList};
use super::choice::{self, Kick};
use super::value::{self, ValueError, split_number};
use super::{keys, scheduler};

pub(super) const EXPECTED_EXITS: &str = "names of \"hlt\", \"pause\", \"cstate\", \"mwait\" (in a file an array, as a flag with commas between, or none)";
pub(super) const EXPECTED_NANOSECONDS: &str = "a whole number of nanoseconds from 0 to 4294967295";

/// What no exits are called in a flag.
const NO_EXITS: &str = "none";

/// The section `[cpu]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuConfig {
    /// Number of vCPUs, 1 to 254.
    #[serde(deserialize_with = "value::cpus")]
    pub count: u8,
    /// How they are interrupted.
    #[serde(deserialize_with = "choice::deserialize")]
    pub kick: Kick,
    /// Host CPUs that the vCPUs may run on; `None` is those of the monitor.
    #[serde(deserialize_with = "affinity::deserialize")]
    pub affinity: Option<Affinity>,
    /// Whether each vCPU has a host CPU of its own, which no other thread of the monitor uses.
    pub dedicated: bool,
    /// Instructions that do not take a vCPU out of the guest; `None` leaves it to [`CpuConfig::exits`].
    #[serde(deserialize_with = "exits")]
    pub disable_exits: Option<DisabledExits>,
    /// Longest time for which KVM polls for work when a vCPU halts; `None` leaves it to [`CpuConfig::halt_poll`].
    #[serde(deserialize_with = "halt_poll")]
    pub halt_poll_ns: Option<u32>,
    /// Whether the guest is told that its vCPUs are never taken off their host CPUs.
    pub realtime_hint: bool,
    /// Scheduling policy of the vCPUs' threads; `None` is that of the monitor.
    #[serde(deserialize_with = "scheduler::deserialize")]
    pub scheduler: Option<Scheduler>,
    /// Whether vCPUs may have a realtime policy although a halt does not make them give up their host CPUs.
    pub monopolize_cpus: bool,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self {
            count: 1,
            kick: Kick::default(),
            affinity: None,
            dedicated: false,
            disable_exits: None,
            halt_poll_ns: None,
            realtime_hint: false,
            scheduler: None,
            monopolize_cpus: false,
        }
    }
}

/// Settings of `[cpu]` that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum CpuError {
    #[error(
        "{}: there are {lists} lists for {vcpus} vCPUs; write one for each, or one for all",
        flag("affinity")
    )]
    Lists { lists: usize, vcpus: u8 },
    #[error(
        "{} needs {}: name a host CPU for each vCPU, such as affinity = \"{}\"",
        flag("dedicated"),
        flag("affinity"),
        example(*vcpus)
    )]
    NoAffinity { vcpus: u8 },
    #[error(
        "{}: the host CPUs {list} are fewer than {vcpus} vCPUs; with {} each vCPU has one of its own",
        flag("affinity"),
        flag("dedicated")
    )]
    TooFew { list: CpuList, vcpus: u8 },
    #[error(
        "{}: vCPU {vcpu} has the host CPUs {list}; with {} it has one of its own",
        flag("affinity"),
        flag("dedicated")
    )]
    Several { vcpu: usize, list: CpuList },
    #[error(
        "{}: host CPU {cpu} is given to vCPU {one} and to vCPU {other}; with {} each has one of its own",
        flag("affinity"),
        flag("dedicated")
    )]
    Shared { cpu: usize, one: usize, other: usize },
    #[error(
        "{} = {}: while HLT exits are disabled ({}), a vCPU never gives its host CPU back, and with this policy \
         nothing else runs there, kernel threads included, until the host hangs; leave hlt out of {}, or take the \
         risk by {} = true",
        flag("scheduler"),
        scheduler::render(*scheduler),
        flag(because),
        flag("disable_exits"),
        flag("monopolize_cpus")
    )]
    Monopoly { scheduler: Scheduler, because: &'static str },
}

/// `cpu.name (--flag)`.
fn flag(name: &str) -> String {
    keys::with_flag(&format!("cpu.{name}"))
}

/// As many CPUs as there are vCPUs, the first of the host left alone.
fn example(vcpus: u8) -> String {
    CpuList::new((1..=usize::from(vcpus)).collect::<Vec<_>>())
        .map_or_else(String::new, |list| list.to_string())
}

impl CpuConfig {
    /// What dedicated vCPUs do without an exit, where the host offers it, unless something else is configured.
    const DEDICATED_EXITS: [DisabledExits; 2] = [DisabledExits::HLT, DisabledExits::PAUSE];

    /// Instructions that shall not take a vCPU out of the guest: as configured, otherwise `HLT` and `PAUSE` of dedicated
    /// vCPUs, as far as the host offers them.
    pub fn exits(&self) -> DisabledExits {
        let default = || Self::DEDICATED_EXITS.into_iter().filter(|_| self.dedicated).collect();
        self.disable_exits.unwrap_or_else(default)
    }

    /// The limit of halt polling in nanoseconds: as configured, otherwise none of dedicated vCPUs, and of others the host's.
    pub fn halt_poll(&self) -> Option<u32> {
        self.halt_poll_ns.or(self.dedicated.then_some(0))
    }

    /// The host CPUs of each vCPU, as validation has made sure there are; nothing if they are those of the monitor.
    pub fn cpus_of_each(&self) -> Option<Vec<CpuList>> {
        let count = usize::from(self.count);
        Some(match self.affinity.as_ref()? {
            Affinity::All(list) if self.dedicated => {
                list.iter().take(count).filter_map(|cpu| CpuList::new([cpu])).collect()
            }
            Affinity::All(list) => vec![list.clone(); count],
            Affinity::Each(lists) => lists.clone(),
        })
    }

    /// Checks what no single value shows.
    pub(super) fn validate(&self) -> Result<(), CpuError> {
        self.validate_affinity()?;
        match self.scheduler {
            Some(scheduler)
                if scheduler.is_realtime()
                    && self.exits().contains(DisabledExits::HLT)
                    && !self.monopolize_cpus =>
            {
                let because = if self.disable_exits.is_some() { "disable_exits" } else { "dedicated" };
                Err(CpuError::Monopoly { scheduler, because })
            }
            _ => Ok(()),
        }
    }

    fn validate_affinity(&self) -> Result<(), CpuError> {
        let vcpus = self.count;
        match &self.affinity {
            Some(Affinity::Each(lists)) if lists.len() != usize::from(vcpus) => {
                Err(CpuError::Lists { lists: lists.len(), vcpus })
            }
            _ if !self.dedicated => Ok(()),
            None => Err(CpuError::NoAffinity { vcpus }),
            Some(Affinity::All(list)) if list.len() < usize::from(vcpus) => {
                Err(CpuError::TooFew { list: list.clone(), vcpus })
            }
            Some(Affinity::All(_)) => Ok(()),
            Some(Affinity::Each(lists)) => one_of_its_own(lists),
        }
    }
}

/// Each of `lists` has one CPU, and no other has it.
fn one_of_its_own(lists: &[CpuList]) -> Result<(), CpuError> {
    for (vcpu, list) in lists.iter().enumerate() {
        if list.len() > 1 {
            return Err(CpuError::Several { vcpu, list: list.clone() });
        }
        if let (Some(one), Some(cpu)) =
            (lists[..vcpu].iter().position(|other| other == list), list.iter().next())
        {
            return Err(CpuError::Shared { cpu, one, other: vcpu });
        }
    }
    Ok(())
}

/// Reads names with commas between, or `none`.
///
/// # Errors
///
/// [`ValueError::NotOneOf`] with the first name that is not known, and those that are.
pub fn parse_exits(text: &str) -> Result<DisabledExits, ValueError> {
    if text == NO_EXITS {
        return Ok(DisabledExits::NONE);
    }
    text.split(',').map(|name| exit(name.trim())).collect()
}

fn exit(name: &str) -> Result<DisabledExits, ValueError> {
    DisabledExits::named(name).ok_or_else(|| {
        let permitted = DisabledExits::ALL.map(|(name, _)| name).join(", ");
        ValueError::NotOneOf { value: name.to_owned(), permitted }
    })
}

/// Reads a number of nanoseconds that fits in 32 bits.
///
/// # Errors
///
/// [`ValueError`] if `text` is anything else.
pub fn parse_halt_poll(text: &str) -> Result<u32, ValueError> {
    let value = || text.to_owned();
    let (digits, unit) = split_number(text, EXPECTED_NANOSECONDS)?;
    if !unit.is_empty() {
        return Err(ValueError::Malformed { value: value(), expected: EXPECTED_NANOSECONDS });
    }
    // Only digits: `parse` can fail by overflow alone.
    digits.parse().map_err(|_| ValueError::AboveLimit { value: value(), limit: "4294967295 (32 bits)" })
}

/// Deserializes names from an array; a key that is present is always `Some`.
fn exits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DisabledExits>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names.iter().map(|name| exit(name)).collect::<Result<_, _>>().map(Some).map_err(D::Error::custom)
}

/// Deserializes [`parse_halt_poll`]'s number from an integer.
fn halt_poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = i64::deserialize(deserializer)?.to_string();
    parse_halt_poll(&text).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(count: u8, affinity: &str, dedicated: bool) -> CpuConfig {
        let affinity = (!affinity.is_empty()).then(|| affinity.parse().unwrap());
        CpuConfig { count, affinity, dedicated, ..Default::default() }
    }

    fn lists(config: &CpuConfig) -> Vec<String> {
        config.validate().unwrap();
        config.cpus_of_each().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn vcpus_share_a_list_or_have_their_own() {
        assert_eq!(with(2, "", false).cpus_of_each(), None);
        assert_eq!(lists(&with(2, "2-5", false)), ["2-5", "2-5"]);
        assert_eq!(lists(&with(2, "2:4-5", false)), ["2", "4-5"]);
        assert_eq!(lists(&with(2, "2:2", false)), ["2", "2"]);
    }

    #[test]
    fn dedicated_cpus_are_given_out_in_the_order_of_the_list() {
        assert_eq!(lists(&with(2, "6,2-4", true)), ["6", "2"]);
        assert_eq!(lists(&with(2, "6:2", true)), ["6", "2"]);
    }

    #[test]
    fn vcpus_that_cannot_have_a_cpu_of_their_own_are_refused_with_what_to_write() {
        for (config, message) in [
            (
                with(3, "1:2", false),
                "cpu.affinity (--affinity): there are 2 lists for 3 vCPUs; write one for each",
            ),
            (
                with(3, "", true),
                "cpu.dedicated (--dedicated) needs cpu.affinity (--affinity): name a host CPU for \
                 each vCPU, such as affinity = \"1-3\"",
            ),
            (
                with(3, "4-5", true),
                "cpu.affinity (--affinity): the host CPUs 4-5 are fewer than 3 vCPUs; with cpu.dedicated",
            ),
            (
                with(2, "1:2-3", true),
                "cpu.affinity (--affinity): vCPU 1 has the host CPUs 2-3; with cpu.dedicated",
            ),
            (
                with(3, "1:2:1", true),
                "cpu.affinity (--affinity): host CPU 1 is given to vCPU 0 and to vCPU 2; with",
            ),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn dedicated_vcpus_halt_without_an_exit_and_are_not_polled_for_unless_told_otherwise() {
        let shared = with(1, "", false);
        assert_eq!((shared.exits(), shared.halt_poll()), (DisabledExits::NONE, None));
        let dedicated = with(1, "1", true);
        assert_eq!(dedicated.exits(), DisabledExits::HLT | DisabledExits::PAUSE);
        assert_eq!(dedicated.halt_poll(), Some(0));
        let told = CpuConfig { disable_exits: Some(DisabledExits::NONE), halt_poll_ns: Some(7), ..dedicated };
        assert_eq!((told.exits(), told.halt_poll()), (DisabledExits::NONE, Some(7)));
    }

    #[test]
    fn a_realtime_policy_without_hlt_exits_needs_a_key_of_its_own() {
        let fifo = CpuConfig { scheduler: Some(Scheduler::Fifo(1)), ..with(1, "1", true) };
        let error = fifo.validate().unwrap_err().to_string();
        assert!(error.starts_with("cpu.scheduler (--scheduler) = fifo:1: "), "{error}");
        for word in ["hangs", "cpu.dedicated (--dedicated)", "cpu.monopolize_cpus (--monopolize-cpus) = true"]
        {
            assert!(error.contains(word), "{error}");
        }
        let named = CpuConfig { disable_exits: Some(DisabledExits::HLT), ..fifo.clone() };
        assert_eq!(
            named.validate(),
            Err(CpuError::Monopoly { scheduler: Scheduler::Fifo(1), because: "disable_exits" })
        );
        for harmless in [
            CpuConfig { monopolize_cpus: true, ..fifo.clone() },
            CpuConfig { disable_exits: Some(DisabledExits::PAUSE), ..fifo.clone() },
            CpuConfig { scheduler: Some(Scheduler::Batch), ..fifo.clone() },
            CpuConfig { dedicated: false, ..fifo },
        ] {
            assert_eq!(harmless.validate(), Ok(()), "{harmless:?}");
        }
    }

    #[test]
    fn exits_are_named_and_an_unknown_name_lists_them() {
        assert_eq!(parse_exits("hlt, mwait"), Ok(DisabledExits::HLT | DisabledExits::MWAIT));
        assert_eq!(parse_exits("none"), Ok(DisabledExits::NONE));
        for text in ["halt", "hlt,none", "", "HLT"] {
            let error = parse_exits(text).unwrap_err().to_string();
            assert!(error.ends_with(" is not one of hlt, pause, cstate, mwait"), "{error}");
        }
    }

    #[test]
    fn halt_polling_is_a_number_of_32_bits() {
        assert_eq!((parse_halt_poll("0"), parse_halt_poll("4294967295")), (Ok(0), Ok(u32::MAX)));
        for (text, message) in [
            ("4294967296", "4294967296 is above the limit of 4294967295 (32 bits)"),
            ("-1", "-1 is negative; expected a whole number of nanoseconds"),
            ("1ms", "1ms is not a whole number of nanoseconds"),
        ] {
            let error = parse_halt_poll(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
