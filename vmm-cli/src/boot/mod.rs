//! Boot: puts a kernel, its initrd and its command line into guest RAM and says where the first vCPU starts.
//!
//! Three protocols, chosen by the content of the kernel's file, never by its name:
//!
//! - **PVH**: an ELF file, 32- or 64-bit, with the note `XEN_ELFNOTE_PHYS32_ENTRY`. The vCPU starts in 32-bit
//!   protected mode without paging, ebx = `hvm_start_info` (Xen `docs/misc/pvh.pandoc` and
//!   `include/public/arch-x86/hvm/start_info.h`).
//! - **Multiboot** 1: a file with a Multiboot header and without that note, ELF or not. The same mode, eax = the magic
//!   number, ebx = the Multiboot information (Multiboot Specification 0.6.96).
//! - **Linux64**: a bzImage, or an ELF64 file with neither. The vCPU starts in long mode on identity-mapped page
//!   tables, rsi = `boot_params` (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
//!
//! Loading is two steps. A plan reads the headers, checks every field against the file and the RAM map, and gives
//! each thing its range of RAM; ranges never overlap. Only then is guest memory written, each planned range once.
//! Two promises follow from the disjoint ranges: no write leaves RAM, and nothing writes the part of a segment that
//! is not in the file (`p_memsz > p_filesz`, the BSS). Guest RAM is fresh anonymous memory at every load, a restart
//! included, so the BSS reads as zero without touching, and paying for, its pages.
//!
//! linux-loader lends its structures but not its loaders. That for ELF takes ELF64 only, does not bound `p_memsz`,
//! accepts overlapping segments and entry points outside RAM, and cuts an 8-byte PVH entry to 4; that for bzImage takes
//! kernels without a 64-bit entry and ignores `init_size`.

mod bzimage;
mod cmdline;
mod elf;
mod format;
mod image;
mod kernel;
mod linux64;
mod multiboot;
mod note;
mod place;
mod pvh;
mod setup_header;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod zero_page;

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use vmm_vcpu::x86_64::BootRegs;

pub use bzimage::BzImageError;
pub use cmdline::CmdlineError;
pub use elf::ElfError;
pub use image::{Image, OpenError, ReadError};
pub use kernel::KernelError;
pub use multiboot::MultibootError;
pub use note::NoteError;
pub use place::{Occupant, PlaceError};

use format::Format;
use kernel::{EntryPoint, Kernel, Segment};
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

/// The machine as a kernel is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Platform<'a> {
    /// The memory map, at most 128 entries.
    pub map: &'a [E820Entry],
    /// Guest-physical address of the ACPI root pointer (RSDP). Multiboot has no field for it: such a kernel finds it by
    /// the scan of 0xe0000 to 0xfffff that the ACPI specification describes.
    pub rsdp: Option<u64>,
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
    /// The bytes of the initrd.
    pub initrd: Option<Range<u64>>,
    /// Every range that is taken, by address: the kernel's segments with their BSS, the protocol's structures, the
    /// initrd.
    pub taken: Vec<Range<u64>>,
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
    /// The kernel is in no format that can be booted.
    #[error(
        "kernel {image} is {found}; it must be a bzImage (vmlinuz), an ELF file (vmlinux) or have a Multiboot header"
    )]
    Format {
        /// Name of the image.
        image: String,
        /// What it is instead.
        found: String,
    },
    /// The kernel cannot be loaded.
    #[error("kernel {image}")]
    Kernel {
        /// Name of the image.
        image: String,
        /// The field at fault.
        source: KernelError,
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
/// All writes stay inside the RAM entries of `platform`'s memory map, which `memory` must cover and which must read as
/// zero. The images are read only now; each may be loaded again for a restart.
///
/// # Errors
///
/// [`BootError`]; guest memory is written only when everything but the images' contents has been checked.
pub fn load<M>(memory: &M, platform: &Platform<'_>, source: &BootSource<'_>) -> Result<BootRegs, BootError>
where
    M: GuestMemory + ?Sized,
{
    let plan = Plan::new(platform, source)?;
    plan.write(memory, source)?;
    Ok(plan.prepared.entry)
}

/// Makes every check of [`load`] without guest memory.
///
/// # Errors
///
/// [`BootError`], as [`load`] would give it.
pub fn inspect(platform: &Platform<'_>, source: &BootSource<'_>) -> Result<Inspection, BootError> {
    let plan = Plan::new(platform, source)?;
    let mut taken: Vec<_> = plan.segments.into_iter().map(|segment| segment.memory).collect();
    taken.extend(plan.prepared.blobs.iter().map(|blob| blob.address..blob.address + blob.bytes.len() as u64));
    taken.extend(plan.prepared.initrd.clone());
    taken.sort_unstable_by_key(|range| range.start);
    Ok(Inspection { entry: plan.prepared.entry, initrd: plan.prepared.initrd, taken })
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
    platform: &'a Platform<'a>,
    /// With its NUL.
    cmdline: Vec<u8>,
    initrd: Option<&'a Image<'a>>,
}

impl Request<'_> {
    /// Places the initrd, if there is one, by its size.
    fn place_initrd(
        &self,
        place: impl FnOnce(u64) -> Result<Range<u64>, PlaceError>,
    ) -> Result<Option<Range<u64>>, BootError> {
        self.initrd
            .map(|image| {
                place(image.len())
                    .map_err(|source| BootError::Initrd { image: image.name().to_owned(), source })
            })
            .transpose()
    }
}

/// Every range that a load writes, and the entry state.
#[derive(Debug)]
struct Plan {
    segments: Vec<Segment>,
    prepared: Prepared,
}

impl Plan {
    fn new(platform: &Platform<'_>, source: &BootSource<'_>) -> Result<Self, BootError> {
        let mut layout = Layout::new(platform.map).map_err(BootError::Map)?;
        let request = Request {
            platform,
            cmdline: cmdline::terminated(source.cmdline)?,
            initrd: source.initrd.as_ref(),
        };
        let Kernel { segments, entry } = kernel(&source.kernel, &mut layout)?;
        let prepared = match entry {
            EntryPoint::Pvh(entry) => pvh::prepare(entry, &mut layout, &request)?,
            EntryPoint::Multiboot(entry) => multiboot::prepare(entry, &mut layout, &request)?,
            EntryPoint::Linux64 { entry, header } => linux64::prepare(entry, header, &mut layout, &request)?,
        };
        Ok(Self { segments, prepared })
    }

    fn write<M>(&self, memory: &M, source: &BootSource<'_>) -> Result<(), BootError>
    where
        M: GuestMemory + ?Sized,
    {
        for segment in &self.segments {
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

/// Reads the headers of a kernel of any format and takes its RAM.
fn kernel(image: &Image<'_>, layout: &mut Layout) -> Result<Kernel, BootError> {
    let name = || image.name().to_owned();
    let parsed = match format::sniff(image).map_err(|source| BootError::Read { image: name(), source })? {
        Format::BzImage => bzimage::load(image, layout).map_err(KernelError::from),
        Format::Elf => elf::parse(image).map_err(KernelError::from).and_then(|kernel| kernel.claim(layout)),
        Format::Other(found) => match multiboot::flat(image) {
            Ok(Some(kernel)) => kernel.claim(layout),
            Ok(None) => return Err(BootError::Format { image: name(), found }),
            Err(error) => Err(error.into()),
        },
    };
    parsed.map_err(|source| BootError::Kernel { image: name(), source })
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
