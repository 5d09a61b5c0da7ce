//! Cargo metadata: the packages of a manifest, their targets and what they depend on.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{capture, cargo};

#[derive(Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub dependencies: Vec<Dependency>,
    pub features: std::collections::BTreeMap<String, Vec<String>>,
    pub targets: Vec<Target>,
}

#[derive(Deserialize)]
pub struct Dependency {
    pub name: String,
    /// `dev`, `build`, or nothing for a normal dependency.
    pub kind: Option<String>,
    /// The features asked for.
    pub features: Vec<String>,
}

#[derive(Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
}

/// Reads the packages of the workspace or package whose manifest is given, without what they depend on.
pub fn read(manifest: &str) -> Result<Metadata> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path", manifest]);
    serde_json::from_str(&capture(&mut command)?).context("cargo metadata is not what it used to be")
}
