//! The CPUID table of a vCPU: what the host's KVM supports, with the topology of this machine.
//!
//! One package, one thread a core, the APIC id is the vCPU's index. Leaves by the Intel SDM, volume 2A, "CPUID", and
//! the AMD APM, volume 3, appendix E.

use std::arch::x86_64::{__cpuid, __get_cpuid_max, CpuidResult};

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmm_core::{Capabilities, DisabledExits};

/// Why no CPUID table can be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// More leaves than KVM takes.
    #[error("a CPUID table of {0} entries is too long")]
    TooLong(usize),
}

/// The leaves that all vCPUs of a machine have in common.
#[derive(Clone, Debug)]
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

const MONITOR: u32 = 1 << 3; // leaf 1 ecx
const X2APIC: u32 = 1 << 21; // leaf 1 ecx
const TSC_DEADLINE: u32 = 1 << 24; // leaf 1 ecx
const HYPERVISOR: u32 = 1 << 31; // leaf 1 ecx
const HTT: u32 = 1 << 28; // leaf 1 edx

/// The leaf of C-states for `MWAIT`.
const MWAIT_LEAF: u32 = 5;
const MWAIT_EXTENSIONS: u32 = 1 << 0; // ecx: the leaf says more
const MWAIT_BREAKS_ON_INTERRUPT: u32 = 1 << 1; // ecx: interrupts that are masked wake up too

/// The leaf of KVM's own features (`Documentation/virt/kvm/x86/cpuid.rst`).
const KVM_LEAF: u32 = 0x4000_0001;
const PV_UNHALT: u32 = 1 << 7; // eax
const HINT_REALTIME: u32 = 1 << 0; // edx

/// Domain types of leaves 0xB and 0x1F.
const DOMAIN_THREAD: u32 = 1;
const DOMAIN_CORE: u32 = 2;

impl CpuidTemplate {
    /// Adapts what `KVM_GET_SUPPORTED_CPUID` gave to a machine of `vcpus` vCPUs.
    #[must_use]
    pub fn new(supported: &CpuId, capabilities: &Capabilities, vcpus: u32) -> Self {
        let mut entries: Vec<_> = supported
            .as_slice()
            .iter()
            .copied()
            // Rebuilt below: the host's own topology.
            .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
            .collect();
        let has_v2_topology = supported.as_slice().iter().any(|entry| entry.function == 0x1f);
        for entry in &mut entries {
            adapt(entry, capabilities, vcpus);
        }
        for leaf in [Some(0xb), has_v2_topology.then_some(0x1f)].into_iter().flatten() {
            entries.extend(topology_leaf(leaf, vcpus));
        }
        Self { entries, vcpus }
    }

    /// Tells the guest that messages and I/O APIC entries can have destinations of 15 bits (`KVM_FEATURE_MSI_EXT_DEST_ID`), for
    /// a machine whose routes are translated for that. Without it Linux starts no CPU whose APIC id is above 254.
    pub fn offer_extended_destinations(&mut self) {
        const EXTENDED_DESTINATIONS: u32 = 1 << 15;
        self.each(KVM_LEAF, |entry| entry.eax |= EXTENDED_DESTINATIONS);
    }

    /// Tells the guest what follows from `exits` that KVM leaves to the processor: with `mwait` it has `MONITOR` and `MWAIT`
    /// and the C-states of this host, with `hlt` no other vCPU can wake it by hypercall.
    pub fn leave_to_processor(&mut self, exits: DisabledExits) {
        if exits.contains(DisabledExits::MWAIT) {
            self.offer_mwait(host_leaf(MWAIT_LEAF));
        }
        if exits.contains(DisabledExits::HLT) {
            self.each(KVM_LEAF, |entry| entry.eax &= !PV_UNHALT);
        }
    }

    /// Tells the guest that its vCPUs are never taken off their host CPUs (`KVM_HINTS_REALTIME`), so that it spins where it
    /// would otherwise give way.
    pub fn hint_realtime(&mut self) {
        self.each(KVM_LEAF, |entry| entry.edx |= HINT_REALTIME);
    }

    fn offer_mwait(&mut self, states: CpuidResult) {
        let CpuidResult { eax, ebx, ecx, edx } = states;
        // An interrupt always wakes a vCPU, whatever the host's processor does by itself.
        let ecx = ecx | MWAIT_EXTENSIONS | MWAIT_BREAKS_ON_INTERRUPT;
        self.each(0, |entry| entry.eax = entry.eax.max(MWAIT_LEAF));
        self.each(1, |entry| entry.ecx |= MONITOR);
        self.entries.retain(|entry| entry.function != MWAIT_LEAF);
        self.entries.push(kvm_cpuid_entry2 {
            function: MWAIT_LEAF,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        });
    }

    fn each(&mut self, function: u32, change: impl FnMut(&mut kvm_cpuid_entry2)) {
        self.entries.iter_mut().filter(|entry| entry.function == function).for_each(change);
    }

    /// The table of vCPU `index`.
    pub fn for_vcpu(&self, index: u32) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | (index & 0xff) << 24,
                0xb | 0x1f => entry.edx = index,
                0x8000_001e => {
                    entry.eax = index;
                    entry.ebx = index & 0xff; // core id, one thread a core
                    entry.ecx = 0; // node 0 of one
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooLong(entries.len()))
    }

    /// Bits of a guest-physical address on this host (leaf `0x80000008`; 36 where there is none).
    #[must_use]
    pub fn physical_address_bits(&self) -> u32 {
        let sizes = self.entries.iter().find(|entry| entry.function == 0x8000_0008);
        sizes.map_or(36, |entry| entry.eax & 0xff)
    }

    /// How many vCPUs the topology describes.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }
}

/// Whether a vCPU with this table has `MONITOR` and `MWAIT`.
pub(crate) fn has_mwait(table: &CpuId) -> bool {
    table.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & MONITOR != 0)
}

/// What the host's processor says in `leaf`; nothing if it has no such leaf.
fn host_leaf(leaf: u32) -> CpuidResult {
    let (last, _) = __get_cpuid_max(0);
    if leaf <= last { __cpuid(leaf) } else { CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } }
}

/// Bits of an APIC id that tell `count` things apart.
fn id_bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

/// Changes what all vCPUs have in common in one leaf.
fn adapt(entry: &mut kvm_cpuid_entry2, capabilities: &Capabilities, vcpus: u32) {
    let ids = 1 << id_bits(vcpus);
    match entry.function {
        // The topology leaf must be in reach.
        0 => entry.eax = entry.eax.max(0xb),
        1 => {
            entry.ecx |= X2APIC | HYPERVISOR;
            if capabilities.tsc_deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.ebx = entry.ebx & 0xff00_ffff | u32::min(ids, 255) << 16;
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic cache parameters: eax 25..14 is the number of ids that share the cache less one, 31..26 (leaf
        // 4 only) the number of cores of the package less one.
        4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14 | u32::min(ids - 1, 63) << 26;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0xfc00_3fff | (sharing & 0xfff) << 14;
        }
        // ecx 7..0: cores of the package less one; 15..12: bits of the core id.
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | u32::min(vcpus - 1, 255) | id_bits(vcpus) << 12;
        }
        _ => {}
    }
}

/// The subleaves of an extended topology leaf: threads of a core, cores of the package, and the end.
fn topology_leaf(function: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    let subleaf = |index: u32, shift, count, domain: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | domain << 8,
        ..Default::default()
    };
    [subleaf(0, 0, 1, DOMAIN_THREAD), subleaf(1, id_bits(vcpus), vcpus, DOMAIN_CORE), subleaf(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABILITIES: Capabilities = Capabilities {
        max_vcpus: 1024,
        ioeventfd: true,
        immediate_exit: true,
        tsc_deadline_timer: true,
        kvmclock_ctrl: true,
        irqfd: true,
        irqfd_resample: true,
        irq_routes: 4096,
        split_irqchip: true,
        x2apic_destinations: true,
        binary_stats: true,
        disable_exits: DisabledExits::NONE,
        halt_poll: false,
        manual_dirty_log: None,
        dirty_ring: 0,
    };

    fn leaf(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn table(supported: &[kvm_cpuid_entry2], vcpus: u32, index: u32) -> Vec<kvm_cpuid_entry2> {
        let supported = CpuId::from_entries(supported).unwrap();
        let template = CpuidTemplate::new(&supported, &CAPABILITIES, vcpus);
        template.for_vcpu(index).unwrap().as_slice().to_vec()
    }

    fn find(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table.iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn leaf_1_carries_the_apic_id_and_the_number_of_ids() {
        let table = table(&[leaf(0, 0, 0xd), leaf(1, 0, 0)], 5, 3);
        let entry = find(&table, 1, 0);
        assert_eq!((entry.ebx >> 24, entry.ebx >> 16 & 0xff), (3, 8));
        assert_eq!(entry.ecx & (X2APIC | TSC_DEADLINE | HYPERVISOR), X2APIC | TSC_DEADLINE | HYPERVISOR);
        assert_eq!(entry.edx & HTT, HTT);
    }

    #[test]
    fn extended_destinations_are_a_feature_of_kvm() {
        let supported = CpuId::from_entries(&[leaf(0x4000_0001, 0, 1), leaf(1, 0, 0)]).unwrap();
        let mut template = CpuidTemplate::new(&supported, &CAPABILITIES, 300);
        template.offer_extended_destinations();
        let table = template.for_vcpu(299).unwrap().as_slice().to_vec();
        assert_eq!(find(&table, 0x4000_0001, 0).eax, 1 | 1 << 15);
        assert_eq!((find(&table, 1, 0).eax, find(&table, 1, 0).ebx >> 24), (0, 299 & 0xff));
        assert_eq!(find(&table, 0xb, 1).edx, 299);
    }

    #[test]
    fn one_vcpu_is_not_said_to_be_multithreaded() {
        let table = table(&[kvm_cpuid_entry2 { edx: HTT, ..leaf(1, 0, 0) }], 1, 0);
        assert_eq!(find(&table, 1, 0).edx & HTT, 0);
    }

    #[test]
    fn leaf_b_describes_one_package_of_single_threaded_cores() {
        let table = table(&[leaf(0, 0, 0x5), leaf(0xb, 0, 1)], 254, 253);
        assert_eq!(find(&table, 0, 0).eax, 0xb);
        let (thread, core) = (find(&table, 0xb, 0), find(&table, 0xb, 1));
        assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, 253));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (8, 254, 0x201, 253));
        assert_eq!(find(&table, 0xb, 2).ebx, 0);
        assert!(table.iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn leaf_1f_is_there_when_the_host_has_it() {
        let table = table(&[leaf(0x1f, 0, 0), leaf(0x1f, 1, 0)], 2, 1);
        assert_eq!(find(&table, 0x1f, 1).ebx, 2);
        assert_eq!(table.iter().filter(|entry| entry.function == 0x1f).count(), 3);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let cache = |level: u32| leaf(4, level, 1 | level << 5 | 0x3ff << 14);
        let table = table(&[cache(1), cache(3)], 4, 0);
        assert_eq!(find(&table, 4, 1).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&table, 4, 3).eax >> 14 & 0xfff, 3);
        assert_eq!(find(&table, 4, 3).eax >> 26, 3);
    }

    #[test]
    fn amd_leaves_count_the_same_cores() {
        let table = table(&[leaf(0x8000_0008, 0, 0x3030), leaf(0x8000_001e, 0, 9)], 6, 5);
        let sizes = find(&table, 0x8000_0008, 0);
        assert_eq!((sizes.ecx & 0xff, sizes.ecx >> 12 & 0xf), (5, 3));
        assert_eq!(find(&table, 0x8000_001e, 0).eax, 5);
    }

    #[test]
    fn a_guest_has_mwait_exactly_when_the_processor_has_it_to_itself() {
        let supported = CpuId::from_entries(&[leaf(0, 0, 1), leaf(1, 0, 0), leaf(5, 0, 0)]).unwrap();
        let mut template = CpuidTemplate::new(&supported, &CAPABILITIES, 1);
        assert!(!has_mwait(&template.for_vcpu(0).unwrap()));
        template.leave_to_processor(DisabledExits::HLT | DisabledExits::CSTATE);
        assert!(!has_mwait(&template.for_vcpu(0).unwrap()));
        template.offer_mwait(CpuidResult { eax: 64, ebx: 64, ecx: 0, edx: 0x20 });
        let table = template.for_vcpu(0).unwrap();
        assert!(has_mwait(&table));
        let states: Vec<_> = table.as_slice().iter().filter(|entry| entry.function == 5).collect();
        assert_eq!(states.len(), 1);
        assert_eq!((states[0].eax, states[0].ebx, states[0].ecx, states[0].edx), (64, 64, 0b11, 0x20));
    }

    #[test]
    fn hints_and_features_of_kvm_follow_what_is_left_to_the_processor() {
        let kvm = leaf(KVM_LEAF, 0, PV_UNHALT | 1);
        let supported = CpuId::from_entries(&[kvm]).unwrap();
        let mut template = CpuidTemplate::new(&supported, &CAPABILITIES, 2);
        template.leave_to_processor(DisabledExits::PAUSE);
        let shown = |template: &CpuidTemplate| {
            let entry = find(template.for_vcpu(1).unwrap().as_slice(), KVM_LEAF, 0);
            (entry.eax, entry.edx)
        };
        assert_eq!(shown(&template), (PV_UNHALT | 1, 0));
        template.leave_to_processor(DisabledExits::HLT);
        assert_eq!(shown(&template), (1, 0));
        template.hint_realtime();
        assert_eq!(shown(&template), (1, HINT_REALTIME));
    }
}
