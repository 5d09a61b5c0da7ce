//! Answers as text for people.

use serde_json::Value;

use super::operations::{Operation, State, Status};

/// What `operation` has come to, as whole lines.
pub(super) fn text(operation: Operation, value: &Value) -> String {
    match operation {
        Operation::Status => match serde_json::from_value(value.clone()) {
            Ok(status) => self::status(&status),
            Err(_) => table(value),
        },
        Operation::Stats => table(value),
        Operation::Pause { .. } => "paused\n".into(),
        Operation::Resume => "running\n".into(),
        Operation::PowerButton => "the power button is pressed\n".into(),
        Operation::Reset => "the machine is reset\n".into(),
        Operation::Quit => "the machine ends\n".into(),
    }
}

/// `text` with nothing in it that a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn status(status: &Status) -> String {
    let state = match status.state {
        State::Starting => "starting",
        State::Running => "running",
        State::Pausing => "pausing",
        State::Paused => "paused",
        State::Stopping => "stopping",
    };
    let uptime = match status.uptime_ms {
        Some(ms) => format!("{}.{:03} s", ms / 1000, ms % 1000),
        None => "-".into(),
    };
    let rows = [
        ("state", state.to_owned()),
        ("vcpus", status.vcpus.to_string()),
        ("memory", status.memory.to_string()),
        ("uptime", uptime),
        ("pid", status.pid.to_string()),
        ("version", printable(&status.version)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<8} {value}\n")).collect()
}

/// One line for each value, with the way to it.
fn table(value: &Value) -> String {
    let mut rows = Vec::new();
    collect(String::new(), value, &mut rows);
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

fn collect(name: String, value: &Value, rows: &mut Vec<(String, String)>) {
    let below = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(part, value)| collect(below(&printable(part)), value, rows));
        }
        Value::Array(items) => {
            items.iter().zip(0_usize..).for_each(|(value, at)| collect(below(&at.to_string()), value, rows));
        }
        Value::String(text) => rows.push((name, printable(text))),
        Value::Null => rows.push((name, "-".into())),
        Value::Bool(_) | Value::Number(_) => rows.push((name, value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_a_small_table() {
        let status = json!({
            "schema": 1, "state": "paused", "vcpus": 2, "memory": "128M", "uptime_ms": 12_034, "pid": 7,
            "version": "0.1.0", "later": true,
        });
        let expected =
            "state    paused\nvcpus    2\nmemory   128M\nuptime   12.034 s\npid      7\nversion  0.1.0\n";
        assert_eq!(text(Operation::Status, &status), expected);
    }

    #[test]
    fn statistics_are_a_line_a_value() {
        let statistics = json!({ "vcpus": [{ "kicks": { "sent": 1 }, "name": "a\u{1b}" }], "since": null });
        let expected = "since               -\nvcpus.0.kicks.sent  1\nvcpus.0.name        a\u{fffd}\n";
        assert_eq!(text(Operation::Stats, &statistics), expected);
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(printable("\u{1b}[31mred\u{9b}\n"), "\u{fffd}[31mred\u{fffd}\u{fffd}");
    }
}
