//! Test images: a small ELF writer, and guest memory that shows writes outside RAM.

#![expect(clippy::cast_possible_truncation, reason = "an ELF32 field keeps the lower half of a value")]

use elf::abi::{EM_386, EM_X86_64, ET_EXEC, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader};
use elf::segment::ProgramHeader;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{E820Entry, E820Kind, Platform};

/// Where the writer puts the first segment's bytes; the headers lie before it.
pub const DATA: usize = 0x200;

/// Where a Multiboot header is, behind the program headers.
pub const IN_FRONT: usize = 0x180;

/// An ELF file in the making. Tests change fields between adding segments and `build`.
#[derive(Clone)]
pub struct TestElf {
    pub header: FileHeader<LittleEndian>,
    pub programs: Vec<ProgramHeader>,
    data: Vec<u8>,
    /// What the file has at [`IN_FRONT`].
    in_front: Vec<u8>,
}

impl TestElf {
    pub fn new(class: Class) -> Self {
        let (e_machine, e_ehsize, e_phentsize) = match class {
            Class::ELF32 => (EM_386, 52, 32),
            Class::ELF64 => (EM_X86_64, 64, 56),
        };
        let header = FileHeader {
            class,
            endianness: LittleEndian,
            version: 1,
            osabi: 0,
            abiversion: 0,
            e_type: ET_EXEC,
            e_machine,
            e_entry: 0,
            e_phoff: u64::from(e_ehsize),
            e_shoff: 0,
            e_flags: 0,
            e_ehsize,
            e_phentsize,
            e_phnum: 0,
            e_shentsize: 0,
            e_shnum: 0,
            e_shstrndx: 0,
        };
        Self { header, programs: Vec::new(), data: Vec::new(), in_front: Vec::new() }
    }

    pub fn entry(mut self, entry: u64) -> Self {
        self.header.e_entry = entry;
        self
    }

    pub fn load(self, address: u64, bytes: &[u8], memory_size: u64) -> Self {
        self.program(PT_LOAD, address, bytes, memory_size)
    }

    /// Adds a `PT_NOTE` with one PVH note.
    pub fn pvh(self, descriptor: &[u8]) -> Self {
        let mut note = Vec::new();
        for word in [4, descriptor.len() as u32, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(descriptor);
        let size = note.len() as u64;
        self.program(PT_NOTE, 0, &note, size)
    }

    fn program(mut self, p_type: u32, address: u64, bytes: &[u8], memory_size: u64) -> Self {
        self.programs.push(ProgramHeader {
            p_type,
            p_offset: (DATA + self.data.len()) as u64,
            p_vaddr: address,
            p_paddr: address,
            p_filesz: bytes.len() as u64,
            p_memsz: memory_size,
            p_flags: 7,
            p_align: 4,
        });
        self.header.e_phnum += 1;
        self.data.extend(bytes);
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let wide = self.header.class == Class::ELF64;
        let FileHeader { e_entry, e_phoff, e_shoff, .. } = self.header;
        let mut file = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1, 0];
        file.resize(16, 0);
        file.extend(self.header.e_type.to_le_bytes());
        file.extend(self.header.e_machine.to_le_bytes());
        file.extend(self.header.version.to_le_bytes());
        for value in [e_entry, e_phoff, e_shoff] {
            push(&mut file, value, wide);
        }
        file.extend(self.header.e_flags.to_le_bytes());
        for value in [self.header.e_ehsize, self.header.e_phentsize, self.header.e_phnum, 0, 0, 0] {
            file.extend(value.to_le_bytes());
        }
        for program in &self.programs {
            let ProgramHeader { p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align, .. } = *program;
            file.extend(program.p_type.to_le_bytes());
            if wide {
                file.extend(program.p_flags.to_le_bytes());
            }
            for value in [p_offset, p_vaddr, p_paddr, p_filesz, p_memsz] {
                push(&mut file, value, wide);
            }
            if !wide {
                file.extend(program.p_flags.to_le_bytes());
            }
            push(&mut file, p_align, wide);
        }
        assert!(file.len() <= IN_FRONT, "too many program headers for this writer");
        file.resize(DATA, 0);
        put(&mut file, IN_FRONT, &self.in_front);
        file.extend(&self.data);
        file
    }
}

fn push(file: &mut Vec<u8>, value: u64, wide: bool) {
    if wide {
        file.extend(value.to_le_bytes());
    } else {
        file.extend((value as u32).to_le_bytes());
    }
}

/// The code of the sample kernels: recognisable, and not zero.
pub const CODE: [u8; 24] = *b"code of a sample kernel!";
pub const DATA_BYTES: [u8; 5] = *b"data!";

/// Code at 1 MiB, data with a BSS of two pages at 1 MiB + 16 KiB.
fn sample(class: Class) -> TestElf {
    TestElf::new(class).load(0x10_0000, &CODE, CODE.len() as u64).load(0x10_4000, &DATA_BYTES, 0x2000)
}

/// A kernel with a PVH note, entered 4 bytes into its code.
pub fn pvh_kernel(class: Class) -> TestElf {
    match class {
        Class::ELF32 => sample(class).pvh(&0x10_0004_u32.to_le_bytes()),
        Class::ELF64 => sample(class).pvh(&0x10_0004_u64.to_le_bytes()),
    }
}

/// A kernel without a note, entered 8 bytes into its code.
pub fn linux64_kernel() -> TestElf {
    sample(Class::ELF64).entry(0x10_0008)
}

/// Where the fields of the setup header are in a bzImage, as boot.rst has them.
pub mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP_LENGTH: usize = 0x201;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const MIN_ALIGNMENT: usize = 0x235;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// A bzImage in the making. Tests change its fields before they take its bytes.
#[derive(Clone)]
pub struct TestBzImage(pub Vec<u8>);

impl TestBzImage {
    /// Bytes of the kernel proper, the sample's code at its 64-bit entry.
    pub const CODE_SIZE: usize = 0x400;
    /// Where it starts in the file.
    pub const CODE: usize = 0x400;

    /// Protocol 2.15, relocatable, with a 64-bit entry; prefers 1 MiB and needs 32 KiB there.
    pub fn new() -> Self {
        let mut file = vec![0xcc; Self::CODE + Self::CODE_SIZE];
        file[0x1f1..0x268].fill(0);
        file[Self::CODE + 0x200..][..CODE.len()].copy_from_slice(&CODE);
        Self(file)
            .with(field::SETUP_SECTS, [1])
            .with(field::SYSSIZE, 0x40_u32.to_le_bytes())
            .with(field::BOOT_FLAG, [0x55, 0xaa, 0xeb, 0x6a])
            .with(field::HEADER, *b"HdrS\x0f\x02")
            .with(field::LOADFLAGS, [1])
            .with(field::CODE32_START, 0x10_0000_u32.to_le_bytes())
            .with(field::INITRD_ADDR_MAX, 0x7fff_ffff_u32.to_le_bytes())
            .with(field::KERNEL_ALIGNMENT, 0x1_0000_u32.to_le_bytes())
            .with(field::RELOCATABLE_KERNEL, [1, 12])
            .with(field::XLOADFLAGS, [3, 0])
            .with(field::CMDLINE_SIZE, 2047_u32.to_le_bytes())
            .with(field::PREF_ADDRESS, 0x10_0000_u64.to_le_bytes())
            .with(field::INIT_SIZE, 0x8000_u32.to_le_bytes())
    }

    pub fn with<const N: usize>(mut self, at: usize, bytes: [u8; N]) -> Self {
        self.0[at..at + N].copy_from_slice(&bytes);
        self
    }
}

/// A Multiboot header with a right checksum, and its address fields.
pub fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [&[magic, flags, checksum], addresses].concat().into_iter().flat_map(u32::to_le_bytes).collect()
}

/// The sample with a Multiboot header, to be entered 4 bytes into its code.
pub fn multiboot_kernel(class: Class, flags: u32) -> TestElf {
    let mut elf = sample(class).entry(0x10_0004);
    elf.in_front = multiboot_header(flags, &[]);
    elf
}

/// Overwrites bytes of a file.
pub fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The platform of `map`, without ACPI.
pub const fn platform(map: &[E820Entry]) -> Platform<'_> {
    Platform { map, rsdp: None }
}

pub const fn ram(start: u64, size: u64) -> E820Entry {
    E820Entry { start, size, kind: E820Kind::Ram }
}

pub const fn reserved(start: u64, size: u64) -> E820Entry {
    E820Entry { start, size, kind: E820Kind::Reserved }
}

/// Conventional memory less its last KiB, and 1 MiB from 1 MiB on.
pub const SMALL_MAP: [E820Entry; 3] =
    [ram(0, 0x9_fc00), reserved(0x9_fc00, 0x400), ram(0x10_0000, 0x10_0000)];

const CANARY: u8 = 0xa5;

/// Guest memory from 0 to a MiB past the end of `map`: zero in RAM, filled with a canary elsewhere.
pub struct Guest {
    pub memory: GuestMemoryMmap<()>,
    size: u64,
    /// Sorted by address.
    ram: Vec<E820Entry>,
}

impl Guest {
    pub fn new(map: &[E820Entry]) -> Self {
        let size = 0x10_0000 + map.iter().map(|entry| entry.start + entry.size).max().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
        let mut ram: Vec<_> = map.iter().filter(|entry| entry.kind == E820Kind::Ram).copied().collect();
        ram.sort_unstable_by_key(|entry| entry.start);
        let guest = Self { memory, size, ram };
        for (address, length) in guest.forbidden() {
            guest.memory.write_slice(&vec![CANARY; length], GuestAddress(address)).unwrap();
        }
        guest
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub fn u64(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn u32(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn only_ram_was_written(&self) -> bool {
        self.forbidden()
            .into_iter()
            .all(|(address, length)| self.bytes(address, length).iter().all(|byte| *byte == CANARY))
    }

    /// Start and length of what is not RAM.
    fn forbidden(&self) -> Vec<(u64, usize)> {
        let mut ranges = Vec::new();
        let mut next = 0;
        for E820Entry { start, size, .. } in &self.ram {
            ranges.push((next, (start - next) as usize));
            next = start + size;
        }
        ranges.push((next, (self.size - next) as usize));
        ranges
    }
}
