//! Frames through the guest's virtio-net device, with the dumper in the place of the guest's driver.
//!
//! The queues that the guest left behind are neither trusted nor touched: the device is reset and given rings of the
//! dumper's own. These lie in a scratch region at addresses above all guest RAM which only the device's view of
//! memory has, so the guest's memory stays as it was. Payload goes out from where it lies in guest RAM.
//!
//! ```text
//! scratch:  RX ring | TX ring | TX slot: net header, frame without payloads | RX buffers: net header, frame
//! TX chain: [slot: net header, headers, message] -> [guest RAM] -> [slot: message] -> [guest RAM] ...
//! RX chain: [buffer]
//! ```
//!
//! The device's own code carries the frames to its tap, called from here and not by its worker: a thread between
//! would cost two wake-ups for each frame. So a frame has gone when the call returns, and one slot is enough.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use netdump::link::{Frame, Link, LinkError, Offloads, Received, Sent};
use netdump::wire::MacAddr;
use nix::sys::memfd::{MFdFlags, memfd_create};
use smallvec::SmallVec;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO,
};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap};

use super::tap::{bad_frame, failed, usable, wait_for_frame};
use super::train::{Cutter, MAX_LEN, MAX_SEGMENTS, Part, net_header, parts};
use crate::devices::virtio::driver::{Buffer, DriverRing, ring_len};
use crate::devices::virtio::net::header::{NetHeader, arrival};
use crate::devices::virtio::net::port::{Pause, Port};
use crate::devices::virtio::net::{Net, QUEUE_SIZE};
use crate::devices::virtio::rings::RingError;
use crate::devices::virtio::{Activation, Interrupt, Notifier, VirtioDevice};
use crate::memory::GuestMemory;
use crate::sys::tap::{Reading, VNET_HEADER_LEN};

/// One descriptor for each frame.
const RX_BUFFERS: u16 = QUEUE_SIZE / 4;
/// Scratch memory starts at a multiple of this: plenty above RAM, whatever its size.
const SCRATCH_ALIGN: u64 = 1 << 30;
/// Bytes of the slot and of each buffer: net header, VLAN tag, the longest frame. What is not used takes no memory.
const SLOT_LEN: usize = (VNET_HEADER_LEN + 4 + MAX_LEN).next_multiple_of(64);
/// Descriptors of a chain that needs no allocation.
const DESCRIPTORS: usize = QUEUE_SIZE as usize;
/// What the dumper, as a driver, agrees on with the device in any case.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_CSUM;
/// And where the host's kernel knows trains.
const TRAINS: u64 = 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

const IN_SCRATCH: &str = "slots and buffers lie in scratch memory";

/// The guest's network card, driven by the dumper.
pub struct VirtqueueLink {
    /// Guest RAM and the scratch region.
    memory: GuestMemory,
    port: Port,
    mac: MacAddr,
    tx: DriverRing,
    rx: DriverRing,
    slot: GuestAddress,
    /// The first of the RX buffers.
    buffers: GuestAddress,
    /// Whether the tap takes trains; they are cut if not.
    takes_trains: bool,
    cutter: Cutter,
}

impl VirtqueueLink {
    /// Takes the device away from the guest's driver. `memory` is guest RAM, in which nothing changes.
    pub fn new(net: &mut Net, memory: &GuestMemory) -> Result<Self, LinkError> {
        net.reset();
        let tap = Arc::clone(net.tap());
        usable(&tap)?;
        let takes_trains = tap.set_reading(Reading::Trains).is_ok();
        tap.drain();
        let (ring, slot) = (ring_len(QUEUE_SIZE), SLOT_LEN as u64);
        let total = 2 * ring + slot * (1 + u64::from(RX_BUFFERS));
        let (memory, base) = with_scratch(memory, total)
            .map_err(|error| failed(&tap, "making scratch memory for the queues of", error))?;

        let rx = DriverRing::new(memory.clone(), base, QUEUE_SIZE);
        let tx = DriverRing::new(memory.clone(), base.unchecked_add(ring), QUEUE_SIZE);
        let port = net.port(Activation {
            memory: memory.clone(),
            queues: vec![rx.queue(), tx.queue()],
            features: FEATURES | if takes_trains { TRAINS } else { 0 },
            notifier: Arc::new(Notifier::new(Arc::new(Polled))),
        });
        let mut link = Self {
            memory,
            port,
            mac: net.mac(),
            tx,
            rx,
            slot: base.unchecked_add(2 * ring),
            buffers: base.unchecked_add(2 * ring + slot),
            takes_trains,
            cutter: Cutter::default(),
        };
        (0..RX_BUFFERS).for_each(|index| link.offer(index));
        Ok(link)
    }

    fn buffer(&self, index: u16) -> GuestAddress {
        self.buffers.unchecked_add(SLOT_LEN as u64 * u64::from(index))
    }

    /// Gives an RX buffer to the device.
    fn offer(&mut self, index: u16) {
        let len = u32::try_from(SLOT_LEN).expect("64 KiB and some");
        self.rx.describe(index, &[Buffer::Write(self.buffer(index).raw_value(), len)]);
        self.rx.publish(index);
    }

    /// Puts the next frame that the device has delivered into `received`; whether there was one.
    fn take(&mut self, received: &mut Received) -> bool {
        let delivered = std::iter::from_fn(|| self.rx.reclaim()).find(|&(index, _)| index < RX_BUFFERS);
        let Some((index, len)) = delivered else { return false };
        let len = usize::try_from(len).expect("u32 fits").min(SLOT_LEN).saturating_sub(VNET_HEADER_LEN);
        let at = self.buffer(index);
        let frame = received.clear();
        frame.resize(len, 0);
        self.memory.read_slice(frame, at.unchecked_add(VNET_HEADER_LEN as u64)).expect(IN_SCRATCH);
        let header: NetHeader = self.memory.read_obj(at).expect(IN_SCRATCH);
        (received.segment, received.checked) = arrival(header);
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

    /// Has the device send a frame or train. `false`: it is a train, and the tap takes none.
    fn transmit(&mut self, frame: &Frame<'_>) -> Result<bool, LinkError> {
        let header = net_header(frame).ok_or_else(|| bad_frame(self.port.tap()))?;
        let chain = self.lay_out(header, frame)?;
        let before = self.port.counts();
        self.tx.describe(0, &chain);
        self.tx.publish(0);
        self.port.transmit().map_err(|error| self.gave_up(error))?;
        if self.tx.reclaim().is_none() {
            return Err(self.failed("the network card keeps a frame for", io::ErrorKind::InvalidData.into()));
        }
        let now = self.port.counts();
        if now.malformed > before.malformed {
            return Err(bad_frame(self.port.tap()));
        }
        Ok(now.refused == before.refused)
    }

    /// Writes the dumper's own bytes of a frame into the slot; the chain that has the guest's pieces between them.
    fn lay_out(
        &self,
        header: NetHeader,
        frame: &Frame<'_>,
    ) -> Result<SmallVec<[Buffer; DESCRIPTORS]>, LinkError> {
        let own = self.slot.unchecked_add(VNET_HEADER_LEN as u64);
        self.memory.write_obj(header, self.slot).expect(IN_SCRATCH);
        self.memory.write_slice(frame.bytes, own).expect(IN_SCRATCH);
        let length = |len| u32::try_from(len).map_err(|_| bad_frame(self.port.tap()));
        let mut chain = SmallVec::new();
        chain.push(Buffer::Read(self.slot.raw_value(), length(VNET_HEADER_LEN)?));
        let mut at = own.raw_value();
        for part in parts(frame) {
            match part {
                Part::Own(bytes) => {
                    chain.push(Buffer::Read(at, length(bytes.len())?));
                    at += bytes.len() as u64;
                }
                Part::Guest(piece) => chain.push(Buffer::Read(piece.address, length(piece.len)?)),
            }
        }
        if chain.len() > DESCRIPTORS { Err(bad_frame(self.port.tap())) } else { Ok(chain) }
    }

    /// Sends a train frame by frame.
    fn cut(&mut self, train: &Frame<'_>) -> Result<(), LinkError> {
        net_header(train).ok_or_else(|| bad_frame(self.port.tap()))?;
        let mut cutter = std::mem::take(&mut self.cutter);
        cutter.put(train);
        while let Some(frame) = cutter.next() {
            self.transmit(&frame)?;
            cutter.gone();
        }
        self.cutter = cutter;
        Ok(())
    }

    fn failed(&self, doing: &str, source: io::Error) -> LinkError {
        failed(self.port.tap(), doing, source)
    }

    fn gave_up(&self, error: RingError) -> LinkError {
        self.failed("the network card gave up on the dumper's queues for", io::Error::other(error))
    }
}

impl Link for VirtqueueLink {
    fn mtu(&self) -> Result<u32, LinkError> {
        usable(self.port.tap()).map(|interface| interface.mtu)
    }

    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn offloads(&self) -> Offloads {
        let segments = if self.takes_trains { MAX_SEGMENTS } else { 0 };
        Offloads { gather: true, checksum: true, segments }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if frame.segment.is_none() || self.takes_trains {
            if self.transmit(frame)? {
                return Ok(Sent::Yes);
            }
            tracing::debug!(tap = %self.port.tap().name(), "a train was refused; from here on they are cut");
            self.takes_trains = false;
        }
        self.cut(frame).map(|()| Sent::Yes)
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        received.clear();
        if self.take(received) {
            return Ok(true);
        }
        self.deliver()?;
        if self.take(received) {
            return Ok(true);
        }
        if !wait_for_frame(self.port.tap(), wait)? {
            return Ok(false);
        }
        self.deliver()?;
        Ok(self.take(received))
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
