//! Records the frames that pass through any link, as a classic pcap file with nanosecond times (LINKTYPE_ETHERNET).

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Frame, Link, LinkError, Offloads, Received, Sent};
use crate::wire::{MacAddr, datagram};

/// First word of a pcap file with nanoseconds, in the writer's byte order (here always little-endian).
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
/// Frames on Ethernet, without FCS.
const LINKTYPE_ETHERNET: u32 = 1;
/// No frame that is recorded is longer.
const SNAP_LEN: u32 = 1 << 18;

/// A pcap file being written.
#[derive(Debug)]
pub struct PcapFile<W: Write> {
    out: W,
}

impl PcapFile<BufWriter<File>> {
    /// Creates the file, or empties it.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::new(BufWriter::with_capacity(1 << 18, File::create(path)?))
    }
}

impl<W: Write> PcapFile<W> {
    /// Begins with the file header.
    pub fn new(mut out: W) -> io::Result<Self> {
        let version = [2_u16.to_le_bytes(), 4_u16.to_le_bytes()].concat();
        let words = [0, 0, SNAP_LEN, LINKTYPE_ETHERNET].map(u32::to_le_bytes).concat();
        out.write_all(&[MAGIC_NANOSECONDS.to_le_bytes().as_slice(), &version, &words].concat())?;
        Ok(Self { out })
    }

    /// Appends one frame that passed at `time` since 1970 (which is cut to 32 bits of seconds).
    pub fn record(&mut self, time: Duration, frame: &[u8]) -> io::Result<()> {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "the format has 32 bits of seconds")]
        let words = [time.as_secs() as u32, time.subsec_nanos(), len, len];
        let mut header = [0; 16];
        for (bytes, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        self.out.write_all(&header)?;
        self.out.write_all(frame)
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A link whose frames are recorded. When that fails (a full disk), recording stops with one warning and the dump goes
/// on.
pub struct PcapWriter<L: Link, W: Write = BufWriter<File>> {
    link: L,
    file: Option<PcapFile<W>>,
    /// A frame as a link wants it that completes checksums.
    partial: Vec<u8>,
}

impl<L: Link, W: Write> PcapWriter<L, W> {
    /// Records into `file` what passes through `link`.
    pub fn new(link: L, file: PcapFile<W>) -> Self {
        Self { link, file: Some(file), partial: Vec::new() }
    }

    fn record(&mut self, frame: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Err(error) = file.record(time, frame) {
            tracing::warn!(%error, "the pcap recording stops");
            self.file = None;
        }
    }
}

impl<L: Link, W: Write> Link for PcapWriter<L, W> {
    fn mtu(&self) -> Result<u32, LinkError> {
        self.link.mtu()
    }

    fn mac(&self) -> MacAddr {
        self.link.mac()
    }

    /// A recording needs whole frames, one by one.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        let sent = if self.link.offloads().checksum {
            self.partial.clear();
            self.partial.extend_from_slice(frame.bytes);
            datagram::leave_checksum(&mut self.partial);
            self.link.send(&Frame::plain(&self.partial))?
        } else {
            self.link.send(frame)?
        };
        if sent == Sent::Yes {
            self.record(frame.bytes);
        }
        Ok(sent)
    }

    fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let received = self.link.receive(frame, wait)?;
        if received {
            self.record(&frame.bytes);
        }
        Ok(received)
    }
}

impl<L: Link, W: Write> Drop for PcapWriter<L, W> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.file.as_mut().map(PcapFile::flush) {
            tracing::warn!(%error, "the pcap recording lacks its end");
        }
    }
}

impl<L: Link + fmt::Debug, W: Write> fmt::Debug for PcapWriter<L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recording = self.file.is_some();
        f.debug_struct("PcapWriter")
            .field("link", &self.link)
            .field("recording", &recording)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::link::pipe;
    use crate::wire::Route;

    const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];

    /// A disk with room for so many bytes.
    #[derive(Debug)]
    struct Disk<'a> {
        written: &'a mut Vec<u8>,
        room: usize,
    }

    impl Write for Disk<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.written.len() + bytes.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(bytes: &[u8]) -> Frame<'_> {
        Frame::plain(bytes)
    }

    #[test]
    fn file_and_record_headers_are_the_classic_ones() {
        let mut bytes = Vec::new();
        let mut file = PcapFile::new(&mut bytes).unwrap();
        file.record(Duration::new(0x0102_0304, 5), &[0xaa, 0xbb, 0xcc]).unwrap();
        file.flush().unwrap();
        let header = [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
        assert_eq!(bytes[..24], header);
        assert_eq!(bytes[24..], [4, 3, 2, 1, 5, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0xaa, 0xbb, 0xcc]);
    }

    #[test]
    fn frames_are_recorded_both_ways_and_refused_ones_are_not() {
        let [near, mut far] = pipe::pair(MACS, 1500, 1);
        let mut written = Vec::new();
        let disk = Disk { written: &mut written, room: 1000 };
        let mut recorded = PcapWriter::new(near, PcapFile::new(disk).unwrap());
        assert_eq!(recorded.send(&frame(&[1; 10])).unwrap(), Sent::Yes);
        assert_eq!(recorded.send(&frame(&[1; 20])).unwrap(), Sent::Busy);
        far.send(&frame(&[2; 30])).unwrap();
        let mut received = Received::default();
        assert!(recorded.receive(&mut received, Duration::ZERO).unwrap());
        assert!(!recorded.receive(&mut received, Duration::ZERO).unwrap());
        drop(recorded);
        assert_eq!(written.len(), 24 + 16 + 10 + 16 + 30);
    }

    #[test]
    fn a_full_disk_does_not_stop_the_frames() {
        let [near, mut far] = pipe::pair(MACS, 1500, 8);
        let mut written = Vec::new();
        let mut recorded =
            PcapWriter::new(near, PcapFile::new(Disk { written: &mut written, room: 60 }).unwrap());
        for _ in 0..3 {
            assert_eq!(recorded.send(&frame(&[1; 10])).unwrap(), Sent::Yes);
        }
        let mut received = Received::default();
        let arrived =
            std::iter::from_fn(|| far.receive(&mut received, Duration::ZERO).unwrap().then_some(()));
        assert_eq!(arrived.count(), 3);
        drop(recorded);
        assert!((24..=60).contains(&written.len()));
    }

    #[test]
    fn a_gathering_link_still_completes_the_checksums() {
        /// Wants UDP checksums left to it.
        struct Gathering(pipe::Pipe);
        impl Link for Gathering {
            fn mtu(&self) -> Result<u32, LinkError> {
                self.0.mtu()
            }
            fn mac(&self) -> MacAddr {
                self.0.mac()
            }
            fn offloads(&self) -> Offloads {
                Offloads { gather: true, checksum: true, segments: 44 }
            }
            fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
                self.0.send(frame)
            }
            fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError> {
                self.0.receive(frame, wait)
            }
        }

        let route = Route {
            source_mac: MACS[0],
            destination_mac: MACS[1],
            source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024),
            destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 20023),
        };
        let mut whole = Vec::new();
        route.emit(b"some bytes", &mut whole);
        let [near, mut far] = pipe::pair(MACS, 1500, 8);
        let mut written = Vec::new();
        let file = PcapFile::new(&mut written).unwrap();
        let mut recorded = PcapWriter::new(Gathering(near), file);
        assert_eq!(recorded.offloads(), Offloads::default());
        recorded.send(&frame(&whole)).unwrap();
        drop(recorded);
        assert_eq!(written[24 + 16..], whole);

        let mut received = Received::default();
        far.receive(&mut received, Duration::ZERO).unwrap();
        let sum = crate::wire::checksum::Checksum::of(&received.bytes[34..]).complete();
        received.bytes[40..42].copy_from_slice(&sum);
        assert_eq!(received.bytes, whole);
    }
}
