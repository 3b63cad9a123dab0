//! A minidump that no kernel wrote, of any version, laid out here byte by byte from the format's description.

use std::collections::BTreeMap;

/// First address of the page map. Real kernels' lies 2 TiB lower, which would make the map 8 MiB long.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Start of the direct map.
pub const DIRECT_MAP: u64 = 0xffff_f800_0000_0000;
const PAGE: u64 = 4096;

/// A minidump to be.
#[derive(Debug, Clone)]
pub struct FakeMinidump {
    /// 1 to 3.
    pub version: u32,
    /// The message buffer as it lies.
    pub messages: Vec<u8>,
    /// What the rounding of the message buffer brings along.
    pub behind_messages: Vec<u8>,
    /// Ranges of RAM: start and end.
    pub dump_avail: Vec<(u64, u64)>,
    /// Entries of the page map.
    pub page_map: Vec<u64>,
    /// Pages by physical address.
    pub pages: BTreeMap<u64, Vec<u8>>,
}

impl FakeMinidump {
    /// Version 3, without messages, mappings and pages.
    pub fn new(dump_avail: &[(u64, u64)]) -> Self {
        Self {
            version: 3,
            messages: Vec::new(),
            behind_messages: Vec::new(),
            dump_avail: dump_avail.to_vec(),
            page_map: Vec::new(),
            pages: BTreeMap::new(),
        }
    }

    /// Adds a page whose content `byte` tells by physical address.
    pub fn page(mut self, address: u64, byte: impl Fn(u64) -> u8) -> Self {
        self.pages.insert(address, (address..address + PAGE).map(byte).collect());
        self
    }

    /// The bit of the page at a physical address.
    fn bit(&self, address: u64) -> usize {
        let mut bit = 0;
        if self.version < 3 {
            return small(address / PAGE);
        }
        for &(start, end) in &self.dump_avail {
            if (start..end).contains(&address) {
                return small(bit + (address - start) / PAGE);
            }
            bit += (end - start) / PAGE;
        }
        panic!("{address:#x} is in no range");
    }

    fn bits(&self) -> u64 {
        if self.version < 3 {
            return self.dump_avail.last().map_or(0, |(_, end)| end / PAGE);
        }
        self.dump_avail.iter().map(|(start, end)| (end - start) / PAGE).sum()
    }

    /// The file.
    pub fn image(&self) -> Vec<u8> {
        let mut bitmap = vec![0; small(self.bits().div_ceil(8).next_multiple_of(PAGE))];
        for &address in self.pages.keys() {
            bitmap[self.bit(address) / 8] |= 1 << (self.bit(address) % 8);
        }
        let mut page_map: Vec<u8> = self.page_map.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        round_up(&mut page_map);
        let mut dump_avail: Vec<u8> = Vec::new();
        if self.version == 3 {
            let words = self.dump_avail.iter().flat_map(|&(start, end)| [start, end]).chain([0, 0]);
            dump_avail.extend(words.flat_map(u64::to_le_bytes));
            round_up(&mut dump_avail);
        }
        let mut out = b"minidump FreeBSD/amd64\0\0".to_vec();
        let len = |part: &[u8]| u32::try_from(part.len()).expect("small");
        for half in [self.version, len(&self.messages), len(&bitmap), len(&page_map)] {
            out.extend(half.to_le_bytes());
        }
        for word in [KERNEL_BASE, DIRECT_MAP, DIRECT_MAP + (1 << 42)] {
            out.extend(word.to_le_bytes());
        }
        out.extend(len(&dump_avail).to_le_bytes());
        round_up(&mut out);
        out.extend(&self.messages);
        out.extend(&self.behind_messages);
        round_up(&mut out);
        for part in [dump_avail, bitmap, page_map] {
            out.extend(part);
        }
        self.pages.values().for_each(|page| out.extend(page));
        out
    }
}

fn round_up(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(small(PAGE)), 0);
}

fn small(value: u64) -> usize {
    usize::try_from(value).expect("small")
}
