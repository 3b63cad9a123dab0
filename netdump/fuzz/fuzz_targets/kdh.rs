//! 512 bytes that claim to be a kernel dump header, with and without their parity put right: what is read from them can
//! be written and read again, and a receiver judges them without losing a byte that it has acknowledged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netdump::receiver::HeaderSeen;
use netdump::vmcore::KernelDumpHeader;
use netdump::vmcore::kdh::{Compression, KDH_LEN};

fuzz_target!(|bytes: &[u8]| {
    let parsed = KernelDumpHeader::parse(bytes);
    let Some(bytes) = bytes.first_chunk::<KDH_LEN>() else {
        assert!(parsed.is_err());
        return;
    };
    let seen = HeaderSeen::judge(bytes);
    match &seen {
        HeaderSeen::Missing => panic!("512 bytes came"),
        HeaderSeen::Valid(header) => {
            assert_eq!(Ok(header), parsed.as_ref());
            survives_writing(header);
        }
        HeaderSeen::BadParity(header) => {
            assert!(parsed.is_err());
            survives_writing(header);
        }
        HeaderSeen::Unreadable { error, bytes: kept } => {
            assert_eq!((Err(error), &**kept), (parsed.as_ref(), bytes));
        }
    }
    for end in [0, 1, 4096, i64::MAX as u64] {
        let length = seen.file_length(end);
        assert!(length >= end || seen.compression() != Compression::None, "acknowledged bytes are cut off");
        assert!(i64::try_from(length).is_ok(), "no file is that long");
    }
});

/// Texts may be cut, and bytes that are no text are replaced; after that nothing changes any more.
fn survives_writing(header: &KernelDumpHeader) {
    let written = header.to_bytes();
    let again = KernelDumpHeader::parse(&written).expect("it was just written");
    assert_eq!(again.to_bytes(), written);
    let texts_of = |text: &KernelDumpHeader| KernelDumpHeader {
        architecture: text.architecture.clone(),
        host_name: text.host_name.clone(),
        version_string: text.version_string.clone(),
        panic_string: text.panic_string.clone(),
        ..header.clone()
    };
    assert_eq!(again, texts_of(&again), "a number has changed");
}
