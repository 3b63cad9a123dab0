//! The virtio-net header before each frame (virtio 1.2, 5.1.6): 12 bytes, little-endian.
//!
//! ```text
//!  0 u8 flags    1 u8 gso_type    2 u16 hdr_len    4 u16 gso_size    6 u16 csum_start    8 u16 csum_offset    10 u16 num_buffers
//! ```
//!
//! The host's tap uses the same header, so what a driver wrote is checked and rebuilt before the host sees it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::sys::tap::VNET_HEADER_LEN;

/// A header's bytes.
pub type NetHeader = [u8; VNET_HEADER_LEN];

/// The header of a frame that is whole as it stands.
pub const PLAIN: NetHeader = [0; VNET_HEADER_LEN];

const UDP_HEADER_LEN: u16 = 8;
const TCP_HEADER_LEN: u16 = 20;

/// The header of a received frame that is whole and in one buffer.
pub const RECEIVED: NetHeader = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The header that has the device sum up the frame from byte `start` on, into the 16 bits `offset` bytes behind it.
pub fn needs_checksum(start: u16, offset: u16) -> NetHeader {
    let [s0, s1] = start.to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    [flag(VIRTIO_NET_HDR_F_NEEDS_CSUM), 0, 0, 0, 0, 0, s0, s1, o0, o1, 0, 0]
}

/// The header of a train: datagrams of `segment` bytes of UDP payload behind one set of headers, each to be summed up
/// like a frame of [`needs_checksum`]. The UDP header begins at byte `start` and ends the headers.
pub fn segmented(start: u16, offset: u16, segment: u16) -> NetHeader {
    cut(flag(VIRTIO_NET_HDR_GSO_UDP_L4), start, offset, segment)
}

/// The header of a frame of any kind that is to be cut into packets of `segment` bytes of payload. Of TCP's headers the
/// end is that of the shortest: the host's kernel looks for itself.
fn cut(gso_type: u8, start: u16, offset: u16, segment: u16) -> NetHeader {
    let is_udp = u32::from(gso_type) == VIRTIO_NET_HDR_GSO_UDP_L4;
    let transport = if is_udp { UDP_HEADER_LEN } else { TCP_HEADER_LEN };
    let mut header = needs_checksum(start, offset);
    header[1] = gso_type;
    header[2..4].copy_from_slice(&start.saturating_add(transport).to_le_bytes());
    header[4..6].copy_from_slice(&segment.to_le_bytes());
    header
}

/// What the header of a received frame says: the UDP payload of each datagram if it is a train, and whether the UDP
/// checksum needs no check, as it was checked or is yet to be made.
pub fn arrival(header: NetHeader) -> (Option<u16>, bool) {
    let [flags, gso_type, _, _, s0, s1, ..] = header;
    let is_train = u32::from(gso_type) == VIRTIO_NET_HDR_GSO_UDP_L4;
    let segment = u16::from_le_bytes([s0, s1]);
    let unchecked = flag(VIRTIO_NET_HDR_F_NEEDS_CSUM) | flag(VIRTIO_NET_HDR_F_DATA_VALID);
    (is_train.then_some(segment), flags & unchecked != 0)
}

/// Work on frames that one side leaves to the other, as negotiated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Checksums (VIRTIO_NET_F_CSUM and GUEST_CSUM). Without them there is none of the others (virtio 1.2, 5.1.3.1).
    pub checksum: bool,
    /// Cutting TCP over IPv4 into packets (HOST_TSO4 and GUEST_TSO4).
    pub tcp4: bool,
    /// The same over IPv6 (HOST_TSO6 and GUEST_TSO6).
    pub tcp6: bool,
    /// Cutting trains of UDP datagrams (HOST_USO, GUEST_USO4 and GUEST_USO6).
    pub udp: bool,
}

impl Offload {
    /// None: frames are whole.
    pub const NONE: Self = Self { checksum: false, tcp4: false, tcp6: false, udp: false };

    /// What the driver may leave to the device.
    pub fn of_driver(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        Self {
            checksum: true,
            tcp4: has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: has(VIRTIO_NET_F_HOST_TSO6),
            udp: has(VIRTIO_NET_F_HOST_USO),
        }
        .given(has(VIRTIO_NET_F_CSUM))
    }

    /// What the device may leave to the driver.
    pub fn of_device(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        Self {
            checksum: true,
            tcp4: has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(VIRTIO_NET_F_GUEST_TSO6),
            udp: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        }
        .given(has(VIRTIO_NET_F_GUEST_CSUM))
    }

    fn given(self, checksum: bool) -> Self {
        if checksum { self } else { Self::NONE }
    }

    /// Whether frames of this kind may be left to be cut.
    fn cuts(self, gso_type: u8) -> bool {
        match u32::from(gso_type) {
            VIRTIO_NET_HDR_GSO_TCPV4 => self.tcp4,
            VIRTIO_NET_HDR_GSO_TCPV6 => self.tcp6,
            VIRTIO_NET_HDR_GSO_UDP_L4 => self.udp,
            _ => false,
        }
    }
}

/// The header to send on for one that a driver put before a frame of `frame_len` bytes. `None`: it asks for what was
/// not negotiated, or for a checksum or a cut outside the frame.
pub fn sanitize(header: NetHeader, frame_len: usize, allowed: Offload) -> Option<NetHeader> {
    let [flags, gso_type, _, _, g0, g1, s0, s1, o0, o1, _, _] = header;
    let word = |low, high| u16::from_le_bytes([low, high]);
    let (segment, start, offset) = (word(g0, g1), word(s0, s1), word(o0, o1));
    let needs_sum = flags & flag(VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
    let sum_end = usize::from(start) + usize::from(offset) + 2;
    let sum_fits = allowed.checksum && sum_end <= frame_len;
    if u32::from(gso_type) == VIRTIO_NET_HDR_GSO_NONE {
        return if needs_sum { sum_fits.then(|| needs_checksum(start, offset)) } else { Some(PLAIN) };
    }
    let header = cut(gso_type, start, offset, segment);
    let [_, _, e0, e1, ..] = header;
    let cut_fits = allowed.cuts(gso_type) && segment > 0 && usize::from(word(e0, e1)) < frame_len;
    (needs_sum && sum_fits && cut_fits).then_some(header)
}

/// The header to give to a driver with a frame, and `None` if it leaves more to the driver than was negotiated: it was
/// queued before the host was told.
pub fn for_driver(from_host: NetHeader, allowed: Offload) -> Option<NetHeader> {
    let [flags, gso_type, rest @ ..] = from_host;
    let is_cut = u32::from(gso_type) == VIRTIO_NET_HDR_GSO_NONE;
    let left_to_sum = flags & flag(VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
    if !is_cut && !allowed.cuts(gso_type) || left_to_sum && !allowed.checksum {
        return None;
    }
    if !allowed.checksum {
        return Some(RECEIVED);
    }
    let [h0, h1, g0, g1, s0, s1, o0, o1, _, _] = rest;
    let known = flag(VIRTIO_NET_HDR_F_NEEDS_CSUM) | flag(VIRTIO_NET_HDR_F_DATA_VALID);
    Some([flags & known, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, 1, 0])
}

/// Says in a received frame's header that the frame lies in so many buffers.
pub fn set_buffers(header: &mut NetHeader, buffers: u16) {
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
}

const fn flag(bit: u32) -> u8 {
    bit.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKSUMS: Offload = Offload { checksum: true, ..Offload::NONE };
    const TRAINS: Offload = Offload { udp: true, ..CHECKSUMS };
    const TCP: Offload = Offload { tcp4: true, ..CHECKSUMS };
    const LEVELS: [Offload; 3] = [Offload::NONE, CHECKSUMS, TRAINS];

    #[test]
    fn only_flags_and_checksum_place_pass() {
        let noisy = [0xff, 0, 9, 9, 9, 9, 34, 0, 6, 0, 9, 9];
        assert_eq!(sanitize(noisy, 42, CHECKSUMS), Some(needs_checksum(34, 6)));
        for allowed in LEVELS {
            assert_eq!(sanitize([0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], 42, allowed), Some(PLAIN));
        }
    }

    #[test]
    fn of_a_train_the_size_passes_too() {
        let noisy = [0xff, 5, 9, 9, 100, 0, 34, 0, 6, 0, 9, 9];
        let clean = [1, 5, 42, 0, 100, 0, 34, 0, 6, 0, 0, 0];
        assert_eq!(sanitize(noisy, 43, TRAINS), Some(clean));
        assert_eq!(segmented(34, 6, 100), clean);
    }

    #[test]
    fn checksums_outside_the_frame_are_refused() {
        assert_eq!(sanitize(needs_checksum(34, 6), 41, CHECKSUMS), None);
        let far = needs_checksum(u16::MAX, u16::MAX);
        assert_eq!(sanitize(far, 65_550, TRAINS), None);
        assert_eq!(sanitize(segmented(u16::MAX, u16::MAX, 100), 65_550, TRAINS), None);
        assert_eq!(sanitize(segmented(34, 90, 100), 125, TRAINS), None);
    }

    #[test]
    fn trains_of_nothing_are_refused() {
        assert_eq!(sanitize(segmented(34, 6, 0), 1000, TRAINS), None);
        assert_eq!(sanitize(segmented(34, 6, 100), 42, TRAINS), None);
        assert_eq!(sanitize(segmented(34, 6, 100), 0, TRAINS), None);
        let mut without_sum = segmented(34, 6, 100);
        without_sum[0] = 0;
        assert_eq!(sanitize(without_sum, 1000, TRAINS), None);
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        assert_eq!(sanitize(needs_checksum(34, 6), 100, Offload::NONE), None);
        assert_eq!(sanitize(segmented(34, 6, 10), 100, CHECKSUMS), None);
        for allowed in LEVELS {
            for gso_type in (1..=u8::MAX).filter(|kind| *kind != 5 || !allowed.udp) {
                let mut header = segmented(34, 6, 10);
                header[1] = gso_type;
                assert_eq!(sanitize(header, 100, allowed), None, "{gso_type}");
            }
        }
    }

    #[test]
    fn trains_need_all_of_their_features() {
        let bits = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
        assert_eq!(Offload::of_driver(bits(&[0, 56])), TRAINS);
        assert_eq!(Offload::of_driver(bits(&[0])), CHECKSUMS);
        assert_eq!(Offload::of_driver(!bits(&[0])), Offload::NONE);
        assert_eq!(Offload::of_driver(bits(&[0, 11])), TCP);
        assert_eq!(Offload::of_device(bits(&[1, 54, 55])), TRAINS);
        assert_eq!(Offload::of_device(bits(&[1, 7])), TCP);
        assert_eq!(Offload::of_device(!bits(&[1])), Offload::NONE);
        for missing in [54, 55] {
            assert!(!Offload::of_device(!bits(&[missing])).udp);
        }
    }

    #[test]
    fn drivers_are_told_what_is_left_to_do_only_if_they_agreed() {
        let train = [1, 5, 42, 0, 4, 0, 34, 0, 6, 0, 0xee, 0xee];
        for allowed in [Offload::NONE, CHECKSUMS, TCP] {
            assert_eq!(for_driver(train, allowed), None);
        }
        assert_eq!(for_driver(needs_checksum(34, 6), Offload::NONE), None);
        assert_eq!(for_driver([2, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], Offload::NONE), Some(RECEIVED));
        let segments = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        assert_eq!(for_driver(segments, TRAINS), None);
        assert_eq!(for_driver(segments, TCP), Some([1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0]));
        let told = for_driver(train, TRAINS).unwrap();
        assert_eq!(told, [1, 5, 42, 0, 4, 0, 34, 0, 6, 0, 1, 0]);
        assert_eq!(arrival(told), (Some(4), true));
        assert_eq!(arrival(for_driver(PLAIN, TRAINS).unwrap()), (None, false));
    }

    #[test]
    fn tcp_is_cut_only_where_it_was_negotiated_and_its_header_is_ours() {
        let noisy = [0xff, 1, 9, 9, 0xa8, 5, 34, 0, 16, 0, 9, 9];
        let clean = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        assert_eq!(sanitize(noisy, 3000, TCP), Some(clean));
        assert_eq!(sanitize(noisy, 54, TCP), None, "no payload");
        assert_eq!(sanitize(noisy, 3000, TRAINS), None);
        let with = |at: usize, byte: u8| {
            let mut header = noisy;
            header[at] = byte;
            sanitize(header, 3000, TCP)
        };
        // IPv6, congestion marks, fragments; no checksum to make; and segments of nothing.
        assert_eq!([with(1, 4), with(1, 0x81), with(1, 3), with(0, 0)], [None; 4]);
        let mut empty = noisy;
        empty[4..6].fill(0);
        assert_eq!(sanitize(empty, 3000, TCP), None);
    }
}
