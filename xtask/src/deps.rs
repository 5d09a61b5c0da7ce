//! The arrows between crates: who may depend on whom, checked against cargo's metadata.

use anyhow::{Result, bail};

use crate::metadata::{self, Dependency, Metadata, Package};
use crate::report::{Outcome, Report};

/// Each member of the workspace and the members it may depend on, tests and build scripts included.
const ARROWS: [(&str, &[&str]); 7] = [
    ("vmm-core", &[]),
    ("vmm-memory", &["vmm-core"]),
    ("vmm-vcpu", &["vmm-core"]),
    ("vmm-devices", &["vmm-core", "vmm-memory"]),
    ("vmm-cli", &["vmm-core", "vmm-memory", "vmm-vcpu", "vmm-devices"]),
    ("xtask", &[]),
    ("vmm-tests", &["vmm-core", "vmm-memory", "vmm-vcpu", "vmm-devices", "vmm-cli"]),
];

/// Crates from outside that a member may not name, because the invariants keep their subject out of it.
const KEPT_OUT: [(&str, &[&str]); 4] = [
    ("vmm-core", &["anyhow", "vm-memory", "vm-superio"]),
    ("vmm-memory", &["anyhow", "vm-superio"]),
    ("vmm-vcpu", &["anyhow", "vm-memory", "vm-superio"]),
    ("vmm-devices", &["anyhow", "kvm-bindings", "kvm-ioctls"]),
];

/// Checks the arrows between the crates of the workspace.
pub fn arrows(report: &mut Report) -> Result<()> {
    report.step("arrows", "cargo xtask deps", |_| {
        let wrong = wrong_arrows(&metadata::read("Cargo.toml")?);
        if !wrong.is_empty() {
            bail!("{} wrong\n{}", wrong.len(), wrong.join("\n"));
        }
        Ok(Outcome::Passed)
    })
}

fn wrong_arrows(metadata: &Metadata) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            wrong.push(format!("{} is not a member the design knows", package.name));
            continue;
        };
        wrong.extend(package.dependencies.iter().filter_map(|on| wrong_dependency(package, on, allowed)));
        for feature in package.features.keys().filter(|name| *name != "test-util") {
            wrong.push(format!("{} has the feature {feature}: only test-util is permitted", package.name));
        }
    }
    wrong
}

fn wrong_dependency(package: &Package, on: &Dependency, allowed: &[&str]) -> Option<String> {
    let from = &package.name;
    let is_member = ARROWS.iter().any(|(name, _)| *name == on.name);
    if is_member && !allowed.contains(&on.name.as_str()) {
        return Some(format!("{from} depends on {}: it may depend on [{}]", on.name, allowed.join(", ")));
    }
    let is_dev = on.kind.as_deref() == Some("dev");
    if is_member && !is_dev && from != "vmm-tests" && on.features.iter().any(|name| name == "test-util") {
        return Some(format!("{from} enables test-util of {} outside its dev-dependencies", on.name));
    }
    let kept_out = KEPT_OUT.iter().any(|(name, list)| name == from && list.contains(&on.name.as_str()));
    kept_out.then(|| format!("{from} depends on {}: the invariants keep it out", on.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(packages: &str) -> Vec<String> {
        wrong_arrows(&serde_json::from_str(&format!(r#"{{"packages": [{packages}]}}"#)).unwrap())
    }

    fn package(name: &str, dependency: &str, kind: &str, features: &str) -> String {
        format!(
            r#"{{"name": "{name}", "features": {{}}, "targets": [], "dependencies":
                [{{"name": "{dependency}", "kind": {kind}, "features": [{features}]}}]}}"#
        )
    }

    #[test]
    fn the_arrows_of_the_design_pass() {
        assert_eq!(wrong(&package("vmm-devices", "vmm-memory", "null", "")), [""; 0]);
        assert_eq!(wrong(&package("vmm-tests", "vmm-core", "null", r#""test-util""#)), [""; 0]);
        assert_eq!(wrong(&package("vmm-vcpu", "vmm-core", r#""dev""#, r#""test-util""#)), [""; 0]);
    }

    #[test]
    fn an_arrow_against_the_design_fails_even_as_a_dev_dependency() {
        assert_eq!(
            wrong(&package("vmm-vcpu", "vmm-devices", r#""dev""#, "")),
            ["vmm-vcpu depends on vmm-devices: it may depend on [vmm-core]"]
        );
        assert_eq!(
            wrong(&package("vmm-core", "vmm-memory", "null", "")),
            ["vmm-core depends on vmm-memory: it may depend on []"]
        );
    }

    #[test]
    fn test_util_in_a_normal_dependency_fails() {
        assert_eq!(
            wrong(&package("vmm-cli", "vmm-core", "null", r#""test-util""#)),
            ["vmm-cli enables test-util of vmm-core outside its dev-dependencies"]
        );
    }

    #[test]
    fn a_crate_the_invariants_keep_out_fails() {
        assert_eq!(
            wrong(&package("vmm-devices", "kvm-ioctls", "null", "")),
            ["vmm-devices depends on kvm-ioctls: the invariants keep it out"]
        );
    }

    #[test]
    fn another_feature_or_member_fails() {
        let feature = r#"{"name": "vmm-core", "features": {"fast": []}, "targets": [], "dependencies": []}"#;
        assert_eq!(wrong(feature), ["vmm-core has the feature fast: only test-util is permitted"]);
        assert_eq!(
            wrong(&package("vmm-new", "libc", "null", "")),
            ["vmm-new is not a member the design knows"]
        );
    }
}
