//! Virtio over MMIO (virtio 1.2, section 4.2.2), as a driver uses its registers.

use crate::virtio::{Kind, Place, QUEUE_SIZE};
use crate::{kenv, memory};

/// Where this VMM has its devices: one a page from here on.
const FIRST: u64 = 0xd000_0000;
const STEP: u64 = 0x1000;
const MOST: u64 = 17;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;

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
    pub(super) const CONFIG: u64 = 0x100;
}

/// The registers of a device, at this address.
#[derive(Clone, Copy)]
pub struct Mmio(u64);

impl Mmio {
    /// The first device of that kind.
    pub(crate) fn find(kind: Kind) -> Option<Self> {
        let places = told().into_iter().chain((0..MOST).map(|number| FIRST + STEP * number));
        places.map(Self).find(|device| device.is(kind))
    }

    /// Where the environment says that a device is, or else the first place of all, whatever is there.
    pub fn first_place() -> u64 {
        told().unwrap_or(FIRST)
    }

    fn is(self, kind: Kind) -> bool {
        memory::map_device(self.0);
        self.read(register::MAGIC) == MAGIC
            && self.read(register::VERSION) == VERSION
            && self.read(register::DEVICE) == kind as u32
    }

    pub(crate) fn place(self) -> u64 {
        self.0
    }

    pub(crate) fn set_queue(self, queue: usize, place: Place) -> u16 {
        self.write(register::QUEUE, queue as u32);
        self.write(register::QUEUE_READY, 0);
        let size = self.read(register::QUEUE_SIZE_MAX).min(u32::from(QUEUE_SIZE));
        self.write(register::QUEUE_SIZE, size);
        for (register, address) in [
            (register::DESCRIPTORS, place.descriptors),
            (register::AVAILABLE, place.available),
            (register::USED, place.used),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
        size as u16
    }

    pub(crate) fn notify(self, queue: usize) {
        self.write(register::NOTIFY, queue as u32);
    }

    pub(crate) fn acknowledge(self) {
        self.write(register::INTERRUPT_ACKNOWLEDGE, self.read(register::INTERRUPT_STATUS));
    }

    pub(crate) fn config(self, offset: u64) -> u8 {
        // SAFETY: the device's configuration, mapped uncached; bytes may be read one by one.
        unsafe { ((self.0 + register::CONFIG + offset) as *const u8).read_volatile() }
    }

    pub(crate) fn status(self) -> u32 {
        self.read(register::STATUS)
    }

    pub(crate) fn set_status(self, status: u32) {
        self.write(register::STATUS, status);
    }

    pub(crate) fn accept(self, word: u32, wanted: u32) -> u32 {
        self.write(register::DEVICE_FEATURES_WORD, word);
        let accepted = self.read(register::DEVICE_FEATURES) & wanted;
        self.write(register::DRIVER_FEATURES_WORD, word);
        self.write(register::DRIVER_FEATURES, accepted);
        accepted
    }

    fn read(self, place: u64) -> u32 {
        // SAFETY: a device register, mapped uncached by `is`.
        unsafe { ((self.0 + place) as *const u32).read_volatile() }
    }

    fn write(self, place: u64, value: u32) {
        // SAFETY: a device register, mapped uncached by `is`.
        unsafe { ((self.0 + place) as *mut u32).write_volatile(value) }
    }
}

fn told() -> Option<u64> {
    let (_, place) = kenv::value("virtio_mmio.device")?.split_once('@')?;
    kenv::parse(place.split_once(':')?.0)
}
