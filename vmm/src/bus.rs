//! Routing of port and MMIO accesses to devices: one [`Bus`] for each address space.
//!
//! A bus is filled while the machine is built and immutable once shared, so finding a device takes no lock. Each
//! device sits behind its own mutex: two vCPUs wait for each other only when they touch the same device.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// What the vCPU does once its write has been handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum AfterWrite {
    /// Goes on running the guest.
    Run,
    /// Parks: the device has reported something (a panic, a reset) that the machine has to decide about first.
    Park,
}

/// A device that the guest reaches through port or memory accesses.
///
/// Offsets count from the device's base and `data` never reaches beyond its length; its size is whatever the guest
/// chose. No access may make a device panic.
pub trait BusDevice: Send {
    /// Fills `data`, little-endian, for a read at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`, little-endian, written at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite;
}

/// What a bus holds: a device behind a lock of its own, or a range that routes further by itself.
pub trait SharedDevice: Send + Sync {
    /// As [`BusDevice::read`], by any vCPU at any time.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// As [`BusDevice::write`].
    fn write(&self, offset: u64, data: &[u8]) -> AfterWrite;
}

impl<D: BusDevice> SharedDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> AfterWrite {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
    }
}

/// Why a device found no place on a bus.
#[derive(Debug, Error)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("{name}: {len:#x} bytes at {base:#x} are no address range")]
    NoRange {
        /// The new device.
        name: &'static str,
        /// Its first address.
        base: u64,
        /// How many addresses it asked for.
        len: u64,
    },
    /// The range touches that of another device.
    #[error("{name} at {:#x}-{:#x} overlaps {other} at {:#x}-{:#x}", at.start(), at.end(), taken.start(), taken.end())]
    Overlap {
        /// The new device.
        name: &'static str,
        /// Where it was to go.
        at: RangeInclusive<u64>,
        /// The device that is there.
        other: &'static str,
        /// Its addresses.
        taken: RangeInclusive<u64>,
    },
}

struct Slot {
    name: &'static str,
    range: RangeInclusive<u64>,
    device: Arc<dyn SharedDevice>,
}

/// One address space: port I/O or MMIO.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address, without overlap.
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `device` the `len` addresses from `base` on. The name is for errors and logs.
    pub fn insert(
        &mut self,
        name: &'static str,
        base: u64,
        len: u64,
        device: Arc<dyn SharedDevice>,
    ) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|n| base.checked_add(n));
        let range = base..=last.ok_or(BusError::NoRange { name, base, len })?;
        let place = self.slots.partition_point(|slot| *slot.range.end() < base);
        if let Some(next) = self.slots.get(place).filter(|slot| slot.range.start() <= range.end()) {
            return Err(BusError::Overlap { name, at: range, other: next.name, taken: next.range.clone() });
        }
        self.slots.insert(place, Slot { name, range, device });
        Ok(())
    }

    /// Whether a device is at `address`.
    pub fn claims(&self, address: u64) -> bool {
        self.route(address, 1).is_some()
    }

    /// Reads at `address`. What no device claims reads as ones, as on a bus that nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset, len)) = self.route(address, data.len()) {
            slot.device.read(offset, &mut data[..len]);
        }
    }

    /// Writes at `address`. What no device claims is lost.
    pub fn write(&self, address: u64, data: &[u8]) -> AfterWrite {
        match self.route(address, data.len()) {
            Some((slot, offset, len)) => slot.device.write(offset, &data[..len]),
            None => AfterWrite::Run,
        }
    }

    /// The device that holds the first byte, the offset into it, and how many of `len` bytes lie in it.
    ///
    /// The first byte alone decides, as it does on hardware: a 32-bit write to the PCI address port 0xcf8 must not
    /// reach the reset port at 0xcf9.
    fn route(&self, address: u64, len: usize) -> Option<(&Slot, u64, usize)> {
        let place = self.slots.partition_point(|slot| *slot.range.end() < address);
        let slot = self.slots.get(place).filter(|slot| slot.range.contains(&address))?;
        let left = (slot.range.end() - address).saturating_add(1);
        Some((slot, address - slot.range.start(), len.min(usize::try_from(left).unwrap_or(usize::MAX))))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.slots.iter().map(|slot| (&slot.range, slot.name))).finish()
    }
}

/// What every device promises, tried on one.
#[cfg(test)]
pub(crate) mod contract {
    use super::BusDevice;

    /// Reads and writes at every offset of `len` and at far ones, in every width, with values that set few and many
    /// bits: none of it may panic or hang.
    pub(crate) fn any_access_is_survived(device: &mut dyn BusDevice, len: u64) {
        let far = [len, u64::from(u32::MAX), u64::MAX - 15, u64::MAX];
        for value in [0, 1, 0x0f, 0x80, 0xff] {
            for offset in (0..len).chain(far) {
                for width in 0..=16 {
                    let mut data = [value; 16];
                    device.read(offset, &mut data[..width]);
                    let _ = device.write(offset, &data[..width]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers writes, reads as its offset.
    #[derive(Default)]
    struct Probe(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
            self.0.push((offset, data.to_vec()));
            AfterWrite::Park
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        Arc::default()
    }

    #[test]
    fn accesses_reach_the_device_at_their_offset() {
        let (low, high) = (probe(), probe());
        let mut bus = Bus::new();
        bus.insert("high", 0x20, 0x10, high.clone()).unwrap();
        bus.insert("low", 0x10, 0x10, low.clone()).unwrap();
        assert_eq!(bus.write(0x1f, &[1]), AfterWrite::Park);
        assert_eq!(bus.write(0x20, &[2, 3]), AfterWrite::Park);
        assert_eq!([0xf, 0x10, 0x2f, 0x30].map(|address| bus.claims(address)), [false, true, true, false]);
        assert_eq!(low.lock().unwrap().0, [(0xf, vec![1])]);
        assert_eq!(high.lock().unwrap().0, [(0, vec![2, 3])]);
        let mut data = [0; 2];
        bus.read(0x13, &mut data);
        assert_eq!(data, [3, 3]);
    }

    #[test]
    fn unclaimed_reads_give_ones_and_writes_are_lost() {
        let mut bus = Bus::new();
        let device = probe();
        bus.insert("probe", 0x10, 1, device.clone()).unwrap();
        for address in [0, 0xf, 0x11, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            assert_eq!(bus.write(address, &data), AfterWrite::Run);
        }
        assert!(device.lock().unwrap().0.is_empty());
    }

    #[test]
    fn an_access_is_cut_at_the_end_of_its_device() {
        let mut bus = Bus::new();
        let device = probe();
        bus.insert("probe", 0x10, 2, device.clone()).unwrap();
        bus.insert("next", 0x12, 2, probe()).unwrap();
        let mut data = [0; 4];
        bus.read(0x11, &mut data);
        assert_eq!(data, [1, 0xff, 0xff, 0xff]);
        let _ = bus.write(0x11, &[5; 4]);
        assert_eq!(device.lock().unwrap().0, [(1, vec![5])]);
    }

    #[test]
    fn overlap_is_refused_and_names_both() {
        let mut bus = Bus::new();
        bus.insert("uart", 0x3f8, 8, probe()).unwrap();
        for (base, len) in [(0x3f8, 8), (0x3f7, 2), (0x3ff, 1), (0x3fa, 1), (0, 0x1000)] {
            let error = bus.insert("other", base, len, probe()).unwrap_err().to_string();
            assert!(error.contains("overlaps uart at 0x3f8-0x3ff"), "{error}");
        }
        bus.insert("below", 0x3f7, 1, probe()).unwrap();
        bus.insert("above", 0x400, 1, probe()).unwrap();
    }

    #[test]
    fn ranges_end_with_the_address_space() {
        let mut bus = Bus::new();
        bus.insert("last", u64::MAX, 1, probe()).unwrap();
        assert_eq!(bus.write(u64::MAX, &[1, 2]), AfterWrite::Park);
        assert!(matches!(bus.insert("empty", 5, 0, probe()), Err(BusError::NoRange { .. })));
        assert!(matches!(bus.insert("beyond", u64::MAX, 2, probe()), Err(BusError::NoRange { .. })));
    }
}
