//! Where the bytes come from that the client sends: from the core itself, or from what packs it meanwhile.

use std::time::Duration;

use super::hash::Hashing;
use crate::ReadAt;
use crate::client::{Client, FailReason};
use crate::digest::Digest;
use crate::report::PackingReport;
use crate::stream::backlog::{Backlog, StreamEnd};
use crate::stream::{Packing, StreamError};
use crate::vmcore::KernelDumpHeader;

/// How long a driver that waits for the packing threads leaves the link alone, when nothing is on its way and when acks
/// are.
const HUNGRY_WAIT: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(1)];

/// A source of bytes.
pub(super) enum Source<'a> {
    /// The core as it is, which other threads hash.
    Core { image: &'a dyn ReadAt, hashing: Hashing<'a> },
    /// The core, packed by other threads, which hash it too.
    Stream(Stream<'a>),
}

/// A stream that is being made.
pub(super) struct Stream<'a> {
    pub(super) backlog: &'a Backlog,
    pub(super) packing: &'a Packing,
    /// The header but for `dumplength`, which is known when the stream ends.
    pub(super) header: KernelDumpHeader,
    /// Bytes of the core.
    pub(super) total: u64,
    pub(super) end: Option<StreamEnd>,
    /// How much of the stream the client knows of.
    pub(super) told: u64,
}

impl Source<'_> {
    /// What the client reads.
    pub(super) fn bytes(&self) -> &dyn ReadAt {
        match self {
            Self::Core { image, .. } => *image,
            Self::Stream(stream) => stream.backlog,
        }
    }

    /// Bytes of the core.
    pub(super) fn total(&self) -> u64 {
        match self {
            Self::Core { image, .. } => image.length(),
            Self::Stream(stream) => stream.total,
        }
    }

    /// Bytes of the core that need no more care.
    pub(super) fn settled(&self, client: &Client) -> u64 {
        match self {
            Self::Core { .. } => client.bytes_settled(),
            Self::Stream(stream) => stream.backlog.settled().min(stream.total),
        }
    }

    /// Has the client know what there is, and the source what is not needed any more.
    pub(super) fn update(&mut self, client: &mut Client) {
        match self {
            Self::Core { .. } => {}
            Self::Stream(stream) => stream.update(client),
        }
    }

    /// How long the link may be waited for, at most `longest`. A client that waits for the packing threads and for no
    /// ack waits here for the threads; meanwhile the link can hardly have anything.
    pub(super) fn wait(&self, client: &Client, longest: Duration) -> Duration {
        match self {
            Self::Stream(stream) if client.is_starved() => {
                let [idle, busy] = HUNGRY_WAIT;
                if !client.is_idle() {
                    return longest.min(busy);
                }
                stream.backlog.wait_for_news(stream.told, longest.min(idle));
                Duration::ZERO
            }
            Self::Core { .. } | Self::Stream(_) => longest,
        }
    }

    /// The client has sent all: nothing is more urgent than the digest now.
    pub(super) fn hurry(&mut self) {
        if let Self::Core { hashing, .. } = self {
            hashing.hurry();
        }
    }

    /// Waits for the digest at most so long; whether there is nothing to wait for any more.
    pub(super) fn wait_for_digest(&self, wait: Duration) -> bool {
        match self {
            Self::Core { hashing, .. } => hashing.wait(wait),
            Self::Stream(_) => true,
        }
    }

    /// Bytes of the core as stored, their digest if all were acknowledged and are hashed, and how they were packed.
    pub(super) fn finish(self, client: &Client) -> (u64, Option<Digest>, Option<PackingReport>) {
        match self {
            Self::Core { image, hashing } => {
                let is_there = client.missing().is_empty();
                (image.length(), is_there.then(|| hashing.digest()).flatten(), None)
            }
            Self::Stream(Stream { backlog, packing, total, end, .. }) => {
                let report = PackingReport::new(packing, total, end.as_ref().map(|end| end.stored));
                let length = end.as_ref().map_or_else(|| backlog.length(), |end| end.stored);
                let digest = end.filter(|_| client.missing().is_empty()).and_then(|end| end.digest);
                (length, digest, Some(report))
            }
        }
    }
}

impl Stream<'_> {
    fn update(&mut self, client: &mut Client) {
        self.backlog.release(client.acked_to());
        // The end first: when it is known, so is everything before it.
        match self.backlog.take_end() {
            Some(Ok(end)) => {
                client.end_of_core(end.sent, self.header(&end).to_bytes());
                self.end = Some(end);
            }
            Some(Err(StreamError::Read(error))) => client.abort(FailReason::Read(error)),
            Some(Err(error)) => client.abort(FailReason::Pack(error)),
            None => {
                self.told = self.backlog.length();
                client.supply(self.told);
            }
        }
    }

    fn header(&self, end: &StreamEnd) -> KernelDumpHeader {
        KernelDumpHeader { dump_length: end.stored, ..self.header.clone() }
    }
}
