//! The smallest guest: its first instructions print a mark on the first serial port, then it halts.

/// What it prints.
pub(super) const FIRST: &[u8] = b"\x16!";

/// mov dx, 0x3f8; mov al, '\x16'; out dx, al; mov al, '!'; out dx, al; 1: hlt; jmp 1b. In 32-bit mode, as PVH enters it.
const CODE: [u8; 13] = [0x66, 0xba, 0xf8, 0x03, 0xb0, 0x16, 0xee, 0xb0, b'!', 0xee, 0xf4, 0xeb, 0xfd];
/// Where it is loaded.
const START: u64 = 0x10_0000;
/// A note: owner "Xen", type 18, and the entry.
const NOTE: [u32; 3] = [4, 4, 18];

/// An ELF file with one segment, the code, and a PVH note.
pub(super) fn first() -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let note_at = HEADERS + CODE.len().next_multiple_of(4) as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend([START, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 2, 64, 0, 0].iter().flat_map(|short| short.to_le_bytes()));
    let mut program = |kind: u32, at: u64, address: u64, len: u64| {
        elf.extend([kind, 5].iter().flat_map(|word| word.to_le_bytes()));
        elf.extend([at, address, address, len, len, 4].iter().flat_map(|word| word.to_le_bytes()));
    };
    program(1, HEADERS, START, CODE.len() as u64);
    program(4, note_at, 0, 20);
    elf.extend(CODE);
    elf.resize(usize::try_from(note_at).expect("a few hundred bytes"), 0);
    elf.extend(NOTE.iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(b"Xen\0");
    elf.extend(u32::try_from(START).expect("below 4 GiB").to_le_bytes());
    elf
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vmm::boot::{KernelImage, protocol_for};

    #[test]
    fn the_smallest_guest_is_a_pvh_kernel() {
        let image = KernelImage::from_bytes(Path::new("first"), super::first()).unwrap();
        assert_eq!(protocol_for(&image, None).unwrap().name(), "pvh");
    }
}
