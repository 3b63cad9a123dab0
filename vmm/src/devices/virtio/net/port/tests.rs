use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_net::VIRTIO_NET_F_CSUM;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::super::header::{needs_checksum, segmented};
use super::*;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::driver::{Buffer, DriverRing};
use crate::sys::tap::fake;

const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;
const DATA: u64 = 0x4000;
const RAM: usize = 0x40000;
const SIZE: u16 = 16;
/// What a driver agrees on that sends and receives trains: CSUM, GUEST_CSUM, GUEST_USO4 and 6, HOST_USO.
const TRAINS: u64 = 1 | 1 << 1 | 1 << 54 | 1 << 55 | 1 << 56;

/// Counts interrupts by queue.
#[derive(Debug, Default)]
struct Bells([AtomicU64; 2]);

impl Interrupt for Bells {
    fn used(&self, queue: u16) {
        self.0[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {}
}

struct Bench {
    memory: GuestMemory,
    rx: DriverRing,
    tx: DriverRing,
    port: Port,
    host: UnixDatagram,
    seen: Arc<Seen>,
    bells: Arc<Bells>,
}

impl Bench {
    fn new() -> Self {
        Self::with(1 << VIRTIO_NET_F_CSUM)
    }

    /// A device whose driver has agreed on `features`.
    fn with(features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let rx = DriverRing::new(memory.clone(), GuestAddress(RX_RING), SIZE);
        let tx = DriverRing::new(memory.clone(), GuestAddress(TX_RING), SIZE);
        let (tap, host) = fake::tap();
        let (seen, bells) = (Arc::<Seen>::default(), Arc::<Bells>::default());
        let notifier = Arc::new(Notifier::new(bells.clone()));
        let port = Port::new(
            memory.clone(),
            rx.queue(),
            tx.queue(),
            Arc::new(tap),
            features,
            seen.clone(),
            notifier,
        );
        Self { memory, rx, tx, port, host, seen, bells }
    }

    /// Writes descriptor `index` of the ring at `ring` as a driver should not.
    fn descriptor(&self, ring: u64, index: u64, address: u64, len: u32, flags: u32, next: u16) {
        let descriptor = Descriptor::new(address, len, flags.try_into().unwrap(), next);
        self.memory.write_obj(descriptor, GuestAddress(ring + 16 * index)).unwrap();
    }

    fn publish_tx(&mut self, head: u16, header: NetHeader, frame: &[u8]) {
        self.memory.write_slice(&[&header[..], frame].concat(), GuestAddress(DATA)).unwrap();
        let len = u32::try_from(VNET_HEADER_LEN + frame.len()).unwrap();
        self.tx.describe(head, &[Buffer::Read(DATA, len)]);
        self.tx.publish(head);
    }

    /// What the host has got, header included.
    fn out(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 0x20000];
        let len = self.host.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn arrive(&self, frame: &[u8]) {
        // The checksum is good, says the host, and other things that mean nothing then.
        let header = [2, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2];
        self.host.send(&[&header[..], frame].concat()).unwrap();
    }

    /// The TX chain that starts at descriptor 0 is refused, and given back.
    fn assert_malformed(&mut self, what: &str) {
        self.tx.publish(0);
        assert_eq!(self.port.transmit(), Ok(Pause::NoBuffers), "{what}");
        assert_eq!(self.tx.reclaim(), Some((0, 0)), "{what}");
        assert_eq!(self.out(), None, "{what}");
        assert_eq!(self.seen.counts(), Counts { malformed: 1, ..Counts::default() }, "{what}");
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn a_frame_goes_out_behind_a_header_of_ours() {
    let mut bench = Bench::new();
    let noisy = [0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    bench.publish_tx(3, noisy, &frame(60));
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!(bench.out().unwrap(), [&header::PLAIN[..], &frame(60)].concat());
    assert_eq!(bench.tx.reclaim(), Some((3, 0)));
    assert_eq!(bench.bells.0[1].load(Ordering::Relaxed), 1);
    assert_eq!(bench.seen.counts().sent, 1);
}

#[test]
fn a_frame_in_many_pieces_goes_out_whole() {
    let mut bench = Bench::new();
    let all = [&needs_checksum(34, 6)[..], &frame(100)].concat();
    bench.memory.write_slice(&all, GuestAddress(DATA)).unwrap();
    let pieces = [(0, 5), (5, 0), (5, 8), (13, 40), (53, 59)];
    let chain = pieces.map(|(at, len)| Buffer::Read(DATA + at, len));
    bench.tx.describe(2, &chain);
    bench.tx.publish(2);
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!(bench.out().unwrap(), all);
}

#[test]
fn frames_through_an_indirect_table_go_out() {
    let mut bench = Bench::new();
    bench.memory.write_slice(&[&header::PLAIN[..], &frame(60)].concat(), GuestAddress(DATA)).unwrap();
    let table = 0x3000;
    bench.descriptor(table, 0, DATA, 12, VRING_DESC_F_NEXT, 1);
    bench.descriptor(table, 1, DATA + 12, 60, 0, 0);
    bench.descriptor(TX_RING, 0, table, 32, VRING_DESC_F_INDIRECT, 0);
    bench.tx.publish(0);
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!(bench.out().unwrap()[12..], frame(60));
}

#[test]
fn frames_and_headers_that_make_no_sense_are_dropped() {
    let mut gso = header::PLAIN;
    gso[1] = 1;
    let long = frame(MAX_FRAME + 1);
    for (header, frame) in [
        (header::PLAIN, &frame(13)[..]),
        (header::PLAIN, &[]),
        (needs_checksum(34, 6), &frame(41)),
        (gso, &frame(60)),
        (header::PLAIN, &long),
    ] {
        let mut bench = Bench::new();
        bench.publish_tx(0, header, frame);
        assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
        assert_eq!(bench.out(), None);
        assert_eq!(bench.tx.reclaim(), Some((0, 0)));
        assert_eq!(bench.seen.counts(), Counts { malformed: 1, ..Counts::default() });
    }
}

#[test]
fn trains_go_out_behind_a_header_of_ours_if_the_driver_agreed_on_them() {
    let mut noisy = segmented(34, 6, 20);
    noisy[0] |= 0xfe;
    noisy[2..4].fill(0xee);
    noisy[10..].fill(0xee);
    let mut bench = Bench::with(TRAINS);
    bench.publish_tx(0, noisy, &frame(1000));
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!(bench.out().unwrap(), [&segmented(34, 6, 20)[..], &frame(1000)].concat());

    let mut bench = Bench::new();
    bench.publish_tx(0, noisy, &frame(1000));
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!((bench.out(), bench.seen.counts().malformed), (None, 1));
}

#[test]
fn hostile_trains_are_dropped() {
    let with = |change: fn(&mut NetHeader)| {
        let mut header = segmented(34, 6, 20);
        change(&mut header);
        header
    };
    for (what, header, len) in [
        ("no datagram", segmented(34, 6, 20), 42),
        ("datagrams of nothing", segmented(34, 6, 0), 1000),
        ("a checksum behind the end", segmented(34, 2000, 20), 1000),
        ("headers behind the end", segmented(2000, 6, 20), 1000),
        ("numbers that overflow", segmented(u16::MAX, u16::MAX, u16::MAX), 1000),
        ("no checksum left", with(|header| header[0] = 0), 1000),
        ("TCP", with(|header| header[1] = 1), 1000),
        ("fragments", with(|header| header[1] = 3), 1000),
        ("congestion marks", with(|header| header[1] = 0x85), 1000),
    ] {
        let mut bench = Bench::with(TRAINS);
        bench.publish_tx(0, header, &frame(len));
        assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers), "{what}");
        assert_eq!(bench.out(), None, "{what}");
        assert_eq!(bench.tx.reclaim(), Some((0, 0)), "{what}");
        assert_eq!(bench.seen.counts(), Counts { malformed: 1, ..Counts::default() }, "{what}");
    }
}

#[test]
fn trains_arrive_only_at_drivers_that_agreed_on_them() {
    for (features, arrives) in [(TRAINS, true), (1 << VIRTIO_NET_F_CSUM, false)] {
        let mut bench = Bench::with(features);
        bench.rx.describe(0, &[Buffer::Write(DATA, 2000)]);
        bench.rx.publish(0);
        bench.host.send(&[&segmented(34, 6, 20)[..], &frame(1000)].concat()).unwrap();
        let got = bench.port.receive();
        if arrives {
            assert_eq!((got, bench.rx.reclaim()), (Ok(Pause::NoBuffers), Some((0, 1012))));
            let mut header = segmented(34, 6, 20);
            header[10] = 1;
            assert_eq!(bench.memory.read_obj::<NetHeader>(GuestAddress(DATA)).unwrap(), header);
        } else {
            assert_eq!((got, bench.rx.reclaim()), (Ok(Pause::NoFrames), None));
            assert_eq!(bench.seen.counts(), Counts { dropped: 1, ..Counts::default() });
        }
    }
}

#[test]
fn hostile_chains_are_dropped() {
    const NEXT: u32 = VRING_DESC_F_NEXT;
    const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
    let table = 0x3000;
    type Write = (u64, u64, u64, u32, u32, u16);
    let cases: [(&str, &[Write]); 14] = [
        ("loops to itself", &[(TX_RING, 0, DATA, 100, NEXT, 0)]),
        ("loops in a circle", &[(TX_RING, 0, DATA, 9, NEXT, 1), (TX_RING, 1, DATA, 9, NEXT, 0)]),
        ("leads out of the table", &[(TX_RING, 0, DATA, 100, NEXT, SIZE)]),
        ("lies behind memory", &[(TX_RING, 0, RAM as u64, 100, 0, 0)]),
        ("reaches behind memory", &[(TX_RING, 0, RAM as u64 - 50, 100, 0, 0)]),
        ("wraps around", &[(TX_RING, 0, u64::MAX - 10, 100, 0, 0)]),
        ("is far too long", &[(TX_RING, 0, 0, u32::MAX, 0, 0)]),
        ("overflows", &[(TX_RING, 0, 0, u32::MAX, NEXT, 1), (TX_RING, 1, 0, u32::MAX, 0, 0)]),
        ("is empty", &[(TX_RING, 0, DATA, 0, 0, 0)]),
        ("is for writing", &[(TX_RING, 0, DATA, 100, VRING_DESC_F_WRITE, 0)]),
        ("has a table of odd length", &[(TX_RING, 0, table, 17, INDIRECT, 0)]),
        ("has a table outside memory", &[(TX_RING, 0, RAM as u64, 32, INDIRECT, 0)]),
        ("nests tables", &[(TX_RING, 0, table, 32, INDIRECT, 0), (table, 0, table, 32, INDIRECT, 0)]),
        ("has an endless table", &[(TX_RING, 0, table, 16, INDIRECT, 0), (table, 0, DATA, 9, NEXT, 0)]),
    ];
    for (what, writes) in cases {
        let mut bench = Bench::new();
        for &(ring, index, address, len, flags, next) in writes {
            bench.descriptor(ring, index, address, len, flags, next);
        }
        bench.assert_malformed(what);
    }
}

#[test]
fn a_table_of_too_many_buffers_is_dropped() {
    let mut bench = Bench::new();
    let entries = u16::try_from(RAM / 2 / 16).unwrap();
    for index in 0..entries {
        bench.descriptor(RAM as u64 / 2, index.into(), DATA, 1, VRING_DESC_F_NEXT, index + 1);
    }
    bench.descriptor(TX_RING, 0, RAM as u64 / 2, u32::from(entries) * 16, VRING_DESC_F_INDIRECT, 0);
    bench.assert_malformed("too many buffers");
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_ring() {
    for ahead in [SIZE + 1, 0x8000, u16::MAX] {
        let mut bench = Bench::new();
        for ring in [TX_RING, RX_RING] {
            let index = ring + 16 * u64::from(SIZE) + 2;
            bench.memory.write_obj(ahead.to_le(), GuestAddress(index)).unwrap();
        }
        assert_eq!(bench.port.transmit(), Err(RingError::Available));
        bench.arrive(&frame(60));
        assert_eq!(bench.port.receive(), Err(RingError::Available));
    }
}

#[test]
fn a_chain_that_starts_outside_the_table_breaks_the_ring() {
    let mut bench = Bench::new();
    bench.tx.publish(SIZE);
    assert_eq!(bench.port.transmit(), Err(RingError::Head { head: SIZE, size: SIZE }));
    bench.rx.publish(u16::MAX);
    assert_eq!(bench.port.receive(), Err(RingError::Head { head: u16::MAX, size: SIZE }));
}

#[test]
fn a_driver_that_publishes_for_ever_gets_its_turn_and_no_more() {
    let mut bench = Bench::new();
    // The rings are one, and the used index is one ahead: each chain used makes another one available.
    let rings = bench.tx.queue().state();
    bench.port.tx.try_set_avail_ring_address(GuestAddress(rings.used_ring)).unwrap();
    bench.port.tx.set_next_used(1);
    bench.memory.write_obj(1u16.to_le(), GuestAddress(rings.used_ring + 2)).unwrap();
    assert_eq!(bench.port.transmit(), Ok(Pause::Turn));
}

#[test]
fn frames_arrive_in_the_drivers_buffers_behind_a_clean_header() {
    let mut bench = Bench::new();
    bench
        .rx
        .describe(4, &[Buffer::Write(DATA, 7), Buffer::Write(DATA + 7, 0), Buffer::Write(DATA + 7, 2000)]);
    bench.rx.publish(4);
    bench.arrive(&frame(1514));
    bench.arrive(&frame(60));
    assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers));
    assert_eq!(bench.rx.reclaim(), Some((4, 1526)));
    let mut got = vec![0; 1526];
    bench.memory.read_slice(&mut got, GuestAddress(DATA)).unwrap();
    assert_eq!(got, [&header::RECEIVED[..], &frame(1514)].concat());
    assert_eq!(bench.bells.0[0].load(Ordering::Relaxed), 1);

    bench.rx.describe(4, &[Buffer::Write(DATA, 2000)]);
    bench.rx.publish(4);
    bench.rx.describe(8, &[Buffer::Write(DATA + 2000, 2000)]);
    bench.rx.publish(8);
    assert_eq!(bench.port.receive(), Ok(Pause::NoFrames));
    assert_eq!(bench.rx.reclaim(), Some((4, 72)));
    bench.arrive(&frame(61));
    assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers));
    assert_eq!(bench.rx.reclaim(), Some((8, 73)), "an unused buffer stays the next one");
    assert_eq!(bench.seen.counts(), Counts { received: 3, ..Counts::default() });
}

#[test]
fn a_frame_longer_than_the_buffer_is_dropped_and_writes_no_byte_behind_it() {
    let mut bench = Bench::new();
    bench.rx.describe(0, &[Buffer::Write(DATA, 12 + 60)]);
    bench.rx.publish(0);
    bench.arrive(&frame(61));
    assert_eq!(bench.port.receive(), Ok(Pause::NoFrames));
    assert_eq!(bench.rx.reclaim(), None);
    assert_eq!(bench.memory.read_obj::<u64>(GuestAddress(DATA + 72)).unwrap(), 0);
    bench.arrive(&frame(60));
    assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers));
    assert_eq!(bench.rx.reclaim(), Some((0, 72)));
    assert_eq!(bench.seen.counts(), Counts { received: 1, dropped: 1, ..Counts::default() });
}

#[test]
fn buffers_that_cannot_take_a_frame_are_given_back() {
    let mut bench = Bench::new();
    let bad = [
        vec![Buffer::Read(DATA, 2000)],
        vec![Buffer::Write(DATA, 25)],
        vec![Buffer::Write(RAM as u64 - 10, 2000)],
        vec![Buffer::Write(DATA, 2000), Buffer::Read(DATA, 1)],
    ];
    for (head, chain) in (0..).step_by(2).zip(&bad) {
        bench.rx.describe(head, chain);
        bench.rx.publish(head);
    }
    bench.rx.describe(8, &[Buffer::Write(DATA, 2000)]);
    bench.rx.publish(8);
    bench.arrive(&frame(60));
    assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers));
    let used: Vec<_> = std::iter::from_fn(|| bench.rx.reclaim()).collect();
    assert_eq!(used, [(0, 0), (2, 0), (4, 0), (6, 0), (8, 72)]);
    assert_eq!(bench.seen.counts(), Counts { received: 1, malformed: 4, ..Counts::default() });
}

#[test]
fn the_guests_address_is_remembered() {
    let mut bench = Bench::new();
    let mut packet = frame(60);
    packet[12..15].copy_from_slice(&[8, 0, 0x45]);
    packet[26..30].copy_from_slice(&[10, 1, 2, 3]);
    bench.publish_tx(0, header::PLAIN, &packet);
    bench.publish_tx(1, header::PLAIN, &frame(60));
    assert_eq!(bench.seen.ipv4(), None);
    bench.port.transmit().unwrap();
    assert_eq!(bench.seen.ipv4(), None, "the second frame lies where the first was");
    bench.publish_tx(2, header::PLAIN, &packet);
    bench.port.transmit().unwrap();
    assert_eq!(bench.seen.ipv4(), Some(Ipv4Addr::new(10, 1, 2, 3)));
    bench.publish_tx(3, header::PLAIN, &frame(60));
    bench.port.transmit().unwrap();
    assert_eq!(bench.seen.ipv4(), Some(Ipv4Addr::new(10, 1, 2, 3)));
}

#[test]
fn a_driver_that_names_its_event_is_interrupted_there_and_asked_to_notify_when_empty() {
    let mut bench = Bench::new();
    bench.port.tx.set_event_idx(true);
    let used_event = TX_RING + 16 * u64::from(SIZE) + 4 + 2 * u64::from(SIZE);
    bench.memory.write_obj(2u16.to_le(), GuestAddress(used_event)).unwrap();
    let avail_event = bench.tx.queue().used_ring() + 4 + 8 * u64::from(SIZE);
    for sent in 1..=4u16 {
        bench.publish_tx(sent, header::PLAIN, &frame(60));
        assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
        assert_eq!(bench.bells.0[1].load(Ordering::Relaxed), u64::from(sent >= 3), "after {sent}");
        let asked: u16 = bench.memory.read_obj(GuestAddress(avail_event)).unwrap();
        assert_eq!(u16::from_le(asked), sent);
    }
}

#[test]
fn queues_that_the_driver_did_not_set_up_are_left_alone() {
    let mut bench = Bench::new();
    bench.port.rx = Queue::default();
    bench.port.tx = Queue::default();
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!(bench.port.receive(), Ok(Pause::NoBuffers));
}

#[test]
fn a_tap_that_is_gone_ends_receiving_only() {
    let mut bench = Bench::new();
    bench.port.wire.tap = Arc::new(fake::gone());
    bench.rx.describe(0, &[Buffer::Write(DATA, 2000)]);
    bench.rx.publish(0);
    bench.publish_tx(0, header::PLAIN, &frame(60));
    assert_eq!(bench.port.receive(), Ok(Pause::TapGone));
    assert_eq!(bench.port.transmit(), Ok(Pause::NoBuffers));
    assert_eq!(bench.seen.counts(), Counts { dropped: 1, ..Counts::default() });
}
