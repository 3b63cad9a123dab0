//! Virtio devices as a polling driver finds, starts and resets them, over MMIO or PCI (virtio 1.2, sections 2.7, 4.1 and
//! 4.2.2). The rings are open to a guest that wants to spoil them.

use core::sync::atomic::{Ordering, fence};

use crate::global::Global;
use crate::virtio_mmio::Mmio;
use crate::virtio_pci::Pci;
use crate::{pci, time};

/// Entries of each queue; devices that take fewer get as many as they take.
pub const QUEUE_SIZE: u16 = 64;
/// Most queues of a device.
pub const QUEUES: usize = 2;

/// The buffer continues in the descriptor `next`.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Bytes of each buffer.
pub const BUFFER_SIZE: u32 = 2048;

/// VIRTIO_F_VERSION_1, in the second feature word.
const FEATURE_VERSION_1: u32 = 1 << 0;

/// Bits of the status register.
mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
}

/// Kinds of devices (virtio 1.2, section 5).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A network card.
    Network = 1,
    /// A disk.
    Block = 2,
    /// A source of randomness.
    Entropy = 4,
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
    /// How many entries the device takes; not of its concern.
    size: Global<u16>,
}

static RINGS: [Rings; QUEUES] = [const {
    Rings {
        descriptors: Global::new([Descriptor::EMPTY; ENTRIES]),
        available_flags: Global::new(0),
        available_index: Global::new(0),
        available: Global::new([0; ENTRIES]),
        used_event: Global::new(0),
        used_flags: Global::new(0),
        used: Global::new([[0; 2]; ENTRIES]),
        size: Global::new(QUEUE_SIZE),
    }
}; QUEUES];

#[repr(align(4096))]
struct Buffers(Global<[[u8; BUFFER_SIZE as usize]; 2 * ENTRIES]>);

#[unsafe(link_section = ".bss.scratch.buffers")]
static BUFFERS: Buffers = Buffers(Global::new([[0; BUFFER_SIZE as usize]; 2 * ENTRIES]));

impl Rings {
    /// Address of the descriptor table.
    pub fn address(&self) -> u64 {
        self.descriptors.address()
    }

    /// Makes the rings as new.
    pub fn clear(&self) {
        (0..ENTRIES).for_each(|index| {
            self.descriptors.set(index, Descriptor::EMPTY);
            self.available.set(index, 0);
            self.used.set(index, [0; 2]);
        });
        self.available_flags.write(0);
        self.used_event.write(0);
        self.used_flags.write(0);
        self.claim(0);
    }

    /// Entries: [`QUEUE_SIZE`], or fewer where the device takes no more.
    pub fn size(&self) -> u16 {
        self.size.read()
    }

    /// Sets a descriptor.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        self.descriptors.set(usize::from(index), descriptor);
    }

    /// Offers the chain that begins at descriptor `head`, whatever that is.
    pub fn offer(&self, head: u16) {
        let index = self.available_index.read();
        self.available.set(usize::from(index % self.size()), head);
        self.claim(index.wrapping_add(1));
    }

    /// Offers as many chains as there is room for, the device's unused ones among them: the one in place `place` of the
    /// ring begins at descriptor `head(place)`, whatever that is.
    pub fn offer_all(&self, head: impl Fn(u16) -> u16) {
        for place in 0..self.size() {
            self.available.set(usize::from(place), head(place));
        }
        self.claim(self.returned().wrapping_add(self.size()));
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

    /// Whether the device wants to be told of what was offered: it does not while it looks (VIRTQ_USED_F_NO_NOTIFY).
    pub fn wants_notification(&self) -> bool {
        self.used_flags.read() & 1 == 0
    }

    /// Head and written length of the returned chain number `index`.
    pub fn returned_at(&self, index: u16) -> (u16, u32) {
        let [head, length] = self.used.at(usize::from(index % self.size()));
        (head as u16 % QUEUE_SIZE, length)
    }
}

/// Address of the driver's own buffer for descriptor `index` of a queue.
pub fn buffer(queue: usize, index: u16) -> u64 {
    BUFFERS.0.address() + (queue * ENTRIES + usize::from(index)) as u64 * u64::from(BUFFER_SIZE)
}

/// Where a queue's three parts lie.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Where a device's registers are.
#[derive(Clone, Copy)]
pub enum Transport {
    /// In a page of their own.
    Mmio(Mmio),
    /// Behind a PCI function's BAR.
    Pci(Pci),
}

impl Transport {
    /// The first device of that kind: on the PCI bus of a machine that has one, else where the environment says
    /// (`virtio_mmio.device=SIZE@BASE:IRQ`, as FreeBSD and Linux take it) or in one of the places where this VMM has them.
    fn find(kind: Kind) -> Option<Self> {
        if pci::is_there() { Pci::find(kind).map(Self::Pci) } else { Mmio::find(kind).map(Self::Mmio) }
    }
}

/// A device that is driven.
pub struct Device {
    /// Its registers.
    pub transport: Transport,
    queues: usize,
    features: u32,
}

impl Device {
    /// Resets the first device of that kind, agrees on those of `features` (bits 0 to 31) that it offers, and gives it
    /// its queues. `None` when there is none of version 1.
    pub fn start(kind: Kind, queues: usize, features: u32) -> Option<Self> {
        let device = Self { transport: Transport::find(kind)?, queues, features };
        device.restart(|queue| RINGS[queue].address()).then_some(device)
    }

    /// The same again, with the rings of each queue from the address that `rings` gives. What was offered is forgotten.
    /// Says whether the device agrees.
    pub fn restart(&self, rings: impl Fn(usize) -> u64) -> bool {
        self.reset();
        if !time::within(1000, || self.status() == 0) {
            return false;
        }
        for rings in &RINGS[..self.queues] {
            rings.clear();
        }
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.accept(0, self.features);
        if self.accept(1, FEATURE_VERSION_1) == 0 {
            return false;
        }
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_status(ready);
        if self.status() & status::FEATURES_OK == 0 {
            return false;
        }
        for queue in 0..self.queues {
            self.set_queue(queue, rings(queue));
        }
        self.set_status(ready | status::DRIVER_OK);
        true
    }

    /// How many queues are driven.
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// The rings of a queue.
    pub fn rings(&self, queue: usize) -> &'static Rings {
        &RINGS[queue]
    }

    /// Tells the device that a queue's three parts lie one behind the other from `address`, as in [`Rings`].
    pub fn set_queue(&self, queue: usize, address: u64) {
        let base = RINGS[queue].address();
        let place = Place {
            descriptors: address,
            available: address.wrapping_add(RINGS[queue].available_flags.address() - base),
            used: address.wrapping_add(RINGS[queue].used_flags.address() - base),
        };
        let size = match self.transport {
            Transport::Mmio(mmio) => mmio.set_queue(queue, place),
            Transport::Pci(pci) => pci.set_queue(queue, place),
        };
        if size > 0 {
            RINGS[queue].size.write(size);
        }
    }

    /// Tells the device to look at a queue.
    pub fn notify(&self, queue: usize) {
        match self.transport {
            Transport::Mmio(mmio) => mmio.notify(queue),
            Transport::Pci(pci) => pci.notify(queue),
        }
    }

    /// Resets the device, which forgets its queues.
    pub fn reset(&self) {
        self.set_status(0);
    }

    /// Reads and acknowledges why the device interrupted.
    pub fn acknowledge(&self) {
        match self.transport {
            Transport::Mmio(mmio) => mmio.acknowledge(),
            Transport::Pci(pci) => pci.acknowledge(),
        }
    }

    /// A byte of the device's configuration.
    pub fn config(&self, offset: u64) -> u8 {
        match self.transport {
            Transport::Mmio(mmio) => mmio.config(offset),
            Transport::Pci(pci) => pci.config(offset),
        }
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        match self.transport {
            Transport::Mmio(mmio) => mmio.status(),
            Transport::Pci(pci) => pci.status(),
        }
    }

    fn set_status(&self, status: u32) {
        match self.transport {
            Transport::Mmio(mmio) => mmio.set_status(status),
            Transport::Pci(pci) => pci.set_status(status),
        }
    }

    /// Accepts of a feature word what is offered and wanted; returns that.
    fn accept(&self, word: u32, wanted: u32) -> u32 {
        match self.transport {
            Transport::Mmio(mmio) => mmio.accept(word, wanted),
            Transport::Pci(pci) => pci.accept(word, wanted),
        }
    }
}

impl core::fmt::Display for Transport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Mmio(mmio) => write!(f, "mmio at {:#x}", mmio.place()),
            Self::Pci(pci) => write!(f, "PCI at {:#x}", pci.place()),
        }
    }
}
