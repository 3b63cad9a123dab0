//! Finding the tables of kallsyms by what they hold, in a kernel image or in memory, without a symbol that names them.
//!
//! All tables lie in `.rodata`, each on 8 bytes. Two orders are known (`scripts/kallsyms.c`):
//!
//! ```text
//! up to 6.3   offsets, relative_base, num_syms, names, markers, [seqs_of_names], token_table, token_index
//! since 6.4   num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names
//! ```
//!
//! The token table is told by its ten digits, which stand for themselves in every kernel, and proved by the index behind
//! it; the names by their markers, which say where every 256th name begins.

use std::ops::Range;

use super::tables::{LongNames, MARKER_STEP, MAX_SYMBOLS, NameWalk, TOKENS, u32_at, u64_at};

/// Fewer symbols than any kernel has.
const MIN_SYMBOLS: usize = 256;
/// Tokens before that of "0".
const DIGITS_FROM: usize = 48;
/// Offsets in the token table are 16 bits wide.
const MAX_TOKEN_TEXT: usize = 1 << 16;
/// Digits in a row that are looked at: debug messages and fonts have such, in kernels some five places.
const MAX_HITS: usize = 256;
/// How far before the tokens the count of symbols may lie. 6.12's names and markers have 2.2 MB.
const MAX_BEFORE: usize = 32 << 20;
/// Names that are stepped over in all attempts together.
const MAX_STEPS: usize = 16 * MAX_SYMBOLS;
/// Names that an attempt must get right before the whole is tried.
const TRIAL: usize = 16;
const ALIGNMENT: usize = 8;

/// Where the tables lie in the bytes that were searched.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) count: usize,
    pub(super) names: Range<usize>,
    pub(super) long: LongNames,
    pub(super) tokens: Range<usize>,
    pub(super) token_index: usize,
    pub(super) offsets: usize,
    pub(super) relative_base: usize,
}

/// The tables in `bytes`, which begin at an address that is a multiple of 8.
pub(super) fn search(bytes: &[u8]) -> Option<Places> {
    let digits: Vec<u8> = (b'0'..=b'9').flat_map(|digit| [digit, 0]).collect();
    let mut steps = MAX_STEPS;
    memchr::memmem::find_iter(bytes, &digits).take(MAX_HITS).find_map(|hit| {
        let (tokens, token_index) = token_tables(bytes, hit)?;
        let Names { count, at, names, long } = names_before(bytes, tokens.start, &mut steps)?;
        let (offsets, relative_base) = offsets_around(bytes, count, at, token_index)?;
        Some(Places { count, names, long, tokens, token_index, offsets, relative_base })
    })
}

/// The tokens of which number 48 begins at `zero`, and where their index is.
fn token_tables(bytes: &[u8], zero: usize) -> Option<(Range<usize>, usize)> {
    let mut end = zero;
    for _ in DIGITS_FROM..TOKENS {
        let rest = bytes.get(end..zero.checked_add(MAX_TOKEN_TEXT)?.min(bytes.len()))?;
        end += memchr::memchr(0, rest)? + 1;
    }
    let index_at = end.next_multiple_of(ALIGNMENT);
    let index = bytes.get(index_at..index_at + 2 * TOKENS)?;
    let (index, _) = index.as_chunks::<2>();
    let place = |number: usize| usize::from(u16::from_le_bytes(index[number]));
    let start = zero.checked_sub(place(DIGITS_FROM))?;
    let follows = |number: usize| {
        let (this, before) = (start + place(number), start + place(number - 1));
        before < this && this <= end && memchr::memchr(0, &bytes[before..this]) == Some(this - before - 1)
    };
    (place(0) == 0 && (1..TOKENS).all(follows)).then_some((start..end, index_at))
}

/// The packed names.
struct Names {
    count: usize,
    /// Where that number stands.
    at: usize,
    names: Range<usize>,
    long: LongNames,
}

/// The number of symbols and their names, before the tokens at `tokens`.
fn names_before(bytes: &[u8], tokens: usize, steps: &mut usize) -> Option<Names> {
    let nearest = tokens - tokens % ALIGNMENT;
    let farthest = nearest.saturating_sub(MAX_BEFORE);
    let bytes = &bytes[..tokens];
    (farthest..nearest).step_by(ALIGNMENT).rev().find_map(|at| {
        let word = u64_at(bytes, at)?;
        let count = usize::try_from(word).ok().filter(|n| (MIN_SYMBOLS..=MAX_SYMBOLS).contains(n))?;
        let start = at + ALIGNMENT;
        [LongNames::TwoBytes, LongNames::No].into_iter().find_map(|long| {
            let len = names_len(&bytes[start..], count, long, steps)?;
            Some(Names { count, at, names: start..start + len, long })
        })
    })
}

/// The length of `count` names, if names these are.
fn names_len(bytes: &[u8], count: usize, long: LongNames, steps: &mut usize) -> Option<usize> {
    let trial = NameWalk::new(bytes, long).take(TRIAL).filter(|name| name.len() >= 2).count();
    if trial < TRIAL || *steps < count {
        return None;
    }
    *steps -= count;
    let mut walk = NameWalk::new(bytes, long);
    let mut markers = Vec::with_capacity(count.div_ceil(MARKER_STEP));
    for number in 0..count {
        if number % MARKER_STEP == 0 {
            markers.push(walk.position());
        }
        walk.next().filter(|name| !name.is_empty())?;
    }
    let end = walk.position();
    let table = bytes.get(end.next_multiple_of(ALIGNMENT)..)?;
    let agree = |(n, &marker): (usize, &usize)| u32_at(table, 4 * n).is_some_and(|m| m as usize == marker);
    markers.iter().enumerate().all(agree).then_some(end)
}

/// Where the offsets and their base stand: before the count, or behind the index of tokens.
fn offsets_around(bytes: &[u8], count: usize, num_syms: usize, token_index: usize) -> Option<(usize, usize)> {
    let len = (4 * count).next_multiple_of(ALIGNMENT);
    let behind = (token_index + 2 * TOKENS).next_multiple_of(ALIGNMENT);
    let before = num_syms.checked_sub(ALIGNMENT).and_then(|base| Some((base.checked_sub(len)?, base)));
    let places = before.into_iter().chain([(behind, behind + len)]);
    let is_base =
        |&(_, base): &(usize, usize)| u64_at(bytes, base).is_some_and(|base| base >> 31 == u64::MAX >> 31);
    places.into_iter().find(is_base)
}
