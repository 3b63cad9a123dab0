//! States of a device's queues that no driver would leave, each offered on all of its queues.

use crate::memory;
use crate::virtio::{BUFFER_SIZE, Descriptor, Device, INDIRECT, NEXT, Rings, Transport, WRITE, buffer};

/// What is wrong with the queues.
#[derive(Clone, Copy)]
pub enum Wedge {
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
    /// `length`: buffers of 4 GiB, of no bytes, and too small for a header.
    Length,
    /// `index`: heads and next fields that are no descriptor of the queue.
    Index,
    /// `direction`: buffers to write where the device must read, and the other way round.
    Direction,
    /// `overlap`: buffers that are the rings themselves.
    Overlap,
    /// `rings`: the rings are moved, while the device runs, to where there is no RAM.
    Rings,
    /// `nowhere`: the device is started with rings where there is no RAM.
    Nowhere,
    /// `reset`: the device is reset in the middle of traffic, and notified after that.
    Reset,
    /// `messages`: over PCI, messages to no interrupt controller and of any vector; nothing over MMIO.
    Messages,
    /// `bar`: over PCI, the registers are moved over RAM, other devices and away; nothing over MMIO.
    Bar,
}

/// Their names, the first of them the default.
pub const WEDGES: [(&str, Wedge); 14] = [
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
    ("nowhere", Wedge::Nowhere),
    ("reset", Wedge::Reset),
    ("messages", Wedge::Messages),
    ("bar", Wedge::Bar),
];

/// No RAM is here whatever the size of the machine: the hole below 4 GiB, and the end of the address space.
const HOLE: u64 = 0xcff0_0000;
const TOP: u64 = u64::MAX - 0xfff;

/// What the device takes from a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// One buffer that it reads.
    Read,
    /// One buffer that it writes.
    Write,
    /// A disk's request to read its first sectors: 16 bytes of zeros, then what it writes. Only the latter is spoilt.
    Request,
}

/// Brings the queues into the state, and tells the device to look.
pub fn leave(device: &Device, wedge: Wedge, chains: &[Chain]) {
    for (queue, &chain) in chains.iter().enumerate() {
        let rings = device.rings(queue);
        match wedge {
            Wedge::None | Wedge::Reset | Wedge::Nowhere | Wedge::Messages | Wedge::Bar => {}
            Wedge::Loop => offer_loops(rings, queue, chain),
            Wedge::Ahead => rings.claim(rings.offered().wrapping_add(0x8000)),
            Wedge::Index => offer_bad_indices(rings, queue, chain),
            Wedge::Rings => device.set_queue(queue, nowhere(queue)),
            Wedge::Wild | Wedge::Length | Wedge::Indirect | Wedge::Direction | Wedge::Overlap => {
                offer_bad_buffers(rings, queue, chain, wedge);
            }
        }
    }
    match (wedge, device.transport) {
        (Wedge::Reset, _) => device.reset(),
        (Wedge::Nowhere, _) => _ = device.restart(nowhere),
        (Wedge::Messages, Transport::Pci(pci)) => {
            pci.spoil_messages(chains.len());
            for (queue, &chain) in chains.iter().enumerate() {
                offer_bad_buffers(device.rings(queue), queue, chain, Wedge::Length);
            }
        }
        (Wedge::Bar, Transport::Pci(pci)) => pci.move_about(),
        _ => {}
    }
    (0..chains.len()).rev().for_each(|queue| device.notify(queue));
}

fn nowhere(queue: usize) -> u64 {
    if queue == 0 { HOLE } else { TOP }
}

/// The flag of a buffer that the device is to use as the queue says.
fn direction(chain: Chain) -> u16 {
    if chain == Chain::Read { 0 } else { WRITE }
}

fn offer_loops(rings: &Rings, queue: usize, chain: Chain) {
    let flags = direction(chain) | NEXT;
    for index in 0..rings.size() {
        // Pairs that point at each other, and every fourth at itself.
        let next = if index % 4 == 0 { index } else { index ^ 1 };
        rings.describe(index, Descriptor { address: buffer(queue, index), length: 256, flags, next });
    }
    rings.offer_all(|place| place);
}

fn offer_bad_indices(rings: &Rings, queue: usize, chain: Chain) {
    let flags = direction(chain) | NEXT;
    for index in 0..rings.size() {
        let next = if index % 2 == 0 { rings.size() } else { u16::MAX };
        rings.describe(index, Descriptor { address: buffer(queue, index), length: 256, flags, next });
    }
    rings.offer_all(|place| [place, rings.size(), place, u16::MAX][usize::from(place % 4)]);
}

/// Gives each chain one of the bad buffers in turn, and offers them all.
fn offer_bad_buffers(rings: &Rings, queue: usize, chain: Chain, wedge: Wedge) {
    let has_header = chain == Chain::Request;
    for index in 0..rings.size() {
        let turn = if has_header { index / 2 } else { index };
        let descriptor = if has_header && index % 2 == 0 {
            Descriptor { address: buffer(queue, 0), length: 16, flags: NEXT, next: index + 1 }
        } else {
            bad_buffer(rings, buffer(queue, index), turn, direction(chain), wedge)
        };
        rings.describe(index, descriptor);
    }
    rings.offer_all(|place| if has_header { place & !1 } else { place });
}

/// The bad buffer whose turn it is; `own` is where a good one would be.
fn bad_buffer(rings: &Rings, own: u64, turn: u16, right: u16, wedge: Wedge) -> Descriptor {
    let end_of_ram = memory::ram().last().map_or(0, |range| range.end);
    let choose = |choices: [(u64, u32, u16); 4]| choices[usize::from(turn % 4)];
    let (address, length, flags) = match wedge {
        Wedge::Wild => choose([
            (HOLE, BUFFER_SIZE, right),
            (TOP, u32::MAX, right),
            (end_of_ram - 64, BUFFER_SIZE, right),
            (0xd000_0000, 4096, right),
        ]),
        Wedge::Length => choose([(own, u32::MAX, right), (own, 0, right), (own, 1, right), (own, 11, right)]),
        Wedge::Indirect => choose([
            (rings.address() + 16 * u64::from(turn), 16, INDIRECT),
            (rings.address(), 24, INDIRECT),
            (HOLE, 4096, INDIRECT),
            (rings.address(), 0xffff_fff0, INDIRECT),
        ]),
        Wedge::Overlap => choose([
            (rings.address(), BUFFER_SIZE, right),
            (rings.address() + 16 * u64::from(turn), 16, right),
            (rings.address() + 16 * u64::from(rings.size()), 8, right),
            (rings.address(), 2 * BUFFER_SIZE, right),
        ]),
        _ => (own, BUFFER_SIZE, right ^ WRITE),
    };
    Descriptor { address, length, flags, next: 0 }
}
