//! A PCI bus (PCI Local Bus 3.0, PCI Firmware 3.0): one host bridge and up to 31 functions on bus 0, found by the ports
//! 0xcf8 and 0xcfc or in the memory-mapped configuration space (ECAM), with memory BARs in one window.
//!
//! There are no INTx lines: functions interrupt by MSI-X ([`msix`]).

pub mod config;
pub mod msix;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use thiserror::Error;

use self::config::{ConfigSpace, Identity};
use super::reset::ResetControl;
use crate::bus::{AfterWrite, BusDevice, SharedDevice};
use crate::x86_64::layout;

/// The configuration ports, the reset register among them.
pub const PORTS_LEN: u64 = 8;

/// Devices on a bus.
const SLOTS: usize = 32;
/// The address port: an access goes to configuration space.
const ENABLE: u32 = 1 << 31;
/// Where the data port begins, and the reset register, counted from the address port.
const DATA: u64 = 4;
const RESET: u64 = (layout::RESET_CONTROL - layout::PCI_PORTS) as u64;
/// The host bridge: Intel's number for a virtual one (cloud-hypervisor and crosvm use it too); no driver minds it.
const BRIDGE: Identity =
    Identity { vendor: 0x8086, device: 0x0d57, subsystem: (0, 0), class: 0x06_0000, revision: 0 };

/// A function: its configuration space, and what is behind its BAR.
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The same, to write.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Fills `data` from configuration space.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Takes a write to configuration space.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// The bus has chosen where its BAR is at first.
    fn placed(&mut self) {}

    /// Bytes behind its BAR, a power of two of at least 16; 0 without a BAR.
    fn bar_len(&self) -> u32 {
        0
    }

    /// Fills `data`, little-endian, for a read at `offset` of its BAR.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Takes `data`, little-endian, written at `offset` of its BAR.
    fn write(&mut self, _offset: u64, _data: &[u8]) -> AfterWrite {
        AfterWrite::Run
    }
}

/// Why a function found no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PciError {
    /// The bus is full.
    #[error("{name}: the PCI bus has room for 31 devices")]
    Full {
        /// The function.
        name: &'static str,
    },
}

type Function = Arc<Mutex<dyn PciFunction>>;

/// The bus. It is filled while the machine is built, and shared then.
pub struct PciBus {
    functions: Vec<Function>,
    /// Where the BARs of the functions are now.
    bars: RwLock<Vec<Option<(u32, u32)>>>,
    free: u32,
}

impl PciBus {
    /// A bus with a host bridge.
    pub fn new() -> Self {
        let bridge = Bridge(ConfigSpace::new(&BRIDGE));
        let bars = RwLock::new(vec![None]);
        Self { functions: vec![Arc::new(Mutex::new(bridge))], bars, free: layout::PCI_WINDOW }
    }

    /// Puts a function into the next slot, and its BAR into the window.
    pub fn insert(&mut self, name: &'static str, function: Function) -> Result<(), PciError> {
        if self.functions.len() >= SLOTS {
            return Err(PciError::Full { name });
        }
        let bar = {
            let mut function = lock(&function);
            let len = function.bar_len();
            if len > 0 {
                let address = self.free.next_multiple_of(len);
                self.free = address + len;
                function.config_mut().set_bar(address, len);
                function.placed();
            }
            function.config().bar()
        };
        self.functions.push(function);
        self.bars.get_mut().unwrap_or_else(PoisonError::into_inner).push(bar);
        Ok(())
    }

    fn read_config(&self, slot: usize, offset: usize, data: &mut [u8]) {
        match self.functions.get(slot) {
            Some(function) => lock(function).read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, slot: usize, offset: usize, data: &[u8]) {
        let Some(function) = self.functions.get(slot) else { return };
        let bar = {
            let mut function = lock(function);
            function.write_config(offset, data);
            function.config().bar()
        };
        let mut bars = self.bars.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = bars.get_mut(slot) {
            *known = bar;
        }
    }

    /// The function whose BAR holds a guest-physical address, the offset into it, and how many bytes are left there.
    fn at(&self, address: u64) -> Option<(&Function, u64, u64)> {
        let bars = self.bars.read().unwrap_or_else(PoisonError::into_inner);
        let (slot, base, len) = bars.iter().enumerate().find_map(|(slot, bar)| {
            let (base, len) = (*bar)?;
            let (base, len) = (u64::from(base), u64::from(len));
            (base..base + len).contains(&address).then_some((slot, base, len))
        })?;
        let offset = address - base;
        Some((self.functions.get(slot)?, offset, len - offset))
    }
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus").field("bars", &self.bars).finish_non_exhaustive()
    }
}

fn lock(function: &Mutex<dyn PciFunction>) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Bridge(ConfigSpace);

impl PciFunction for Bridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

/// The window of all BARs, [`layout::PCI_WINDOW`] and behind. Two vCPUs wait for each other only at the same function.
#[derive(Debug)]
pub struct Window(pub Arc<PciBus>);

impl SharedDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, offset, left)) = self.0.at(u64::from(layout::PCI_WINDOW) + offset) {
            let len = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            lock(function).read(offset, &mut data[..len]);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> AfterWrite {
        let Some((function, offset, left)) = self.0.at(u64::from(layout::PCI_WINDOW) + offset) else {
            return AfterWrite::Run;
        };
        let len = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        lock(function).write(offset, &data[..len])
    }
}

/// Configuration space in memory: 4 KiB a function, of which the first 256 bytes are there.
#[derive(Debug)]
pub struct Ecam(pub Arc<PciBus>);

impl Ecam {
    /// Slot and offset that an address means; functions other than 0 are absent.
    fn split(offset: u64) -> Option<(usize, usize)> {
        let (function, register) = (offset >> 12, offset & 0xfff);
        let slot = function.is_multiple_of(8).then_some(function / 8)?;
        Some((usize::try_from(slot).ok()?, usize::try_from(register).ok()?))
    }
}

impl SharedDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::split(offset) {
            Some((slot, register)) => self.0.read_config(slot, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> AfterWrite {
        if let Some((slot, register)) = Self::split(offset) {
            self.0.write_config(slot, register, data);
        }
        AfterWrite::Run
    }
}

/// The ports 0xcf8 to 0xcff: the address is taken in 32 bits only, so that a byte at 0xcf9 is the reset register's.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    reset: ResetControl,
    address: u32,
}

impl ConfigPorts {
    /// The ports of `bus`, with `reset` between them.
    pub fn new(bus: Arc<PciBus>, reset: ResetControl) -> Self {
        Self { bus, reset, address: 0 }
    }

    /// Slot and register that the address port names, and whether there can be something.
    fn target(&self) -> Option<(usize, usize)> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        let is_here = self.address & ENABLE != 0 && bus == 0 && function & 7 == 0;
        is_here.then_some((usize::from(function >> 3), usize::from(register & 0xfc)))
    }

    /// The place in the data port's 32 bits of an access of `len` bytes at `offset` of the ports.
    fn lane(offset: u64, len: usize) -> Option<usize> {
        let lane = usize::try_from(offset.checked_sub(DATA)?).ok()?;
        (lane.checked_add(len)? <= 4).then_some(lane)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET, 1) => self.reset.read(0, data),
            (_, len) => match (Self::lane(offset, len), self.target()) {
                (Some(lane), Some((slot, register))) => self.bus.read_config(slot, register + lane, data),
                _ => data.fill(0xff),
            },
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]),
            (RESET, [_]) => return self.reset.write(0, data),
            _ => {
                if let (Some(lane), Some((slot, register))) = (Self::lane(offset, data.len()), self.target())
                {
                    self.bus.write_config(slot, register + lane, data);
                }
            }
        }
        AfterWrite::Run
    }
}

impl fmt::Debug for ConfigPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigPorts").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
