//! Benchmarks: their names and arguments.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

/// The benchmarks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Process start to the guest's first exit and to process end, and memory.
    Startup,
    /// The cost of each kind of exit.
    Exits,
}

/// The command line of `cargo xtask bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Which benchmark.
    pub name: Bench,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Run the same guest under another monitor.
    #[arg(long = "peer", value_name = "NAME=PATH", value_parser = peer)]
    pub peers: Vec<(String, PathBuf)>,
}

/// Runs one benchmark.
pub fn run(args: &BenchArgs) -> Result<()> {
    bail!("the benchmark {:?} is not in this tree", args.name)
}

/// Paths are the caller's, whose working directory is left before the task starts.
fn peer(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    Ok((name.to_owned(), path))
}
