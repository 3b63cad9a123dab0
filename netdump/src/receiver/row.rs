//! Datagrams as they come from sockets, many at a time, and data messages in a row as one write.

use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::ops::Range;

use super::Endpoint;
use crate::wire::Message;

/// Most pieces in one write: the kernel's `UIO_MAXIOV`.
const MAX_PIECES: usize = 1024;

/// One datagram, or a train of datagrams of one sender that the kernel has put together (`UDP_GRO`).
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// The port that it came to.
    pub to: Endpoint,
    /// The sender.
    pub from: SocketAddrV4,
    /// UDP payload: of a train, of all its datagrams, one behind the other.
    pub bytes: &'a [u8],
    /// Of a train: bytes of each of its datagrams; the last one may be shorter.
    pub segment: Option<u16>,
}

impl<'a> Arrived<'a> {
    /// The datagrams, one by one.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let whole = self.bytes.len().max(1);
        let segment = self.segment.map_or(whole, |segment| usize::from(segment).clamp(1, whole));
        // A datagram without a byte is one too: it is to be counted as malformed.
        let nothing = self.bytes.is_empty().then_some(self.bytes);
        nothing.into_iter().chain(self.bytes.chunks(segment))
    }
}

/// Data messages of one client that lie in a row and are not stored yet. Their payloads stay where they were received.
#[derive(Debug, Default)]
pub(super) struct Row<'a> {
    offset: u64,
    end: u64,
    pieces: Vec<IoSlice<'a>>,
    sequences: Vec<u32>,
}

impl<'a> Row<'a> {
    /// An empty row with room for what can be stored of these at once.
    pub(super) fn for_batch(batch: &[Arrived<'_>]) -> Self {
        let messages: usize = batch.iter().map(|arrived| arrived.datagrams().size_hint().0).sum();
        let room = messages.min(MAX_PIECES);
        Self { pieces: Vec::with_capacity(room), sequences: Vec::with_capacity(room), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether data at that offset can be added.
    pub(super) fn takes(&self, offset: u64) -> bool {
        offset == self.end && (1..MAX_PIECES).contains(&self.pieces.len())
    }

    /// Adds a data message, which is not empty: to an empty row, or to one that takes it.
    pub(super) fn push(&mut self, message: &Message<'a>) {
        if self.is_empty() {
            self.offset = message.offset;
            self.end = message.offset;
        }
        self.end += message.payload.len() as u64;
        self.pieces.push(IoSlice::new(message.payload));
        self.sequences.push(message.sequence);
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.end
    }

    pub(super) fn pieces(&self) -> &[IoSlice<'a>] {
        &self.pieces
    }

    /// The numbers of the messages.
    pub(super) fn sequences(&self) -> &[u32] {
        &self.sequences
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.sequences.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn cut(bytes: &[u8], segment: Option<u16>) -> Vec<&[u8]> {
        let local = Ipv4Addr::LOCALHOST;
        let from = SocketAddrV4::new(local, 1);
        Arrived { to: Endpoint::Herald { local }, from, bytes, segment }.datagrams().collect()
    }

    #[test]
    fn trains_are_cut_into_their_datagrams() {
        assert_eq!(cut(b"aabbc", Some(2)), [&b"aa"[..], b"bb", b"c"]);
        assert_eq!(cut(b"aabb", Some(2)), [b"aa", b"bb"]);
        assert_eq!(cut(b"aabb", None), [b"aabb"]);
        assert_eq!(cut(b"aabb", Some(2000)), [b"aabb"]);
    }

    #[test]
    fn odd_trains_are_cut_too() {
        assert_eq!(cut(b"", None), [b""]);
        assert_eq!(cut(b"", Some(4)), [b""]);
        assert_eq!(cut(b"ab", Some(0)), [b"a", b"b"]);
    }
}
