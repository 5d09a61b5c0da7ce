//! Doctor: what it says about a host agrees with what `run` does there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde::Deserialize;
use vmm_tests::harness::{Finished, TestVm, monitor};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_host_that_runs_guests_works,
        what_runs_guests_is_what_the_host_has,
        the_text_ends_with_the_verdict,
        a_host_without_kvm_cannot_and_is_told_what_to_do,
        a_file_in_the_place_of_the_device_is_named,
        a_user_without_permission_is_told_the_group,
        fault_c1_descriptors_that_are_enough_for_doctor_are_enough_for_run,
        fault_c1_a_small_address_space_is_reported,
        output_that_nobody_reads_changes_nothing,
        no_module_is_loaded,
    ]
}

#[derive(Debug, Deserialize)]
struct Report {
    schema: u32,
    overall: String,
    virtualization: String,
    stock_linux: Option<bool>,
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    id: String,
    state: String,
    found: String,
    mend: Option<String>,
}

impl Report {
    fn of(finished: &Finished) -> Result<Self> {
        let report: Self =
            serde_json::from_slice(&finished.stdout).context("its output is not the JSON form")?;
        ensure!(report.schema == 1, "schema {}", report.schema);
        Ok(report)
    }

    fn finding(&self, id: &str) -> Result<&Finding> {
        self.findings
            .iter()
            .find(|finding| finding.id == id)
            .with_context(|| format!("{id} is missing in {self:?}"))
    }

    /// The finding `id`, which is to be broken, and whose remedy is to contain `words`.
    fn ensure_broken(&self, id: &str, words: &[&str]) -> Result<&Finding> {
        let finding = self.finding(id)?;
        let mend = finding.mend.as_deref().unwrap_or_default();
        ensure!(finding.state == "broken" && words.iter().all(|word| mend.contains(word)), "{finding:?}");
        ensure!(self.overall == "cannot", "{}, but {id} is broken", self.overall);
        Ok(finding)
    }
}

fn doctor() -> TestVm {
    TestVm::program(monitor()).arg("doctor")
}

fn a_host_that_runs_guests_works() -> Result<()> {
    TestVm::guest("bench_reset").run()?.ensure_code(0)?;
    let report = Report::of(&doctor().arg("--json").run()?.ensure_code(0)?)?;
    ensure!(report.overall == "works", "{report:?}");
    for id in ["kvm-device", "machine"] {
        ensure!(report.finding(id)?.state == "ok", "{report:?}");
    }
    let rank =
        |finding: &Finding| ["broken", "degraded", "note", "ok"].iter().position(|s| *s == finding.state);
    ensure!(
        report.findings.iter().all(|finding| rank(finding).is_some()),
        "a state is not known: {report:?}"
    );
    ensure!(report.findings.is_sorted_by_key(rank), "the worst is not first: {report:?}");
    let names: BTreeSet<_> = report.findings.iter().map(|finding| &finding.id).collect();
    let page = include_str!("../../../docs/doctor.md");
    let missing = names.iter().find(|name| !page.contains(&format!("`{name}`")));
    ensure!(missing.is_none(), "{missing:?} is not in docs/doctor.md");
    ensure!(names.len() == report.findings.len(), "a name is used twice: {report:?}");
    Ok(())
}

fn what_runs_guests_is_what_the_host_has() -> Result<()> {
    let report = Report::of(&doctor().arg("--json").run()?.ensure_code(0)?)?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let has = |flag| cpuinfo.split_whitespace().any(|word| word == flag);
    let has_module = |name: &str| Path::new("/sys/module").join(name).exists();
    let (expected, linux) = match () {
        () if has("vmx") && has_module("kvm_intel") => ("vmx", true),
        () if has("svm") && has_module("kvm_amd") => ("svm", true),
        () if has_module("kvm_pvm") => ("pvm", false),
        () => ("unknown", report.stock_linux == Some(true)),
    };
    ensure!((report.virtualization.as_str(), report.stock_linux) == (expected, Some(linux)), "{report:?}");
    Ok(())
}

fn the_text_ends_with_the_verdict() -> Result<()> {
    let text = doctor().run()?.ensure_code(0)?.text();
    let last = text.lines().last().unwrap_or_default();
    ensure!(last.starts_with("vmm-cli run works here"), "{text}");
    let long = text.lines().find(|line| line.chars().count() > 80 && !line.contains('`'));
    ensure!(long.is_none(), "{long:?} is too long for a screen");
    ensure!(!text.contains('\x1b'), "colours, and no terminal");
    Ok(())
}

/// Runs the monitor with a `prepare`d directory as root, as somebody for whom the modes of files count. There is neither
/// `/proc` nor `/sys`.
fn in_root(prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Report> {
    let root = tempfile::tempdir()?;
    fs::copy(monitor(), root.path().join("vmm-cli"))?;
    fs::create_dir(root.path().join("dev"))?;
    prepare(root.path())?;
    let script = "if [ \"$(id -u)\" = 0 ]; then exec \"$@\"; else exec unshare --map-root-user \"$@\"; fi";
    let vm = TestVm::program("/vmm-cli").args("doctor --json").through_shell(script);
    let vm =
        vm.through("setpriv --bounding-set=-dac_override,-dac_read_search chroot").through_path(root.path());
    let finished = vm.run()?;
    // So that it can be removed.
    set_mode(&root.path().join("dev"), 0o700)?;
    Report::of(&finished.ensure_code(3)?)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

fn a_host_without_kvm_cannot_and_is_told_what_to_do() -> Result<()> {
    let report = in_root(|_| Ok(()))?;
    report.ensure_broken("kvm-device", &["modprobe kvm", "--device /dev/kvm"])?;
    ensure!((report.virtualization.as_str(), report.stock_linux) == ("none", None), "{report:?}");
    ensure!(report.findings.iter().all(|finding| finding.id != "machine"), "{report:?}");
    // There is no /proc either, and that is said and no more.
    for id in ["proc", "sys", "memory", "memory-cgroup"] {
        ensure!(report.finding(id)?.state == "note", "{report:?}");
    }
    ensure!(report.finding("memory")?.found.contains("/proc/meminfo: No such file"), "{report:?}");
    Ok(())
}

fn a_file_in_the_place_of_the_device_is_named() -> Result<()> {
    // A pipe that nobody writes to: whoever opens it to read waits.
    let fifo = |path: &Path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?);
    let file = |path: &Path| Ok(fs::write(path, "")?);
    for make in [fifo as fn(&Path) -> Result<()>, file] {
        let report = in_root(|root| make(&root.join("dev/kvm")))?;
        let finding = report.ensure_broken("kvm-device", &["mknod"])?;
        ensure!(finding.found.contains("not a character device"), "{finding:?}");
    }
    Ok(())
}

fn a_user_without_permission_is_told_the_group() -> Result<()> {
    // Only root can make a device; that its directory is closed has the same errno.
    let report = in_root(|root| set_mode(&root.join("dev"), 0o000))?;
    let finding = report.ensure_broken("kvm-device", &["usermod -aG kvm", "setfacl"])?;
    ensure!(finding.found.contains("Permission denied"), "{finding:?}");
    Ok(())
}

fn fault_c1_descriptors_that_are_enough_for_doctor_are_enough_for_run() -> Result<()> {
    let mut worked = 0;
    for limit in 3..=40 {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let doctor = doctor().arg("--json").through_shell(&script).run()?;
        ensure!(doctor.stderr.is_empty(), "{limit} descriptors: {:?}", doctor.stderr);
        let report = Report::of(&doctor).with_context(|| format!("{limit} descriptors"))?;
        if report.overall == "works" {
            worked += 1;
            doctor.ensure_code(0)?;
            let vm = TestVm::guest("bench_reset").args("--selftest").through_shell(&script);
            vm.run()?.ensure_code(0).with_context(|| format!("{limit} descriptors"))?;
        } else {
            ensure!(worked == 0, "{limit} descriptors are not enough, but fewer were");
            doctor.ensure_code(3)?;
            report.ensure_broken("open-files", &["1024"])?;
        }
    }
    ensure!(worked > 0, "40 descriptors are not enough");
    Ok(())
}

fn fault_c1_a_small_address_space_is_reported() -> Result<()> {
    let script = "ulimit -v 100000; exec \"$@\"";
    let report = Report::of(&doctor().arg("--json").through_shell(script).run()?)?;
    let finding = report.finding("address-space")?;
    ensure!(finding.state == "degraded" && finding.found == "at most 97 MiB", "{finding:?}");
    Ok(())
}

fn output_that_nobody_reads_changes_nothing() -> Result<()> {
    for args in ["", "--json"] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let finished = doctor().args(args).stdout(writer).run()?.ensure_code(0)?;
        ensure!(finished.stderr.is_empty(), "{:?}", finished.stderr);
    }
    doctor().through_shell("exec \"$@\" >&-").run()?.ensure_code(0)?;
    Ok(())
}

fn no_module_is_loaded() -> Result<()> {
    let modules = || -> Result<BTreeSet<_>> {
        fs::read_dir("/sys/module")?.map(|entry| Ok(entry?.file_name())).collect()
    };
    let before = modules()?;
    doctor().run()?.ensure_code(0)?;
    ensure!(modules()? == before, "modules were loaded");
    Ok(())
}
