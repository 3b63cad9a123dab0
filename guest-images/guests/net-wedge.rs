//! Uses its virtio-net device, leaves the queues in a state that no driver would, and panics by pvpanic.
//!
//! Environment, besides what every guest takes:
//! - `virtio_mmio.device=SIZE@BASE:IRQ`: where the device is (default base 0xd0000000).
//! - `ip` (default 10.0.0.2), `peer` (default 10.0.0.9): the guest announces `ip` by ARP and asks for `peer`.
//! - `frames` (default 1): UDP datagrams to 255.255.255.255 port 9 that it sends then, from `ip` and port 9, each with
//!   the payload `net-wedge` and its number in decimal.
//! - `wait_rx`: with `1` it waits for a frame, at most `patience` (default 5000) milliseconds, and prints who sent it.
//! - `wedge`: the state it leaves, see [`Wedge`] (default `none`: queues in good order).
//! - `settle` (default 20): milliseconds between the last notification and the panic.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up, which no descriptor points at, but for the last 64
//! bytes of RAM with `wedge=wild`; `panicstr` points at the text. Without a device where it should be the guest panics
//! all the same, and the text says so.
#![no_std]
#![no_main]

use rt::virtio_net::{
    BUFFER_SIZE, Descriptor, INDIRECT, NEXT, QUEUE_SIZE, RECEIVE, Rings, TRANSMIT, VirtioNet, WRITE, buffer,
};
use rt::{kenv, memory, println, pvpanic, time};

rt::guest!("net-wedge", run);

/// What is wrong with the queues, receive and transmit alike, when the guest panics.
#[derive(Clone, Copy)]
enum Wedge {
    /// `none`: nothing.
    None,
    /// `loop`: chains whose descriptors point at each other in a circle, and at themselves.
    Loop,
    /// `wild`: buffers where there is no RAM, partly or at all, and whose end wraps.
    Wild,
    /// `ahead`: indices half their range ahead of what was ever offered.
    Ahead,
    /// `indirect`: indirect tables, though not negotiated: one that holds itself, one of odd size, one without RAM.
    Indirect,
    /// `length`: buffers of 4 GiB, of no bytes, and too small for the header.
    Length,
    /// `index`: heads and next fields that are no descriptor of the queue.
    Index,
    /// `direction`: buffers to write where the device must read, and the other way round.
    Direction,
    /// `overlap`: buffers that are the rings themselves.
    Overlap,
    /// `rings`: the rings themselves are where there is no RAM.
    Rings,
    /// `reset`: the device is reset in the middle of traffic, and notified after that.
    Reset,
}

const WEDGES: [(&str, Wedge); 11] = [
    ("none", Wedge::None),
    ("loop", Wedge::Loop),
    ("wild", Wedge::Wild),
    ("ahead", Wedge::Ahead),
    ("indirect", Wedge::Indirect),
    ("length", Wedge::Length),
    ("index", Wedge::Index),
    ("direction", Wedge::Direction),
    ("overlap", Wedge::Overlap),
    ("rings", Wedge::Rings),
    ("reset", Wedge::Reset),
];

/// No RAM is here whatever the size of the machine: the hole below 4 GiB, and the end of the address space.
const HOLE: u64 = 0xcff0_0000;
const TOP: u64 = u64::MAX - 0xfff;

type Mac = [u8; 6];
type Ip = [u8; 4];

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    let place = VirtioNet::place();
    let Some(mut device) = VirtioNet::start(place) else {
        pvpanic::signal(format_args!("no virtio-net device at {place:#x}"));
    };
    println!("virtio-net at {place:#x}, address {}", Colons(device.mac()));
    let (ip, peer) = (address("ip", [10, 0, 0, 2]), address("peer", [10, 0, 0, 9]));
    talk(&mut device, ip, peer);
    if kenv::number("wait_rx", 0) != 0 {
        listen(&mut device);
    }
    let wedge = kenv::choice("wedge", &WEDGES);
    leave(&device, wedge);
    time::wait(kenv::number("settle", 20));
    pvpanic::signal_from_kenv("the network queues are left as they are")
}

/// Announces the guest's address, asks for the peer's, and sends datagrams.
fn talk(device: &mut VirtioNet, ip: Ip, peer: Ip) {
    let mac = device.mac();
    let mut taken = device.send(&arp_request(mac, ip, ip)) && device.send(&arp_request(mac, ip, peer));
    for number in 0..kenv::number("frames", 1) {
        taken &= device.send(&datagram(mac, ip, number));
    }
    println!("the device {} the frames", if taken { "took" } else { "did not take all of" });
}

/// Waits for a frame.
fn listen(device: &mut VirtioNet) {
    let patience = kenv::number("patience", 5000);
    let heard = device.receive(patience, |frame| {
        let sender = frame.get(6..12).and_then(|mac| Mac::try_from(mac).ok()).unwrap_or_default();
        (frame.len(), sender)
    });
    match heard {
        Some((length, sender)) => println!("received {length} bytes from {}", Colons(sender)),
        None => println!("received nothing in {patience} ms"),
    }
}

/// Brings the queues into the state, and tells the device to look.
fn leave(device: &VirtioNet, wedge: Wedge) {
    for queue in [RECEIVE, TRANSMIT] {
        let rings = device.rings(queue);
        match wedge {
            Wedge::None | Wedge::Reset => {}
            Wedge::Loop => offer_loops(rings, queue),
            Wedge::Ahead => rings.claim(rings.offered().wrapping_add(0x8000)),
            Wedge::Index => offer_bad_indices(rings, queue),
            Wedge::Rings => device.set_queue(queue, if queue == RECEIVE { HOLE } else { TOP }),
            Wedge::Wild | Wedge::Length | Wedge::Indirect | Wedge::Direction | Wedge::Overlap => {
                offer_bad_buffers(rings, queue, wedge);
            }
        }
    }
    if let Wedge::Reset = wedge {
        device.reset();
    }
    device.notify(TRANSMIT);
    device.notify(RECEIVE);
}

/// The flag of a buffer that the device is to use as the queue says.
fn direction(queue: usize) -> u16 {
    if queue == RECEIVE { WRITE } else { 0 }
}

fn offer_loops(rings: &Rings, queue: usize) {
    let flags = direction(queue) | NEXT;
    for index in 0..QUEUE_SIZE {
        // Pairs that point at each other, and every fourth at itself.
        let next = if index % 4 == 0 { index } else { index ^ 1 };
        rings.describe(index, Descriptor { address: buffer(queue, index), length: 256, flags, next });
    }
    rings.offer_all(|place| place);
}

fn offer_bad_indices(rings: &Rings, queue: usize) {
    let flags = direction(queue) | NEXT;
    for index in 0..QUEUE_SIZE {
        let next = if index % 2 == 0 { QUEUE_SIZE } else { u16::MAX };
        rings.describe(index, Descriptor { address: buffer(queue, index), length: 256, flags, next });
    }
    rings.offer_all(|place| [place, QUEUE_SIZE, place, u16::MAX][usize::from(place % 4)]);
}

/// Gives each descriptor one of the bad buffers in turn, and offers them all.
fn offer_bad_buffers(rings: &Rings, queue: usize, wedge: Wedge) {
    let right = direction(queue);
    let end_of_ram = memory::ram().last().map_or(0, |range| range.end);
    for index in 0..QUEUE_SIZE {
        let own = buffer(queue, index);
        let choose = |choices: [(u64, u32, u16); 4]| choices[usize::from(index % 4)];
        let (address, length, flags) = match wedge {
            Wedge::Wild => choose([
                (HOLE, BUFFER_SIZE, right),
                (TOP, u32::MAX, right),
                (end_of_ram - 64, BUFFER_SIZE, right),
                (VirtioNet::place(), 4096, right),
            ]),
            Wedge::Length => {
                choose([(own, u32::MAX, right), (own, 0, right), (own, 1, right), (own, 11, right)])
            }
            Wedge::Indirect => choose([
                (rings.address() + 16 * u64::from(index), 16, INDIRECT),
                (rings.address(), 24, INDIRECT),
                (HOLE, 4096, INDIRECT),
                (rings.address(), 0xffff_fff0, INDIRECT),
            ]),
            Wedge::Overlap => choose([
                (rings.address(), BUFFER_SIZE, right),
                (rings.address() + 16 * u64::from(index), 16, right),
                (rings.address() + 16 * u64::from(QUEUE_SIZE), 8, right),
                (rings.address(), 2 * BUFFER_SIZE, right),
            ]),
            _ => (own, BUFFER_SIZE, right ^ WRITE),
        };
        rings.describe(index, Descriptor { address, length, flags, next: 0 });
    }
    rings.offer_all(|place| place);
}

/// An Ethernet frame that asks who has `target` (RFC 826).
fn arp_request(mac: Mac, ip: Ip, target: Ip) -> [u8; 42] {
    let mut frame = [0; 42];
    let mut fields = Fields(&mut frame);
    fields.put(&[0xff; 6]).put(&mac).put(&[0x08, 0x06]);
    fields.put(&[0, 1, 0x08, 0x00, 6, 4, 0, 1]).put(&mac).put(&ip).put(&[0; 6]).put(&target);
    frame
}

const PAYLOAD: [u8; 30] = *b"net-wedge                    \n";

/// An Ethernet frame with a datagram to everybody's discard port (RFC 791, RFC 768), without a UDP checksum.
fn datagram(mac: Mac, ip: Ip, number: u64) -> [u8; 42 + PAYLOAD.len()] {
    const UDP: u16 = 8 + PAYLOAD.len() as u16;
    let mut header = [0; 20];
    Fields(&mut header)
        .put(&[0x45, 0])
        .put(&(20 + UDP).to_be_bytes())
        .put(&[0, 0, 0x40, 0, 64, 17, 0, 0])
        .put(&ip)
        .put(&[255; 4]);
    let sum = header.as_chunks::<2>().0.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum::<u32>();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());

    let mut payload = PAYLOAD;
    let (mut rest, mut place) = (number, 28);
    loop {
        payload[place] = b'0' + (rest % 10) as u8;
        (rest, place) = (rest / 10, place - 1);
        if rest == 0 || place < 10 {
            break;
        }
    }
    let mut frame = [0; 42 + PAYLOAD.len()];
    let mut fields = Fields(&mut frame);
    fields.put(&[0xff; 6]).put(&mac).put(&[0x08, 0x00]).put(&header);
    fields.put(&[0, 9, 0, 9]).put(&UDP.to_be_bytes()).put(&[0, 0]).put(&payload);
    frame
}

/// Writes fields one behind the other.
struct Fields<'a>(&'a mut [u8]);

impl Fields<'_> {
    fn put(&mut self, field: &[u8]) -> &mut Self {
        let (here, rest) = core::mem::take(&mut self.0).split_at_mut(field.len());
        here.copy_from_slice(field);
        self.0 = rest;
        self
    }
}

/// An IPv4 address of the environment.
fn address(name: &str, default: Ip) -> Ip {
    let Some(text) = kenv::value(name) else { return default };
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let mut next = || parts.next().flatten().unwrap_or_else(|| panic!("{name}={text} is no IPv4 address"));
    [next(), next(), next(), next()]
}

/// A MAC address as text.
struct Colons(Mac);

impl core::fmt::Display for Colons {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}
