//! Requests to a disk (virtio 1.2, 5.2.6): a header of 16 bytes, the data, and a status byte at the end. Little-endian,
//! and cut into buffers as the driver likes.
//!
//! ```text
//!  0 u32 type    4 u32 reserved    8 u64 sector
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tracing::warn;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::VolatileSlice;

use super::disk::{Disk, SECTOR};
use crate::devices::virtio::chain::{Slices, collect_both, copy_from, copy_to, part};
use crate::devices::virtio::server::Serve;
use crate::memory::GuestMemory;

/// Most ranges of one discard or write-zeroes request.
pub(super) const MOST_RANGES: u32 = 16;
/// Most sectors of one range to discard or to make zero: 1 GiB.
pub(super) const MOST_SECTORS: u32 = 1 << 21;

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;
/// Most bytes of a request, all in all. Linux asks for 1.25 MiB at most, unless it is told to.
const LIMIT: usize = 1 << 30;

/// Carries out requests.
pub(super) struct Executor {
    pub(super) disk: Arc<Disk>,
    /// What the disk calls itself.
    pub(super) id: [u8; ID_LEN],
    /// Whether every write is to be on stable storage when it ends: a driver that does not flush cannot know of a cache.
    pub(super) write_through: bool,
    /// Whether the host's log tells already that the disk fails.
    pub(super) warned: bool,
}

/// Bytes of a disk's name.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Why a request was not carried out.
#[derive(Debug)]
enum Refusal {
    /// The request makes no sense, or leaves the disk.
    Impossible,
    /// The device does not know such requests.
    Unknown,
    /// The host's disk failed.
    Host(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl Serve for Executor {
    /// A chain that has no place for a status is given back as it is.
    fn serve<'m>(
        &mut self,
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        stopping: &AtomicBool,
    ) -> u32 {
        let (mut sent, mut room) = (Slices::new(), Slices::new());
        let Ok((sent_len, room_len)) = collect_both(chain, memory, LIMIT, &mut sent, &mut room) else {
            return 0;
        };
        let Some(data_room) = room_len.checked_sub(1) else { return 0 };
        let request = Request { sent: &sent, sent_len, room: &room, data_room, stopping };
        let (status, written) = match self.execute(&request) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Unknown) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Impossible) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Host(error)) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let path = self.disk.path().display();
                    warn!(disk = %path, %error, "a disk fails on the host; the guest is told");
                }
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        let status = u8::try_from(status).expect("three small numbers");
        let place: Slices<'_> = part(&room, data_room, 1).collect();
        copy_to(&[status], &place);
        // Of a request that failed the status is all that was surely written, though it lies behind the data.
        u32::try_from(written + 1).expect("at most a GiB")
    }
}

/// A request's memory.
struct Request<'a, 'm> {
    /// What the driver wrote, the header first.
    sent: &'a [VolatileSlice<'m>],
    sent_len: usize,
    /// What the driver reads, the status last.
    room: &'a [VolatileSlice<'m>],
    data_room: usize,
    stopping: &'a AtomicBool,
}

impl<'m> Request<'_, 'm> {
    fn sent_data(&self) -> Slices<'m> {
        part(self.sent, HEADER_LEN, usize::MAX).collect()
    }

    fn room_for_data(&self) -> Slices<'m> {
        part(self.room, 0, self.data_room).collect()
    }
}

impl Executor {
    /// Carries out a request; how many bytes of data the driver got.
    fn execute(&self, request: &Request<'_, '_>) -> Result<usize, Refusal> {
        let mut header = [0; HEADER_LEN];
        if copy_from(request.sent, &mut header) < HEADER_LEN {
            return Err(Refusal::Impossible);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let sent_len = request.sent_len - HEADER_LEN;
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => {
                let offset = self.place(sector, request.data_room as u64)?;
                self.disk.read(offset, &request.room_for_data())?;
                return Ok(request.data_room);
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.place_to_write(sector, sent_len as u64)?;
                self.disk.write(offset, &request.sent_data())?;
                self.end_of_write()?;
            }
            VIRTIO_BLK_T_FLUSH => self.disk.flush()?,
            VIRTIO_BLK_T_GET_ID => {
                let room = request.room_for_data();
                let id = self.id.get(..request.data_room).unwrap_or(&self.id);
                copy_to(id, &room);
                return Ok(id.len());
            }
            VIRTIO_BLK_T_DISCARD => {
                for range in self.ranges(request, sent_len, 0)? {
                    self.disk.discard(range.offset, range.len)?;
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                for range in self.ranges(request, sent_len, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)? {
                    self.disk.zero(range.offset, range.len, range.may_unmap, request.stopping)?;
                }
                self.end_of_write()?;
            }
            _ => return Err(Refusal::Unknown),
        }
        Ok(0)
    }

    fn end_of_write(&self) -> Result<(), Refusal> {
        if self.write_through {
            self.disk.flush()?;
        }
        Ok(())
    }

    /// Where `len` bytes from `sector` on begin, if they are whole sectors of this disk.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::Impossible)?;
        let end = offset.checked_add(len).ok_or(Refusal::Impossible)?;
        let fits = len.is_multiple_of(SECTOR) && end <= self.disk.length();
        if fits { Ok(offset) } else { Err(Refusal::Impossible) }
    }

    fn place_to_write(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        if self.disk.access().may_write() { self.place(sector, len) } else { Err(Refusal::Impossible) }
    }

    /// The ranges of a discard or write-zeroes request: sector (u64), count (u32) and flags (u32) of each. All are looked
    /// at before the first is touched.
    fn ranges(&self, request: &Request<'_, '_>, len: usize, flags: u32) -> Result<Vec<Range>, Refusal> {
        let count = len / RANGE_LEN;
        if !len.is_multiple_of(RANGE_LEN) || count == 0 || count > MOST_RANGES as usize {
            return Err(Refusal::Impossible);
        }
        let mut bytes = vec![0; len];
        copy_from(&request.sent_data(), &mut bytes);
        bytes.as_chunks::<RANGE_LEN>().0.iter().map(|range| self.range(range, flags)).collect()
    }

    fn range(&self, bytes: &[u8; RANGE_LEN], known_flags: u32) -> Result<Range, Refusal> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = *bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !known_flags != 0 {
            return Err(Refusal::Unknown);
        }
        if count == 0 || count > MOST_SECTORS {
            return Err(Refusal::Impossible);
        }
        let len = u64::from(count) * SECTOR;
        let offset = self.place_to_write(sector, len)?;
        Ok(Range { offset, len, may_unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
    }
}

/// Bytes of the disk.
struct Range {
    offset: u64,
    len: u64,
    may_unmap: bool,
}
