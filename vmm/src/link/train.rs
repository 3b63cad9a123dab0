//! What a frame for a virtio-net device or a tap is made of: the header that says what is left to do, and the bytes in
//! order. And what the device does with a train, for where none does: cut it into plain frames.
//!
//! Rules of trains: Linux `include/linux/virtio_net.h` (`virtio_net_hdr_to_skb`), `net/ipv4/udp_offload.c`.

use netdump::link::{Frame, GuestPiece};
use netdump::wire::datagram::{HEADERS_LEN, segment_headers};
use netdump::wire::ethernet::{EtherType, EthernetHeader};
use netdump::wire::ipv4::PROTOCOL_UDP;
use netdump::wire::udp::UdpChecksum;

use crate::devices::virtio::net::header::{NetHeader, PLAIN, needs_checksum, segmented};

/// Most datagrams in a train. Newer kernels take 128 (`UDP_MAX_SEGMENTS`), but 64 KiB hold more than 64 of them only
/// where the MTU is below 1052.
pub(super) const MAX_SEGMENTS: usize = 64;
/// Longest frame: an Ethernet header and the longest IP packet.
pub(super) const MAX_LEN: usize = 14 + 65_535;

/// In a frame, where the UDP header starts (Ethernet 14, IPv4 20), and in that the checksum.
const UDP_START: u16 = 34;
const UDP_CHECKSUM: u16 = 6;
/// In a frame, where IPv4 says what it carries.
const IP_PROTOCOL: usize = 23;

/// Bytes of a frame that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Ours.
    Own(&'a [u8]),
    /// The guest's.
    Guest(GuestPiece),
}

/// The header for `frame`. `None`: the frame is too long, or its pieces are in no order, or it is a train of no
/// datagrams, of too many, or of anything but UDP over IPv4 with its checksum left to the device.
pub(super) fn net_header(frame: &Frame<'_>) -> Option<NetHeader> {
    let in_order = frame.guest.is_sorted_by_key(|piece| piece.at);
    let last = frame.guest.last().map_or(0, |piece| piece.at);
    if !in_order || last > frame.bytes.len() || frame.len() > MAX_LEN {
        return None;
    }
    let udp = is_udp(frame.bytes);
    let Some(segment) = frame.segment else {
        return Some(if udp { needs_checksum(UDP_START, UDP_CHECKSUM) } else { PLAIN });
    };
    let payload = frame.len().checked_sub(HEADERS_LEN)?;
    let headers_are_ours = frame.guest.first().map_or(frame.bytes.len(), |piece| piece.at) >= HEADERS_LEN;
    let fits = segment > 0 && (1..=MAX_SEGMENTS).contains(&payload.div_ceil(segment.into()));
    (udp && headers_are_ours && fits).then(|| segmented(UDP_START, UDP_CHECKSUM, segment))
}

/// What a frame that [`net_header`] has found good is made of, in order.
pub(super) fn parts<'a>(frame: &Frame<'a>) -> impl Iterator<Item = Part<'a>> + use<'a> {
    let &Frame { bytes, guest, .. } = frame;
    let mut done = 0;
    let between = guest.iter().flat_map(move |piece| {
        let own = bytes.get(done..piece.at).unwrap_or_default();
        done = piece.at;
        [Part::Own(own), Part::Guest(*piece)]
    });
    let behind = bytes.get(guest.last().map_or(0, |piece| piece.at)..).unwrap_or_default();
    between.chain([Part::Own(behind)]).filter(|part| *part != Part::Own(&[]))
}

/// Whether a frame's UDP checksum is the device's to make.
fn is_udp(frame: &[u8]) -> bool {
    let ipv4 = EthernetHeader::parse(frame).is_ok_and(|(header, _)| header.ethertype == EtherType::IPV4);
    ipv4 && frame.get(IP_PROTOCOL) == Some(&PROTOCOL_UDP)
}

/// A train cut into plain frames, which go one after the other. What the link has no room for yet waits here.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    /// The frames' own bytes, one frame behind the other.
    bytes: Vec<u8>,
    /// Their pieces, likewise.
    guest: Vec<GuestPiece>,
    /// Where each frame begins in both.
    starts: Vec<(usize, usize)>,
    /// Frames that are gone.
    gone: usize,
}

impl Cutter {
    /// Cuts a train that [`net_header`] has found good; what was here before is forgotten.
    pub(super) fn put(&mut self, train: &Frame<'_>) {
        self.bytes.clear();
        self.guest.clear();
        self.starts.clear();
        self.gone = 0;
        let Some((headers, _)) = train.bytes.split_first_chunk::<HEADERS_LEN>() else { return };
        let segment = train.segment.map_or(usize::MAX, usize::from).max(1);
        let mut left = train.len() - HEADERS_LEN;
        let mut room = 0;
        let mut skip = HEADERS_LEN;
        for part in parts(train) {
            let (_, mut part) = part.split_at(std::mem::take(&mut skip));
            while part.len() > 0 {
                if room == 0 {
                    room = segment.min(left);
                    left -= room;
                    self.begin(headers, room);
                }
                let (now, later) = part.split_at(room);
                room -= now.len();
                self.add(now);
                part = later;
            }
        }
    }

    fn begin(&mut self, train: &[u8; HEADERS_LEN], payload_len: usize) {
        let index = u16::try_from(self.starts.len()).unwrap_or(u16::MAX);
        self.starts.push((self.bytes.len(), self.guest.len()));
        let headers = segment_headers(train, index, payload_len, UdpChecksum::Partial);
        self.bytes.extend_from_slice(&headers);
    }

    fn add(&mut self, part: Part<'_>) {
        match part {
            Part::Own(bytes) => self.bytes.extend_from_slice(bytes),
            Part::Guest(piece) => {
                let start = self.starts.last().map_or(0, |start| start.0);
                self.guest.push(GuestPiece { at: self.bytes.len() - start, ..piece });
            }
        }
    }

    /// The next frame to send, until it is [`gone`](Self::gone).
    pub(super) fn next(&self) -> Option<Frame<'_>> {
        let &(bytes, guest) = self.starts.get(self.gone)?;
        let end = (self.bytes.len(), self.guest.len());
        let &(bytes_end, guest_end) = self.starts.get(self.gone + 1).unwrap_or(&end);
        Some(Frame {
            bytes: &self.bytes[bytes..bytes_end],
            guest: &self.guest[guest..guest_end],
            segment: None,
        })
    }

    /// The next frame is on its way.
    pub(super) fn gone(&mut self) {
        self.gone += 1;
    }
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Part::Own(bytes) => bytes.len(),
            Part::Guest(piece) => piece.len,
        }
    }

    /// The first `len` bytes, or all, and the others.
    fn split_at(self, len: usize) -> (Self, Self) {
        let len = len.min(self.len());
        match self {
            Part::Own(bytes) => {
                let (now, later) = bytes.split_at(len);
                (Part::Own(now), Part::Own(later))
            }
            Part::Guest(piece) => {
                let rest = piece.len - len;
                let later =
                    GuestPiece { address: piece.address.saturating_add(len as u64), len: rest, ..piece };
                (Part::Guest(GuestPiece { len, ..piece }), Part::Guest(later))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use netdump::wire::{MacAddr, Route};
    use proptest::prelude::*;

    use super::*;

    const ROUTE: Route = Route {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 20023),
    };

    /// A train's headers and `own` bytes of UDP payload, the guest's pieces left out.
    fn train_bytes(own: &[u8], pieces: &[GuestPiece]) -> Vec<u8> {
        let len = own.len() + pieces.iter().map(|piece| piece.len).sum::<usize>();
        [&ROUTE.headers(len, UdpChecksum::Partial)[..], own].concat()
    }

    /// The UDP payload as a device gathers it; guest memory holds the low byte of each address.
    fn payload(frame: &Frame<'_>) -> Vec<u8> {
        let bytes = parts(frame).flat_map(|part| match part {
            Part::Own(bytes) => bytes.to_vec(),
            Part::Guest(piece) => {
                (piece.address..).take(piece.len).map(|address| address.to_le_bytes()[0]).collect()
            }
        });
        bytes.skip(HEADERS_LEN).collect()
    }

    proptest! {
        #[test]
        fn cutting_loses_nothing(
            own in proptest::collection::vec(any::<u8>(), 0..300),
            places in proptest::collection::vec((0_usize..300, 1_usize..200), 0..20),
            segment in 1_u16..400,
        ) {
            let mut pieces: Vec<_> = places.iter().zip(0_u64..)
                .map(|(&(at, len), number)| {
                    GuestPiece { at: HEADERS_LEN + at.min(own.len()), address: number * 77, len }
                })
                .collect();
            pieces.sort_by_key(|piece| piece.at);
            let bytes = train_bytes(&own, &pieces);
            let train = Frame { bytes: &bytes, guest: &pieces, segment: Some(segment) };
            let whole = payload(&train);
            let mut cutter = Cutter::default();
            cutter.put(&train);
            for (index, want) in (0..).zip(whole.chunks(segment.into())) {
                let frame = cutter.next().unwrap();
                prop_assert_eq!(payload(&frame), want);
                let headers = ROUTE.headers(whole.len(), UdpChecksum::Partial);
                let headers = segment_headers(&headers, index, want.len(), UdpChecksum::Partial);
                prop_assert_eq!(&frame.bytes[..HEADERS_LEN], &headers);
                prop_assert!(net_header(&frame).is_some());
                cutter.gone();
            }
            prop_assert!(cutter.next().is_none());
        }
    }

    #[test]
    fn headers_ask_for_what_is_left_to_do() {
        let plain = train_bytes(&[1; 30], &[]);
        assert_eq!(net_header(&Frame::plain(&plain)), Some(needs_checksum(34, 6)));
        assert_eq!(net_header(&Frame::plain(&plain[..20])), Some(PLAIN));
        let train = Frame { segment: Some(10), ..Frame::plain(&plain) };
        assert_eq!(net_header(&train), Some([1, 5, 42, 0, 10, 0, 34, 0, 6, 0, 0, 0]));
    }

    #[test]
    fn trains_that_no_device_takes_are_refused() {
        let refused = |bytes: &[u8], guest: &[GuestPiece], segment| {
            net_header(&Frame { bytes, guest, segment: Some(segment) }).is_none()
        };
        let bytes = train_bytes(&[1; 65], &[]);
        assert!(refused(&bytes, &[], 0), "no size");
        assert!(refused(&bytes, &[], 1), "65 datagrams");
        assert!(!refused(&bytes, &[], 2));
        assert!(refused(&bytes[..42], &[], 2), "no datagram");
        assert!(refused(&bytes[..41], &[], 2), "no headers");
        let mut arp = bytes.clone();
        arp[13] = 6;
        assert!(refused(&arp, &[], 2), "no IPv4");
        let mut tcp = bytes.clone();
        tcp[23] = 6;
        assert!(refused(&tcp, &[], 2), "no UDP");
        assert!(refused(&bytes, &[GuestPiece { at: 41, address: 0, len: 1 }], 2), "headers of the guest's");
    }

    #[test]
    fn frames_that_are_no_frames_are_refused() {
        let bytes = train_bytes(&[1; 65], &[]);
        let refused =
            |guest: &[GuestPiece], segment| net_header(&Frame { bytes: &bytes, guest, segment }).is_none();
        let piece = |at, len| GuestPiece { at, address: 0, len };
        let room = MAX_LEN - bytes.len();
        for segment in [None, Some(2000)] {
            assert!(!refused(&[piece(50, 1), piece(50, 1), piece(bytes.len(), room - 2)], segment));
            assert!(refused(&[piece(50, room + 1)], segment), "too long");
            assert!(refused(&[piece(bytes.len() + 1, 1)], segment), "behind the end");
            assert!(refused(&[piece(60, 1), piece(50, 1)], segment), "out of order");
        }
    }
}
