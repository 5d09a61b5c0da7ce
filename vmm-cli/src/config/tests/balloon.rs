//! The balloon in files and flags.

use super::*;

#[test]
fn the_flag_goes_over_the_whole_section() {
    let scratch = Scratch::new();
    let file = scratch.file(
        "vm.toml",
        "[balloon]\ndevice = true\nsize = '64M'\nfree_page_reporting = true\nstatistics_interval = '2s'\n",
    );
    let config = load([&file]).unwrap();
    let expected = BalloonConfig {
        device: true,
        size: 64 << 20,
        deflate_on_oom: true,
        free_page_reporting: true,
        statistics_interval: Duration::from_secs(2),
    };
    assert_eq!(config.balloon, expected);
    let config = load([file.into_os_string(), "--balloon=size=4K,deflate_on_oom=false".into()]).unwrap();
    let expected =
        BalloonConfig { device: true, size: 4096, deflate_on_oom: false, ..BalloonConfig::default() };
    assert_eq!(config.balloon, expected);
}

#[test]
fn what_is_no_balloon_is_refused_at_its_place() {
    for (text, expected) in [
        ("size = '4097'", ":2:8: balloon.size = 4097 is not a multiple of 4 KiB (4K)"),
        ("size = 4096", ":2:8: balloon.size = 4096 is an integer; expected a size from 0 to that of the RAM"),
        ("statistics_interval = '2h'", ":2:23: balloon.statistics_interval = 2h has the unknown unit h"),
        ("deflate_on_oom = 1", ":2:18: balloon.deflate_on_oom = 1 is an integer; expected true or false"),
        ("sise = '1M'", ":2:1: unknown key `balloon.sise`"),
    ] {
        let error = message(parse(&format!("[balloon]\n{text}\n")).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    let scratch = Scratch::new();
    let error = message(load([scratch.file("vm.toml", "[balloon]\nsize = '1M'")]).unwrap_err());
    assert!(error.starts_with("balloon.device (--balloon) = false"), "{error}");
    let error = message(load(["--balloon=size=129M"]).unwrap_err());
    assert!(error.starts_with("balloon.size (--balloon) = 129M: the guest has 128M of RAM"), "{error}");
    load(["--balloon=size=129M", "--memory=1G"]).unwrap();
}
