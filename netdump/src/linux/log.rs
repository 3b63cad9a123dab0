//! The kernel's log in a stopped guest's memory: printk's ring buffer since 5.10 (`kernel/printk/printk_ringbuffer.h`),
//! and the simpler buffer before it (3.5 to 5.9, `struct printk_log`).
//!
//! Since 5.10 a record is a descriptor (its state, and where its text lies), an info (time, level, length of the text) and
//! a block of text, in three rings. Positions and numbers count up for ever; their low bits say where in the ring. Offsets
//! are VMCOREINFO's, little-endian. A guest may have written anything there: lengths and numbers are bounded, and a record
//! that contradicts itself is left out.

use std::fmt;

use serde::Serialize;

use super::{LinuxMemory, Vmcoreinfo};
use crate::vmcore::VirtualMemory;

/// Most records that are read, the newest: a log of the usual size has some thousand.
const MAX_RECORDS: u64 = 1 << 16;
/// Most bytes of text of all records together, and of one.
const MAX_TEXT: usize = 16 << 20;
const MAX_RECORD: usize = 1 << 16;
/// Greatest sizes of the rings, as powers of two (`LOG_BUF_LEN_MAX` is 2 GiB).
const MAX_SIZE_BITS: u32 = 31;
/// The two bits of a descriptor's state, and how they stand in its variable.
const STATE_SHIFT: u32 = 62;
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;
/// A position with this bit set is of a record without text.
const NO_DATA: u64 = 1;
/// What comes before a record's text in its block: the record's number.
const BLOCK_HEADER: u64 = 8;

/// What the kernel said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelLog {
    /// Its records, the oldest that is left first.
    pub records: Vec<LogRecord>,
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogRecord {
    /// When, in nanoseconds since the kernel started its clock.
    pub nanoseconds: u64,
    /// How urgent, from 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Who said it: 0 is the kernel, 1 a program that wrote to `/dev/kmsg`.
    pub facility: u8,
    /// What was said; more than one line perhaps.
    pub text: String,
}

impl LogRecord {
    /// The lines as the kernel prints them on its console.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let (seconds, micros) = (self.nanoseconds / 1_000_000_000, self.nanoseconds / 1000 % 1_000_000);
        self.text.split('\n').map(move |line| format!("[{seconds:>5}.{micros:06}] {line}"))
    }

    /// Whether the kernel itself said it.
    pub fn is_kernels(&self) -> bool {
        self.facility == 0
    }
}

impl fmt::Display for KernelLog {
    /// As `dmesg` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.records.iter().flat_map(LogRecord::lines).try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl KernelLog {
    /// Reads it; `None` when it is not where VMCOREINFO says, or of no form that is known.
    pub fn read(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<Self> {
        let records = match Ring::read(memory, info) {
            Some(ring) => ring.records(),
            None => old_records(memory, info)?,
        };
        Some(Self { records })
    }

    /// The last `count` lines.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for record in self.records.iter().rev() {
            let own: Vec<String> = record.lines().collect();
            lines.extend(own.into_iter().rev());
            if lines.len() >= count {
                break;
            }
        }
        lines.truncate(count);
        lines.reverse();
        lines
    }

    /// The message of the panic, if there was one: what follows "Kernel panic - not syncing" in the kernel's own words.
    pub fn panic_text(&self) -> Option<&str> {
        let said = self.records.iter().rev().filter(|record| record.is_kernels());
        said.flat_map(|record| record.text.lines()).find_map(|line| {
            let message = line.strip_prefix("Kernel panic - not syncing")?;
            Some(message.strip_prefix(':').unwrap_or(message).trim())
        })
    }
}

/// The rings of 5.10 and later.
struct Ring<'m, 'a> {
    memory: &'a LinuxMemory<'m>,
    layout: Layout,
    count_bits: u32,
    descriptors: u64,
    infos: u64,
    head: u64,
    tail: u64,
    size_bits: u32,
    data: u64,
}

/// Sizes and offsets of what the rings consist of.
struct Layout {
    descriptor_len: u64,
    state: u64,
    begin: u64,
    next: u64,
    info_len: u64,
    time: u64,
    text_len: u64,
}

impl Layout {
    fn read(info: &Vmcoreinfo) -> Option<Self> {
        let position = info.offset("prb_desc.text_blk_lpos")?;
        Some(Self {
            descriptor_len: info.size("prb_desc")?,
            // An atomic_long_t, which may have a place of its own in it.
            state: info
                .offset("prb_desc.state_var")?
                .checked_add(info.offset("atomic_long_t.counter").unwrap_or(0))?,
            begin: position.checked_add(info.offset("prb_data_blk_lpos.begin")?)?,
            next: position.checked_add(info.offset("prb_data_blk_lpos.next")?)?,
            info_len: info.size("printk_info")?,
            time: info.offset("printk_info.ts_nsec")?,
            text_len: info.offset("printk_info.text_len")?,
        })
    }
}

impl<'m, 'a> Ring<'m, 'a> {
    fn read(memory: &'a LinuxMemory<'m>, info: &Vmcoreinfo) -> Option<Self> {
        let layout = Layout::read(info)?;
        let ring = memory.read_u64(info.symbol("prb")?)?;
        let descriptors = ring.checked_add(info.offset("printk_ringbuffer.desc_ring")?)?;
        let texts = ring.checked_add(info.offset("printk_ringbuffer.text_data_ring")?)?;
        let word = |base: u64, field: &str| memory.read_u64(base.checked_add(info.offset(field)?)?);
        let half = |base: u64, field: &str| memory.read_u32(base.checked_add(info.offset(field)?)?);
        let bits = |bits: u32| (1..=MAX_SIZE_BITS).contains(&bits).then_some(bits);
        Some(Self {
            memory,
            count_bits: bits(half(descriptors, "prb_desc_ring.count_bits")?)?,
            descriptors: word(descriptors, "prb_desc_ring.descs")?,
            infos: word(descriptors, "prb_desc_ring.infos")?,
            head: word(descriptors, "prb_desc_ring.head_id")? & ID_MASK,
            tail: word(descriptors, "prb_desc_ring.tail_id")? & ID_MASK,
            size_bits: bits(half(texts, "prb_data_ring.size_bits")?)?,
            data: word(texts, "prb_data_ring.data")?,
            layout,
        })
    }

    fn records(&self) -> Vec<LogRecord> {
        let count = (self.head.wrapping_sub(self.tail) & ID_MASK).saturating_add(1);
        let count = count.min(1 << self.count_bits).min(MAX_RECORDS);
        let mut room = MAX_TEXT;
        let mut records = Vec::new();
        // From the newest on, so that a log that is too long loses what is old.
        for back in 0..count {
            let Some(record) = self.record(self.head.wrapping_sub(back) & ID_MASK) else { continue };
            let Some(left) = room.checked_sub(record.text.len()) else { break };
            room = left;
            records.push(record);
        }
        records.reverse();
        records
    }

    fn record(&self, id: u64) -> Option<LogRecord> {
        let (memory, layout) = (self.memory, &self.layout);
        let index = id & ((1 << self.count_bits) - 1);
        let element = |first: u64, len: u64| first.checked_add(index.checked_mul(len)?);
        let descriptor = element(self.descriptors, layout.descriptor_len)?;
        let info = element(self.infos, layout.info_len)?;
        let word = |base: u64, offset: u64| memory.read_u64(base.checked_add(offset)?);
        let state = word(descriptor, layout.state)?;
        if state & ID_MASK != id || !matches!(state >> STATE_SHIFT, COMMITTED | FINALIZED) {
            return None;
        }
        let (begin, next) = (word(descriptor, layout.begin)?, word(descriptor, layout.next)?);
        // Behind the text's length, with no offset in VMCOREINFO: the facility, then 5 bits of flags and 3 of level.
        let kind = memory.read_u32(info.checked_add(layout.text_len)?)?.to_le_bytes();
        let [low, high, facility, flags] = kind;
        let text = self.text(id, begin, next, u16::from_le_bytes([low, high]).into())?;
        Some(LogRecord { nanoseconds: word(info, layout.time)?, level: flags >> 5, facility, text })
    }

    /// The text in the block from `begin` to `next`.
    fn text(&self, id: u64, begin: u64, next: u64, len: u64) -> Option<String> {
        if begin & NO_DATA != 0 {
            // Nothing was said, or there was no room for it.
            return Some(String::new());
        }
        let size = 1_u64 << self.size_bits;
        let index = |position: u64| position & (size - 1);
        let wraps = |position: u64| position >> self.size_bits;
        // A block does not cross the end of the ring: one that would begins at its start again.
        let end = index(next.wrapping_sub(1)) + 1;
        let start = match wraps(next.wrapping_sub(1)).wrapping_sub(wraps(begin)) {
            0 => index(begin),
            1 => 0,
            _ => return None,
        };
        let block = end.checked_sub(start)?;
        let address = self.data.checked_add(start)?;
        if self.memory.read_u64(address)? != id {
            return None;
        }
        let len = usize::try_from(len.min(block.checked_sub(BLOCK_HEADER)?)).ok()?.min(MAX_RECORD);
        let mut bytes = vec![0; len];
        self.memory.read(address.checked_add(BLOCK_HEADER)?, &mut bytes)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The records of kernels before 5.10: headers with their text behind them, from the first on, around the end of the
/// buffer where a header has no length.
fn old_records(memory: &LinuxMemory<'_>, info: &Vmcoreinfo) -> Option<Vec<LogRecord>> {
    let buffer = memory.read_u64(info.symbol("log_buf")?)?;
    let size = memory.read_u32(info.symbol("log_buf_len")?)?;
    let mut at = memory.read_u32(info.symbol("log_first_idx")?)?;
    let next = memory.read_u32(info.symbol("log_next_idx")?)?;
    let header = info.size("printk_log").filter(|&len| (12..=64).contains(&len))?;
    let offsets =
        ["printk_log.ts_nsec", "printk_log.len", "printk_log.text_len"].map(|field| info.offset(field));
    let [time, len, text_len] = offsets;
    let (time, len, text_len) = (time?, len?, text_len?);
    let half = |record: u64, offset: u64| {
        let mut bytes = [0; 2];
        memory.read(record.checked_add(offset)?, &mut bytes)?;
        Some(u16::from_le_bytes(bytes))
    };
    let mut records = Vec::new();
    let mut room = MAX_TEXT;
    let mut wrapped = false;
    for _ in 0..MAX_RECORDS {
        if at == next || at >= size {
            break;
        }
        let record = buffer.checked_add(u64::from(at))?;
        let Some(own) = half(record, len) else { break };
        if own == 0 {
            if std::mem::replace(&mut wrapped, true) {
                break;
            }
            at = 0;
            continue;
        }
        let (Some(said), Some(nanoseconds)) =
            (half(record, text_len), memory.read_u64(record.checked_add(time)?))
        else {
            break;
        };
        let mut bytes = vec![0; usize::from(said.min(own))];
        let Some(left) = room.checked_sub(bytes.len()) else { break };
        room = left;
        // Behind the lengths of text and dictionary: facility, flags and level.
        let Some(kind) = half(record, text_len.checked_add(4)?) else { break };
        let [facility, flags] = kind.to_le_bytes();
        if memory.read(record.checked_add(header)?, &mut bytes).is_none() {
            break;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        records.push(LogRecord { nanoseconds, level: flags >> 5, facility, text });
        at = at.saturating_add(u32::from(own));
    }
    Some(records)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::fake::FakeGuest;
    use super::*;

    /// The layouts of 6.1 and 6.12.
    const OFFSETS: [(&str, u64); 20] = [
        ("OFFSET(printk_ringbuffer.desc_ring)", 0),
        ("OFFSET(printk_ringbuffer.text_data_ring)", 48),
        ("OFFSET(prb_desc_ring.count_bits)", 0),
        ("OFFSET(prb_desc_ring.descs)", 8),
        ("OFFSET(prb_desc_ring.infos)", 16),
        ("OFFSET(prb_desc_ring.head_id)", 24),
        ("OFFSET(prb_desc_ring.tail_id)", 32),
        ("SIZE(prb_desc)", 24),
        ("OFFSET(prb_desc.state_var)", 0),
        ("OFFSET(prb_desc.text_blk_lpos)", 8),
        ("OFFSET(prb_data_blk_lpos.begin)", 0),
        ("OFFSET(prb_data_blk_lpos.next)", 8),
        ("SIZE(printk_info)", 88),
        ("OFFSET(printk_info.ts_nsec)", 8),
        ("OFFSET(printk_info.text_len)", 16),
        ("OFFSET(prb_data_ring.size_bits)", 0),
        ("OFFSET(prb_data_ring.data)", 8),
        ("OFFSET(atomic_long_t.counter)", 0),
        ("SIZE(printk_ringbuffer)", 88),
        ("OFFSET(prb_data_ring.head_lpos)", 16),
    ];
    const COUNT_BITS: u32 = 3;
    const SIZE_BITS: u32 = 8;

    /// Writes records as the kernel does, into 8 descriptors and 256 bytes of text.
    pub(crate) struct FakeLog {
        ring: u64,
        descriptors: u64,
        infos: u64,
        data: u64,
        next_id: u64,
        position: u64,
    }

    impl FakeLog {
        pub(crate) fn new(guest: &mut FakeGuest) -> Self {
            guest.say_all(&OFFSETS);
            let ring = guest.reserve(88);
            let pointer = guest.reserve(8);
            guest.put_u64(pointer, ring);
            guest.say("SYMBOL(prb)", format!("{pointer:x}"));
            let (descriptors, infos) = (guest.reserve(24 << COUNT_BITS), guest.reserve(88 << COUNT_BITS));
            let data = guest.reserve(1 << SIZE_BITS);
            guest.put_u32(ring, COUNT_BITS);
            guest.put_u64(ring + 8, descriptors);
            guest.put_u64(ring + 16, infos);
            guest.put_u32(ring + 48, SIZE_BITS);
            guest.put_u64(ring + 56, data);
            // The kernel's first numbers are just below 2^32 and go on behind it.
            Self { ring, descriptors, infos, data, next_id: 0xffff_ffff, position: (1 << SIZE_BITS) * 7 }
        }

        pub(crate) fn say(&mut self, guest: &mut FakeGuest, seconds: u64, text: &str) -> u64 {
            let id = self.next_id;
            self.next_id += 1;
            let size = 1_u64 << SIZE_BITS;
            let len = (8 + text.len() as u64).next_multiple_of(8);
            let begin = self.position;
            let wraps = begin / size != (begin + len) / size;
            let (start, next) =
                if wraps { (0, (begin / size + 1) * size + len) } else { (begin % size, begin + len) };
            self.position = next;
            guest.put_u64(self.data + start, id);
            guest.put(self.data + start + 8, text.as_bytes());
            self.describe(guest, id, FINALIZED, (begin, next));
            let info = self.infos + 88 * (id % 8);
            guest.put_u64(info + 8, seconds * 1_000_000_000);
            guest.put(info + 16, &u16::try_from(text.len()).unwrap().to_le_bytes());
            guest.put(info + 18, &[0, 6 << 5 | 2]);
            guest.put_u64(self.ring + 24, id);
            guest.put_u64(self.ring + 32, id.saturating_sub(7).max(0xffff_ffff));
            id
        }

        fn describe(&self, guest: &mut FakeGuest, id: u64, state: u64, (begin, next): (u64, u64)) {
            let descriptor = self.descriptors + 24 * (id % 8);
            guest.put_u64(descriptor, state << STATE_SHIFT | id);
            guest.put_u64(descriptor + 8, begin);
            guest.put_u64(descriptor + 16, next);
        }
    }

    fn read(guest: &FakeGuest) -> KernelLog {
        KernelLog::read(&guest.memory(), &guest.vmcoreinfo()).unwrap()
    }

    fn texts(guest: &FakeGuest) -> Vec<String> {
        read(guest).records.into_iter().map(|record| record.text).collect()
    }

    #[test]
    fn records_are_read_around_the_ends_of_both_rings() {
        let mut guest = FakeGuest::new();
        let mut log = FakeLog::new(&mut guest);
        for number in 0..30_u64 {
            let more = &"xxxxxxxxx"[..usize::try_from(number % 9).unwrap()];
            log.say(&mut guest, number, &format!("message {number} {more}"));
            // As much as has not been overwritten: 8 descriptors, and what fits into 256 bytes.
            let found = read(&guest).records;
            let oldest = number + 1 - found.len() as u64;
            assert!(found.len() as u64 >= (number + 1).min(6), "{number}: {found:?}");
            for (record, expected) in found.iter().zip(oldest..) {
                assert!(record.text.starts_with(&format!("message {expected} ")), "{record:?}");
                assert_eq!((record.nanoseconds, record.level), (expected * 1_000_000_000, 6));
            }
        }
    }

    #[test]
    fn lines_look_as_on_the_console() {
        let mut guest = FakeGuest::new();
        let mut log = FakeLog::new(&mut guest);
        log.say(&mut guest, 3, "one\ntwo");
        log.say(&mut guest, 12_345_678, "Kernel panic - not syncing: sysrq triggered crash");
        let found = read(&guest);
        assert_eq!(
            found.to_string(),
            "[    3.000000] one\n[    3.000000] two\n[12345678.000000] Kernel panic - not syncing: sysrq triggered crash\n"
        );
        assert_eq!(found.last_lines(2)[0], "[    3.000000] two");
        assert_eq!(found.panic_text(), Some("sysrq triggered crash"));
    }

    #[test]
    fn program_cannot_forge_the_panic_message() {
        let mut guest = FakeGuest::new();
        let mut log = FakeLog::new(&mut guest);
        let id = log.say(&mut guest, 3, "Kernel panic - not syncing: forged");
        guest.put(log.infos + 88 * (id % 8) + 18, &[1]);
        assert_eq!(read(&guest).panic_text(), None);
    }

    #[test]
    fn records_that_contradict_themselves_are_left_out() {
        let mut guest = FakeGuest::new();
        let mut log = FakeLog::new(&mut guest);
        let ids = ["reused", "reserved", "no text", "too far", "backwards", "another's block", "good"]
            .map(|text| log.say(&mut guest, 1, text));
        log.describe(&mut guest, ids[0] + 8, FINALIZED, (7 << 8, (7 << 8) + 16));
        log.describe(&mut guest, ids[1], 0, (7 << 8, (7 << 8) + 16));
        log.describe(&mut guest, ids[2], FINALIZED, (3, 3));
        log.describe(&mut guest, ids[3], FINALIZED, (7 << 8, 9 << 8 | 64));
        log.describe(&mut guest, ids[4], FINALIZED, (7 << 8 | 64, 7 << 8 | 32));
        log.describe(&mut guest, ids[5], FINALIZED, (7 << 8, (7 << 8) + 16));
        assert_eq!(texts(&guest), ["", "good"]);
    }

    #[test]
    fn lengths_that_lie_are_cut() {
        let mut guest = FakeGuest::new();
        let mut log = FakeLog::new(&mut guest);
        let id = log.say(&mut guest, 1, "eight by");
        guest.put(log.infos + 88 * (id % 8) + 16, &[0xff, 0xff]);
        assert_eq!(texts(&guest), ["eight by"]);
        // A ring of 2^31 descriptors, all the same one: no more are read than have their own number.
        guest.put_u32(log.ring, 31);
        guest.put_u64(log.ring + 32, 0);
        assert!(texts(&guest).len() <= 8);
        for bits in [0, 32, u32::MAX] {
            guest.put_u32(log.ring, bits);
            assert!(KernelLog::read(&guest.memory(), &guest.vmcoreinfo()).is_none());
        }
    }

    #[test]
    fn old_log_is_read_around_its_end() {
        let mut guest = FakeGuest::new();
        guest.say_all(&[
            ("SIZE(printk_log)", 16),
            ("OFFSET(printk_log.ts_nsec)", 0),
            ("OFFSET(printk_log.len)", 8),
            ("OFFSET(printk_log.text_len)", 10),
        ]);
        let buffer = guest.reserve(128);
        let mut record = |at: u64, text: &str| {
            guest.put_u64(buffer + at, 5_000_000_000);
            guest.put(buffer + at + 8, &[32, 0, u8::try_from(text.len()).unwrap(), 0, 0, 0, 0, 4 << 5]);
            guest.put(buffer + at + 16, text.as_bytes());
        };
        record(64, "first");
        record(0, "second");
        // At 96 a header without a length: the next lies at the start.
        for (name, value) in
            [("log_buf", buffer), ("log_buf_len", 128), ("log_first_idx", 64), ("log_next_idx", 32)]
        {
            let address = guest.place(&value.to_le_bytes());
            guest.say(&format!("SYMBOL({name})"), format!("{address:x}"));
        }
        let found = read(&guest).records;
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].text.as_str(), found[1].text.as_str(), found[1].level), ("first", "second", 4));
        guest.put(buffer + 8, &[0, 0]);
        assert_eq!(texts(&guest), ["first"], "a start without a length ends it");
    }
}
