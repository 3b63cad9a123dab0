//! Which messages go behind one header: of one kind and attempt, all as long as the first but for the last, and core
//! bytes that are sent for the first time in a row.

use super::outgoing::{Attempt, Sending, Transmit};
use super::window::{Chunk, Sequence};
use crate::wire::MessageKind;

/// A frame's messages so far.
#[derive(Debug, Default)]
pub(super) struct Train {
    first: Option<(Sequence, Chunk, Attempt)>,
    /// How many there are.
    pub(super) messages: usize,
    /// Payload bytes of the first.
    pub(super) len: usize,
    /// Where the last one's payload ends.
    end: u64,
    limit: usize,
    /// Whether the last one is shorter, so that nothing can follow it.
    is_closed: bool,
}

impl Train {
    /// Whether this message can be added.
    pub(super) fn takes(&self, chunk: Chunk, attempt: Attempt) -> bool {
        let Some((_, first, first_attempt)) = self.first else { return true };
        let in_row = attempt == Attempt::Again || chunk.offset == self.end;
        !self.is_closed
            && self.messages < self.limit
            && chunk.kind == MessageKind::Vmcore
            && first.kind == MessageKind::Vmcore
            && attempt == first_attempt
            && chunk.len <= self.len
            && in_row
    }

    /// Adds it; the first one tells how many there may be.
    pub(super) fn add(
        &mut self,
        sequence: Sequence,
        chunk: Chunk,
        attempt: Attempt,
        limit: impl FnOnce() -> usize,
    ) {
        if self.first.is_none() {
            self.first = Some((sequence, chunk, attempt));
            self.len = chunk.len;
            self.limit = limit();
        }
        self.is_closed = chunk.len < self.len;
        self.messages += 1;
        self.end = chunk.offset + chunk.len as u64;
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// What is to be said of it, unless it is empty, when the core up to `sent_to` had been sent before.
    pub(super) fn transmit(&self, sent_to: u64) -> Option<Transmit> {
        let (sequence, Chunk { kind, offset, len }, attempt) = self.first?;
        let fresh = offset.max(sent_to)..self.end;
        let is_fresh = kind == MessageKind::Vmcore && attempt == Attempt::First && !fresh.is_empty();
        Some(Transmit {
            sending: Sending::Message { kind, sequence, offset, len, attempt },
            messages: self.messages,
            fresh: is_fresh.then_some(fresh),
        })
    }
}
