//! ORC, the tables by which a Linux kernel unwinds its stacks without frame pointers (`arch/x86/kernel/unwind_orc.c`,
//! `Documentation/arch/x86/orc-unwinder.rst`).
//!
//! Two arrays of one length: `i32` distances from each element's own address to the code that the entry begins at, in
//! ascending order of code, and 6-byte entries: `i16` offset of the stack pointer, `i16` offset of the frame pointer, and
//! 16 bits whose meaning changed:
//!
//! ```text
//! up to 6.2   sp_reg:4  bp_reg:4  type:2 (call, registers, partial)                     end:1
//! 6.3         sp_reg:4  bp_reg:4  type:2                                       signal:1 end:1
//! since 6.4   sp_reg:4  bp_reg:4  type:3 (undefined, end, call, registers, partial)  signal:1
//! ```
//!
//! The kernel's own types say which; the tables are read where they are, entry by entry.

use super::LinuxMemory;
use super::kernel::Kernel;
use crate::vmcore::VirtualMemory;

const ENTRY_LEN: u64 = 6;
/// Entries of the whole kernel; 6.12's has 434,000.
const MAX_ENTRIES: u64 = 1 << 22;
/// Where the 16 bits begin in an entry, in bits.
const FLAGS_FROM: u64 = 32;

/// What an entry says of the place where it begins, up to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) sp_offset: i16,
    pub(super) bp_offset: i16,
    pub(super) sp: Base,
    pub(super) bp: Base,
    pub(super) kind: Kind,
    /// Whether the frame before was interrupted rather than called from here; older kernels do not say.
    pub(super) signal: Option<bool>,
}

/// What the frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing is known.
    Undefined,
    /// The outermost one.
    End,
    /// A call: the return address lies below the caller's stack pointer.
    Call,
    /// A `struct pt_regs`.
    Registers,
    /// The last five words of one.
    PartialRegisters,
}

/// What an offset is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Undefined,
    /// The stack pointer of the frame before.
    PreviousSp,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    BpIndirect,
    SpIndirect,
}

/// Where the fields lie in the 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    kind: (u64, u64),
    signal: Option<u64>,
    end: Option<u64>,
}

/// A pair of tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    pub(super) addresses: u64,
    pub(super) entries: u64,
    pub(super) count: u64,
}

impl Form {
    const OLD: Self = Self { kind: (8, 2), signal: None, end: Some(10) };
    const NEW: Self = Self { kind: (8, 3), signal: Some(11), end: None };

    /// That of this kernel: as its types say, else by whether it has the header that came with the newest form.
    pub(super) fn of(kernel: &Kernel<'_>) -> Self {
        let by_types = || {
            let [entry] = kernel.types()?.structures(["orc_entry"]);
            let bits = |field: &str| {
                let (first, len) = entry?.field(field)?.bits?;
                Some((first.checked_sub(FLAGS_FROM).filter(|&first| first + len <= 16)?, len))
            };
            let first = |field| bits(field).map(|(first, _)| first);
            Some(Self { kind: bits("type")?, signal: first("signal"), end: first("end") })
        };
        let by_header =
            || if kernel.variable("__start_orc_header").is_some() { Self::NEW } else { Self::OLD };
        by_types().unwrap_or_else(by_header)
    }

    fn decode(self, bytes: [u8; 6]) -> Option<Entry> {
        let [sp0, sp1, bp0, bp1, regs, high] = bytes;
        let flags = u16::from_le_bytes([regs, high]);
        let bit = |at: u64| flags >> at & 1 == 1;
        let (first, len) = self.kind;
        let number = flags >> first & ((1 << len) - 1);
        let kind = match (len, number) {
            _ if self.end.is_some_and(bit) => Kind::End,
            (..=2, 0) | (3.., 2) => Kind::Call,
            (..=2, 1) | (3.., 3) => Kind::Registers,
            (..=2, 2) | (3.., 4) => Kind::PartialRegisters,
            (3.., 0) => Kind::Undefined,
            (3.., 1) => Kind::End,
            _ => return None,
        };
        Some(Entry {
            sp_offset: i16::from_le_bytes([sp0, sp1]),
            bp_offset: i16::from_le_bytes([bp0, bp1]),
            sp: Base::of(regs & 0xf)?,
            bp: Base::of(regs >> 4)?,
            kind,
            signal: self.signal.map(bit),
        })
    }
}

impl Base {
    fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Undefined,
            1 => Self::PreviousSp,
            2 => Self::Dx,
            3 => Self::Di,
            4 => Self::Bp,
            5 => Self::Sp,
            6 => Self::R10,
            7 => Self::R13,
            8 => Self::BpIndirect,
            9 => Self::SpIndirect,
            _ => return None,
        })
    }
}

impl Tables {
    /// Those of the kernel's image.
    pub(super) fn of_image(kernel: &Kernel<'_>) -> Option<Self> {
        let addresses = kernel.variable("__start_orc_unwind_ip")?;
        let count = kernel.variable("__stop_orc_unwind_ip")?.checked_sub(addresses)? / 4;
        Some(Self { addresses, entries: kernel.variable("__start_orc_unwind")?, count })
    }

    /// The entry for the code at `address`.
    pub(super) fn entry(&self, memory: &LinuxMemory<'_>, form: Form, address: u64) -> Option<Entry> {
        let code = |index: u64| {
            let at = self.addresses.checked_add(4 * index)?;
            Some(at.wrapping_add_signed(memory.read_u32(at)?.cast_signed().into()))
        };
        // Elements before `low` begin at or before the address; those from `high` on, behind it.
        let (mut low, mut high) = (0, self.count.min(MAX_ENTRIES));
        while low < high {
            let middle = low + (high - low) / 2;
            if code(middle)? <= address { low = middle + 1 } else { high = middle }
        }
        let mut bytes = [0; 6];
        memory.read(self.entries.checked_add(ENTRY_LEN * low.checked_sub(1)?)?, &mut bytes)?;
        form.decode(bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::fake::FakeGuest;
    use super::*;

    /// An entry as its bytes: offset and register of the stack pointer, of the frame pointer, and the flags from bit 8 on.
    pub(crate) fn encoded((sp, sp_reg): (i16, u8), (bp, bp_reg): (i16, u8), flags: u8) -> [u8; 6] {
        let ([a, b], [c, d]) = (sp.to_le_bytes(), bp.to_le_bytes());
        [a, b, c, d, sp_reg | bp_reg << 4, flags]
    }

    /// Puts tables into the guest.
    pub(crate) fn place(guest: &mut FakeGuest, code: &[(u64, [u8; 6])]) -> Tables {
        let addresses = guest.reserve(4 * code.len());
        let entries: Vec<u8> = code.iter().flat_map(|(_, entry)| *entry).collect();
        for (index, (start, _)) in (0..).zip(code) {
            let at = addresses + 4 * index;
            let distance = i32::try_from(start.wrapping_sub(at).cast_signed()).unwrap();
            guest.put(at, &distance.to_le_bytes());
        }
        Tables { addresses, entries: guest.place(&entries), count: code.len() as u64 }
    }

    #[test]
    fn both_forms_are_decoded() {
        let call = Form::OLD.decode(encoded((16, 5), (-16, 1), 0)).unwrap();
        let expected = Entry {
            sp_offset: 16,
            bp_offset: -16,
            sp: Base::Sp,
            bp: Base::PreviousSp,
            kind: Kind::Call,
            signal: None,
        };
        assert_eq!(call, expected);
        assert_eq!(
            Form::NEW.decode(encoded((16, 5), (-16, 1), 2)).unwrap(),
            Entry { signal: Some(false), ..expected }
        );
        let kind = |form: Form, flags| {
            form.decode(encoded((0, 5), (0, 0), flags)).map(|entry| (entry.kind, entry.signal))
        };
        assert_eq!(kind(Form::OLD, 1), Some((Kind::Registers, None)));
        assert_eq!(kind(Form::OLD, 2), Some((Kind::PartialRegisters, None)));
        assert_eq!(kind(Form::OLD, 4), Some((Kind::End, None)));
        assert_eq!(kind(Form::OLD, 3), None);
        assert_eq!(kind(Form::NEW, 0), Some((Kind::Undefined, Some(false))));
        assert_eq!(kind(Form::NEW, 1), Some((Kind::End, Some(false))));
        assert_eq!(kind(Form::NEW, 3 | 8), Some((Kind::Registers, Some(true))));
        assert_eq!(kind(Form::NEW, 4 | 8), Some((Kind::PartialRegisters, Some(true))));
        assert_eq!(kind(Form::NEW, 7), None);
        assert_eq!(Form::NEW.decode(encoded((0, 10), (0, 0), 2)), None);
    }

    #[test]
    fn entry_reaches_up_to_the_next() {
        let mut guest = FakeGuest::new();
        let start = super::super::fake::TEXT;
        let code: Vec<_> =
            (0..5_u8).map(|n| (start + 16 * u64::from(n), encoded((n.into(), 5), (0, 0), 2))).collect();
        let tables = place(&mut guest, &code);
        let offset = |address| tables.entry(&guest.memory(), Form::NEW, address).map(|entry| entry.sp_offset);
        assert_eq!(offset(start - 1), None);
        assert_eq!([offset(start), offset(start + 15), offset(start + 16)], [Some(0), Some(0), Some(1)]);
        assert_eq!(offset(u64::MAX), Some(4));
        let lying = Tables { count: u64::MAX, ..tables };
        lying.entry(&guest.memory(), Form::NEW, start + 20);
        let away = Tables { addresses: u64::MAX - 6, ..tables };
        assert_eq!(away.entry(&guest.memory(), Form::NEW, start), None);
    }
}
