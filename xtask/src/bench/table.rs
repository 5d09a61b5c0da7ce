//! The report as a table for the terminal.

use super::report::{Outcome, Report, Row};

const HEADER: [&str; 8] = ["case", "subject", "median", "p99", "min", "max", "vs raw", "paired"];

/// One line for each row, the case named in its first one.
pub fn text(report: &Report) -> String {
    let mut lines = vec![report.heading(), String::new(), line(HEADER.map(str::to_owned), "")];
    for rows in report.cases() {
        lines.extend(rows.iter().enumerate().map(|(index, row)| show(row, index == 0)));
    }
    let meaning = report.ratio.meaning();
    lines.push(String::new());
    lines.push(format!("vs raw: {meaning} (medians); paired: the median of the ratios within each round"));
    lines.join("\n")
}

fn show(row: &Row, first: bool) -> String {
    let case = if first { format!("{} ({})", row.case, row.unit) } else { String::new() };
    match &row.outcome {
        Outcome::Measured(m) => {
            let [median, p99, min, max] = [m.median, m.p99, m.min, m.max].map(|value| format!("{value:.1}"));
            let [ratio, paired] = [m.ratio_vs_raw, m.paired_ratio_vs_raw]
                .map(|ratio| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")));
            line([case, row.subject.clone(), median, p99, min, max, ratio, paired], "")
        }
        Outcome::Failed { error: note } | Outcome::NotRun { not_run: note } => {
            let mut cells = <[String; 8]>::default();
            (cells[0], cells[1]) = (case, row.subject.clone());
            line(cells, note)
        }
    }
}

/// Names to the left, numbers to the right; a `note` stands in place of the numbers.
fn line(cells: [String; 8], note: &str) -> String {
    let [case, subject, median, p99, min, max, ratio, paired] = cells;
    let names = format!("{case:<32}{subject:<18}");
    let numbers = format!("{median:>10}{p99:>10}{min:>10}{max:>10}{ratio:>9}{paired:>9}");
    format!("{names}{}", if note.is_empty() { &numbers } else { note })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn every_row_has_its_line_with_values_or_the_reason() {
        let text = text(&sample());
        let words: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0].first(), Some(&"startup:"));
        assert_eq!(words[4], ["vmm", "200.0", "400.5", "90.0", "400.5", "2.000", "1.900"]);
        assert_eq!(words[6], ["peer", "said", "<\"no\"", "&", "ended>"]);
        assert_eq!(words[7], ["locked", "(instructions)", "vmm", "0.0", "0.0", "0.0", "0.0", "-", "-"]);
        assert_eq!(words[8], ["port_read", "(ns)", "vmm", "no", "such", "device"]);
    }

    #[test]
    fn the_case_is_named_once() {
        assert_eq!(text(&sample()).matches("first_exit (us)").count(), 1);
    }

    #[test]
    fn columns_line_up() {
        let text = text(&sample());
        let widths: Vec<_> = text.lines().skip(2).take(3).map(str::len).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
    }
}
