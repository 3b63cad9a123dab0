//! The first bytes of a file that claims to be a minidump; what is read from them is what is written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netdump::vmcore::minidump::header::Header;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(bytes) else { return };
    assert_eq!(Header::parse(&header.emit()), Ok(header));
    let sections = header.sections();
    assert!(sections.pages >= sections.page_map.end && sections.pages.is_multiple_of(4096));
});
