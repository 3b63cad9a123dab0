//! The PVH start information (Xen `include/public/arch-x86/hvm/start_info.h`): 56 bytes, little-endian.

use core::ffi::CStr;
use core::ops::Range;
use core::slice;

const MAGIC: u32 = 0x336e_c578;
/// Bytes of one memory map entry: u64 address, u64 size, u32 type, u32 reserved.
const MAP_ENTRY: usize = 24;
/// Type of an entry that is RAM.
const RAM: u32 = 1;

/// What the VMM told the guest.
pub struct StartInfo {
    command_line: u64,
    map: u64,
    map_entries: u32,
}

impl StartInfo {
    /// Reads it.
    ///
    /// # Safety
    /// `address` is that of a start information that nobody changes, as is what it points at; all of it mapped.
    pub unsafe fn at(address: u64) -> Self {
        // SAFETY: the caller's promise; 56 bytes are there, plain ones.
        let bytes = unsafe { &*(address as *const [u8; 56]) };
        let magic = u32_at(bytes, 0);
        assert!(magic == MAGIC, "start information begins with {magic:#x}");
        Self { command_line: u64_at(bytes, 24), map: u64_at(bytes, 40), map_entries: u32_at(bytes, 48) }
    }

    /// The command line without its NUL; empty when there is none.
    pub fn command_line(&self) -> &'static [u8] {
        if self.command_line == 0 {
            return &[];
        }
        // SAFETY: the protocol promises a NUL-terminated string, and `at` was promised that nobody changes it.
        unsafe { CStr::from_ptr(self.command_line as *const _) }.to_bytes()
    }

    /// The ranges of RAM, as the VMM ordered them.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (map, entries) = (self.map as *const [u8; MAP_ENTRY], self.map_entries as usize);
        // SAFETY: the protocol promises so many entries, and `at` was promised that nobody changes them.
        let entries = unsafe { slice::from_raw_parts(map, entries) };
        entries.iter().filter(|entry| u32_at(*entry, 16) == RAM).map(|entry| {
            let start = u64_at(entry, 0);
            start..start + u64_at(entry, 8)
        })
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().expect("an offset inside"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().expect("an offset inside"))
}
