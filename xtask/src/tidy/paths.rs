//! Paths: no file of the repository leads out of it.

use std::path::{Component, Path};

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::source::{Kind, Source};
use super::{File, Problem};

/// Home directories, by their first component: an absolute path below one is somebody's own machine.
const HOMES: [&str; 3] = ["home", "root", "Users"];

/// Checks the link, the text, or the path dependencies of one file.
pub fn check(file: &File) -> Result<Vec<Problem>> {
    let path = &file.path;
    let mut problems = Vec::new();
    if let Some(target) = file.link.as_deref().filter(|target| leads_out(path, target)) {
        problems.push(Problem::new(path, 1, format!("links to {} outside", target.display())));
    }
    let Some(text) = &file.text else {
        return Ok(problems);
    };
    problems.extend(homes(path, text));
    if Path::new(path).ends_with("Cargo.toml") {
        let manifest: Table = text.parse().with_context(|| format!("{path} is not TOML"))?;
        problems.extend(path_values(path, &Value::Table(manifest)));
    }
    Ok(problems)
}

fn homes(path: &str, text: &str) -> Vec<Problem> {
    let is_machine = |line: &str| {
        HOMES.iter().any(|home| line.match_indices(&format!("/{home}/")).any(|(at, _)| is_start(&line[..at])))
    };
    let found = text.lines().enumerate().filter(|(_, line)| is_machine(line));
    found.map(|(index, _)| Problem::new(path, index + 1, "names a directory of one machine")).collect()
}

/// Whether a path can begin after this text, rather than go on.
fn is_start(before: &str) -> bool {
    !before.ends_with(|letter: char| letter.is_alphanumeric() || "._-/}".contains(letter))
}

/// Checks `include!` and its kin, and `#[path = "…"]`, where the path is a literal.
pub fn included(source: &Source<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for window in source.tokens.windows(4) {
        let [name, sign, open, argument] = window else {
            continue;
        };
        let is_include = name.text.starts_with("include") && sign.is("!") && open.kind == Kind::Open;
        let is_path = name.is("[") && sign.is("path") && open.is("=");
        if argument.kind != Kind::Literal || !(is_include || is_path) {
            continue;
        }
        let target = argument.text.trim_matches('"');
        if leads_out(source.path, Path::new(target)) {
            problems.push(Problem::new(
                source.path,
                argument.line,
                format!("takes in {target} from outside"),
            ));
        }
    }
    problems
}

/// The values of keys named `path` in a manifest.
fn path_values(manifest: &str, value: &Value) -> Vec<Problem> {
    let Value::Table(table) = value else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    for (key, value) in table {
        match value.as_str().filter(|_| key == "path") {
            Some(target) if leads_out(manifest, Path::new(target)) => {
                problems.push(Problem::new(manifest, 1, format!("depends on {target} outside")));
            }
            _ => problems.extend(path_values(manifest, value)),
        }
    }
    problems
}

/// Whether `target`, seen from the directory of `file`, is outside the repository.
fn leads_out(file: &str, target: &Path) -> bool {
    let mut depth = file.matches('/').count();
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let file = File { path: path.into(), text: Some(text.into()), link: None };
        check(&file).unwrap().iter().map(|problem| problem.line).collect()
    }

    fn included_lines(text: &str) -> Vec<usize> {
        included(&Source::read("a/b.rs", text).unwrap()).iter().map(|problem| problem.line).collect()
    }

    #[test]
    fn a_path_leads_out_when_it_climbs_above_the_root_or_is_absolute() {
        for (file, target, out) in [
            ("a/b.rs", "../c", false),
            ("a/b.rs", "../../c", true),
            ("b", "../c", true),
            ("a/b/c.rs", "./../../d/../../e", true),
            ("a/b.rs", "/etc/passwd", true),
        ] {
            assert_eq!(leads_out(file, Path::new(target)), out, "{file} {target}");
        }
    }

    #[test]
    fn a_link_must_stay_inside() {
        let problems = |target: &str| {
            check(&File { path: "a/b".into(), text: None, link: Some(target.into()) }).unwrap()
        };
        assert_eq!(problems("../c"), []);
        assert_eq!(problems("../../c"), [Problem::new("a/b", 1, "links to ../../c outside")]);
    }

    #[test]
    fn included_files_and_module_paths_stay_inside() {
        assert_eq!(
            included_lines("include_str!(\"../c\");\ninclude!(concat!(env!(\"OUT_DIR\"), \"/x\"));"),
            [0; 0]
        );
        assert_eq!(included_lines("\nconst A: &[u8] = include_bytes!(\"../../c\");"), [2]);
        assert_eq!(included_lines("#[path = \"/etc/c.rs\"]\nmod c;"), [1]);
    }

    #[test]
    fn path_dependencies_stay_inside() {
        assert_eq!(lines("a/Cargo.toml", "[dependencies]\nb = { path = \"../b\" }\n"), [0; 0]);
        assert_eq!(lines("a/Cargo.toml", "[target.'cfg(x)'.dependencies.b]\npath = \"../../b\"\n"), [1]);
    }

    #[test]
    fn home_directories_are_found_in_any_text_and_parts_of_other_paths_are_not() {
        for home in HOMES {
            assert_eq!(lines("docs/a.md", &format!("one\nsee /{home}/me/x\n")), [2]);
            assert_eq!(
                lines("docs/a.md", &format!("https://example.org/{home}/x and ./a/{home}/x\n")),
                [0; 0]
            );
        }
    }
}
