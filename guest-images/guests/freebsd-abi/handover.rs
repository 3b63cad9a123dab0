//! What the boot protocol hands over: memory map and environment, by FreeBSD's modinfo records (`sys/sys/linker.h`) or
//! by PVH's start information. Physical addresses.

use core::ops::Range;
use core::slice;

use crate::global::Global;
use crate::start_info::StartInfo;
use crate::variables::_end;

pub const KERNBASE: u64 = 0xffff_ffff_8000_0000;
const PAGE: u64 = 4096;

const MAX_RANGES: usize = 16;
static RANGES: Global<[[u64; 2]; MAX_RANGES]> = Global::new([[0; 2]; MAX_RANGES]);

/// Record types.
const END: u32 = 0;
const TYPE: u32 = 2;
const METADATA: u32 = 0x8000;
const ENVP: u32 = METADATA | 0x06;
const HOWTO: u32 = METADATA | 0x07;
const SMAP: u32 = METADATA | 0x1001;
/// Bytes of an SMAP entry: u64 base, u64 length, u32 type; type 1 is RAM.
const SMAP_ENTRY: usize = 20;
const RAM: u32 = 1;

/// Where the environment is.
#[derive(Clone, Copy)]
pub enum Environment {
    /// A block of `name=value\0` strings at this address.
    Block(u64),
    /// A command line.
    CommandLine(&'static [u8]),
}

/// What was handed over.
pub struct Handover {
    /// The environment.
    pub environment: Environment,
    /// First address behind everything that was handed over.
    pub first_free: u64,
    is_native: bool,
    howto: u32,
}

impl Handover {
    /// Reads it. `entry` is 0 for the native hand-off (`first` is modulep, `second` kernend), 1 for PVH (`first` is the
    /// start information).
    pub fn read(entry: u32, first: u32, second: u32) -> Self {
        let end = (&raw const _end).addr() as u64 - KERNBASE;
        if entry == 0 {
            return Self::from_modinfo(first.into(), end.max(second.into()));
        }
        // SAFETY: the protocol promises the structure at that address, and the first GiB is mapped.
        let start_info = unsafe { StartInfo::at(first.into()) };
        let is_empty = start_info.ram().enumerate().map(|(i, range)| set_range(i, range)).count() == 0;
        assert!(!is_empty, "the start information has no memory map");
        let environment = Environment::CommandLine(start_info.command_line());
        Self { environment, first_free: end.next_multiple_of(PAGE), is_native: false, howto: 0 }
    }

    fn from_modinfo(modulep: u64, end: u64) -> Self {
        let (mut at, mut environment, mut howto, mut ranges) = (modulep, 0, 0, 0);
        let mut is_kernel = false;
        loop {
            let (kind, length) = (read_u32(at), read_u32(at + 4));
            let data = at + 8;
            match kind {
                END => break,
                TYPE => {
                    let name = bytes(data, length);
                    is_kernel = name == b"elf kernel\0" || name == b"elf64 kernel\0";
                }
                ENVP if is_kernel => environment = read_u64(data),
                HOWTO if is_kernel => howto = read_u32(data),
                SMAP if is_kernel => {
                    for entry in bytes(data, length).chunks_exact(SMAP_ENTRY) {
                        let entry = entry.as_ptr() as u64;
                        if read_u32(entry + 16) == RAM {
                            let start = read_u64(entry);
                            set_range(ranges, start..start + read_u64(entry + 8));
                            ranges += 1;
                        }
                    }
                }
                _ => {}
            }
            at = data + u64::from(length).next_multiple_of(8);
        }
        assert!(ranges > 0, "No BIOS smap or EFI map info from loader!");
        let environment = Environment::Block(environment);
        Self { environment, first_free: end.next_multiple_of(PAGE), is_native: true, howto }
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        match (self.is_native, self.howto) {
            (false, _) => "PVH",
            (true, 0) => "native",
            (true, _) => "native (with flags)",
        }
    }
}

/// The ranges of RAM.
pub fn ram() -> impl Iterator<Item = Range<u64>> {
    (0..MAX_RANGES).map(|i| RANGES.at(i)).take_while(|range| range[1] != 0).map(|[start, end]| start..end)
}

fn set_range(index: usize, range: Range<u64>) {
    RANGES.set(index, [range.start, range.end]);
}

fn bytes(address: u64, length: u32) -> &'static [u8] {
    // SAFETY: what the loader handed over lies in the first GiB, which is mapped, and nobody changes it.
    unsafe { slice::from_raw_parts(address as *const u8, length as usize) }
}

fn read_u32(address: u64) -> u32 {
    // SAFETY: as for `bytes`.
    unsafe { (address as *const u32).read_unaligned() }
}

fn read_u64(address: u64) -> u64 {
    // SAFETY: as for `bytes`.
    unsafe { (address as *const u64).read_unaligned() }
}
