//! What a boot is counted by: exits to user space, exits to KVM, ports and addresses, each with its name.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bench::kvm_trace::{Histogram, Hits, KvmTrace, TraceError};
use crate::bench::report::Count;

/// A kind of thing that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Returns of `KVM_RUN`, by exit reason.
    UserExits,
    /// Accesses to ports, whoever serves them, by port and direction.
    Ports,
    /// Accesses to addresses without memory, whoever serves them.
    Mmio,
    /// Exits of the guest, by the processor's reason.
    KvmExits,
}

/// The low halves of `-EINTR` and of `-EAGAIN`, with which a vCPU that waited for its start-up signal returns.
const INTERRUPTED: u64 = 0xffff_fffc;
const STARTED: u64 = 0xffff_fff5;
const LOW_HALF: u64 = 0xffff_ffff;

/// `rw` of `kvm_pio`, `type` of `kvm_mmio`.
const PIO_OUT: u64 = 1;
const MMIO_READ_UNSATISFIED: u64 = 0;
const MMIO_WRITE: u64 = 2;

/// KVM_EXIT_… of the KVM API, section 5.
const USER: [(u64, &str); 12] = [
    (1, "exception"),
    (2, "io"),
    (3, "hypercall"),
    (5, "hlt"),
    (6, "mmio"),
    (7, "interrupt window"),
    (8, "shutdown"),
    (10, "intr"),
    (17, "internal error"),
    (24, "system event"),
    (26, "ioapic eoi"),
    (29, "msr read"),
];

/// Exit codes of AMD's SVM: AMD64 Architecture Programmer's Manual, volume 2, appendix C.
const SVM: [(u64, &str); 34] = [
    (0x00, "cr0 read"),
    (0x03, "cr3 read"),
    (0x04, "cr4 read"),
    (0x10, "cr0 write"),
    (0x13, "cr3 write"),
    (0x14, "cr4 write"),
    (0x18, "cr8 write"),
    (0x20, "dr0 read"),
    (0x27, "dr7 read"),
    (0x37, "dr7 write"),
    (0x41, "#DB"),
    (0x46, "#UD"),
    (0x4d, "#GP"),
    (0x4e, "#PF"),
    (0x51, "#AC"),
    (0x52, "#MC"),
    (0x60, "interrupt"),
    (0x61, "nmi"),
    (0x63, "init"),
    (0x64, "interrupt window"),
    (0x65, "cr0 selective write"),
    (0x6e, "rdtsc"),
    (0x72, "cpuid"),
    (0x73, "rsm"),
    (0x74, "iret"),
    (0x77, "pause"),
    (0x78, "hlt"),
    (0x7b, "io"),
    (0x7c, "msr"),
    (0x7f, "shutdown"),
    (0x81, "vmmcall"),
    (0x89, "wbinvd"),
    (0x8d, "xsetbv"),
    (0x400, "nested page fault"),
];

/// Exit reasons of Intel's VMX: Software Developer's Manual, volume 3, appendix C.
const VMX: [(u64, &str); 24] = [
    (0, "exception or nmi"),
    (1, "interrupt"),
    (2, "triple fault"),
    (3, "init"),
    (4, "sipi"),
    (7, "interrupt window"),
    (8, "nmi window"),
    (10, "cpuid"),
    (12, "hlt"),
    (14, "invlpg"),
    (18, "vmcall"),
    (28, "cr access"),
    (29, "dr access"),
    (30, "io"),
    (31, "msr read"),
    (32, "msr write"),
    (40, "pause"),
    (44, "apic access"),
    (45, "eoi"),
    (48, "ept violation"),
    (49, "ept misconfiguration"),
    (52, "preemption timer"),
    (54, "wbinvd"),
    (55, "xsetbv"),
];

impl Kind {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 4] = [Self::UserExits, Self::Ports, Self::Mmio, Self::KvmExits];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserExits => "user_exit",
            Self::Ports => "port",
            Self::Mmio => "mmio",
            Self::KvmExits => "kvm_exit",
        }
    }

    fn histogram(self) -> Histogram {
        match self {
            Self::UserExits => Histogram { event: "kvm_userspace_exit", keys: &["reason", "errno"] },
            Self::Ports => Histogram { event: "kvm_pio", keys: &["port", "rw"] },
            Self::Mmio => Histogram { event: "kvm_mmio", keys: &["gpa", "type"] },
            Self::KvmExits => Histogram { event: "kvm_exit", keys: &["exit_reason"] },
        }
    }

    /// What `keys` of its histogram mean.
    fn thing(self, keys: &[u64], processor: Processor) -> String {
        match (self, keys) {
            (Self::UserExits, [_, errno]) if errno & LOW_HALF == INTERRUPTED => {
                "interrupted by a signal".to_owned()
            }
            (Self::UserExits, [_, errno]) if errno & LOW_HALF == STARTED => {
                "started by another vCPU".to_owned()
            }
            (Self::UserExits, [reason, _]) => named(&USER, *reason),
            (Self::Ports, [port, rw]) => format!("{port:#x} {}", if *rw == PIO_OUT { "out" } else { "in" }),
            (Self::Mmio, [gpa, kind]) => match *kind {
                MMIO_WRITE => format!("{gpa:#x} write"),
                MMIO_READ_UNSATISFIED => format!("{gpa:#x} read, asked of user space"),
                _ => format!("{gpa:#x} read"),
            },
            (Self::KvmExits, [reason]) => match processor {
                Processor::Amd => named(&SVM, *reason),
                Processor::Intel => named(&VMX, *reason),
            },
            _ => format!("{keys:x?}"),
        }
    }
}

fn named(names: &[(u64, &str)], number: u64) -> String {
    let name = names.iter().find(|(known, _)| *known == number);
    name.map_or_else(|| format!("reason {number:#x}"), |(_, name)| (*name).to_owned())
}

/// Whose exit reasons the host's KVM speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// SVM.
    Amd,
    /// VMX.
    Intel,
}

impl Processor {
    /// That of this host.
    pub fn of_host() -> Self {
        if Path::new("/sys/module/kvm_intel").exists() { Self::Intel } else { Self::Amd }
    }
}

/// The counts of one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootCounts(Vec<(Kind, Vec<Hits>)>);

impl BootCounts {
    /// Counts what happens while `boot` runs.
    ///
    /// # Errors
    ///
    /// Of `boot`, or of the trace.
    pub fn during<E: From<TraceError>>(
        trace: &KvmTrace,
        boot: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        for kind in Kind::ALL {
            trace.count(kind.histogram())?;
        }
        let booted = boot();
        let counts: Result<_, TraceError> =
            Kind::ALL.into_iter().map(|kind| Ok((kind, trace.counted(kind.histogram())?))).collect();
        booted?;
        Ok(Self(counts?))
    }

    /// How often anything of `kind` happened.
    pub fn total(&self, kind: Kind) -> u64 {
        self.0
            .iter()
            .filter(|(known, _)| *known == kind)
            .flat_map(|(_, hits)| hits)
            .map(|hit| hit.count)
            .sum()
    }
}

/// The counts of several boots of the same, thing by thing: by kind, the most frequent first.
pub fn merged(boots: &[BootCounts], case: &str, subject: &str, processor: Processor) -> Vec<Count> {
    let mut things: BTreeMap<(Kind, String), Vec<u64>> = BTreeMap::new();
    for (number, boot) in boots.iter().enumerate() {
        for (kind, hits) in &boot.0 {
            for hit in hits {
                let key = (*kind, kind.thing(&hit.keys, processor));
                let values = things.entry(key).or_insert_with(|| vec![0; boots.len()]);
                values[number] += hit.count;
            }
        }
    }
    let mut things: Vec<_> = things.into_iter().collect();
    // A stable sort: what is as frequent stays in the order of names.
    things.sort_by_key(|((kind, _), values)| (*kind, std::cmp::Reverse(values.iter().sum::<u64>())));
    let count = |((kind, name), values): ((Kind, String), _)| Count {
        case: case.to_owned(),
        subject: subject.to_owned(),
        kind: kind.name().to_owned(),
        name,
        values,
    };
    things.into_iter().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_kind_have_names() {
        let thing = |kind: Kind, keys: &[u64]| kind.thing(keys, Processor::Amd);
        assert_eq!(thing(Kind::UserExits, &[2, 0]), "io");
        assert_eq!(thing(Kind::UserExits, &[10, 0xffff_ffff_ffff_fffc]), "interrupted by a signal");
        assert_eq!(thing(Kind::UserExits, &[0, 0xffff_fff5]), "started by another vCPU");
        assert_eq!(thing(Kind::UserExits, &[99, 0]), "reason 0x63");
        assert_eq!(thing(Kind::Ports, &[0x3f8, 1]), "0x3f8 out");
        assert_eq!(thing(Kind::Ports, &[0xcfc, 0]), "0xcfc in");
        assert_eq!(thing(Kind::Mmio, &[0xfec0_0000, 2]), "0xfec00000 write");
        assert_eq!(thing(Kind::Mmio, &[0xfec0_0010, 0]), "0xfec00010 read, asked of user space");
        assert_eq!(thing(Kind::KvmExits, &[0x7b]), "io");
        assert_eq!(Kind::KvmExits.thing(&[0x30], Processor::Intel), "ept violation");
    }

    #[test]
    fn names_are_in_order_and_once() {
        for table in [&USER[..], &SVM, &VMX] {
            assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0), "{table:x?}");
        }
    }

    fn boot(ports: &[(u64, u64)]) -> BootCounts {
        let hits = ports.iter().map(|(port, count)| Hits { keys: vec![*port, 1], count: *count });
        BootCounts(vec![
            (Kind::Ports, hits.collect()),
            (Kind::UserExits, vec![Hits { keys: vec![2, 0], count: 7 }]),
        ])
    }

    #[test]
    fn what_only_one_boot_had_is_0_in_the_other() {
        let boots = [boot(&[(0x20, 1), (0x3f8, 5)]), boot(&[(0x3f8, 5), (0x70, 9)])];
        let counts = merged(&boots, "c", "s", Processor::Amd);
        let found: Vec<_> = counts
            .iter()
            .map(|count| (count.kind.as_str(), count.name.as_str(), &count.values[..]))
            .collect();
        assert_eq!(
            found,
            [
                ("user_exit", "io", &[7, 7][..]),
                ("port", "0x3f8 out", &[5, 5]),
                ("port", "0x70 out", &[0, 9]),
                ("port", "0x20 out", &[1, 0]),
            ]
        );
        assert_eq!((boots[1].total(Kind::Ports), boots[1].total(Kind::Mmio)), (14, 0));
    }
}
