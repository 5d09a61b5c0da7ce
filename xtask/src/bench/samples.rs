//! `Samples`: the lines that runs of a measuring program print, kept as they come; vmm-tests defines their content.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use super::{PROGRAMS, RESULTS};
use crate::process::capture;

/// How many runs may fail before anything has been measured: what is wrong then is rarely the machine.
const FALSE_STARTS: usize = 2;

/// How many nested hosts may die, or have guests that failed, and be followed by another one for the same round: the
/// emulator fails now and then (docs/nested.md).
const DEATHS: usize = 5;

/// What lines are read for here: how much is done.
#[derive(Deserialize)]
struct Line {
    part: Option<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
}

/// A file of lines.
pub struct Samples {
    path: PathBuf,
    file: File,
    parts: Vec<String>,
    deaths: usize,
}

impl Samples {
    /// An empty one among the results, of the benchmark `name`.
    pub fn create(name: &str) -> Result<Self> {
        Self::create_at(Path::new(RESULTS).join(format!("{name}.samples.jsonl")))
    }

    fn create_at(path: PathBuf) -> Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let file = fs::create_dir_all(directory).and_then(|()| File::create(&path));
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, file, parts: Vec::new(), deaths: 0 })
    }

    /// Names of the parts that are in it.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many runs have failed.
    pub fn deaths(&self) -> usize {
        self.deaths
    }

    /// Keeps what a run prints, as it comes. Whether it ended well; one that did not is noted.
    ///
    /// # Errors
    ///
    /// It cannot be started, prints something else, or is another one that fails where nothing was measured yet.
    pub fn run(&mut self, command: &mut Command) -> Result<bool> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("cannot start the measuring program")?;
        let output = child.stdout.take().context("no pipe")?;
        let collected = self.collect(output);
        let status = child.wait().context("cannot wait for the measuring program")?;
        collected?;
        if !status.success() {
            self.deaths += 1;
            let said = match self.parts.last() {
                Some(part) => format!("a run ended with {status}; the last part was {part}"),
                None => format!("a run ended with {status}; nothing was complete"),
            };
            ensure!(self.deaths < FALSE_STARTS || !self.parts.is_empty(), "{said}");
            self.note(&said)?;
        }
        Ok(status.success())
    }

    /// Runs `command`, which is told the parts that are done, until each of so many rounds is complete, or too many runs have failed.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run), and a command that cannot be made.
    pub fn run_rounds(
        &mut self,
        rounds: u32,
        command: impl Fn(u32, &[String]) -> Result<Command>,
    ) -> Result<()> {
        for round in 1..=rounds {
            while !self.run(&mut command(round, &self.parts)?)? {
                if self.deaths > DEATHS {
                    let deaths = self.deaths;
                    self.note(&format!("round {round} is not complete, as {deaths} runs have failed"))?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Keeps lines. A last one without an end is what a run was about to print when it died.
    fn collect(&mut self, output: impl Read) -> Result<()> {
        let mut output = BufReader::new(output);
        let mut line = String::new();
        while output.read_line(&mut line).context("samples")? != 0 && line.ends_with('\n') {
            let read: Line =
                serde_json::from_str(&line).with_context(|| format!("not a line of samples: {line:?}"))?;
            self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())?;
            self.parts.extend(read.part.map(|part| part.name));
            line.clear();
        }
        Ok(())
    }

    /// Adds something that a reader of the report should know.
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.collect(format!("{}\n", json!({ "note": text })).as_bytes())
    }

    /// What the measuring program `name` reports of it, as JSON.
    pub fn report(&self, name: &str) -> Result<String> {
        capture(Command::new(Path::new(PROGRAMS).join(name)).arg("report").arg(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(directory: &tempfile::TempDir) -> Samples {
        Samples::create_at(directory.path().join("lines")).unwrap()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn kept(samples: &Samples) -> Vec<String> {
        fs::read_to_string(&samples.path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn parts_that_are_complete_are_kept_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut samples = samples(&directory);
        samples.collect(&b"{\"run\":{}}\n{\"part\":{\"name\":\"a\",\"x\":1}}\n{\"part\":{\"na"[..]).unwrap();
        assert_eq!(samples.parts(), ["a"]);
        samples.note("it \"died\"").unwrap();
        samples.collect(&b"{\"part\":{\"name\":\"b\"}}\n"[..]).unwrap();
        assert_eq!(samples.parts(), ["a", "b"]);
        assert_eq!(kept(&samples)[2], "{\"note\":\"it \\\"died\\\"\"}");
        assert_eq!(kept(&samples).len(), 4);
    }

    #[test]
    fn a_run_that_dies_keeps_its_parts_and_another_one_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut samples = samples(&directory);
        let first = "echo '{\"part\":{\"name\":\"a\"}}'; printf '{\"part\":{\"na'; kill -9 $$";
        assert!(!samples.run(&mut shell(first)).unwrap());
        assert!(!samples.run(&mut shell("exit 3")).unwrap());
        assert!(samples.run(&mut shell("echo '{\"part\":{\"name\":\"b\"}}'")).unwrap());
        assert_eq!((samples.deaths(), samples.parts()), (2, &["a".to_owned(), "b".to_owned()][..]));
        let note = "{\"note\":\"a run ended with exit status: 3; the last part was a\"}";
        assert!(kept(&samples)[1].contains("signal: 9") && kept(&samples)[2] == note, "{:?}", kept(&samples));
        assert_eq!(kept(&samples).len(), 4);
    }

    #[test]
    fn runs_that_measure_nothing_are_not_started_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut samples = samples(&directory);
        assert!(!samples.run(&mut shell("exit 2")).unwrap());
        let error = samples.run(&mut shell("exit 2")).unwrap_err();
        assert_eq!(error.to_string(), "a run ended with exit status: 2; nothing was complete");
    }

    #[test]
    fn what_is_no_line_of_samples_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut samples = samples(&directory);
        for wrong in ["hello\n", "[]x\n", "{\"part\":{}}\n"] {
            let error = samples.collect(wrong.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("not a line of samples"), "{wrong}");
        }
    }
}
