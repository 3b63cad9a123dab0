//! A core to send: bytes that tell their place, a hole perhaps, and parts that lie in guest memory.

use std::cell::Cell;
use std::ops::Range;

use netdump::{ReadAt, ReadError};

/// Where guest memory begins.
const GUEST: u64 = 0x1_0000_0000;

/// The core.
#[derive(Debug)]
pub struct Image {
    /// Its length; of a growing one that at its end.
    pub length: u64,
    /// What was never touched: holds zeros and need not be sent.
    pub hole: Range<u64>,
    /// What may be asked for at present.
    pub readable: Cell<(u64, u64)>,
    /// Whether reading fails at present.
    pub is_broken: Cell<bool>,
}

impl Image {
    /// All of it can be read.
    pub fn new(length: u64, hole: Range<u64>) -> Self {
        Self { length, hole, readable: Cell::new((0, length)), is_broken: Cell::new(false) }
    }

    /// What it holds.
    pub fn bytes(&self, range: Range<u64>) -> impl Iterator<Item = u8> {
        let is_hole = |offset| self.hole.contains(&offset);
        range.map(move |offset| if is_hole(offset) { 0 } else { (offset ^ (offset >> 8) ^ 0x5a) as u8 | 1 })
    }

    /// The same, by the address that [`ReadAt::locate`] gave.
    pub fn guest_bytes(&self, address: u64, len: usize) -> impl Iterator<Item = u8> {
        let offset = address - GUEST;
        self.bytes(offset..offset + len as u64)
    }

    fn check(&self, offset: u64, len: usize) {
        let (from, to) = self.readable.get();
        let end = offset + len as u64;
        assert!(from <= offset && end <= to, "{offset}..{end} is asked for of {from}..{to}");
    }
}

impl ReadAt for Image {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.check(offset, buf.len());
        if self.is_broken.get() {
            return Err(ReadError::OutOfRange { offset, len: buf.len(), total: self.length });
        }
        let bytes = self.bytes(offset..offset + buf.len() as u64);
        buf.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let runs = [0..self.hole.start, self.hole.end..self.length];
        let run = runs.into_iter().find(|run| !run.is_empty() && run.end > offset)?;
        Some(run.start.max(offset)..run.end)
    }

    /// Every third page lies elsewhere.
    fn locate(&self, offset: u64, len: usize) -> Option<u64> {
        let pages = offset / 4096..=(offset + len as u64) / 4096;
        self.check(offset, len);
        pages.into_iter().all(|page| page % 3 != 2).then_some(GUEST + offset)
    }
}
