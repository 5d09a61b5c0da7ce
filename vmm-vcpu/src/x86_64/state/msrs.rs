//! MSRs: which are saved, in which order they are restored, and what KVM does with a list that has one it refuses.

use std::collections::BTreeMap;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error;

/// A model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// The most entries of one ioctl: one fewer than the limit, which KVM refuses too (`msr_io`, `nmsrs >= MAX_IO_MSRS`).
const CHUNK: usize = KVM_MAX_MSR_ENTRIES - 1;

/// MSRs that a guest can write and that `KVM_GET_MSR_INDEX_LIST` does not have: memory types, machine checks
/// (`KVM_MAX_MCE_BANKS` banks), and the control of debug facilities. Numbers by the Intel SDM, volume 4.
fn unlisted() -> impl Iterator<Item = u32> {
    const MCE_BANKS: u32 = 32;
    const MTRR_VARIABLE: std::ops::RangeInclusive<u32> = 0x200..=0x20f;
    const MTRR_FIXED: [u32; 11] =
        [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const DEBUGCTL: u32 = 0x1d9;
    const MC0_CTL2: u32 = 0x280;
    const MC0_CTL: u32 = 0x400;
    MTRR_VARIABLE
        .chain(MTRR_FIXED)
        .chain([MTRR_DEF_TYPE, DEBUGCTL])
        .chain(MC0_CTL2..MC0_CTL2 + MCE_BANKS)
        .chain(MC0_CTL..MC0_CTL + 4 * MCE_BANKS)
}

/// The MSRs to save, where the host's KVM lists `listed`.
pub(super) fn to_save(listed: Vec<u32>) -> Vec<u32> {
    let mut indices = listed;
    indices.extend(unlisted());
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// What of `saved` has to be written where the MSRs are `current`, in an order in which it can be.
///
/// An MSR that has its value already is left alone: some cannot be written at all, and KVM makes state for the Hyper-V
/// ones, whatever is written. One that is not known here counts as 0, the value that KVM gives one that it lists and
/// the guest does not have.
///
/// `TSC_DEADLINE` is last: KVM compares it with the TSC when it is written.
pub(super) fn to_restore(saved: &[Msr], current: &[Msr]) -> Vec<Msr> {
    let current: BTreeMap<u32, u64> = current.iter().map(|msr| (msr.index, msr.value)).collect();
    let now = |index| current.get(&index).copied().unwrap_or(0);
    let mut msrs: Vec<_> = saved.iter().filter(|msr| msr.value != now(msr.index)).copied().collect();
    msrs.sort_by_key(|msr| msr.index == IA32_TSC_DEADLINE);
    msrs
}

/// Reads the MSRs `indices` of `vcpu`; leaves out those that KVM refuses to read.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, Error> {
    read_by(indices, |chunk| {
        let mut list = entries(chunk.iter().map(|&index| Msr { index, value: 0 }))?;
        let count = vcpu.get_msrs(&mut list)?;
        let read = list.as_slice().iter().take(count);
        Ok(read.map(|entry| Msr { index: entry.index, value: entry.data }).collect())
    })
}

/// Writes `msrs` to `vcpu`, in order. `Some`: the one that KVM refuses.
pub(super) fn write(vcpu: &VcpuFd, msrs: &[Msr]) -> Result<Option<Msr>, Error> {
    for chunk in msrs.chunks(CHUNK) {
        let count = vcpu.set_msrs(&entries(chunk.iter().copied())?)?;
        if let Some(refused) = chunk.get(count) {
            return Ok(Some(*refused));
        }
    }
    Ok(None)
}

fn entries(msrs: impl Iterator<Item = Msr>) -> Result<Msrs, Error> {
    let entries: Vec<_> =
        msrs.map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|_| Error::new(libc::E2BIG))
}

/// Reads in chunks that one ioctl takes. `read` gives the MSRs up to the first that it cannot read, as KVM does.
fn read_by(
    indices: &[u32],
    mut read: impl FnMut(&[u32]) -> Result<Vec<Msr>, Error>,
) -> Result<Vec<Msr>, Error> {
    let mut msrs = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = rest.get(..CHUNK).unwrap_or(rest);
        let part = read(chunk)?;
        let refused = usize::from(part.len() < chunk.len());
        rest = rest.get(part.len() + refused..).unwrap_or_default();
        msrs.extend(part);
    }
    Ok(msrs)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IA32_TSC: u32 = 0x10;

    fn msr(index: u32, value: u64) -> Msr {
        Msr { index, value }
    }

    /// Reads as KVM does, where the MSRs `refused` cannot be read; the value of an MSR is its number.
    fn read_without(indices: &[u32], refused: &[u32]) -> (Vec<u32>, usize) {
        let mut calls = 0;
        let msrs = read_by(indices, |chunk| {
            assert!(chunk.len() <= CHUNK);
            calls += 1;
            let good = chunk.iter().take_while(|index| !refused.contains(index));
            Ok(good.map(|&index| msr(index, index.into())).collect())
        });
        (msrs.unwrap().iter().map(|msr| msr.index).collect(), calls)
    }

    #[test]
    fn an_msr_that_cannot_be_read_is_left_out_wherever_it_is() {
        for (refused, left) in [(&[1][..], &[2, 3, 4][..]), (&[2, 3], &[1, 4]), (&[4], &[1, 2, 3])] {
            assert_eq!(read_without(&[1, 2, 3, 4], refused).0, left);
        }
        assert_eq!(read_without(&[1, 2], &[1, 2]), (vec![], 2));
    }

    #[test]
    fn a_long_list_is_read_in_chunks() {
        let indices: Vec<u32> = (0..600).collect();
        assert_eq!(read_without(&indices, &[]), (indices, 3));
    }

    #[test]
    fn every_msr_is_saved_once() {
        let indices = to_save(vec![0x2ff, IA32_TSC, 0xc000_0081]);
        assert!(indices.windows(2).all(|pair| pair[0] < pair[1]));
        assert!([IA32_TSC, 0x2ff, 0x47f].iter().all(|index| indices.contains(index)));
    }

    #[test]
    fn only_what_differs_is_restored_and_an_unknown_msr_is_0() {
        let saved = [msr(1, 5), msr(2, 6), msr(3, 0), msr(4, 7)];
        assert_eq!(to_restore(&saved, &[msr(1, 5), msr(2, 0)]), [msr(2, 6), msr(4, 7)]);
    }

    #[test]
    fn a_deadline_of_0_stays_0() {
        let saved = [msr(IA32_TSC_DEADLINE, 0), msr(IA32_TSC, 1000)];
        assert_eq!(to_restore(&saved, &[msr(IA32_TSC_DEADLINE, 0)]), [msr(IA32_TSC, 1000)]);
    }

    proptest! {
        #[test]
        fn fault_e5_the_tsc_is_restored_before_its_deadline(
            before in proptest::collection::vec(any::<u32>(), 0..8),
            between in proptest::collection::vec(any::<u32>(), 0..8),
            deadline_first: bool,
        ) {
            let (first, last) =
                if deadline_first { (IA32_TSC_DEADLINE, IA32_TSC) } else { (IA32_TSC, IA32_TSC_DEADLINE) };
            let order = before.into_iter().chain([first]).chain(between).chain([last]);
            let saved: Vec<_> = order.map(|index| msr(index, 1)).collect();
            let restored = to_restore(&saved, &[]);
            prop_assert_eq!(restored.len(), saved.len());
            let last_tsc = restored.iter().rposition(|msr| msr.index == IA32_TSC);
            let deadline = restored.iter().position(|msr| msr.index == IA32_TSC_DEADLINE);
            prop_assert!(last_tsc < deadline, "{restored:x?}");
        }
    }
}
