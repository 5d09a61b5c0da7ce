//! Virtualization: what the processor offers, what KVM makes of it, and which guests that is enough for.

use serde::Serialize;

use super::finding::Finding;
use super::machine::Execution;
use crate::files::Files;
use crate::host::Extension;

/// What runs the guests of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Virtualization {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// KVM-PVM: neither of them, but guests that cooperate, or are small enough to be interpreted.
    Pvm,
    /// A KVM that works, and that is none of the above.
    Unknown,
    /// Nothing: KVM cannot run a machine.
    None,
}

/// What is known about processor and KVM.
pub(super) struct Facts<'a> {
    pub files: &'a Files,
    /// By CPUID: what the processor has, whether or not firmware and kernel have turned it off.
    pub extension: Option<Extension>,
    /// The host is itself a virtual machine.
    pub is_virtual: bool,
    /// Who executes guest code; nothing if no machine could be run.
    pub execution: Option<Execution>,
}

impl Facts<'_> {
    fn has_module(&self, name: &str) -> bool {
        self.files.exists(&format!("/sys/module/{name}"))
    }

    /// What runs the guests.
    pub fn virtualization(&self) -> Virtualization {
        let by_extension = |extension| match extension {
            Extension::Vmx => Virtualization::Vmx,
            Extension::Svm => Virtualization::Svm,
        };
        match self.extension {
            _ if self.execution.is_none() => Virtualization::None,
            Some(extension) if self.has_module(extension.module()) => by_extension(extension),
            _ if self.has_module("kvm_pvm") => Virtualization::Pvm,
            Some(extension) => by_extension(extension),
            None => Virtualization::Unknown,
        }
    }

    /// Whether unmodified Linux kernels boot; not known if no machine could be run.
    pub fn boots_linux(&self) -> Option<bool> {
        self.execution.map(|execution| execution == Execution::Native)
    }

    /// All findings.
    pub fn check(&self) -> Vec<Finding> {
        let mut findings = vec![self.kind()];
        findings.extend(self.stock_linux());
        findings.extend(self.host());
        if let Some(extension) = self.extension {
            findings.extend(self.paging(extension));
            findings.extend(self.nested(extension));
        }
        findings
    }

    /// Whether the flags of the processors show the extension, if they can be read: Linux takes a flag away that the
    /// firmware has turned off.
    fn flag(&self, extension: Extension) -> Option<bool> {
        has_flag(&self.files.read("/proc/cpuinfo").ok()?, extension.flag())
    }

    fn kind(&self) -> Finding {
        const ID: &str = "virtualization";
        match (self.virtualization(), self.extension) {
            (Virtualization::Vmx, _) => Finding::ok(ID, "VMX (Intel), module kvm_intel"),
            (Virtualization::Svm, _) => Finding::ok(ID, "SVM (AMD), module kvm_amd"),
            (Virtualization::Pvm, None) => Finding::note(ID, "KVM-PVM, module kvm_pvm: neither VMX nor SVM"),
            (Virtualization::Pvm, Some(extension)) => {
                Finding::note(ID, format!("KVM-PVM, module kvm_pvm; {} is not used", name(extension)))
            }
            (Virtualization::Unknown, _) => {
                Finding::note(ID, "a KVM without VMX, SVM and the module of KVM-PVM")
            }
            (Virtualization::None, Some(extension)) if self.flag(extension) == Some(false) => {
                let found = format!("the processor has {}, but it is turned off", name(extension));
                Finding::broken(ID, found).mend_by("turn virtualization on in the firmware's setup")
            }
            (Virtualization::None, Some(extension)) => {
                Finding::ok(ID, format!("the processor has {}; KVM does not use it", name(extension)))
            }
            (Virtualization::None, None) if self.has_module("kvm_pvm") => {
                Finding::ok(ID, "neither VMX nor SVM, but the module kvm_pvm; KVM does not run machines")
            }
            (Virtualization::None, None) if !self.files.exists("/sys/module") => {
                Finding::note(ID, "neither VMX nor SVM; whether there is KVM-PVM cannot be seen without /sys")
            }
            (Virtualization::None, None) => Finding::broken(ID, "the processor shows neither VMX nor SVM")
                .mend_by(self.where_to_turn_it_on()),
        }
    }

    fn where_to_turn_it_on(&self) -> &'static str {
        if self.is_virtual {
            "turn nested virtualization on where this virtual machine is run; many clouds have it with some machine \
             types only"
        } else {
            "turn virtualization on in the firmware's setup"
        }
    }

    fn stock_linux(&self) -> Option<Finding> {
        const ID: &str = "stock-linux";
        Some(match self.execution? {
            Execution::Native => Finding::ok(ID, "the processor executes guest code: any kernel runs"),
            Execution::Interpreted => {
                Finding::degraded(ID, "KVM's emulator executes the code of guest kernels")
                    .lost("unmodified Linux kernels do not boot; small guests run, slowly")
                    .mend(match self.extension {
                        Some(extension) => {
                            format!("`sudo modprobe -r kvm_pvm && sudo modprobe {}`", extension.module())
                        }
                        None => self.where_to_turn_it_on().into(),
                    })
            }
        })
    }

    fn host(&self) -> Option<Finding> {
        self.is_virtual.then(|| {
            Finding::note("host-virtual", "this host is itself a virtual machine")
                .lost("speed: each exit of a guest may cost several of the host")
        })
    }

    fn switch(&self, extension: Extension, parameter: &str) -> Option<bool> {
        self.files.switch(&format!("/sys/module/{}/parameters/{parameter}", extension.module()))
    }

    fn paging(&self, extension: Extension) -> Option<Finding> {
        const ID: &str = "nested-paging";
        let (name, parameter) = match extension {
            Extension::Vmx => ("EPT", "ept"),
            Extension::Svm => ("NPT", "npt"),
        };
        Some(if self.switch(extension, parameter)? {
            Finding::ok(ID, name)
        } else {
            Finding::degraded(ID, format!("{name} is off"))
                .lost("speed: KVM keeps a copy of every guest's page tables")
                .mend(reload(extension, parameter))
        })
    }

    fn nested(&self, extension: Extension) -> Option<Finding> {
        const ID: &str = "nested-kvm";
        Some(if self.switch(extension, "nested")? {
            Finding::ok(ID, "guests can run KVM themselves")
        } else {
            Finding::note(ID, "nested virtualization is off")
                .lost("guests that run KVM themselves")
                .mend(reload(extension, "nested"))
        })
    }
}

fn name(extension: Extension) -> &'static str {
    match extension {
        Extension::Vmx => "VMX",
        Extension::Svm => "SVM",
    }
}

/// Loads the module again with `parameter` on; no machine may be running.
pub(super) fn reload(extension: Extension, parameter: &str) -> String {
    let module = extension.module();
    format!("`sudo modprobe -r {module} && sudo modprobe {module} {parameter}=1`")
}

/// Whether `flag` is among the flags of the first processor in the text of `/proc/cpuinfo`.
fn has_flag(cpuinfo: &str, flag: &str) -> Option<bool> {
    let flags = cpuinfo.lines().find_map(|line| {
        let (key, flags) = line.split_once(':')?;
        (key.trim() == "flags").then_some(flags)
    })?;
    Some(flags.split_whitespace().any(|word| word == flag))
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::files::fixture::Fixture;

    const CPUINFO: &str = "processor\t: 0\nflags\t\t: fpu svm_lock vme svm lm\nbugs\t\t:\n";

    fn facts(fixture: &Fixture, extension: Option<Extension>, execution: Option<Execution>) -> Facts<'_> {
        Facts { files: &fixture.files, extension, is_virtual: false, execution }
    }

    #[test]
    fn a_flag_is_a_whole_word() {
        assert_eq!(has_flag(CPUINFO, "svm"), Some(true));
        assert_eq!(has_flag(CPUINFO, "vmx"), Some(false));
        assert_eq!(has_flag(CPUINFO, "sv"), Some(false));
        assert_eq!(has_flag("processor : 0\n", "svm"), None);
    }

    #[test]
    fn the_module_says_what_runs_guests_where_the_processor_leaves_it_open() {
        let native = Some(Execution::Native);
        let none = Fixture::new(&[]);
        let pvm = Fixture::new(&[("/sys/module/kvm_pvm/parameters/force", "N")]);
        let both = Fixture::new(&[("/sys/module/kvm_pvm/x", ""), ("/sys/module/kvm_intel/x", "")]);
        for (fixture, extension, execution, expected) in [
            (&none, Some(Extension::Vmx), native, Virtualization::Vmx),
            (&none, Some(Extension::Svm), native, Virtualization::Svm),
            (&none, None, native, Virtualization::Unknown),
            (&pvm, None, Some(Execution::Interpreted), Virtualization::Pvm),
            (&pvm, Some(Extension::Svm), native, Virtualization::Pvm),
            (&both, Some(Extension::Vmx), native, Virtualization::Vmx),
            (&both, Some(Extension::Vmx), None, Virtualization::None),
        ] {
            assert_eq!(facts(fixture, extension, execution).virtualization(), expected);
        }
    }

    #[test]
    fn an_interpreted_guest_means_that_stock_linux_does_not_boot() {
        let none = Fixture::new(&[]);
        let linux = |execution| facts(&none, None, execution).boots_linux();
        assert_eq!(linux(Some(Execution::Interpreted)), Some(false));
        assert_eq!(linux(Some(Execution::Native)), Some(true));
        assert_eq!(linux(None), None);
        let finding = facts(&none, None, Some(Execution::Interpreted)).stock_linux().unwrap();
        assert_eq!(finding.state, State::Degraded);
        assert!(finding.mend.unwrap().contains("firmware"));
        let finding = facts(&none, Some(Extension::Vmx), Some(Execution::Interpreted)).stock_linux().unwrap();
        assert_eq!(finding.mend.unwrap(), "`sudo modprobe -r kvm_pvm && sudo modprobe kvm_intel`");
    }

    #[test]
    fn an_extension_that_the_firmware_has_turned_off_is_told_from_one_that_is_not_used() {
        let fixture = Fixture::new(&[("/proc/cpuinfo", CPUINFO)]);
        let kind = |extension| facts(&fixture, extension, None).kind();
        assert_eq!(kind(Some(Extension::Svm)).state, State::Ok);
        let off = kind(Some(Extension::Vmx));
        assert_eq!(off.state, State::Broken);
        assert!(off.found.contains("turned off"), "{off:?}");
        assert_eq!(kind(None).state, State::Note, "what /sys would say is not known");
        fixture.write("/sys/module/kvm/version", "");
        assert_eq!(kind(None).state, State::Broken);
        assert!(kind(None).found.contains("neither VMX nor SVM"));
    }

    #[test]
    fn parameters_of_the_module_are_reported_with_the_command_that_sets_them() {
        let parameters = "/sys/module/kvm_amd/parameters";
        let fixture =
            Fixture::new(&[(&format!("{parameters}/npt"), "0\n"), (&format!("{parameters}/nested"), "Y\n")]);
        let facts = facts(&fixture, Some(Extension::Svm), Some(Execution::Native));
        let paging = facts.paging(Extension::Svm).unwrap();
        assert_eq!(paging.state, State::Degraded);
        assert_eq!(paging.mend.unwrap(), "`sudo modprobe -r kvm_amd && sudo modprobe kvm_amd npt=1`");
        assert_eq!(facts.nested(Extension::Svm).unwrap().state, State::Ok);
        assert!(facts.paging(Extension::Vmx).is_none(), "the module of another processor");
    }
}
