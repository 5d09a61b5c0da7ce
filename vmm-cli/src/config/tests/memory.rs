//! The section `[memory]` among the others.

use std::fs;
use std::path::Path;

use super::{Scratch, load, message};

#[test]
fn a_file_of_memory_is_large_enough_regular_and_used_for_nothing_else() {
    let scratch = Scratch::new();
    let ram = scratch.file("ram", "not enough");
    let refusal = |flags: &[&str]| message(load(flags).unwrap_err());
    for kind in ["shared-file", "private-file"] {
        let backing = |path: &Path| format!("--memory-backing={kind}={}", path.display());
        let error = refusal(&[&backing(&ram)]);
        assert!(error.contains(" has 10 bytes, less than memory.size (--memory) = 128M"), "{error}");
        let error = refusal(&[&backing(&scratch.path("."))]);
        assert!(
            error.starts_with("memory.backing (--memory-backing): ") && error.contains("directory"),
            "{error}"
        );
    }
    fs::OpenOptions::new().write(true).open(&ram).unwrap().set_len(1 << 20).unwrap();
    let [shared, private] =
        ["shared", "private"].map(|kind| format!("--memory-backing={kind}-file={}", ram.display()));
    for backing in [&shared, &private] {
        load([backing, "--memory=1M"]).unwrap();
        let log = format!("--log-file={}", ram.display());
        let error = refusal(&[backing, "--memory=1M", &log]);
        assert!(
            error.contains("is also memory.backing (--memory-backing), and would be written over"),
            "{error}"
        );
    }
    let kernel = format!("--kernel={}", ram.display());
    let error = refusal(&[&shared, "--memory=1M", &kernel]);
    assert!(error.ends_with("is also boot.kernel (--kernel), and would be written over"), "{error}");
    load([&private, "--memory=1M", &kernel]).unwrap();
}
