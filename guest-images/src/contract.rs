//! What guest and host agree on: the pattern that fills memory, where it lies, and what registers hold. This file is
//! compiled twice, into the guests (without `std`) and into the library that tests use, so that the two cannot differ.
//!
//! Addresses are guest physical, lengths are in bytes, words are little-endian.

use core::ops::Range;

/// Seed of the pattern unless the guest's environment has `seed`.
pub const DEFAULT_SEED: u64 = 0x7061_6e69_636b_6564;

/// No pattern below this address: there lie the boot structures, the image and its tables.
pub const FILL_START: u64 = 16 << 20;

/// Bytes of pattern from [`FILL_START`] up unless the guest's environment has `fill`.
pub const DEFAULT_FILL: u64 = 32 << 20;

/// Bytes in a page; every filled range begins and ends on one.
pub const PAGE: u64 = 4096;

/// First eight bytes of the symbol `fill_map`.
pub const FILL_MAP_MAGIC: u64 = u64::from_le_bytes(*b"FILLMAP1");

/// Ranges that `fill_map` has room for.
pub const FILL_MAP_RANGES: usize = 512;

/// The 8-byte word that a filled range holds at `address` (a multiple of 8): output of the splitmix64 generator
/// (Steele, Lea and Flood, 2014) whose state was `seed ^ address`.
pub const fn pattern(seed: u64, address: u64) -> u64 {
    let mut z = (seed ^ address).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the pattern lies when `amount` bytes of it were asked for: the first whole pages of RAM from [`FILL_START`]
/// up. `ram` is in ascending order.
pub fn fill_ranges(
    ram: impl IntoIterator<Item = Range<u64>>,
    amount: u64,
) -> impl Iterator<Item = Range<u64>> {
    let mut left = amount & !(PAGE - 1);
    ram.into_iter().map(fillable).filter(|range| !range.is_empty()).map_while(move |range| {
        let taken = left.min(range.end - range.start);
        left -= taken;
        (taken > 0).then_some(range.start..range.start + taken)
    })
}

/// The pages that the guest `big` fills: of each GiB of address space the first, the middle and the last page that are
/// RAM at or above [`FILL_START`]. `ram` is in ascending order. Pages come in ascending order, each once.
pub fn sparse_pages(ram: impl IntoIterator<Item = Range<u64>>) -> impl Iterator<Item = u64> {
    const GIB: u64 = 1 << 30;
    ram.into_iter().map(fillable).filter(|range| !range.is_empty()).flat_map(|range| {
        (range.start / GIB..range.end.div_ceil(GIB)).flat_map(move |gib| {
            let first = range.start.max(gib * GIB);
            let last = range.end.min((gib + 1) * GIB) - PAGE;
            let middle = (first + (last - first) / 2) & !(PAGE - 1);
            let pages = [Some(first), (middle > first).then_some(middle), (last > middle).then_some(last)];
            pages.into_iter().flatten()
        })
    })
}

/// The whole pages of a RAM range that a guest may fill; empty when there are none.
fn fillable(ram: Range<u64>) -> Range<u64> {
    let start = ram.start.max(FILL_START).next_multiple_of(PAGE);
    let end = ram.end & !(PAGE - 1);
    start..end.max(start)
}

/// The general registers that a busy or panicking CPU loads with known values. RSP is not among them: it lies in the
/// CPU's own part of the symbol `cpu_stacks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the architecture's own names")]
pub enum Register {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Register {
    /// All of them, in the order of their numbers here.
    pub const ALL: [Self; 15] = [
        Self::Rax,
        Self::Rbx,
        Self::Rcx,
        Self::Rdx,
        Self::Rsi,
        Self::Rdi,
        Self::Rbp,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// What `register` of CPU `cpu` holds while it is busy.
pub const fn known_register(cpu: u32, register: Register) -> u64 {
    pattern(REGISTER_SEED, (cpu as u64) << 8 | register as u64)
}

/// What `register` of CPU `cpu` holds from the moment it writes `event` to pvpanic: the known value, but for AL, which
/// is the event, and DX, which is the port.
pub const fn signalling_register(cpu: u32, register: Register, event: u8) -> u64 {
    let known = known_register(cpu, register);
    match register {
        Register::Rax => known & !0xff | event as u64,
        Register::Rdx => known & !0xffff | PVPANIC_PORT as u64,
        _ => known,
    }
}

/// What XMM register `index` (0 to 15) of CPU `cpu` holds while it is busy or panicking.
pub const fn known_xmm(cpu: u32, index: u8) -> u128 {
    let low = pattern(REGISTER_SEED, (cpu as u64) << 8 | 0x80 | index as u64);
    (!low as u128) << 64 | low as u128
}

/// Port of the pvpanic device.
pub const PVPANIC_PORT: u16 = 0x505;

const REGISTER_SEED: u64 = 0x7265_6769_7374_6572;

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges, one of them of one")]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn pattern_is_the_published_splitmix64() {
        // First outputs of the reference generator for the states 0 and 1234567.
        assert_eq!(pattern(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(pattern(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(pattern(0, 1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn fill_begins_at_16_mib_and_crosses_the_hole() {
        let ram = [0..0xa_0000, MIB..3 * GIB, 4 * GIB..5 * GIB];
        let fill = |amount| fill_ranges(ram.clone(), amount).collect::<Vec<_>>();
        assert_eq!(fill(0), []);
        assert_eq!(fill(4096), [16 * MIB..16 * MIB + 4096]);
        assert_eq!(fill(3 * GIB), [16 * MIB..3 * GIB, 4 * GIB..4 * GIB + 16 * MIB]);
        assert_eq!(fill(u64::MAX), [16 * MIB..3 * GIB, 4 * GIB..5 * GIB]);
    }

    #[test]
    fn fill_of_small_or_odd_memory_is_of_whole_pages() {
        assert_eq!(fill_ranges([0..MIB, MIB..16 * MIB], u64::MAX).count(), 0);
        let odd = [0..0xa_0000, MIB..20 * MIB + 5000];
        assert_eq!(fill_ranges(odd, 5000).collect::<Vec<_>>(), [16 * MIB..16 * MIB + 4096]);
        let odd = [0..0xa_0000, MIB..20 * MIB + 5000];
        assert_eq!(fill_ranges(odd, u64::MAX).collect::<Vec<_>>(), [16 * MIB..20 * MIB + 4096]);
    }

    #[test]
    fn sparse_pages_are_three_in_each_gib_and_ascend() {
        let ram = [0..0xa_0000, MIB..3 * GIB, 4 * GIB..6 * GIB];
        let pages: Vec<u64> = sparse_pages(ram).collect();
        assert_eq!(pages.len(), 15);
        assert!(pages.is_sorted_by(|a, b| a < b));
        assert_eq!(pages[0], 16 * MIB);
        assert_eq!(pages[8], 3 * GIB - PAGE);
        assert_eq!(pages[9..12], [4 * GIB, 4 * GIB + GIB / 2 - PAGE, 5 * GIB - PAGE]);
        assert_eq!(sparse_pages(std::iter::once(0..16 * MIB + PAGE)).collect::<Vec<_>>(), [16 * MIB]);
    }

    #[test]
    fn known_registers_differ_from_cpu_to_cpu_and_from_each_other() {
        let mut seen = std::collections::HashSet::new();
        for cpu in 0..32 {
            assert!(Register::ALL.iter().all(|&register| seen.insert(known_register(cpu, register))));
            for index in 0..16 {
                let xmm = known_xmm(cpu, index);
                assert!(seen.insert(u64::try_from(xmm & u128::from(u64::MAX)).unwrap()));
            }
        }
    }

    #[test]
    fn signalling_registers_carry_event_and_port() {
        assert_eq!(signalling_register(1, Register::Rax, 1) & 0xff, 1);
        assert_eq!(signalling_register(1, Register::Rdx, 1) & 0xffff, 0x505);
        assert_eq!(signalling_register(1, Register::Rdx, 1) >> 16, known_register(1, Register::Rdx) >> 16);
        assert_eq!(signalling_register(1, Register::Rbx, 1), known_register(1, Register::Rbx));
    }
}
