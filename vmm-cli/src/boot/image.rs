//! The image: a kernel or initrd, a regular file or bytes in this program, read at checked positions.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions, ReadVolatile};
use vmm_core::file_kind;

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("{name} cannot be opened")]
    Open {
        /// The path.
        name: String,
        /// Its reason.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("{name} is {kind}; an image must be a regular file")]
    NotAFile {
        /// The path.
        name: String,
        /// What it is instead.
        kind: &'static str,
    },
    /// No bytes at all.
    #[error("{name} is empty")]
    Empty {
        /// The path.
        name: String,
    },
}

/// Why an image that was opened cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused.
    #[error("{size:#x} bytes at offset {offset:#x} cannot be read")]
    Io {
        /// Offset in the file.
        offset: u64,
        /// Number of bytes asked for.
        size: u64,
        /// Its reason.
        source: io::Error,
    },
    /// The file ended early.
    #[error(
        "the file ended before {size:#x} bytes at offset {offset:#x} could be read; it had {length:#x} bytes when \
         it was opened and must not change while a guest uses it"
    )]
    Shrunk {
        /// Offset in the file.
        offset: u64,
        /// Number of bytes asked for.
        size: u64,
        /// Length of the file when it was opened.
        length: u64,
    },
    /// Guest memory has no such range.
    #[error("{size:#x} bytes cannot be written to guest memory at {address:#x}")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// Number of bytes.
        size: u64,
        /// What the access met.
        source: GuestMemoryError,
    },
}

/// A kernel or initrd. Never empty; its length is fixed when it is opened.
///
/// Copying from a file moves the file's position, so one image serves one load at a time.
#[derive(Debug)]
pub struct Image<'a> {
    name: String,
    length: u64,
    data: Data<'a>,
}

#[derive(Debug)]
enum Data<'a> {
    File(File),
    Bytes(&'a [u8]),
}

impl Image<'static> {
    /// Opens a regular file.
    ///
    /// Anything else is refused without being opened (opening a device may act, opening a FIFO may wait), and again
    /// after opening, should the path have changed in between.
    ///
    /// # Errors
    ///
    /// [`OpenError`], naming the path.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let name = path.display().to_string();
        let open_error = |source| OpenError::Open { name: name.clone(), source };
        let regular = |kind: FileType| {
            let refusal = || OpenError::NotAFile { name: name.clone(), kind: file_kind(kind) };
            if kind.is_file() { Ok(()) } else { Err(refusal()) }
        };
        regular(path.metadata().map_err(open_error)?.file_type())?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        regular(metadata.file_type())?;
        match metadata.len() {
            0 => Err(OpenError::Empty { name }),
            length => Ok(Self { name, length, data: Data::File(file) }),
        }
    }
}

impl<'a> Image<'a> {
    /// Takes bytes of this program as an image; `name` stands for it in messages.
    ///
    /// # Errors
    ///
    /// [`OpenError::Empty`].
    pub fn from_bytes(name: &str, bytes: &'a [u8]) -> Result<Self, OpenError> {
        let name = name.to_owned();
        match bytes.len() {
            0 => Err(OpenError::Empty { name }),
            length => Ok(Self { name, length: length as u64, data: Data::Bytes(bytes) }),
        }
    }

    /// The path, or the name given to [`Image::from_bytes`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes, never zero.
    #[expect(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from `offset`.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let size = buffer.len() as u64;
        match &self.data {
            Data::File(file) => {
                file.read_exact_at(buffer, offset).map_err(|source| self.read_error(offset, size, source))
            }
            Data::Bytes(bytes) => {
                buffer.copy_from_slice(self.slice(bytes, offset, size)?);
                Ok(())
            }
        }
    }

    /// Copies the bytes `range` of the image to guest memory at `address`, without a copy in between.
    pub(super) fn copy_to<M>(&self, range: Range<u64>, memory: &M, address: u64) -> Result<(), ReadError>
    where
        M: GuestMemory + ?Sized,
    {
        let offset = range.start;
        let size = range.end - offset;
        let copied = match &self.data {
            Data::File(file) => {
                let mut file: &File = file;
                file.seek(SeekFrom::Start(offset)).map_err(|source| self.read_error(offset, size, source))?;
                fill(memory, address, size, &mut file)
            }
            Data::Bytes(bytes) => fill(memory, address, size, &mut self.slice(bytes, offset, size)?),
        };
        copied.map_err(|error| match error {
            GuestMemoryError::IOError(source) => self.read_error(offset, size, source),
            source => ReadError::Memory { address, size, source },
        })
    }

    fn slice<'b>(&self, bytes: &'b [u8], offset: u64, size: u64) -> Result<&'b [u8], ReadError> {
        let start = usize::try_from(offset).ok();
        let end = offset.checked_add(size).and_then(|end| usize::try_from(end).ok());
        start.zip(end).and_then(|(start, end)| bytes.get(start..end)).ok_or(ReadError::Shrunk {
            offset,
            size,
            length: self.length,
        })
    }

    fn read_error(&self, offset: u64, size: u64, source: io::Error) -> ReadError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Shrunk { offset, size, length: self.length },
            _ => ReadError::Io { offset, size, source },
        }
    }
}

/// Reads `size` bytes into guest memory, each region's part in full.
///
/// `Bytes::read_exact_volatile_from` is not used: a short read in one region makes it go on in the next.
fn fill<M, R>(memory: &M, address: u64, size: u64, reader: &mut R) -> Result<(), GuestMemoryError>
where
    M: GuestMemory + ?Sized,
    R: ReadVolatile,
{
    let size = usize::try_from(size).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
    for slice in memory.get_slices(GuestAddress(address), size, Permissions::Write)? {
        reader.read_exact_volatile(&mut slice?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use vm_memory::bitmap::BitmapSlice;
    use vm_memory::{Bytes, GuestMemoryMmap, VolatileMemoryError, VolatileSlice};
    use vmm_sys_util::tempdir::TempDir;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    const BASE: GuestAddress = GuestAddress(0x1000);

    /// Two pages of guest memory in two regions that touch.
    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(BASE, 0x1000), (GuestAddress(0x2000), 0x1000)]).unwrap()
    }

    fn file(bytes: &[u8]) -> TempFile {
        let file = TempFile::new().unwrap();
        file.as_file().write_all(bytes).unwrap();
        file
    }

    fn refused_as(path: &Path) -> &'static str {
        match Image::open(path) {
            Err(OpenError::NotAFile { name, kind }) => {
                assert_eq!(name, path.display().to_string());
                kind
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting() {
        let directory = TempDir::new().unwrap();
        assert_eq!(refused_as(directory.as_path()), "a directory");
        let fifo = directory.as_path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(refused_as(&fifo), "a FIFO");
        let socket = directory.as_path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(refused_as(&socket), "a socket");
        assert_eq!(refused_as(Path::new("/dev/zero")), "a character device");
        let link = directory.as_path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        assert_eq!(refused_as(&link), "a FIFO");
    }

    #[test]
    fn an_empty_image_is_refused() {
        let file = file(b"");
        assert!(matches!(Image::open(file.as_path()), Err(OpenError::Empty { .. })));
        assert!(
            matches!(Image::from_bytes("initrd", b""), Err(OpenError::Empty { name }) if name == "initrd")
        );
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_named_with_the_reason() {
        let directory = TempDir::new().unwrap();
        let missing = directory.as_path().join("missing");
        let file = file(b"x");
        let below_a_file = file.as_path().join("kernel");
        for (path, reason) in
            [(missing, io::ErrorKind::NotFound), (below_a_file, io::ErrorKind::NotADirectory)]
        {
            match Image::open(&path) {
                Err(OpenError::Open { name, source }) => {
                    assert_eq!(name, path.display().to_string());
                    assert_eq!(source.kind(), reason);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn reads_at_a_position_are_the_same_from_a_file_and_from_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let file = file(&bytes);
        let images = [Image::open(file.as_path()).unwrap(), Image::from_bytes("bytes", &bytes).unwrap()];
        for image in images {
            assert_eq!(image.len(), 256);
            let mut buffer = [0; 3];
            image.read_at(100, &mut buffer).unwrap();
            assert_eq!(buffer, [100, 101, 102]);
            for offset in [254, 256, u64::MAX] {
                assert!(image.read_at(offset, &mut buffer).is_err(), "{offset}");
            }
        }
    }

    #[test]
    fn a_copy_fills_both_regions_that_it_crosses() {
        let bytes: Vec<u8> = (0..0x1800).map(|at| (at % 251) as u8).collect();
        let file = file(&bytes);
        let images = [Image::open(file.as_path()).unwrap(), Image::from_bytes("bytes", &bytes).unwrap()];
        for image in images {
            let memory = memory();
            image.copy_to(0x10..0x1010, &memory, 0x1800).unwrap();
            let mut copied = vec![0; 0x1000];
            memory.read_slice(&mut copied, GuestAddress(0x1800)).unwrap();
            assert!(copied == bytes[0x10..0x1010]);
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x17f8)).unwrap(), 0);
        }
    }

    #[test]
    fn fault_c6_a_file_that_shrinks_is_an_error() {
        let file = file(&[1; 0x1000]);
        let image = Image::open(file.as_path()).unwrap();
        file.as_file().set_len(0x800).unwrap();
        let mut buffer = [0; 0x900];
        for error in [
            image.read_at(0, &mut buffer).unwrap_err(),
            image.copy_to(0..0x900, &memory(), BASE.0).unwrap_err(),
        ] {
            let expected = matches!(error, ReadError::Shrunk { offset: 0, size: 0x900, length: 0x1000 });
            assert!(expected, "{error:?}");
        }
    }

    #[test]
    fn a_copy_past_guest_memory_is_an_error() {
        let image = Image::from_bytes("bytes", &[1; 0x1000]).unwrap();
        let error = image.copy_to(0..0x1000, &memory(), 0x2800).unwrap_err();
        assert!(matches!(error, ReadError::Memory { address: 0x2800, size: 0x1000, .. }), "{error:?}");
    }

    /// Gives one byte at a time, each after an interrupted call.
    struct Slow {
        next: u8,
        interrupted: bool,
    }

    impl ReadVolatile for Slow {
        fn read_volatile<B: BitmapSlice>(
            &mut self,
            buffer: &mut VolatileSlice<'_, B>,
        ) -> Result<usize, VolatileMemoryError> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(VolatileMemoryError::IOError(io::ErrorKind::Interrupted.into()));
            }
            self.next = self.next.wrapping_add(1);
            buffer.write_obj(self.next, 0).map(|()| 1)
        }
    }

    #[test]
    fn short_and_interrupted_reads_are_continued_where_they_stopped() {
        let memory = memory();
        fill(&memory, 0x1f00, 0x200, &mut Slow { next: 0, interrupted: false }).unwrap();
        let mut copied = [0; 0x200];
        memory.read_slice(&mut copied, GuestAddress(0x1f00)).unwrap();
        let expected: Vec<u8> = (1..=0x200_u32).map(|at| (at & 0xff) as u8).collect();
        assert!(copied == expected[..]);
    }
}
