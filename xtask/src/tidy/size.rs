//! Size: how long a file and a function may be.

use super::Problem;
use super::source::Source;

/// The house style asks for 500 and 60; here the build stops.
const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 100;

pub fn check(source: &Source<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let lines = source.code_lines();
    if lines > FILE_LINES {
        problems.push(Problem::new(source.path, 1, format!("{lines} code lines; at most {FILE_LINES}")));
    }
    for function in source.functions().iter().filter(|function| function.code_lines > FUNCTION_LINES) {
        let text =
            format!("{} has {} code lines; at most {FUNCTION_LINES}", function.name, function.code_lines);
        problems.push(Problem::new(source.path, function.line, text));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> Vec<Problem> {
        check(&Source::read("a.rs", text).unwrap())
    }

    #[test]
    fn a_file_of_801_code_lines_is_too_long_and_comments_do_not_count() {
        let comments = "// why\n\n".repeat(900);
        assert_eq!(check_text(&format!("{comments}{}", "use a;\n".repeat(800))), []);
        let text = "801 code lines; at most 800";
        assert_eq!(check_text(&"use a;\n".repeat(801)), [Problem::new("a.rs", 1, text)]);
    }

    #[test]
    fn a_function_of_101_code_lines_is_too_long() {
        let function = |lines: usize| format!("\nfn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
        assert_eq!(check_text(&function(100)), []);
        let text = "f has 101 code lines; at most 100";
        assert_eq!(check_text(&function(101)), [Problem::new("a.rs", 2, text)]);
    }
}
