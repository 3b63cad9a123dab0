//! The IPv4 address that a guest goes by, learned from the frames that it sends.

use std::net::Ipv4Addr;

/// As many bytes of a frame as [`source_address`] looks at: an Ethernet header and an ARP packet.
pub(super) const SNIFFED: usize = 42;

/// The sender of a frame that starts with `start`: source of an untagged IPv4 packet, or sender of an ARP packet
/// about IPv4. Addresses that no host has (0/8, loopback, multicast, broadcast) are none.
pub(super) fn source_address(start: &[u8]) -> Option<Ipv4Addr> {
    let address: [u8; 4] = match start.get(12..14)? {
        [0x08, 0x00] if start.get(14)? >> 4 == 4 => start.get(26..30)?.try_into().ok()?,
        // Hardware type Ethernet, protocol IPv4, 6- and 4-byte addresses (RFC 826).
        [0x08, 0x06] if start.get(14..20)? == [0, 1, 8, 0, 6, 4] => start.get(28..32)?.try_into().ok()?,
        _ => return None,
    };
    let address = Ipv4Addr::from(address);
    let odd = address.octets().first() == Some(&0) || address.is_loopback() || address.is_multicast();
    (!odd && !address.is_broadcast()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: [u8; 2], start: &[u8], at: usize, address: [u8; 4]) -> [u8; SNIFFED] {
        let mut frame = [0; SNIFFED];
        frame[12..14].copy_from_slice(&kind);
        frame[14..14 + start.len()].copy_from_slice(start);
        frame[at..at + 4].copy_from_slice(&address);
        frame
    }

    #[test]
    fn arp_senders_and_ipv4_sources_are_seen() {
        let arp = frame([8, 6], &[0, 1, 8, 0, 6, 4, 0, 1], 28, [10, 0, 0, 5]);
        assert_eq!(source_address(&arp), Some(Ipv4Addr::new(10, 0, 0, 5)));
        let ip = frame([8, 0], &[0x45], 26, [192, 168, 1, 7]);
        assert_eq!(source_address(&ip), Some(Ipv4Addr::new(192, 168, 1, 7)));
    }

    #[test]
    fn addresses_of_nobody_are_ignored() {
        for address in [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 251], [255, 255, 255, 255]] {
            assert_eq!(source_address(&frame([8, 0], &[0x45], 26, address)), None);
        }
    }

    #[test]
    fn other_protocols_and_short_frames_are_ignored() {
        assert_eq!(source_address(&frame([0x86, 0xdd], &[0x60], 26, [1, 2, 3, 4])), None);
        assert_eq!(source_address(&frame([8, 0], &[0x65], 26, [1, 2, 3, 4])), None);
        let ip = frame([8, 0], &[0x45], 26, [1, 2, 3, 4]);
        let arp = frame([8, 6], &[0, 1, 8, 0, 6, 4], 28, [1, 2, 3, 4]);
        for len in 0..30 {
            assert_eq!(source_address(&ip[..len]), None);
            assert_eq!(source_address(&arp[..len]), None);
        }
    }
}
