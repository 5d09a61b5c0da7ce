//! Images: kernels that are none are refused, with the field at fault.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{Finished, TestVm, guest};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        fault_c3_what_is_no_regular_file_is_refused,
        fault_c6_random_bytes_are_refused,
        fault_c6_a_truncated_kernel_is_refused_at_every_length,
        fault_c6_fields_that_overflow_are_refused_by_name,
        fault_c6_a_kernel_in_no_ram_is_refused,
        fault_c8_an_initrd_that_does_not_fit_is_refused,
        fault_c8_a_command_line_out_of_range_is_refused,
    ]
}

/// Offsets in an ELF64 header and in a program header, and the numbers that tell segments apart.
const E_ENTRY: usize = 0x18;
const E_PHOFF: usize = 0x20;
const E_PHENTSIZE: usize = 0x36;
const E_PHNUM: usize = 0x38;
const P_OFFSET: usize = 0x08;
const P_PADDR: usize = 0x18;
const P_FILESZ: usize = 0x20;
const P_MEMSZ: usize = 0x28;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;

/// A guest program, to be spoilt.
#[derive(Clone)]
struct Elf(Vec<u8>);

impl Elf {
    fn of(name: &str) -> Result<Self> {
        Ok(Self(fs::read(guest(name))?))
    }

    fn field(&self, at: usize, width: usize) -> Result<u64> {
        let mut value = [0; 8];
        value[..width].copy_from_slice(self.0.get(at..at + width).context("a short file")?);
        Ok(u64::from_le_bytes(value))
    }

    fn with(mut self, at: usize, value: &[u8]) -> Result<Self> {
        self.0.get_mut(at..at + value.len()).context("a short file")?.copy_from_slice(value);
        Ok(self)
    }

    /// Where the first program header of this type is.
    fn header(&self, kind: u64) -> Result<usize> {
        let first = usize::try_from(self.field(E_PHOFF, 8)?)?;
        let count = usize::try_from(self.field(E_PHNUM, 2)?)?;
        for at in (first..).step_by(PROGRAM_HEADER).take(count) {
            if self.field(at, 4)? == kind {
                return Ok(at);
            }
        }
        anyhow::bail!("no program header of type {kind}")
    }

    /// The length that holds everything that is loaded.
    fn needed(&self) -> Result<usize> {
        let first = usize::try_from(self.field(E_PHOFF, 8)?)?;
        let count = usize::try_from(self.field(E_PHNUM, 2)?)?;
        let mut needed = first + count * PROGRAM_HEADER;
        for at in (first..).step_by(PROGRAM_HEADER).take(count) {
            if self.field(at + P_FILESZ, 8)? != 0 {
                let end = self.field(at + P_OFFSET, 8)? + self.field(at + P_FILESZ, 8)?;
                needed = needed.max(usize::try_from(end)?);
            }
        }
        Ok(needed)
    }
}

/// Files with the names that trials give them.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.0.path().join(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }
}

fn run(kernel: &Path) -> Result<Finished> {
    TestVm::bare().arg("--kernel").arg(kernel).run()
}

fn fault_c3_what_is_no_regular_file_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let fifo = scratch.0.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let missing = scratch.0.path().join("missing");
    for (path, words) in [
        (scratch.file("empty", b"")?.as_path(), "empty"),
        (scratch.0.path(), "directory"),
        (&fifo, "FIFO"),
        (Path::new("/dev/zero"), "device"),
        (&missing, "No such file"),
    ] {
        let name = path.display().to_string();
        run(path)?.ensure_code(2)?.ensure_message(&[words, &name])?;
        let initrd = TestVm::guest("bench_reset").arg("--initrd").arg(path).run()?;
        initrd.ensure_code(2)?.ensure_message(&[words, &name])?;
    }
    Ok(())
}

fn fault_c6_random_bytes_are_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..50 {
        let mut bytes = vec![0; 1 + round * 97];
        for byte in &mut bytes {
            // xorshift64: another file each round, the same ones each run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32) as u8;
        }
        run(&scratch.file("random", &bytes)?)?.ensure_code(2)?.ensure_message(&["random"])?;
        // Nonsense that says that it is ELF.
        let words = [b"\x7fELF\x02\x01\x01".as_slice(), &bytes].concat();
        run(&scratch.file("nonsense", &words)?)?.ensure_code(2)?.ensure_message(&["nonsense"])?;
    }
    Ok(())
}

fn fault_c6_a_truncated_kernel_is_refused_at_every_length() -> Result<()> {
    let scratch = Scratch::new()?;
    let elf = Elf::of("boot_pvh")?;
    let needed = elf.needed()?;
    let steps = (1..=256).chain((256..needed).step_by(61)).chain([needed - 1]);
    for length in steps {
        let vm = run(&scratch.file("short", &elf.0[..length])?)?;
        vm.ensure_code(2)
            .with_context(|| format!("{length} of {needed} bytes"))?
            .ensure_message(&["short"])?;
    }
    // Section headers and symbols are not needed.
    run(&scratch.file("whole", &elf.0[..needed])?)?.ensure_code(0)?;
    Ok(())
}

fn fault_c6_fields_that_overflow_are_refused_by_name() -> Result<()> {
    let scratch = Scratch::new()?;
    let elf = Elf::of("boot_pvh")?;
    let (load, note) = (elf.header(PT_LOAD)?, elf.header(PT_NOTE)?);
    let notes = usize::try_from(elf.field(note + P_OFFSET, 8)?)?;
    let max = u64::MAX.to_le_bytes();
    let half = (1_u64 << 62).to_le_bytes();
    let cases: [(&str, usize, &[u8]); 13] = [
        ("e_phoff", E_PHOFF, &max),
        ("e_phoff", E_PHOFF, &(elf.0.len() as u64).to_le_bytes()),
        ("e_phnum", E_PHNUM, &[0xff, 0xff]),
        ("e_phentsize", E_PHENTSIZE, &[0xff, 0xff]),
        ("p_offset", load + P_OFFSET, &max),
        ("p_filesz", load + P_FILESZ, &half),
        ("p_memsz", load + P_MEMSZ, &half),
        ("p_memsz", load + P_MEMSZ, &max),
        ("p_paddr", load + P_PADDR, &max),
        ("n_namesz", notes, &[0xff; 4]),
        ("n_descsz", notes + 4, &[0xff; 4]),
        ("XEN_ELFNOTE_PHYS32_ENTRY", notes + 16, &[0xff; 4]),
        ("p_filesz", note + P_FILESZ, &half),
    ];
    for (field, at, value) in cases {
        let vm = run(&scratch.file("spoilt", &elf.clone().with(at, value)?.0)?)?;
        let spoilt = || format!("{field} at {at:#x} is {value:x?}");
        vm.ensure_code(2).with_context(spoilt)?.ensure_message(&[field]).with_context(spoilt)?;
    }
    let elf = Elf::of("boot_linux64")?.with(E_ENTRY, &half)?;
    run(&scratch.file("entry", &elf.0)?)?.ensure_code(2)?.ensure_message(&["e_entry"])?;
    Ok(())
}

fn fault_c6_a_kernel_in_no_ram_is_refused() -> Result<()> {
    // Linked at 2 MiB.
    let vm = TestVm::guest("boot_pvh").args("--memory 1M").run()?;
    vm.ensure_code(2)?.ensure_message(&["p_paddr 0x200000", "RAM"])?;
    Ok(())
}

fn fault_c8_an_initrd_that_does_not_fit_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let initrd = scratch.0.path().join("huge");
    fs::File::create(&initrd)?.set_len(1 << 30)?;
    let vm = TestVm::guest("bench_reset").arg("--initrd").arg(&initrd).run()?;
    vm.ensure_code(2)?.ensure_message(&["initrd", "huge", "no free RAM"])?;
    Ok(())
}

fn fault_c8_a_command_line_out_of_range_is_refused() -> Result<()> {
    TestVm::guest("bench_reset").cmdline(&"x".repeat(2047)).run()?.ensure_code(0)?;
    for (text, words) in [("x".repeat(2048), "2047"), ("caf\u{e9}".into(), "ASCII"), ("a\nb".into(), "ASCII")]
    {
        TestVm::guest("bench_reset")
            .cmdline(&text)
            .run()?
            .ensure_code(2)?
            .ensure_message(&["--cmdline", words])?;
    }
    let vm = TestVm::guest("bench_reset").cmdline("").run()?;
    ensure!(vm.status.success(), "an empty command line is refused: {}", vm.stderr);
    Ok(())
}
