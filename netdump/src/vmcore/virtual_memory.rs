//! What can be read of memory by virtual address, whoever translates.

use super::paging::PAGE_SIZE;

/// A stopped kernel's memory by virtual address.
pub trait VirtualMemory {
    /// Fills `buf` from virtual `address`; `None` when any byte of it is not mapped or cannot be read.
    fn read(&self, address: u64, buf: &mut [u8]) -> Option<()>;

    /// Reads a little-endian u64.
    fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian u32.
    fn read_u32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// The bytes before the NUL of a string; `None` when it has none among its first `max` bytes or is not readable.
    fn read_string(&self, address: u64, max: usize) -> Option<Vec<u8>> {
        self.read_cut_string(address, max).filter(|text| text.len() < max)
    }

    /// The bytes before the NUL of a string, at most `max`; `None` when it is not readable.
    fn read_cut_string(&self, address: u64, max: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < max {
            // The page behind the string's may not be there.
            let at = address.checked_add(text.len() as u64)?;
            let mut piece = vec![0; left_in_page(at).min(max - text.len())];
            self.read(at, &mut piece)?;
            if let Some(end) = piece.iter().position(|&byte| byte == 0) {
                text.extend_from_slice(&piece[..end]);
                break;
            }
            text.append(&mut piece);
        }
        Some(text)
    }
}

/// `buf` in pieces that cross no page when its first byte lies at `address`, each with its own address.
pub(crate) fn split_at_pages(address: u64, buf: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    let (first, rest) = buf.split_at_mut(buf.len().min(left_in_page(address)));
    let pieces = std::iter::once(first).chain(rest.chunks_mut(PAGE_LEN));
    pieces.scan(address, |next, piece| {
        let at = *next;
        *next = at.wrapping_add(piece.len() as u64);
        Some((at, piece))
    })
}

/// Bytes from `address` to the end of its page.
pub(crate) fn left_in_page(address: u64) -> usize {
    usize::try_from(PAGE_SIZE - address % PAGE_SIZE).expect("a page fits into usize")
}

const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_SIZE);
