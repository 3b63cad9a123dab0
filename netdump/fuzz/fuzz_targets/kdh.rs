//! 512 bytes that claim to be a kernel dump header; what is read from them can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netdump::vmcore::KernelDumpHeader;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = KernelDumpHeader::parse(bytes) else { return };
    let again = KernelDumpHeader::parse(&header.to_bytes()).expect("it was just written");
    assert_eq!(again.dump_length, header.dump_length);
    assert_eq!(again.compression, header.compression);
});
