//! `DisabledExits`: instructions of a guest that KVM is told to leave to the processor.

use std::fmt;
use std::ops::BitOr;

use kvm_bindings::{
    KVM_X86_DISABLE_EXITS_CSTATE, KVM_X86_DISABLE_EXITS_HLT, KVM_X86_DISABLE_EXITS_MWAIT,
    KVM_X86_DISABLE_EXITS_PAUSE,
};

/// A set of instructions that do not take a vCPU out of the guest (`KVM_CAP_X86_DISABLE_EXITS`).
///
/// Written as names with commas between, `hlt, pause`; the empty set is `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DisabledExits(u32);

impl DisabledExits {
    /// No instruction.
    pub const NONE: Self = Self(0);
    /// `HLT`: a vCPU that halts keeps its host CPU.
    pub const HLT: Self = Self(KVM_X86_DISABLE_EXITS_HLT);
    /// `PAUSE`: a vCPU that spins is not taken off its host CPU for another one.
    pub const PAUSE: Self = Self(KVM_X86_DISABLE_EXITS_PAUSE);
    /// Reads of the C-state residency counters (VMX only).
    pub const CSTATE: Self = Self(KVM_X86_DISABLE_EXITS_CSTATE);
    /// `MONITOR` and `MWAIT`: the guest puts its host CPU to sleep by itself.
    pub const MWAIT: Self = Self(KVM_X86_DISABLE_EXITS_MWAIT);

    /// Every instruction with its name.
    pub const ALL: [(&'static str, Self); 4] =
        [("hlt", Self::HLT), ("pause", Self::PAUSE), ("cstate", Self::CSTATE), ("mwait", Self::MWAIT)];

    /// Those of a mask of `KVM_X86_DISABLE_EXITS_*` that are known here.
    #[must_use]
    pub fn from_mask(mask: u32) -> Self {
        Self::ALL.into_iter().map(|(_, exit)| exit).filter(|exit| exit.0 & mask != 0).collect()
    }

    /// The mask of `KVM_X86_DISABLE_EXITS_*`.
    #[must_use]
    pub fn mask(self) -> u32 {
        self.0
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, exit)| exit)
    }

    /// The names of those in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().filter(move |(_, exit)| self.contains(*exit)).map(|(name, _)| name)
    }

    /// Whether every one of `other` is in the set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are in `other` too.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for DisabledExits {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Self> for DisabledExits {
    fn from_iter<I: IntoIterator<Item = Self>>(exits: I) -> Self {
        exits.into_iter().fold(Self::NONE, Self::bitor)
    }
}

impl fmt::Display for DisabledExits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.names().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_that_of_one_exit() {
        for (name, exit) in DisabledExits::ALL {
            assert_eq!(DisabledExits::named(name), Some(exit));
            assert_eq!(exit.to_string(), name);
            assert_eq!(exit.mask().count_ones(), 1, "{name}");
        }
        assert_eq!(DisabledExits::named("HLT"), None);
    }

    #[test]
    fn a_set_is_written_by_its_names_and_the_empty_one_has_a_word() {
        assert_eq!((DisabledExits::PAUSE | DisabledExits::HLT).to_string(), "hlt, pause");
        assert_eq!(DisabledExits::NONE.to_string(), "none");
    }

    #[test]
    fn a_bit_of_a_later_kernel_is_left_out() {
        let offered = DisabledExits::from_mask(0x8000_0000 | 0b0110);
        assert_eq!(offered, DisabledExits::HLT | DisabledExits::PAUSE);
        assert!(!offered.contains(DisabledExits::MWAIT | DisabledExits::HLT));
        assert_eq!(offered.without(DisabledExits::HLT), DisabledExits::PAUSE);
        assert_eq!(offered.and(DisabledExits::HLT | DisabledExits::MWAIT), DisabledExits::HLT);
    }
}
