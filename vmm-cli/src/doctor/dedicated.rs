//! What the host lacks for vCPUs with CPUs of their own. `run` works without any of it.

use vmm_core::{DisabledExits, Kvm};
use vmm_vcpu::affinity::CpuSet;

use super::finding::Finding;
use super::virtualization::reload;
use crate::config::CpuList;
use crate::files::Files;
use crate::host::Extension;
use crate::processors::halt_probe::{Halt, probe};

const CPUS: &str = "/sys/devices/system/cpu";
const IRQS: &str = "/proc/irq";

/// Most interrupts that a finding lists.
const LISTED_IRQS: usize = 8;

/// What is known about the host's CPUs.
struct Host<'a> {
    files: &'a Files,
    online: CpuSet,
    isolated: CpuSet,
}

/// All findings; those on KVM are left out where it cannot be used.
pub(super) fn check(files: &Files, extension: Option<Extension>, kvm: Option<&Kvm>) -> Vec<Finding> {
    let set = |name: &str| list(files, &format!("{CPUS}/{name}")).unwrap_or_default();
    let host = Host { files, online: set("online"), isolated: set("isolated") };
    let mut findings = vec![
        host.isolated_cpus(),
        host.nohz_full(),
        host.irq_affinity(),
        host.timer_injection(),
        host.smt_siblings(),
        host.governor(),
    ];
    findings.extend(apic_virtualization(files, extension));
    if let Some(kvm) = kvm {
        findings.push(halt_exits(files, kvm, extension));
    }
    findings
}

impl Host<'_> {
    /// Those that are isolated; if none is, those that could be: the second half of the cores.
    fn for_vcpus(&self) -> CpuSet {
        if !self.isolated.is_empty() {
            return self.isolated;
        }
        let mut cores: Vec<_> = self.online.iter().map(|cpu| (self.core(cpu), cpu)).collect();
        cores.sort_unstable();
        let mut firsts: Vec<_> = cores.iter().map(|(core, _)| *core).collect();
        firsts.dedup();
        let upper = firsts.get(firsts.len().div_ceil(2)..).unwrap_or_default();
        cores.iter().filter(|(core, _)| upper.contains(core)).map(|(_, cpu)| *cpu).collect()
    }

    fn for_others(&self) -> CpuSet {
        self.online.without(&self.for_vcpus())
    }

    /// The first thread of the core of `cpu`.
    fn core(&self, cpu: usize) -> usize {
        self.siblings(cpu).iter().next().unwrap_or(cpu)
    }

    fn siblings(&self, cpu: usize) -> CpuSet {
        list(self.files, &format!("{CPUS}/cpu{cpu}/topology/thread_siblings_list")).unwrap_or_default()
    }

    /// How the kernel is told to leave CPUs to vCPUs.
    fn command_line(&self) -> Option<String> {
        let cpus = CpuList::new(self.for_vcpus().iter())?;
        Some(format!(
            "`sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&isolcpus=domain,managed_irq,{cpus} nohz_full={cpus} \
             rcu_nocbs={cpus} /' /etc/default/grub && sudo update-grub && sudo reboot`, or these three words in the \
             kernel's command line by whatever starts it"
        ))
    }

    fn isolated_cpus(&self) -> Finding {
        const ID: &str = "isolated-cpus";
        match CpuList::new(self.isolated.iter()) {
            Some(cpus) => Finding::ok(ID, format!("{cpus}")),
            None => Finding::degraded(ID, "none")
                .lost("the vCPUs' CPUs for them alone: the scheduler puts other programs there")
                .mend(self.command_line()),
        }
    }

    fn nohz_full(&self) -> Finding {
        const ID: &str = "nohz-full";
        const LOST: &str = "a vCPU that runs undisturbed: the host's timer tick takes it out of the guest";
        let path = format!("{CPUS}/nohz_full");
        if !self.files.exists(&path) {
            return Finding::degraded(ID, "this kernel always has its timer tick")
                .lost(LOST)
                .mend_by("a kernel with CONFIG_NO_HZ_FULL");
        }
        let ticking = self.for_vcpus().without(&list(self.files, &path).unwrap_or_default());
        match CpuList::new(ticking.iter()) {
            None => Finding::ok(ID, "no timer tick where one vCPU runs"),
            Some(cpus) => Finding::degraded(ID, format!("the timer tick is on {cpus}"))
                .lost(LOST)
                .mend(self.command_line()),
        }
    }

    fn irq_affinity(&self) -> Finding {
        const ID: &str = "irq-affinity";
        let default = format!("{IRQS}/default_smp_affinity");
        let new = match self.files.read(&default) {
            Ok(mask) => hits(mask_cpus(&mask), &self.for_vcpus()),
            Err(error) => return Finding::unknown(ID, &default, &error),
        };
        let hitting = self.hitting_irqs();
        if !new && hitting.is_empty() {
            return Finding::ok(ID, "interrupts go to other CPUs than those for vCPUs");
        }
        let mut found = Vec::new();
        if !hitting.is_empty() {
            let shown: Vec<_> = hitting.iter().take(LISTED_IRQS).map(ToString::to_string).collect();
            let rest = if hitting.len() > LISTED_IRQS { ", …" } else { "" };
            found.push(format!("{} ({}{rest}) may go", hitting.len(), shown.join(", ")));
        }
        if new {
            found.push("new ones go".into());
        }
        let cpus = CpuList::new(self.for_vcpus().iter()).map_or_else(String::new, |cpus| format!(" {cpus}"));
        let mend = CpuList::new(self.for_others().iter()).map(|others| {
            format!(
                "`echo {} | sudo tee {default}; echo {others} | sudo tee {IRQS}/*/smp_affinity_list` (some refuse), and \
                 where irqbalance runs, `IRQBALANCE_BANNED_CPULIST={}` in its environment",
                mask(&self.for_others()),
                cpus.trim()
            )
        });
        Finding::degraded(ID, format!("interrupts: {} to the CPUs{cpus}", found.join(", ")))
            .lost("a vCPU that runs undisturbed: devices of the host interrupt it")
            .mend(mend)
    }

    /// The interrupts that may be delivered to a CPU for vCPUs, in ascending order.
    fn hitting_irqs(&self) -> Vec<u32> {
        let names = self.files.names(IRQS).unwrap_or_default();
        let mut hitting: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        hitting.retain(|irq| {
            let at = |name| list(self.files, &format!("{IRQS}/{irq}/{name}"));
            hits(at("effective_affinity_list").or_else(|| at("smp_affinity_list")), &self.for_vcpus())
        });
        hitting.sort_unstable();
        hitting
    }

    fn timer_injection(&self) -> Finding {
        const ID: &str = "timer-injection";
        const PATH: &str = "/sys/module/kvm/parameters/pi_inject_timer";
        match self.files.switch(PATH) {
            Some(true) => Finding::ok(ID, "a guest's timer is injected from another CPU"),
            Some(false) => Finding::degraded(ID, "pi_inject_timer is off")
                .lost("a vCPU that runs undisturbed: each of its timers interrupts its CPU")
                .mend(format!("`echo Y | sudo tee {PATH}`")),
            None => Finding::note(ID, format!("not known: {PATH} (Linux 5.3)")),
        }
    }

    fn smt_siblings(&self) -> Finding {
        const ID: &str = "smt-siblings";
        let own = self.for_vcpus();
        let shared = own.iter().filter(|cpu| !self.siblings(*cpu).without(&own).is_empty());
        match CpuList::new(shared) {
            None => Finding::ok(ID, "no core is shared between a vCPU and other work"),
            Some(cpus) => {
                Finding::degraded(ID, format!("{cpus} share cores with CPUs that are not for vCPUs"))
                    .lost("speed, and what another thread of the core can learn of the guest")
                    .mend_by(
                        "isolate whole cores, or turn their second threads off: `echo off | sudo tee \
                     /sys/devices/system/cpu/smt/control`",
                    )
            }
        }
    }

    fn governor(&self) -> Finding {
        const ID: &str = "cpu-governor";
        let governor = |cpu| self.files.read(&format!("{CPUS}/cpu{cpu}/cpufreq/scaling_governor")).ok();
        let own = self.for_vcpus();
        let slow = own.iter().filter(|cpu| governor(*cpu).is_some_and(|name| name != "performance"));
        match CpuList::new(slow) {
            None => Finding::ok(ID, "frequencies are fixed, or not this kernel's to change"),
            Some(cpus) => {
                let name = cpus.iter().next().and_then(governor).unwrap_or_default();
                Finding::degraded(ID, format!("{name} on {cpus}"))
                    .lost("latency: a CPU that was idle is slow at first")
                    .mend(format!("`echo performance | sudo tee {CPUS}/cpu*/cpufreq/scaling_governor`"))
            }
        }
    }
}

/// Whether interrupts reach a vCPU without an exit; left out where KVM is built on neither VMX nor SVM.
fn apic_virtualization(files: &Files, extension: Option<Extension>) -> Option<Finding> {
    const ID: &str = "apic-virtualization";
    let extension = extension?;
    let (name, parameter) = match extension {
        Extension::Vmx => ("APICv", "enable_apicv"),
        Extension::Svm => ("AVIC", "avic"),
    };
    Some(if files.switch(&format!("/sys/module/{}/parameters/{parameter}", extension.module()))? {
        Finding::ok(ID, format!("{name} is on"))
    } else {
        Finding::degraded(ID, format!("{name} is off"))
            .lost("interrupts that reach a vCPU without an exit, and timers injected from another CPU")
            .mend(reload(extension, parameter))
    })
}

/// Whether a vCPU that halts stays in the guest where it is told to.
fn halt_exits(files: &Files, kvm: &Kvm, extension: Option<Extension>) -> Finding {
    const ID: &str = "halt-exits";
    const LOST: &str =
        "halts that do not leave the guest: a vCPU that idles is woken through the host's scheduler";
    if !kvm.capabilities().disable_exits.contains(DisabledExits::HLT) {
        let rsb = files.switch("/sys/module/kvm/parameters/mitigate_smt_rsb") == Some(true);
        let mend = "the module kvm without mitigate_smt_rsb, or a host whose processor does not need it";
        return Finding::degraded(ID, "KVM does not offer to disable HLT exits")
            .lost(LOST)
            .mend(rsb.then(|| mend.to_owned()));
    }
    match probe(kvm) {
        Ok(Halt::StaysInGuest) => Finding::ok(ID, "HLT exits can be disabled, and that has an effect"),
        Ok(Halt::Exits) => {
            Finding::degraded(ID, "accepted, no effect: HLT exits can be disabled, and still come")
                .lost(LOST)
                .mend(extension.is_none().then(|| "a host with VMX or SVM".into()))
        }
        Ok(Halt::Unknown) => {
            Finding::note(ID, "HLT exits can be disabled; whether that has an effect could not be seen")
        }
        Err(error) => Finding::note(ID, format!("not known: {error:#}")),
    }
}

fn hits(cpus: Option<CpuSet>, for_vcpus: &CpuSet) -> bool {
    cpus.is_some_and(|cpus| cpus.iter().any(|cpu| for_vcpus.contains(cpu)))
}

/// A list of CPUs in a file; nothing where there is none, or what there is has another form.
fn list(files: &Files, path: &str) -> Option<CpuSet> {
    let list: CpuList = files.read(path).ok()?.parse().ok()?;
    Some(list.to_set())
}

/// The CPUs of a mask as the kernel writes one: words of 32 bits in hexadecimal with commas between, the highest first.
fn mask_cpus(mask: &str) -> Option<CpuSet> {
    let words = mask.rsplit(',').map(|word| u32::from_str_radix(word, 16).ok());
    let words: Vec<_> = words.collect::<Option<_>>()?;
    let bits = |(index, word): (usize, u32)| {
        (0..32).filter(move |bit| word >> bit & 1 != 0).map(move |bit| 32 * index + bit)
    };
    Some(words.into_iter().enumerate().flat_map(bits).collect())
}

/// The mask of `cpus`.
fn mask(cpus: &CpuSet) -> String {
    let last = cpus.iter().last().unwrap_or(0) / 32;
    let word = |index: usize| {
        (0..32).filter(|bit| cpus.contains(32 * index + bit)).map(|bit| 1_u32 << bit).sum::<u32>()
    };
    let lower = (0..last).rev().map(|index| format!(",{:08x}", word(index)));
    format!("{:x}{}", word(last), lower.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::files::fixture::Fixture;

    /// Four cores with two threads each, CPU 0 with CPU 4 and so on.
    fn eight_cpus(more: &[(&str, &str)]) -> Fixture {
        let fixture = Fixture::new(more);
        fixture.write(&format!("{CPUS}/online"), "0-7\n");
        for cpu in 0..8 {
            let path = format!("{CPUS}/cpu{cpu}/topology/thread_siblings_list");
            fixture.write(&path, &format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        }
        fixture
    }

    fn found(fixture: &Fixture, id: &str) -> Finding {
        let findings = check(&fixture.files, Some(Extension::Svm), None);
        findings.into_iter().find(|finding| finding.id == id).unwrap()
    }

    #[test]
    fn a_host_that_isolates_nothing_is_told_how_to_isolate_the_second_half_of_its_cores() {
        let finding = found(&eight_cpus(&[]), "isolated-cpus");
        assert_eq!(finding.state, State::Degraded);
        let mend = finding.mend.unwrap();
        assert!(
            mend.contains("isolcpus=domain,managed_irq,2-3,6-7 nohz_full=2-3,6-7 rcu_nocbs=2-3,6-7 "),
            "{mend}"
        );
    }

    #[test]
    fn a_single_cpu_is_not_to_be_isolated() {
        let fixture = Fixture::new(&[("/sys/devices/system/cpu/online", "0\n")]);
        assert_eq!(found(&fixture, "isolated-cpus").mend, None);
    }

    #[test]
    fn a_host_that_is_prepared_has_nothing_to_mend() {
        let fixture = eight_cpus(&[
            ("/sys/devices/system/cpu/isolated", "3,7\n"),
            ("/sys/devices/system/cpu/nohz_full", "3,7\n"),
            ("/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "performance\n"),
            ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
            ("/proc/irq/default_smp_affinity", "77\n"),
            ("/proc/irq/9/smp_affinity_list", "0-2\n"),
            // May go there, and does not.
            ("/proc/irq/10/smp_affinity_list", "0-7\n"),
            ("/proc/irq/10/effective_affinity_list", "2\n"),
            ("/sys/module/kvm/parameters/pi_inject_timer", "Y\n"),
            ("/sys/module/kvm_amd/parameters/avic", "Y\n"),
        ]);
        for finding in check(&fixture.files, Some(Extension::Svm), None) {
            assert_eq!(finding.state, State::Ok, "{finding:?}");
        }
    }

    #[test]
    fn what_disturbs_isolated_cpus_is_named_with_the_command_that_mends_it() {
        let fixture = eight_cpus(&[
            ("/sys/devices/system/cpu/isolated", "2-3\n"),
            ("/sys/devices/system/cpu/nohz_full", "2\n"),
            ("/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n"),
            ("/proc/irq/default_smp_affinity", "ff\n"),
            ("/proc/irq/10/smp_affinity_list", "0-7\n"),
            ("/proc/irq/9/effective_affinity_list", "3\n"),
            ("/proc/irq/11/smp_affinity_list", "0\n"),
            ("/sys/module/kvm/parameters/pi_inject_timer", "N\n"),
            ("/sys/module/kvm_amd/parameters/avic", "N\n"),
        ]);
        for (id, words, command) in [
            ("nohz-full", "on 3", "nohz_full=2-3"),
            (
                "irq-affinity",
                "2 (9, 10) may go, new ones go to the CPUs 2-3",
                "echo f3 | sudo tee /proc/irq/default",
            ),
            (
                "timer-injection",
                "pi_inject_timer is off",
                "`echo Y | sudo tee /sys/module/kvm/parameters/pi_inj",
            ),
            ("apic-virtualization", "AVIC is off", "modprobe kvm_amd avic=1`"),
            ("smt-siblings", "2-3 share cores", "smt/control`"),
            ("cpu-governor", "powersave on 3", "echo performance"),
        ] {
            let finding = found(&fixture, id);
            assert_eq!(finding.state, State::Degraded, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
            assert!(finding.mend.as_ref().unwrap().contains(command), "{finding:?}");
        }
        assert!(
            found(&fixture, "irq-affinity").mend.unwrap().contains("echo 0-1,4-7 | sudo tee /proc/irq/*")
        );
    }

    #[test]
    fn a_kernel_that_cannot_stop_its_tick_says_so() {
        let finding = found(&eight_cpus(&[]), "nohz-full");
        assert!(finding.mend.unwrap().contains("CONFIG_NO_HZ_FULL"));
        let off = eight_cpus(&[("/sys/devices/system/cpu/nohz_full", "(null)\n")]);
        assert!(found(&off, "nohz-full").found.ends_with("on 2-3,6-7"));
    }

    #[test]
    fn masks_of_many_cpus_have_words_of_32_bits() {
        let cpus = |text: &str| mask_cpus(text).map(|cpus| cpus.iter().collect::<Vec<_>>());
        assert_eq!(cpus("5"), Some(vec![0, 2]));
        assert_eq!(cpus("1,80000001"), Some(vec![0, 31, 32]));
        assert_eq!(cpus("x"), None);
        for text in ["5", "1,80000001", "ff,00000000,00000010"] {
            assert_eq!(mask(&mask_cpus(text).unwrap()), text);
        }
    }
}
