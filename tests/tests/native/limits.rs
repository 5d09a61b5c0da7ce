//! Limits: what the arguments and the host do not allow is refused, with the code that says whose it is to mend.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{Finished, TestVm, guest, monitor};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        fault_c1_any_number_of_descriptors_runs_or_is_refused,
        fault_c1_too_little_address_space_is_refused,
        fault_c2_memory_out_of_range_is_refused_with_the_limit,
        fault_c2_cpus_out_of_range_are_refused_with_the_limit,
        a_machine_without_kvm_is_refused_with_advice,
        a_user_without_permission_is_refused_with_advice,
    ]
}

fn fault_c1_any_number_of_descriptors_runs_or_is_refused() -> Result<()> {
    for args in ["--cpus 1", "--cpus 4 --selftest --serial pty", "--cpus 4 --stats /dev/null"] {
        let mut ran = 0;
        for limit in 3..=64 {
            let script = format!("ulimit -n {limit}; exec \"$@\"");
            let vm = TestVm::guest("bench_reset").args(args).through_shell(&script).run()?;
            ensure!(!vm.stderr.contains("panicked"), "{args}, {limit} descriptors: {:?}", vm.stderr);
            if vm.status.success() {
                ran += 1;
                continue;
            }
            ensure!(ran == 0, "{args}: {limit} descriptors are not enough, but fewer were");
            vm.ensure_code(3)
                .with_context(|| format!("{args}, {limit} descriptors"))?
                .ensure_message(&["os error"])?;
        }
        ensure!(ran > 0, "{args}: 64 descriptors are not enough");
    }
    Ok(())
}

fn fault_c1_too_little_address_space_is_refused() -> Result<()> {
    let script = "ulimit -v 100000; exec \"$@\"";
    let vm = TestVm::guest("bench_reset").args("--memory 1G").through_shell(script).run()?;
    vm.ensure_code(3)?.ensure_message(&["vmm-cli: "])?;
    Ok(())
}

fn fault_c2_memory_out_of_range_is_refused_with_the_limit() -> Result<()> {
    for (size, words) in [
        ("0", "below the minimum of 1 MiB"),
        ("1", "below the minimum of 1 MiB"),
        ("16777216M", "above the limit of 1 TiB"),
        ("17592186044416M", "above the limit of 1 TiB"),
        ("9223372036854775808", "above the limit of 1 TiB"),
        ("-1", "negative; expected a size from 1M to 1T"),
        ("1025K", "4K"),
    ] {
        let vm = TestVm::guest("bench_reset").arg("--memory").arg(size).run()?;
        vm.ensure_code(2)?.ensure_message(&["--memory", size, words])?.ensure_output("")?;
    }
    Ok(())
}

fn fault_c2_cpus_out_of_range_are_refused_with_the_limit() -> Result<()> {
    for (count, words) in [
        ("0", "below the minimum of 1"),
        ("255", "above the limit of 254"),
        ("4294967297", "above the limit of 254"),
        ("-1", "negative; expected a whole number from 1 to 254"),
    ] {
        let vm = TestVm::guest("bench_reset").arg("--cpus").arg(count).run()?;
        vm.ensure_code(2)?.ensure_message(&["--cpus", count, words])?.ensure_output("")?;
    }
    Ok(())
}

/// A directory with the monitor, a guest and a `/dev` of its own, to be a root directory.
fn root() -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    fs::copy(monitor(), root.path().join("vmm-cli"))?;
    fs::copy(guest("bench_reset"), root.path().join("guest.elf"))?;
    fs::create_dir(root.path().join("dev"))?;
    Ok(root)
}

/// Runs the monitor of `root` there, as somebody for whom the modes of files count.
fn run_in(root: &Path) -> Result<Finished> {
    let script = "if [ \"$(id -u)\" = 0 ]; then exec \"$@\"; else exec unshare --map-root-user \"$@\"; fi";
    let vm = TestVm::program("/vmm-cli").args("run --kernel /guest.elf").through_shell(script);
    let vm = vm.through("setpriv --bounding-set=-dac_override,-dac_read_search chroot").through_path(root);
    vm.run()
}

fn a_machine_without_kvm_is_refused_with_advice() -> Result<()> {
    let root = root()?;
    run_in(root.path())?.ensure_code(3)?.ensure_message(&[
        "/dev/kvm",
        "modprobe kvm",
        "--device /dev/kvm",
    ])?;
    Ok(())
}

fn a_user_without_permission_is_refused_with_advice() -> Result<()> {
    let root = root()?;
    let kvm = root.path().join("dev/kvm");
    fs::write(&kvm, "")?;
    fs::set_permissions(&kvm, fs::Permissions::from_mode(0o000))?;
    run_in(root.path())?.ensure_code(3)?.ensure_message(&[
        "/dev/kvm",
        "usermod -aG kvm",
        "Permission denied",
    ])?;
    Ok(())
}
