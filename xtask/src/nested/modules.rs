//! Modules: kernel modules of an unpacked package, with those they need, in the order in which they are loaded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::payload::filter;

/// A module: its name, and its file's content, unpacked.
#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// Reads the modules `names` and what they need from the kernel package at `root`, each before whatever needs it. What
/// is built into that kernel is left out.
pub fn load(root: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    find(&root.join("lib/modules"), &mut files)?;
    let built_in = built_in(&files)?;
    let names = names.iter().map(|name| canonical(name)).filter(|name| !built_in.contains(name));
    let mut loaded = Vec::new();
    for name in names {
        add(&name, &files, &mut loaded)?;
    }
    Ok(loaded)
}

/// The names in the package's list `modules.builtin`, a path on each line.
fn built_in(files: &[PathBuf]) -> Result<Vec<String>> {
    let list = files.iter().find(|file| file.ends_with("modules.builtin"));
    let list = list.context("the kernel package has no modules.builtin")?;
    let text = fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    Ok(text.lines().filter_map(|line| module_name(Path::new(line))).collect())
}

fn add(name: &str, files: &[PathBuf], loaded: &mut Vec<Module>) -> Result<()> {
    if loaded.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files.iter().find(|file| module_name(file).as_deref() == Some(name));
    let file = file.with_context(|| format!("there is no module {name}"))?;
    let mut content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if file.extension().is_some_and(|extension| extension == "xz") {
        content = filter("xz", &content).with_context(|| file.display().to_string())?;
    }
    depends(&content).iter().try_for_each(|needed| add(needed, files, loaded))?;
    loaded.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// The files below a directory.
fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// `kvm_amd` for `kvm-amd.ko` and `kvm-amd.ko.xz`.
fn module_name(file: &Path) -> Option<String> {
    let file = file.file_name()?.to_str()?;
    Some(canonical(file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?))
}

/// The kernel does not tell `-` from `_` in a module's name.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that a module's section `.modinfo` says it needs: `depends=a,b`, between zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    let lists = module.split(|byte| *byte == 0).filter_map(|text| text.strip_prefix(b"depends="));
    let names = lists.filter_map(|list| str::from_utf8(list).ok()).flat_map(|list| list.split(','));
    names.filter(|name| !name.is_empty()).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_behind_those_it_needs_and_once() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("lib/modules/6/kernel");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("a-b.ko"), "\0license=GPL\0depends=c,d-e\0name=a_b\0").unwrap();
        fs::write(directory.join("c.ko"), "\0depends=\0").unwrap();
        fs::write(directory.join("d_e.ko"), "\0depends=c\0").unwrap();
        fs::write(root.path().join("lib/modules/6/modules.builtin"), "kernel/x-y.ko\n").unwrap();
        let loaded = load(root.path(), &["x_y", "c", "a_b", "a-b"]).unwrap();
        assert_eq!(loaded.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["c", "d_e", "a_b"]);
        assert_eq!(load(root.path(), &["f"]).unwrap_err().to_string(), "there is no module f");
    }
}
