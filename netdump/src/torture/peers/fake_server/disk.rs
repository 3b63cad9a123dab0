//! Where a fake server puts a core, and when.

use crate::wire::Message;

/// netdumpd's buffer before the disk.
const BUFFER: usize = 128 * 1024;
/// Room that it wants there for a message.
const MESSAGE: usize = 4096;

/// When a server writes what it acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Before the ack.
    BeforeAck,
    /// As netdumpd: when 128 KiB have come, when the next data is not adjacent, or at the end. What it has not written
    /// when it drops a client is lost.
    Behind,
    /// Never: what a server says and does is all that matters.
    Nowhere,
}

/// The disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// The file of one core.
#[derive(Debug)]
pub(super) struct Disk {
    writes: Writes,
    /// Most bytes of a file.
    room: usize,
    /// The file.
    pub(super) file: Vec<u8>,
    buffer: Vec<u8>,
    /// Where the buffer's bytes belong.
    at: usize,
}

impl Disk {
    pub(super) fn new(writes: Writes, room: usize) -> Self {
        Self { writes, room, file: Vec::new(), buffer: Vec::new(), at: 0 }
    }

    pub(super) fn put(&mut self, message: &Message<'_>) -> Result<(), Full> {
        let at = usize::try_from(message.offset).map_err(|_| Full)?;
        match self.writes {
            Writes::Nowhere => return Ok(()),
            Writes::BeforeAck => return self.write(at, message.payload),
            Writes::Behind => {}
        }
        if self.buffer.len() + MESSAGE > BUFFER || at != self.at + self.buffer.len() {
            self.flush()?;
        }
        if self.buffer.is_empty() {
            self.at = at;
        }
        self.buffer.extend_from_slice(message.payload);
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), Full> {
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.write(self.at, &buffer);
        self.buffer = buffer;
        self.buffer.clear();
        written
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), Full> {
        let end = at.checked_add(bytes.len()).filter(|end| *end <= self.room).ok_or(Full)?;
        if self.file.len() < end {
            self.file.resize(end, 0);
        }
        self.file[at..end].copy_from_slice(bytes);
        Ok(())
    }
}
