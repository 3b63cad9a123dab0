//! Records the frames that pass through any link, as a classic pcap file with nanosecond times (LINKTYPE_ETHERNET).
//!
//! What the link leaves to a device is recorded as the device will make it: trains datagram by datagram, with whole
//! checksums.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Frame, Link, LinkError, Offloads, Received, Sent};
use crate::wire::checksum::Checksum;
use crate::wire::datagram::{HEADERS_LEN, segment_headers};
use crate::wire::udp::UdpChecksum;
use crate::wire::{MacAddr, Route};

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
        self.record_parts(time, [frame, &[]])
    }

    fn record_parts(&mut self, time: Duration, parts: [&[u8]; 2]) -> io::Result<()> {
        let len = u32::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "the format has 32 bits of seconds")]
        let words = [time.as_secs() as u32, time.subsec_nanos(), len, len];
        let mut header = [0; 16];
        for (bytes, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        self.out.write_all(&header)?;
        parts.iter().try_for_each(|part| self.out.write_all(part))
    }

    /// Appends a frame whose checksum is yet to be made, or each datagram of a train.
    fn record_unfinished(&mut self, time: Duration, frame: &[u8], segment: Option<u16>) -> io::Result<()> {
        let Ok((_, payload)) = Route::parse_checked(frame) else { return self.record(time, frame) };
        let (headers, rest) = frame.split_first_chunk::<HEADERS_LEN>().expect("headers were parsed");
        let mut record = |index, payload: &[u8], rest| {
            let checksum = UdpChecksum::Complete(Checksum::of(payload));
            self.record_parts(time, [&segment_headers(headers, index, payload.len(), checksum), rest])
        };
        match segment {
            Some(1..) => (0..)
                .zip(payload.chunks(segment.map_or(1, usize::from)))
                .try_for_each(|(index, datagram)| record(index, datagram, datagram)),
            _ => record(0, payload, rest),
        }
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
}

impl<L: Link, W: Write> PcapWriter<L, W> {
    /// Records into `file` what passes through `link`.
    pub fn new(link: L, file: PcapFile<W>) -> Self {
        Self { link, file: Some(file) }
    }

    /// Records a frame or train; `whole` says that its checksum needs no more work.
    fn record(&mut self, frame: &[u8], segment: Option<u16>, whole: bool) {
        let Some(file) = &mut self.file else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let recorded = match segment {
            None if whole => file.record(time, frame),
            _ => file.record_unfinished(time, frame, segment),
        };
        if let Err(error) = recorded {
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

    /// Those of the link, but that a recording has to see every byte.
    fn offloads(&self) -> Offloads {
        Offloads { gather: false, ..self.link.offloads() }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        let sent = self.link.send(frame)?;
        if sent == Sent::Yes {
            let whole = !self.link.offloads().checksum;
            self.record(frame.bytes, frame.segment, whole);
        }
        Ok(sent)
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let came = self.link.receive(received, wait)?;
        if came {
            self.record(&received.bytes, received.segment, !received.checked);
        }
        Ok(came)
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

    /// Leaves checksums and trains to the other end of a pipe.
    struct Device(pipe::Pipe);

    impl Link for Device {
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
            self.0.send(&Frame { segment: None, ..*frame })
        }
        fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
            let came = self.0.receive(received, wait)?;
            (received.segment, received.checked) = (Some(4), true);
            Ok(came)
        }
    }

    /// The frames in a recording.
    fn frames(mut recording: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        recording = &recording[24..];
        while let Some((header, rest)) = recording.split_first_chunk::<16>() {
            let len = u32::from_le_bytes(*header.last_chunk().unwrap()).try_into().unwrap();
            let (frame, next) = rest.split_at(len);
            frames.push(frame.to_vec());
            recording = next;
        }
        frames
    }

    #[test]
    fn trains_are_recorded_as_the_plain_frames_they_become() {
        let route = Route {
            source_mac: MACS[0],
            destination_mac: MACS[1],
            source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024),
            destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 20023),
        };
        let payload: Vec<u8> = (0..250).collect();
        let whole = |payload: &[u8], index: u8| {
            let mut frame = Vec::new();
            route.emit(payload, &mut frame);
            // Of a train, datagrams count up in their identification, and the header's checksum down.
            frame[19] += index;
            frame[25] -= index;
            frame
        };
        let partial =
            |payload: &[u8]| [&route.headers(payload.len(), UdpChecksum::Partial)[..], payload].concat();
        let [near, mut far] = pipe::pair(MACS, 1500, 8);
        let mut written = Vec::new();
        let mut recorded = PcapWriter::new(Device(near), PcapFile::new(&mut written).unwrap());
        assert_eq!(recorded.offloads(), Offloads { gather: false, checksum: true, segments: 44 });
        let train = partial(&payload);
        recorded.send(&Frame { segment: Some(100), ..frame(&train) }).unwrap();
        let mut padded = partial(b"");
        padded.extend_from_slice(&[0xee; 18]);
        recorded.send(&frame(&padded)).unwrap();
        recorded.send(&frame(&[6; 60])).unwrap();
        let mut received = Received::default();
        assert!(far.receive(&mut received, Duration::ZERO).unwrap());
        assert_eq!(received.bytes, train, "it goes through as it is");
        far.send(&frame(&partial(&payload[..8]))).unwrap();
        assert!(recorded.receive(&mut received, Duration::ZERO).unwrap());
        drop(recorded);

        let mut want: Vec<_> = (0..).zip(payload.chunks(100)).map(|(i, bytes)| whole(bytes, i)).collect();
        want.push([&whole(b"", 0)[..], &[0xee; 18]].concat());
        want.push(vec![6; 60]);
        want.extend([whole(&payload[..4], 0), whole(&payload[4..8], 1)]);
        assert_eq!(frames(&written), want);
    }
}
