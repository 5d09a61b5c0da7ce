//! Unsafe code: which files opt in, and that each unsafe block and impl says why it is sound.

use super::Problem;
use super::source::{Source, Token};

/// The files that may contain unsafe code, one a line: `PATH: REASON`.
pub const LIST: &str = "xtask/unsafe-modules.txt";

/// The file that lifts the workspace's lint against unsafe code, with the first line where it does.
pub fn opt_in(source: &Source<'_>) -> Option<(String, usize)> {
    let lifts = |attribute: &&[Token]| {
        let names_lint = attribute.iter().any(|token| token.is("unsafe_code"));
        names_lint && !attribute.iter().any(|token| token.is("deny") || token.is("forbid"))
    };
    let attribute = source.attributes().find(lifts)?;
    Some((source.path.to_owned(), attribute[0].line))
}

/// Compares the files that opt in with the list.
pub fn compare(opt_ins: &[(String, usize)], list: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut listed = Vec::new();
    for (index, line) in
        list.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
    {
        let number = index + 1;
        let (path, reason) = line.split_once(": ").unwrap_or((line, ""));
        if reason.trim().is_empty() {
            problems.push(Problem::new(LIST, number, format!("{path} has no reason: write PATH: REASON")));
        }
        if !opt_ins.iter().any(|(opted, _)| opted == path) {
            problems.push(Problem::new(LIST, number, format!("{path} does not opt in to unsafe code")));
        }
        if listed.contains(&path) {
            problems.push(Problem::new(LIST, number, format!("{path} is listed twice")));
        }
        listed.push(path);
    }
    for (path, line) in opt_ins.iter().filter(|(path, _)| !listed.contains(&path.as_str())) {
        problems.push(Problem::new(path, *line, format!("opts in to unsafe code and is not in {LIST}")));
    }
    problems
}

/// Finds unsafe blocks and impls without a `SAFETY:` comment. The compiler's lint does not see what a `cfg` leaves
/// out or what stands inside a macro call; this does.
pub fn comments(source: &Source<'_>) -> Vec<Problem> {
    let lines: Vec<_> = source.text.lines().collect();
    let is_use = |pair: &&[Token]| pair[0].is("unsafe") && (pair[1].is("{") || pair[1].is("impl"));
    let uses = source.tokens.windows(2).filter(is_use).map(|pair| &pair[0]);
    let bare = uses.filter(|token| !is_explained(&lines, token.line));
    bare.map(|token| Problem::new(source.path, token.line, "unsafe without a SAFETY comment above it"))
        .collect()
}

/// Whether the line, counted from 1, has the comment on it, or above it in the same statement.
fn is_explained(lines: &[&str], line: usize) -> bool {
    let mut above = lines[..line].iter().rev().map(|text| text.trim());
    if above.next().is_some_and(|own| own.contains("SAFETY:")) {
        return true;
    }
    let is_comment = |text: &&str| text.starts_with("//");
    let is_other =
        |text: &&str| text.is_empty() || text.ends_with([';', '{', '}']) || text.contains("unsafe");
    let mut comment = above.skip_while(|text| !is_comment(text) && !is_other(text)).take_while(is_comment);
    comment.any(|text| text.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare_lines(text: &str) -> Vec<usize> {
        comments(&Source::read("a.rs", text).unwrap()).iter().map(|problem| problem.line).collect()
    }

    fn opted(text: &str) -> Option<usize> {
        opt_in(&Source::read("a.rs", text).unwrap()).map(|(_, line)| line)
    }

    #[test]
    fn a_safety_comment_on_the_line_or_above_the_statement_explains_a_block() {
        assert_eq!(
            bare_lines("fn f() {\n    // SAFETY: a fact,\n    // and another.\n    unsafe { g() };\n}"),
            [0; 0]
        );
        assert_eq!(bare_lines("fn f() {\n    /* SAFETY: a fact. */ unsafe { g() };\n}"), [0; 0]);
        assert_eq!(
            bare_lines(
                "fn f() {\n    // SAFETY: a fact.\n    let x = g(\n        1,\n        unsafe { h() },\n    );\n}"
            ),
            [0; 0]
        );
        assert_eq!(bare_lines("// SAFETY: a fact.\n#[cfg(loom)]\nunsafe impl Send for A {}"), [0; 0]);
    }

    #[test]
    fn a_block_or_impl_without_one_is_found_also_inside_a_macro_call() {
        assert_eq!(bare_lines("fn f() {\n    unsafe { g() };\n}"), [2]);
        assert_eq!(bare_lines("fn f() {\n    assert_eq!(\n        unsafe { g() },\n 1);\n}"), [3]);
        assert_eq!(bare_lines("unsafe impl Send for A {}"), [1]);
    }

    #[test]
    fn the_comment_of_another_statement_does_not_explain() {
        assert_eq!(
            bare_lines("fn f() {\n    // SAFETY: a fact.\n    unsafe { g() };\n    unsafe { h() };\n}"),
            [4]
        );
        assert_eq!(
            bare_lines(
                "fn f() {\n match a {\n // SAFETY: a fact.\n 1 => unsafe { g() },\n 2 => unsafe { h() },\n}}"
            ),
            [5]
        );
        assert_eq!(bare_lines("// SAFETY: a fact.\n\nunsafe impl Send for A {}"), [3]);
        assert_eq!(
            bare_lines(
                "fn f() {\n    // SAFETY: a fact.\n    let x = 1\n        // plain\n        + unsafe { g() };\n}"
            ),
            [5]
        );
    }

    #[test]
    fn opting_in_is_found_on_files_and_items_and_denying_is_no_opting_in() {
        assert_eq!(opted("//! A.\n#![expect(unsafe_code, reason = \"r\")]\n"), Some(2));
        assert_eq!(opted("#[cfg_attr(loom, allow(unsafe_code))]\nfn f() {}"), Some(1));
        assert_eq!(opted("#![deny(unsafe_code)]\nconst A: &str = \"#[allow(unsafe_code)]\";"), None);
    }

    #[test]
    fn the_list_and_the_files_must_agree_both_ways() {
        let opt_ins = [("a.rs".to_owned(), 3), ("b.rs".to_owned(), 4)];
        assert_eq!(compare(&opt_ins, "# Files.\n\na.rs: maps memory\nb.rs: calls the kernel\n"), []);
        assert_eq!(
            compare(&opt_ins, "a.rs\nc.rs: gone\n"),
            [
                Problem::new(LIST, 1, "a.rs has no reason: write PATH: REASON"),
                Problem::new(LIST, 2, "c.rs does not opt in to unsafe code"),
                Problem::new("b.rs", 4, format!("opts in to unsafe code and is not in {LIST}")),
            ]
        );
        assert_eq!(
            compare(&opt_ins[..1], "a.rs: once\na.rs: twice\n"),
            [Problem::new(LIST, 2, "a.rs is listed twice")]
        );
    }
}
