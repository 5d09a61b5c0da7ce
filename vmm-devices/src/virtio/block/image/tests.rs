//! What is opened as an image, what is refused, and who is kept away.

use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;

fn image(length: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    file
}

const READ_ONLY: ImageOptions = ImageOptions { read_only: true, direct: false };

#[test]
fn fault_c3_what_is_no_disk_is_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (directory.path(), "a directory"),
        (&fifo, "a FIFO"),
        (&socket, "a socket"),
        (Path::new("/dev/zero"), "a character device"),
    ] {
        let error = Image::open(path, ImageOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("is {kind}; a disk is")), "{error}");
    }
}

#[test]
fn fault_c3_an_image_without_a_sector_is_refused_with_its_length() {
    for length in [0, 511] {
        let error = Image::open(image(length).path(), ImageOptions::default()).unwrap_err();
        assert!(matches!(error, ImageError::TooSmall { length: found, .. } if found == length), "{error}");
    }
    assert_eq!(Image::open(image(513).path(), READ_ONLY).unwrap().length().unwrap(), 513);
}

#[test]
fn fault_c3_a_path_that_cannot_be_opened_is_named_with_the_purpose_and_the_reason() {
    let error = Image::open(Path::new("/nowhere/disk"), READ_ONLY).unwrap_err();
    assert_eq!(error.to_string(), "cannot open \"/nowhere/disk\" for reading");
    assert!(matches!(error, ImageError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound));
}

#[test]
fn fault_c4_writers_are_alone_and_readers_are_not() {
    let file = image(4096);
    let writer = Image::open(file.path(), ImageOptions::default()).unwrap();
    for (options, purpose) in [(ImageOptions::default(), "reading and writing"), (READ_ONLY, "reading")] {
        let error = Image::open(file.path(), options).unwrap_err().to_string();
        let expected = format!("is in use by this process, which excludes {purpose}");
        assert!(error.ends_with(&expected), "{error}");
    }
    drop(writer);
    // A child of another test, between fork and exec, may still have its open files.
    let _one = loop {
        match Image::open(file.path(), READ_ONLY) {
            Err(ImageError::InUse { .. }) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    let _other = Image::open(file.path(), READ_ONLY).unwrap();
    assert!(Image::open(file.path(), ImageOptions::default()).is_err());
}

#[test]
fn fault_c5_a_header_of_another_format_is_data() {
    let file = image(1 << 16);
    // The magic, version 3, and a backing file.
    file.as_file().write_all_at(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x70\0\0\0\x0b/etc/passwd", 0).unwrap();
    let image = Image::open(file.path(), ImageOptions::default()).unwrap();
    assert_eq!(image.length().unwrap(), 1 << 16);
}

#[test]
fn the_length_is_that_of_the_moment() {
    let file = image(4096);
    let image = Image::open(file.path(), ImageOptions::default()).unwrap();
    file.as_file().set_len(8192).unwrap();
    assert_eq!(image.length().unwrap(), 8192);
}

#[test]
fn a_descriptor_of_an_image_waits() {
    let file = image(4096);
    let image = Image::open(file.path(), ImageOptions::default()).unwrap();
    for file in image.files() {
        assert!(!fcntl_getfl(file).unwrap().contains(OFlags::NONBLOCK));
    }
}

#[test]
fn a_direct_image_says_what_is_aligned_or_the_file_system_refuses_it() {
    let file = image(1 << 16);
    match Image::open(file.path(), ImageOptions { read_only: false, direct: true }) {
        Ok(image) => {
            assert!(image.is_aligned(4096, [(0x4000, 8192), (0x8000, 4096)]));
            assert!(!image.is_aligned(1, [(0x4000, 4096)]));
            assert!(!image.is_aligned(0, [(0x4000, 1)]));
            let [direct, cached] = image.files().map(|file| fcntl_getfl(file).unwrap());
            assert!(direct.contains(OFlags::DIRECT) && !cached.contains(OFlags::DIRECT));
        }
        Err(error) => assert!(matches!(error, ImageError::NotDirect { .. }), "{error}"),
    }
}

#[test]
fn an_image_that_is_not_direct_takes_any_alignment() {
    let file = image(4096);
    let image = Image::open(file.path(), READ_ONLY).unwrap();
    assert!(image.is_aligned(1, [(3, 5)]));
    assert_eq!(image.blocks().logical, 512);
}
