//! FreeBSD's own sender, as its kernels have it since 2018 (`sys/netinet/netdump/netdump_client.c`), written from its
//! description and sharing nothing with the product's client: 64 KiB at a time, each message of it sent, then a look
//! for acks every 0.5 ms until all have come or a second is over.
//!
//! Its defect is modelled too: the masks that say which acks are wanted and which have come are made with a shift of a
//! 32-bit 1. The 32nd bit is extended to the left by its sign and further ones wrap around, so that message i + 32 of a
//! chunk stands for message i: the ack of one passes for that of both, and if the other was lost it is missing for ever.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::Dumps;
use super::core::{Core, header};
use super::talker::{Ports, Talker, Wired};
use crate::wire::message::HEADER_LEN;
use crate::wire::{CLIENT_PORT, MessageKind, SERVER_PORT, message};

/// `maxiosize`: what the dump code hands over at a time.
const CHUNK: usize = 64 * 1024;
/// Bits in the masks.
const MAX_IN_FLIGHT: u32 = 64;

/// How the sender makes a mask's bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckMask {
    /// As FreeBSD: `1 << i`, an `int`.
    Int,
    /// As it is meant.
    Wide,
}

impl AckMask {
    /// The bits that stand for message `i` of a chunk, as a compiler for x86 makes them.
    fn bits(self, i: u32) -> u64 {
        match self {
            Self::Int => i64::from(1_i32.wrapping_shl(i)).cast_unsigned(),
            Self::Wide => 1_u64.wrapping_shl(i),
        }
    }
}

/// Patience of the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Time between two looks for acks.
    pub poll: Duration,
    /// Looks before what is missing is sent again.
    pub polls: u32,
    /// How often that is done.
    pub retries: u32,
}

impl Default for Patience {
    /// The kernel's.
    fn default() -> Self {
        Self { poll: Duration::from_micros(500), polls: 2000, retries: 10 }
    }
}

/// How its dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassicEnding {
    /// FINISHED was acknowledged.
    Finished,
    /// It gave up while it was sending this, or never began.
    TimedOut(Option<MessageKind>),
}

/// FreeBSD's sender.
#[derive(Debug)]
pub struct Classic {
    /// What it dumps.
    pub core: Core,
    mask: AckMask,
    patience: Patience,
    payload_limit: usize,
    kdh: Vec<u8>,
    path: Vec<u8>,
    /// Bytes of the core handed over so far.
    done: usize,
    /// The server's port, the well-known one until another is learned.
    port: u16,
    call: Call,
    ending: Option<ClassicEnding>,
}

/// One `netdump_send`: an object, or 64 KiB of one.
#[derive(Debug, Clone, Copy)]
struct Call {
    kind: MessageKind,
    /// In the object.
    offset: usize,
    len: usize,
    /// Number of its first message (`nd_seqno`).
    first: u32,
    messages: u32,
    want_acks: u64,
    rcvd_acks: u64,
    /// The message to look at next; `messages` when all of this round were sent.
    next: u32,
    round: Round,
    retries: u32,
}

/// One round of sending, then of looking for acks.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// When the last message was sent.
    sent: Option<Instant>,
    /// When acks that came are looked at.
    look: Option<Instant>,
}

impl Classic {
    /// A sender over a path with this IP MTU.
    pub fn new(mask: AckMask, mtu: usize, patience: Patience, core: Core) -> Self {
        let length = core.bytes.len();
        let kdh = header(length as u64).to_vec();
        let path = b"vm1\0".to_vec();
        let payload_limit = (mtu - 28 - HEADER_LEN).min(message::MAX_PAYLOAD);
        let call = Call::new(mask, MessageKind::Herald, 0, path.len(), 1, payload_limit);
        Self {
            core,
            mask,
            patience,
            payload_limit,
            kdh,
            path,
            done: 0,
            port: SERVER_PORT,
            call,
            ending: None,
        }
    }

    /// Goes on if all messages of the call were sent and everything is acknowledged.
    fn look(&mut self) -> bool {
        let is_done = self.call.round.sent.is_some() && self.call.rcvd_acks == self.call.want_acks;
        if is_done {
            self.next_call();
        }
        is_done
    }

    /// What follows when everything of a call is acknowledged.
    fn next_call(&mut self) {
        let (length, call) = (self.core.bytes.len(), &self.call);
        if call.kind == MessageKind::Vmcore {
            self.done += call.len;
        }
        let (kind, offset, len) = match call.kind {
            MessageKind::Herald | MessageKind::Vmcore if self.done < length => {
                (MessageKind::Vmcore, self.done, CHUNK.min(length - self.done))
            }
            MessageKind::Herald | MessageKind::Vmcore => (MessageKind::Kdh, 0, self.kdh.len()),
            MessageKind::Kdh | MessageKind::EkcdKey => (MessageKind::Finished, 0, 0),
            MessageKind::Finished => {
                self.ending = Some(ClassicEnding::Finished);
                return;
            }
        };
        let first = call.first + call.messages;
        self.call = Call::new(self.mask, kind, offset, len, first, self.payload_limit);
    }

    fn object(&self) -> &[u8] {
        match self.call.kind {
            MessageKind::Herald => &self.path,
            MessageKind::Vmcore => &self.core.bytes,
            MessageKind::Kdh => &self.kdh,
            MessageKind::EkcdKey | MessageKind::Finished => &[],
        }
    }
}

impl Call {
    fn new(mask: AckMask, kind: MessageKind, offset: usize, len: usize, first: u32, limit: usize) -> Self {
        let messages = u32::try_from(len.div_ceil(limit).max(1)).expect("a chunk has few messages");
        let want_acks = (0..messages).fold(0, |wanted, i| wanted | mask.bits(i));
        let round = Round { sent: None, look: None };
        Self { kind, offset, len, first, messages, want_acks, rcvd_acks: 0, next: 0, round, retries: 0 }
    }
}

impl Talker for Classic {
    type Ending = ClassicEnding;

    fn handle(&mut self, now: Instant, source: SocketAddrV4, payload: &[u8]) {
        let Some(number) = payload.first_chunk() else { return };
        if self.port == SERVER_PORT {
            self.port = source.port();
        }
        let i = u32::from_be_bytes(*number).wrapping_sub(self.call.first);
        if i >= MAX_IN_FLIGHT {
            return;
        }
        self.call.rcvd_acks |= self.mask.bits(i);
        // At the next look, of which there is one every so often since the last message was sent.
        let poll = self.patience.poll;
        let look = self.call.round.sent.map(|sent| {
            let polls = (now - sent).as_nanos() / poll.as_nanos() + 1;
            sent + poll.saturating_mul(u32::try_from(polls).unwrap_or(u32::MAX))
        });
        let round = &mut self.call.round;
        round.look = round.look.or(look);
    }

    fn handle_timeout(&mut self, now: Instant) {
        let Some(sent) = self.call.round.sent else { return };
        if self.call.round.look.is_some_and(|look| look <= now) {
            self.call.round.look = None;
            if self.look() {
                return;
            }
        }
        if now >= sent + self.patience.poll * (self.patience.polls + 1) {
            self.call.retries += 1;
            if self.call.retries > self.patience.retries + 1 {
                self.ending = Some(ClassicEnding::TimedOut(Some(self.call.kind)));
            }
            self.call.next = 0;
            self.call.round = Round { sent: None, look: None };
        }
    }

    fn no_route(&mut self) {
        self.ending = Some(ClassicEnding::TimedOut(None));
    }

    fn poll_transmit(&mut self, now: Instant, payload: &mut Vec<u8>) -> Option<Ports> {
        while self.call.next < self.call.messages && self.ending.is_none() {
            self.call.next += 1;
            let (call, i) = (self.call, self.call.next - 1);
            if call.next == call.messages {
                self.call.round.sent = Some(now);
            }
            if call.rcvd_acks & self.mask.bits(i) != 0 {
                // The first look follows the last message at once.
                self.look();
                continue;
            }
            let before = usize::try_from(i).expect("small") * self.payload_limit;
            let len = (call.len - before).min(self.payload_limit);
            let at = call.offset + before;
            payload.extend_from_slice(&message::header(call.kind, call.first + i, at as u64, len, 0));
            payload.extend_from_slice(&self.object()[at..at + len]);
            let to = if call.kind == MessageKind::Herald { SERVER_PORT } else { self.port };
            return Some(Ports { from: CLIENT_PORT, to });
        }
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let round = &self.call.round;
        let over = round.sent.map(|sent| sent + self.patience.poll * (self.patience.polls + 1));
        [round.look, over].into_iter().flatten().min()
    }

    fn ending(&self) -> Option<&ClassicEnding> {
        self.ending.as_ref()
    }
}

impl Dumps for Wired<Classic> {
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])> {
        vec![(SocketAddrV4::new(self.address(), CLIENT_PORT), &self.talker.core.bytes)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_mask_confuses_messages_that_are_32_apart() {
        assert_eq!(AckMask::Int.bits(5), AckMask::Int.bits(37));
        assert_eq!(AckMask::Int.bits(31), 0xffff_ffff_8000_0000);
        assert!((0..64).all(|i| AckMask::Wide.bits(i) == 1 << i));
    }
}
