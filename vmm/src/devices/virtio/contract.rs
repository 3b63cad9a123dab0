//! What every virtio device promises behind every transport, tried on all of them; and a driver for tests, which reaches
//! a device through the registers of any transport.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::blk::{Access, Blk, Disk, DiskSpec};
use super::driver::{Buffer, DriverRing};
use super::net::Net;
use super::rng::Rng;
use crate::memory::GuestMemory;
use crate::sys::tap::fake;

/// Guest memory of the tests; the rings are its first 64 KiB, 16 KiB each.
pub(crate) const RAM: usize = 0x8_0000;
/// Where buffers may be.
pub(crate) const DATA: u64 = 0x2_0000;
/// Entries of each ring.
const SIZE: u16 = 16;

/// A transport as its driver sees it.
pub(crate) trait Registers {
    /// The device behind registers of this kind.
    fn plug(device: Arc<Mutex<dyn VirtioDevice>>, memory: GuestMemory) -> Self;
    fn set_status(&mut self, status: u32);
    fn status(&mut self) -> u32;
    fn offered(&mut self) -> u64;
    fn accept(&mut self, features: u64);
    /// Sets a queue up; whether it came into use.
    fn place(&mut self, queue: u16, size: u16, areas: [u64; 3]) -> bool;
    fn notify(&mut self, queue: u16);
    fn read_config(&mut self, offset: u64, data: &mut [u8]);
    /// Whether there was an interrupt for a used buffer.
    fn interrupted(&mut self) -> bool;
}

/// A driver of a device with up to four queues.
pub(crate) struct Driver<R> {
    pub(crate) memory: GuestMemory,
    pub(crate) registers: R,
    pub(crate) device: Arc<Mutex<dyn VirtioDevice>>,
    pub(crate) rings: Vec<DriverRing>,
}

impl<R: Registers> Driver<R> {
    /// Finds the device and starts it with all features that it offers.
    pub(crate) fn new(device: Arc<Mutex<dyn VirtioDevice>>) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let registers = R::plug(device.clone(), memory.clone());
        let mut driver = Self { memory, registers, device, rings: Vec::new() };
        let offered = driver.registers.offered();
        driver.start(offered);
        driver
    }

    /// What a driver does from reset to DRIVER_OK. Without EVENT_IDX: an interrupt comes with each used buffer.
    pub(crate) fn start(&mut self, features: u64) {
        let registers = &mut self.registers;
        registers.set_status(0);
        assert_eq!(registers.status(), 0);
        registers.set_status(3);
        registers.accept(features & !(1 << 29) | 1 << VIRTIO_F_VERSION_1);
        registers.set_status(3 | 8);
        assert_eq!(registers.status(), 11);
        let queues = self.device.lock().unwrap().queue_sizes().len();
        self.rings = (0..queues as u64)
            .map(|queue| DriverRing::new(self.memory.clone(), GuestAddress(0x4000 * (queue + 1)), SIZE))
            .collect();
        for (index, ring) in (0..).zip(&self.rings) {
            let queue = ring.queue();
            self.memory.write_slice(&[0; 0x1000], GuestAddress(queue.desc_table())).unwrap();
            let areas = [queue.desc_table(), queue.avail_ring(), queue.used_ring()];
            assert!(self.registers.place(index, SIZE, areas));
        }
        self.registers.set_status(15);
        assert_eq!(self.registers.status(), 15);
    }

    /// Gives a chain to the device.
    pub(crate) fn publish(&mut self, queue: u16, head: u16, chain: &[Buffer]) {
        let ring = &mut self.rings[usize::from(queue)];
        ring.describe(head, chain);
        ring.publish(head);
        self.registers.notify(queue);
    }

    /// Waits for the device to use a chain.
    pub(crate) fn used(&mut self, queue: u16) -> (u16, u32) {
        until(|| self.rings[usize::from(queue)].reclaim())
    }

    /// Gives a chain to the device and waits until it is used: how many bytes it wrote.
    pub(crate) fn request(&mut self, queue: u16, chain: &[Buffer]) -> u32 {
        self.publish(queue, 0, chain);
        let (head, len) = self.used(queue);
        assert_eq!(head, 0);
        len
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Tries for as long as a slow machine may need.
pub(crate) fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    tried(Duration::from_secs(20), &mut attempt).expect("nothing happens")
}

fn tried<T>(patience: Duration, attempt: &mut dyn FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let value = attempt();
        if value.is_some() || Instant::now() > deadline {
            return value;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A device and what it needs on the host.
struct Subject {
    device: Arc<Mutex<dyn VirtioDevice>>,
    /// A chain that the device does what it is for with: its queue, its buffers, and bytes that it writes.
    chain: (u16, Vec<Buffer>, u32),
    _host: (Option<UnixDatagram>, Option<tempfile::NamedTempFile>),
}

/// A device's name, and what makes it.
type Entry = (&'static str, fn() -> Subject);

/// Every device of this crate. One more is one more line.
const ALL: [Entry; 4] =
    [("net", net), ("blk", || blk(Access::Full)), ("blk,ro", || blk(Access::ReadOnly)), ("rng", rng)];

fn net() -> Subject {
    let (tap, host) = fake::tap();
    let device = Net::new(Arc::new(tap), crate::nic::DEFAULT_MAC);
    let chain = (super::net::TX, vec![Buffer::Read(DATA, 72)], 0);
    Subject { device: Arc::new(Mutex::new(device)), chain, _host: (Some(host), None) }
}

fn blk(access: Access) -> Subject {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let disk = Disk::open(&DiskSpec { path: file.path().into(), access }).unwrap();
    let chain =
        vec![Buffer::Read(DATA, 16), Buffer::Write(DATA + 0x1000, 512), Buffer::Write(DATA + 0x3000, 1)];
    let device = Arc::new(Mutex::new(Blk::new(Arc::new(disk), 0)));
    Subject { device, chain: (0, chain, 513), _host: (None, Some(file)) }
}

fn rng() -> Subject {
    let chain = (0, vec![Buffer::Write(DATA, 100), Buffer::Write(DATA + 0x1000, 28)], 128);
    Subject { device: Arc::new(Mutex::new(Rng::new())), chain, _host: (None, None) }
}

/// The device does what it is for, and says so.
fn assert_works<R: Registers>(driver: &mut Driver<R>, subject: &Subject, what: &str) {
    let (queue, chain, written) = &subject.chain;
    driver.write(DATA, &[0; 72]);
    while driver.registers.interrupted() {}
    assert_eq!(driver.request(*queue, chain), *written, "{what}");
    until(|| driver.registers.interrupted().then_some(()));
}

/// States that a driver should not leave a queue in, as the guest `net-wedge` does.
const WEDGES: [&str; 10] =
    ["loop", "wild", "ahead", "indirect", "length", "index", "direction", "overlap", "many", "unusable"];

fn wedge<R: Registers>(driver: &mut Driver<R>, queue: u16, kind: &str) {
    let (memory, ring) = (driver.memory.clone(), &mut driver.rings[usize::from(queue)]);
    let base = ring.queue().desc_table();
    let describe = |index: u16, address: u64, len: u32, flags: u32, next: u16| {
        let descriptor = Descriptor::new(address, len, u16::try_from(flags).unwrap(), next);
        memory.write_obj(descriptor, GuestAddress(base + 16 * u64::from(index))).unwrap();
    };
    const NEXT: u32 = VRING_DESC_F_NEXT;
    const WRITE: u32 = VRING_DESC_F_WRITE;
    const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
    for index in 0..SIZE {
        let (even, flags) = (index % 2 == 0, if index % 4 < 2 { WRITE } else { 0 });
        match kind {
            "loop" => describe(index, DATA, 64, flags | NEXT, if even { index } else { index ^ 1 }),
            "wild" => describe(index, if even { RAM as u64 - 32 } else { u64::MAX - 15 }, 4096, flags, 0),
            "indirect" => match index % 4 {
                0 => describe(index, base, 16 * u32::from(SIZE), INDIRECT, 0),
                1 => describe(index, base, 17, INDIRECT, 0),
                2 => describe(index, RAM as u64, 4096, INDIRECT, 0),
                _ => describe(index, base, 0xffff_fff0, INDIRECT | NEXT, 0),
            },
            "length" => describe(index, DATA, [0, 1, 15, u32::MAX][usize::from(index / 4)], flags, 0),
            "index" => describe(index, DATA, 64, flags | NEXT, if even { SIZE } else { u16::MAX }),
            "direction" => describe(index, DATA, 64, if even { WRITE | NEXT } else { 0 }, index ^ 1),
            "overlap" => describe(index, base, 0x200, flags, 0),
            _ => describe(index, DATA, 64, flags, 0),
        }
        ring.publish(if kind == "index" && index % 4 == 3 { u16::MAX } else { index });
    }
    match kind {
        "ahead" => memory.write_obj(0x8000u16, GuestAddress(ring.queue().avail_ring() + 2)).unwrap(),
        "many" => memory.write_slice(&[0xff; 0x400], GuestAddress(ring.queue().avail_ring())).unwrap(),
        "unusable" => memory.write_slice(&[0xff; 0x100], GuestAddress(base)).unwrap(),
        _ => {}
    }
    driver.registers.notify(queue);
    // Until it has been looked at: all used, or the device gave up. Not all can be seen from here.
    let mut left = SIZE;
    tried(Duration::from_millis(50), &mut || {
        while driver.rings[usize::from(queue)].reclaim().is_some() {
            left = left.saturating_sub(1);
        }
        let needs_reset = driver.registers.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        (left == 0 || needs_reset).then_some(())
    });
}

fn hostile_queues_are_survived_and_a_reset_heals<R: Registers>() {
    for (name, subject) in ALL {
        let subject = subject();
        let mut driver = Driver::<R>::new(subject.device.clone());
        let queues = u16::try_from(driver.rings.len()).unwrap();
        for (kind, queue) in WEDGES.into_iter().flat_map(|kind| (0..queues).map(move |queue| (kind, queue))) {
            wedge(&mut driver, queue, kind);
            let offered = driver.registers.offered();
            driver.start(offered);
            assert_works(&mut driver, &subject, &format!("{name} after {kind} in queue {queue}"));
        }
    }
}

fn a_stopped_device_leaves_guest_memory_alone<R: Registers>() {
    for (name, subject) in ALL {
        let subject = subject();
        let mut driver = Driver::<R>::new(subject.device.clone());
        assert_works(&mut driver, &subject, name);
        let stopping = Instant::now();
        driver.device.lock().unwrap().reset();
        assert!(stopping.elapsed() < Duration::from_secs(3), "{name} is stopped at once");
        let before = driver.read(0, RAM);
        let (queue, chain, _) = &subject.chain;
        driver.rings[usize::from(*queue)].describe(0, chain);
        driver.rings[usize::from(*queue)].publish(0);
        let published = driver.read(0, RAM);
        assert!(before != published);
        driver.registers.notify(*queue);
        std::thread::sleep(Duration::from_millis(20));
        assert!(driver.read(0, RAM) == published, "{name}");
    }
}

fn only_what_was_offered_and_set_up_is_used<R: Registers>() {
    for (name, subject) in ALL {
        let mut driver = Driver::<R>::new(subject().device);
        let offered = driver.registers.offered();
        assert_ne!(offered & 1 << VIRTIO_F_VERSION_1, 0, "{name}");
        driver.registers.set_status(0);
        driver.registers.set_status(3);
        driver.registers.accept(u64::MAX);
        driver.registers.set_status(15);
        assert_eq!(driver.registers.status() & 12, 0, "{name} agrees on everything");
        // No queue is set up: there is nothing to do, and nothing to fail.
        driver.registers.set_status(0);
        driver.registers.set_status(3);
        driver.registers.accept(1 << VIRTIO_F_VERSION_1);
        driver.registers.set_status(15);
        (0..8).for_each(|queue| driver.registers.notify(queue));
        assert_eq!(driver.registers.status(), 15, "{name}");
        driver.start(offered);
    }
}

fn configuration_is_read_in_any_width_and_ends_in_zeros<R: Registers>() {
    for (name, subject) in ALL {
        let mut driver = Driver::<R>::new(subject().device);
        let mut whole = [0xaa; 256];
        for (offset, byte) in (0..).zip(&mut whole) {
            driver.registers.read_config(offset, std::slice::from_mut(byte));
        }
        for width in [2, 4, 8] {
            for offset in (0..256 - width).step_by(width) {
                let mut data = vec![0xaa; width];
                driver.registers.read_config(offset as u64, &mut data);
                assert_eq!(data, whole[offset..offset + width], "{name}: {width} bytes at {offset}");
            }
        }
        assert_eq!(whole[64..], [0; 192], "{name}");
    }
}

/// The tests of the contract for one transport.
macro_rules! tests_of {
    ($transport:ident, $registers:ty) => {
        mod $transport {
            #[test]
            fn hostile_queues_are_survived_and_a_reset_heals() {
                super::hostile_queues_are_survived_and_a_reset_heals::<$registers>();
            }

            #[test]
            fn a_stopped_device_leaves_guest_memory_alone() {
                super::a_stopped_device_leaves_guest_memory_alone::<$registers>();
            }

            #[test]
            fn only_what_was_offered_and_set_up_is_used() {
                super::only_what_was_offered_and_set_up_is_used::<$registers>();
            }

            #[test]
            fn configuration_is_read_in_any_width_and_ends_in_zeros() {
                super::configuration_is_read_in_any_width_and_ends_in_zeros::<$registers>();
            }
        }
    };
}

tests_of!(mmio, crate::devices::virtio::mmio::bench::Registers);
tests_of!(pci, crate::devices::virtio::pci::bench::Registers);
