//! `Recording`: the kernel of the nested host counts which system calls threads make that have a filter, and with which arguments.
//!
//! It does so by a probe where it looks at what is to be done about a call before it is made: only threads that something waits for come
//! there, and whether that is a filter is in the third argument (`SYSCALL_WORK_SECCOMP`). Histograms have at most three keys, so there is
//! one for each argument that some table looks at.

use std::collections::BTreeSet;

use crate::tables::Kind;

/// Where the kernel is told what to count.
const TRACING: &str = "/sys/kernel/tracing";

/// The first arguments of a call and where the kernel keeps them in `struct pt_regs`, from its beginning.
const ARGUMENTS: [(&str, u32); 4] = [("a0", 112), ("a1", 104), ("a2", 96), ("a3", 56)];

/// Places of a histogram. What does not fit is counted as dropped, and whoever reads the record sees that.
const SIZE: u32 = 32768;

/// What the first program of the nested host does before the command (`start`) and after it (`record`): a script of its shell.
pub fn script(kinds: &[Kind]) -> String {
    let fetched: String = ARGUMENTS.iter().map(|(name, at)| format!(" {name}=+{at}(%di):u32")).collect();
    let probe = format!("p:vmm/call syscall_trace_enter nr=%si:s32{fetched} work=%dx:u64 comm=$comm");
    let count = |keys: &str, condition: &str| {
        let histogram = format!("hist:keys={keys}:size={SIZE} if work & 1{condition}");
        format!("echo '{histogram}' >>{TRACING}/events/vmm/call/trigger")
    };
    let mut start = vec![
        format!("mount -t tracefs tracefs {TRACING}"),
        format!("echo '{probe}' >{TRACING}/kprobe_events"),
        count("comm,nr", ""),
    ];
    for (argument, (name, _)) in (0..).zip(ARGUMENTS) {
        let numbers: BTreeSet<_> = kinds.iter().flat_map(|kind| kind.looks_at(argument)).collect();
        if !numbers.is_empty() {
            let any: Vec<_> = numbers.iter().map(|number| format!("nr == {number}")).collect();
            start.push(count(&format!("comm,nr,{name}"), &format!(" && ({})", any.join(" || "))));
        }
    }
    let told = "sed -n -e 's/^{/record {/p' -e 's/^ *Dropped/record Dropped/p'";
    format!(
        "start() {{\n{}\n}}\nrecord() {{\n{told} {TRACING}/events/vmm/call/hist\n}}\n",
        start.join(" &&\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_counted_and_by_the_arguments_that_tables_look_at() {
        let json = r#"[{"kind":"vcpu","tables":[[
            {"name":"ioctl","number":16,"conditions":[{"argument":1,"is":44672}]},
            {"name":"fcntl","number":72,"conditions":[{"argument":1,"is":1030}]},
            {"name":"mmap","number":9,"conditions":[{"argument":2,"without":4}]}]]}]"#;
        let script = script(&serde_json::from_str::<Vec<Kind>>(json).unwrap());
        let counted: Vec<_> = script.lines().filter_map(|line| line.split_once("'hist:keys=")).collect();
        let keys: Vec<_> =
            counted.iter().filter_map(|(_, rest)| rest.split_once(':')).map(|(keys, _)| keys).collect();
        assert_eq!(keys, ["comm,nr", "comm,nr,a1", "comm,nr,a2"]);
        assert!(counted[1].1.contains("if work & 1 && (nr == 16 || nr == 72)'"), "{script}");
        assert!(counted[2].1.contains("if work & 1 && (nr == 9)'"), "{script}");
        assert!(script.contains("a1=+104(%di):u32"), "{script}");
    }
}
