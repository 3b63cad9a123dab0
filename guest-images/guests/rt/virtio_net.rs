//! A driver for virtio-net over MMIO (virtio 1.2, sections 2.7, 4.2.2 and 5.1): one receive and one transmit queue,
//! polled. Its rings are open to a guest that wants to spoil them.

use core::sync::atomic::{Ordering, fence};

use crate::global::Global;
use crate::{kenv, memory, time};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 64;
/// Queue of received frames.
pub const RECEIVE: usize = 0;
/// Queue of frames to send.
pub const TRANSMIT: usize = 1;

/// The buffer continues in the descriptor `next`.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Bytes of each buffer: the header and a frame.
pub const BUFFER_SIZE: u32 = 2048;
/// `struct virtio_net_hdr_v1`: all zero in a plain frame, but for num_buffers that the device sets.
const HEADER: usize = 12;
/// An Ethernet frame without its checksum has at least so many bytes.
const SHORTEST_FRAME: usize = 60;

const DEFAULT_REGISTERS: u64 = 0xd000_0000;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const NETWORK: u32 = 1;
/// VIRTIO_NET_F_MAC, in the first feature word.
const FEATURE_MAC: u32 = 1 << 5;
/// VIRTIO_F_VERSION_1, in the second.
const FEATURE_VERSION_1: u32 = 1 << 0;

mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE: u64 = 0x008;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_WORD: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_WORD: u64 = 0x024;
    pub(super) const QUEUE: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const DESCRIPTORS: u64 = 0x080;
    pub(super) const AVAILABLE: u64 = 0x090;
    pub(super) const USED: u64 = 0x0a0;
    pub(super) const MAC: u64 = 0x100;
}

/// Bits of the status register.
mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
}

const ENTRIES: usize = QUEUE_SIZE as usize;

/// A buffer descriptor.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one, with [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    const EMPTY: Self = Self { address: 0, length: 0, flags: 0, next: 0 };
}

/// The three parts of a split queue.
#[repr(C, align(4096))]
pub struct Rings {
    descriptors: Global<[Descriptor; ENTRIES]>,
    available_flags: Global<u16>,
    available_index: Global<u16>,
    available: Global<[u16; ENTRIES]>,
    used_event: Global<u16>,
    used_flags: Global<u32>,
    used: Global<[[u32; 2]; ENTRIES]>,
}

static RINGS: [Rings; 2] = [const {
    Rings {
        descriptors: Global::new([Descriptor::EMPTY; ENTRIES]),
        available_flags: Global::new(0),
        available_index: Global::new(0),
        available: Global::new([0; ENTRIES]),
        used_event: Global::new(0),
        used_flags: Global::new(0),
        used: Global::new([[0; 2]; ENTRIES]),
    }
}; 2];

#[repr(align(4096))]
struct Buffers(Global<[[u8; BUFFER_SIZE as usize]; 2 * ENTRIES]>);

#[unsafe(link_section = ".bss.scratch.buffers")]
static BUFFERS: Buffers = Buffers(Global::new([[0; BUFFER_SIZE as usize]; 2 * ENTRIES]));

impl Rings {
    /// Address of the descriptor table.
    pub fn address(&self) -> u64 {
        self.descriptors.address()
    }

    /// Sets a descriptor.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        self.descriptors.set(usize::from(index), descriptor);
    }

    /// Offers the chain that begins at descriptor `head`, whatever that is.
    pub fn offer(&self, head: u16) {
        let index = self.available_index.read();
        self.available.set(usize::from(index % QUEUE_SIZE), head);
        self.claim(index.wrapping_add(1));
    }

    /// Offers as many chains as there is room for, the device's unused ones among them: the one in place `place` of the
    /// ring begins at descriptor `head(place)`, whatever that is.
    pub fn offer_all(&self, head: impl Fn(u16) -> u16) {
        for place in 0..QUEUE_SIZE {
            self.available.set(usize::from(place), head(place));
        }
        self.claim(self.returned().wrapping_add(QUEUE_SIZE));
    }

    /// Number of chains offered so far, modulo 2^16.
    pub fn offered(&self) -> u16 {
        self.available_index.read()
    }

    /// Claims that so many chains have been offered.
    pub fn claim(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.available_index.write(index);
        fence(Ordering::SeqCst);
    }

    /// Number of chains that the device has returned, modulo 2^16.
    pub fn returned(&self) -> u16 {
        let index = (self.used_flags.read() >> 16) as u16;
        fence(Ordering::SeqCst);
        index
    }

    /// Head and written length of the returned chain number `index`.
    fn returned_at(&self, index: u16) -> (u16, u32) {
        let [head, length] = self.used.at(usize::from(index % QUEUE_SIZE));
        (head as u16 % QUEUE_SIZE, length)
    }
}

/// Address of the driver's own buffer for descriptor `index` of a queue.
pub fn buffer(queue: usize, index: u16) -> u64 {
    BUFFERS.0.address() + (queue * ENTRIES + usize::from(index)) as u64 * u64::from(BUFFER_SIZE)
}

/// The device, running.
pub struct VirtioNet {
    registers: u64,
    mac: [u8; 6],
    received: u16,
}

impl VirtioNet {
    /// Where the environment says that the device is (`virtio_mmio.device=SIZE@BASE:IRQ`, as FreeBSD and Linux take
    /// it), else the VMM's usual place.
    pub fn place() -> u64 {
        let told = kenv::value("virtio_mmio.device").and_then(|device| {
            let (_, place) = device.split_once('@')?;
            kenv::parse(place.split_once(':')?.0)
        });
        told.unwrap_or(DEFAULT_REGISTERS)
    }

    /// Resets the device at `registers`, gives it both queues and all receive buffers, and starts it. `None` when there
    /// is no virtio-net of version 1 there.
    pub fn start(registers: u64) -> Option<Self> {
        memory::map_device(registers);
        let mut device = Self { registers, mac: [0; 6], received: 0 };
        if device.read(register::MAGIC) != MAGIC
            || device.read(register::VERSION) != VERSION
            || device.read(register::DEVICE) != NETWORK
        {
            return None;
        }
        device.write(register::STATUS, 0);
        device.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        device.accept(0, FEATURE_MAC);
        if device.accept(1, FEATURE_VERSION_1) == 0 {
            return None;
        }
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        device.write(register::STATUS, ready);
        if device.read(register::STATUS) & status::FEATURES_OK == 0 {
            return None;
        }
        for queue in [RECEIVE, TRANSMIT] {
            device.set_queue(queue, RINGS[queue].address());
        }
        device.write(register::STATUS, ready | status::DRIVER_OK);
        for (i, byte) in device.mac.iter_mut().enumerate() {
            // SAFETY: the device's configuration, mapped uncached; bytes may be read one by one.
            *byte = unsafe { ((registers + register::MAC + i as u64) as *const u8).read_volatile() };
        }
        for index in 0..QUEUE_SIZE {
            device.post_buffer(index);
        }
        device.notify(RECEIVE);
        Some(device)
    }

    /// The device's own address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The rings of a queue.
    pub fn rings(&self, queue: usize) -> &'static Rings {
        &RINGS[queue]
    }

    /// Sends a frame, padded to the shortest that Ethernet allows; waits until the device has taken it, at most a
    /// second. Says whether it has.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let rings = self.rings(TRANSMIT);
        let index = rings.offered() % QUEUE_SIZE;
        let address = buffer(TRANSMIT, index);
        let length = frame.len().max(SHORTEST_FRAME);
        // SAFETY: the driver's own buffer, which the device has returned: every frame is waited for.
        let bytes = unsafe { core::slice::from_raw_parts_mut(address as *mut u8, HEADER + length) };
        bytes.fill(0);
        bytes[HEADER..HEADER + frame.len()].copy_from_slice(frame);
        rings.describe(index, Descriptor { address, length: bytes.len() as u32, flags: 0, next: 0 });
        rings.offer(index);
        self.notify(TRANSMIT);
        let taken = time::within(1000, || rings.returned() == rings.offered());
        self.acknowledge();
        taken
    }

    /// The next received frame, handed to `take`; its buffer is then given back. `None` when none comes within
    /// `patience` milliseconds.
    pub fn receive<T>(&mut self, patience: u64, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let rings = self.rings(RECEIVE);
        if !time::within(patience, || rings.returned() != self.received) {
            return None;
        }
        self.acknowledge();
        let (index, length) = rings.returned_at(self.received);
        self.received = self.received.wrapping_add(1);
        let length = length.clamp(HEADER as u32, BUFFER_SIZE) as usize;
        // SAFETY: the driver's own buffer, which the device has returned.
        let bytes = unsafe { core::slice::from_raw_parts(buffer(RECEIVE, index) as *const u8, length) };
        let result = take(&bytes[HEADER..]);
        self.post_buffer(index);
        self.notify(RECEIVE);
        Some(result)
    }

    /// Tells the device to look at a queue.
    pub fn notify(&self, queue: usize) {
        self.write(register::NOTIFY, queue as u32);
    }

    /// Resets the device, which forgets both queues.
    pub fn reset(&self) {
        self.write(register::STATUS, 0);
    }

    /// Tells the device that a queue's three parts lie one behind the other from `address`, as in [`Rings`].
    pub fn set_queue(&self, queue: usize, address: u64) {
        let base = RINGS[queue].address();
        let available = address.wrapping_add(RINGS[queue].available_flags.address() - base);
        let used = address.wrapping_add(RINGS[queue].used_flags.address() - base);
        self.write(register::QUEUE, queue as u32);
        self.write(register::QUEUE_READY, 0);
        self.write(register::QUEUE_SIZE, self.read(register::QUEUE_SIZE_MAX).min(u32::from(QUEUE_SIZE)));
        for (place, address) in
            [(register::DESCRIPTORS, address), (register::AVAILABLE, available), (register::USED, used)]
        {
            self.write(place, address as u32);
            self.write(place + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
    }

    fn post_buffer(&self, index: u16) {
        let address = buffer(RECEIVE, index);
        let rings = self.rings(RECEIVE);
        rings.describe(index, Descriptor { address, length: BUFFER_SIZE, flags: WRITE, next: 0 });
        rings.offer(index);
    }

    /// Accepts of a feature word what is offered and wanted; returns that.
    fn accept(&self, word: u32, wanted: u32) -> u32 {
        self.write(register::DEVICE_FEATURES_WORD, word);
        let accepted = self.read(register::DEVICE_FEATURES) & wanted;
        self.write(register::DRIVER_FEATURES_WORD, word);
        self.write(register::DRIVER_FEATURES, accepted);
        accepted
    }

    fn acknowledge(&self) {
        self.write(register::INTERRUPT_ACKNOWLEDGE, self.read(register::INTERRUPT_STATUS));
    }

    fn read(&self, place: u64) -> u32 {
        // SAFETY: a device register, mapped uncached by `start`.
        unsafe { ((self.registers + place) as *const u32).read_volatile() }
    }

    fn write(&self, place: u64, value: u32) {
        // SAFETY: a device register, mapped uncached by `start`.
        unsafe { ((self.registers + place) as *mut u32).write_volatile(value) }
    }
}
