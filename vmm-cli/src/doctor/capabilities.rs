//! The capabilities of KVM that this project uses if they are there, and what is lost without each.

use kvm_bindings as kvm;

use super::finding::Finding;

/// A capability that `run` can do without.
struct Capability {
    id: &'static str,
    name: &'static str,
    number: u32,
    /// The first Linux that has it.
    since: (u32, u32),
    used: Use,
    lost: &'static str,
}

/// What this version uses a capability for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Every machine.
    Always,
    /// Machines whose configuration asks for it.
    OnRequest,
    /// Nothing.
    Later,
}

macro_rules! capability {
    ($id:literal, $name:ident, $since:expr, used: $used:ident, $lost:literal) => {
        Capability {
            id: $id,
            name: stringify!($name),
            number: kvm::$name,
            since: $since,
            used: Use::$used,
            lost: $lost,
        }
    };
}

const CAPABILITIES: [Capability; 15] = [
    capability!("kvm-ioeventfd", KVM_CAP_IOEVENTFD, (2, 6), used: Always,
        "doorbells without an exit to the monitor: each costs several times more"),
    capability!("kvm-irqfd", KVM_CAP_IRQFD, (2, 6), used: Always,
        "interrupts by eventfd: each takes an ioctl of the monitor"),
    capability!("kvm-tsc-deadline", KVM_CAP_TSC_DEADLINE_TIMER, (3, 1), used: Always,
        "the TSC-deadline mode of the local APIC: guest timers are coarser and exit more often"),
    capability!("kvm-clock-control", KVM_CAP_KVMCLOCK_CTRL, (3, 5), used: Always,
        "telling a guest that it was stopped: it may report soft lock-ups after SIGCONT"),
    capability!("kvm-statistics", KVM_CAP_BINARY_STATS_FD, (5, 14), used: Always,
        "the kernel's own counts in `run --stats`: exits, halts, page faults, interrupts"),
    capability!("kvm-ioeventfd-any", KVM_CAP_IOEVENTFD_ANY_LENGTH, (4, 4), used: Always,
        "doorbells for notifications of virtio-pci that are not 16 bits wide: each exits to the monitor"),
    capability!("kvm-irqfd-resample", KVM_CAP_IRQFD_RESAMPLE, (3, 8), used: Later,
        "later: level-triggered interrupt lines without exits"),
    capability!("kvm-split-irqchip", KVM_CAP_SPLIT_IRQCHIP, (4, 4), used: OnRequest,
        "machines whose I/O APIC is in the monitor"),
    capability!("kvm-x2apic", KVM_CAP_X2APIC_API, (4, 8), used: OnRequest,
        "machines whose I/O APIC is in the monitor, and with them more than 254 vCPUs"),
    capability!("kvm-disable-exits", KVM_CAP_X86_DISABLE_EXITS, (4, 17), used: OnRequest,
        "dedicated vCPUs that halt without an exit"),
    capability!("kvm-halt-poll", KVM_CAP_HALT_POLL, (5, 8), used: OnRequest,
        "machines with their own limit of halt polling"),
    capability!("kvm-read-only", KVM_CAP_READONLY_MEM, (3, 7), used: Later,
        "later: memory that a guest can read but not write, such as firmware"),
    capability!("kvm-dirty-ring", KVM_CAP_DIRTY_LOG_RING, (5, 11), used: OnRequest,
        "the pages a guest has written to, without a look at all of them"),
    capability!("kvm-dirty-log", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, (5, 2), used: OnRequest,
        "a log of written pages that is cleared in small steps"),
    capability!("kvm-guest-debug", KVM_CAP_SET_GUEST_DEBUG, (2, 6), used: Later,
        "later: breakpoints in a guest"),
];

/// The findings on all of them; `value` is what `KVM_CHECK_EXTENSION` says, `linux` the host kernel's version, if it is
/// known.
pub(super) fn check(linux: Option<(u32, u32)>, value: impl Fn(u32) -> u32) -> Vec<Finding> {
    CAPABILITIES.iter().map(|capability| finding(capability, linux, value(capability.number))).collect()
}

fn finding(capability: &Capability, linux: Option<(u32, u32)>, value: u32) -> Finding {
    let Capability { id, name, since: (major, minor), used, lost, .. } = *capability;
    match value {
        0 => {
            let missing = if used == Use::Always { Finding::degraded } else { Finding::note };
            // A newer kernel that lacks it has a processor or a kind of KVM that cannot do it.
            let older = linux.is_none_or(|linux| linux < (major, minor));
            let mend = older.then(|| format!("a host kernel of Linux {major}.{minor} or newer"));
            missing(id, format!("{name} is missing")).lost(lost).mend(mend)
        }
        1 => Finding::ok(id, name),
        value => Finding::ok(id, format!("{name} = {value:#x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    fn lacking(number: u32, linux: Option<(u32, u32)>) -> Finding {
        let findings = check(linux, |asked| u32::from(asked != number));
        let mut worse = findings.into_iter().filter(|finding| finding.state != State::Ok);
        let finding = worse.next().unwrap();
        assert!(worse.next().is_none(), "one is lacking, more are reported");
        finding
    }

    #[test]
    fn what_run_uses_degrades_it_and_what_it_will_use_is_a_note() {
        assert_eq!(lacking(kvm::KVM_CAP_IOEVENTFD, None).state, State::Degraded);
        assert_eq!(lacking(kvm::KVM_CAP_HALT_POLL, None).state, State::Note);
        let read_only = lacking(kvm::KVM_CAP_READONLY_MEM, None);
        assert_eq!(read_only.state, State::Note);
        assert!(read_only.lost.unwrap().starts_with("later: "));
    }

    #[test]
    fn a_newer_kernel_is_advised_only_where_it_helps() {
        let mend = |linux| lacking(kvm::KVM_CAP_DIRTY_LOG_RING, linux).mend;
        assert_eq!(mend(Some((5, 10))).as_deref(), Some("a host kernel of Linux 5.11 or newer"));
        assert_eq!(mend(Some((5, 11))), None);
        assert!(mend(None).is_some());
    }

    #[test]
    fn what_this_version_does_not_use_says_so() {
        for Capability { id, used, lost, .. } in &CAPABILITIES {
            assert_eq!(*used == Use::Later, lost.starts_with("later: "), "{id}");
        }
    }
}
