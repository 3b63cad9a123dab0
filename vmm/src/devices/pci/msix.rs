//! MSI-X (PCI Local Bus 3.0, section 6.8.2): a table of messages that a function interrupts by, in its BAR. All fields
//! are little-endian.
//!
//! ```text
//!  0 u64 message address    8 u32 message data    12 u32 control: bit 0 masked
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::ConfigSpace;

/// The capability's number.
const CAPABILITY: u8 = 0x11;
/// Bits of the message control word's upper byte.
const ENABLE: u8 = 1 << 7;
const MASK_ALL: u8 = 1 << 6;
const ENTRY_LEN: usize = 16;
const MASKED: u32 = 1;

/// One interrupt of the host's making.
pub trait MsiLine: Send + Sync + fmt::Debug {
    /// From here on it sends this message.
    fn route(&self, address: u64, data: u32);

    /// Interrupts.
    fn fire(&self);
}

/// The table, shared by the function's registers and whoever interrupts.
#[derive(Debug, Clone)]
pub struct Msix(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    line: Box<dyn MsiLine>,
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
    /// What the line was told last.
    routed: Option<(u64, u32)>,
}

impl Msix {
    /// A table with an entry for each line, all masked.
    pub fn new(lines: Vec<Box<dyn MsiLine>>) -> Self {
        let entry = |line| Entry { line, address: 0, data: 0, control: MASKED, pending: false, routed: None };
        let entries = lines.into_iter().map(entry).collect();
        Self(Arc::new(Mutex::new(Table { enabled: false, masked: false, entries })))
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.table().entries.len()
    }

    /// Whether the table has no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the capability to a function with the table and its pending bits at these offsets of BAR 0, multiples of 8;
    /// where it came to lie.
    pub fn describe(&self, config: &mut ConfigSpace, table: u32, pending: u32) -> usize {
        let last = u16::try_from(self.len().saturating_sub(1)).expect("a few entries");
        let body = [&last.to_le_bytes()[..], &table.to_le_bytes(), &pending.to_le_bytes()].concat();
        let at = config.add_capability(CAPABILITY, &body);
        config.allow(at + 3, &[ENABLE | MASK_ALL]);
        at
    }

    /// Takes over the control word of the capability at `at`, after a write to configuration space.
    pub fn configure(&self, config: &ConfigSpace, at: usize) {
        let [_, _, _, control] = config.field(at).to_le_bytes();
        let mut table = self.table();
        (table.enabled, table.masked) = (control & ENABLE != 0, control & MASK_ALL != 0);
        table.settle();
    }

    /// Whether the function interrupts by messages at all.
    pub fn is_enabled(&self) -> bool {
        self.table().enabled
    }

    /// Interrupts by an entry, or notes that as long as it is masked. Entries that are not there are nobody's.
    pub fn fire(&self, index: u16) {
        let mut table = self.table();
        if !table.enabled {
            return;
        }
        if let Some(entry) = table.entries.get_mut(usize::from(index)) {
            entry.pending = true;
        }
        table.settle();
    }

    /// Fills `data`, 4 or 8 bytes aligned to that, from the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let table = self.table();
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact_mut(4)) {
            if let Some(entry) = table.entries.get(at / ENTRY_LEN) {
                word.copy_from_slice(&entry.word(at % ENTRY_LEN).to_le_bytes());
            }
        }
    }

    /// Takes a write of 4 or 8 bytes, aligned to that.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut table = self.table();
        for (at, word) in (offset..).step_by(4).zip(data.as_chunks().0) {
            if let Some(entry) = table.entries.get_mut(at / ENTRY_LEN) {
                entry.set_word(at % ENTRY_LEN, u32::from_le_bytes(*word));
            }
        }
        table.settle();
    }

    /// Fills `data` with the pending bits, a bit an entry.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let table = self.table();
        for (at, byte) in data.iter_mut().enumerate() {
            let first = offset.saturating_add(at).saturating_mul(8);
            let of_byte = table.entries.iter().skip(first).take(8);
            *byte = of_byte.rev().fold(0, |bits, entry| bits << 1 | u8::from(entry.pending));
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Sends what is pending and not masked.
    fn settle(&mut self) {
        if !self.enabled || self.masked {
            return;
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.control & MASKED == 0) {
            // Told when it is used, not when it is written: a driver writes a message in three parts.
            let message = (entry.address, entry.data);
            if entry.routed != Some(message) {
                entry.line.route(entry.address, entry.data);
                entry.routed = Some(message);
            }
            if std::mem::take(&mut entry.pending) {
                entry.line.fire();
            }
        }
    }
}

impl Entry {
    fn word(&self, at: usize) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        match at {
            0 => u32::from_le_bytes([a, b, c, d]),
            4 => u32::from_le_bytes([e, f, g, h]),
            8 => self.data,
            _ => self.control,
        }
    }

    fn set_word(&mut self, at: usize, value: u32) {
        match at {
            0 => self.address = self.address >> 32 << 32 | u64::from(value),
            4 => self.address = self.address << 32 >> 32 | u64::from(value) << 32,
            8 => self.data = value,
            _ => self.control = value & MASKED,
        }
    }
}

/// Lines that tell a test what they did.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;

    /// What a line sent: address and data of each message.
    pub(crate) type Sent = Arc<Mutex<Vec<(u64, u32)>>>;

    #[derive(Debug, Default)]
    struct Line {
        message: Mutex<Option<(u64, u32)>>,
        sent: Sent,
    }

    impl MsiLine for Line {
        fn route(&self, address: u64, data: u32) {
            *self.message.lock().unwrap() = Some((address, data));
        }

        fn fire(&self) {
            self.sent.lock().unwrap().push(self.message.lock().unwrap().expect("routed before it fires"));
        }
    }

    /// So many lines, and what they send.
    pub(crate) fn lines(count: usize) -> (Vec<Box<dyn MsiLine>>, Sent) {
        let sent = Sent::default();
        let line = |_| Box::new(Line { sent: sent.clone(), ..Line::default() }) as Box<dyn MsiLine>;
        ((0..count).map(line).collect(), sent)
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Identity;
    use super::*;

    struct Bench {
        msix: Msix,
        config: ConfigSpace,
        at: usize,
        sent: fake::Sent,
    }

    impl Bench {
        fn new() -> Self {
            let (lines, sent) = fake::lines(3);
            let msix = Msix::new(lines);
            let identity = Identity { vendor: 1, device: 2, subsystem: (0, 0), class: 0, revision: 0 };
            let mut config = ConfigSpace::new(&identity);
            let at = msix.describe(&mut config, 0x4000, 0x5000);
            Self { msix, config, at, sent }
        }

        fn control(&mut self, bits: u8) {
            self.config.write(self.at + 3, &[bits]);
            self.msix.configure(&self.config, self.at);
        }

        fn entry(&self, index: usize, address: u64, data: u32, control: u32) {
            self.msix.write_table(16 * index, &address.to_le_bytes());
            self.msix.write_table(16 * index + 8, &data.to_le_bytes());
            self.msix.write_table(16 * index + 12, &control.to_le_bytes());
        }

        fn sent(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.sent.lock().unwrap())
        }

        fn pending(&self) -> u8 {
            let mut byte = [0xaa];
            self.msix.read_pending(0, &mut byte);
            byte[0]
        }
    }

    #[test]
    fn the_capability_tells_where_the_table_is() {
        let bench = Bench::new();
        let fields = [0, 4, 8].map(|at| bench.config.field(bench.at + at));
        assert_eq!(fields, [0x0002_0011, 0x4000, 0x5000]);
    }

    #[test]
    fn entries_send_their_message() {
        let mut bench = Bench::new();
        bench.control(ENABLE);
        bench.entry(1, 0xfee0_1000, 0x4321, 0);
        bench.msix.fire(1);
        bench.msix.fire(1);
        assert_eq!(bench.sent(), [(0xfee0_1000, 0x4321); 2]);
        bench.entry(1, 0x1_fee0_2000, 0x4322, 0);
        bench.msix.fire(1);
        assert_eq!(bench.sent(), [(0x1_fee0_2000, 0x4322)]);
        let mut entry = [0; 8];
        bench.msix.read_table(16, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 0x1_fee0_2000);
    }

    #[test]
    fn what_is_masked_waits_and_what_is_off_is_lost() {
        let mut bench = Bench::new();
        bench.entry(0, 0xfee0_0000, 7, 0);
        bench.msix.fire(0);
        assert_eq!((bench.sent(), bench.pending()), (vec![], 0));
        bench.control(ENABLE | MASK_ALL);
        bench.msix.fire(0);
        assert_eq!((bench.sent(), bench.pending()), (vec![], 1));
        bench.control(ENABLE);
        assert_eq!((bench.sent(), bench.pending()), (vec![(0xfee0_0000, 7)], 0));
        bench.entry(2, 0xfee0_0000, 9, 1);
        bench.msix.fire(2);
        bench.msix.fire(2);
        assert_eq!((bench.sent(), bench.pending()), (vec![], 4));
        bench.entry(2, 0xfee0_0000, 9, 0);
        assert_eq!((bench.sent(), bench.pending()), (vec![(0xfee0_0000, 9)], 0));
    }

    #[test]
    fn entries_that_are_not_there_are_nobodys() {
        let mut bench = Bench::new();
        bench.control(ENABLE);
        bench.entry(3, 1, 2, 0);
        bench.entry(usize::MAX / 32, 1, 2, 0);
        bench.msix.fire(3);
        bench.msix.fire(u16::MAX);
        let mut data = [0xaa; 8];
        bench.msix.read_table(48, &mut data);
        assert_eq!((data, bench.sent(), bench.pending()), ([0; 8], vec![], 0));
        bench.msix.read_pending(usize::MAX, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
