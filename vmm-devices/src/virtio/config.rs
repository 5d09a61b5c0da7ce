//! Reading the configuration of a device that is a run of bytes.

/// Copies what `config` has from `offset` on to `data`, which stays as it is beyond the end. Any offset and length.
pub fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
        *to = *from;
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn fault_b2_what_is_beyond_the_end_reads_as_zero() {
        let config = [1, 2, 3, 4];
        for (offset, expected) in [
            (0, [1, 2, 3, 4, 0, 0, 0, 0]),
            (3, [4, 0, 0, 0, 0, 0, 0, 0]),
            (4, [0; 8]),
            (5, [0; 8]),
            (u64::MAX, [0; 8]),
        ] {
            let mut data = [0; 8];
            read_config(&config, offset, &mut data);
            assert_eq!(data, expected, "offset {offset}");
        }
    }
}
