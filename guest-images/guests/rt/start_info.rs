//! The PVH start information (Xen `include/public/arch-x86/hvm/start_info.h`): 56 bytes, little-endian.

use core::ffi::CStr;
use core::ops::Range;

const MAGIC: u32 = 0x336e_c578;
/// Bytes of one memory map entry: u64 address, u64 size, u32 type, u32 reserved.
const MAP_ENTRY: u64 = 24;
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
    /// `address` is that of a start information, in the first GiB as everything it points at.
    pub unsafe fn at(address: u64) -> Self {
        // SAFETY: the caller's promise.
        let (magic, command_line, map, map_entries) =
            unsafe { (read::<u32>(address), read(address + 24), read(address + 40), read(address + 48)) };
        assert!(magic == MAGIC, "start information begins with {magic:#x}");
        Self { command_line, map, map_entries }
    }

    /// The command line without its NUL; empty when there is none.
    pub fn command_line(&self) -> &'static [u8] {
        if self.command_line == 0 {
            return &[];
        }
        // SAFETY: the protocol promises a NUL-terminated string that nobody changes.
        unsafe { CStr::from_ptr(self.command_line as *const _).to_bytes() }
    }

    /// The ranges of RAM, as the VMM ordered them.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (map, entries) = (self.map, u64::from(self.map_entries));
        (0..entries).filter_map(move |i| {
            let entry = map + i * MAP_ENTRY;
            // SAFETY: `at` was promised a map of that many entries.
            let (start, size, kind) =
                unsafe { (read::<u64>(entry), read::<u64>(entry + 8), read::<u32>(entry + 16)) };
            (kind == RAM).then(|| start..start + size)
        })
    }
}

/// # Safety
/// A `T` lies at `address`.
unsafe fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise.
    unsafe { (address as *const T).read_unaligned() }
}
