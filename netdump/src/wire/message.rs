//! The netdump message header and its ack (FreeBSD `sys/netinet/netdump/netdump.h`).
//!
//! ```text
//!  0  u32 type      4  u32 sequence number      8  u64 offset      16  u32 payload length      20  u32 aux
//! ```

use thiserror::Error;

/// Bytes in a message header.
pub const HEADER_LEN: usize = 24;
/// Bytes in an ack: the sequence number, nothing else.
pub const ACK_LEN: usize = 4;
/// Most payload bytes in one message (`NETDUMP_DATASIZE`): a stock server's receive buffer has room for no more.
pub const MAX_PAYLOAD: usize = 4096;
/// Longest path in a HERALD, its NUL included.
pub const MAX_PATH: usize = 1024;

/// What a message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Opens a dump; the payload is empty or a NUL-terminated relative path.
    Herald = 1,
    /// Ends a dump whose data was all acknowledged.
    Finished = 2,
    /// Part of the core.
    Vmcore = 3,
    /// The kernel dump header, whole.
    Kdh = 4,
    /// Part of the key block of an encrypted dump.
    EkcdKey = 5,
}

impl MessageKind {
    fn from_wire(value: u32) -> Option<Self> {
        Some(match value {
            1 => Self::Herald,
            2 => Self::Finished,
            3 => Self::Vmcore,
            4 => Self::Kdh,
            5 => Self::EkcdKey,
            _ => return None,
        })
    }
}

/// Why a datagram is not a netdump message or ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Fewer bytes than a header.
    #[error("a datagram of {0} bytes is too short for a netdump header of 24")]
    Short(usize),
    /// A type that the protocol does not have.
    #[error("unknown message type {0}")]
    UnknownKind(u32),
    /// The header's length field and the datagram disagree.
    #[error("header announces {announced} payload bytes, the datagram holds {present}")]
    Length {
        /// The header's length field.
        announced: u32,
        /// Bytes behind the header.
        present: usize,
    },
    /// More payload than the protocol allows.
    #[error("payload of {0} bytes exceeds 4096")]
    TooLong(usize),
    /// Not the 4 bytes of an ack.
    #[error("an ack has 4 bytes, not {0}")]
    NotAnAck(usize),
}

/// One message: its header fields and, borrowed, its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it carries.
    pub kind: MessageKind,
    /// Number of the message, 1 for the HERALD; a resend keeps its number.
    pub sequence: u32,
    /// Position of the payload in the object that this kind writes, in bytes.
    pub offset: u64,
    /// The payload.
    pub payload: &'a [u8],
    /// FreeBSD's first client calls it padding, later ones `mh_aux2`; all send 0 and no stock server looks at it. In a
    /// HERALD of ours it names the dump, so that a receiver knows a dump that goes on from one that begins.
    pub aux: u32,
}

impl<'a> Message<'a> {
    /// Takes a datagram's UDP payload apart; its length must be exactly what the header says.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        let (header, payload) =
            datagram.split_first_chunk::<HEADER_LEN>().ok_or(MessageError::Short(datagram.len()))?;
        let [k0, k1, k2, k3, s0, s1, s2, s3, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, a0, a1, a2, a3] =
            *header;
        let kind = u32::from_be_bytes([k0, k1, k2, k3]);
        let announced = u32::from_be_bytes([l0, l1, l2, l3]);
        let kind = MessageKind::from_wire(kind).ok_or(MessageError::UnknownKind(kind))?;
        if usize::try_from(announced) != Ok(payload.len()) {
            return Err(MessageError::Length { announced, present: payload.len() });
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(MessageError::TooLong(payload.len()));
        }
        Ok(Self {
            kind,
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            payload,
            aux: u32::from_be_bytes([a0, a1, a2, a3]),
        })
    }

    /// Appends header and payload to `out`.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&header(self.kind, self.sequence, self.offset, self.payload.len(), self.aux));
        out.extend_from_slice(self.payload);
    }
}

/// The header of a message whose payload of `len` bytes (at most [`MAX_PAYLOAD`]) is put behind it by the caller.
pub fn header(kind: MessageKind, sequence: u32, offset: u64, len: usize, aux: u32) -> [u8; HEADER_LEN] {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut out = [0; HEADER_LEN];
    out[0..4].copy_from_slice(&(kind as u32).to_be_bytes());
    out[4..8].copy_from_slice(&sequence.to_be_bytes());
    out[8..16].copy_from_slice(&offset.to_be_bytes());
    out[16..20].copy_from_slice(&len.to_be_bytes());
    out[20..24].copy_from_slice(&aux.to_be_bytes());
    out
}

/// The acknowledgement of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack(pub u32);

impl Ack {
    /// Takes an ack apart; anything but exactly 4 bytes is refused, as FreeBSD's debugnet does.
    pub fn parse(datagram: &[u8]) -> Result<Self, MessageError> {
        let bytes: [u8; ACK_LEN] = datagram.try_into().map_err(|_| MessageError::NotAnAck(datagram.len()))?;
        Ok(Self(u32::from_be_bytes(bytes)))
    }

    /// The 4 bytes on the wire.
    pub fn to_bytes(self) -> [u8; ACK_LEN] {
        self.0.to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A HERALD with path "vm1", as FreeBSD sends it.
    const HERALD: [u8; 28] =
        [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, b'v', b'm', b'1', 0];

    fn herald() -> Message<'static> {
        Message { kind: MessageKind::Herald, sequence: 1, offset: 0, payload: b"vm1\0", aux: 0 }
    }

    #[test]
    fn herald_is_taken_apart() {
        assert_eq!(Message::parse(&HERALD), Ok(herald()));
    }

    #[test]
    fn herald_is_put_together_behind_what_is_there() {
        let mut out = vec![0xaa];
        herald().emit(&mut out);
        assert_eq!(out[1..], HERALD);
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in 0..HERALD.len() {
            assert!(Message::parse(&HERALD[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn surplus_bytes_are_refused() {
        let mut long = HERALD.to_vec();
        long.push(0);
        assert_eq!(Message::parse(&long), Err(MessageError::Length { announced: 4, present: 5 }));
    }

    #[test]
    fn unknown_type_and_oversize_are_refused() {
        let mut odd = HERALD;
        odd[3] = 9;
        assert_eq!(Message::parse(&odd), Err(MessageError::UnknownKind(9)));
        let mut big = Vec::new();
        Message { kind: MessageKind::Vmcore, sequence: 2, offset: 0, payload: &[0; 4097], aux: 0 }
            .emit(&mut big);
        assert_eq!(Message::parse(&big), Err(MessageError::TooLong(4097)));
    }

    #[test]
    fn acks_have_exactly_four_bytes() {
        assert_eq!(Ack::parse(&[0, 0, 1, 2]), Ok(Ack(0x102)));
        assert_eq!(Ack(0x102).to_bytes(), [0, 0, 1, 2]);
        assert_eq!(Ack::parse(&[0, 0, 1]), Err(MessageError::NotAnAck(3)));
        assert_eq!(Ack::parse(&[0, 0, 1, 2, 3]), Err(MessageError::NotAnAck(5)));
    }
}
