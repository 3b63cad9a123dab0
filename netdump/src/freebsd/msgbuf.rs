//! The kernel's message buffer: a ring of text with `struct msgbuf` behind it (`sys/sys/msgbuf.h`, which has kept its
//! head for decades: msg_ptr at 0, msg_magic at 8, msg_size at 12, msg_wseq at 16; 72 bytes in all).
//!
//! `msgbufp` points at the structure. A minidump has the ring in a section of its own, so that it is found without
//! symbols; as that section is rounded up to pages and the kernel puts the structure directly behind the ring, the
//! structure usually comes along and tells where the text begins.

use crate::facts::GuestFacts;
use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::KernelMemory;

/// `MSG_MAGIC`.
const MAGIC: u32 = 0x06_3062;
/// Bytes of `struct msgbuf` that are looked at.
const HEAD_LEN: usize = 20;
/// Longest ring that is read, the newest part of a longer one. The kernel's own is 96 KiB unless tuned.
const MAX_MESSAGES: usize = 1 << 20;
/// Bytes of `struct msgbuf`.
const STRUCTURE_LEN: u64 = 72;
const PAGE: usize = 4096;
/// Printed before anything else at each boot since FreeBSD 12.
const BOOT_MARK: &str = "---<<BOOT>>---";

/// The ring's text by way of `msgbufp`, oldest first.
pub fn read(kernel: &KernelMemory<'_>) -> Option<String> {
    let structure = kernel.pointer("msgbufp").filter(|&address| address != 0)?;
    let mut head = [0; HEAD_LEN];
    kernel.read(structure, &mut head)?;
    let ring = u64_at(&head, 0);
    let (size, written) = ring_of(&head)?;
    newest(size, written, |offset, buf| kernel.read(ring.checked_add(offset)?, buf))
}

/// The text of a minidump's message buffer of `size` bytes, oldest first. `read` fills from an offset in the section,
/// which holds the ring and what the rounding up to a page brought along.
pub fn of_section(size: u64, mut read: impl FnMut(u64, &mut [u8]) -> Option<()>) -> Option<String> {
    let mut head = [0; HEAD_LEN];
    let written = (size.next_multiple_of(PAGE as u64) - size >= STRUCTURE_LEN)
        .then(|| read(size, &mut head))
        .flatten()
        .and_then(|()| ring_of(&head))
        .and_then(|(announced, written)| (announced == size).then_some(written));
    // Where nobody says where the newest text ends, it is taken as it lies: right until the ring is full.
    newest(size, written.unwrap_or(0), read)
}

/// What the messages tell of the kernel since it last booted.
pub fn facts(messages: &str) -> GuestFacts {
    let since_boot = messages.rfind(BOOT_MARK).map_or(messages, |at| &messages[at..]);
    let version = since_boot.lines().find(|line| is_version(line));
    let mut words = version.iter().flat_map(|line| line.split_ascii_whitespace());
    let panic = since_boot.lines().find_map(|line| line.strip_prefix("panic: "));
    GuestFacts {
        os: words.next().map(str::to_owned),
        release: words.next().map(str::to_owned),
        version: version.map(str::to_owned),
        panic_text: panic.map(str::to_owned),
        ..GuestFacts::default()
    }
}

/// "FreeBSD 14.0-CURRENT #0 ...", unlike "FreeBSD is a registered trademark".
fn is_version(line: &str) -> bool {
    line.strip_prefix("FreeBSD ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Size of the ring and the place behind its newest byte.
fn ring_of(head: &[u8; HEAD_LEN]) -> Option<(u64, u64)> {
    let (magic, size, sequence) = (u32_at(head, 8), u64::from(u32_at(head, 12)), u64::from(u32_at(head, 16)));
    (magic == MAGIC && size > 0).then(|| (size, sequence % size))
}

/// The newest text in a ring of `size` bytes whose newest byte lies before `written`, from the oldest byte on. Parts
/// that cannot be read are left out.
fn newest(size: u64, written: u64, mut read: impl FnMut(u64, &mut [u8]) -> Option<()>) -> Option<String> {
    let len = size.min(MAX_MESSAGES as u64);
    let mut bytes = Vec::new();
    let mut at = size - len;
    while at < size {
        let place = (written + at) % size;
        let room = (size - at).min(size - place).min(PAGE as u64 - place % PAGE as u64);
        let mut piece = vec![0; usize::try_from(room).unwrap_or(PAGE)];
        if read(place, &mut piece).is_some() {
            bytes.append(&mut piece);
        }
        at += room;
    }
    Some(text(&bytes)).filter(|text| !text.is_empty())
}

/// Readable text: no NULs, and without the priorities ("<118>") that the log device puts before lines.
fn text(bytes: &[u8]) -> String {
    let bytes: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0).collect();
    let text = String::from_utf8_lossy(&bytes);
    text.split_inclusive('\n').map(without_priority).collect()
}

fn without_priority(line: &str) -> &str {
    let rest = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    match rest {
        Some((number, rest))
            if (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            rest
        }
        _ => line,
    }
}

fn u32_at(bytes: &[u8; HEAD_LEN], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, &byte| (value << 8) | u32::from(byte))
}

fn u64_at(bytes: &[u8; HEAD_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(size: u32, sequence: u32) -> Vec<u8> {
        let mut out = 0xffff_f800_0000_1000_u64.to_le_bytes().to_vec();
        for word in [MAGIC, size, sequence] {
            out.extend(word.to_le_bytes());
        }
        out.resize(72, 0);
        out
    }

    fn of_bytes(section: &[u8], size: u64) -> Option<String> {
        of_section(size, |offset, buf| {
            let offset = usize::try_from(offset).unwrap();
            buf.copy_from_slice(section.get(offset..offset + buf.len())?);
            Some(())
        })
    }

    #[test]
    fn ring_is_unrolled_where_its_structure_came_along() {
        let section = [b"newest\noldest\n".as_slice(), &structure(14, 14 * 3 + 7)].concat();
        assert_eq!(of_bytes(&section, 14).as_deref(), Some("oldest\nnewest\n"));
    }

    #[test]
    fn ring_without_its_structure_is_taken_as_it_lies() {
        for behind in [structure(17, 7), vec![0xff; 72], Vec::new()] {
            let section = [b"first\nlast\n\0\0\0\0\0".as_slice(), &behind].concat();
            assert_eq!(of_bytes(&section, 16).as_deref(), Some("first\nlast\n"));
        }
        assert_eq!(of_bytes(&[0; 4096], 4000), None);
        assert_eq!(of_bytes(&[], 0), None);
    }

    #[test]
    fn of_an_enormous_ring_the_newest_part_is_read() {
        let ring = |offset: u64, buf: &mut [u8]| {
            buf.fill(if offset < 0x1000 { b'n' } else { b'o' });
            (offset < u64::from(u32::MAX)).then_some(())
        };
        let text = newest(u64::from(u32::MAX), 0x1000, ring).unwrap();
        assert_eq!(text.len(), MAX_MESSAGES);
        assert!(text.ends_with(&"n".repeat(0x1000)) && text.starts_with('o'), "the newest is at the end");
    }

    #[test]
    fn priorities_are_taken_off_lines() {
        assert_eq!(
            text(b"<118>Starting\n<6>a <b>\n<x>c\n<>d\n<12345>e"),
            "Starting\na <b>\n<x>c\n<>d\n<12345>e"
        );
    }

    #[test]
    fn messages_since_the_last_boot_tell_version_and_panic() {
        let messages = "FreeBSD 13.0 old\npanic: old\n---<<BOOT>>---\nCopyright (c) The FreeBSD Project.\n\
                        FreeBSD is a registered trademark of The FreeBSD Foundation.\n\
                        FreeBSD 14.0-CURRENT #7 main-n1: Mon\n    root@x:/usr/obj\n\
                        panic: first\ncpuid = 2\npanic: second, while panicking\n";
        let facts = facts(messages);
        assert_eq!(facts.os.as_deref(), Some("FreeBSD"));
        assert_eq!(facts.release.as_deref(), Some("14.0-CURRENT"));
        assert_eq!(facts.version.as_deref(), Some("FreeBSD 14.0-CURRENT #7 main-n1: Mon"));
        assert_eq!(facts.panic_text.as_deref(), Some("first"), "the first is the cause");
        assert_eq!(super::facts("nothing\n"), GuestFacts::default());
    }
}
