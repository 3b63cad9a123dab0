//! The newest records of the kernel log of a kernel that may be running: where it goes on writing, and the message of
//! its panic.
//!
//! The layout is that of the ring buffer of `kernel/printk/printk_ringbuffer.h` since 5.18, which 6.12 has as well;
//! without VMCOREINFO, which an early panic has not got, nothing tells it. A kernel with another one has no log here.

/// Reads at an address of the kernel.
pub(super) type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> Option<()>;

/// `struct printk_ringbuffer`, as far as it is read, and its fields.
const RING_LEN: usize = 72;
const COUNT_BITS: usize = 0;
const DESCRIPTORS: usize = 8;
const INFOS: usize = 16;
const HEAD_ID: usize = 24;
const TAIL_ID: usize = 32;
const SIZE_BITS: usize = 48;
const DATA: usize = 56;
const HEAD_POSITION: usize = 64;
/// Sizes of `struct prb_desc` and `struct printk_info`.
const DESCRIPTOR_LEN: u64 = 24;
const INFO_LEN: u64 = 88;
const INFO_SIZE: usize = 88;
/// Field `text_len` and `facility` of the latter.
const TEXT_LEN: usize = 16;
const FACILITY: usize = 18;
/// A descriptor's state is in the highest two bits; committed and finalized records have text.
const STATE_SHIFT: u32 = 62;
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
const READABLE: [u64; 2] = [1, 2];
/// Bounds of the two sizes: the kernel's own are 17 to 25 bits of text, and 5 less of records.
const MAX_BITS: u32 = 30;
/// Most records that are looked at, from the newest on: a panic prints its message, then some forty lines.
const MOST: u64 = 512;
/// Bytes of a record's text that are looked at. The message has less than 1024.
const MAX_TEXT: usize = 1100;
/// What panic() prints before its message.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";

/// The log.
pub(super) struct RecentLog<'a> {
    read: Read<'a>,
    descriptors: u64,
    infos: u64,
    count_bits: u32,
    head: u64,
    tail: u64,
    data: u64,
    size_bits: u32,
    head_position: u64,
}

impl<'a> RecentLog<'a> {
    /// The log in the `struct printk_ringbuffer` at this address, which `prb` points at, if it looks like one.
    pub(super) fn at(address: u64, read: Read<'a>) -> Option<Self> {
        let mut ring = [0; RING_LEN];
        read(address, &mut ring)?;
        let bits = |at| Some(u32_at(&ring, at)).filter(|bits| (1..=MAX_BITS).contains(bits));
        let log = Self {
            read,
            descriptors: u64_at(&ring, DESCRIPTORS),
            infos: u64_at(&ring, INFOS),
            count_bits: bits(COUNT_BITS)?,
            head: u64_at(&ring, HEAD_ID) & ID_MASK,
            tail: u64_at(&ring, TAIL_ID) & ID_MASK,
            data: u64_at(&ring, DATA),
            size_bits: bits(SIZE_BITS)?,
            head_position: u64_at(&ring, HEAD_POSITION),
        };
        // The newest record's descriptor is where it should be.
        log.descriptor(log.head).map(|_| log)
    }

    /// A number that moves with every record.
    pub(super) fn written(&self) -> u64 {
        self.head.wrapping_add(self.head_position)
    }

    /// The message of the newest panic among the newest records. Only the kernel's own records count: what a user writes
    /// to /dev/kmsg has another facility (`kernel/printk/printk.c`, `devkmsg_write`).
    pub(super) fn panic_text(&self) -> Option<String> {
        let oldest = self.head.wrapping_sub(self.tail) & ID_MASK;
        (0..=oldest.min(MOST)).find_map(|back| {
            let text = self.text(self.head.wrapping_sub(back) & ID_MASK)?;
            let message = text.strip_prefix(PANIC)?;
            let end = message.iter().position(|&byte| byte == b'\n').unwrap_or(message.len());
            Some(String::from_utf8_lossy(&message[..end]).into_owned())
        })
    }

    fn descriptor(&self, id: u64) -> Option<[u8; 24]> {
        let mut descriptor = [0; 24];
        let index = id & ((1 << self.count_bits) - 1);
        (self.read)(self.descriptors.checked_add(index * DESCRIPTOR_LEN)?, &mut descriptor)?;
        Some(descriptor)
    }

    /// The text of one of the kernel's own records.
    fn text(&self, id: u64) -> Option<Vec<u8>> {
        let descriptor = self.descriptor(id)?;
        let state = u64_at(&descriptor, 0);
        if state & ID_MASK != id || !READABLE.contains(&(state >> STATE_SHIFT)) {
            return None;
        }
        let mut info = [0; INFO_SIZE];
        let index = id & ((1 << self.count_bits) - 1);
        (self.read)(self.infos.checked_add(index * INFO_LEN)?, &mut info)?;
        if info[FACILITY] != 0 {
            return None;
        }
        let length = usize::from(u16::from_le_bytes([info[TEXT_LEN], info[TEXT_LEN + 1]]));
        let (begin, next) = (u64_at(&descriptor, 8), u64_at(&descriptor, 16));
        let size = 1_u64 << self.size_bits;
        // Odd positions are those of records without text.
        if begin & 1 != 0 {
            return None;
        }
        // A block that does not fit behind the others is at the start of the ring. It begins with its record's number.
        let wrapped = begin >> self.size_bits != next >> self.size_bits && next & (size - 1) != 0;
        let start = if wrapped { 0 } else { begin & (size - 1) } + 8;
        let length = length.min(MAX_TEXT);
        if start + length as u64 > size {
            return None;
        }
        let mut text = vec![0; length];
        (self.read)(self.data.checked_add(start)?, &mut text)?;
        Some(text)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}
