//! Documents that follow the tree: the list of dependencies and the numbered decisions.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::{File, Problem};

pub const DEPENDENCIES: &str = "docs/dependencies.md";
const DECISIONS: &str = "docs/adr/";

/// Compares the dependencies of the workspace manifest with the rows ``| `NAME` | REASON |`` of the document.
pub fn dependencies(manifest: &str, document: &str) -> Result<Vec<Problem>> {
    let manifest: Table = manifest.parse().context("Cargo.toml is not TOML")?;
    let workspace = manifest.get("workspace").and_then(|workspace| workspace.get("dependencies"));
    let table = workspace.and_then(Value::as_table).context("Cargo.toml has no [workspace.dependencies]")?;
    let used: Vec<_> =
        table.iter().filter(|(_, value)| value.get("path").is_none()).map(|(name, _)| name).collect();
    let mut problems = Vec::new();
    let mut listed = Vec::new();
    for (index, line) in document.lines().enumerate() {
        let Some((name, reason)) = line.strip_prefix("| `").and_then(|row| row.split_once("` |")) else {
            continue;
        };
        listed.push(name);
        if reason.trim_matches(['|', ' ']).is_empty() {
            problems.push(Problem::new(DEPENDENCIES, index + 1, format!("{name} has no reason")));
        }
        if !used.iter().any(|used| *used == name) {
            problems.push(Problem::new(
                DEPENDENCIES,
                index + 1,
                format!("{name} is no dependency of the workspace"),
            ));
        }
    }
    for name in used.iter().filter(|name| !listed.contains(&name.as_str())) {
        problems.push(Problem::new("Cargo.toml", 1, format!("{name} has no row in {DEPENDENCIES}")));
    }
    Ok(problems)
}

/// Decisions are `NNNN-title.md`, counted from 0001 without a gap, and each begins with `# NNNN. Title`.
pub fn decisions(files: &[File]) -> Vec<Problem> {
    let decisions = files.iter().filter_map(|file| Some((file, file.path.strip_prefix(DECISIONS)?)));
    let mut decisions: Vec<_> = decisions.collect();
    decisions.sort_by_key(|(_, name)| *name);
    let mut problems = Vec::new();
    for (index, (file, name)) in decisions.into_iter().enumerate() {
        let number = format!("{:04}", index + 1);
        let title = name.strip_prefix(&format!("{number}-")).and_then(|rest| rest.strip_suffix(".md"));
        let is_plain = |title: &str| {
            !title.is_empty()
                && title.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if !title.is_some_and(is_plain) {
            problems.push(Problem::new(&file.path, 1, format!("expected {number}-lower-case-title.md")));
        }
        if !file.text.as_ref().is_some_and(|text| text.starts_with(&format!("# {number}. "))) {
            problems.push(Problem::new(&file.path, 1, format!("the first line is not `# {number}. Title`")));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[workspace.dependencies]\nvmm-core = { path = \"vmm-core\" }\nlibc = \"0.2\"\n";

    fn decision(path: &str, text: &str) -> File {
        File { path: format!("{DECISIONS}{path}"), text: Some(text.into()), link: None }
    }

    fn texts(problems: Vec<Problem>) -> Vec<String> {
        problems.into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn a_row_for_each_dependency_from_outside_passes() {
        assert_eq!(
            dependencies(MANIFEST, "| crate | reason |\n|---|---|\n| `libc` | system calls |\n").unwrap(),
            []
        );
    }

    #[test]
    fn a_missing_row_a_stale_row_and_a_row_without_a_reason_fail() {
        let problems = dependencies(MANIFEST, "| `rand` | |\n").unwrap();
        assert_eq!(
            texts(problems),
            [
                "rand has no reason",
                "rand is no dependency of the workspace",
                "libc has no row in docs/dependencies.md"
            ]
        );
    }

    #[test]
    fn decisions_are_counted_without_a_gap_and_begin_with_their_number() {
        let first = || decision("0001-record.md", "# 0001. Record\n");
        assert_eq!(decisions(&[first(), decision("0002-static-link.md", "# 0002. Static link\n")]), []);
        let gap = decisions(&[first(), decision("0003-a.md", "# 0003. A\n")]);
        assert_eq!(
            texts(gap),
            ["expected 0002-lower-case-title.md", "the first line is not `# 0002. Title`"]
        );
        let twice = decisions(&[first(), decision("0001-again.md", "# 0001. Again\n")]);
        assert_eq!(
            texts(twice),
            ["expected 0002-lower-case-title.md", "the first line is not `# 0002. Title`"]
        );
        assert_eq!(
            texts(decisions(&[decision("0001-A b.md", "# 0001. A b\n")])),
            ["expected 0001-lower-case-title.md"]
        );
    }
}
