//! Touches three pages in each GiB of a large memory, also above 4 GiB, and panics by pvpanic.
//!
//! Environment: what every guest takes, but for `fill`.
//!
//! Memory: the pattern in exactly the pages of `sparse_pages`, each of which `fill_map` lists. All other RAM from 16 MiB
//! up was never touched and reads as zeros.
#![no_std]
#![no_main]

use rt::{memory, pvpanic};

rt::guest!("big", run);

fn run() -> ! {
    memory::fill_sparse();
    pvpanic::signal_from_kenv("a big guest was told to panic")
}
