//! Raw memory: the offset in the file is the guest-physical address, what is no RAM is zeros. Tools for disk images,
//! disassemblers and hex editors read it; nothing in it says what it is.

use super::core_file::CoreFile;
use super::image::DumpImage;
use super::notes::ParsedNotes;
use super::open::{Core, OpenError, Piece, PieceContent};
use super::storage::Segments;
use super::{DumpFormat, MemoryRange, PlanError, PlannedCore, StoppedGuest, check_ranges};

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

    /// Reached by who knows better only: no file is recognised. What was no RAM is zeros then.
    fn open(&self, file: CoreFile) -> Result<Core, OpenError> {
        let range = MemoryRange { start: 0, len: file.length() };
        let pieces = vec![Piece { content: PieceContent::Memory(range), offset: 0, len: range.len }];
        let storage = Box::new(Segments::of(&pieces));
        Ok(Core::new(file, self.name(), "raw memory", pieces, storage, ParsedNotes::default()))
    }
}
