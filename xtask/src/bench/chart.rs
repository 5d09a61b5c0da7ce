//! The report as a chart: a horizontal bar for each median, scaled within its case.

use super::report::{Measured, Outcome, Report, Row};

const WIDTH: u32 = 900;
const MARGIN: u32 = 24;
/// Where bars begin, right of the names, and how long the longest one is; its text needs the rest.
const BAR_START: u32 = 160;
const BAR_LENGTH: f64 = 360.0;
const BAR_HEIGHT: u32 = 18;
const ROW: u32 = 26;
/// Height of the heading, of a case's title, and of the space after a case.
const HEADING: u32 = 56;
const TITLE: u32 = 24;
const GAP: u32 = 14;

/// Longest text in place of a bar, in characters; the table has all of it.
const NOTE_LENGTH: usize = 90;

/// Draws the chart as an SVG image.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut top = HEADING;
    for rows in report.cases() {
        top = case(&mut body, rows, report, top);
    }
    let height = top + MARGIN;
    let heading = text(MARGIN, 32, "heading", &report.heading());
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">
<style>
text {{ font: 13px sans-serif; fill: #222; }}
.heading {{ font-size: 15px; }}
.title {{ font-weight: bold; }}
.name {{ text-anchor: end; }}
.note {{ fill: #a33; }}
.baseline {{ fill: #9aa5b1; }}
.bar {{ fill: #3f72af; }}
</style>
<rect width="{WIDTH}" height="{height}" fill="white"/>
{heading}{body}</svg>
"#
    )
}

/// Draws the rows of one case from `top` downwards, and gives where they end.
fn case(body: &mut String, rows: &[Row], report: &Report, top: u32) -> u32 {
    let longest = rows.iter().filter_map(median).fold(0.0, f64::max);
    if let Some(first) = rows.first() {
        body.push_str(&text(MARGIN, top + 14, "title", &format!("{}, {}", first.case, first.unit)));
    }
    let mut y = top + TITLE;
    for row in rows {
        body.push_str(&text(BAR_START - 10, y + 14, "name", &row.subject));
        body.push_str(&match &row.outcome {
            Outcome::Measured(measured) => {
                let class = if report.is_baseline(row) { "baseline" } else { "bar" };
                // Where all values are 0, so is `longest`; a difference may be below 0.
                let share = if measured.median > 0.0 { measured.median / longest } else { 0.0 };
                bar(y, BAR_LENGTH * share, class, &label(row, measured, report))
            }
            Outcome::Failed { error: note } | Outcome::NotRun { not_run: note } => {
                let note: String = note.chars().take(NOTE_LENGTH).collect();
                text(BAR_START, y + 14, "note", &note)
            }
        });
        y += ROW;
    }
    y + GAP
}

fn median(row: &Row) -> Option<f64> {
    match &row.outcome {
        Outcome::Measured(measured) => Some(measured.median),
        Outcome::Failed { .. } | Outcome::NotRun { .. } => None,
    }
}

fn label(row: &Row, measured: &Measured, report: &Report) -> String {
    let values = format!("{:.1} (p99 {:.1})", measured.median, measured.p99);
    match measured.ratio_vs_baseline {
        Some(ratio) if !report.is_baseline(row) => format!("{values}, {ratio:.2} {}", report.meaning()),
        _ => values,
    }
}

fn bar(y: u32, length: f64, class: &str, label: &str) -> String {
    let rect = format!(
        r#"<rect class="{class}" x="{BAR_START}" y="{y}" width="{length:.1}" height="{BAR_HEIGHT}"/>"#
    );
    let end = f64::from(BAR_START) + length + 8.0;
    format!("{rect}\n<text x=\"{end:.1}\" y=\"{}\">{}</text>\n", y + 14, escaped(label))
}

fn text(x: u32, y: u32, class: &str, content: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>\n", escaped(content))
}

fn escaped(content: &str) -> String {
    content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    fn lines_with<'a>(svg: &'a str, part: &str) -> Vec<&'a str> {
        svg.lines().filter(|line| line.contains(part)).collect()
    }

    #[test]
    fn bars_are_in_proportion_to_the_longest_of_their_case() {
        let svg = svg(&sample());
        assert_eq!(lines_with(&svg, "<rect class=").len(), 4);
        assert!(lines_with(&svg, "<rect class=\"bar\"")[0].contains("width=\"360.0\""));
        let raw = lines_with(&svg, "<rect class=\"baseline\"");
        assert!(raw[0].contains("width=\"180.0\"") && raw[1].contains("width=\"360.0\""));
    }

    #[test]
    fn ratios_stand_beside_every_bar_but_the_baseline() {
        let svg = svg(&sample());
        assert_eq!(lines_with(&svg, "2.00 × the cost of raw").len(), 1);
        assert_eq!(lines_with(&svg, "cost of raw").len(), 1);
    }

    #[test]
    fn a_case_of_zeros_has_a_bar_of_no_length_and_no_ratio() {
        let svg = svg(&sample());
        let bars = lines_with(&svg, "<rect class=\"bar\"");
        assert!(bars[1].contains("width=\"0.0\""), "{}", bars[1]);
        assert_eq!(lines_with(&svg, ">0.0 (p99 0.0)<").len(), 1);
    }

    #[test]
    fn errors_are_text_and_not_markup() {
        let svg = svg(&sample());
        assert_eq!(lines_with(&svg, "class=\"note\"").len(), 2);
        assert!(svg.contains("said &lt;\"no\" &amp; ended&gt;"));
    }

    #[test]
    fn everything_is_inside_the_image() {
        let svg = svg(&sample());
        let number = |line: &str, name: &str| -> f64 {
            let rest = line.split_once(&format!(" {name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0.parse().unwrap()
        };
        let height = number(&svg, "height");
        for line in lines_with(&svg, " y=\"") {
            assert!(number(line, "y") + f64::from(ROW) <= height, "{line}");
        }
    }
}
