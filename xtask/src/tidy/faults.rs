//! Fault tests: a test that is named after a fault names one of the known classes.

use super::Problem;
use super::source::{Kind, Source};

/// The classes of faults the project survives: the letter of a group and how many classes it has.
const GROUPS: [(char, u8); 5] = [('a', 11), ('b', 15), ('c', 11), ('d', 7), ('e', 5)];

/// Checks the names of functions, and of tests that are registered by name.
pub fn check(source: &Source<'_>) -> Vec<Problem> {
    let functions = source.functions().into_iter().map(|function| (function.line, function.name));
    let literals = source.tokens.iter().filter(|token| token.kind == Kind::Literal);
    let registered = literals.map(|token| (token.line, token.text.trim_matches('"').to_owned()));
    let wrong = functions.chain(registered).filter(|(_, name)| {
        name.strip_prefix("fault_").is_some_and(|rest| !rest.is_empty() && !names_a_class(rest))
    });
    wrong
        .map(|(line, name)| Problem::new(source.path, line, format!("{name} names no class of faults")))
        .collect()
}

/// Whether the rest of the name begins like `a3_`.
fn names_a_class(rest: &str) -> bool {
    let mut letters = rest.chars();
    let group = letters.next().and_then(|letter| GROUPS.iter().find(|(group, _)| *group == letter));
    let number = letters.as_str().split_once('_').and_then(|(number, _)| number.parse::<u8>().ok());
    group.zip(number).is_some_and(|((_, classes), number)| (1..=*classes).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> usize {
        check(&Source::read("a.rs", text).unwrap()).len()
    }

    #[test]
    fn known_classes_pass_as_functions_and_as_registered_names() {
        assert_eq!(wrong("fn fault_a1_descriptor_loop() {}\nfn fault_e5_restore_twice() {}"), 0);
        assert_eq!(wrong("fn all() { trial(\"fault_b15_rate\"); trial(\"default_b99_x\") }"), 0);
    }

    #[test]
    fn unknown_classes_and_names_without_one_fail() {
        for name in ["a12_x", "a0_x", "f1_x", "d7", "c_x", "injection"] {
            assert_eq!(wrong(&format!("fn fault_{name}() {{}}")), 1, "{name}");
            assert_eq!(wrong(&format!("const A: &str = \"fault_{name}\";")), 1, "{name}");
        }
    }
}
