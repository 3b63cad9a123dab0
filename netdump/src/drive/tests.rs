//! Whole dumps over links in memory.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::thread::{self, JoinHandle};
use std::time::Instant;

mod holes;
mod packed;

use super::*;
use crate::ReadError;
use crate::digest::Digest;
use crate::link::pipe::{self, Pipe};
use crate::link::{Frame, GuestPiece, LinkError, Offloads, PcapWriter, Received, Sent, pcap::PcapFile};
use crate::report::Outcome;
use crate::wire::arp::ArpPacket;
use crate::wire::{Ack, MacAddr, Message, MessageKind, Route};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// More than any client of these tests is busy with itself, also on a machine that is busy with other things.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);
const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 9])];

/// What a server has got.
#[derive(Default)]
struct Stored {
    /// Bytes of the core by offset.
    pieces: BTreeMap<u64, Vec<u8>>,
    header: Vec<u8>,
    key: Vec<u8>,
}

/// Answers ARP and acknowledges everything until FINISHED.
fn serve(link: Pipe) -> JoinHandle<Stored> {
    serve_some(link, |_| true)
}

/// The same, as if only those messages had arrived that `arrives` picks.
fn serve_some(
    mut link: Pipe,
    mut arrives: impl FnMut(&Message<'_>) -> bool + Send + 'static,
) -> JoinHandle<Stored> {
    thread::spawn(move || {
        let mut stored = Stored::default();
        let (mut frame, mut answer) = (Received::default(), Vec::new());
        while link.receive(&mut frame, SERVER_PATIENCE).unwrap() {
            let frame = &frame.bytes;
            answer.clear();
            let mut last = false;
            if let Ok(question) = ArpPacket::parse(&frame[14..]) {
                answer.extend_from_slice(&[&MACS[0].0[..], &MACS[1].0, &[8, 6]].concat());
                question.reply_from(MACS[1]).emit(&mut answer);
            } else {
                let (route, payload) = Route::parse(frame).unwrap();
                let message = Message::parse(payload).unwrap();
                if !arrives(&message) {
                    continue;
                }
                match message.kind {
                    MessageKind::Vmcore => {
                        drop(stored.pieces.insert(message.offset, message.payload.to_vec()))
                    }
                    MessageKind::EkcdKey => stored.key.extend_from_slice(message.payload),
                    MessageKind::Kdh => stored.header = message.payload.to_vec(),
                    _ => {}
                }
                last = message.kind == MessageKind::Finished;
                route.reversed().emit(&Ack(message.sequence).to_bytes(), &mut answer);
            }
            while link.send(&Frame::plain(&answer)).unwrap() == Sent::Busy {
                thread::yield_now();
            }
            if last {
                break;
            }
        }
        stored
    })
}

/// A core with untouched zeros, of which the rest lies in guest memory 1 MiB higher (when it does not cross 64 KiB).
struct Core {
    bytes: Vec<u8>,
    hole: Range<u64>,
}

/// Of the hole.
const WHOLE_PAGES: u64 = 243 * 4096;

impl Core {
    fn new() -> Self {
        let mut bytes: Vec<_> = (0..3_000_001_u32).map(|i| (i % 253).to_le_bytes()[0]).collect();
        bytes[1_000_000..2_000_000].fill(0);
        Self { bytes, hole: 1_000_000..2_000_000 }
    }

    fn holds(&self, stored: &Stored) -> bool {
        let mut file = vec![0; self.bytes.len()];
        for (offset, bytes) in &stored.pieces {
            let start = usize::try_from(*offset).unwrap();
            file[start..start + bytes.len()].copy_from_slice(bytes);
        }
        file == self.bytes
    }
}

impl ReadAt for Core {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.bytes.as_slice().read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        if offset < self.hole.start {
            Some(offset..self.hole.start)
        } else {
            Some(self.hole.end.max(offset)..self.length())
        }
    }

    fn locate(&self, offset: u64, len: usize) -> Option<u64> {
        ((offset >> 16) == ((offset + len as u64 - 1) >> 16)).then_some(offset + (1 << 20))
    }
}

/// A link that takes parts of a frame from guest memory, cuts trains and completes the checksums, as a card does.
struct Card {
    pipe: Pipe,
    memory: Vec<u8>,
    /// Most datagrams in a train.
    segments: usize,
    gathered: u64,
    /// Trains that came, and datagrams that they were cut into.
    trains: u64,
    cut: u64,
    /// What there was no room for.
    waiting: VecDeque<Vec<u8>>,
}

impl Card {
    fn new(pipe: Pipe, memory: &[u8], segments: usize) -> Self {
        let memory = memory.to_vec();
        Self { pipe, memory, segments, gathered: 0, trains: 0, cut: 0, waiting: VecDeque::new() }
    }

    /// The frame with what lies in guest memory.
    fn whole(&mut self, frame: &Frame<'_>) -> Vec<u8> {
        let (mut whole, mut taken) = (Vec::new(), 0);
        for &GuestPiece { at, address, len } in frame.guest {
            whole.extend_from_slice(&frame.bytes[taken..at]);
            taken = at;
            let start = usize::try_from(address - (1 << 20)).unwrap();
            whole.extend_from_slice(&self.memory[start..start + len]);
            self.gathered += 1;
        }
        whole.extend_from_slice(&frame.bytes[taken..]);
        whole
    }

    fn send_waiting(&mut self) -> Sent {
        while let Some(next) = self.waiting.front() {
            if self.pipe.send(&Frame::plain(next)).unwrap() == Sent::Busy {
                return Sent::Busy;
            }
            self.waiting.pop_front();
        }
        Sent::Yes
    }
}

impl Link for Card {
    fn mtu(&self) -> Result<u32, LinkError> {
        self.pipe.mtu()
    }

    fn mac(&self) -> MacAddr {
        self.pipe.mac()
    }

    fn offloads(&self) -> Offloads {
        Offloads { gather: true, checksum: true, segments: self.segments }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if self.send_waiting() == Sent::Busy {
            return Ok(Sent::Busy);
        }
        let whole = self.whole(frame);
        match Route::parse_checked(&whole) {
            Err(_) => self.waiting.push_back(whole),
            Ok((route, payload)) => {
                let segment = frame.segment.map_or(payload.len(), usize::from);
                for part in payload.chunks(segment) {
                    let mut datagram = Vec::new();
                    route.emit(part, &mut datagram);
                    self.waiting.push_back(datagram);
                }
                self.trains += u64::from(frame.segment.is_some());
                self.cut += frame.segment.map_or(0, |_| payload.len().div_ceil(segment) as u64);
            }
        }
        self.send_waiting();
        Ok(Sent::Yes)
    }

    fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        self.send_waiting();
        self.pipe.receive(frame, wait)
    }
}

fn config() -> ClientConfig {
    ClientConfig::new(SERVER, CLIENT, MACS[0], 1500)
}

/// Sends a core as it is.
fn send(
    config: ClientConfig,
    image: &(dyn ReadAt + Sync),
    link: &mut dyn Link,
    control: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
) -> DumpReport {
    let (header, packing) = (KernelDumpHeader::default(), Packing::default());
    run(config, &Dump { path: Some("vm1"), header: &header, image, packing: &packing }, link, control)
        .unwrap()
}

fn go_on(_: &Progress) -> ControlFlow<String> {
    ControlFlow::Continue(())
}

fn assert_complete(report: &DumpReport, core: &Core) {
    assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Complete, None));
    assert_eq!(report.digest, Some(Digest::of(&core.bytes)));
    assert_eq!((report.length, report.bytes_untouched, report.bytes_zero), (3_000_001, WHOLE_PAGES, 0));
    assert_eq!(report.bytes_sent, 3_000_001 - WHOLE_PAGES);
    assert!(report.missing.is_empty());
}

#[test]
fn a_core_arrives_whole_and_its_hash_is_that_of_its_bytes() {
    let core = Core::new();
    let [mut near, far] = pipe::pair(MACS, 1500, 256);
    let server = serve(far);
    let mut phases = Vec::new();
    let mut control = |progress: &Progress| {
        phases.push(progress.phase);
        assert!(progress.done <= progress.total);
        ControlFlow::Continue(())
    };
    let report = send(config(), &core, &mut near, &mut control);
    assert_complete(&report, &core);
    assert_eq!(report.packing, None);
    assert_eq!((report.path.as_deref(), report.server.as_str()), (Some("vm1"), "10.0.0.9:20023"));
    let stored = server.join().unwrap();
    assert!(core.holds(&stored));
    let header = KernelDumpHeader::parse(&stored.header).unwrap();
    assert_eq!((header.dump_length, header.dump_extent, header.block_size), (3_000_001, 3_000_001, 4096));
    phases.dedup();
    assert_eq!(
        phases,
        [Phase::Resolve, Phase::Herald, Phase::Data, Phase::Header, Phase::Finish, Phase::Closed][..5]
    );
}

#[test]
fn a_link_that_gathers_sends_from_guest_memory() {
    let core = Core::new();
    let [near, far] = pipe::pair(MACS, 9000, 256);
    let server = serve(far);
    let mut card = Card::new(near, &core.bytes, 0);
    let config = ClientConfig { mtu: 9000, ..config() };
    let report = send(config, &core, &mut card, &mut go_on);
    assert_complete(&report, &core);
    assert!(core.holds(&server.join().unwrap()));
    assert!((400..=490).contains(&card.gathered), "{} of 492 messages", card.gathered);
    assert_eq!(card.trains, 0);
}

#[test]
fn trains_carry_nearly_all_messages_to_a_link_that_cuts_them() {
    let core = Core::new();
    let [near, far] = pipe::pair(MACS, 1500, 256);
    let server = serve(far);
    let mut card = Card::new(near, &core.bytes, 44);
    let report = send(config(), &core, &mut card, &mut go_on);
    assert_complete(&report, &core);
    assert!(core.holds(&server.join().unwrap()));
    assert!(card.cut + 100 > report.messages, "{} of {} messages", card.cut, report.messages);
    assert!(card.trains * 8 < card.cut, "{} messages in {} trains", card.cut, card.trains);
}

#[test]
fn a_recorded_link_does_not_gather() {
    let core = Core::new();
    let [near, far] = pipe::pair(MACS, 1500, 256);
    let server = serve(far);
    let card = Card::new(near, &[], 44);
    let mut recorded = PcapWriter::new(card, PcapFile::new(Vec::new()).unwrap());
    let report = send(config(), &core, &mut recorded, &mut go_on);
    assert_complete(&report, &core);
    assert!(core.holds(&server.join().unwrap()));
}

#[test]
fn a_link_with_room_for_one_frame_is_enough() {
    let core = Core::new();
    let [mut near, far] = pipe::pair(MACS, 1500, 1);
    let server = serve(far);
    let report = send(config(), &core, &mut near, &mut go_on);
    assert_complete(&report, &core);
    assert!(core.holds(&server.join().unwrap()));
}

#[test]
fn the_caller_can_stop_a_dump() {
    let core = Core::new();
    let [mut near, _far] = pipe::pair(MACS, 1500, 256);
    let started = Instant::now();
    let mut control = |progress: &Progress| match progress.elapsed {
        elapsed if elapsed > Duration::from_millis(150) => ControlFlow::Break("interrupted".to_owned()),
        _ => ControlFlow::Continue(()),
    };
    let report = send(config(), &core, &mut near, &mut control);
    assert!(started.elapsed() < Duration::from_millis(800));
    assert_eq!(report.outcome, Outcome::Failed);
    assert_eq!(report.reason.as_deref(), Some("stopped while looking for the server: interrupted"));
    assert_eq!((report.digest, report.missing), (None, vec![(0, 3_000_001)]));
    assert_eq!(report.server, "10.0.0.9:0");
}

#[test]
fn a_failing_link_ends_the_dump_with_its_reason() {
    struct Unplugged;
    impl Link for Unplugged {
        fn mtu(&self) -> Result<u32, LinkError> {
            Ok(1500)
        }
        fn mac(&self) -> MacAddr {
            MACS[0]
        }
        fn send(&mut self, _frame: &Frame<'_>) -> Result<Sent, LinkError> {
            Ok(Sent::Yes)
        }
        fn receive(&mut self, _frame: &mut Received, _wait: Duration) -> Result<bool, LinkError> {
            let source = std::io::ErrorKind::BrokenPipe.into();
            Err(LinkError::Io { doing: "reading tap0".into(), source })
        }
    }
    let core = Core::new();
    let report = send(config(), &core, &mut Unplugged, &mut go_on);
    let want = "the link failed while looking for the server: reading tap0: broken pipe";
    assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Failed, Some(want)));
}

#[test]
fn an_unreadable_core_ends_the_dump_with_its_reason() {
    let [mut near, far] = pipe::pair(MACS, 1500, 256);
    serve(far);
    /// 5000 bytes of which the last 3000 cannot be read.
    struct Short;
    impl ReadAt for Short {
        fn length(&self) -> u64 {
            5000
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            [1; 2000].as_slice().read_at(offset, buf)
        }
    }
    let report = send(config(), &Short, &mut near, &mut go_on);
    let want = "the core cannot be read: reading 1448 bytes at offset 0x5a8 of a core of 2000 bytes";
    assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Failed, Some(want)));
    assert_eq!(report.missing, [(0, 5000)]);
}

#[test]
fn bad_input_is_refused_before_the_first_frame() {
    let [mut near, mut far] = pipe::pair(MACS, 1500, 256);
    let (header, core) = (KernelDumpHeader::default(), Core::new());
    let dump = Dump { path: Some("../x"), header: &header, image: &core, packing: &Packing::default() };
    assert!(run(config(), &dump, &mut near, &mut go_on).is_err());
    assert!(!far.receive(&mut Received::default(), Duration::ZERO).unwrap());
}
