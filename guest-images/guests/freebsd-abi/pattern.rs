//! Pages with the pattern, of every kind of reach, listed in `pattern_pages`: their number, then kind, virtual and
//! physical address of each.

use crate::contract::{DEFAULT_SEED, pattern};
use crate::freebsd::Reach;
use crate::pages::{self, DMAP, LARGE, PAGE};
use crate::paging;
use crate::variables::pattern_pages;

/// Pages of each kind that comes page by page.
const EACH: usize = 6;

/// Fills pages of every kind, but for the user's.
pub fn spread() {
    for _ in 0..EACH {
        let page = pages::direct();
        fill(Reach::Direct, DMAP + page, page);
        let page = paging::heap_page();
        fill(Reach::Small, page.va, page.pa);
        let page = pages::plain();
        fill(Reach::NoDump, DMAP + page, page);
    }
    let page = pages::from_top(1);
    fill(Reach::Direct, DMAP + page, page);
    let leaf = paging::large_leaf();
    for offset in [0, LARGE / 2, LARGE - PAGE] {
        fill(Reach::Large, leaf.va + offset, leaf.pa + offset);
    }
    let page = pages::plain();
    fill(Reach::Free, DMAP + page, page);
}

/// A page for a user process.
pub fn user_page() -> u64 {
    let page = pages::plain();
    fill(Reach::User, DMAP + page, page);
    page
}

fn fill(reach: Reach, va: u64, pa: u64) {
    for offset in (0..PAGE).step_by(8) {
        // SAFETY: a page that was allocated for this.
        unsafe { pages::at(pa + offset).write(pattern(DEFAULT_SEED, pa + offset)) };
    }
    let count = pattern_pages.at(0) as usize;
    for (i, word) in [reach as u64, va, pa].into_iter().enumerate() {
        pattern_pages.set(1 + 3 * count + i, word);
    }
    pattern_pages.set(0, count as u64 + 1);
}
