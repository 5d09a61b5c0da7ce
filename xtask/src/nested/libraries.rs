//! Libraries: the shared libraries and the loader that a program brings along.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where Debian's libraries are, and those of one package that are not for others.
const DIRECTORIES: [&str; 3] =
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];

/// The search path of programs below the root of unpacked packages, as `LD_LIBRARY_PATH` has it.
pub fn below(root: &Path) -> String {
    DIRECTORIES.map(|path| root.join(path).display().to_string()).join(":")
}

/// The files that a dynamically linked program needs, none for any other file.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    found(program, "")
}

/// Those of a program of unpacked packages, which have all but the loader below `root`.
pub fn of_unpacked(program: &Path, root: &Path) -> Result<Vec<PathBuf>> {
    found(program, &below(root))
}

fn found(program: &Path, search_path: &str) -> Result<Vec<PathBuf>> {
    let mut magic = Vec::new();
    File::open(program)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .with_context(|| format!("cannot read {}", program.display()))?;
    if magic != b"\x7fELF" {
        return Ok(Vec::new());
    }
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env("LC_ALL", "C");
    if !search_path.is_empty() {
        ldd.env("LD_LIBRARY_PATH", search_path);
    }
    let output = ldd.output().context("cannot start ldd")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !said.contains("not a dynamic executable") {
        bail!("ldd {} ended with {}: {}", program.display(), output.status, said.trim());
    }
    listed(&String::from_utf8_lossy(&output.stdout)).with_context(|| program.display().to_string())
}

/// Reads `libc.so.6 => /lib/libc.so.6 (0x7f00)` and `/lib64/ld-linux-x86-64.so.2 (0x7f00)`. The vDSO has no file.
fn listed(output: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for line in output.lines() {
        if let Some(missing) = line.trim().strip_suffix("=> not found") {
            bail!("the library {} is not found", missing.trim());
        }
        let file = line.split_once("=> ").map_or(line, |(_, file)| file).trim();
        if let Some((file, _address)) = file.split_once(" (0x").filter(|(file, _)| file.starts_with('/')) {
            files.push(file.into());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_listed_and_the_vdso_is_not() {
        let output = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f00)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        assert_eq!(
            listed(output).unwrap(),
            [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
        assert!(listed("\tstatically linked\n").unwrap().is_empty());
        assert!(listed("\tliba.so => not found\n").unwrap_err().to_string().contains("liba.so"));
    }

    #[test]
    fn this_program_needs_the_c_library_and_a_text_needs_nothing() {
        let needed = of(&std::env::current_exe().unwrap()).unwrap();
        assert!(needed.iter().any(|file| file.to_string_lossy().contains("libc.so")), "{needed:?}");
        assert!(of(Path::new("Cargo.toml")).unwrap().is_empty());
    }
}
