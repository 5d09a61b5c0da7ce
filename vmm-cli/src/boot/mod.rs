//! Boot: puts a kernel, its initrd and its command line into guest RAM and says where the first vCPU starts.
//!
//! Two protocols, told apart by the content of the kernel image, never by its name:
//!
//! - **PVH**: an ELF file, 32- or 64-bit, with the note `XEN_ELFNOTE_PHYS32_ENTRY`. The vCPU starts in 32-bit
//!   protected mode without paging, ebx = `hvm_start_info` (Xen `docs/misc/pvh.pandoc` and
//!   `include/public/arch-x86/hvm/start_info.h`).
//! - **Linux64**: an ELF64 file without that note. The vCPU starts in long mode on identity-mapped page tables,
//!   rsi = `boot_params` (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
//!
//! Loading is two steps. A plan reads the headers, checks every field against the file and the RAM map, and gives
//! each thing its range of RAM; ranges never overlap. Only then is guest memory written, each planned range once.
//! Two promises follow from the disjoint ranges: no write leaves RAM, and nothing writes the part of a segment that
//! is not in the file (`p_memsz > p_filesz`, the BSS). Guest RAM is fresh anonymous memory at every load, a restart
//! included, so the BSS reads as zero without touching, and paying for, its pages.
//!
//! linux-loader lends its structures but not its ELF loader: that one takes ELF64 only, does not bound `p_memsz`,
//! accepts overlapping segments and entry points outside RAM, and cuts an 8-byte PVH entry to 4.

mod cmdline;
mod elf;
mod format;
mod image;
mod linux64;
mod note;
mod place;
mod pvh;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use vmm_vcpu::x86_64::BootRegs;

pub use cmdline::CmdlineError;
pub use elf::ElfError;
pub use image::{Image, OpenError, ReadError};
pub use note::NoteError;
pub use place::{Occupant, PlaceError};

use elf::EntryPoint;
use format::Format;
use place::Layout;

/// What a range of guest-physical addresses is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum E820Kind {
    /// Usable RAM.
    Ram,
    /// Not for the guest to use.
    Reserved,
}

impl E820Kind {
    /// The type number; `start_info.h` took it over from e820.
    const fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// One entry of the memory map that the guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes, not zero.
    pub size: u64,
    /// What the range is.
    pub kind: E820Kind,
}

/// What is to be booted.
#[derive(Debug)]
pub struct BootSource<'a> {
    /// The kernel.
    pub kernel: Image<'a>,
    /// The initial RAM disk; PVH passes it as the only module.
    pub initrd: Option<Image<'a>>,
    /// The kernel command line: printable ASCII, at most 2047 bytes, without a NUL.
    pub cmdline: &'a str,
}

/// What a load would do, as `check` reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The entry state that [`load`] would give.
    pub entry: BootRegs,
    /// From the first to the last byte of the kernel's segments, gaps and BSS included.
    pub kernel: Range<u64>,
    /// The bytes of the initrd.
    pub initrd: Option<Range<u64>>,
}

/// Why a guest cannot be loaded. The command line, the images and the amount of RAM are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The memory map is not one that a guest can be given.
    #[error("the guest's memory map")]
    Map(#[source] PlaceError),
    /// The command line cannot be handed to a kernel.
    #[error("the kernel command line")]
    Cmdline(#[from] CmdlineError),
    /// An image could not be read.
    #[error("{image}")]
    Read {
        /// Name of the image.
        image: String,
        /// What happened.
        source: ReadError,
    },
    /// The kernel is not an ELF file.
    #[error("kernel {image} is {found}; this version boots ELF kernels (vmlinux) only")]
    Format {
        /// Name of the image.
        image: String,
        /// What it is instead.
        found: String,
    },
    /// The kernel is an ELF file that cannot be loaded.
    #[error("kernel {image}")]
    Kernel {
        /// Name of the image.
        image: String,
        /// The field at fault.
        source: ElfError,
    },
    /// The initrd has no place in RAM.
    #[error("initrd {image}")]
    Initrd {
        /// Name of the image.
        image: String,
        /// Why it has none.
        source: PlaceError,
    },
    /// The structures of the boot protocol have no place in RAM.
    #[error("the structures of the boot protocol")]
    Structures(#[source] PlaceError),
    /// Guest memory lacks a range that the memory map calls RAM.
    #[error("guest memory at {address:#x}")]
    Memory {
        /// The guest-physical address of the structure that was being written.
        address: u64,
        /// What the access met.
        source: GuestMemoryError,
    },
}

/// Loads `source` into `memory`.
///
/// `map` is the memory map that the guest is given: all writes stay inside its RAM entries, which `memory` must
/// cover and which must read as zero. The images are read only now; each may be loaded again for a restart.
///
/// # Errors
///
/// [`BootError`]; guest memory is written only when everything but the images' contents has been checked.
pub fn load<M>(memory: &M, map: &[E820Entry], source: &BootSource<'_>) -> Result<BootRegs, BootError>
where
    M: GuestMemory + ?Sized,
{
    let plan = Plan::new(map, source)?;
    plan.write(memory, source)?;
    Ok(plan.prepared.entry)
}

/// Makes every check of [`load`] without guest memory.
///
/// # Errors
///
/// [`BootError`], as [`load`] would give it.
pub fn inspect(map: &[E820Entry], source: &BootSource<'_>) -> Result<Inspection, BootError> {
    let plan = Plan::new(map, source)?;
    Ok(Inspection { entry: plan.prepared.entry, kernel: plan.kernel.span(), initrd: plan.prepared.initrd })
}

/// Bytes with their guest-physical address.
#[derive(Debug)]
struct Blob {
    address: u64,
    bytes: Vec<u8>,
}

/// What a protocol adds to the kernel's segments.
#[derive(Debug)]
struct Prepared {
    entry: BootRegs,
    blobs: Vec<Blob>,
    initrd: Option<Range<u64>>,
}

/// What a protocol has to hand to the kernel.
#[derive(Debug)]
struct Request<'a> {
    map: &'a [E820Entry],
    /// With its NUL.
    cmdline: Vec<u8>,
    initrd: Option<&'a Image<'a>>,
}

impl Request<'_> {
    /// Places the initrd, if there is one, as high as possible below `below`.
    fn place_initrd(&self, layout: &mut Layout, below: u64) -> Result<Option<Range<u64>>, BootError> {
        self.initrd
            .map(|image| {
                layout
                    .highest(image.len(), below, Occupant::Initrd)
                    .map_err(|source| BootError::Initrd { image: image.name().to_owned(), source })
            })
            .transpose()
    }
}

/// Every range that a load writes, and the entry state.
#[derive(Debug)]
struct Plan {
    kernel: elf::Kernel,
    prepared: Prepared,
}

impl Plan {
    fn new(map: &[E820Entry], source: &BootSource<'_>) -> Result<Self, BootError> {
        let mut layout = Layout::new(map).map_err(BootError::Map)?;
        let request =
            Request { map, cmdline: cmdline::terminated(source.cmdline)?, initrd: source.initrd.as_ref() };
        let image = || source.kernel.name().to_owned();
        match format::sniff(&source.kernel).map_err(|source| BootError::Read { image: image(), source })? {
            Format::Elf => {}
            Format::Other(found) => {
                return Err(BootError::Format { image: image(), found });
            }
        }
        let kernel = elf::parse(&source.kernel)
            .and_then(|kernel| kernel.claim(&mut layout).map(|()| kernel))
            .map_err(|source| BootError::Kernel { image: image(), source })?;
        let prepared = match kernel.entry {
            EntryPoint::Pvh(entry) => pvh::prepare(entry, &mut layout, &request)?,
            EntryPoint::Linux64(entry) => linux64::prepare(entry, &mut layout, &request)?,
        };
        Ok(Self { kernel, prepared })
    }

    fn write<M>(&self, memory: &M, source: &BootSource<'_>) -> Result<(), BootError>
    where
        M: GuestMemory + ?Sized,
    {
        for segment in &self.kernel.segments {
            copy(&source.kernel, segment.file.clone(), memory, segment.memory.start)?;
        }
        if let (Some(image), Some(range)) = (&source.initrd, &self.prepared.initrd) {
            copy(image, 0..image.len(), memory, range.start)?;
        }
        for Blob { address, bytes } in &self.prepared.blobs {
            memory
                .write_slice(bytes, GuestAddress(*address))
                .map_err(|source| BootError::Memory { address: *address, source })?;
        }
        Ok(())
    }
}

/// Copies a range of an image to a guest-physical address.
fn copy<M>(image: &Image<'_>, file: Range<u64>, memory: &M, address: u64) -> Result<(), BootError>
where
    M: GuestMemory + ?Sized,
{
    image
        .copy_to(file, memory, address)
        .map_err(|source| BootError::Read { image: image.name().to_owned(), source })
}
