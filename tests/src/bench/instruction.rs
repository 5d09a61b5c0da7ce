//! An instruction of the traced program: whether it is locked or a fence, and which memory it locks.

use std::ops::RangeInclusive;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use libc::user_regs_struct;

/// Longest x86 instruction in bytes.
pub const LONGEST: usize = 15;

/// Bytes of a cache line.
pub const LINE: u64 = 64;

/// What matters of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `int3`, between which the traced program wants to be counted.
    Marker,
    /// `mfence`, `lfence` or `sfence`.
    Fence,
    /// A read-modify-write that locks its memory operand: with a `lock` prefix, or an `xchg` with memory.
    Locked(MemoryAccess),
    /// Any other.
    Plain,
}

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    instruction: Instruction,
    operand: u32,
}

/// Decodes the 64-bit instruction `code`, which is at `address` and may be followed by others.
pub fn classify(code: &[u8], address: u64) -> Kind {
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    let operand = (0..instruction.op_count()).find(|&index| instruction.op_kind(index) == OpKind::Memory);
    match (instruction.mnemonic(), operand) {
        (Mnemonic::Int3, _) => Kind::Marker,
        (Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence, _) => Kind::Fence,
        (mnemonic, Some(operand)) if instruction.has_lock_prefix() || mnemonic == Mnemonic::Xchg => {
            Kind::Locked(MemoryAccess { instruction, operand })
        }
        _ => Kind::Plain,
    }
}

impl MemoryAccess {
    /// The numbers of the cache lines that are accessed when the instruction is executed with these registers;
    /// `None` for an address that is formed of others than the 64-bit ones.
    pub fn lines(&self, registers: &user_regs_struct) -> Option<RangeInclusive<u64>> {
        let address =
            self.instruction.virtual_address(self.operand, 0, |register, _, _| value(register, registers))?;
        let last = address.wrapping_add((self.instruction.memory_size().size() as u64).saturating_sub(1));
        Some(address / LINE..=last / LINE)
    }

    /// Whether the address is formed of the stack pointer and a constant. So is that of the instruction that
    /// compilers use as a full fence, `lock or dword ptr [rsp-64], 0`.
    pub fn is_on_stack(&self) -> bool {
        self.instruction.memory_base() == Register::RSP && self.instruction.memory_index() == Register::None
    }
}

/// The value of a register; of a segment register, its base.
fn value(register: Register, registers: &user_regs_struct) -> Option<u64> {
    Some(match register {
        Register::RAX => registers.rax,
        Register::RBX => registers.rbx,
        Register::RCX => registers.rcx,
        Register::RDX => registers.rdx,
        Register::RSI => registers.rsi,
        Register::RDI => registers.rdi,
        Register::RBP => registers.rbp,
        Register::RSP => registers.rsp,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
        Register::R12 => registers.r12,
        Register::R13 => registers.r13,
        Register::R14 => registers.r14,
        Register::R15 => registers.r15,
        Register::FS => registers.fs_base,
        Register::GS => registers.gs_base,
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers whose values are told apart by their digits.
    fn registers() -> user_regs_struct {
        user_regs_struct {
            r15: 0xf000,
            r14: 0xe000,
            r13: 0xd000,
            r12: 0xc000,
            rbp: 0x5000,
            rbx: 0x3000,
            r11: 0xb000,
            r10: 0xa000,
            r9: 0x9000,
            r8: 0x8000,
            rax: 0x1000,
            rcx: 0x10,
            rdx: 0x2000,
            rsi: 0x6000,
            rdi: 0x7000,
            orig_rax: 0,
            rip: 0x40_0000,
            cs: 0x33,
            eflags: 0,
            rsp: 0x4000,
            ss: 0x2b,
            fs_base: 0x10_0000,
            gs_base: 0x20_0000,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        }
    }

    /// The lines that `code` locks.
    fn locked(code: &[u8]) -> Option<RangeInclusive<u64>> {
        match classify(code, 0x40_0000) {
            Kind::Locked(access) => access.lines(&registers()),
            other => panic!("{code:x?}: {other:?}"),
        }
    }

    fn line(address: u64) -> Option<RangeInclusive<u64>> {
        Some(address / 64..=address / 64)
    }

    #[test]
    fn a_lock_prefix_and_an_exchange_with_memory_lock_what_they_address() {
        // lock xadd [rdi+rcx*8+8], eax
        assert_eq!(locked(&[0xf0, 0x0f, 0xc1, 0x44, 0xcf, 0x08]), line(0x7088));
        // lock cmpxchg [r14], rcx
        assert_eq!(locked(&[0xf0, 0x49, 0x0f, 0xb1, 0x0e]), line(0xe000));
        // xchg [rsi], eax
        assert_eq!(locked(&[0x87, 0x06]), line(0x6000));
    }

    #[test]
    fn a_fence_by_a_locked_instruction_is_locked_and_on_the_stack() {
        // lock or dword ptr [rsp-0x40], 0
        let fence = [0xf0, 0x83, 0x4c, 0x24, 0xc0, 0x00];
        assert_eq!(locked(&fence), line(0x3fc0));
        assert!(matches!(classify(&fence, 0), Kind::Locked(access) if access.is_on_stack()));
        // xchg [rsi], eax; lock inc dword ptr [rsp+rax]
        for other in [&[0x87, 0x06][..], &[0xf0, 0xff, 0x04, 0x04]] {
            assert!(matches!(classify(other, 0), Kind::Locked(access) if !access.is_on_stack()));
        }
    }

    #[test]
    fn addresses_may_be_relative_to_a_segment_or_to_the_instruction() {
        // lock inc dword ptr fs:[0x10]
        assert_eq!(locked(&[0xf0, 0x64, 0xff, 0x04, 0x25, 0x10, 0, 0, 0]), line(0x10_0010));
        // lock inc dword ptr [rip+0x100], 7 bytes long
        assert_eq!(locked(&[0xf0, 0xff, 0x05, 0x00, 0x01, 0, 0]), line(0x40_0107));
    }

    #[test]
    fn an_access_across_a_boundary_has_two_lines() {
        // lock inc qword ptr [rax+0x3c]
        assert_eq!(locked(&[0xf0, 0x48, 0xff, 0x40, 0x3c]), Some(0x40..=0x41));
        // lock inc dword ptr [rax+0x3c]
        assert_eq!(locked(&[0xf0, 0xff, 0x40, 0x3c]), Some(0x40..=0x40));
    }

    #[test]
    fn an_address_of_32_bits_is_not_guessed() {
        // lock inc dword ptr [eax]
        assert_eq!(locked(&[0x67, 0xf0, 0xff, 0x00]), None);
    }

    #[test]
    fn fences_and_markers_are_neither_locked_nor_plain() {
        assert_eq!(classify(&[0x0f, 0xae, 0xf0], 0), Kind::Fence);
        assert_eq!(classify(&[0xcc], 0), Kind::Marker);
    }

    #[test]
    fn an_exchange_of_registers_and_an_unlocked_change_of_memory_are_plain() {
        // xchg ebx, eax; xchg rbx, rcx; inc dword ptr [rax]; and no instruction at all.
        for code in [&[0x93][..], &[0x48, 0x87, 0xd9], &[0xff, 0x00], &[0x06], &[]] {
            assert_eq!(classify(code, 0), Kind::Plain, "{code:x?}");
        }
    }
}
