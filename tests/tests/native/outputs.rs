//! Outputs: files and sockets that belong to somebody else are left as they are.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{RunningVm, TestVm, guest, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_refused_image_leaves_the_output_of_the_last_run,
        a_kernel_is_not_written_over_by_its_own_output,
        the_socket_of_a_later_monitor_is_left_alone,
        of_monitors_that_start_at_once_one_gets_the_socket,
    ]
}

fn on_socket(path: &Path) -> Result<RunningVm> {
    TestVm::guest("bench_halt").arg("--serial").arg(format!("unix={}", path.display())).spawn()
}

/// Waits until something is at `path`.
fn appears(path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    until(deadline, "socket", || Ok(path.exists().then_some(())))
}

fn a_refused_image_leaves_the_output_of_the_last_run() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (kernel, output) = (directory.path().join("kernel"), directory.path().join("output"));
    fs::write(&kernel, "no kernel")?;
    fs::write(&output, "of the last run")?;
    let vm = TestVm::bare().arg("--kernel").arg(&kernel).arg("--serial");
    vm.arg(format!("file={}", output.display())).run()?.ensure_code(2)?;
    ensure!(fs::read(&output)? == b"of the last run", "the file was emptied");
    Ok(())
}

fn a_kernel_is_not_written_over_by_its_own_output() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kernel = directory.path().join("kernel");
    let image = fs::read(guest("bench_reset"))?;
    fs::write(&kernel, &image)?;
    for flag in ["--serial=file=", "--log-file="] {
        let vm = TestVm::bare().arg("--kernel").arg(&kernel).arg(format!("{flag}{}", kernel.display()));
        vm.run()?.ensure_code(2)?.ensure_message(&["would be written over"])?;
        ensure!(fs::read(&kernel)? == image, "{flag}: the kernel was changed");
    }
    Ok(())
}

fn the_socket_of_a_later_monitor_is_left_alone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let first = on_socket(&path)?;
    appears(&path)?;
    fs::remove_file(&path)?;
    let second = on_socket(&path)?;
    appears(&path)?;
    first.signal(Signal::SIGTERM)?;
    first.wait()?.ensure_code(0)?;
    ensure!(path.exists(), "the first monitor removed the socket of the second");
    second.signal(Signal::SIGTERM)?;
    second.wait()?.ensure_code(0)?;
    ensure!(!path.exists(), "the second monitor left its socket");
    Ok(())
}

fn of_monitors_that_start_at_once_one_gets_the_socket() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for round in 0..10 {
        let path = directory.path().join(format!("socket{round}"));
        // Left behind: the ones who find it may take it for each other's.
        drop(UnixListener::bind(&path)?);
        let monitors = [on_socket(&path)?, on_socket(&path)?, on_socket(&path)?];
        std::thread::sleep(Duration::from_millis(200));
        let mut running = 0;
        for mut monitor in monitors {
            if monitor.is_running()? {
                running += 1;
                monitor.signal(Signal::SIGTERM)?;
                monitor.wait()?.ensure_code(0)?;
            } else {
                let refused = monitor.wait()?.ensure_code(2).context("one that did not get it")?;
                refused.ensure_message(&["in use by another program"])?;
            }
        }
        ensure!(running == 1, "round {round}: {running} monitors on one path");
    }
    Ok(())
}
