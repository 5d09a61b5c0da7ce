//! The report as a table for the terminal.

use super::report::{Count, Outcome, Report, Row};

const COLUMNS: usize = 9;
const HEADER: [&str; COLUMNS] =
    ["case", "subject", "median", "p99", "min", "max", "ratio", "paired", "p99ratio"];

/// One line for each row, the case named in its first one, one for each note, and one for each thing that was counted.
pub fn text(report: &Report) -> String {
    let mut lines = vec![report.heading(), String::new(), line(HEADER.map(str::to_owned), "")];
    for rows in report.cases() {
        lines.extend(rows.iter().enumerate().map(|(index, row)| show(row, index == 0)));
    }
    let meaning = report.meaning();
    lines.push(String::new());
    lines.push(format!("ratio: {meaning} (medians); paired: the median of the ratios within each round;"));
    lines.push(
        "p99ratio: of the medians of the rounds' p99, where each round has 100 values or more".to_owned(),
    );
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    for counts in report.counts.chunk_by(|count, next| count.case == next.case) {
        lines.extend(counted(counts));
    }
    lines.join("\n")
}

/// The counts of one case: a line for each thing, a column for each subject.
fn counted(counts: &[Count]) -> Vec<String> {
    let mut subjects: Vec<&str> = Vec::new();
    let mut things: Vec<(&str, &str)> = Vec::new();
    for Count { subject, kind, name, .. } in counts {
        if !subjects.contains(&subject.as_str()) {
            subjects.push(subject);
        }
        if !things.contains(&(kind, name)) {
            things.push((kind, name));
        }
    }
    // By kind, in the order of the kinds; the sort keeps the order within each.
    let kinds: Vec<&str> = things.iter().map(|(kind, _)| *kind).collect();
    things.sort_by_key(|(kind, _)| kinds.iter().position(|known| known == kind));
    let title = counts.first().map_or("", |count| &count.case);
    let header = format!("{:<24}{:<32}{}", title, "", columns(subjects.iter().map(ToString::to_string)));
    let mut lines = vec![String::new(), header];
    for (kind, name) in things {
        let of = |subject: &&str| {
            let mut same =
                counts.iter().filter(|count| (count.kind.as_str(), count.name.as_str()) == (kind, name));
            same.find(|count| count.subject == **subject).map_or_else(|| "-".to_owned(), values)
        };
        lines.push(format!("{kind:<24}{name:<32}{}", columns(subjects.iter().map(of))));
    }
    lines
}

fn columns(cells: impl Iterator<Item = String>) -> String {
    cells.map(|cell| format!("{cell:>20}")).collect()
}

/// One number where all are equal, and all where they differ.
fn values(count: &Count) -> String {
    let mut distinct = count.values.clone();
    distinct.dedup();
    distinct.iter().map(u64::to_string).collect::<Vec<_>>().join(" / ")
}

fn show(row: &Row, first: bool) -> String {
    let case = if first { format!("{} ({})", row.case, row.unit) } else { String::new() };
    match &row.outcome {
        Outcome::Measured(m) => {
            let [median, p99, min, max] = [m.median, m.p99, m.min, m.max].map(|value| format!("{value:.1}"));
            let ratios = [m.ratio_vs_baseline, m.paired_ratio_vs_baseline, m.p99_ratio_vs_baseline];
            let [ratio, paired, p99_ratio] =
                ratios.map(|ratio| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")));
            line([case, row.subject.clone(), median, p99, min, max, ratio, paired, p99_ratio], "")
        }
        Outcome::Failed { error: note } | Outcome::NotRun { not_run: note } => {
            let mut cells = <[String; COLUMNS]>::default();
            (cells[0], cells[1]) = (case, row.subject.clone());
            line(cells, note)
        }
    }
}

/// Names to the left, numbers to the right; a `note` stands in place of the numbers.
fn line(cells: [String; COLUMNS], note: &str) -> String {
    let [case, subject, median, p99, min, max, ratio, paired, p99_ratio] = cells;
    let names = format!("{case:<32}{subject:<18}");
    let numbers = format!("{median:>10}{p99:>10}{min:>10}{max:>10}{ratio:>9}{paired:>9}{p99_ratio:>9}");
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
        assert_eq!(words[4], ["vmm", "200.0", "400.5", "90.0", "400.5", "2.000", "1.900", "1.050"]);
        assert_eq!(words[6], ["peer", "said", "<\"no\"", "&", "ended>"]);
        assert_eq!(words[7], ["locked", "(instructions)", "vmm", "0.0", "0.0", "0.0", "0.0", "-", "-", "-"]);
        assert_eq!(words[8], ["port_read", "(ns)", "vmm", "no", "such", "device"]);
    }

    #[test]
    fn notes_stand_below_the_rows() {
        assert_eq!(text(&sample()).lines().filter(|line| *line == "note: peer was started twice").count(), 1);
    }

    #[test]
    fn counts_have_a_column_for_each_subject_and_one_number_where_all_are_equal() {
        let text = text(&sample());
        let lines: Vec<_> = text.lines().skip_while(|line| !line.starts_with("boot ")).collect();
        let words: Vec<Vec<_>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["boot", "vmm", "peer"]);
        assert_eq!(words[1], ["port", "0x3f8", "out", "360", "400"]);
        assert_eq!(words[2], ["port", "0xcfc", "in", "80", "/", "90", "-"]);
        assert_eq!(words[3], ["port", "0x71", "in", "-", "20000"]);
        assert_eq!(words.len(), 4);
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
