//! The bzImage: its setup header checked, its kernel proper placed for the 64-bit entry.
//!
//! Linux `Documentation/arch/x86/boot.rst`. The setup code in front is for firmware and is left out; the kernel proper
//! unpacks itself inside the `init_size` bytes that are taken for it.

use std::ops::Range;

use super::image::{Image, ReadError};
use super::kernel::{EntryPoint, Kernel, Segment};
use super::linux64::MAPPED;
use super::place::{Layout, Occupant, PlaceError};
use super::setup_header::{self, BOOT_FLAG, SetupHeader, VERSION_64};

/// Protocol 2.06, the first that limits the command line.
const OLDEST: u16 = 0x0206;
/// Address after `init_size`, the last field that is looked at.
const LEAST_END: usize = 0x264;
const SECTOR: u64 = 512;
const PARAGRAPH: u64 = 16;
/// The 64-bit entry, from the load address.
const ENTRY: u64 = 0x200;
/// Load address of a kernel that prefers none.
const HIGH: u64 = 0x10_0000;

/// Why a bzImage cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[from] ReadError),
    /// The file ends inside the setup header.
    #[error(
        "the file has {length:#x} bytes, too few for the setup header, which ends at {:#x}",
        setup_header::END
    )]
    Truncated {
        /// Length of the file.
        length: u64,
    },
    /// The boot sector is not one.
    #[error("boot_flag is {found:#06x}; it must be {BOOT_FLAG:#06x}")]
    BootFlag {
        /// `boot_flag`.
        found: u16,
    },
    /// Too old.
    #[error("the boot protocol is {}; it must be {} or newer", Version(*found), Version(OLDEST))]
    Version {
        /// `version`.
        found: u16,
    },
    /// A kernel for 32-bit processors.
    #[error(
        "no 64-bit entry: XLF_KERNEL_64 is not set in xloadflags {xloadflags:#x} of boot protocol {}; a kernel for x86-64 \
         with boot protocol {} or newer is needed (CONFIG_64BIT)", Version(*version), Version(VERSION_64)
    )]
    No64BitEntry {
        /// `xloadflags`, 0 where the protocol has none.
        xloadflags: u16,
        /// `version`.
        version: u16,
    },
    /// A zImage.
    #[error(
        "LOADED_HIGH is not set in loadflags: this is a zImage, which runs below 1 MiB; a bzImage is needed"
    )]
    LoadedLow,
    /// The header is too short for the fields that are needed, or too long for `boot_params`.
    #[error(
        "the setup header ends at {end:#x} (byte at 0x201); it must end at {LEAST_END:#x} to {:#x}",
        setup_header::END
    )]
    HeaderEnd {
        /// Where it says that it ends.
        end: usize,
    },
    /// An alignment is no power of two that fits into 32 bits.
    #[error("kernel_alignment is {value:#x}; it must be a power of two")]
    Alignment {
        /// `kernel_alignment`.
        value: u32,
    },
    /// An alignment is beyond 32 bits.
    #[error("min_alignment is {exponent}; it must be at most 31")]
    MinAlignment {
        /// `min_alignment`.
        exponent: u8,
    },
    /// The file is shorter than its header says.
    #[error(
        "setup_sects {setup_sects} and syssize {syssize:#x} (in 16 bytes) put the end of the kernel at {end:#x}, past \
         the end of the file ({length:#x} bytes)"
    )]
    OutsideFile {
        /// `setup_sects`.
        setup_sects: u8,
        /// `syssize`.
        syssize: u32,
        /// Where the kernel would end in the file.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// There is no code at the entry.
    #[error("syssize is {syssize:#x} (in 16 bytes), which ends before the 64-bit entry at {ENTRY:#x}")]
    NoEntry {
        /// `syssize`.
        syssize: u32,
    },
    /// There is no RAM for the kernel.
    #[error(
        "needs {size:#x} bytes (init_size {init_size:#x}) at pref_address {preferred:#x}{}; the guest needs at least \
         {} MiB of memory", if *relocatable { " or above" } else { ", not relocatable" },
        preferred.saturating_add(*size).div_ceil(1 << 20)
    )]
    Place {
        /// `init_size`, or the bytes in the file where they are more.
        size: u64,
        /// `init_size`.
        init_size: u32,
        /// `pref_address`, or 1 MiB where it is 0.
        preferred: u64,
        /// Whether it can be elsewhere.
        relocatable: bool,
        /// Why it has no place.
        source: PlaceError,
    },
}

/// A version of the boot protocol as people write it.
struct Version(u16);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor] = self.0.to_be_bytes();
        write!(f, "{major}.{minor:02}")
    }
}

/// Checks `image` and takes RAM for its kernel.
pub(super) fn load(image: &Image<'_>, layout: &mut Layout) -> Result<Kernel, BzImageError> {
    let mut header = read_header(image)?;
    let file = code(image, &header)?;
    let memory = place(&mut header, file.end - file.start, layout)?;
    let entry = EntryPoint::Linux64 { entry: memory.start + ENTRY, header };
    Ok(Kernel { segments: vec![Segment { occupant: Occupant::Kernel, file, memory }], entry })
}

fn read_header(image: &Image<'_>) -> Result<SetupHeader, BzImageError> {
    if image.len() < setup_header::END as u64 {
        return Err(BzImageError::Truncated { length: image.len() });
    }
    let mut bytes = [0; setup_header::END - setup_header::START];
    image.read_at(setup_header::START as u64, &mut bytes)?;
    let mut header = SetupHeader::of_bzimage(bytes);
    let (found, version, end) = (header.boot_flag(), header.version(), header.end());
    if found != BOOT_FLAG {
        return Err(BzImageError::BootFlag { found });
    }
    if version < OLDEST {
        return Err(BzImageError::Version { found: version });
    }
    if !header.is_loaded_high() {
        return Err(BzImageError::LoadedLow);
    }
    if !header.has_64_bit_entry() {
        return Err(BzImageError::No64BitEntry { xloadflags: header.xloadflags(), version });
    }
    if !(LEAST_END..=setup_header::END).contains(&end) {
        return Err(BzImageError::HeaderEnd { end });
    }
    header.cut();
    Ok(header)
}

/// The kernel proper in the file. What follows it, such as a signature, is not loaded.
fn code(image: &Image<'_>, header: &SetupHeader) -> Result<Range<u64>, BzImageError> {
    let (setup_sects, syssize, length) = (header.setup_sects(), header.syssize(), image.len());
    let size = u64::from(syssize) * PARAGRAPH;
    if size <= ENTRY {
        return Err(BzImageError::NoEntry { syssize });
    }
    let start = (u64::from(setup_sects) + 1) * SECTOR;
    let end = start + size;
    if end > length {
        return Err(BzImageError::OutsideFile { setup_sects, syssize, end, length });
    }
    Ok(start..end)
}

/// Takes `pref_address`; where that is not to be had and the kernel is relocatable, the lowest suitable address above
/// it. Below it is no choice: there the kernel would move itself up to `pref_address`.
fn place(header: &mut SetupHeader, code: u64, layout: &mut Layout) -> Result<Range<u64>, BzImageError> {
    let (init_size, relocatable) = (header.init_size(), header.is_relocatable());
    let size = u64::from(init_size).max(code);
    let preferred = match header.pref_address() {
        0 => HIGH,
        address => address,
    };
    let (window, alignments) = if relocatable {
        (preferred..MAPPED, alignments(header)?)
    } else {
        (preferred..preferred.saturating_add(size).min(MAPPED), [1, 1])
    };
    let mut fit = |alignment: u32| {
        let memory = layout.lowest_in(&window, size, u64::from(alignment), Occupant::Kernel)?;
        Ok((memory, alignment))
    };
    let (memory, alignment) = fit(alignments[0])
        .or_else(|_| fit(alignments[1]))
        .map_err(|source| BzImageError::Place { size, init_size, preferred, relocatable, source })?;
    #[expect(clippy::cast_possible_truncation, reason = "the kernel is below MAPPED, which is 4 GiB")]
    header.set_load_address(memory.start as u32);
    if relocatable {
        header.set_kernel_alignment(alignment);
    }
    Ok(memory)
}

/// The preferred alignment and the least one.
fn alignments(header: &SetupHeader) -> Result<[u32; 2], BzImageError> {
    let (value, exponent) = (header.kernel_alignment(), header.min_alignment());
    if !value.is_power_of_two() {
        return Err(BzImageError::Alignment { value });
    }
    let least = match exponent {
        0 => value,
        1..=31 => value.min(1 << exponent),
        _ => return Err(BzImageError::MinAlignment { exponent }),
    };
    Ok([value, least])
}

#[cfg(test)]
mod tests;
