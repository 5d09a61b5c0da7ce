//! The format of a kernel image, told by its first bytes.

use super::image::{Image, ReadError};

/// What a kernel image is. A further boot protocol adds a variant here and a file beside this one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Format {
    Elf,
    BzImage,
    /// Nothing that can be booted; the text completes "the kernel is …".
    Other(String),
}

/// The magic of a bzImage, which may begin with `MZ` too, and its offset.
const BZIMAGE: (usize, &[u8]) = (0x202, b"HdrS");

/// Offset, bytes, and what a file that has them there is.
const SIGNATURES: [(usize, &[u8], &str); 10] = [
    (0, b"\x1f\x8b", "gzip-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed"),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed (legacy frame)"),
    (0, b"BZh", "bzip2-compressed"),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O executable"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"070701", "a cpio archive, which an initrd may be"),
    (0, b"MZ", "a PE executable"),
];

/// The last byte that a signature covers, and one more.
const HEAD: usize = 0x206;

/// Tells the format of `image`.
pub(super) fn sniff(image: &Image<'_>) -> Result<Format, ReadError> {
    let mut buffer = [0; HEAD];
    let length = usize::try_from(image.len()).map_or(HEAD, |length| length.min(HEAD));
    let head = &mut buffer[..length];
    image.read_at(0, head)?;
    if head.starts_with(b"\x7fELF") {
        return Ok(Format::Elf);
    }
    if head.get(BZIMAGE.0..) == Some(BZIMAGE.1) {
        return Ok(Format::BzImage);
    }
    let known =
        SIGNATURES.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    Ok(Format::Other(known.map_or_else(
        || format!("in no known format (it begins with {:02x?})", &head[..length.min(4)]),
        |(_, _, name)| (*name).to_owned(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniffed(bytes: &[u8]) -> Format {
        sniff(&Image::from_bytes("kernel", bytes).unwrap()).unwrap()
    }

    #[test]
    fn an_elf_file_is_told_by_its_magic() {
        assert_eq!(sniffed(b"\x7fELF"), Format::Elf);
        assert_eq!(sniffed(&[b"\x7fELF".as_slice(), &[0; 0x400]].concat()), Format::Elf);
    }

    #[test]
    fn each_signature_is_recognised_and_none_lies_beyond_the_bytes_read() {
        for (at, magic, name) in SIGNATURES {
            assert!(at + magic.len() <= HEAD, "{name}");
            let mut file = vec![0; at];
            file.extend_from_slice(magic);
            assert_eq!(sniffed(&file), Format::Other(name.to_owned()));
        }
    }

    #[test]
    fn a_bzimage_with_an_efi_stub_is_a_bzimage() {
        let mut file = vec![0; 0x400];
        file[..2].copy_from_slice(b"MZ");
        file[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(sniffed(&file), Format::BzImage);
        file[0x203] = b'D';
        assert_eq!(sniffed(&file), Format::Other("a PE executable".to_owned()));
    }

    #[test]
    fn fault_c6_an_unknown_file_is_named_by_its_first_bytes() {
        assert_eq!(
            sniffed(&[0xde, 0xad]),
            Format::Other("in no known format (it begins with [de, ad])".to_owned())
        );
        let Format::Other(text) = sniffed(&[0x11; 0x1000]) else { panic!("taken for an ELF file") };
        assert!(text.ends_with("[11, 11, 11, 11])"), "{text}");
    }
}
