//! `Samples`: the lines that runs of a measuring program print, kept as they come; vmm-tests defines their content.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::RESULTS;

/// What lines are read for here: how much is done.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Round(IgnoredAny),
    Counted(IgnoredAny),
    #[serde(untagged)]
    Other(IgnoredAny),
}

/// A file of lines.
pub struct Samples {
    path: PathBuf,
    file: File,
    rounds: u32,
    counted: bool,
}

impl Samples {
    /// An empty one among the results.
    pub fn create() -> Result<Self> {
        Self::create_at(Path::new(RESULTS).join("boot.samples.jsonl"))
    }

    fn create_at(path: PathBuf) -> Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let file = fs::create_dir_all(directory).and_then(|()| File::create(&path));
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, file, rounds: 0, counted: false })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many rounds are in it.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Whether it has what is counted.
    pub fn are_counted(&self) -> bool {
        self.counted
    }

    /// Keeps what a run prints, line by line. A last line without an end is what a run was about to print when it died.
    pub fn collect(&mut self, output: impl Read) -> Result<()> {
        let mut output = BufReader::new(output);
        let mut line = String::new();
        while output.read_line(&mut line).context("samples")? != 0 && line.ends_with('\n') {
            let read =
                serde_json::from_str(&line).with_context(|| format!("not a line of samples: {line:?}"))?;
            self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())?;
            match read {
                Line::Round(_) => self.rounds += 1,
                Line::Counted(_) => self.counted = true,
                Line::Other(_) => {}
            }
            line.clear();
        }
        Ok(())
    }

    /// Adds something that a reader of the report should know.
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.collect(format!("{}\n", json!({ "note": text })).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_are_complete_are_kept_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut samples = Samples::create_at(directory.path().join("lines")).unwrap();
        samples.collect(&b"{\"run\":{}}\n{\"round\":[{\"x\":1}]}\n{\"round\":[{\"x\""[..]).unwrap();
        assert_eq!((samples.rounds(), samples.are_counted()), (1, false));
        samples.note("it \"died\"").unwrap();
        samples.collect(&b"{\"round\":[]}\n{\"counted\":{}}\n"[..]).unwrap();
        assert_eq!((samples.rounds(), samples.are_counted()), (2, true));
        let kept = fs::read_to_string(samples.path()).unwrap();
        let lines: Vec<_> = kept.lines().collect();
        assert_eq!(lines[2], "{\"note\":\"it \\\"died\\\"\"}");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn what_is_no_line_of_samples_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut samples = Samples::create_at(directory.path().join("lines")).unwrap();
        assert!(samples.collect(&b"hello\n"[..]).unwrap_err().to_string().contains("hello"));
    }
}
