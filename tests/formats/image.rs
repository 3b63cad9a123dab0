//! What a planned core says of itself while it is sent.

use harness::fake_guest::FakeGuest;
use netdump::vmcore::{CoreNotes, DumpImage, MemoryRange};
use netdump::{ReadAt, ReadError};

use super::{guest, plan};

/// Offset in the core of the first byte of memory.
fn data_at(image: &DumpImage<'_>, memory: u64) -> u64 {
    image.length() - memory
}

#[test]
fn untouched_pages_are_neither_listed_nor_read() {
    let guest = guest();
    let image = plan(&guest, &CoreNotes::default());
    let mut at = 0;
    let mut listed = 0;
    while let Some(run) = image.next_data(at) {
        assert!(at <= run.start && run.start < run.end && run.end <= image.length(), "{run:?} after {at:#x}");
        let mut bytes = vec![0; usize::try_from(run.end - run.start).unwrap()];
        image.read_at(run.start, &mut bytes).unwrap();
        listed += run.end - run.start;
        at = run.end;
    }
    assert_eq!(guest.untouched_reads(), 0);
    let head = data_at(&image, 0x9f000 + 0x4_0000 + 0x4000);
    // All but the padding of the headers and the untouched part.
    assert!(listed <= image.length() - 0x2_0000 && listed > image.length() - 0x2_0000 - head);
}

#[test]
fn what_is_not_listed_reads_as_zeros() {
    let guest = guest();
    let image = plan(&guest, &CoreNotes::default());
    let gap = data_at(&image, 0x4000 + 0x3_0000);
    assert_eq!(image.next_data(gap), Some(gap + 0x2_0000..gap + 0x3_0000));
    let mut bytes = vec![0xaa; 0x2_0000];
    image.read_at(gap, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn parts_of_one_range_are_listed_apart() {
    let guest = FakeGuest::new(1).untouched_ram(0, 0x4000).touched(0x2000..0x4000);
    let mut image = DumpImage::new(&guest);
    for start in [0x0000, 0x3000, 0x1000, 0x2000] {
        image.push_guest(MemoryRange { start, len: 0x1000 });
    }
    image.push_zeros(0x1000);
    image.push_bytes(b"end".to_vec());
    assert_eq!(image.next_data(0), Some(0x1000..0x2000));
    assert_eq!(image.next_data(0x2000), Some(0x3000..0x4000));
    assert_eq!(image.next_data(0x4000), Some(0x5000..0x5003));
    let mut bytes = vec![0xaa; 0x5003];
    image.read_at(0, &mut bytes).unwrap();
    let touched = [0x1000..0x2000, 0x3000..0x4000].map(|range| bytes[range].to_vec());
    let expected = [0x3000_u64, 0x2000]
        .map(|start| (start..start + 0x1000).map(|at| guest.byte(at)).collect::<Vec<_>>());
    assert_eq!(touched, expected);
    assert!(bytes[..0x1000].iter().chain(&bytes[0x2000..0x3000]).all(|&byte| byte == 0));
    assert_eq!(bytes[0x4fff..], *b"\0end");
}

#[test]
fn each_unreadable_page_counts_once() {
    let guest = guest().unreadable(0x3000..0x5000).unreadable(0x7000..0x8000).unreadable(0x5000..0x6000);
    let image = plan(&guest, &CoreNotes::default());
    let data = data_at(&image, 0x9f000 + 0x4_0000 + 0x4000);
    for _ in 0..3 {
        // Unaligned pieces, as on the wire.
        for offset in (data..data + 0x9000).step_by(1448) {
            let mut piece = [0xaa; 1448];
            image.read_at(offset, &mut piece).unwrap();
            let expected: Vec<u8> = (offset..).take(1448).map(|at| guest.byte_in_core(at - data)).collect();
            assert_eq!(piece[..], expected);
        }
    }
    assert_eq!(image.bad_pages(), 4);
    assert_eq!(image.bad_ranges(), [0x3000..0x6000, 0x7000..0x8000]);
}

#[test]
fn bytes_in_one_piece_of_guest_memory_are_located() {
    let guest = guest();
    let image = plan(&guest, &CoreNotes::default());
    let high = data_at(&image, 0x4000);
    assert_eq!(image.locate(high, 0x4000), Some(1 << 32));
    assert_eq!(image.locate(high + 5, 1448), Some((1 << 32) + 5));
    assert_eq!(image.locate(high, 0x4001), None);
    assert_eq!(image.locate(high - 1, 2), None, "two ranges");
    assert_eq!(image.locate(0, 64), None, "headers");
    assert_eq!(image.locate(image.length(), 1), None);
}

#[test]
fn reads_beyond_the_end_are_refused() {
    let guest = FakeGuest::new(1).ram(0, 0x1000);
    let image = plan(&guest, &CoreNotes::default());
    for (offset, len) in [(image.length(), 1), (image.length() - 1, 2), (u64::MAX, 2)] {
        let result = image.read_at(offset, &mut vec![0; len]);
        assert!(matches!(result, Err(ReadError::OutOfRange { .. })), "{offset:#x} {len}");
    }
    image.read_at(image.length(), &mut []).unwrap();
    assert_eq!(image.next_data(image.length()), None);
    assert_eq!(image.next_data(u64::MAX), None);
}
