//! Uses a virtio device, brings its queues into every state that no driver would, resets it and uses it again after each,
//! and panics by pvpanic.
//!
//! Environment, besides what every guest takes:
//! - `device`: `blk` (default) or `rng`; the first of that kind, over PCI where there is a bus.
//! - `settle` (default 5): milliseconds that the device gets to look at what it was given.
//! - `last`: the state that the queues are left in, one of [`wedge::WEDGES`] (default `none`).
//!
//! It prints `survived STATE` for each, and `messages arrive` where the device's interrupts reach the local APIC; a device
//! that does not serve is told in the text of the panic. The disk's first sector is written and read back each time.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up, which no descriptor points at, but for the last 64
//! bytes of RAM.
#![no_std]
#![no_main]

use rt::virtio::{BUFFER_SIZE, Descriptor, Device, Kind, NEXT, Transport, WRITE, buffer};
use rt::wedge::{self, Chain, WEDGES};
use rt::{kenv, memory, println, pvpanic, time};

rt::guest!("queue-wedge", run);

const DEVICES: [(&str, (Kind, Chain)); 2] =
    [("blk", (Kind::Block, Chain::Request)), ("rng", (Kind::Entropy, Chain::Write))];
/// Types of a disk's requests, and a status (virtio 1.2, 5.2.6).
const READ_SECTORS: u32 = 0;
const WRITE_SECTORS: u32 = 1;
const OK: u8 = 0;
const SECTOR: u32 = 512;
/// What the status is before the device sets it.
const UNSET: u8 = 0xee;

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    let (kind, chain) = kenv::choice("device", &DEVICES);
    let Some(device) = Device::start(kind, 1, 0) else {
        pvpanic::signal(format_args!("there is no such device"));
    };
    println!("device over {}", device.transport);
    must_serve(&device, kind, "start");
    if let Transport::Pci(pci) = device.transport {
        take_messages(&device, kind);
        pci.disable_messages();
    }
    let settle = kenv::number("settle", 5);
    for (name, state) in WEDGES {
        wedge::leave(&device, state, &[chain]);
        time::wait(settle);
        if let Transport::Pci(pci) = device.transport {
            pci.disable_messages();
        }
        if !device.restart(|queue| device.rings(queue).address()) {
            pvpanic::signal(format_args!("after {name} the device does not start"));
        }
        must_serve(&device, kind, name);
        println!("survived {name}");
    }
    wedge::leave(&device, kenv::choice("last", &WEDGES), &[chain]);
    time::wait(settle);
    pvpanic::signal_from_kenv("the queues are left as they are")
}

fn must_serve(device: &Device, kind: Kind, after: &str) {
    let serves = match kind {
        Kind::Block => serves_sectors(device),
        _ => serves_bytes(device),
    };
    if !serves {
        pvpanic::signal(format_args!("after {after} the device does not serve"));
    }
}

/// The device's messages must reach the first CPU.
fn take_messages(device: &Device, kind: Kind) {
    let Transport::Pci(pci) = device.transport else { return };
    pci.enable_messages(device.queues());
    must_serve(device, kind, "messages");
    // The request may be seen done before its message has come.
    if !time::within(1000, || pci.has_interrupted(0)) {
        pvpanic::signal(format_args!("no message arrives"));
    }
    println!("messages arrive");
}

/// Whether 64 random bytes come, not all of them zero.
fn serves_bytes(device: &Device) -> bool {
    let address = buffer(0, 0);
    bytes(address, 64).fill(0);
    let chain = [Descriptor { address, length: 64, flags: WRITE, next: 0 }];
    submit(device, &chain) && bytes(address, 64).iter().any(|&byte| byte != 0)
}

/// Whether a sector is written, and read back as it was.
fn serves_sectors(device: &Device) -> bool {
    let data = buffer(0, 1);
    let seed = device.rings(0).offered() as u8;
    let pattern = |place: usize| (place as u8).wrapping_mul(7) ^ seed;
    bytes(data, SECTOR).iter_mut().enumerate().for_each(|(place, byte)| *byte = pattern(place));
    if !request(device, WRITE_SECTORS, data) {
        return false;
    }
    bytes(data, SECTOR).fill(0);
    request(device, READ_SECTORS, data)
        && bytes(data, SECTOR).iter().enumerate().all(|(place, &byte)| byte == pattern(place))
}

/// A disk's request for its first sector, carried out.
fn request(device: &Device, kind: u32, data: u64) -> bool {
    let (header, status) = (buffer(0, 0), buffer(0, 2));
    bytes(header, 16).fill(0);
    bytes(header, 4).copy_from_slice(&kind.to_le_bytes());
    bytes(status, 1)[0] = UNSET;
    let flags = if kind == READ_SECTORS { WRITE } else { 0 };
    let chain = [
        Descriptor { address: header, length: 16, flags: NEXT, next: 1 },
        Descriptor { address: data, length: SECTOR, flags: flags | NEXT, next: 2 },
        Descriptor { address: status, length: 1, flags: WRITE, next: 0 },
    ];
    let served = submit(device, &chain) && bytes(status, 1)[0] == OK;
    // Zeros again: what a wedge takes for its header asks to read the first sectors.
    bytes(header, 16).fill(0);
    served
}

/// Offers a chain of the first descriptors, and waits until it comes back.
fn submit(device: &Device, chain: &[Descriptor]) -> bool {
    let rings = device.rings(0);
    for (index, &descriptor) in (0..).zip(chain) {
        rings.describe(index, descriptor);
    }
    rings.offer(0);
    device.notify(0);
    time::within(2000, || rings.returned() == rings.offered())
}

/// One of the driver's own buffers, of which the device has none meanwhile.
fn bytes(address: u64, length: u32) -> &'static mut [u8] {
    assert!(length <= BUFFER_SIZE, "a buffer has {BUFFER_SIZE} bytes");
    // SAFETY: `buffer` gave the address; the device has returned every chain, or was reset.
    unsafe { core::slice::from_raw_parts_mut(address as *mut u8, length as usize) }
}
