//! What the dump header and the key do to a dump: its length, its names, and whether it is complete.

use super::*;

#[test]
fn header_must_come_whole() {
    let mut bench = bench();
    let to = bench.open();
    let header = kdh(0, Compression::None);
    let mut send = |offset, payload: &[u8]| bench.send(to, PEER, MessageKind::Kdh, 2, offset, payload);
    assert_eq!(send(0, &header[..511]), Err(Ignored::HeaderInParts));
    assert_eq!(send(1, &header), Err(Ignored::HeaderInParts));
    assert_eq!(send(0, &[&header[..], &[0; 10]].concat()), Ok(vec![2]));
}

#[test]
fn bad_header_is_acknowledged_and_does_not_touch_the_core() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abcdef").unwrap();
    let mut header = kdh(3, Compression::Gzip);
    header[0x1ff] ^= 1;
    assert_eq!(bench.send(to, PEER, MessageKind::Kdh, 3, 0, &header), Ok(vec![3]));
    bench.finish(to, 4).unwrap();
    let (ending, dump) = bench.only_end();
    assert_eq!((ending.as_str(), &dump.core[..]), ("Dump complete", &b"abcdef"[..]));
    assert!(matches!(dump.header, HeaderSeen::BadParity(_)));
}

#[test]
fn compressed_core_is_cut_to_its_length_and_others_are_not() {
    for (compression, stored) in [(Compression::Zstd, 3), (Compression::None, 6)] {
        let mut bench = bench();
        let to = bench.open();
        bench.data(to, 2, 0, b"abcdef").unwrap();
        bench.send(to, PEER, MessageKind::Kdh, 3, 0, &kdh(3, compression)).unwrap();
        bench.finish(to, 4).unwrap();
        assert_eq!(bench.only_end().1.core.len(), stored);
    }
}

/// The header of an encrypted core, with a key block of 8 bytes.
fn kdh_with_key(length: u64) -> [u8; 512] {
    KernelDumpHeader { dump_length: length, key_size: 8, ..Default::default() }.to_bytes()
}

#[test]
fn key_data_and_header_may_come_in_any_order_and_again() {
    let [key, data, header] = [0, 1, 2];
    let orders: [&[usize]; 6] = [
        &[key, data, header],
        &[data, header, key],
        &[header, key, data],
        &[header, data, key],
        &[key, key, data, header, key, header, data],
        &[data, key, data, header, header],
    ];
    for order in orders {
        let mut bench = bench();
        let to = bench.open();
        let kdh = kdh_with_key(6);
        for (sequence, &which) in (2..).zip(order) {
            let acks = if which == key {
                // In two messages, the second one first.
                bench.send(to, PEER, MessageKind::EkcdKey, 100, 3, b"block").unwrap();
                bench.send(to, PEER, MessageKind::EkcdKey, sequence, 0, b"key")
            } else if which == data {
                bench.data(to, sequence, 0, b"abcdef")
            } else {
                bench.send(to, PEER, MessageKind::Kdh, sequence, 0, &kdh)
            };
            assert_eq!(acks, Ok(vec![sequence]), "{order:?}");
        }
        assert_eq!(bench.finish(to, 90), Ok(vec![90]), "{order:?}");
        let (ending, dump) = bench.only_end();
        assert_eq!(
            (ending.as_str(), &dump.core[..], &dump.key[..]),
            ("Dump complete", &b"abcdef"[..], &b"keyblock"[..])
        );
    }
}

#[test]
fn compressed_or_encrypted_core_with_a_gap_is_not_complete() {
    let gzip = kdh(20, Compression::Gzip);
    type Piece<'a> = (u64, &'a [u8]);
    let cases: [(&[u8; 512], &[Piece<'_>], &str); 5] = [
        (&gzip, &[(0, b"0123456789")], "10B of the core never came, the first at 0xa-0x14"),
        (&gzip, &[(0, b"01234"), (7, b"78901234567890")], "2B of the core never came, the first at 0x5-0x7"),
        (&gzip, &[], "20B of the core never came, the first at 0x0-0x14"),
        (&kdh_with_key(20), &[(4, b"4567890123456789")], "4B of the core never came, the first at 0x0-0x4"),
        (&kdh(u64::MAX, Compression::Zstd), &[(0, b"01234")], "the first at 0x5-0xffffffffffffffff"),
    ];
    for (header, pieces, words) in cases {
        let mut bench = bench();
        let to = bench.open();
        bench.send(to, PEER, MessageKind::EkcdKey, 2, 0, b"keyblock").unwrap();
        for (sequence, (offset, piece)) in (3..).zip(pieces) {
            bench.data(to, sequence, *offset, piece).unwrap();
        }
        bench.send(to, PEER, MessageKind::Kdh, 8, 0, header).unwrap();
        assert_eq!(bench.finish(to, 9), Ok(vec![]), "{words}");
        let (ending, _) = bench.only_end();
        assert!(
            ending.starts_with("Dump incomplete: client finished, but ") && ending.ends_with(words),
            "{ending}"
        );
        assert_eq!(bench.finish(to, 9), Err(Ignored::AfterTheEnd));
    }
}

#[test]
fn encrypted_core_without_its_whole_key_is_not_complete() {
    for (offset, key, came) in [(0, &b"keyb"[..], 4), (0, b"", 0), (4, b"lock", 4)] {
        let mut bench = bench();
        let to = bench.open();
        bench.data(to, 2, 0, b"abcdef").unwrap();
        bench.send(to, PEER, MessageKind::EkcdKey, 3, offset, key).unwrap();
        bench.send(to, PEER, MessageKind::Kdh, 4, 0, &kdh_with_key(6)).unwrap();
        assert_eq!(bench.finish(to, 5), Ok(vec![]));
        let said = format!("Dump incomplete: client finished, but of its key only {came}B of 8B came");
        assert_eq!(bench.only_end().0, said);
    }
}

#[test]
fn key_in_too_many_parts_is_not_acknowledged() {
    let mut bench = bench();
    let to = bench.open();
    let mut send = |part: u32| bench.send(to, PEER, MessageKind::EkcdKey, part, u64::from(part) * 2, b"k");
    for part in 2..34 {
        assert_eq!(send(part), Ok(vec![part]));
    }
    assert_eq!(send(34), Err(Ignored::TooManyRanges));
    assert_eq!(send(33), Ok(vec![33]), "what has come may come again");
}

#[test]
fn core_gets_the_length_that_its_header_announces() {
    let mut bench = bench();
    let to = bench.open_named();
    bench.data(to, 2, 4, b"x").unwrap();
    bench.send(to, PEER, MessageKind::Kdh, 3, 0, &kdh(8, Compression::None)).unwrap();
    bench.finish(to, 4).unwrap();
    assert_eq!(bench.only_end().1.core, *b"\0\0\0\0x\0\0\0");
    assert_eq!(bench.ends()[0].1.gaps.listed, [0..4, 5..8]);
}
