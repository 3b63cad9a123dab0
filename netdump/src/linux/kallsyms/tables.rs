//! The tables of kallsyms taken apart: names packed by tokens, addresses relative to a base.
//!
//! Little-endian. Names: for each symbol a length and that many bytes, each the number of a token; the tokens' text is a
//! letter for the symbol's type (as `nm` has it, lower case for a local one) and the name. From 6.1 on a length byte with
//! bit 7 set is followed by another with the bits above (`kernel/kallsyms.c`, `kallsyms_expand_symbol`).

/// Tokens of every kernel.
pub(super) const TOKENS: usize = 256;
/// Symbols from one marker to the next.
pub(super) const MARKER_STEP: usize = 256;
/// Most symbols that are believed; distributions' kernels have 90,000 to 250,000.
pub(super) const MAX_SYMBOLS: usize = 1 << 20;
/// `KSYM_NAME_LEN`, the type letter included.
const MAX_NAME: usize = 512;
/// Length of a name's text where the first byte of a length says that another follows.
const LONG: u8 = 0x80;

/// Whether a length of 128 or more has two bytes (since 6.1) or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LongNames {
    TwoBytes,
    No,
}

/// The packed names, one after the other.
#[derive(Debug, Clone)]
pub(super) struct NameWalk<'a> {
    names: &'a [u8],
    at: usize,
    long: LongNames,
}

impl<'a> NameWalk<'a> {
    pub(super) fn new(names: &'a [u8], long: LongNames) -> Self {
        Self::from(names, 0, long)
    }

    pub(super) fn from(names: &'a [u8], at: usize, long: LongNames) -> Self {
        Self { names, at, long }
    }

    /// Where the next name begins.
    pub(super) fn position(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for NameWalk<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let first = *self.names.get(self.at)?;
        let (len, start) = if first & LONG != 0 && self.long == LongNames::TwoBytes {
            let second = *self.names.get(self.at + 1)?;
            (usize::from(first & !LONG) | usize::from(second) << 7, self.at + 2)
        } else {
            (usize::from(first), self.at + 1)
        };
        let name = self.names.get(start..start.checked_add(len)?)?;
        self.at = start + len;
        Some(name)
    }
}

/// The text of each token.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    text: Vec<u8>,
    places: Vec<(u16, u16)>,
}

impl Tokens {
    /// `index` has 256 offsets of NUL-terminated texts in `text`.
    pub(super) fn new(text: &[u8], index: &[u8]) -> Option<Self> {
        let (offsets, _) = index.get(..2 * TOKENS)?.as_chunks::<2>();
        let places = offsets.iter().map(|offset| {
            let start = u16::from_le_bytes(*offset);
            let len = memchr::memchr(0, text.get(usize::from(start)..)?)?;
            Some((start, start.checked_add(u16::try_from(len).ok()?)?))
        });
        Some(Self { text: text.to_vec(), places: places.collect::<Option<_>>()? })
    }

    /// The text of a packed name into `out`: a letter for the type, and the name. Cut where no name is that long.
    #[inline]
    pub(super) fn expand(&self, packed: &[u8], out: &mut Vec<u8>) {
        out.clear();
        for &number in packed {
            let (start, end) = self.places[usize::from(number)];
            out.extend_from_slice(&self.text[usize::from(start)..usize::from(end)]);
            if out.len() > MAX_NAME {
                break;
            }
        }
        out.truncate(MAX_NAME);
    }
}

/// How an offset becomes an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// `kallsyms_relative_base`.
    pub(super) address: u64,
    /// `CONFIG_KALLSYMS_ABSOLUTE_PERCPU`, up to 6.14: an offset that is not negative is an absolute value, which per-CPU
    /// variables have; the others count down from -1.
    pub(super) has_absolute: bool,
}

impl Base {
    #[inline]
    pub(super) fn address(self, offset: u32) -> u64 {
        if !self.has_absolute {
            return self.address.wrapping_add(u64::from(offset));
        }
        match offset.cast_signed() {
            0.. => u64::from(offset),
            _ => self.address.wrapping_add(u64::from(!offset)),
        }
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.get(..8)?.try_into().ok()?))
}
