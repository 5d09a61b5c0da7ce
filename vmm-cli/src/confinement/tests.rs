//! The tables as programs of the kernel's filter machine: what they permit and refuse, instruction by instruction.

use seccompiler::BpfProgram;
use vmm_core::thread::{Call, Condition, Kind};

use super::filters::program;
use super::kinds;
use crate::config::Seccomp;

/// What the kernel shows a filter (`struct seccomp_data`).
#[derive(Clone, Copy, Debug)]
struct Asked {
    number: i64,
    arguments: [u64; 6],
}

/// `AUDIT_ARCH_X86_64` and that of 32-bit programs.
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
/// `SECCOMP_RET_ALLOW`, `SECCOMP_RET_TRAP`, `SECCOMP_RET_LOG`, `SECCOMP_RET_KILL_PROCESS`.
const ALLOW: u32 = 0x7fff_0000;
const TRAP: u32 = 0x0003_0000;
const LOG: u32 = 0x7ffc_0000;
const KILL: u32 = 0x8000_0000;

impl Asked {
    fn word(&self, architecture: u32, offset: u32) -> u32 {
        let half = |value: u64, low: bool| (if low { value } else { value >> 32 }) as u32;
        match offset {
            0 => self.number as u32,
            4 => architecture,
            16.. => half(self.arguments[(offset as usize - 16) / 8], offset.is_multiple_of(8)),
            // The address of the instruction.
            _ => 0,
        }
    }

    /// Runs `program` as the kernel does: classic BPF, of which seccompiler uses these instructions.
    fn judged_by(&self, program: &BpfProgram, architecture: u32) -> u32 {
        let (mut at, mut value) = (0, 0_u32);
        loop {
            let instruction = &program[at];
            let k = instruction.k;
            let jump = |yes: bool| 1 + usize::from(if yes { instruction.jt } else { instruction.jf });
            at += match instruction.code {
                0x20 => {
                    value = self.word(architecture, k);
                    1
                }
                0x54 => {
                    value &= k;
                    1
                }
                0x05 => 1 + k as usize,
                0x15 => jump(value == k),
                0x25 => jump(value > k),
                0x35 => jump(value >= k),
                0x06 => return k,
                other => panic!("no such instruction here: {other:#x}"),
            };
        }
    }
}

/// The arguments with which `call` is as its table has it.
fn fitting(call: &Call) -> Asked {
    let mut arguments = [0; 6];
    for condition in call.conditions.iter().flatten() {
        match *condition {
            Condition::Is { argument, value } => arguments[usize::from(argument)] = u64::from(value),
            Condition::Without { argument, bits } => arguments[usize::from(argument)] = !bits,
        }
    }
    Asked { number: call.number, arguments }
}

/// The same with one condition broken after the other.
fn perturbed(call: &Call) -> impl Iterator<Item = Asked> {
    let fitting = fitting(call);
    call.conditions.iter().flatten().flat_map(move |condition| {
        let with = |argument: u8, value: u64| {
            let mut asked = fitting;
            asked.arguments[usize::from(argument)] = value;
            asked
        };
        match *condition {
            Condition::Is { argument, value } => {
                let value = u64::from(value);
                vec![with(argument, value ^ 1), with(argument, value ^ 1 << 31), with(argument, !value)]
            }
            Condition::Without { argument, bits } => {
                let bits = (0..64).map(|bit| 1 << bit).filter(|bit| bits & bit != 0);
                bits.map(|bit| with(argument, bit)).collect()
            }
        }
    })
}

/// Whether `calls` permit what is asked, by reading the table.
fn permitted(calls: &[Call], asked: &Asked) -> bool {
    let holds = |condition: &Condition| match *condition {
        Condition::Is { argument, value } => asked.arguments[usize::from(argument)] as u32 == value,
        Condition::Without { argument, bits } => asked.arguments[usize::from(argument)] & bits == 0,
    };
    calls.iter().any(|call| call.number == asked.number && call.conditions.iter().flatten().all(holds))
}

fn each_kind(mut check: impl FnMut(&'static Kind, &[Call], &BpfProgram)) {
    for &kind in kinds::ALL {
        let calls = kinds::calls(kind);
        check(kind, &calls, &program(&calls, Seccomp::On).unwrap());
    }
}

#[test]
fn what_a_table_has_is_permitted_and_everything_beside_it_is_not() {
    let mut refused = 0;
    each_kind(|kind, calls, program| {
        for call in calls {
            let asked = fitting(call);
            assert_eq!(asked.judged_by(program, X86_64), ALLOW, "{}: {asked:?}", kind.name);
            for asked in perturbed(call) {
                let expected = if permitted(calls, &asked) { ALLOW } else { TRAP };
                refused += usize::from(expected == TRAP);
                assert_eq!(asked.judged_by(program, X86_64), expected, "{}: {asked:?}", kind.name);
            }
        }
    });
    assert!(refused > 100, "hardly anything was refused: {refused}");
}

#[test]
fn every_other_system_call_is_refused() {
    each_kind(|kind, calls, program| {
        for number in (0..600).filter(|number| calls.iter().all(|call| call.number != *number)) {
            let asked = Asked { number, arguments: [0; 6] };
            assert_eq!(asked.judged_by(program, X86_64), TRAP, "{}: {asked:?}", kind.name);
        }
    });
}

#[test]
fn calls_of_another_architecture_end_the_process() {
    // The same numbers are other calls there.
    each_kind(|kind, calls, program| {
        let asked = fitting(&calls[0]);
        assert_eq!(asked.judged_by(program, I386), KILL, "{}", kind.name);
        let x32 = Asked { number: 0x4000_0000 | calls[0].number, ..asked };
        assert_eq!(x32.judged_by(program, X86_64), TRAP, "{}", kind.name);
    });
}

#[test]
fn what_is_only_logged_is_permitted_too() {
    let calls = kinds::calls(kinds::ALL[0]);
    let program = program(&calls, Seccomp::Log).unwrap();
    let asked = Asked { number: libc::SYS_execve, arguments: [0; 6] };
    assert_eq!(asked.judged_by(&program, X86_64), LOG);
    assert_eq!(fitting(&calls[0]).judged_by(&program, X86_64), ALLOW);
}

#[test]
fn every_table_is_of_calls_that_a_program_may_need_and_fits_a_filter() {
    each_kind(|kind, _, program| {
        // BPF_MAXINSNS
        assert!(program.len() < 4096, "{}: {} instructions", kind.name, program.len());
    });
    let mut names: Vec<_> = kinds::ALL.iter().map(|kind| kind.name).collect();
    names.sort_unstable();
    // A vCPU has one table in a machine, and one in a probe.
    names.dedup();
    assert_eq!(names.len(), kinds::ALL.len() - 1);
}
