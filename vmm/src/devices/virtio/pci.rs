//! Virtio over PCI (virtio 1.2, section 4.1), modern devices only: four register blocks and the MSI-X table in one BAR of
//! 32 KiB, each described by a capability. All fields are little-endian and accessed as wide as they are; any other
//! access reads as zero and changes nothing.
//!
//! ```text
//! 0x0000 common configuration    0x1000 ISR             0x2000 device configuration
//! 0x3000 notifications           0x4000 MSI-X table     0x5000 MSI-X pending bits
//! ```

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};

use super::transport::{Half, Transport};
use super::{Interrupt, Notifier, VirtioDevice};
use crate::bus::AfterWrite;
use crate::devices::pci::PciFunction;
use crate::devices::pci::config::{ConfigSpace, Identity};
use crate::devices::pci::msix::{MsiLine, Msix};
use crate::memory::GuestMemory;

/// The vendor of all virtio devices; their device numbers follow this one.
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// Revision of a device that no legacy driver takes for its own.
const REVISION: u8 = 1;

const BAR_LEN: u32 = 0x8000;
const BLOCK: u64 = 0x1000;
const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
const COMMON_LEN: u32 = 0x38;

/// Kinds of blocks (4.1.4; `linux/virtio_pci.h` calls them VIRTIO_PCI_CAP_*).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Capability of a vendor's own making.
const VENDOR_SPECIFIC: u8 = 9;
/// Bytes between the notification addresses of neighbouring queues.
const NOTIFY_STEP: u32 = 4;
/// No interrupt (VIRTIO_MSI_NO_VECTOR).
const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Doorbells that follow the function's BAR about.
pub trait Doorbells: Send + fmt::Debug {
    /// The BAR is there now, or nowhere.
    fn follow(&mut self, bar: Option<u32>);
}

/// Where the driver notifies of a queue, when the BAR is at `bar`.
pub fn notification(bar: u32, queue: u16) -> u64 {
    u64::from(bar) + u64::from(NOTIFY) + u64::from(NOTIFY_STEP) * u64::from(queue)
}

/// How many interrupts a device needs: one for each queue, and one for its configuration.
pub fn vectors_of(device: &dyn VirtioDevice) -> usize {
    device.queue_sizes().len() + 1
}

/// The function of one device.
#[derive(Debug)]
pub struct PciTransport {
    config: ConfigSpace,
    transport: Transport,
    interrupt: Arc<PciInterrupt>,
    /// Where the capabilities lie that do something when they are written.
    msix_at: usize,
    access_at: usize,
    doorbells: Option<Box<dyn Doorbells>>,
    offered_half: u32,
    accepted_half: u32,
    queue: u16,
}

impl PciTransport {
    /// A function for `device`, whose driver's addresses mean `memory`, with [`vectors_of`] it interrupts.
    pub fn new(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: GuestMemory,
        lines: Vec<Box<dyn MsiLine>>,
    ) -> Self {
        let msix = Msix::new(lines);
        let queues = msix.len().saturating_sub(1);
        let interrupt = Arc::new(PciInterrupt {
            msix: msix.clone(),
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        });
        let transport = Transport::new(device, memory, Arc::new(Notifier::new(interrupt.clone())));
        let kind = u16::try_from(transport.device_type()).expect("kinds of devices are few");
        let mut config = ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind,
            subsystem: (VENDOR, FIRST_DEVICE + kind),
            class: class(kind.into()),
            revision: REVISION,
        });
        let msix_at = msix.describe(&mut config, TABLE, PENDING);
        let access_at = add_blocks(&mut config);
        Self {
            config,
            transport,
            interrupt,
            msix_at,
            access_at,
            doorbells: None,
            offered_half: 0,
            accepted_half: 0,
            queue: 0,
        }
    }

    /// The same with doorbells.
    pub fn with_doorbells(mut self, doorbells: Box<dyn Doorbells>) -> Self {
        self.doorbells = Some(doorbells);
        self
    }

    /// A field of the common configuration: its value and how many bytes it has. Gaps are fields of no bytes.
    fn common(&self, offset: u64) -> (u32, usize) {
        let queue = u32::from(self.queue);
        let vector = |vector: Option<&AtomicU16>| {
            u32::from(vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed)))
        };
        let setup = self.transport.queue(queue);
        let size = setup.map_or(0, |setup| setup.size);
        let max = self.transport.queue_max(queue).map_or(0, u32::from);
        let address = |at: fn(&super::transport::QueueSetup) -> u64, half: Half| {
            (setup.map_or(0, |setup| half.read(at(setup))), 4)
        };
        match offset {
            0x00 => (self.offered_half, 4),
            0x04 => (half(self.offered_half).map_or(0, |half| half.read(self.transport.offered())), 4),
            0x08 => (self.accepted_half, 4),
            0x0c => (half(self.accepted_half).map_or(0, |half| half.read(self.transport.accepted())), 4),
            0x10 => (vector(Some(&self.interrupt.config_vector)), 2),
            0x12 => (u32::try_from(self.interrupt.queue_vectors.len()).unwrap_or(0), 2),
            0x14 => (self.transport.status(), 1),
            // Configuration never changes, so its generation does not either.
            0x15 => (0, 1),
            0x16 => (queue, 2),
            // Until the driver chooses, the largest.
            0x18 => (if size == 0 { max } else { size }, 2),
            0x1a => (vector(self.interrupt.queue_vectors.get(usize::from(self.queue))), 2),
            0x1c => (u32::from(self.transport.queue_ready(queue)), 2),
            // Each queue has a notification address of its own.
            0x1e => (queue, 2),
            0x20 => address(|setup| setup.descriptors, Half::Low),
            0x24 => address(|setup| setup.descriptors, Half::High),
            0x28 => address(|setup| setup.available, Half::Low),
            0x2c => address(|setup| setup.available, Half::High),
            0x30 => address(|setup| setup.used, Half::Low),
            0x34 => address(|setup| setup.used, Half::High),
            _ => (0, 0),
        }
    }

    fn set_common(&mut self, offset: u64, value: u32) {
        let queue = u32::from(self.queue);
        let vector = u16::try_from(value).unwrap_or(NO_VECTOR);
        match offset {
            0x00 => self.offered_half = value,
            0x08 => self.accepted_half = value,
            0x0c => {
                if let Some(half) = half(self.accepted_half) {
                    self.transport.accept(half, value);
                }
            }
            0x10 => self.interrupt.set_vector(&self.interrupt.config_vector, vector),
            0x14 => self.set_status(value),
            0x16 => self.queue = u16::try_from(value).unwrap_or(u16::MAX),
            0x1a => {
                if let Some(place) = self.interrupt.queue_vectors.get(usize::from(self.queue)) {
                    self.interrupt.set_vector(place, vector);
                }
            }
            0x1c if value == 1 => self.enable_queue(queue),
            0x18 | 0x20..0x38 => {
                let Some(setup) = self.transport.queue_setup(queue) else { return };
                match offset {
                    0x18 => setup.size = value,
                    0x20 => Half::Low.write(&mut setup.descriptors, value),
                    0x24 => Half::High.write(&mut setup.descriptors, value),
                    0x28 => Half::Low.write(&mut setup.available, value),
                    0x2c => Half::High.write(&mut setup.available, value),
                    0x30 => Half::Low.write(&mut setup.used, value),
                    _ => Half::High.write(&mut setup.used, value),
                }
            }
            _ => {}
        }
    }

    /// A queue can only be taken into use, not out of it: that takes a reset.
    fn enable_queue(&mut self, queue: u32) {
        let max = self.transport.queue_max(queue).map_or(0, u32::from);
        if let Some(setup) = self.transport.queue_setup(queue)
            && setup.size == 0
        {
            setup.size = max;
        }
        self.transport.set_queue_ready(queue, true);
    }

    fn set_status(&mut self, value: u32) {
        self.transport.set_status(value);
        if value == 0 {
            // The device is quiet by now, so no interrupt of before can be raised any more.
            self.interrupt.forget();
            (self.queue, self.offered_half, self.accepted_half) = (0, 0, 0);
        }
    }

    /// What the capability for access through configuration space (4.1.4.9) is set to: offset and length.
    fn indirect(&self) -> Option<(u64, usize)> {
        let bar = self.config.field(self.access_at + 4) & 0xff;
        let offset = u64::from(self.config.field(self.access_at + 8));
        let len = usize::try_from(self.config.field(self.access_at + 12)).ok()?;
        let fits = bar == 0 && matches!(len, 1 | 2 | 4) && offset < BAR_LEN.into();
        fits.then_some((offset, len))
    }

    /// Where the data of that capability lies.
    fn indirect_data(&self) -> usize {
        self.access_at + 16
    }
}

impl PciFunction for PciTransport {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
        if offset == self.indirect_data()
            && let Some((place, len)) = self.indirect()
            && let Some(data) = data.get_mut(..len)
        {
            self.read(place, data);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.interrupt.msix.configure(&self.config, self.msix_at);
        self.placed();
        if offset == self.indirect_data()
            && let Some((place, len)) = self.indirect()
            && let Some(data) = data.get(..len)
        {
            let _ = self.write(place, data);
        }
    }

    fn placed(&mut self) {
        let bar = self.config.bar().map(|(bar, _)| bar);
        if let Some(doorbells) = &mut self.doorbells {
            doorbells.follow(bar);
        }
    }

    fn bar_len(&self) -> u32 {
        BAR_LEN
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let at = offset % BLOCK;
        match block(offset) {
            COMMON => {
                let (value, len) = self.common(at);
                if len == data.len() {
                    data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
                }
            }
            ISR if at == 0 => {
                if let Some(first) = data.first_mut() {
                    // Reading acknowledges.
                    *first = self.interrupt.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE => self.transport.read_config(at, data),
            TABLE if is_word(at, data.len()) => self.interrupt.msix.read_table(index(at), data),
            PENDING => self.interrupt.msix.read_pending(index(at), data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        let at = offset % BLOCK;
        match block(offset) {
            COMMON if !data.is_empty() && self.common(at).1 == data.len() => {
                let mut value = [0; 4];
                value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
                self.set_common(at, u32::from_le_bytes(value));
            }
            NOTIFY => {
                if let Ok(queue) = u32::try_from(at / u64::from(NOTIFY_STEP)) {
                    self.transport.notify(queue);
                }
            }
            TABLE if is_word(at, data.len()) => self.interrupt.msix.write_table(index(at), data),
            _ => {}
        }
        AfterWrite::Run
    }
}

/// Which block of the BAR an offset is in.
fn block(offset: u64) -> u32 {
    u32::try_from(offset - offset % BLOCK).unwrap_or(u32::MAX)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// The table is accessed in whole words or pairs of them (PCI Local Bus 3.0, 6.8.2).
fn is_word(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

/// Which half of the feature bits a selector means; there are no more than 64.
fn half(selector: u32) -> Option<Half> {
    match selector {
        0 => Some(Half::Low),
        1 => Some(Half::High),
        _ => None,
    }
}

/// The class that a system lists the device under; what drives it goes by vendor and device.
fn class(kind: u32) -> u32 {
    match kind {
        VIRTIO_ID_NET => 0x02_0000,
        VIRTIO_ID_BLOCK => 0x01_8000,
        _ => 0xff_0000,
    }
}

/// Adds the capabilities that tell where the blocks are; where the last one is, for access through configuration space.
fn add_blocks(config: &mut ConfigSpace) -> usize {
    let page = u32::try_from(BLOCK).expect("4 KiB");
    let mut add = |kind: u8, offset: u32, len: u32, more: &[u8]| {
        let cap_len = u8::try_from(16 + more.len()).expect("a few bytes");
        // cap_len, cfg_type, bar, id and padding, offset, length
        let body =
            [&[cap_len, kind, 0, 0, 0, 0][..], &offset.to_le_bytes(), &len.to_le_bytes(), more].concat();
        config.add_capability(VENDOR_SPECIFIC, &body)
    };
    add(COMMON_CFG, COMMON, COMMON_LEN, &[]);
    add(ISR_CFG, ISR, 1, &[]);
    add(DEVICE_CFG, DEVICE, page, &[]);
    add(NOTIFY_CFG, NOTIFY, page, &NOTIFY_STEP.to_le_bytes());
    let access = add(PCI_CFG, 0, 0, &[0; 4]);
    // bar, then offset and length, then data.
    config.allow(access + 4, &[0xff]);
    config.allow(access + 8, &[0xff; 12]);
    access
}

/// Interrupts by MSI-X. Without it there is the ISR to be polled, and no line.
#[derive(Debug)]
struct PciInterrupt {
    msix: Msix,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl PciInterrupt {
    /// A vector that is not there is none, as the driver then reads back.
    fn set_vector(&self, place: &AtomicU16, vector: u16) {
        let is_there = usize::from(vector) < self.msix.len();
        place.store(if is_there { vector } else { NO_VECTOR }, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.isr.store(0, Ordering::Release);
        self.queue_vectors.iter().chain([&self.config_vector]).for_each(|vector| {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        });
    }

    fn raise(&self, cause: u8, vector: Option<&AtomicU16>) {
        if !self.msix.is_enabled() {
            self.isr.fetch_or(cause, Ordering::AcqRel);
        } else if let Some(vector) = vector {
            self.msix.fire(vector.load(Ordering::Relaxed));
        }
    }
}

impl Interrupt for PciInterrupt {
    fn used(&self, queue: u16) {
        self.raise(ISR_QUEUE, self.queue_vectors.get(usize::from(queue)));
    }

    fn config_changed(&self) {
        self.raise(ISR_CONFIG, Some(&self.config_vector));
    }
}

/// The function as a driver of the contract tests uses it: through the registers of its BAR, with MSI-X.
#[cfg(test)]
pub(crate) mod bench {
    use super::*;
    use crate::devices::pci::msix::fake;
    use crate::devices::virtio::contract;

    /// A transport and the messages that it sent.
    pub(crate) struct Registers {
        pub(super) pci: PciTransport,
        pub(super) sent: fake::Sent,
    }

    impl Registers {
        pub(super) fn read<const N: usize>(&mut self, offset: u64) -> u32 {
            let mut data = [0xaa; 4];
            self.pci.read(offset, &mut data[..N]);
            u32::from_le_bytes(data) & (u32::MAX >> (32 - 8 * N))
        }

        pub(super) fn write<const N: usize>(&mut self, offset: u64, value: u32) {
            assert_eq!(self.pci.write(offset, &value.to_le_bytes()[..N]), AfterWrite::Run);
        }

        /// Enables MSI-X, each entry with its number as the message's data.
        pub(super) fn enable_messages(&mut self) {
            for entry in 0..u32::try_from(self.pci.interrupt.msix.len()).unwrap() {
                let at = u64::from(TABLE + 16 * entry);
                self.write::<4>(at, 0xfee0_0000);
                self.write::<4>(at + 8, entry);
                self.write::<4>(at + 12, 0);
            }
            let control = self.pci.msix_at + 2;
            self.pci.write_config(control, &0x8000u16.to_le_bytes());
        }
    }

    impl contract::Registers for Registers {
        fn plug(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory) -> Self {
            let vectors = vectors_of(&*device.lock().unwrap());
            let (lines, sent) = fake::lines(vectors);
            let mut registers = Self { pci: PciTransport::new(device, memory, lines), sent };
            registers.enable_messages();
            registers
        }

        fn set_status(&mut self, status: u32) {
            self.write::<1>(0x14, status);
        }

        fn status(&mut self) -> u32 {
            self.read::<1>(0x14)
        }

        fn offered(&mut self) -> u64 {
            let mut offered = 0;
            for (selector, half) in [(0, Half::Low), (1, Half::High)] {
                self.write::<4>(0, selector);
                half.write(&mut offered, self.read::<4>(4));
            }
            offered
        }

        fn accept(&mut self, features: u64) {
            for (selector, half) in [(0, Half::Low), (1, Half::High)] {
                self.write::<4>(8, selector);
                self.write::<4>(0xc, half.read(features));
            }
        }

        fn place(&mut self, queue: u16, size: u16, areas: [u64; 3]) -> bool {
            self.write::<2>(0x16, queue.into());
            self.write::<2>(0x18, size.into());
            self.write::<2>(0x1a, u32::from(queue) + 1);
            for (at, address) in (0x20..).step_by(8).zip(areas) {
                self.write::<4>(at, Half::Low.read(address));
                self.write::<4>(at + 4, Half::High.read(address));
            }
            self.write::<2>(0x1c, 1);
            self.read::<2>(0x1c) == 1
        }

        fn notify(&mut self, queue: u16) {
            self.write::<2>(u64::from(NOTIFY + NOTIFY_STEP * u32::from(queue)), queue.into());
        }

        fn read_config(&mut self, offset: u64, data: &mut [u8]) {
            self.pci.read(u64::from(DEVICE) + offset, data);
        }

        fn interrupted(&mut self) -> bool {
            // Entry 0 is the configuration's here.
            self.sent.lock().unwrap().pop().is_some_and(|(_, data)| data > 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bench::Registers;
    use super::*;
    use crate::devices::virtio::contract::{self, Driver, Registers as _};
    use crate::devices::virtio::driver::Buffer;
    use crate::devices::virtio::rng::Rng;

    fn driver() -> Driver<Registers> {
        Driver::new(Arc::new(Mutex::new(Rng::new())))
    }

    /// What a driver finds by walking the capabilities: kind, offset and length of each block.
    fn blocks(pci: &PciTransport) -> Vec<(u8, u32, u32)> {
        let mut at = usize::from(pci.config.field(0x34).to_le_bytes()[0]);
        let mut blocks = Vec::new();
        while at != 0 {
            let [id, next, _, kind] = pci.config.field(at).to_le_bytes();
            if id == VENDOR_SPECIFIC {
                blocks.push((kind, pci.config.field(at + 8), pci.config.field(at + 12)));
            }
            at = next.into();
        }
        blocks
    }

    #[test]
    fn the_function_is_a_modern_virtio_device_with_all_of_its_blocks() {
        let driver = driver();
        let config = &driver.registers.pci.config;
        assert_eq!((config.field(0), config.field(8)), (0x1044_1af4, 0xff00_0001));
        let expected = [(1, 0, 0x38), (3, 0x1000, 1), (4, 0x2000, 0x1000), (2, 0x3000, 0x1000), (5, 0, 0)];
        assert_eq!(blocks(&driver.registers.pci), expected);
    }

    #[test]
    fn fields_read_as_they_were_written_and_are_forgotten_by_a_reset() {
        let mut registers = driver().registers;
        let fields = |registers: &mut Registers| {
            let halves = [0x20, 0x24, 0x28, 0x30].map(|at| registers.read::<4>(at));
            let words = [0x18, 0x1a, 0x1c, 0x1e].map(|at| registers.read::<2>(at));
            (halves, words)
        };
        registers.set_status(0);
        registers.set_status(3);
        assert_eq!(registers.read::<2>(0x12), 1, "one queue");
        assert_eq!(fields(&mut registers), ([0; 4], [16, 0xffff, 0, 0]));
        assert!(registers.place(0, 8, [0x4000, 0x5000, 0x6000]));
        assert_eq!(fields(&mut registers), ([0x4000, 0, 0x5000, 0x6000], [8, 1, 1, 0]));
        registers.write::<2>(0x1c, 0);
        assert_eq!(registers.read::<2>(0x1c), 1, "only a reset takes it out of use");
        registers.set_status(0);
        assert_eq!(fields(&mut registers), ([0; 4], [16, 0xffff, 0, 0]));
        registers.write::<2>(0x16, 1);
        assert_eq!(fields(&mut registers), ([0; 4], [0, 0xffff, 0, 1]), "no such queue");
    }

    #[test]
    fn a_queue_is_as_large_as_it_can_be_unless_the_driver_says_otherwise() {
        let mut registers = driver().registers;
        registers.set_status(0);
        registers.set_status(3);
        registers.write::<4>(0x20, 0x4000);
        registers.write::<4>(0x28, 0x5000);
        registers.write::<4>(0x30, 0x6000);
        registers.write::<2>(0x1c, 1);
        assert_eq!((registers.read::<2>(0x1c), registers.read::<2>(0x18)), (1, 16));
    }

    #[test]
    fn vectors_that_are_not_there_read_as_none() {
        let mut registers = driver().registers;
        for at in [0x10, 0x1a] {
            registers.write::<2>(at, 1);
            assert_eq!(registers.read::<2>(at), 1);
            registers.write::<2>(at, 2);
            assert_eq!(registers.read::<2>(at), 0xffff);
        }
    }

    #[test]
    fn accesses_of_another_width_read_zero_and_change_nothing() {
        let mut registers = driver().registers;
        let status = registers.status();
        assert_eq!((registers.read::<2>(0x14), registers.read::<4>(0x14), registers.read::<1>(0)), (0, 0, 0));
        registers.write::<2>(0x14, 0);
        registers.write::<4>(0x14, 0);
        assert_eq!(registers.status(), status);
    }

    #[test]
    fn without_messages_the_isr_tells_once() {
        let mut driver = driver();
        let control = driver.registers.pci.msix_at + 2;
        driver.registers.pci.write_config(control, &[0, 0]);
        assert_eq!(driver.request(0, &[Buffer::Write(contract::DATA, 64)]), 64);
        contract::until(|| (driver.registers.read::<1>(ISR.into()) == 1).then_some(()));
        assert_eq!(driver.registers.read::<1>(ISR.into()), 0);
    }

    #[test]
    fn registers_are_reached_through_configuration_space() {
        let mut registers = driver().registers;
        let at = registers.pci.access_at;
        let mut access = |offset: u32, len: u32| {
            registers.pci.write_config(at + 8, &offset.to_le_bytes());
            registers.pci.write_config(at + 12, &len.to_le_bytes());
            let mut data = [0; 4];
            registers.pci.read_config(at + 16, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((access(0x14, 1), access(0x12, 2), access(0x20, 4)), (15, 1, 0x4000));
        for (offset, len) in [(0x8000, 4), (u32::MAX, 4), (0, 3), (0, u32::MAX)] {
            assert_eq!(access(offset, len), 0);
        }
        access(0x14, 1);
        registers.pci.write_config(at + 16, &[0]);
        assert_eq!(registers.status(), 0);
    }

    #[test]
    fn any_access_is_survived() {
        let mut driver = driver();
        let offsets = (0..0x60).chain((ISR..BAR_LEN).step_by(0x3f)).chain([BAR_LEN, u32::MAX]);
        for (offset, value) in offsets.flat_map(|offset| [0, 1, 0x80, 0xff].map(|value| (offset, value))) {
            for width in 0..=16 {
                let mut data = [value; 16];
                let pci = &mut driver.registers.pci;
                pci.read(offset.into(), &mut data[..width]);
                let _ = pci.write(offset.into(), &data[..width]);
                pci.read_config(offset as usize, &mut data[..width]);
                pci.write_config(offset as usize, &data[..width]);
            }
        }
        driver.registers.pci.interrupt.forget();
        driver.registers.enable_messages();
        driver.start(0);
        assert_eq!(driver.request(0, &[Buffer::Write(contract::DATA, 64)]), 64);
    }
}
