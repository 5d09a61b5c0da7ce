//! `doctor`: whether this host can run machines, how well, and what mends it. `docs/doctor.md` is the user's page.
//!
//! Each check is a small function that gives a `Finding`; `look` is the list of them. Nothing on the host is changed,
//! and no device is opened but the one that `run` opens: what would load a module is only asked about.

mod capabilities;
mod dedicated;
mod finding;
mod kernel;
mod kvm;
mod limits;
mod machine;
mod memory;
mod render;
mod syscalls;
mod virtualization;

use std::cmp::Reverse;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::args::DoctorArgs;
use crate::files::Files;
use crate::host;
use crate::outcome::{Failure, HOST_CANNOT};
use finding::{Finding, State};
use virtualization::{Facts, Virtualization};

/// The version of the JSON form. A field or a finding that is added leaves it as it is.
const SCHEMA: u32 = 1;

/// All that was found, worst first.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    overall: Overall,
    virtualization: Virtualization,
    /// Nothing: not known, because no machine could be run.
    stock_linux: Option<bool>,
    findings: Vec<Finding>,
    /// What concerns dedicated CPUs only, worst first. Nothing of it bears on `overall`.
    dedicated: Vec<Finding>,
}

/// Whether `vmm-cli run` works on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Overall {
    Works,
    Cannot,
}

/// Looks at the host and prints what it found; the exit code says whether `vmm-cli run` works there.
///
/// # Errors
/// The report cannot be put into its form.
pub fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let report = look(&Files::below("/"));
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(Failure::internal)? + "\n"
    } else {
        render::text(&report.findings, &report.dedicated, &report.verdict())
    };
    // Whoever closed standard output wants the exit code only.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(report.exit_code())
}

/// Makes every check.
fn look(files: &Files) -> Report {
    // First: the descriptors that are open now are those that `run` starts with.
    let limits = limits::check(files);
    let extension = host::extension();
    let (device, kvm) = kvm::open(files, extension);
    let mut findings = vec![device];
    let mut execution = None;
    if let Some(kvm) = &kvm {
        let (machine, executed_by) = kvm::machine(kvm);
        findings.push(machine);
        execution = executed_by;
    }
    let facts = Facts { files, extension, is_virtual: host::is_virtual(), execution };
    findings.extend(facts.check());
    if let Some(kvm) = &kvm {
        findings.push(kvm::max_vcpus(kvm));
        let linux = kernel::version(&kernel::release());
        findings.extend(capabilities::check(linux, |number| kvm.check_extension(number)));
        findings.push(kvm::halt_polling(files));
    }
    findings.extend(limits);
    findings.extend(memory::check(files));
    findings.extend(kernel::check(files));
    let dedicated = dedicated::check(files, extension, kvm.as_ref());
    Report::new(findings, dedicated, facts.virtualization(), facts.boots_linux())
}

impl Report {
    fn new(
        mut findings: Vec<Finding>,
        mut dedicated: Vec<Finding>,
        virtualization: Virtualization,
        stock_linux: Option<bool>,
    ) -> Self {
        // Stable: among equals the order of the checks stays.
        findings.sort_by_key(|finding| Reverse(finding.state));
        dedicated.sort_by_key(|finding| Reverse(finding.state));
        let is_broken = findings.iter().any(|finding| finding.state == State::Broken);
        let overall = if is_broken { Overall::Cannot } else { Overall::Works };
        Self { schema: SCHEMA, overall, virtualization, stock_linux, findings, dedicated }
    }

    fn exit_code(&self) -> ExitCode {
        match self.overall {
            Overall::Works => ExitCode::SUCCESS,
            Overall::Cannot => ExitCode::from(HOST_CANNOT),
        }
    }

    fn verdict(&self) -> String {
        match (self.overall, self.stock_linux) {
            (Overall::Works, Some(false)) => {
                "vmm-cli run works here, for small guests; stock Linux does not boot".into()
            }
            (Overall::Works, _) => "vmm-cli run works here".into(),
            (Overall::Cannot, _) => {
                let broken = self.findings.iter().filter(|finding| finding.state == State::Broken);
                let names: Vec<_> = broken.map(|finding| finding.id).collect();
                format!("vmm-cli run cannot work here: {}", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report::new(findings, Vec::new(), Virtualization::Svm, Some(true))
    }

    #[test]
    fn the_worst_comes_first_and_equals_keep_their_order() {
        let findings = vec![
            Finding::ok("a", ""),
            Finding::note("b", ""),
            Finding::broken("c", ""),
            Finding::degraded("d", ""),
            Finding::broken("e", ""),
            Finding::ok("f", ""),
        ];
        let order: Vec<_> = report(findings).findings.iter().map(|finding| finding.id).collect();
        assert_eq!(order, ["c", "e", "d", "b", "a", "f"]);
    }

    #[test]
    fn only_what_is_broken_keeps_run_from_working() {
        let works = report(vec![Finding::degraded("a", ""), Finding::note("b", "")]);
        assert_eq!((works.overall, works.verdict().as_str()), (Overall::Works, "vmm-cli run works here"));
        assert_eq!(works.exit_code(), ExitCode::SUCCESS);
        let cannot = report(vec![Finding::ok("a", ""), Finding::broken("b", ""), Finding::broken("c", "")]);
        assert_eq!(cannot.overall, Overall::Cannot);
        assert_eq!(cannot.verdict(), "vmm-cli run cannot work here: b, c");
        assert_eq!(cannot.exit_code(), ExitCode::from(3));
    }

    #[test]
    fn the_json_form_is_the_documented_one() {
        let findings = vec![
            Finding::ok("kernel", "Linux 6.12"),
            Finding::degraded("x", "found").lost("lost").mend_by("mend"),
        ];
        let dedicated = vec![Finding::ok("y", "found")];
        let report = Report::new(findings, dedicated, Virtualization::Pvm, None);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(
            json,
            "{\"schema\":1,\"overall\":\"works\",\"virtualization\":\"pvm\",\"stock_linux\":null,\"findings\":[\
             {\"id\":\"x\",\"state\":\"degraded\",\"found\":\"found\",\"lost\":\"lost\",\"mend\":\"mend\"},\
             {\"id\":\"kernel\",\"state\":\"ok\",\"found\":\"Linux 6.12\",\"lost\":null,\"mend\":null}],\
             \"dedicated\":[{\"id\":\"y\",\"state\":\"ok\",\"found\":\"found\",\"lost\":null,\"mend\":null}]}"
        );
    }

    #[test]
    fn a_host_without_any_file_is_reported_all_the_same() {
        let root = crate::files::fixture::Fixture::new(&[]);
        let report = look(&root.files);
        assert_eq!((report.overall, report.virtualization), (Overall::Cannot, Virtualization::None));
        assert_eq!(report.stock_linux, None);
        let names: Vec<_> = report.findings.iter().map(|finding| finding.id).collect();
        assert!(report.verdict().contains("kvm-device"), "{names:?}");
        assert!(names.contains(&"proc") && names.contains(&"memory"), "{names:?}");
    }

    #[test]
    fn every_check_is_on_the_users_page_and_named_once() {
        let page = include_str!("../../../docs/doctor.md");
        let root = crate::files::fixture::Fixture::new(&[]);
        let report = look(&root.files);
        let mut findings = [report.findings, report.dedicated].concat();
        findings.extend(capabilities::check(None, |_| 0));
        let mut names: Vec<_> = findings.iter().map(|finding| finding.id).collect();
        for name in &names {
            assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/doctor.md");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name is used twice");
    }
}
