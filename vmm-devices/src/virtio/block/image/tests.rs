//! What is opened as an image, what is refused, and who is kept away.

use std::os::fd::OwnedFd;
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

/// What somebody else may have opened, and how.
fn opened(path: &Path, options: &mut OpenOptions) -> HandedImage {
    HandedImage { file: options.open(path).unwrap(), direct: None }
}

fn refusal(handed: HandedImage, options: ImageOptions) -> String {
    Image::adopt(Path::new("/its/name"), handed, options).unwrap_err().to_string()
}

fn read_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

#[test]
fn fault_c3_what_is_handed_over_and_is_no_disk_is_refused_by_its_name() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let directory = File::open("/").unwrap();
    let zero = File::open("/dev/zero").unwrap();
    for (fd, kind) in [
        (OwnedFd::from(reader), "a FIFO"),
        (writer.into(), "a FIFO"),
        (socket.into(), "a socket"),
        (directory.into(), "a directory"),
        (zero.into(), "a character device"),
    ] {
        let error = refusal(HandedImage { file: fd.into(), direct: None }, READ_ONLY);
        assert_eq!(error, format!("\"/its/name\" is {kind}; a disk is a regular file or a block device"));
    }
}

#[test]
fn fault_c3_a_descriptor_that_does_not_fit_the_disk_is_refused_with_its_fault() {
    let file = image(4096);
    let path = file.path();
    let cases: [(OpenOptions, ImageOptions, &str); 6] = [
        (read_write(), READ_ONLY, "is not for reading alone"),
        (OpenOptions::new().read(true).clone(), ImageOptions::default(), "is not for reading and writing"),
        (OpenOptions::new().write(true).clone(), ImageOptions::default(), "is not for reading and writing"),
        (read_write().append(true).clone(), ImageOptions::default(), "appends"),
        (read_write().custom_flags(libc::O_NONBLOCK).clone(), ImageOptions::default(), "does not wait"),
        (OpenOptions::new().read(true).custom_flags(libc::O_PATH).clone(), READ_ONLY, "is of a path alone"),
    ];
    for (mut how, options, problem) in cases {
        let error = refusal(opened(path, &mut how), options);
        assert!(error.starts_with(&format!("the descriptor of \"/its/name\" {problem}")), "{error}");
    }
    // None of them is locked by that, or has other flags.
    assert!(Image::open(path, ImageOptions::default()).is_ok());
}

#[test]
fn fault_c4_what_is_handed_over_is_locked_as_what_is_opened_here() {
    let file = image(4096);
    let adopt = |mut how: OpenOptions, options| {
        Image::adopt(Path::new("/its/name"), opened(file.path(), &mut how), options)
    };
    let readers: Vec<_> =
        (0..2).map(|_| adopt(OpenOptions::new().read(true).clone(), READ_ONLY).unwrap()).collect();
    let error = adopt(read_write(), ImageOptions::default()).unwrap_err().to_string();
    assert!(error.starts_with("\"/its/name\" is in use by another process, or as another disk"), "{error}");
    drop(readers);
    // What whoever has opened it has locked, it has with the lock.
    let ours = Image::open(file.path(), ImageOptions::default()).unwrap();
    let handed = Image::adopt(ours.path(), ours.hand_over().unwrap(), ImageOptions::default()).unwrap();
    drop(ours);
    assert!(Image::open(file.path(), READ_ONLY).is_err());
    assert_eq!(handed.length().unwrap(), 4096);
    drop(handed);
    assert!(adopt(read_write(), ImageOptions::default()).is_ok());
}

#[test]
fn a_direct_image_is_handed_over_with_both_of_its_descriptors() {
    let (file, other) = (image(1 << 16), image(1 << 16));
    let direct = ImageOptions { read_only: false, direct: true };
    let Ok(ours) = Image::open(file.path(), direct) else { return };
    let handed = ours.hand_over().unwrap();
    let swapped = HandedImage { file: handed.direct.unwrap(), direct: Some(handed.file) };
    assert!(refusal(swapped, direct).contains("passes the page cache by (O_DIRECT), and is not to"));
    let handed = ours.hand_over().unwrap();
    let cached = HandedImage { direct: Some(handed.file.try_clone().unwrap()), file: handed.file };
    assert!(refusal(cached, direct).contains("that is to pass the page cache by does not (O_DIRECT)"));
    let theirs = Image::open(other.path(), direct).unwrap();
    let mixed =
        HandedImage { file: ours.hand_over().unwrap().file, direct: theirs.hand_over().unwrap().direct };
    assert!(refusal(mixed, direct).contains("are of two files"));
    let handed = Image::adopt(file.path(), ours.hand_over().unwrap(), direct).unwrap();
    assert!(!handed.is_aligned(1, [(0x4000, 4096)]));
}
