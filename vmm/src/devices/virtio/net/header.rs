//! The virtio-net header before each frame (virtio 1.2, 5.1.6): 12 bytes, little-endian.
//!
//! ```text
//!  0 u8 flags    1 u8 gso_type    2 u16 hdr_len    4 u16 gso_size    6 u16 csum_start    8 u16 csum_offset    10 u16 num_buffers
//! ```
//!
//! The host's tap uses the same header, so what a driver wrote is checked and rebuilt before the host sees it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::sys::tap::VNET_HEADER_LEN;

/// A header's bytes.
pub type NetHeader = [u8; VNET_HEADER_LEN];

/// The header of a frame that is whole as it stands.
pub const PLAIN: NetHeader = [0; VNET_HEADER_LEN];

const UDP_HEADER_LEN: u16 = 8;

/// The header of a received frame: whole, and in one buffer as there are no mergeable ones.
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
    let mut header = needs_checksum(start, offset);
    header[1] = flag(VIRTIO_NET_HDR_GSO_UDP_L4);
    header[2..4].copy_from_slice(&start.saturating_add(UDP_HEADER_LEN).to_le_bytes());
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

/// Whether the driver may leave checksums to the device (VIRTIO_NET_F_CSUM).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// It may.
    ByDevice,
    /// It was not negotiated.
    ByDriver,
}

/// The header to send on for one that a driver put before a frame of `frame_len` bytes. `None`: it asks for what was
/// not negotiated (segmentation is not offered) or for a checksum outside the frame.
pub fn sanitize(header: NetHeader, frame_len: usize, checksums: Checksums) -> Option<NetHeader> {
    let [flags, gso_type, _, _, _, _, s0, s1, o0, o1, _, _] = header;
    if u32::from(gso_type) != VIRTIO_NET_HDR_GSO_NONE {
        return None;
    }
    if flags & flag(VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0 {
        return Some(PLAIN);
    }
    let (start, offset) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([o0, o1]));
    let end = usize::from(start) + usize::from(offset) + 2;
    (checksums == Checksums::ByDevice && end <= frame_len).then(|| needs_checksum(start, offset))
}

const fn flag(bit: u32) -> u8 {
    bit.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_and_checksum_place_pass() {
        let noisy = [0xff, 0, 9, 9, 9, 9, 34, 0, 6, 0, 9, 9];
        assert_eq!(sanitize(noisy, 42, Checksums::ByDevice), Some(needs_checksum(34, 6)));
        assert_eq!(sanitize([0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], 42, Checksums::ByDevice), Some(PLAIN));
    }

    #[test]
    fn checksums_outside_the_frame_are_refused() {
        assert_eq!(sanitize(needs_checksum(34, 6), 41, Checksums::ByDevice), None);
        assert_eq!(sanitize(needs_checksum(u16::MAX, u16::MAX), 65_550, Checksums::ByDevice), None);
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        assert_eq!(sanitize(needs_checksum(34, 6), 100, Checksums::ByDriver), None);
        for gso_type in 1..=u8::MAX {
            let mut header = PLAIN;
            header[1] = gso_type;
            assert_eq!(sanitize(header, 100, Checksums::ByDevice), None, "{gso_type}");
        }
    }
}
