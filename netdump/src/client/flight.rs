//! A message on its way: its number, what it carries, and how it fares.

use crate::wire::MessageKind;

/// A message's number. It wraps around after 2^32 messages, which is harmless as only differences count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sequence(pub u32);

impl Sequence {
    /// Of a dump's HERALD.
    pub const FIRST: Self = Self(1);

    pub(super) fn plus(self, count: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
        Self(self.0.wrapping_add(count as u32))
    }

    /// How many messages lie between `earlier` and this one.
    pub(super) fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// What a message carries, without the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) kind: MessageKind,
    /// Position in the object that this kind writes.
    pub(super) offset: u64,
    /// Payload bytes.
    pub(super) len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// On its way.
    Out,
    /// Waits to be sent again.
    Lost,
    Acked,
}

/// Why a message was sent again, or shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It was not.
    None,
    /// Others overtook it.
    Overtaken,
    /// It was waited for in vain.
    Expired,
}

/// A message between the oldest unacknowledged one and the newest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) offset: u64,
    /// Number of its last transmission.
    pub(super) transmission: u64,
    pub(super) len: u16,
    pub(super) kind: MessageKind,
    pub(super) state: State,
    /// The last time.
    pub(super) loss: Loss,
}

impl Flight {
    pub(super) fn new(chunk: Chunk, transmission: u64) -> Self {
        let Chunk { kind, offset, len } = chunk;
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        Self { offset, transmission, len, kind, state: State::Out, loss: Loss::None }
    }

    pub(super) fn chunk(&self) -> Chunk {
        Chunk { kind: self.kind, offset: self.offset, len: self.len.into() }
    }
}
