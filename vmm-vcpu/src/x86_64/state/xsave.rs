//! The XSAVE area: fitting one host's length to another's.

/// `area` in `size` bytes. `None` if something is in the part that does not fit.
///
/// In the standard format each component has a fixed place, so a longer area differs in what follows only; what the
/// guest can have in there is decided by its CPUID table.
pub(super) fn fitted(area: &[u8], size: usize) -> Option<Vec<u8>> {
    let (kept, rest) = area.split_at(area.len().min(size));
    if rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    let mut fitted = kept.to_vec();
    fitted.resize(size, 0);
    Some(fitted)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_area_is_filled_up_with_zeros() {
        assert_eq!(fitted(&[1, 2], 4), Some(vec![1, 2, 0, 0]));
    }

    #[test]
    fn a_longer_area_fits_if_nothing_is_lost() {
        assert_eq!(fitted(&[1, 2, 0, 0], 2), Some(vec![1, 2]));
        assert_eq!(fitted(&[1, 2, 0, 3], 2), None);
    }
}
