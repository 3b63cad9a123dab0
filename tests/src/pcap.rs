//! A reader of recorded frames that shares nothing with the product: literal offsets, and its own checksums.
//! Formats: libpcap's classic file format, RFC 826, RFC 791, RFC 768, and FreeBSD's netdump messages.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, bail, ensure};

/// Frames of a capture file of Ethernet frames, oldest first. No frame may be cut.
pub fn read(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let file = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(frames(&file)?.into_iter().map(<[u8]>::to_vec).collect())
}

/// The same, of the bytes of such a file.
pub fn frames(file: &[u8]) -> anyhow::Result<Vec<&[u8]>> {
    let uncut = |record: &Record<'_>| {
        let (kept, whole) = (record.kept, record.whole);
        ensure!(kept == whole, "a frame of {whole} bytes was cut to {kept}");
        Ok(())
    };
    let frames = records(file)?.into_iter().map(|record| uncut(&record).map(|()| record.frame));
    frames.collect()
}

/// The same file with at most so many bytes of each frame.
pub fn cut(file: &[u8], most: u32) -> anyhow::Result<Vec<u8>> {
    let mut cut = file.get(..24).context("no capture file")?.to_vec();
    for record in records(file)? {
        let keep = record.kept.min(most);
        cut.extend(&record.head[..8]);
        // In the file's own byte order.
        cut.extend(if record.big_endian { keep.to_be_bytes() } else { keep.to_le_bytes() });
        cut.extend(&record.head[12..]);
        cut.extend(&record.frame[..keep as usize]);
    }
    Ok(cut)
}

/// Whether a capture, with its frames cut or not, has a UDP datagram to that port.
pub fn shows_port(file: &[u8], port: u16) -> anyhow::Result<bool> {
    // IPv4 without options: protocol at 23, destination port at 36.
    let to_port = |record: &Record<'_>| {
        let field = |range| record.frame.get(range);
        field(12..14) == Some(&[8, 0])
            && field(23..24) == Some(&[17])
            && field(36..38) == Some(&port.to_be_bytes())
    };
    Ok(records(file)?.iter().any(to_port))
}

/// A record of a capture file.
struct Record<'a> {
    big_endian: bool,
    /// Its header: seconds, nanoseconds, length kept, length on the wire.
    head: &'a [u8],
    kept: u32,
    whole: u32,
    frame: &'a [u8],
}

fn records(file: &[u8]) -> anyhow::Result<Vec<Record<'_>>> {
    ensure!(file.len() >= 24, "{} bytes are no capture file", file.len());
    let big_endian = match file[..4] {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => false,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => true,
        ref magic => bail!("a capture file does not begin with {magic:x?}"),
    };
    let word = |at: usize| {
        let bytes = file[at..at + 4].try_into().expect("four bytes");
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    ensure!(word(20) == 1, "link type {} is not Ethernet", word(20));
    let mut records = Vec::new();
    let mut at = 24;
    while at < file.len() {
        ensure!(at + 16 <= file.len(), "the last record's header is cut");
        let (kept, whole) = (word(at + 8), word(at + 12));
        let (start, end) = (at + 16, at + 16 + kept as usize);
        ensure!(end <= file.len(), "the last record is cut");
        records.push(Record { big_endian, head: &file[at..start], kept, whole, frame: &file[start..end] });
        at = end;
    }
    Ok(records)
}

/// An ARP packet for Ethernet and IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Hardware address of who sent it.
    pub sender_mac: [u8; 6],
    /// Address of who sent it.
    pub sender: Ipv4Addr,
    /// The address asked for, or that of who asked.
    pub target: Ipv4Addr,
}

/// The ARP packet in a frame, if there is one.
pub fn arp(frame: &[u8]) -> Option<Arp> {
    let fixed = [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4];
    (frame.len() >= 42 && frame[12..20] == fixed).then(|| Arp {
        operation: be16(frame, 20),
        sender_mac: frame[22..28].try_into().expect("six bytes"),
        sender: address(frame, 28),
        target: address(frame, 38),
    })
}

/// A UDP datagram with the fields of the headers around it.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Where the frame goes.
    pub to_mac: [u8; 6],
    /// Who sent the frame.
    pub from_mac: [u8; 6],
    /// IPv4 identification.
    pub id: u16,
    /// IPv4 flags and fragment offset; 0x4000 is don't-fragment alone.
    pub flags: u16,
    /// IPv4 time to live.
    pub ttl: u8,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// Where it goes.
    pub to: SocketAddrV4,
    /// Whether the checksum of the IPv4 header is right.
    pub ip_sum: bool,
    /// Whether there is a UDP checksum and it is right.
    pub udp_sum: bool,
    /// What it carries.
    pub payload: &'a [u8],
}

/// The UDP datagram in a frame, if there is one in IPv4 without options.
pub fn datagram(frame: &[u8]) -> Option<Datagram<'_>> {
    if frame.len() < 42 || frame[12..15] != [0x08, 0x00, 0x45] || frame[23] != 17 {
        return None;
    }
    let total = usize::from(be16(frame, 16));
    let length = usize::from(be16(frame, 38));
    if total < 28 || 14 + total > frame.len() || length != total - 20 {
        return None;
    }
    let (header, udp) = (&frame[14..34], &frame[34..14 + total]);
    let pseudo = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
    Some(Datagram {
        to_mac: frame[..6].try_into().expect("six bytes"),
        from_mac: frame[6..12].try_into().expect("six bytes"),
        id: be16(frame, 18),
        flags: be16(frame, 20),
        ttl: frame[22],
        from: SocketAddrV4::new(address(frame, 26), be16(frame, 34)),
        to: SocketAddrV4::new(address(frame, 30), be16(frame, 36)),
        ip_sum: sum(&[header]) == 0xffff,
        udp_sum: be16(frame, 40) != 0 && sum(&[&pseudo, udp]) == 0xffff,
        payload: &udp[8..],
    })
}

/// Kinds of netdump messages, as on the wire.
#[expect(missing_docs, reason = "the protocol's own names")]
pub mod kind {
    pub const HERALD: u32 = 1;
    pub const FINISHED: u32 = 2;
    pub const VMCORE: u32 = 3;
    pub const KDH: u32 = 4;
}

/// A netdump message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message<'a> {
    /// One of [`kind`].
    pub kind: u32,
    /// Its number.
    pub sequence: u32,
    /// Where its payload belongs.
    pub offset: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// The message that a datagram carries, if its length is what the message says.
pub fn message(payload: &[u8]) -> Option<Message<'_>> {
    let is_long_enough = payload.len() >= 24;
    // Only a HERALD has a word there: it names the dump.
    let ok = is_long_enough
        && be32(payload, 16) as usize == payload.len() - 24
        && (be32(payload, 20) == 0 || be32(payload, 0) == 1);
    ok.then(|| Message {
        kind: be32(payload, 0),
        sequence: be32(payload, 4),
        offset: u64::from(be32(payload, 8)) << 32 | u64::from(be32(payload, 12)),
        payload: &payload[24..],
    })
}

/// The datagrams in a UDP payload of the client's: where the kernel cuts a train behind the place of a capture, it is one
/// payload there. Each message tells its own length.
pub fn datagrams(mut payload: &[u8]) -> Vec<&[u8]> {
    let mut datagrams = Vec::new();
    while payload.len() > 24 {
        let len = 24 + be32(payload, 16) as usize;
        let (datagram, rest) = payload.split_at_checked(len).unwrap_or((payload, &[]));
        datagrams.push(datagram);
        payload = rest;
    }
    if !payload.is_empty() || datagrams.is_empty() {
        datagrams.push(payload);
    }
    datagrams
}

/// The sequence number that an ack names.
pub fn ack(payload: &[u8]) -> Option<u32> {
    (payload.len() == 4).then(|| be32(payload, 0))
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// The folded one's complement sum of 16-bit words; every part but the last has an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("it was folded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_capture_keeps_its_headers_and_tells_what_was_cut() {
        let mut file = [[0xd4, 0xc3, 0xb2, 0xa1].as_slice(), &[0; 16], &[1, 0, 0, 0]].concat();
        let mut frame = [0; 60];
        (frame[12], frame[23]) = (8, 17);
        frame[36..38].copy_from_slice(&20023u16.to_be_bytes());
        file.extend([[0; 8].as_slice(), &60u32.to_le_bytes(), &60u32.to_le_bytes(), &frame].concat());
        let cut = cut(&file, 40).expect("a capture file");
        assert_eq!(cut.len(), 24 + 16 + 40);
        assert!(shows_port(&cut, 20023).expect("still a capture file"));
        assert!(!shows_port(&cut, 20024).expect("still a capture file"));
        assert!(frames(&file).is_ok_and(|frames| frames == [frame]));
        let error = frames(&cut).expect_err("it was cut");
        assert_eq!(error.to_string(), "a frame of 60 bytes was cut to 40");
    }

    #[test]
    fn sum_is_the_internets() {
        assert_eq!(sum(&[&[0, 1, 0xf2, 3], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        assert_eq!(sum(&[&[0xff, 0xff], &[1]]), 0x0100);
    }

    #[test]
    fn a_datagram_is_taken_apart() {
        let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 5, 8, 0];
        frame.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 255, 17, 0x67, 0xbf, 10, 0, 0, 5, 10, 0, 0, 9]);
        frame.extend([0x4e, 0x38, 0x4e, 0x37, 0, 12, 0x4f, 0x52, 0, 0, 0, 7]);
        let datagram = datagram(&frame).unwrap();
        assert_eq!((datagram.from.port(), datagram.to.port()), (20024, 20023));
        assert_eq!((datagram.flags, datagram.ttl, ack(datagram.payload)), (0x4000, 255, Some(7)));
        assert!(datagram.ip_sum, "sum {:x}", sum(&[&frame[14..34]]));
        assert!(datagram.udp_sum, "{:x}", sum(&[&frame[26..34], &[0, 17, 0, 12], &frame[34..46]]));
        for byte in 26..frame.len() {
            let mut damaged = frame.clone();
            damaged[byte] ^= 1;
            assert!(super::datagram(&damaged).is_none_or(|datagram| !datagram.udp_sum), "byte {byte}");
        }
        assert!((0..frame.len()).all(|len| super::datagram(&frame[..len]).is_none()));
    }
}
