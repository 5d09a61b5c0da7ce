//! Test suites: the counts read from the output of libtest and of harnesses that print like it.

use std::fmt;

/// What one test binary, or the doc tests of one crate, did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suite {
    pub name: String,
    pub passed: usize,
    pub failed: usize,
    /// Tests that did not run although nobody filtered them out.
    pub skipped: usize,
    /// Tests that the filter on the command line left out.
    pub filtered: usize,
    pub failures: Vec<String>,
    /// Why tests were skipped, each reason once.
    pub reasons: Vec<String>,
    /// Tests that passed at the second attempt only.
    pub second: Vec<String>,
    finished: bool,
}

impl Suite {
    /// A suite of which nothing ran.
    pub fn not_run(name: &str, tests: usize, reason: &str) -> Self {
        Self {
            name: name.into(),
            skipped: tests,
            reasons: vec![reason.into()],
            finished: true,
            ..Self::default()
        }
    }

    /// A suite that failed as a whole, before or beside its tests.
    pub fn broken(name: &str, how: &str) -> Self {
        Self { name: name.into(), failed: 1, failures: vec![how.into()], finished: true, ..Self::default() }
    }

    /// Whether it came to its end; if not, whoever ran it died.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Counts a failed `test` as passed: it has passed now.
    pub fn passed_at_last(&mut self, test: String) {
        self.failures.retain(|failure| *failure != test);
        self.failed -= 1;
        self.passed += 1;
        self.second.push(test);
    }

    fn named(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// Whether there is anything to report; most crates have no doc tests.
    fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped + self.filtered == 0
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, passed, failed, skipped, filtered, .. } = self;
        write!(f, "{name}: {} ran, {passed} passed", passed + failed)?;
        if *failed > 0 {
            write!(f, ", {failed} failed ({})", self.failures.join(", "))?;
        }
        if !self.second.is_empty() {
            write!(f, ", {} at the second attempt only ({})", self.second.len(), self.second.join(", "))?;
        }
        if *skipped > 0 {
            let reasons = if self.reasons.is_empty() { "ignored" } else { &self.reasons.join("; ") };
            write!(f, ", {skipped} did not run ({reasons})")?;
        }
        if *filtered > 0 {
            write!(f, ", {filtered} filtered out")?;
        }
        Ok(())
    }
}

/// The sums over suites, as the closing line of a test run: `N passed, N failed, N skipped`.
pub fn closing_line(suites: &[Suite]) -> String {
    let sum = |count: fn(&Suite) -> usize| suites.iter().map(count).sum::<usize>();
    format!("{} passed, {} failed, {} skipped", sum(|s| s.passed), sum(|s| s.failed), sum(|s| s.skipped))
}

/// Reads the output of `cargo test` line by line.
#[derive(Default)]
pub struct Reader {
    suites: Vec<Suite>,
}

impl Reader {
    /// Takes one line of combined output, in the order in which the lines were written.
    pub fn line(&mut self, line: &str) {
        if let Some(name) = suite_name(line) {
            self.suites.push(Suite::named(name));
            return;
        }
        let Some(suite) = self.suites.last_mut() else {
            return;
        };
        if let Some(counts) = line.strip_prefix("test result: ") {
            suite.add_counts(counts);
        } else if let Some((test, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            suite.add_outcome(test, outcome);
        }
    }

    /// The suites that have tests. A suite without a result line died: that is one failure.
    pub fn finish(self) -> Vec<Suite> {
        let mut suites = self.suites;
        for suite in suites.iter_mut().filter(|suite| !suite.finished) {
            suite.failed += 1;
            suite.failures.push("ended without a result line".into());
        }
        suites.retain(|suite| !suite.is_empty());
        suites
    }
}

impl Suite {
    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`. The doc tests of one crate
    /// can print several such lines, so counts are added.
    fn add_counts(&mut self, counts: &str) {
        self.finished = true;
        for part in counts.split([';', '.']) {
            let mut words = part.split_whitespace();
            let Some(Ok(count)) = words.next().map(str::parse::<usize>) else {
                continue;
            };
            match words.next() {
                Some("passed") => self.passed += count,
                Some("failed") => self.failed += count,
                Some("ignored") => self.skipped += count,
                Some("filtered") => self.filtered += count,
                _ => {}
            }
        }
    }

    /// libtest writes `ignored, REASON`, libtest-mimic `ignored (REASON)`.
    fn add_outcome(&mut self, test: &str, outcome: &str) {
        if outcome.starts_with("FAILED") {
            self.failures.push(test.trim().into());
        } else if let Some(rest) = outcome.strip_prefix("ignored") {
            let reason = rest.trim_start_matches([',', ' ', '(']).trim_end_matches(')').to_owned();
            if !reason.is_empty() && !self.reasons.contains(&reason) {
                self.reasons.push(reason);
            }
        }
    }
}

/// The suite that `     Running unittests src/lib.rs (target/debug/deps/vmm_core-0123456789abcdef)` or
/// `   Doc-tests vmm_core` begins.
fn suite_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(crate_name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{crate_name} doc tests"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let file = binary.rsplit('/').next()?;
    let (crate_name, _hash) = file.rsplit_once('-')?;
    Some(format!("{crate_name} {}", source.trim_start_matches("unittests ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Vec<Suite> {
        let mut reader = Reader::default();
        output.lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    const TWO_SUITES: &str = "\
   Compiling vmm-core v0.1.0
    Finished `test` profile [unoptimized + debuginfo] target(s) in 1.00s
     Running unittests src/lib.rs (target/debug/deps/vmm_core-0123456789abcdef)

running 3 tests
test a::works ... ok
test a::breaks ... FAILED
test a::waits ... ignored, needs a second host

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s

     Running tests/native.rs (target/release/deps/native-fedcba9876543210)
test fault_a1_loop  ... ok
test dirty_ring     ... ignored (the host has no dirty ring)

test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
   Doc-tests vmm_core
running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_test_that_passes_at_last_is_counted_as_passed_and_named() {
        let mut suites = read(TWO_SUITES);
        suites[0].passed_at_last("a::breaks".into());
        let line = suites[0].to_string();
        assert!(line.contains("2 passed, 1 at the second attempt only (a::breaks)"), "{line}");
        assert_eq!((suites[0].failed, suites[0].failures.len()), (0, 0));
    }

    #[test]
    fn counts_names_and_reasons_are_kept_by_suite_and_empty_suites_are_left_out() {
        let suites = read(TWO_SUITES);
        let lines: Vec<_> = suites.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "vmm_core src/lib.rs: 2 ran, 1 passed, 1 failed (a::breaks), \
                 1 did not run (needs a second host), 2 filtered out",
                "native tests/native.rs: 1 ran, 1 passed, 1 did not run (the host has no dirty ring)",
            ]
        );
        assert_eq!(closing_line(&suites), "2 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_suite_that_dies_without_a_result_line_is_a_failure() {
        let suites =
            read("     Running unittests src/lib.rs (target/debug/deps/vmm_vcpu-00)\ntest a ... ok\n");
        assert_eq!(
            suites[0].to_string(),
            "vmm_vcpu src/lib.rs: 1 ran, 0 passed, 1 failed (ended without a result line)"
        );
    }

    #[test]
    fn doc_tests_with_two_result_lines_are_one_suite() {
        let result =
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let suites = read(&format!("   Doc-tests vmm_core\n{result}{result}"));
        assert_eq!(suites[0].to_string(), "vmm_core doc tests: 4 ran, 4 passed");
    }

    #[test]
    fn result_lines_before_any_suite_are_ignored() {
        assert_eq!(read("test result: ok. 2 passed; 0 failed\n"), []);
    }
}
