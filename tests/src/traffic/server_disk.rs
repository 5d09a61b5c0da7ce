//! The disk that a guest has its server on: this program, its loader and its libraries, in an archive.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Makes it at `disk`. The names in the archive are those by which `tests/linux/init` starts the program with the words `serve --at ENDPOINT`.
///
/// # Errors
///
/// A file cannot be read, or there is no `tar`.
pub fn make(disk: &Path) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let inside = |name: &str| tree.path().join(name);
    fs::create_dir(inside("lib"))?;
    fs::copy("/proc/self/exe", inside("program")).context("this program")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut libraries: Vec<_> =
        maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
    libraries.retain(|path| path.contains(".so"));
    libraries.dedup();
    for library in libraries {
        let name = Path::new(library).file_name().context("a library without a name")?;
        let is_loader = name.to_string_lossy().starts_with("ld-");
        let to = if is_loader { inside("loader") } else { inside("lib").join(name) };
        fs::copy(library, to).with_context(|| library.to_owned())?;
    }
    let mut tar = Command::new("tar");
    tar.arg("-c").arg("-f").arg(disk).arg("-C").arg(tree.path()).arg(".").stdin(Stdio::null());
    let output = tar.output().context("cannot start tar")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}
