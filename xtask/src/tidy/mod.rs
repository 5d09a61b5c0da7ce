//! Tidy: the project's rules that neither the compiler nor a lint of it knows.

mod documents;
mod faults;
mod layout;
mod paths;
mod size;
mod source;
mod unsafety;
mod words;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host::need;
use crate::process::capture;
use crate::report::{Outcome, Report};
use source::Source;

/// One place where a rule is broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    line: usize,
    text: String,
}

impl Problem {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.into(), line, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// One file that git tracks, or would if it were added.
struct File {
    path: String,
    /// Nothing for a symbolic link or a file that is not UTF-8.
    text: Option<String>,
    /// What a symbolic link points to.
    link: Option<PathBuf>,
}

/// Checks every rule and reports all places at once.
pub fn run_all(report: &mut Report) -> Result<()> {
    report.step("tidy", "cargo xtask tidy", |_| {
        let files = files()?;
        let mut problems = problems(&files)?;
        problems.sort();
        problems.iter().for_each(|problem| println!("{problem}"));
        if !problems.is_empty() {
            bail!("{} places to mend in {} files", problems.len(), files.len());
        }
        Ok(Outcome::Passed)
    })
}

fn problems(files: &[File]) -> Result<Vec<Problem>> {
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    let mut problems = layout::top_level(&paths);
    problems.extend(documents::decisions(files));
    problems.extend(documents::dependencies(
        text_of(files, "Cargo.toml")?,
        text_of(files, documents::DEPENDENCIES)?,
    )?);
    let mut opt_ins = Vec::new();
    for file in files {
        problems.extend(paths::check(file)?);
        let Some(text) = file.text.as_deref().filter(|_| file.path.ends_with(".rs")) else {
            continue;
        };
        problems.extend(layout::first_line(&file.path, text));
        let source = Source::read(&file.path, text)?;
        problems.extend(size::check(&source));
        problems.extend(words::check(&source));
        problems.extend(faults::check(&source));
        problems.extend(paths::included(&source));
        problems.extend(unsafety::comments(&source));
        opt_ins.extend(unsafety::opt_in(&source));
    }
    problems.extend(unsafety::compare(&opt_ins, text_of(files, unsafety::LIST)?));
    Ok(problems)
}

fn text_of<'a>(files: &'a [File], path: &str) -> Result<&'a str> {
    let file = files.iter().find(|file| file.path == path);
    file.and_then(|file| file.text.as_deref()).with_context(|| format!("{path} is missing"))
}

/// The files of the checkout, without those git ignores and those that were deleted and not yet committed.
fn files() -> Result<Vec<File>> {
    need("git", "git")?;
    let mut git = Command::new("git");
    // A CI machine may run this as root in a checkout that belongs to somebody else.
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = capture(&mut git)?;
    let mut files = Vec::new();
    for path in listed.split_terminator('\0') {
        let Ok(metadata) = fs::symlink_metadata(path) else {
            continue;
        };
        let read = |path| fs::read(path).with_context(|| format!("cannot read {path}"));
        let text = if metadata.is_file() { String::from_utf8(read(path)?).ok() } else { None };
        files.push(File { path: path.to_owned(), text, link: fs::read_link(path).ok() });
    }
    Ok(files)
}
