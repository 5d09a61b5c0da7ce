//! The report as text: problems first, lines of at most 80 columns where no command is longer.

use std::fmt::Write as _;

use super::finding::{Finding, State};

const WIDTH: usize = 80;

const HEADINGS: [(State, &str); 4] = [
    (State::Broken, "Broken: vmm-cli run cannot work"),
    (State::Degraded, "Degraded: it works, but does less or is slower"),
    (State::Note, "Notes"),
    (State::Ok, "Fine"),
];

const DEDICATED: &str = "For dedicated CPUs (docs/dedicated.md), not needed otherwise";

/// The findings under headings, those for `dedicated` CPUs before what is fine, and the `verdict` as last line.
pub(super) fn text(findings: &[Finding], dedicated: &[Finding], verdict: &str) -> String {
    let column = findings.iter().chain(dedicated).map(|finding| finding.id.len()).max().unwrap_or(0) + 4;
    let mut text = String::new();
    for (state, heading) in HEADINGS {
        if state == State::Ok {
            section(&mut text, DEDICATED, dedicated.iter(), column);
        }
        section(&mut text, heading, findings.iter().filter(|finding| finding.state == state), column);
    }
    for part in wrap(verdict, WIDTH) {
        line(&mut text, &part);
    }
    text
}

fn section<'a>(text: &mut String, heading: &str, findings: impl Iterator<Item = &'a Finding>, column: usize) {
    let mut findings = findings.peekable();
    if findings.peek().is_some() {
        line(text, heading);
        findings.for_each(|finding| entry(text, finding, column));
        line(text, "");
    }
}

fn entry(text: &mut String, finding: &Finding, column: usize) {
    let said =
        [("", Some(&finding.found)), ("lost  ", finding.lost.as_ref()), ("mend  ", finding.mend.as_ref())];
    let mut label = finding.id;
    for (mut prefix, words) in said {
        let (width, indent) = (column - 2, prefix.len());
        for part in words.map_or_else(Vec::new, |words| wrap(words, WIDTH - column - indent)) {
            line(text, &format!("  {label:<width$}{prefix:<indent$}{part}"));
            (label, prefix) = ("", "");
        }
    }
}

fn line(text: &mut String, line: &str) {
    // Formatting into a `String` cannot fail.
    let _ = writeln!(text, "{}", line.trim_end());
}

/// `text` in lines of at most `width` columns. What stands in backticks is a command, to be copied: it is not broken.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for part in unbroken(text) {
        if !line.is_empty() && line.chars().count() + 1 + part.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&part);
    }
    lines.push(line);
    lines
}

/// The words of `text`, those from one backtick to the next taken together.
fn unbroken(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut inside = false;
    for word in text.split(' ') {
        match parts.last_mut().filter(|_| inside) {
            Some(command) => {
                command.push(' ');
                command.push_str(word);
            }
            None => parts.push(word.into()),
        }
        inside ^= word.matches('`').count() % 2 == 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::broken("kvm-device", "cannot open /dev/kvm")
                .mend_by("load it (`sudo modprobe kvm_amd`)"),
            Finding::note("tun", "/dev/net/tun: not there").lost("later: taps"),
            Finding::ok("kernel", "Linux 6.12"),
        ]
    }

    #[test]
    fn each_state_has_its_heading_and_each_finding_its_column() {
        let expected = "\
Broken: vmm-cli run cannot work
  kvm-device  cannot open /dev/kvm
              lost  every machine
              mend  load it (`sudo modprobe kvm_amd`)

Notes
  tun         /dev/net/tun: not there
              lost  later: taps

For dedicated CPUs (docs/dedicated.md), not needed otherwise
  isolated    none
              lost  quiet

Fine
  kernel      Linux 6.12

the verdict
";
        let dedicated = [Finding::degraded("isolated", "none").lost("quiet")];
        assert_eq!(text(&findings(), &dedicated, "the verdict"), expected);
    }

    #[test]
    fn no_line_is_longer_than_the_screen() {
        let words = "word ".repeat(100);
        let finding = Finding::degraded("a-check", &words).lost(&words).mend_by(&words);
        let text = text(&[finding], &[], &words);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert_eq!(text.matches("word").count(), 400);
    }

    #[test]
    fn a_command_is_on_one_line_however_long() {
        let command = format!("`sudo {}`", "argument ".repeat(20).trim_end());
        let lines = wrap(&format!("first {command}, then this"), 40);
        assert_eq!(lines, ["first".into(), format!("{command},"), "then this".into()]);
    }
}
