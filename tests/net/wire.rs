//! What is on the wire: read by an independent decoder and by the harness's own reader.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::path::Path;

use harness::guests::Bench;
use harness::needs::Need;
use harness::pcap::{self, Datagram, Message, ack, arp, datagram, datagrams, kind, message};
use harness::programs::arg;

use crate::lab::{CLIENT, Dump, GUEST_MAC, Lab, SERVER, SMALL, TO_COLLECTOR};
use crate::needs_network;

fn client() -> SocketAddrV4 {
    SocketAddrV4::new(CLIENT.parse().unwrap(), 20024)
}

/// The client's messages and the server's acks in the order of the wire.
#[derive(Default)]
struct Talk<'a> {
    messages: Vec<(Message<'a>, Datagram<'a>)>,
    acks: Vec<(u32, Datagram<'a>)>,
}

impl<'a> Talk<'a> {
    /// Everything between client and server. What the client sends otherwise fails the test.
    fn of(frames: &'a [Vec<u8>]) -> Self {
        let mut talk = Self::default();
        for datagram in frames.iter().filter_map(|frame| datagram(frame)) {
            if datagram.from.ip() == client().ip() {
                for payload in datagrams(datagram.payload) {
                    let message = message(payload).expect("the client sends messages only");
                    talk.messages.push((message, Datagram { payload, ..datagram }));
                }
            } else if datagram.to == client() {
                for payload in datagram.payload.chunks(4) {
                    let number = ack(payload).expect("the server sends acks only");
                    talk.acks.push((number, Datagram { payload, ..datagram }));
                }
            }
        }
        talk
    }

    /// Every message once, by its number; a resend must be the same message.
    fn distinct(&self) -> BTreeMap<u32, Message<'a>> {
        let mut distinct = BTreeMap::new();
        for (message, _) in &self.messages {
            let first = distinct.entry(message.sequence).or_insert(*message);
            assert_eq!(first, message, "a resend keeps its content");
        }
        distinct
    }

    /// The rules of the protocol, whatever the core. `path` is what the HERALD asks for, `room` the longest payload.
    fn check(&self, path: &[u8], room: usize) {
        let (herald, first) = self.messages[0];
        assert_eq!((herald.kind, herald.sequence, herald.offset), (kind::HERALD, 1, 0));
        assert_eq!((herald.payload, first.to.port()), (path, 20023));
        let (_, accepted) =
            self.acks.iter().find(|(sequence, _)| *sequence == 1).expect("it is acknowledged");
        for (message, datagram) in &self.messages {
            let port = if message.kind == kind::HERALD { 20023 } else { accepted.from.port() };
            assert_eq!((datagram.from, datagram.to.port()), (client(), port), "{message:?}");
            assert_eq!(datagram.to.ip().to_string(), SERVER);
            // The kernel numbers the datagrams of a train.
            assert_eq!((datagram.flags, datagram.ttl), (0x4000, 255));
            assert_eq!(datagram.from_mac, GUEST_MAC);
            assert!(datagram.ip_sum && message.payload.len() <= room);
        }

        let distinct = self.distinct();
        assert!(
            distinct.keys().copied().eq(1..=u32::try_from(distinct.len()).unwrap()),
            "no number is left out"
        );
        let acked: BTreeSet<u32> = self.acks.iter().map(|(sequence, _)| *sequence).collect();
        assert!(distinct.keys().all(|sequence| acked.contains(sequence)), "every message is acknowledged");
        let kinds: Vec<u32> = distinct.values().map(|message| message.kind).collect();
        let data = kinds.len() - 3;
        assert_eq!(kinds[1..=data], vec![kind::VMCORE; data]);
        assert_eq!(kinds[data + 1..], [kind::KDH, kind::FINISHED], "the header is last, and once");
        let last = |wanted: u32| self.messages.iter().rposition(|(message, _)| message.kind == wanted);
        let first = |wanted: u32| self.messages.iter().position(|(message, _)| message.kind == wanted);
        assert!(last(kind::VMCORE) < first(kind::KDH) && last(kind::KDH) < first(kind::FINISHED));
        let finished = distinct.last_key_value().unwrap().1;
        assert_eq!((finished.payload.len(), finished.offset), (0, 0));
    }

    /// The core that the messages make, zeros where none was sent.
    fn core(&self, length: usize) -> Vec<u8> {
        let mut core = vec![0; length];
        let mut end = 0;
        for message in self.distinct().values().filter(|message| message.kind == kind::VMCORE) {
            let start = usize::try_from(message.offset).unwrap();
            assert!(start >= end && !message.payload.is_empty(), "in order, and nothing twice");
            end = start + message.payload.len();
            core[start..end].copy_from_slice(message.payload);
        }
        core
    }

    /// The KDH by its literal offsets: `struct kerneldumpheader`, version 4.
    fn check_header(&self, length: u64, panic: &[u8]) {
        let distinct = self.distinct();
        let header = distinct.values().find(|message| message.kind == kind::KDH).unwrap();
        let bytes = header.payload;
        assert_eq!((bytes.len(), header.offset), (512, 0));
        assert_eq!(&bytes[..20], b"FreeBSD Kernel Dump\0");
        assert_eq!(&bytes[20..26], b"amd64\0");
        assert_eq!(bytes[32..40], [0, 0, 0, 4, 0, 0, 0, 2]);
        assert_eq!(bytes[40..48], length.to_be_bytes());
        assert!(bytes.windows(panic.len()).any(|window| window == panic));
        let parity =
            bytes.chunks(4).fold([0; 4], |sum: [u8; 4], word| [0, 1, 2, 3].map(|i| sum[i] ^ word[i]));
        assert_eq!(parity, [0; 4]);
    }
}

/// Everything that the messages of a dump must be, against its report and the stored core.
fn check_talk(frames: &[Vec<u8>], dump: &Dump, path: &[u8], mtu: usize) {
    let talk = Talk::of(frames);
    talk.check(path, mtu - 52);
    let number = |name: &str| dump.report["dump"][name].as_u64().unwrap();
    let length = number("length");
    let core = talk.core(usize::try_from(length).unwrap());
    assert!(core == std::fs::read(&dump.core).unwrap(), "what was sent is what was stored");
    let digest = serde_json::to_value(netdump::digest::Digest::of(&core)).unwrap();
    assert_eq!(dump.report["dump"]["digest"], digest);
    assert_eq!(u64::try_from(talk.distinct().len()).unwrap(), number("messages"));
    assert_eq!(u64::try_from(talk.messages.len()).unwrap(), number("messages") + number("resends"));
    talk.check_header(length, b"the guest was told to panic\0");
}

/// Lets tshark judge a recording: what is in its frames, and whether their checksums are right.
fn check_with_tshark(recording: &Path, frames: usize) {
    let fields = ["frame.protocols", "ip.checksum.status", "udp.checksum.status", "_ws.malformed"];
    let mut arguments = vec!["-n", "-r", arg(recording), "-T", "fields", "-E", "separator=;"];
    arguments.extend(["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]);
    // The ports are nobody else's here, whatever tshark takes them for.
    arguments.extend(["-d", "udp.port==20023,data", "-d", "udp.port==20024,data"]);
    fields.iter().for_each(|field| arguments.extend(["-e", field]));
    let ended = harness::programs::run("tshark", &arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut judged = 0;
    for line in ended.stdout.lines() {
        judged += 1;
        // 1 is "good". IGMP is the hosts' own, to everybody.
        let dump = ["eth:ethertype:arp;;;", "eth:ethertype:ip:udp:data;1;1;", "eth:ethertype:ip:udp;1;1;"];
        let good = dump.contains(&line) || line.starts_with("eth:ethertype:ip:igmp");
        assert!(good, "frame {judged}: {line}");
    }
    assert_eq!(judged, frames);
}

#[test]
fn a_recording_holds_the_whole_dump_and_nothing_wrong() {
    needs_network!();
    for link in ["tap", "virtio"] {
        let lab = Lab::bridged();
        let receiver = lab.serve();
        std::fs::create_dir_all(receiver.folder.path().join("lab/one")).unwrap();
        let bench = Bench::new("panic");
        let recording = bench.folder().join("dump.pcap");
        let more = ["--netdump-link", link, "--netdump-path", "lab/one", "--pcap", arg(&recording)];
        let dump = lab.dump(&receiver, &bench, &[&SMALL[..], &TO_COLLECTOR, &more].concat());
        assert!(dump.core.starts_with(receiver.folder.path().join("lab/one")));

        let frames = pcap::read(&recording).unwrap();
        check_talk(&frames, &dump, b"lab/one\0", 1500);
        let sums_are_right = |frame: &Vec<u8>| datagram(frame).is_none_or(|datagram| datagram.udp_sum);
        assert!(frames.iter().all(sums_are_right), "{link}: a UDP checksum is wrong or missing");
        // Before anything else the client asked for the server and was answered.
        let arps: Vec<_> = frames.iter().map_while(|frame| arp(frame)).collect();
        assert!(arps.iter().any(|arp| arp.operation == 1 && arp.sender_mac == GUEST_MAC));
        assert!(arps.iter().any(|arp| arp.operation == 2 && arp.sender.to_string() == SERVER));
        if Need::Tshark.or_skip() {
            check_with_tshark(&recording, frames.len());
        }
    }
}

/// The messages of a dump over a link as the collector sees them, and where memory begins in the core.
fn at_the_collector(link: &str) -> (Vec<Vec<u8>>, u64) {
    let lab = Lab::bridged();
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let capture = lab.collector.capture();
    let dump = lab.dump(&receiver, &bench, &[&SMALL[..], &TO_COLLECTOR, &["--netdump-link", link]].concat());
    let frames = capture.finish();
    check_talk(&frames, &dump, b"", 1500);
    let core = harness::readers::elf::ElfCore::open(&dump.core).unwrap();
    let memory = core.loads.iter().map(|load| load.offset).min().unwrap();
    (frames, memory)
}

#[test]
fn tap_and_card_put_the_same_messages_on_the_wire() {
    needs_network!();
    let ((tap, memory), (card, memory_too)) = (at_the_collector("tap"), at_the_collector("virtio"));
    assert_eq!(memory, memory_too);
    let (tap, card) = (Talk::of(&tap).distinct(), Talk::of(&card).distinct());
    assert_eq!(tap.len(), card.len());
    for (a, b) in tap.values().zip(card.values()) {
        let outline = |message: &Message<'_>| (message.kind, message.offset, message.payload.len());
        assert_eq!(outline(a), outline(b));
        // Headers and notes tell the time of the panic, which differs.
        if a.kind == kind::VMCORE && a.offset >= memory {
            assert_eq!(a.payload, b.payload, "at {:#x}", a.offset);
        }
    }
}
