//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2): 256 bytes of registers, then configuration space.
//!
//! Registers are 32 bits wide, little-endian and accessed whole; any other access to them reads as zero and changes
//! nothing. Configuration space takes every width.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

use super::transport::{Half, QueueSetup, Transport};
use super::{Interrupt, Notifier, VirtioDevice};
use crate::bus::{AfterWrite, BusDevice};
use crate::memory::GuestMemory;

/// Bytes of address space that the transport takes.
pub const MMIO_LEN: u64 = 0x200;

/// "virt"
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// The specification leaves vendors to choose; no driver acts on it.
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");
/// Where a driver writes the number of a queue that it has put buffers into.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// The registers of one device.
#[derive(Debug)]
pub struct MmioTransport {
    transport: Transport,
    interrupt: Arc<MmioInterrupt>,
    offered_half: Option<Half>,
    accepted_half: Option<Half>,
    queue: u32,
}

impl MmioTransport {
    /// Registers for `device`, whose driver's addresses mean `memory` and which is interrupted by writes to
    /// `interrupt`, an edge each.
    pub fn new(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory, interrupt: EventFd) -> Self {
        let interrupt = Arc::new(MmioInterrupt { status: AtomicU32::new(0), event: interrupt });
        let notifier = Arc::new(Notifier::new(interrupt.clone()));
        Self {
            transport: Transport::new(device, memory, notifier),
            interrupt,
            offered_half: Some(Half::Low),
            accepted_half: Some(Half::Low),
            queue: 0,
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.transport.device_type(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                self.offered_half.map_or(0, |half| half.read(self.transport.offered()))
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.transport.queue_max(self.queue).map_or(0, u32::from),
            reg::VIRTIO_MMIO_QUEUE_READY => u32::from(self.transport.queue_ready(self.queue)),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status.load(Ordering::Acquire),
            reg::VIRTIO_MMIO_STATUS => self.transport.status(),
            // No shared memory regions: their length and base read as all ones (4.2.2.1).
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // Configuration never changes, so its generation does not either.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.offered_half = half(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.accepted_half = half(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES => {
                if let Some(half) = self.accepted_half {
                    self.transport.accept(half, value);
                }
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue = value,
            reg::VIRTIO_MMIO_QUEUE_NUM => self.set_up(|queue| queue.size = value),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => {
                self.set_up(|queue| Half::Low.write(&mut queue.descriptors, value))
            }
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                self.set_up(|queue| Half::High.write(&mut queue.descriptors, value))
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                self.set_up(|queue| Half::Low.write(&mut queue.available, value))
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                self.set_up(|queue| Half::High.write(&mut queue.available, value))
            }
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => self.set_up(|queue| Half::Low.write(&mut queue.used, value)),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_up(|queue| Half::High.write(&mut queue.used, value)),
            reg::VIRTIO_MMIO_QUEUE_READY => self.transport.set_queue_ready(self.queue, value & 1 == 1),
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.transport.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
            }
            reg::VIRTIO_MMIO_STATUS => {
                self.transport.set_status(value);
                if value == 0 {
                    // The device is quiet by now, so no interrupt of before can be raised any more.
                    self.interrupt.status.store(0, Ordering::Release);
                    (self.queue, self.offered_half, self.accepted_half) =
                        (0, Some(Half::Low), Some(Half::Low));
                }
            }
            _ => {}
        }
    }

    fn set_up(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if let Some(setup) = self.transport.queue_setup(self.queue) {
            change(setup);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (register(offset), <&mut [u8; 4]>::try_from(&mut *data)) {
            (Some(register), Ok(data)) => *data = self.read_register(register).to_le_bytes(),
            _ if offset >= CONFIG => self.transport.read_config(offset - CONFIG, data),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        if let (Some(register), Ok(data)) = (register(offset), data.try_into()) {
            self.write_register(register, u32::from_le_bytes(data));
        }
        AfterWrite::Run
    }
}

/// The register at `offset`; `None` when that is inside one or behind them all.
fn register(offset: u64) -> Option<u32> {
    (offset < CONFIG && offset.is_multiple_of(4)).then(|| u32::try_from(offset).ok()).flatten()
}

/// Which half of the feature bits a selector means; there are no more than 64.
fn half(selector: u32) -> Option<Half> {
    match selector {
        0 => Some(Half::Low),
        1 => Some(Half::High),
        _ => None,
    }
}

#[derive(Debug)]
struct MmioInterrupt {
    status: AtomicU32,
    event: EventFd,
}

impl MmioInterrupt {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 1 edges have gathered: the next reader sees one anyway.
        let _ = self.event.write(1);
    }
}

impl Interrupt for MmioInterrupt {
    fn used(&self, _queue: u16) {
        self.raise(reg::VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        self.raise(reg::VIRTIO_MMIO_INT_CONFIG);
    }
}

/// The registers as a driver of the contract tests uses them.
#[cfg(test)]
pub(crate) mod bench {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::devices::virtio::contract;

    /// A transport and its interrupt line.
    pub(crate) struct Registers {
        mmio: MmioTransport,
        line: EventFd,
    }

    impl Registers {
        fn read(&mut self, register: u32) -> u32 {
            let mut data = [0; 4];
            self.mmio.read(register.into(), &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&mut self, register: u32, value: u32) {
            let _ = self.mmio.write(register.into(), &value.to_le_bytes());
        }
    }

    impl contract::Registers for Registers {
        fn plug(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory) -> Self {
            let line = EventFd::new(EFD_NONBLOCK).unwrap();
            Self { mmio: MmioTransport::new(device, memory, line.try_clone().unwrap()), line }
        }

        fn set_status(&mut self, status: u32) {
            self.write(reg::VIRTIO_MMIO_STATUS, status);
        }

        fn status(&mut self) -> u32 {
            self.read(reg::VIRTIO_MMIO_STATUS)
        }

        fn offered(&mut self) -> u64 {
            let mut offered = 0;
            for (selector, half) in [(0, Half::Low), (1, Half::High)] {
                self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, selector);
                half.write(&mut offered, self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES));
            }
            offered
        }

        fn accept(&mut self, features: u64) {
            for (selector, half) in [(0, Half::Low), (1, Half::High)] {
                self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
                self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half.read(features));
            }
        }

        fn place(&mut self, queue: u16, size: u16, [descriptors, available, used]: [u64; 3]) -> bool {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
            self.write(reg::VIRTIO_MMIO_QUEUE_NUM, size.into());
            for (register, address) in [
                (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
                (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
                (reg::VIRTIO_MMIO_QUEUE_USED_LOW, used),
            ] {
                self.write(register, Half::Low.read(address));
                self.write(register + 4, Half::High.read(address));
            }
            self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
            self.read(reg::VIRTIO_MMIO_QUEUE_READY) == 1
        }

        fn notify(&mut self, queue: u16) {
            self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
        }

        fn read_config(&mut self, offset: u64, data: &mut [u8]) {
            self.mmio.read(CONFIG + offset, data);
        }

        fn interrupted(&mut self) -> bool {
            let raised = self.line.read().is_ok();
            let status = self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
            self.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, status);
            raised && status & reg::VIRTIO_MMIO_INT_VRING != 0
        }
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_config as status;
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::bus::contract::any_access_is_survived;
    use crate::devices::virtio::{ActivateError, Activation};

    /// Remembers what happens to it.
    #[derive(Debug, Default)]
    struct Probe {
        activation: Option<Activation>,
        resets: u32,
        notified: Vec<u16>,
    }

    impl VirtioDevice for Probe {
        fn device_type(&self) -> u32 {
            42
        }

        fn features(&self) -> u64 {
            1 << 5 | 1 << 40
        }

        fn queue_sizes(&self) -> &'static [u16] {
            &[16, 8]
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            for (to, from) in data.iter_mut().zip([1, 2, 3].iter().skip(usize::try_from(offset).unwrap())) {
                *to = *from;
            }
        }

        fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
            self.activation = Some(activation);
            Ok(())
        }

        fn notify(&mut self, queue: u16) {
            self.notified.push(queue);
        }

        fn reset(&mut self) {
            self.activation = None;
            self.resets += 1;
        }
    }

    struct Bench {
        device: Arc<Mutex<Probe>>,
        registers: MmioTransport,
        interrupt: EventFd,
    }

    impl Bench {
        fn new() -> Self {
            let device = Arc::<Mutex<Probe>>::default();
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
            let registers = MmioTransport::new(device.clone(), memory, interrupt.try_clone().unwrap());
            Self { device, registers, interrupt }
        }

        fn read(&mut self, register: u32) -> u32 {
            let mut data = [0xaa; 4];
            self.registers.read(register.into(), &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&mut self, register: u32, value: u32) {
            assert_eq!(self.registers.write(register.into(), &value.to_le_bytes()), AfterWrite::Run);
        }

        fn accept(&mut self, features: u64) {
            for (selector, half) in [(0, Half::Low), (1, Half::High)] {
                self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
                self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half.read(features));
            }
        }

        /// Sets bits of the status one after the other, as a driver does; what it reads then.
        fn status(&mut self, bits: &[u32]) -> u32 {
            for bit in bits {
                let now = self.read(reg::VIRTIO_MMIO_STATUS);
                self.write(reg::VIRTIO_MMIO_STATUS, now | bit);
            }
            self.read(reg::VIRTIO_MMIO_STATUS)
        }

        fn negotiate(&mut self) {
            self.status(&[status::VIRTIO_CONFIG_S_ACKNOWLEDGE, status::VIRTIO_CONFIG_S_DRIVER]);
            self.accept(1 << status::VIRTIO_F_VERSION_1 | 1 << 5);
            assert_eq!(self.status(&[status::VIRTIO_CONFIG_S_FEATURES_OK]), 11);
        }

        fn place(&mut self, queue: u32, size: u32, [descriptors, available, used]: [u64; 3]) -> u32 {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
            self.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
            for (register, address) in [
                (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
                (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
                (reg::VIRTIO_MMIO_QUEUE_USED_LOW, used),
            ] {
                self.write(register, Half::Low.read(address));
                self.write(register + 4, Half::High.read(address));
            }
            self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
            self.read(reg::VIRTIO_MMIO_QUEUE_READY)
        }
    }

    #[test]
    fn the_device_introduces_itself() {
        let mut bench = Bench::new();
        assert_eq!(bench.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_VERSION), 2);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_DEVICE_ID), 42);
        let mut offered = [0; 3];
        for (selector, half) in (0..).zip(&mut offered) {
            bench.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, selector);
            *half = bench.read(reg::VIRTIO_MMIO_DEVICE_FEATURES);
        }
        assert_eq!(offered, [1 << 5 | 1 << 28 | 1 << 29, 1 | 1 << 8, 0]);
        let queues: Vec<u32> = (0..3)
            .map(|queue| {
                bench.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
                bench.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX)
            })
            .collect();
        assert_eq!(queues, [16, 8, 0]);
    }

    #[test]
    fn configuration_space_is_read_in_any_width_and_ends_in_zeros() {
        let mut bench = Bench::new();
        let mut data = [0xaa; 8];
        bench.registers.read(0x101, &mut data);
        assert_eq!(data, [2, 3, 0, 0, 0, 0, 0, 0]);
        let mut byte = [0xaa];
        bench.registers.read(0x102, &mut byte);
        assert_eq!(byte, [3]);
    }

    #[test]
    fn odd_accesses_to_registers_read_zero_and_change_nothing() {
        let mut bench = Bench::new();
        for (offset, width) in [(0, 2), (1, 4), (2, 4), (0, 8), (0x70, 1)] {
            let mut data = vec![0xaa; width];
            bench.registers.read(offset, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {offset}");
        }
        let _ = bench.registers.write(0x70, &[1]);
        let _ = bench.registers.write(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_STATUS), 0);
    }

    #[test]
    fn a_driver_gets_the_queues_and_features_that_it_set_up() {
        let mut bench = Bench::new();
        bench.negotiate();
        assert_eq!(bench.place(0, 16, [0x1000, 0x2000, 0x3000]), 1);
        assert_eq!(bench.place(1, 4, [0x4000, 0x5000, 0x6000]), 1);
        bench.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        assert_eq!(bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]), 15);
        for queue in [0, 1, 2, 0x10000] {
            bench.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        }
        let device = bench.device.lock().unwrap();
        assert_eq!(device.notified, [0, 1], "only while running, only queues that are there");
        let activation = device.activation.as_ref().unwrap();
        assert_eq!(activation.features, 1 << 32 | 1 << 5);
        let states: Vec<_> = activation.queues.iter().map(virtio_queue::Queue::state).collect();
        assert_eq!((states[0].size, states[0].desc_table, states[0].ready), (16, 0x1000, true));
        assert_eq!((states[1].size, states[1].avail_ring, states[1].used_ring), (4, 0x5000, 0x6000));
    }

    #[test]
    fn features_that_were_not_offered_are_not_agreed_on() {
        let asking = [status::VIRTIO_CONFIG_S_FEATURES_OK, status::VIRTIO_CONFIG_S_DRIVER_OK];
        for accepted in [0, 1 << 5, 1 << 32 | 1 << 6] {
            for set in [&asking[..], &asking[1..]] {
                let mut bench = Bench::new();
                bench.status(&[status::VIRTIO_CONFIG_S_ACKNOWLEDGE, status::VIRTIO_CONFIG_S_DRIVER]);
                bench.accept(accepted);
                assert_eq!(bench.status(set), 3, "{accepted:#x}");
                assert!(bench.device.lock().unwrap().activation.is_none());
            }
        }
    }

    #[test]
    fn features_are_settled_once_agreed_on() {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.accept(u64::MAX);
        assert_eq!(bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]), 15);
        assert_eq!(bench.device.lock().unwrap().activation.as_ref().unwrap().features, 1 << 32 | 1 << 5);
    }

    #[test]
    fn a_driver_that_agrees_on_features_need_not_ask_whether_they_are_ok() {
        let mut bench = Bench::new();
        bench.status(&[status::VIRTIO_CONFIG_S_ACKNOWLEDGE, status::VIRTIO_CONFIG_S_DRIVER]);
        bench.accept(1 << status::VIRTIO_F_VERSION_1 | 1 << 5);
        assert_eq!(bench.place(0, 16, [0x1000, 0x2000, 0x3000]), 1);
        assert_eq!(bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]), 7);
        bench.accept(0);
        bench.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        let device = bench.device.lock().unwrap();
        let activation = device.activation.as_ref().unwrap();
        assert_eq!((activation.features, activation.queues[0].state().ready), (1 << 32 | 1 << 5, true));
        assert_eq!(device.notified, [0]);
    }

    #[test]
    fn a_driver_that_failed_or_skips_steps_starts_nothing() {
        let mut bench = Bench::new();
        bench.accept(1 << 32);
        bench.write(reg::VIRTIO_MMIO_STATUS, status::VIRTIO_CONFIG_S_FEATURES_OK);
        bench.write(reg::VIRTIO_MMIO_STATUS, status::VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_STATUS), 0);
        bench.negotiate();
        bench.status(&[status::VIRTIO_CONFIG_S_FAILED, status::VIRTIO_CONFIG_S_DRIVER_OK]);
        assert!(bench.device.lock().unwrap().activation.is_none());
    }

    #[test]
    fn impossible_queues_stay_out_of_use_and_ask_for_a_reset() {
        let good = [0x1000, 0x2000, 0x3000];
        for (size, addresses) in [
            (0, good),
            (3, good),
            (32, good),
            (0x1_0010, good),
            (16, [0x1008, 0x2000, 0x3000]),
            (16, [0x1000, 0x2001, 0x3000]),
            (16, [0x1000, 0x2000, 0x3002]),
            (16, [0xff10, 0x2000, 0x3000]),
            (16, [0x1000, 0xfff0, 0x3000]),
            (16, [0x1000, 0x2000, 0xff80]),
            (16, [u64::MAX - 15, 0x2000, 0x3000]),
            (16, [0x1000, 0, 0x3000]),
        ] {
            let mut bench = Bench::new();
            bench.negotiate();
            assert_eq!(bench.place(0, size, addresses), 0, "{size} entries at {addresses:x?}");
            let needs_reset = status::VIRTIO_CONFIG_S_NEEDS_RESET;
            assert_eq!(bench.read(reg::VIRTIO_MMIO_STATUS) & needs_reset, needs_reset);
            assert_eq!(bench.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), reg::VIRTIO_MMIO_INT_CONFIG);
            bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]);
            bench.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            let device = bench.device.lock().unwrap();
            assert!(!device.activation.as_ref().unwrap().queues[0].state().ready);
            assert!(device.notified.is_empty());
        }
    }

    #[test]
    fn a_running_device_keeps_its_queues() {
        let mut bench = Bench::new();
        bench.negotiate();
        assert_eq!(bench.place(0, 16, [0x1000, 0x2000, 0x3000]), 1);
        bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]);
        bench.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
        assert_eq!(bench.place(1, 8, [0x4000, 0x5000, 0x6000]), 0);
    }

    #[test]
    fn interrupts_are_raised_told_and_acknowledged() {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.place(0, 16, [0x1000, 0x2000, 0x3000]);
        bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]);
        let notifier = bench.device.lock().unwrap().activation.as_ref().unwrap().notifier.clone();
        notifier.used(0);
        assert_eq!(bench.interrupt.read().unwrap(), 1);
        notifier.give_up();
        assert_eq!(bench.interrupt.read().unwrap(), 1);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
        bench.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_STATUS), 15 | status::VIRTIO_CONFIG_S_NEEDS_RESET);
    }

    #[test]
    fn a_reset_forgets_everything() {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.place(1, 8, [0x1000, 0x2000, 0x3000]);
        bench.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]);
        bench.device.lock().unwrap().activation.as_ref().unwrap().notifier.give_up();
        bench.write(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(bench.device.lock().unwrap().resets, 1);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_STATUS), 0);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        bench.write(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
        bench.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(bench.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "addresses of before are gone");
    }

    #[test]
    fn any_access_is_survived_whatever_the_driver_has_done() {
        any_access_is_survived(&mut Bench::new().registers, MMIO_LEN);
        let mut running = Bench::new();
        running.negotiate();
        running.place(0, 16, [0x1000, 0x2000, 0x3000]);
        running.status(&[status::VIRTIO_CONFIG_S_DRIVER_OK]);
        any_access_is_survived(&mut running.registers, MMIO_LEN);
    }
}
