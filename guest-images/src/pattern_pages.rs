//! The host's side of the pattern in the guests `freebsd-abi`: reading their `pattern_pages`.

use thiserror::Error;

use crate::freebsd::Reach;

/// A page that such a guest filled with the pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatternPage {
    /// How it is reached.
    pub reach: Reach,
    /// Where the kernel sees it.
    pub virtual_address: u64,
    /// Where it is, and what its words tell.
    pub physical_address: u64,
}

/// Why bytes are not a list of such pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PatternPagesError {
    /// Too few bytes.
    #[error("a list of pattern pages has {} bytes, not {found}", PatternPage::LIST_SIZE)]
    Short {
        /// How many there are.
        found: usize,
    },
    /// None yet, or more than there is room for.
    #[error("the list has {0} pages")]
    Count(u64),
    /// A kind of reach that there is not.
    #[error("the list has a page of kind {0}")]
    Reach(u64),
}

impl PatternPage {
    /// Most of them.
    const MAX: usize = 64;
    /// Bytes of the symbol `pattern_pages`.
    pub const LIST_SIZE: usize = 8 + 24 * Self::MAX;

    /// Reads the list from guest memory: little-endian u64s, their number, then kind, virtual and physical address of
    /// each.
    ///
    /// # Errors
    /// Bytes that no guest leaves there.
    pub fn parse_list(bytes: &[u8]) -> Result<Vec<Self>, PatternPagesError> {
        if bytes.len() < Self::LIST_SIZE {
            return Err(PatternPagesError::Short { found: bytes.len() });
        }
        let mut words = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word));
        let mut next = || words.next().expect("the length was checked");
        let count = next();
        if !(1..=Self::MAX as u64).contains(&count) {
            return Err(PatternPagesError::Count(count));
        }
        (0..count)
            .map(|_| {
                let (kind, virtual_address, physical_address) = (next(), next(), next());
                let reach = Reach::ALL.into_iter().find(|&reach| reach as u64 == kind);
                let reach = reach.ok_or(PatternPagesError::Reach(kind))?;
                Ok(Self { reach, virtual_address, physical_address })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u64]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(PatternPage::LIST_SIZE, 0);
        bytes
    }

    #[test]
    fn list_is_read_as_the_guest_writes_it() {
        let pages = PatternPage::parse_list(&bytes(&[2, 1, 0x10, 0x1000, 4, 0x20, 0x2000])).unwrap();
        let page = |reach, virtual_address, physical_address| PatternPage {
            reach,
            virtual_address,
            physical_address,
        };
        assert_eq!(pages, [page(Reach::Direct, 0x10, 0x1000), page(Reach::NoDump, 0x20, 0x2000)]);
    }

    #[test]
    fn list_of_a_guest_that_filled_nothing_is_refused() {
        assert_eq!(PatternPage::parse_list(&[0; 7]), Err(PatternPagesError::Short { found: 7 }));
        assert_eq!(PatternPage::parse_list(&bytes(&[])), Err(PatternPagesError::Count(0)));
        assert_eq!(PatternPage::parse_list(&bytes(&[65])), Err(PatternPagesError::Count(65)));
        assert_eq!(PatternPage::parse_list(&bytes(&[1, 7])), Err(PatternPagesError::Reach(7)));
    }
}
