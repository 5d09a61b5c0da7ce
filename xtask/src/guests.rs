//! Guest programs: assembles each `tests/guests/*.S` into an ELF file under `target/guests`.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host::need;
use crate::process::{render, run};

const SOURCES: &str = "tests/guests";

/// Where the ELF files are.
pub const OUTPUT: &str = "target/guests";

/// The flags a guest program asks for in its first line, `/* guest: cflags=-m32 ldflags=-Wl,-T,x.ld */`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flags {
    c: Vec<String>,
    ld: Vec<String>,
}

/// Builds the guest programs whose inputs changed since they were last built.
pub fn build() -> Result<()> {
    need("gcc", "gcc")?;
    fs::create_dir_all(OUTPUT).with_context(|| format!("cannot create {OUTPUT}"))?;
    let (guests, shared) = sources()?;
    if guests.is_empty() {
        bail!("there is no guest program {SOURCES}/*.S");
    }
    let shared: Vec<_> = shared.iter().map(fs::read).collect::<Result<_, _>>()?;
    let mut built = 0;
    for source in &guests {
        built += usize::from(build_one(source, &shared)?);
    }
    // Not standard output: a benchmark prints JSON there.
    eprintln!("{} guest programs in {OUTPUT}, {built} of them built now", guests.len());
    Ok(())
}

/// The guest programs, and the files any of them can include or be linked by.
fn sources() -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = fs::read_dir(SOURCES).with_context(|| format!("cannot read {SOURCES}"))?;
    let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files.into_iter().partition(|file| file.extension() == Some(OsStr::new("S"))))
}

/// Builds one guest unless the stamp beside it says that neither the command nor an input has changed.
fn build_one(source: &Path, shared: &[Vec<u8>]) -> Result<bool> {
    let text = fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
    let flags = flags(&text).with_context(|| format!("first line of {}", source.display()))?;
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    let (elf, stamp) = (format!("{OUTPUT}/{name}.elf"), format!("{OUTPUT}/{name}.stamp"));
    let mut command = compile(source, &elf, &flags);
    let mut hasher = DefaultHasher::new();
    (render(&command), text, shared).hash(&mut hasher);
    let inputs = hasher.finish().to_string();
    if Path::new(&elf).exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == inputs) {
        return Ok(false);
    }
    run(&mut command)?;
    fs::write(&stamp, inputs).with_context(|| format!("cannot write {stamp}"))?;
    Ok(true)
}

fn compile(source: &Path, elf: &str, flags: &Flags) -> Command {
    let mut command = Command::new("gcc");
    command
        .args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"])
        .arg(format!("-I{SOURCES}"))
        .args(&flags.c)
        .arg(source)
        .args(["-o", elf])
        .args(&flags.ld);
    if !flags.ld.iter().any(|flag| flag.starts_with("-Wl,-T") || flag.starts_with("-T")) {
        command.arg(format!("-Wl,-T,{SOURCES}/guest.ld"));
    }
    command
}

/// Reads the flags of the first line, if it has the form that gives any.
fn flags(text: &str) -> Result<Flags> {
    let mut flags = Flags::default();
    let first = text.lines().next().unwrap_or_default();
    let Some(settings) = first.strip_prefix("/* guest:") else {
        return Ok(flags);
    };
    let Some(settings) = settings.trim_end().strip_suffix("*/") else { bail!("the comment does not end") };
    let mut list = None;
    for word in settings.split_whitespace() {
        let flag = match word.split_once('=') {
            Some(("cflags", flag)) => {
                list = Some(&mut flags.c);
                flag
            }
            Some(("ldflags", flag)) => {
                list = Some(&mut flags.ld);
                flag
            }
            _ => word,
        };
        let Some(list) = list.as_mut() else { bail!("{word:?} is neither cflags=… nor ldflags=…") };
        list.push(flag.to_owned());
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_gives_flags_until_the_next_key() {
        let flags =
            flags("/* guest: cflags=-m32 -DX=1 ldflags=-Wl,-T,a.ld -Wl,-s */\nmov %eax, %eax\n").unwrap();
        assert_eq!(flags.c, ["-m32", "-DX=1"]);
        assert_eq!(flags.ld, ["-Wl,-T,a.ld", "-Wl,-s"]);
    }

    #[test]
    fn any_other_first_line_gives_none() {
        assert_eq!(flags("/* Writes a byte. */\n/* guest: cflags=-m32 */\n").unwrap(), Flags::default());
    }

    #[test]
    fn a_flag_without_a_key_and_a_comment_without_an_end_are_refused() {
        assert!(flags("/* guest: -m32 */").unwrap_err().to_string().contains("\"-m32\""));
        assert!(flags("/* guest: cflags=-m32").is_err());
    }

    #[test]
    fn a_linker_script_of_its_own_takes_the_place_of_the_common_one() {
        let own = flags("/* guest: ldflags=-Wl,-T,low.ld */").unwrap();
        let scripts =
            |flags: &Flags| render(&compile(Path::new("a.S"), "a.elf", flags)).matches("-T,").count();
        assert_eq!((scripts(&own), scripts(&Flags::default())), (1, 1));
        assert!(render(&compile(Path::new("a.S"), "a.elf", &own)).ends_with("-Wl,-T,low.ld"));
    }
}
