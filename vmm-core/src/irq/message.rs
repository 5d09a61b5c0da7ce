//! `MsiMessage`: the memory write that is a message-signalled interrupt, and the form in which KVM takes it.

/// Address and data of a message-signalled interrupt, as a guest writes them into a vector or an I/O APIC entry (Intel SDM,
/// volume 3, 11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the message is written: the destination is in it.
    pub address: u64,
    /// What is written: vector, delivery and trigger mode.
    pub data: u32,
}

/// Bits 11..5 of the address: bits 14..8 of the destination, in the form that hypervisors agreed on ("extended destination
/// id", `KVM_FEATURE_MSI_EXT_DEST_ID` in the kernel's `Documentation/virt/kvm/x86/cpuid.rst`).
const EXTENDED_DESTINATION: u64 = 0x7f << 5;

impl MsiMessage {
    /// The message with bits 14..8 of its destination where KVM looks for them: bits 46..40 of the address
    /// (`KVM_CAP_X2APIC_API`). A message without an extended destination stays as it is.
    #[must_use]
    pub fn with_wide_destination(self) -> Self {
        let extended = (self.address & EXTENDED_DESTINATION) << 35;
        Self { address: self.address & !EXTENDED_DESTINATION | extended, ..self }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_upper_bits_of_a_destination_move_to_the_upper_half_of_the_address() {
        // Destination 0x12c: 0x2c in bits 19..12, 1 in bits 11..5.
        let message = MsiMessage { address: 0xfee2_c020, data: 0x51 };
        let wide = MsiMessage { address: 0x100_fee2_c000, data: 0x51 };
        assert_eq!(message.with_wide_destination(), wide);
        let short = MsiMessage { address: 0xfeef_f00c, data: 0x51 };
        assert_eq!(short.with_wide_destination(), short);
    }
}
