//! The kernel command line: checked, and ended with the NUL that kernels look for.

/// Longest command line in bytes, without its NUL: Linux keeps `COMMAND_LINE_SIZE` = 2048 bytes on x86.
const MAX_LENGTH: usize = 2047;

/// Why a command line cannot be handed to a kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Longer than a kernel keeps.
    #[error("is {length} bytes long; the limit is {MAX_LENGTH}")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// Longer than this kernel keeps.
    #[error("is {length} bytes long; the limit of this kernel is {limit} (cmdline_size)")]
    KernelLimit {
        /// Length in bytes.
        length: usize,
        /// `cmdline_size`.
        limit: u32,
    },
    /// A NUL would end it early, other bytes have no agreed meaning.
    #[error("has {found:?} at byte {at}; printable ASCII is allowed")]
    NotPrintable {
        /// The character.
        found: char,
        /// Its offset in bytes.
        at: usize,
    },
}

/// Checks `cmdline` and gives its bytes with the NUL.
pub(super) fn terminated(cmdline: &str) -> Result<Vec<u8>, CmdlineError> {
    if cmdline.len() > MAX_LENGTH {
        return Err(CmdlineError::TooLong { length: cmdline.len() });
    }
    if let Some((at, found)) = cmdline.char_indices().find(|(_, c)| !matches!(c, ' '..='~')) {
        return Err(CmdlineError::NotPrintable { found, at });
    }
    Ok([cmdline.as_bytes(), b"\0"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_gets_one_nul() {
        assert_eq!(terminated("console=ttyS0 quiet").unwrap(), b"console=ttyS0 quiet\0");
        assert_eq!(terminated("").unwrap(), b"\0");
    }

    #[test]
    fn fault_c8_the_longest_command_line_has_2047_bytes() {
        assert_eq!(terminated(&"a".repeat(2047)).unwrap().len(), 2048);
        assert_eq!(terminated(&"a".repeat(2048)), Err(CmdlineError::TooLong { length: 2048 }));
    }

    #[test]
    fn fault_c8_only_printable_ascii_is_taken() {
        for (text, found, at) in [("a\0b", '\0', 1), ("é", 'é', 0), ("ab\n", '\n', 2), ("\x7f", '\x7f', 0)]
        {
            assert_eq!(terminated(text), Err(CmdlineError::NotPrintable { found, at }), "{text:?}");
        }
    }
}
