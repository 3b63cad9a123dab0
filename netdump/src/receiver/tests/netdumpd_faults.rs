//! Faults that FreeBSD's netdumpd has (as of 2023-10), each absent here. Two more need sockets and files: descriptors that
//! leak ([`crate::receiver::server`]) and names that escape through links ([`crate::receiver::disk`]).

use super::*;

fn datagram(kind: MessageKind, sequence: u32, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Message { kind, sequence, offset, payload, aux: 0 }.emit(&mut bytes);
    bytes
}

/// netdumpd frees the session and goes on reading from it.
#[test]
fn herald_that_comes_with_data_of_the_running_dump_queued_changes_nothing() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abc").unwrap();
    // So late that a repeated HERALD would begin another dump.
    bench.wait(30.0);
    assert_eq!(bench.herald(PEER), Err(Ignored::LateHerald));
    bench.wait(1.0);
    let herald = datagram(MessageKind::Herald, 1, 0, b"");
    let queued =
        [(3, 3, b"def"), (4, 6, b"ghi")].map(|(s, o, bytes)| datagram(MessageKind::Vmcore, s, o, bytes));
    let arrived = |to, bytes| Arrived { to, from: PEER, bytes, segment: None };
    let [first, second] = &queued;
    let batch =
        [arrived(to, &first[..]), arrived(HERALD, &herald), arrived(to, second), arrived(HERALD, &herald)];
    bench.receiver.handle_batch(bench.now, &batch);
    assert_eq!(bench.drain(), [3, 4]);
    bench.finish(to, 5).unwrap();
    assert_eq!((bench.opened(), bench.only_end().1.core), (1, b"abcdefghi".to_vec()));
}

/// netdumpd indexes its table of suffixes with the byte.
#[test]
fn compression_out_of_range_does_nothing_to_names_and_length() {
    for compression in [3_u8, 4, 127, 128, 255] {
        let mut bench = bench();
        let to = bench.open();
        bench.data(to, 2, 0, b"abcdef").unwrap();
        let mut header = kdh(3, Compression::None);
        header[0x1ef] = compression;
        // The last byte of its word, and so of the parity.
        header[0x1ff] ^= compression;
        assert_eq!(bench.send(to, PEER, MessageKind::Kdh, 3, 0, &header), Ok(vec![3]));
        bench.finish(to, 4).unwrap();
        let (ending, dump) = bench.only_end();
        assert_eq!((ending.as_str(), &dump.core[..]), ("Dump complete", &b"abcdef"[..]));
        assert!(matches!(dump.header, HeaderSeen::Unreadable { .. }), "{:?}", dump.header);
        assert_eq!(dump.header.compression(), Compression::None);
    }
}

/// netdumpd acknowledges what is in its buffer of 128 KiB, and forgets the buffer when the dump ends early.
#[test]
fn what_was_acknowledged_is_kept_however_the_dump_ends() {
    type End = fn(&mut Bench);
    let endings: [(&str, End); 3] = [
        ("client timed out", |bench| drop(bench.wait(700.0))),
        ("receiver was stopped", |bench| {
            bench.receiver.shut_down(bench.now);
            bench.drain();
        }),
        ("client began another dump", |bench| {
            for _ in 0..4 {
                let _ = bench.herald(PEER);
                bench.wait(1.0);
            }
        }),
    ];
    for (words, end) in endings {
        let mut bench = bench();
        let to = bench.open();
        let mut kept = Vec::new();
        for sequence in 2..40_u8 {
            let (piece, offset) = ([sequence; 1000], kept.len() as u64);
            assert_eq!(bench.data(to, sequence.into(), offset, &piece), Ok(vec![sequence.into()]));
            kept.extend(piece);
        }
        end(&mut bench);
        let (ending, dump) = bench.only_end();
        assert_eq!(ending, format!("Dump incomplete: {words}"));
        assert!(dump.core == kept, "{words}");
    }
}

/// netdumpd cuts the offset of a key to 32 bits: bytes for elsewhere overwrite its beginning.
#[test]
fn key_bytes_for_beyond_any_key_are_refused() {
    let mut bench = bench();
    let to = bench.open();
    bench.send(to, PEER, MessageKind::EkcdKey, 2, 0, b"keyblock").unwrap();
    for offset in [1 << 32, (1 << 32) + 4, 1 << 63, u64::MAX, 64 * 1024 - 3] {
        let sent = bench.send(to, PEER, MessageKind::EkcdKey, 3, offset, b"wild");
        assert_eq!(sent, Err(Ignored::OffsetTooLarge), "{offset:#x}");
    }
    bench.finish(to, 4).unwrap();
    assert_eq!(bench.only_end().1.key, b"keyblock");
}

/// netdumpd takes the offset for a signed one, and its write fails: the dump ends, although one message was wrong.
#[test]
fn core_bytes_for_beyond_any_file_are_refused_and_the_dump_goes_on() {
    let mut bench = bench();
    let to = bench.open();
    for offset in [1 << 63, u64::MAX, u64::MAX - 3, i64::MAX as u64, i64::MAX as u64 - 3] {
        assert_eq!(bench.data(to, 2, offset, b"wild"), Err(Ignored::OffsetTooLarge), "{offset:#x}");
    }
    assert_eq!(bench.data(to, 3, 0, b"tame"), Ok(vec![3]));
    bench.finish(to, 4).unwrap();
    assert_eq!(bench.only_end().1.core, b"tame");
}

/// netdumpd acknowledges such a header and keeps the dump without one.
#[test]
fn header_that_is_too_short_is_not_acknowledged_and_a_whole_one_may_follow() {
    let mut bench = bench();
    let to = bench.open();
    bench.data(to, 2, 0, b"abcdef").unwrap();
    let header = kdh(6, Compression::None);
    for len in [0, 1, 24, 256, 511] {
        let sent = bench.send(to, PEER, MessageKind::Kdh, 3, 0, &header[..len]);
        assert_eq!(sent, Err(Ignored::HeaderInParts), "{len} bytes");
    }
    assert_eq!(bench.send(to, PEER, MessageKind::Kdh, 3, 0, &header), Ok(vec![3]));
    bench.finish(to, 4).unwrap();
    assert_eq!(bench.only_end().1.header.valid().map(|header| header.dump_length), Some(6));
}

/// netdumpd looks for `..` only, and relies on Capsicum for the rest.
#[test]
fn path_that_would_escape_is_refused_and_the_dump_is_taken() {
    for path in
        [&b"../up\0"[..], b"/etc\0", b"a/../../b\0", b"a\0/b\0", b"no NUL", b"new\nline\0", &[b'a'; 2000]]
    {
        let mut bench = bench();
        let herald = datagram(MessageKind::Herald, 1, 0, path);
        bench.receiver.handle_datagram(bench.now, HERALD, PEER, &herald).unwrap();
        assert_eq!(bench.drain(), [1]);
        let to = bench.session(0);
        bench.data(to, 2, 0, b"core").unwrap();
        bench.finish(to, 3).unwrap();
        let dump = bench.only_end().1;
        assert!(dump.request.path.is_err(), "{path:?}");
    }
}
