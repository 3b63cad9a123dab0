//! Raw memory: the offset in the file is the guest-physical address, what is no RAM is zeros. Tools for disk images,
//! disassemblers and hex editors read it; nothing in it says what it is.

use super::core_file::CoreFile;
use super::image::DumpImage;
use super::open::{Core, OpenError};
use super::{DumpFormat, PlanError, PlannedCore, StoppedGuest, check_ranges};

/// The format "raw".
#[derive(Debug)]
pub struct Raw;

impl DumpFormat for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    /// Nobody's: it is written when it is asked for.
    fn suits(&self, _guest: &StoppedGuest<'_, '_>) -> bool {
        false
    }

    fn plan<'m>(&self, guest: &StoppedGuest<'m, '_>) -> Result<PlannedCore<'m>, PlanError> {
        let ranges = guest.memory.ranges();
        check_ranges(ranges)?;
        let mut image = DumpImage::new(guest.memory);
        let mut end = 0;
        for range in ranges {
            image.push_zeros(range.start - end);
            image.push_guest(*range);
            end = range.end();
        }
        Ok(PlannedCore { image, format: self.name(), remarks: Vec::new() })
    }

    /// Any file could be one.
    fn recognise(&self, _head: &[u8]) -> bool {
        false
    }

    /// Not reached: no file is recognised.
    fn open(&self, _file: CoreFile) -> Result<Core, OpenError> {
        Err(OpenError::Unsupported("raw memory, which says nothing of itself"))
    }
}
