//! Memory that is plugged, in files and flags.

use super::*;

#[test]
fn the_flag_goes_over_the_whole_section_of_the_file() {
    let scratch = Scratch::new();
    let file = scratch.file("vm.toml", "[memory_hotplug]\nsize = '4G'\nrequested = '1G'\n");
    let size = |text: &str| Some(text.parse().unwrap());
    let expected = MemoryHotplugConfig { size: size("4G"), block: None, requested: size("1G") };
    assert_eq!(load([&file]).unwrap().memory_hotplug, expected);
    let config = load([file.into_os_string(), "--memory-hotplug=size=2G,block=4M".into()]).unwrap();
    let expected = MemoryHotplugConfig { size: size("2G"), block: size("4M"), requested: None };
    assert_eq!(config.memory_hotplug, expected);
    assert!(config.to_toml().contains("[memory_hotplug]\nsize = \"2G\"\nblock = \"4M\"\n"));
}

#[test]
fn what_is_no_size_or_no_key_is_refused_at_its_place() {
    for (text, expected) in [
        ("size = '4X'", ":2:8: memory_hotplug.size = 4X has the unknown unit X"),
        ("size = true", ":2:8: memory_hotplug.size = true is a boolean; expected a size from 1M to 1T"),
        ("hotplug_size = '4G'", ":2:1: unknown key `memory_hotplug.hotplug_size`"),
    ] {
        let error = message(parse(&format!("[memory_hotplug]\n{text}\n")).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    let scratch = Scratch::new();
    let file = scratch.file("vm.toml", "[memory_hotplug]\nblock = '4M'");
    let error = message(load([&file]).unwrap_err());
    assert!(
        error.starts_with("memory_hotplug.block (--memory-hotplug) = 4M: memory is plugged only"),
        "{error}"
    );
    let error = message(load(["--memory-hotplug=size=3G,block=4M,requested=6M"]).unwrap_err());
    assert!(error.contains("requested (--memory-hotplug) = 6M is not made of blocks of 4M"), "{error}");
}
