//! Virtio over PCI (virtio 1.2, section 4.1), as a driver uses its registers, with MSI-X (PCI Local Bus 3.0, section
//! 6.8.2) for a guest that wants messages: with interrupts off they wait in the local APIC, to be seen there.

use crate::memory;
use crate::pci::Function;
use crate::virtio::{Kind, Place, QUEUE_SIZE, QUEUES};

/// Vendor of all virtio devices, and what their device numbers follow.
const VENDOR: u32 = 0x1af4;
const FIRST_DEVICE: u32 = 0x1040;

const COMMAND: u8 = 0x04;
/// The BAR answers; the function may write memory, which its messages are.
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
const BAR_0: u8 = 0x10;

const VENDOR_SPECIFIC: u8 = 9;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;

const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const ENTRY_LEN: u64 = 16;

/// Messages to the first CPU's local APIC.
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
/// The vector of the configuration's message; those of the queues follow.
const FIRST_VECTOR: u32 = 0x60;
const SPURIOUS_INTERRUPT: u64 = 0xfee0_00f0;
const APIC_ENABLED: u32 = 1 << 8;
const INTERRUPT_REQUESTS: u64 = 0xfee0_0200;

/// Places in the common configuration.
mod common {
    pub(super) const OFFERED_WORD: u64 = 0x00;
    pub(super) const OFFERED: u64 = 0x04;
    pub(super) const ACCEPTED_WORD: u64 = 0x08;
    pub(super) const ACCEPTED: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const NOTIFY_OFFSET: u64 = 0x1e;
    pub(super) const DESCRIPTORS: u64 = 0x20;
    pub(super) const AVAILABLE: u64 = 0x28;
    pub(super) const USED: u64 = 0x30;
}

/// The registers of a function: where its BAR's blocks are.
#[derive(Clone, Copy)]
pub struct Pci {
    function: Function,
    bar: u64,
    common: u64,
    /// Where each queue is notified of.
    notify: [u64; QUEUES],
    isr: u64,
    device: u64,
}

impl Pci {
    /// The first function of that kind, which answers from now on.
    pub(crate) fn find(kind: Kind) -> Option<Self> {
        let function = Function::find((FIRST_DEVICE + kind as u32) << 16 | VENDOR)?;
        let bar = u64::from(function.read(BAR_0) & !0xf);
        memory::map_device(bar);
        function.write(COMMAND, MEMORY | MASTER);
        let block = |kind: u8| {
            let at = function
                .capabilities(VENDOR_SPECIFIC)
                .find(|&at| (function.read(at) >> 24) as u8 == kind && function.read(at + 4) as u8 == 0)?;
            Some((bar + u64::from(function.read(at + 8)), at))
        };
        let (notify, at) = block(NOTIFY_CFG)?;
        let step = u64::from(function.read(at + 16));
        let common = block(COMMON_CFG)?.0;
        let notify = core::array::from_fn(|queue| {
            write_u16(common + common::QUEUE, queue as u16);
            // SAFETY: a device register, mapped uncached above.
            let offset = unsafe { ((common + common::NOTIFY_OFFSET) as *const u16).read_volatile() };
            notify + step * u64::from(offset)
        });
        Some(Self { function, bar, common, notify, isr: block(ISR_CFG)?.0, device: block(DEVICE_CFG)?.0 })
    }

    pub(crate) fn place(self) -> u64 {
        self.bar
    }

    pub(crate) fn set_queue(self, queue: usize, place: Place) -> u16 {
        self.write_u16(common::QUEUE, queue as u16);
        let size = self.read_u16(common::QUEUE_SIZE).min(QUEUE_SIZE);
        self.write_u16(common::QUEUE_SIZE, size);
        self.write_u16(common::QUEUE_VECTOR, queue as u16 + 1);
        for (register, address) in [
            (common::DESCRIPTORS, place.descriptors),
            (common::AVAILABLE, place.available),
            (common::USED, place.used),
        ] {
            write_u32(self.common + register, address as u32);
            write_u32(self.common + register + 4, (address >> 32) as u32);
        }
        self.write_u16(common::QUEUE_ENABLE, 1);
        size
    }

    pub(crate) fn notify(self, queue: usize) {
        write_u16(self.notify[queue], queue as u16);
    }

    pub(crate) fn acknowledge(self) {
        // SAFETY: a device register, mapped uncached by `find`.
        unsafe { (self.isr as *const u8).read_volatile() };
    }

    pub(crate) fn config(self, offset: u64) -> u8 {
        // SAFETY: the device's configuration, mapped uncached; bytes may be read one by one.
        unsafe { ((self.device + offset) as *const u8).read_volatile() }
    }

    pub(crate) fn status(self) -> u32 {
        // SAFETY: a device register, mapped uncached by `find`.
        u32::from(unsafe { ((self.common + common::STATUS) as *const u8).read_volatile() })
    }

    pub(crate) fn set_status(self, status: u32) {
        // SAFETY: as in `status`.
        unsafe { ((self.common + common::STATUS) as *mut u8).write_volatile(status as u8) }
    }

    pub(crate) fn accept(self, word: u32, wanted: u32) -> u32 {
        write_u32(self.common + common::OFFERED_WORD, word);
        let accepted = read_u32(self.common + common::OFFERED) & wanted;
        write_u32(self.common + common::ACCEPTED_WORD, word);
        write_u32(self.common + common::ACCEPTED, accepted);
        accepted
    }

    /// Has the device interrupt by messages, one for its configuration and one for each of `queues` queues.
    pub fn enable_messages(self, queues: usize) {
        self.fill_table(|entry| [MESSAGE_ADDRESS, 0, FIRST_VECTOR + entry, 0]);
        self.set_messages(true);
        write_u32(SPURIOUS_INTERRUPT, read_u32(SPURIOUS_INTERRUPT) | APIC_ENABLED);
        self.write_u16(common::CONFIG_VECTOR, 0);
        for queue in 0..queues {
            self.write_u16(common::QUEUE, queue as u16);
            self.write_u16(common::QUEUE_VECTOR, queue as u16 + 1);
        }
    }

    /// Whether a message of that queue has reached the local APIC, ever.
    pub fn has_interrupted(self, queue: usize) -> bool {
        let vector = u64::from(FIRST_VECTOR) + 1 + queue as u64;
        read_u32(INTERRUPT_REQUESTS + vector / 32 * 16) & 1 << (vector % 32) != 0
    }

    /// Has the device interrupt by messages that go nowhere, or to what is no APIC, with any vector.
    pub fn spoil_messages(self, queues: usize) {
        self.fill_table(|entry| [0xfee0_0000, u32::MAX, 0, 0x1234_5678].map(|word| word.rotate_left(entry)));
        self.set_messages(true);
        for (queue, vector) in (0..=queues as u16).zip([u16::MAX - 1, 7, 0, 1]) {
            self.write_u16(common::CONFIG_VECTOR, vector);
            self.write_u16(common::QUEUE, queue);
            self.write_u16(common::QUEUE_VECTOR, vector);
        }
    }

    /// No more messages.
    pub fn disable_messages(self) {
        self.set_messages(false);
    }

    /// Moves the function's BAR over RAM, over other devices and to the ends of the address space, uses it there, and
    /// brings it back.
    pub fn move_about(self) {
        let home = self.function.read(BAR_0);
        for place in [0, 0x20_0000, 0xfee0_0000, 0xfec0_0000, 0xf000_0000, u32::MAX, home + 0x8000, home] {
            self.function.write(BAR_0, place);
            // Its old place is another device's, or nobody's.
            (0..QUEUES).for_each(|queue| self.notify(queue));
            self.function.write(COMMAND, MASTER);
            self.notify(0);
            self.function.write(COMMAND, MEMORY | MASTER);
        }
    }

    fn set_messages(self, enabled: bool) {
        if let Some(at) = self.function.capabilities(MSIX).next() {
            let other = self.function.read(at) & !MSIX_ENABLE;
            self.function.write(at, if enabled { other | MSIX_ENABLE } else { other });
        }
    }

    fn fill_table(self, entry: impl Fn(u32) -> [u32; 4]) {
        let Some(at) = self.function.capabilities(MSIX).next() else { return };
        let table = self.bar + u64::from(self.function.read(at + 4) & !7);
        for number in 0..=(self.function.read(at) >> 16) & 0x7ff {
            let place = table + ENTRY_LEN * u64::from(number);
            for (word, value) in (0..).zip(entry(number)) {
                write_u32(place + 4 * word, value);
            }
        }
    }

    fn read_u16(self, place: u64) -> u16 {
        // SAFETY: a device register, mapped uncached by `find`.
        unsafe { ((self.common + place) as *const u16).read_volatile() }
    }

    fn write_u16(self, place: u64, value: u16) {
        write_u16(self.common + place, value);
    }
}

fn write_u16(place: u64, value: u16) {
    // SAFETY: a register of the function or where it may have been, mapped uncached by `find`.
    unsafe { (place as *mut u16).write_volatile(value) }
}

fn read_u32(place: u64) -> u32 {
    // SAFETY: a register of the function or the local APIC, mapped uncached by `find` or `entry.s`.
    unsafe { (place as *const u32).read_volatile() }
}

fn write_u32(place: u64, value: u32) {
    // SAFETY: as in `read_u32`.
    unsafe { (place as *mut u32).write_volatile(value) }
}
