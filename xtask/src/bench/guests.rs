//! The guest programs of the benchmarks, assembled and linked.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const SOURCES: &str = "tests/guests";

/// Where the ELF files are.
pub const OUTPUT: &str = "target/guests";

/// Builds every `tests/guests/NAME.S` into `target/guests/NAME.elf`.
///
/// # Errors
///
/// gcc is missing or fails.
pub fn build() -> Result<()> {
    fs::create_dir_all(OUTPUT).with_context(|| format!("cannot create {OUTPUT}"))?;
    for entry in fs::read_dir(SOURCES).with_context(|| format!("cannot read {SOURCES}"))? {
        let source = entry?.path();
        if source.extension().is_some_and(|extension| extension == "S") {
            let elf = std::path::Path::new(OUTPUT)
                .join(source.file_name().unwrap_or_default())
                .with_extension("elf");
            let status = Command::new("gcc")
                .args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"])
                .arg(format!("-Wl,-T,{SOURCES}/guest.ld"))
                .arg(format!("-I{SOURCES}"))
                .arg(&source)
                .arg("-o")
                .arg(&elf)
                .status()
                .context("cannot start gcc; install it with: apt-get install gcc")?;
            ensure!(
                status.success(),
                "gcc ended with {status} for {}",
                source.display()
            );
        }
    }
    Ok(())
}
