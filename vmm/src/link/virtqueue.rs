//! Frames through the guest's virtio-net device, with the dumper in the place of the guest's driver.
//!
//! The queues that the guest left behind are neither trusted nor touched: the device is reset and given rings of the
//! dumper's own. These lie in a scratch region at addresses above all guest RAM which only the device's view of
//! memory has, so the guest's memory stays as it was. Payload goes out from where it lies in guest RAM.
//!
//! ```text
//! scratch:  RX ring | TX ring | TX slots: net header, frame headers | RX buffers: net header, frame
//! TX chain: [slot] -> [guest RAM]        RX chain: [buffer]
//! ```
//!
//! The device's own code carries the frames to its tap, called from here and not by its worker: a thread between
//! would cost two wake-ups for each frame.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use netdump::link::{Frame, GuestPiece, Link, LinkError, Offloads, Received, Sent};
use netdump::wire::MacAddr;
use netdump::wire::ethernet::{EtherType, EthernetHeader};
use netdump::wire::ipv4::PROTOCOL_UDP;
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_CSUM;
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap};

use super::tap::{failed, usable, wait_for_frame};
use crate::devices::virtio::driver::{Buffer, DriverRing, ring_len};
use crate::devices::virtio::net::header::{PLAIN, needs_checksum};
use crate::devices::virtio::net::port::{Pause, Port, RingError};
use crate::devices::virtio::net::{Net, QUEUE_SIZE};
use crate::devices::virtio::{Activation, Interrupt, Notifier, VirtioDevice};
use crate::memory::GuestMemory;
use crate::sys::tap::VNET_HEADER_LEN;

/// Two descriptors for each frame: its headers, and what lies in guest RAM.
const TX_SLOTS: u16 = QUEUE_SIZE / 2;
/// One descriptor for each frame.
const RX_BUFFERS: u16 = QUEUE_SIZE / 4;
/// Scratch memory starts at a multiple of this: plenty above RAM, whatever its size.
const SCRATCH_ALIGN: u64 = 1 << 30;
/// Bytes of a slot beside the MTU: net header, Ethernet header, VLAN tag.
const SLOT_HEADERS: u32 = 12 + 14 + 4;
/// In a frame, where the UDP header starts (Ethernet 14, IPv4 20), and in that the checksum.
const UDP_START: u16 = 34;
const UDP_CHECKSUM: u16 = 6;
/// In a frame, where IPv4 says what it carries.
const IP_PROTOCOL: usize = 23;

const IN_SCRATCH: &str = "slots and buffers lie in scratch memory";

/// The guest's network card, driven by the dumper.
pub struct VirtqueueLink {
    /// Guest RAM and the scratch region.
    memory: GuestMemory,
    port: Port,
    mac: MacAddr,
    /// The MTU that slots and buffers are made for.
    mtu: u32,
    tx: DriverRing,
    rx: DriverRing,
    slots: Slots,
    buffers: Slots,
    /// TX slots that the device does not hold.
    free: Vec<u16>,
}

/// Equal pieces of scratch memory.
#[derive(Debug, Clone, Copy)]
struct Slots {
    base: GuestAddress,
    /// Bytes of each.
    len: u32,
}

impl Slots {
    fn at(&self, index: u16) -> GuestAddress {
        self.base.unchecked_add(u64::from(self.len) * u64::from(index))
    }
}

impl VirtqueueLink {
    /// Takes the device away from the guest's driver. `memory` is guest RAM, in which nothing changes.
    pub fn new(net: &mut Net, memory: &GuestMemory) -> Result<Self, LinkError> {
        net.reset();
        let tap = Arc::clone(net.tap());
        tap.drain();
        let mtu = usable(&tap)?.mtu;
        let len = slot_len(mtu).ok_or_else(|| failed(&tap, "using", io::ErrorKind::InvalidData.into()))?;
        let ring = ring_len(QUEUE_SIZE);
        let total = 2 * ring + u64::from(len) * u64::from(TX_SLOTS + RX_BUFFERS);
        let (memory, base) = with_scratch(memory, total)
            .map_err(|error| failed(&tap, "making scratch memory for the queues of", error))?;

        let rx = DriverRing::new(memory.clone(), base, QUEUE_SIZE);
        let tx = DriverRing::new(memory.clone(), base.unchecked_add(ring), QUEUE_SIZE);
        let slots = Slots { base: base.unchecked_add(2 * ring), len };
        let buffers = Slots { base: slots.at(TX_SLOTS), len };
        let port = net.port(Activation {
            memory: memory.clone(),
            queues: vec![rx.queue(), tx.queue()],
            features: 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_CSUM,
            notifier: Arc::new(Notifier::new(Arc::new(Polled))),
        });
        let free = (0..TX_SLOTS).collect();
        let mut link = Self { memory, port, mac: net.mac(), mtu, tx, rx, slots, buffers, free };
        (0..RX_BUFFERS).for_each(|index| link.offer(index));
        Ok(link)
    }

    /// Gives an RX buffer to the device.
    fn offer(&mut self, index: u16) {
        let Slots { len, .. } = self.buffers;
        self.rx.describe(index, &[Buffer::Write(self.buffers.at(index).raw_value(), len)]);
        self.rx.publish(index);
    }

    /// Puts the next frame that the device has delivered into `frame`; whether there was one.
    fn take(&mut self, frame: &mut Vec<u8>) -> bool {
        let delivered = std::iter::from_fn(|| self.rx.reclaim()).find(|&(index, _)| index < RX_BUFFERS);
        let Some((index, len)) = delivered else { return false };
        let len = usize::try_from(len.min(self.buffers.len)).expect("u32 fits");
        frame.clear();
        frame.resize(len.saturating_sub(VNET_HEADER_LEN), 0);
        let at = self.buffers.at(index).unchecked_add(VNET_HEADER_LEN as u64);
        self.memory.read_slice(frame, at).expect(IN_SCRATCH);
        self.offer(index);
        true
    }

    /// Has the device deliver what is in its tap.
    fn deliver(&mut self) -> Result<(), LinkError> {
        match self.port.receive() {
            Ok(Pause::TapGone) => Err(self.failed("receiving from", io::ErrorKind::NotFound.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(self.gave_up(error)),
        }
    }

    fn failed(&self, doing: &str, source: io::Error) -> LinkError {
        failed(self.port.tap(), doing, source)
    }

    fn gave_up(&self, error: RingError) -> LinkError {
        self.failed("the network card gave up on the dumper's queues for", io::Error::other(error))
    }
}

impl Link for VirtqueueLink {
    /// As the interface has it now, but no more than the buffers were made for.
    fn mtu(&self) -> Result<u32, LinkError> {
        usable(self.port.tap()).map(|interface| interface.mtu.min(self.mtu))
    }

    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn offloads(&self) -> Offloads {
        Offloads { gather: true, checksum: true, segments: 0 }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        let too_long = |link: &Self| link.failed("sending to", io::ErrorKind::InvalidInput.into());
        let len = VNET_HEADER_LEN + frame.bytes.len();
        let len =
            u32::try_from(len).ok().filter(|len| *len <= self.slots.len).ok_or_else(|| too_long(self))?;
        let Some(slot) = self.free.pop() else { return Ok(Sent::Busy) };

        let at = self.slots.at(slot);
        let header = if is_udp(frame.bytes) { needs_checksum(UDP_START, UDP_CHECKSUM) } else { PLAIN };
        self.memory.write_slice(&header, at).expect(IN_SCRATCH);
        self.memory.write_slice(frame.bytes, at.unchecked_add(VNET_HEADER_LEN as u64)).expect(IN_SCRATCH);
        let headers = Buffer::Read(at.raw_value(), len);
        match *frame.guest {
            [] => self.tx.describe(2 * slot, &[headers]),
            [GuestPiece { at, address, len }] if at == frame.bytes.len() => {
                let len = u32::try_from(len).map_err(|_| too_long(self))?;
                self.tx.describe(2 * slot, &[headers, Buffer::Read(address, len)]);
            }
            _ => return Err(too_long(self)),
        }
        self.tx.publish(2 * slot);
        self.port.transmit().map_err(|error| self.gave_up(error))?;
        while let Some((head, _)) = self.tx.reclaim() {
            self.free.push(head / 2);
        }
        Ok(Sent::Yes)
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let frame = received.clear();
        if self.take(frame) {
            return Ok(true);
        }
        self.deliver()?;
        if self.take(frame) {
            return Ok(true);
        }
        if !wait_for_frame(self.port.tap(), wait)? {
            return Ok(false);
        }
        self.deliver()?;
        Ok(self.take(frame))
    }
}

impl fmt::Debug for VirtqueueLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtqueueLink")
            .field("tap", self.port.tap().name())
            .field("mac", &self.mac)
            .finish_non_exhaustive()
    }
}

/// Nobody needs to be interrupted: the dumper looks at its rings whenever it has called the device.
#[derive(Debug)]
struct Polled;

impl Interrupt for Polled {
    fn used(&self, _queue: u16) {}

    fn config_changed(&self) {}
}

/// Bytes of scratch memory for a frame at that MTU, with its headers.
fn slot_len(mtu: u32) -> Option<u32> {
    SLOT_HEADERS.checked_add(mtu)?.checked_next_multiple_of(64)
}

/// `memory` with `len` bytes more, zero, far above the last of it; and where they are.
fn with_scratch(memory: &GuestMemory, len: u64) -> io::Result<(GuestMemory, GuestAddress)> {
    let too_high = || io::Error::other("guest memory reaches to the end of the address space");
    let above = memory.last_addr().raw_value().checked_add(SCRATCH_ALIGN).ok_or_else(too_high)?;
    let base = GuestAddress(above / SCRATCH_ALIGN * SCRATCH_ALIGN);
    let file = File::from(memfd_create("dumper-queues", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(len)?;
    let size = usize::try_from(len).map_err(io::Error::other)?;
    let region =
        GuestRegionMmap::from_range(base, size, Some(FileOffset::new(file, 0))).map_err(io::Error::other)?;
    let memory = memory.insert_region(Arc::new(region)).map_err(io::Error::other)?;
    Ok((memory, base))
}

/// Whether a frame's UDP checksum is the device's to make.
fn is_udp(frame: &[u8]) -> bool {
    let ipv4 = EthernetHeader::parse(frame).is_ok_and(|(header, _)| header.ethertype == EtherType::IPV4);
    ipv4 && frame.get(IP_PROTOCOL) == Some(&PROTOCOL_UDP)
}
