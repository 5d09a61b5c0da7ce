//! The default guest: compiled from `guest/` into the ELF file that `src/default_guest.rs` includes.

use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = "guest";

/// The guest runs on a bare machine, and where KVM interprets its code instead of running it: no library, no
/// registers but the general ones, no instruction newer than the first x86-64, no `memset` made of a loop.
const FLAGS: [&str; 21] = [
    "-O2",
    "-march=x86-64",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-mno-sse",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-Wall",
    "-Wextra",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=0x1000",
    "-Wl,-s",
];

fn main() {
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=CI");
    match build() {
        Ok(image) => println!("cargo::rustc-env=VMM_DEFAULT_GUEST={}", image.display()),
        // A message is one line.
        Err(reason) => reason.lines().for_each(|line| println!("cargo::error=the default guest: {line}")),
    }
}

fn build() -> Result<PathBuf, String> {
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; this program is for cargo")?;
    let image = Path::new(&out).join("default-guest.elf");
    let sources = sources().map_err(|error| format!("{SOURCES}: {error}"))?;
    let compiler =
        cc::Build::new().cargo_warnings(false).try_get_compiler().map_err(|error| error.to_string())?;
    // The path alone: flags of the environment are for programs of this machine.
    let mut command = Command::new(compiler.path());
    if env::var_os("CI").is_some() {
        // Elsewhere a newer compiler's new warning must not stop a user's build.
        command.arg("-Werror");
    }
    command.args(FLAGS).arg(format!("-Wl,-T,{SOURCES}/guest.ld")).args(sources).arg("-o").arg(&image);
    let name = compiler.path().display();
    match command.output() {
        Ok(output) if output.status.success() => Ok(image),
        Ok(output) => Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("there is no C compiler {name}; on Debian: apt-get install gcc"))
        }
        Err(error) => Err(format!("{name}: {error}")),
    }
}

/// What is compiled, in an order that does not depend on the file system.
fn sources() -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(SOURCES)?;
    let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "c" || extension == "S"));
    files.sort();
    Ok(files)
}
