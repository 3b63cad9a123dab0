//! Bytes that a core shows instead of guest memory.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::paging::PAGE_SIZE;
use super::super::virtual_memory::left_in_page;

/// Patches by the page that they change. There are few: a planner makes them, not the guest.
#[derive(Debug, Default)]
pub(super) struct Patches {
    /// Of each patched page its patches, in the order in which they were made, each with its address.
    pages: BTreeMap<u64, Vec<(u64, Vec<u8>)>>,
}

impl Patches {
    /// Replaces what is shown at `address`.
    pub(super) fn add(&mut self, address: u64, bytes: &[u8]) {
        let mut address = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(left_in_page(address)));
            self.pages.entry(page_of(address)).or_default().push((address, piece.to_vec()));
            address = address.saturating_add(piece.len() as u64);
            rest = behind;
        }
    }

    /// Changes `buf`, which holds guest memory from `address` on.
    pub(super) fn apply(&self, address: u64, buf: &mut [u8]) {
        let end = address.saturating_add(buf.len() as u64);
        for (at, bytes) in self.pages.range(page_of(address)..end).flat_map(|(_, patches)| patches) {
            let shown = overlap(address..end, *at..at + bytes.len() as u64);
            if !shown.is_empty() {
                let from = &bytes[index(shown.start - at)..index(shown.end - at)];
                buf[index(shown.start - address)..index(shown.end - address)].copy_from_slice(from);
            }
        }
    }

    /// Whether any page of these bytes of guest memory is patched.
    pub(super) fn touch(&self, address: u64, len: usize) -> bool {
        self.pages.range(page_of(address)..address.saturating_add(len as u64)).next().is_some()
    }

    /// The first patched page that ends behind `address`.
    pub(super) fn next_page(&self, address: u64) -> Option<Range<u64>> {
        self.pages.range(page_of(address)..).next().map(|(&page, _)| page..page.saturating_add(PAGE_SIZE))
    }
}

fn page_of(address: u64) -> u64 {
    address - address % PAGE_SIZE
}

/// The bytes that two ranges share; an empty range when they share none.
fn overlap(one: Range<u64>, other: Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

fn index(place: u64) -> usize {
    usize::try_from(place).expect("a place in a buffer fits into usize")
}
