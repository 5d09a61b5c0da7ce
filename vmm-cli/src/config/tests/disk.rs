//! Disks in files and flags.

use super::*;

/// A disk with what is required, and nothing else.
pub(super) const LEAST: &str = "[[disk]]\npath = 'disk.img'\nformat = 'raw'\n";

#[test]
fn disks_are_in_the_order_of_the_file_and_below_its_directory() {
    let text = format!("{LEAST}[[disk]]\nformat = 'raw'\npath = '/dev/sdx'\nread_only = true\nqueues = 4\n");
    let config = parse(&text).unwrap();
    let [one, other] = &config.disk[..] else { panic!("{config:?}") };
    assert_eq!((one.path.clone(), one.read_only, one.queues), (Some("dir/disk.img".into()), false, None));
    assert_eq!((other.path.clone(), other.read_only, other.queues), (Some("/dev/sdx".into()), true, Some(4)));
    let text = parse_toml(&text, Path::new("/abs/vm.toml")).unwrap();
    assert_eq!(parse_toml(&text.to_toml(), Path::new("/elsewhere/vm.toml")).unwrap(), text);
}

#[test]
fn flags_go_over_the_disks_of_the_file() {
    let scratch = Scratch::new();
    let (image, other) = (scratch.file("disk.img", ""), scratch.file("other.img", ""));
    let file = scratch.file("vm.toml", LEAST);
    assert_eq!(load([&file]).unwrap().disk[0].path.as_ref(), Some(&image));
    let flag = |path: &Path| format!("--disk=path={},format=raw", path.display());
    let config = load([file.clone().into_os_string(), flag(&other).into(), flag(&image).into()]).unwrap();
    let paths: Vec<_> = config.disk.iter().filter_map(|disk| disk.path.as_ref()).collect();
    assert_eq!(paths, [&other, &image]);
}

#[test]
fn a_backing_file_is_below_the_directory_of_the_file_and_is_not_written_over() {
    let text = "[[disk]]\npath = 'a'\nformat = 'qcow2'\nbacking = 'b'\nbacking_format = 'qcow2'\n";
    let disk = &parse(text).unwrap().disk[0];
    assert_eq!((disk.format, disk.backing.as_deref()), (Some(DiskFormat::Qcow2), Some(Path::new("dir/b"))));
    let scratch = Scratch::new();
    let (image, base) = (scratch.file("disk.img", ""), scratch.file("base.img", ""));
    let flag =
        format!("--disk=path={},format=qcow2,backing={},backing_format=raw", image.display(), base.display());
    let log = format!("--log-file={}", base.display());
    let error = message(load([&flag, &log]).unwrap_err());
    assert!(error.contains("is also disk.backing (--disk), and would be written over"), "{error}");
    load([&flag]).unwrap();
}

#[test]
fn two_disks_have_two_names() {
    let scratch = Scratch::new();
    let (image, other) = (scratch.file("disk.img", ""), scratch.file("other.img", ""));
    let flag = |path: &Path, id: &str| format!("--disk=path={},format=raw{id}", path.display());
    let config = load([flag(&image, ",id=data"), flag(&other, "")]).unwrap();
    let ids: Vec<_> = config.disk.iter().enumerate().map(|(place, disk)| disk.id(place)).collect();
    assert_eq!(ids.iter().map(DeviceId::as_str).collect::<Vec<_>>(), ["data", "disk1"]);
    for flags in
        [[flag(&image, ",id=data"), flag(&other, ",id=data")], [flag(&image, ",id=disk1"), flag(&other, "")]]
    {
        let error = message(load(flags).unwrap_err());
        assert!(error.starts_with("disk.id (--disk): two disks are called d"), "{error}");
    }
}

#[test]
fn fault_c5_a_disk_without_a_format_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.file("vm.toml", "[[disk]]\npath = 'disk.img'\n");
    let error = message(load([&file]).unwrap_err());
    assert!(error.contains("disk.format (--disk) is missing"), "{error}");
    let error = message(parse("[[disk]]\npath = 'x'\nformat = 'vmdk'\n").unwrap_err());
    assert!(error.contains(":3:10: disk.format = vmdk is not one of raw"), "{error}");
}

#[test]
fn what_is_no_table_of_a_disk_says_how_to_write_one() {
    for (text, found) in
        [("disk = 'disk.img'", "a string"), ("[disk]\npath = 'x'", "a table"), ("disk = [1]", "an array")]
    {
        let error = message(parse(text).unwrap_err());
        let expected = format!("`disk` is {found}: write a table `[[disk]]` for each");
        assert!(error.contains(&expected), "{error}");
    }
    let error = message(parse(&format!("{LEAST}readonly = true")).unwrap_err());
    assert!(error.contains("unknown key `disk.readonly`: did you mean `disk.read_only`?"), "{error}");
    let error = message(parse(&format!("{LEAST}queues = 'two'")).unwrap_err());
    assert!(error.contains("disk.queues = 'two' is a string; expected a whole number"), "{error}");
}

#[test]
fn a_disk_that_is_also_something_else_is_refused() {
    let scratch = Scratch::new();
    let image = scratch.file("disk.img", "x");
    let disk = |more: &str| format!("--disk=path={},format=raw{more}", image.display());
    let with = |flag: &str| vec![disk(""), format!("--{flag}={}", image.display())];
    let error = message(load(with("kernel")).unwrap_err());
    assert!(error.contains("is also boot.kernel (--kernel), and would be written over"), "{error}");
    for flags in [with("log-file"), vec![disk(""), disk("")]] {
        let error = message(load(flags).unwrap_err());
        assert!(error.contains("; choose a path for each"), "{error}");
    }
    // Only read, it may be there twice.
    load([disk(",read_only"), disk(",read_only")]).unwrap();
    let error = message(load(["--disk=path=/nowhere/disk,format=raw"]).unwrap_err());
    assert!(error.starts_with("disk.path (--disk): /nowhere/disk cannot be looked at"), "{error}");
}
