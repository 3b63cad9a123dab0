//! A network card (virtio 1.2, section 5.1) with a host tap behind it: two queues, no control queue.
//!
//! Offered beside the rings' own features: checksums and cutting TCP into packets left to the other side, both ways (CSUM,
//! HOST_TSO4 and 6, GUEST_CSUM, GUEST_TSO4 and 6), as the host's tap does that by itself; MRG_RXBUF, so that frames of
//! 64 KiB need no buffers of that size; MAC, and MTU, so that a guest behind a tap with another MTU than 1500 sends what
//! fits. Trains of UDP datagrams (HOST_USO, GUEST_USO4 and 6, virtio 1.2) are served to a driver that
//! agrees on them, but not offered to guests: only the dumper, in the driver's place, takes them.

pub mod header;
mod merge;
pub mod port;
mod sniff;
mod worker;

use std::net::Ipv4Addr;
use std::sync::Arc;

use netdump::wire::MacAddr;
use tracing::debug;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use vmm_sys_util::eventfd::EventFd;

use self::port::{Counts, Port, Seen};
pub use self::worker::Sending;
use self::worker::{Doorbells, Worker};
use super::{ActivateError, Activation, VirtioDevice};
use crate::sys::tap::Tap;

/// Index of the queue whose buffers take frames for the driver.
pub const RX: u16 = 0;
/// Index of the queue whose buffers hold frames of the driver.
pub const TX: u16 = 1;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// What is always offered.
const OFFERED: [u32; 8] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MRG_RXBUF,
];

/// Length of configuration space up to the MTU field.
const CONFIG_LEN: usize = 12;

/// The network card.
///
/// The tap outlives it: a device made anew for a guest that was reset takes the same tap, so that a bridge never
/// loses the port.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: MacAddr,
    mtu: Option<u16>,
    seen: Arc<Seen>,
    worker: Option<Worker>,
    sending: Sending,
    doorbells: Doorbells,
}

impl Net {
    /// A card with address `mac`. Its MTU is what the tap's is now.
    pub fn new(tap: Arc<Tap>, mac: MacAddr) -> Self {
        let mtu = tap.interface().ok().flatten().and_then(|interface| u16::try_from(interface.mtu).ok());
        Self {
            tap,
            mac,
            mtu,
            seen: Arc::default(),
            worker: None,
            sending: Sending::AtOnce,
            doorbells: Doorbells::default(),
        }
    }

    /// The same, which sends as `sending` says.
    pub fn sending(mut self, sending: Sending) -> Self {
        self.sending = sending;
        self
    }

    /// The tap behind it.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// The card's address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// The IPv4 address that the guest last sent from: source of a packet, or sender in ARP.
    pub fn last_ipv4(&self) -> Option<Ipv4Addr> {
        self.seen.ipv4()
    }

    /// What became of the frames so far.
    pub fn counts(&self) -> Counts {
        self.seen.counts()
    }

    /// Stops moving frames: when this returns the device neither reads nor writes guest memory, nor the tap. Only
    /// the driver can start it again, by a reset.
    pub fn stop(&mut self) {
        self.worker = None;
    }

    /// The device as a driver has set it up, with the caller in the worker's place. A worker that runs is stopped.
    pub fn port(&mut self, activation: Activation) -> Port {
        self.stop();
        let Activation { memory, queues, features, notifier } = activation;
        let mut queues = queues.into_iter();
        let (rx, tx) = (queues.next().unwrap_or_default(), queues.next().unwrap_or_default());
        Port::new(memory, rx, tx, Arc::clone(&self.tap), features, Arc::clone(&self.seen), notifier)
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let [m0, m1, m2, m3, m4, m5] = self.mac.0;
        let [mtu0, mtu1] = self.mtu.unwrap_or(0).to_le_bytes();
        // mac, status, max_virtqueue_pairs, mtu
        [m0, m1, m2, m3, m4, m5, 0, 0, 0, 0, mtu0, mtu1]
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { 1 << VIRTIO_NET_F_MTU } else { 0 };
        OFFERED.iter().fold(mtu, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.config();
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let port = self.port(activation);
        self.worker = Some(Worker::start(port, self.sending, &self.doorbells)?);
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        if let Some(worker) = &self.worker {
            worker.notify(queue);
        }
    }

    /// What is sent at once is sent by the vCPU that notifies.
    fn take_doorbell(&mut self, queue: u16, bell: &Arc<EventFd>) -> bool {
        let place = match queue {
            RX => &mut self.doorbells.room,
            TX if self.sending == Sending::ByWorker => &mut self.doorbells.sent,
            _ => return false,
        };
        *place = Some(Arc::clone(bell));
        true
    }

    fn reset(&mut self) {
        self.stop();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
        let Counts { sent, received, dropped, refused, malformed } = self.counts();
        debug!(tap = %self.tap.name(), sent, received, dropped, refused, malformed, "network card gone");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
    use virtio_bindings::virtio_mmio as reg;
    use virtio_queue::QueueT;
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::bus::BusDevice;
    use crate::bus::contract::any_access_is_survived;
    use crate::devices::virtio::driver::{Buffer, DriverRing};
    use crate::devices::virtio::mmio::{MMIO_LEN, MmioTransport};
    use crate::memory::GuestMemory;
    use crate::sys::tap::fake;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
    const RINGS: [u64; 2] = [0x1_0000, 0x2_0000];
    const DATA: u64 = 0x3_0000;
    const FRAME: [u8; 60] = [7; 60];

    /// A guest's driver and the host side of the tap.
    struct Guest {
        memory: GuestMemory,
        net: Arc<Mutex<Net>>,
        registers: MmioTransport,
        interrupt: EventFd,
        rings: [DriverRing; 2],
        host: UnixDatagram,
    }

    impl Guest {
        fn new() -> Self {
            let (tap, host) = fake::tap();
            Self::on(Arc::new(tap), host)
        }

        fn on(tap: Arc<Tap>, host: UnixDatagram) -> Self {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
            let net = Arc::new(Mutex::new(Net::new(tap, MAC)));
            let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
            let registers = MmioTransport::new(net.clone(), memory.clone(), interrupt.try_clone().unwrap());
            let rings = RINGS.map(|base| DriverRing::new(memory.clone(), GuestAddress(base), QUEUE_SIZE));
            let mut guest = Self { memory, net, registers, interrupt, rings, host };
            guest.start();
            guest
        }

        fn write(&mut self, register: u32, value: u32) {
            let _ = self.registers.write(register.into(), &value.to_le_bytes());
        }

        fn read(&mut self, register: u32) -> u32 {
            let mut data = [0; 4];
            self.registers.read(register.into(), &mut data);
            u32::from_le_bytes(data)
        }

        /// What a driver does from its first look at the device to DRIVER_OK.
        fn start(&mut self) {
            self.write(reg::VIRTIO_MMIO_STATUS, 0);
            self.write(reg::VIRTIO_MMIO_STATUS, 3);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1 << VIRTIO_NET_F_CSUM);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
            self.write(reg::VIRTIO_MMIO_STATUS, 3 | 8);
            for (queue, base) in (0..).zip(RINGS) {
                self.memory.write_slice(&[0; 0x2000], GuestAddress(base)).unwrap();
                let ring = DriverRing::new(self.memory.clone(), GuestAddress(base), QUEUE_SIZE);
                let place = ring.queue();
                self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
                self.write(reg::VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
                for (register, address) in [
                    (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, place.desc_table()),
                    (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, place.avail_ring()),
                    (reg::VIRTIO_MMIO_QUEUE_USED_LOW, place.used_ring()),
                ] {
                    self.write(register, address.try_into().unwrap());
                }
                self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
                self.rings[usize::try_from(queue).unwrap()] = ring;
            }
            self.write(reg::VIRTIO_MMIO_STATUS, 3 | 8 | 4);
            assert_eq!(self.read(reg::VIRTIO_MMIO_STATUS), 15);
        }

        fn publish(&mut self, queue: u16, head: u16, buffer: Buffer) {
            let ring = &mut self.rings[usize::from(queue)];
            ring.describe(head, &[buffer]);
            ring.publish(head);
            self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
        }

        fn send(&mut self, head: u16) {
            self.memory.write_slice(&[&header::PLAIN[..], &FRAME].concat(), GuestAddress(DATA)).unwrap();
            self.publish(TX, head, Buffer::Read(DATA, 72));
        }

        /// Waits for the device to use a buffer.
        fn used(&mut self, queue: u16) -> (u16, u32) {
            until(|| self.rings[usize::from(queue)].reclaim())
        }

        /// Waits for a frame to come out of the tap.
        fn assert_sent(&self) {
            let mut frame = [0; 100];
            assert_eq!(until(|| self.host.recv(&mut frame).ok()), 72);
            assert_eq!(frame[12..72], FRAME);
        }

        /// Sends a frame and receives one.
        fn assert_works(&mut self) {
            self.send(9);
            assert_eq!(self.used(TX), (9, 0));
            self.assert_sent();
            self.publish(RX, 5, Buffer::Write(DATA + 0x1000, 2000));
            self.host.send(&[0; 112]).unwrap();
            assert_eq!(self.used(RX), (5, 112));
            until(|| self.interrupt.read().ok());
            assert_eq!(self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        }
    }

    /// Tries for as long as a slow machine may need.
    fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(value) = attempt() {
                return value;
            }
            assert!(Instant::now() < deadline, "nothing happens");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn frames_pass_both_ways_while_the_guest_runs() {
        let mut guest = Guest::new();
        for _ in 0..3 {
            guest.assert_works();
        }
        assert_eq!(guest.net.lock().unwrap().counts(), Counts { sent: 3, received: 3, ..Counts::default() });
    }

    #[test]
    fn frames_have_left_when_the_notification_returns() {
        let mut guest = Guest::new();
        for head in 0..100 {
            guest.send(head);
            guest.memory.write_slice(&[0; 72], GuestAddress(DATA)).unwrap();
            let mut frame = [0; 100];
            assert_eq!(guest.host.recv(&mut frame).ok(), Some(72), "frame {head}");
            assert_eq!(frame[12..72], FRAME, "frame {head}");
        }
    }

    #[test]
    fn frames_wait_for_room_and_arrive_once_there_is_some() {
        let mut guest = Guest::new();
        for _ in 0..3 {
            guest.host.send(&[0; 112]).unwrap();
        }
        guest.send(0);
        guest.used(TX);
        assert_eq!(guest.rings[0].reclaim(), None);
        for head in 0..4 {
            guest.publish(RX, head, Buffer::Write(DATA + 0x1000, 2000));
        }
        assert_eq!([0; 3].map(|_| guest.used(RX).0), [0, 1, 2]);
    }

    #[test]
    fn a_stopped_device_leaves_memory_and_tap_alone() {
        let mut guest = Guest::new();
        guest.publish(RX, 0, Buffer::Write(DATA + 0x1000, 2000));
        guest.net.lock().unwrap().stop();
        guest.host.send(&[9; 112]).unwrap();
        guest.send(0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.rings.each_mut().map(DriverRing::reclaim), [None, None]);
        assert_eq!(guest.memory.read_obj::<u64>(GuestAddress(DATA + 0x100c)).unwrap(), 0);
        assert!(guest.host.recv(&mut [0; 1]).is_err());
    }

    #[test]
    fn a_reset_with_frames_under_way_starts_afresh() {
        let mut guest = Guest::new();
        for round in 0..20 {
            guest.publish(RX, 0, Buffer::Write(DATA + 0x1000, 2000));
            guest.send(round);
            guest.send(round + 1);
            guest.start();
        }
        while guest.host.recv(&mut [0; 1]).is_ok() {}
        guest.assert_works();
    }

    #[test]
    fn impossible_rings_ask_for_a_reset_which_heals() {
        for queue in [RX, TX] {
            let mut guest = Guest::new();
            let available = guest.rings[usize::from(queue)].queue().avail_ring();
            guest.memory.write_obj(0x8000u16.to_le(), GuestAddress(available + 2)).unwrap();
            guest.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
            until(|| (guest.read(reg::VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0).then_some(()));
            assert_eq!(guest.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), reg::VIRTIO_MMIO_INT_CONFIG);
            let _ = guest.interrupt.read();
            guest.start();
            guest.assert_works();
        }
    }

    #[test]
    fn a_new_device_serves_the_same_tap() {
        let mut guest = Guest::new();
        guest.assert_works();
        let Guest { net, registers, host, .. } = guest;
        let tap = Arc::clone(net.lock().unwrap().tap());
        drop((net, registers));
        Guest::on(tap, host).assert_works();
    }

    #[test]
    fn configuration_holds_the_address() {
        let mut guest = Guest::new();
        let mut mac = [0; 6];
        guest.registers.read(0x100, &mut mac);
        assert_eq!(MacAddr(mac), MAC);
        assert_eq!(guest.read(reg::VIRTIO_MMIO_DEVICE_ID), 1);
    }

    #[test]
    fn any_access_is_survived_while_running() {
        let mut guest = Guest::new();
        any_access_is_survived(&mut guest.registers, MMIO_LEN);
        guest.start();
        guest.assert_works();
    }
}
