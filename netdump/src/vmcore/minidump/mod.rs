//! FreeBSD/amd64 minidumps: the pages that the kernel uses, found by a bitmap, and the kernel's page directories.
//!
//! ```text
//! header               4096 bytes (`header.rs`)
//! message buffer       rounded up to a page
//! dump_avail           version 3: the ranges of RAM that the bitmap's bits stand for
//! bitmap               a bit for each page of them; versions 1 and 2: of all memory from 0 (`page_set.rs`)
//! page map             version 2 and 3: a page of page-directory entries for each GiB of kernel addresses;
//!                      version 1: page-table entries
//! pages                those whose bits are set, in the order of the bits
//! ```
//!
//! Reference: FreeBSD `sys/amd64/amd64/minidump_machdep.c`, `sys/amd64/include/minidump.h`, `sys/vm/vm_dumpset.h`;
//! readers: `lib/libkvm/kvm_minidump_amd64.c`, libfbsdvmcore.

pub mod header;
mod kernel;
pub mod page_set;
mod plan;
pub mod read;
mod walk;

use super::core_file::CoreFile;
use super::open::{Core, OpenError};
use super::{DumpFormat, PlanError, PlannedCore, StoppedGuest};
use crate::freebsd;

/// Set to 0 in the kernel's environment, this makes the kernel write full dumps.
const VARIABLE: &str = "debug.minidump";

/// The format "minidump".
#[derive(Debug)]
pub struct MinidumpFormat;

impl DumpFormat for MinidumpFormat {
    fn name(&self) -> &'static str {
        "minidump"
    }

    /// Guests whose kernels write them, unless they were told not to.
    fn suits(&self, guest: &StoppedGuest<'_, '_>) -> bool {
        let declined = guest.notes.facts.variable(VARIABLE).is_some_and(|value| value.trim() == "0");
        !declined && guest.symbols.is_some_and(freebsd::dumps_as_freebsd)
    }

    fn plan<'m>(&self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        plan::plan(guest)
    }

    /// The magic bytes of any architecture: one that is not read is refused by its name before.
    fn recognise(&self, head: &[u8]) -> bool {
        head.starts_with(header::ANY_MAGIC)
    }

    fn open(&self, file: CoreFile) -> Result<Core, OpenError> {
        read::open(file).map_err(OpenError::Minidump)
    }
}
