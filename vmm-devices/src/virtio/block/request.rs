//! What a chain asks a block device for (virtio 1.3, section 5.2.6), checked as a whole before anything is done.

use vmm_memory::GuestMemory;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::SECTOR;
use super::engine::Operation;
use crate::virtio::queue::{AccessError, Buffers, Chain};

/// Bytes of the header: type, reserved, sector.
const HEADER: u32 = 16;
/// Bytes of a range to discard or to make zero: sector, number of sectors, flags.
const RANGE: u32 = 16;
/// Bytes of the identification.
pub(super) const ID_LENGTH: usize = 20;

/// Most sectors that one request discards or makes zero: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        let status = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        #[expect(clippy::cast_possible_truncation, reason = "constants from 0 to 2")]
        let byte = status as u8;
        byte
    }
}

/// What the disk is at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    /// In sectors.
    pub(super) capacity: u64,
    pub(super) read_only: bool,
    /// Whether the driver has accepted that there is discard, and write zeroes.
    pub(super) discard: bool,
    pub(super) write_zeroes: bool,
}

/// What becomes of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has no room for a status: it is given back with nothing in it.
    Unanswerable,
    /// It is answered at once.
    Answer(Status),
    /// It gets the identification of the disk.
    Identify,
    /// It is to be done; of bytes of the image. Reads and writes have as many in the chain.
    Perform { operation: Operation, offset: u64, length: u64 },
}

/// Judges `chain`.
///
/// # Errors
/// Guest RAM in it is gone.
pub(super) fn judge(chain: &Chain, memory: &GuestMemory, disk: Disk) -> Result<Verdict, AccessError> {
    if chain.writable().is_empty() {
        return Ok(Verdict::Unanswerable);
    }
    let mut header = [0; HEADER as usize];
    match chain.readable().read(memory, &mut header) {
        Err(AccessError::Short { .. }) => return Ok(Verdict::Answer(Status::IoError)),
        other => other?,
    }
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    let verdict = match kind {
        VIRTIO_BLK_T_IN => transfer(Operation::Read, sector, data_in(chain), disk),
        VIRTIO_BLK_T_OUT if disk.read_only => Err(Status::IoError),
        VIRTIO_BLK_T_OUT => transfer(Operation::Write, sector, data_out(chain), disk),
        VIRTIO_BLK_T_FLUSH => Ok(Verdict::Perform { operation: Operation::Flush, offset: 0, length: 0 }),
        VIRTIO_BLK_T_GET_ID => Ok(Verdict::Identify),
        VIRTIO_BLK_T_DISCARD if disk.discard => return range(Operation::Discard, chain, memory, disk),
        VIRTIO_BLK_T_WRITE_ZEROES if disk.write_zeroes => {
            return range(Operation::WriteZeroes { unmap: false }, chain, memory, disk);
        }
        _ => Err(Status::Unsupported),
    };
    Ok(verdict.unwrap_or_else(Verdict::Answer))
}

/// What a read fills: all that can be written but the status.
pub(super) fn data_in(chain: &Chain) -> Buffers<'_> {
    let writable = chain.writable();
    writable.split_at(writable.len().saturating_sub(1)).0
}

/// Where the status goes: the last byte that can be written.
pub(super) fn status_of(chain: &Chain) -> Buffers<'_> {
    let writable = chain.writable();
    writable.split_at(writable.len().saturating_sub(1)).1
}

/// What a write takes: all that can be read but the header.
pub(super) fn data_out(chain: &Chain) -> Buffers<'_> {
    chain.readable().split_at(HEADER).1
}

fn transfer(operation: Operation, sector: u64, data: Buffers<'_>, disk: Disk) -> Result<Verdict, Status> {
    let length = u64::from(data.len());
    if !length.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    perform(operation, sector, length / SECTOR, disk)
}

/// The only range of a request: `max_discard_seg` and `max_write_zeroes_seg` are 1.
fn range(
    operation: Operation,
    chain: &Chain,
    memory: &GuestMemory,
    disk: Disk,
) -> Result<Verdict, AccessError> {
    let data = data_out(chain);
    if disk.read_only || data.len() != RANGE {
        return Ok(Verdict::Answer(Status::IoError));
    }
    let mut range = [0; RANGE as usize];
    data.read(memory, &mut range)?;
    let (sector, sectors, flags) = (u64_at(&range, 0), u32_at(&range, 8), u32_at(&range, 12));
    let operation = match operation {
        Operation::WriteZeroes { .. } if flags <= VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => {
            Operation::WriteZeroes { unmap: flags != 0 }
        }
        Operation::Discard if flags == 0 => operation,
        _ => return Ok(Verdict::Answer(Status::Unsupported)),
    };
    if sectors > MAX_RANGE_SECTORS {
        return Ok(Verdict::Answer(Status::IoError));
    }
    Ok(perform(operation, sector, sectors.into(), disk).unwrap_or_else(Verdict::Answer))
}

/// Of nothing, nothing is done.
fn perform(operation: Operation, sector: u64, sectors: u64, disk: Disk) -> Result<Verdict, Status> {
    let end = sector.checked_add(sectors).ok_or(Status::IoError)?;
    if end > disk.capacity {
        return Err(Status::IoError);
    }
    if sectors == 0 {
        return Err(Status::Ok);
    }
    // The capacity in bytes fits.
    let (offset, length) = (sector.saturating_mul(SECTOR), sectors.saturating_mul(SECTOR));
    Ok(Verdict::Perform { operation, offset, length })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u64::from_le_bytes(*field))
}
