//! Child processes: how a task runs a program, hears it and says how it ended.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// The cargo that runs this task (cargo names itself to its children), so that one toolchain does everything.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()))
}

/// The command line as one would type it in a shell, with the variables it sets; for messages.
pub fn render(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        if word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
    };
    let set = command.get_envs().filter_map(|(key, value)| Some((key, value?)));
    let mut words: Vec<_> = set.map(|(key, value)| format!("{}={}", key.display(), quote(value))).collect();
    // The directory of a toolchain says nothing; where a program of this checkout lies does.
    let program = Path::new(command.get_program());
    words.push(quote(program.file_name().filter(|_| program.is_absolute()).unwrap_or(program.as_os_str())));
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

/// Runs the command with this process's own output; any end but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", render(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", render(command));
    }
    Ok(())
}

/// Whether the command can be started and succeeds; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// What the command writes to its standard output; any end but success is an error with its standard error.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", render(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", render(command), output.status, said.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs the command, hands each line of its output to `on_line` as it comes and returns how it ended.
///
/// Standard output and standard error are one pipe: cargo names a test binary on the second and the binary reports
/// on the first, and the order between them carries the meaning.
pub fn each_line(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let shown = render(command);
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    // The command holds both write ends; while it does, the pipe has no end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(child.wait()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn each_line_keeps_the_order_of_both_outputs_and_the_exit_status() {
        let mut lines = Vec::new();
        let status = each_line(&mut shell("echo a; echo b >&2; printf 'c\\r\\nd'; exit 3"), |line| {
            lines.push(line.to_owned());
        });
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(lines, ["a", "b", "c", "d"]);
    }

    #[test]
    fn capture_of_a_failing_command_says_what_it_wrote_to_standard_error() {
        let error = capture(&mut shell("echo out; echo why >&2; exit 1")).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 1: why"), "{error}");
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["doc", "a b"]).env("RUSTFLAGS", "--cfg loom").env_remove("CI");
        assert_eq!(render(&command), "RUSTFLAGS='--cfg loom' cargo doc 'a b'");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `no-such-program`");
    }
}
