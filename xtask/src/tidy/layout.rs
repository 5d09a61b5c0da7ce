//! Layout: what may stand at the top of the repository and at the top of a file.

use std::collections::BTreeSet;

use super::Problem;

const TOP_LEVEL: [&str; 26] = [
    ".cargo",
    ".ci",
    ".gitattributes",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-BSD-3-CLAUSE",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "deny.toml",
    "docs",
    "examples",
    "fuzz",
    "rustfmt.toml",
    "tests",
    "vmm-cli",
    "vmm-core",
    "vmm-devices",
    "vmm-memory",
    "vmm-vcpu",
    "xtask",
];

/// Finds entries at the top of the repository that do not belong there.
pub fn top_level(paths: &[&str]) -> Vec<Problem> {
    let entries: BTreeSet<_> = paths.iter().map(|path| path.split('/').next().unwrap_or(path)).collect();
    let foreign = entries.into_iter().filter(|entry| !TOP_LEVEL.contains(entry));
    foreign.map(|entry| Problem::new(entry, 1, "does not belong at the top of the repository")).collect()
}

/// A Rust file begins by saying what it is.
pub fn first_line(path: &str, text: &str) -> Option<Problem> {
    let says = text.strip_prefix("//! ").is_some_and(|rest| !rest.trim_start_matches(' ').starts_with('\n'));
    (!says).then(|| Problem::new(path, 1, "the first line is no `//!` sentence"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_entry_at_the_top_is_found_once() {
        let found = top_level(&["Cargo.toml", "src/a.rs", "src/b.rs", "vmm-core/src/lib.rs"]);
        assert_eq!(found, [Problem::new("src", 1, "does not belong at the top of the repository")]);
    }

    #[test]
    fn a_file_must_begin_with_a_sentence_about_itself() {
        assert_eq!(first_line("a.rs", "//! The bus.\n"), None);
        for text in ["", "use a;\n", "// The bus.\n", "\n//! The bus.\n", "//! \n", "//!\n"] {
            assert!(first_line("a.rs", text).is_some(), "{text:?}");
        }
    }
}
