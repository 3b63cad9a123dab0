//! Uses its virtio-net device, over PCI where there is a bus, leaves the queues in a state that no driver would, and panics by pvpanic.
//!
//! Environment, besides what every guest takes:
//! - `virtio_mmio.device=SIZE@BASE:IRQ`: where the device is (default base 0xd0000000).
//! - `ip` (default 10.0.0.2), `peer` (default 10.0.0.9): the guest announces `ip` by ARP and asks for `peer`.
//! - `frames` (default 1): UDP datagrams to 255.255.255.255 port 9 that it sends then, from `ip` and port 9, each with
//!   the payload `net-wedge` and its number in decimal.
//! - `wait_rx`: with `1` it waits for a frame, at most `patience` (default 5000) milliseconds, and prints who sent it.
//! - `wedge`: the state it leaves, see [`wedge::Wedge`] (default `none`: queues in good order).
//! - `settle` (default 20): milliseconds between the last notification and the panic.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up, which no descriptor points at, but for the last 64
//! bytes of RAM with `wedge=wild`; `panicstr` points at the text. Without a device where it should be the guest panics
//! all the same, and the text says so.
#![no_std]
#![no_main]

use rt::virtio_net::VirtioNet;
use rt::wedge::{self, Chain, WEDGES};
use rt::{kenv, memory, println, pvpanic, time};

rt::guest!("net-wedge", run);

type Mac = [u8; 6];
type Ip = [u8; 4];

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    let Some(mut device) = VirtioNet::start() else {
        pvpanic::signal(format_args!("no virtio-net device"));
    };
    println!("virtio-net over {}, address {}", device.device.transport, Colons(device.mac()));
    let (ip, peer) = (address("ip", [10, 0, 0, 2]), address("peer", [10, 0, 0, 9]));
    talk(&mut device, ip, peer);
    if kenv::number("wait_rx", 0) != 0 {
        listen(&mut device);
    }
    let wedge = kenv::choice("wedge", &WEDGES);
    wedge::leave(&device.device, wedge, &[Chain::Write, Chain::Read]);
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
