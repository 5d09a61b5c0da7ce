//! The report of a guest that cannot go on: reason, vCPU, registers, instruction bytes, and a hint where one is known.

use std::fmt::Write;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};
use vmm_memory::AddressSpace;
use vmm_vcpu::{Vcpu, VcpuEnd};

use crate::host;

/// Longest x86 instruction in bytes.
const INSTRUCTION: usize = 15;
const PAGE: usize = 4096;

/// For a guest whose instruction was there and yet could not be executed.
const NO_HARDWARE_HINT: &str = "\n  \
    hint: this host's KVM works without VMX or SVM, so kernel code of the guest is interpreted by KVM's\n  \
    instruction emulator, which lacks many instructions (most SSE, BMI2, …). Stock kernels do not run here;\n  \
    use a host with hardware virtualization.";

/// For a triple fault whose registers are those of a reset.
const RESET_HINT: &str = "\n  \
    hint: on this host (SVM) a triple fault loses the guest's registers: these are the values after a reset";

/// Base of the code segment and instruction pointer of a processor that was just reset.
const RESET_STATE: (u64, u64) = (0xffff_0000, 0xfff0);

/// What KVM's internal errors are called (`include/uapi/linux/kvm.h`).
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "KVM cannot emulate an instruction",
        2 => "KVM met a second exception while it delivered one",
        3 => "KVM was interrupted while it delivered an event",
        4 => "KVM met an exit of the processor that it does not know",
        _ => "KVM gave up for a reason that it does not name",
    }
}

/// One line that says why the guest ended.
fn reason(end: &VcpuEnd) -> String {
    match end {
        VcpuEnd::TripleFault => "triple fault".into(),
        VcpuEnd::FailEntry { reason, cpu } => {
            format!("the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})")
        }
        VcpuEnd::InternalError { suberror, data } => {
            format!("{} (internal error {suberror}, {:#x} {:#x})", suberror_name(*suberror), data[0], data[1])
        }
        VcpuEnd::UnexpectedExit(number) => format!("KVM exit {number}, which nothing here handles"),
        VcpuEnd::RunFailed(error) => format!("KVM_RUN failed: {error}"),
        VcpuEnd::Panicked(message) => format!("its thread panicked: {message}"),
        VcpuEnd::Stopped => "stopped".into(),
    }
}

/// The whole report, several lines without a closing newline.
pub(super) fn report(vcpu: &Vcpu, end: &VcpuEnd, memory: &AddressSpace) -> String {
    let mut text = format!("vCPU {}: {}", vcpu.index(), reason(end));
    match (vcpu.regs(), vcpu.sregs()) {
        (Ok(regs), Ok(sregs)) => {
            append_registers(&mut text, &regs, &sregs);
            let fetched = append_instruction(&mut text, vcpu, &regs, &sregs, memory);
            if fetched && matches!(end, VcpuEnd::InternalError { .. }) && !host::has_hardware_virtualization()
            {
                text.push_str(NO_HARDWARE_HINT);
            }
            if matches!(end, VcpuEnd::TripleFault) && (sregs.cs.base, regs.rip) == RESET_STATE {
                text.push_str(RESET_HINT);
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            append(&mut text, format_args!("\n  registers unavailable: {error}"));
        }
    }
    text
}

/// Formatting into a `String` cannot fail.
fn append(text: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(line);
}

fn append_registers(text: &mut String, r: &kvm_regs, s: &kvm_sregs) {
    append(
        text,
        format_args!(
            "\n  rip {:016x} flags {:08x}\
             \n  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\
             \n  rsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}\
             \n  r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}\
             \n  r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}\
             \n  cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} efer {:x}\
             \n  gdt {:x}+{:x} idt {:x}+{:x}",
            r.rip,
            r.rflags,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rbp,
            r.rsp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer,
            s.gdt.base,
            s.gdt.limit,
            s.idt.base,
            s.idt.limit
        ),
    );
    for (name, segment) in [("cs", &s.cs), ("ss", &s.ss), ("ds", &s.ds), ("tr", &s.tr)] {
        let kvm_segment { selector, base, limit, type_, dpl, l, db, .. } = segment;
        append(
            text,
            format_args!(
                "\n  {name} {selector:04x} base {base:x} limit {limit:x} type {type_:x} dpl {dpl} l {l} d {db}"
            ),
        );
    }
}

/// Appends the bytes at the instruction pointer; returns whether there are any.
fn append_instruction(
    text: &mut String,
    vcpu: &Vcpu,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    memory: &AddressSpace,
) -> bool {
    let linear = sregs.cs.base.wrapping_add(regs.rip);
    let Some(physical) = vcpu.translate(linear) else {
        append(text, format_args!("\n  rip {linear:#x} is not mapped in the guest's page tables"));
        return false;
    };
    let mut bytes = [0; INSTRUCTION];
    // The next page of the guest's address space may be anywhere.
    let in_page = INSTRUCTION.min(PAGE - physical as usize % PAGE);
    let Ok(count) = memory.memory().read(&mut bytes[..in_page], GuestAddress(physical)) else {
        append(text, format_args!("\n  rip is at guest-physical {physical:#x}, where there is no RAM"));
        return false;
    };
    append(text, format_args!("\n  code at {physical:#x}:"));
    for byte in &bytes[..count] {
        append(text, format_args!(" {byte:02x}"));
    }
    true
}
