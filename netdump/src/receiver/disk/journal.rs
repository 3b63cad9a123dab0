//! `journal.HOST.N`: what the next receiver has to know of a dump when this one dies.
//!
//! It is there from before the first byte of a dump until everything of it has its final name and its manifest. As long
//! as it lives, its receiver holds a lock (`flock`) on it: a journal that can be locked is a dead receiver's.
//!
//! | offset | content; integers are little-endian |
//! |---|---|
//! | 0 | `netdump journal\0`, length of the JSON: u32, its CRC-32: u32, JSON: [`Head`] |
//! | 4096 | kind of the header: u32 (see [`header_slot`]), CRC-32 of what follows: u32, the 512 bytes of the KDH |
//! | 8192 | records of 32 bytes: a stored range each |
//!
//! A record is start: u64, end: u64, object: u32 (1 core, 2 key), its number: u32, CRC-32 of these: u32, zeros: u32. It is
//! written when its bytes are, and before they are acknowledged. A range that goes on where the last record's ends only
//! replaces that record: a dump that comes in order has a journal of one. No record crosses a page, so that a receiver
//! killed in the middle of it leaves either the old or the new one. Nothing is synced: a journal counts only as long as
//! the page cache of the machine that wrote it lives ([`Head::boot`]).

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::PRIVATE;
use super::directory::Directory;
use crate::receiver::ranges::RangeSet;
use crate::receiver::summary::HeaderSeen;
use crate::vmcore::kdh::KDH_LEN;

const MAGIC: &[u8; 16] = b"netdump journal\0";
/// Bytes before the JSON.
const HEAD: usize = MAGIC.len() + 8;
const HEADER_AT: u64 = 4096;
/// Kind and checksum of the header slot.
const HEADER_HEAD: usize = 8;
const RECORDS_AT: u64 = 8192;
const RECORD: usize = 32;
/// Bytes of a record that its checksum covers.
const COVERED: usize = 24;
/// More records than this, and more than twice as many as there are ranges, are written anew.
const MANY_RECORDS: u32 = 1 << 16;
/// Longest journal that is read: room for twice the ranges that a session may have.
const MAX_LEN: u64 = 128 << 20;
/// Changes with each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Whose dump it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The start of the machine in which it was begun.
    pub(super) boot: String,
    /// The client's name for the dump; a stock client has none.
    pub(super) dump_id: Option<NonZeroU32>,
    /// The client.
    pub(super) peer: SocketAddrV4,
    /// The address that it spoke to.
    pub(super) local: Ipv4Addr,
    /// The directory that it asked for, below the store's, if it is used and is UTF-8.
    pub(super) path: Option<String>,
    /// HOST in the names of the files.
    pub(super) host: String,
    /// N in the names of the files.
    pub(super) index: u32,
    /// When the HERALD came, in milliseconds since 1970.
    pub(super) began: u64,
    /// Lines for the info file.
    pub(super) notes: Vec<String>,
}

impl Head {
    /// Whether what the journal says is stored still must be: the machine has not been started anew since.
    pub(super) fn is_of_this_boot(&self) -> bool {
        boot_id().is_some_and(|boot| boot == self.boot)
    }
}

/// The start of the machine that this is.
pub(super) fn boot_id() -> Option<String> {
    std::fs::read_to_string(BOOT_ID).ok().map(|text| text.trim().to_owned())
}

/// What a range is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    Core = 1,
    Key = 2,
}

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    name: String,
    /// What is stored of the core.
    core: RangeSet,
    /// What is stored of the key.
    key: RangeSet,
    records: u32,
    /// What the last record says.
    last: Option<(Object, Range<u64>)>,
}

/// What a journal says.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) head: Head,
    pub(super) header: HeaderSeen,
}

/// Why a journal is not taken over.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// Its receiver lives.
    Alive,
    /// It cannot be read, or makes no sense.
    Unusable(io::Error),
}

/// The name of a journal.
pub(super) fn name_of(host: &str, index: u32) -> String {
    format!("journal.{host}.{index}")
}

impl Journal {
    /// Begins one. It has its name only when it is whole and locked.
    pub(super) fn begin(directory: &Directory, head: &Head) -> io::Result<Self> {
        let name = name_of(&head.host, head.index);
        let file = new_file(directory, &name, head)?;
        Ok(Self { file, name, core: unbounded(), key: unbounded(), records: 0, last: None })
    }

    /// Takes over one whose receiver is dead.
    pub(super) fn take_over(directory: &Directory, name: &str) -> Result<(Self, Contents), NotTaken> {
        let file = directory.open_for_update(name).map_err(NotTaken::Unusable)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => NotTaken::Alive,
            TryLockError::Error(error) => NotTaken::Unusable(error),
        })?;
        let mut bytes = Vec::new();
        (&file).take(MAX_LEN).read_to_end(&mut bytes).map_err(NotTaken::Unusable)?;
        let unusable = || NotTaken::Unusable(io::ErrorKind::InvalidData.into());
        let head = read_head(&bytes).ok_or_else(unusable)?;
        if name_of(&head.host, head.index) != name {
            return Err(unusable());
        }
        let header = read_header(&bytes);
        let mut journal =
            Self { file, name: name.to_owned(), core: unbounded(), key: unbounded(), records: 0, last: None };
        journal.read_records(&bytes);
        Ok((journal, Contents { head, header }))
    }

    /// What is stored of the core.
    pub(super) fn core(&self) -> &RangeSet {
        &self.core
    }

    /// What is stored of the key.
    pub(super) fn key(&self) -> &RangeSet {
        &self.key
    }

    /// Takes a range into account that is about to be stored, and says how many of its bytes are new.
    pub(super) fn expect(&mut self, object: Object, range: &Range<u64>) -> u64 {
        match object {
            Object::Core => self.core.insert(range.clone()),
            Object::Key => self.key.insert(range.clone()),
        }
    }

    /// Notes that a range is stored of which [`Self::expect`] has said that it is new.
    pub(super) fn stored(
        &mut self,
        directory: &Directory,
        object: Object,
        range: Range<u64>,
    ) -> io::Result<()> {
        self.record(object, range)?;
        if self.records > MANY_RECORDS && u64::from(self.records) / 2 > self.core.len() as u64 {
            self.compact(directory)?;
        }
        Ok(())
    }

    /// Notes the dump's header.
    pub(super) fn header(&self, header: &HeaderSeen) -> io::Result<()> {
        let Some((kind, bytes)) = header_slot(header) else { return Ok(()) };
        let mut slot = kind.to_le_bytes().to_vec();
        slot.extend_from_slice(&checksum(&bytes));
        slot.extend_from_slice(&bytes);
        self.file.write_all_at(&slot, HEADER_AT)
    }

    /// When something was stored last.
    pub(super) fn modified(&self) -> Option<std::time::SystemTime> {
        self.file.metadata().and_then(|metadata| metadata.modified()).ok()
    }

    /// Nothing is left to be known of the dump.
    pub(super) fn remove(&self, directory: &Directory) {
        if let Err(error) = directory.remove(&self.name) {
            tracing::debug!(name = self.name, %error, "journal not removed");
        }
    }

    /// Writes a record, over the last one where that says the beginning of the same.
    fn record(&mut self, object: Object, range: Range<u64>) -> io::Result<()> {
        let longer = self.last.take().filter(|(of, last)| *of == object && last.end == range.start);
        let (number, range) = match longer {
            Some((_, last)) => (self.records - 1, last.start..range.end),
            None => (self.records, range),
        };
        let at = RECORDS_AT + u64::from(number) * RECORD as u64;
        self.file.write_all_at(&record_bytes(object, &range, number), at)?;
        self.records = number + 1;
        self.last = Some((object, range));
        Ok(())
    }

    /// Writes a new journal with a record for each range, and puts it in the place of this one.
    fn compact(&mut self, directory: &Directory) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(RECORDS_AT).expect("two pages")];
        self.file.read_exact_at(&mut bytes, 0)?;
        let ranges = self.key.iter().map(|range| (Object::Key, range));
        let mut records = 0;
        for (object, range) in ranges.chain(self.core.iter().map(|range| (Object::Core, range))) {
            bytes.extend_from_slice(&record_bytes(object, &range, records));
            records += 1;
        }
        let aside = aside(&self.name);
        let file = locked_file(directory, &aside, &bytes)?;
        directory.rename(&aside, &self.name)?;
        (self.file, self.records, self.last) = (file, records, None);
        Ok(())
    }

    /// Takes the records up to the first that is not whole: there the receiver died.
    fn read_records(&mut self, bytes: &[u8]) {
        let records = usize::try_from(RECORDS_AT).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        for record in records.chunks_exact(RECORD) {
            let Some((object, range)) = read_record(record, self.records) else { break };
            match object {
                Object::Core => self.core.insert(range),
                Object::Key => self.key.insert(range),
            };
            self.records += 1;
        }
    }
}

/// The session that asks for ranges to be stored has a limit for them.
fn unbounded() -> RangeSet {
    RangeSet::with_cap(usize::MAX)
}

fn aside(name: &str) -> String {
    format!(".{name}.new")
}

fn new_file(directory: &Directory, name: &str, head: &Head) -> io::Result<File> {
    let json = serde_json::to_vec(head)?;
    let mut bytes = MAGIC.to_vec();
    let length = u32::try_from(json.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&json));
    bytes.extend_from_slice(&json);
    let room = usize::try_from(HEADER_AT).expect("a page");
    if bytes.len() > room {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "names and notes too long for a journal"));
    }
    bytes.resize(usize::try_from(RECORDS_AT).expect("two pages"), 0);
    let aside = aside(name);
    let file = locked_file(directory, &aside, &bytes)?;
    directory.rename_new(&aside, name)?;
    Ok(file)
}

/// A new file of this content that nobody else has locked.
fn locked_file(directory: &Directory, name: &str, bytes: &[u8]) -> io::Result<File> {
    directory.remove(name)?;
    let file = directory.create_new(name, PRIVATE)?;
    file.try_lock().map_err(io::Error::from)?;
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32fast::hash(bytes).to_le_bytes()
}

fn record_bytes(object: Object, range: &Range<u64>, number: u32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&range.start.to_le_bytes());
    record[8..16].copy_from_slice(&range.end.to_le_bytes());
    record[16..20].copy_from_slice(&(object as u32).to_le_bytes());
    record[20..24].copy_from_slice(&number.to_le_bytes());
    let sum = checksum(&record[..COVERED]);
    record[COVERED..28].copy_from_slice(&sum);
    record
}

fn read_record(record: &[u8], number: u32) -> Option<(Object, Range<u64>)> {
    let (covered, rest) = record.split_at_checked(COVERED)?;
    let (start, end) = (u64_at(covered, 0)?, u64_at(covered, 8)?);
    let whole = rest.starts_with(&checksum(covered)) && u32_at(covered, 20)? == number && start < end;
    let object = match u32_at(covered, 16)? {
        1 => Object::Core,
        2 => Object::Key,
        _ => return None,
    };
    (whole && i64::try_from(end).is_ok()).then_some((object, start..end))
}

fn read_head(bytes: &[u8]) -> Option<Head> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let length = usize::try_from(u32_at(rest, 0)?).ok()?;
    let json = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    rest.get(4..)?.starts_with(&checksum(json)).then(|| serde_json::from_slice(json).ok())?
}

/// What is kept of a header: its kind and its bytes. 1: as [`HeaderSeen::judge`] takes them. 2: the fields are right and
/// the parity was not; it is in these bytes.
fn header_slot(header: &HeaderSeen) -> Option<(u32, [u8; KDH_LEN])> {
    match header {
        HeaderSeen::Missing => None,
        HeaderSeen::Valid(header) => Some((1, header.to_bytes())),
        HeaderSeen::Unreadable { bytes, .. } => Some((1, **bytes)),
        HeaderSeen::BadParity(header) => Some((2, header.to_bytes())),
    }
}

fn read_header(bytes: &[u8]) -> HeaderSeen {
    let read = || {
        let slot = bytes.get(usize::try_from(HEADER_AT).ok()?..)?;
        let kdh = slot.get(HEADER_HEAD..)?.first_chunk::<KDH_LEN>()?;
        let whole = slot.get(4..)?.starts_with(&checksum(kdh));
        match (u32_at(slot, 0)?, HeaderSeen::judge(kdh)) {
            (1, seen) if whole => Some(seen),
            (2, HeaderSeen::Valid(header)) if whole => Some(HeaderSeen::BadParity(header)),
            _ => None,
        }
    };
    read().unwrap_or_default()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmcore::KernelDumpHeader;
    use crate::vmcore::kdh::Compression;

    fn head() -> Head {
        Head {
            boot: boot_id().unwrap(),
            dump_id: NonZeroU32::new(7),
            peer: "10.0.0.2:20024".parse().unwrap(),
            local: Ipv4Addr::LOCALHOST,
            path: Some("a/b".into()),
            host: "vm1".into(),
            index: 3,
            began: 1,
            notes: vec!["note".into()],
        }
    }

    fn store(journal: &mut Journal, directory: &Directory, object: Object, range: Range<u64>) {
        if journal.expect(object, &range) > 0 {
            journal.stored(directory, object, range).unwrap();
        }
    }

    fn directory() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        (dir, directory)
    }

    /// What a new receiver finds after `write`, and how long the journal is.
    fn after(
        write: impl FnOnce(&mut Journal, &Directory),
    ) -> (Vec<Range<u64>>, Vec<Range<u64>>, Contents, u64) {
        let (dir, directory) = directory();
        let mut journal = Journal::begin(&directory, &head()).unwrap();
        write(&mut journal, &directory);
        drop(journal);
        let (journal, contents) = Journal::take_over(&directory, "journal.vm1.3").unwrap();
        let length = std::fs::metadata(dir.path().join("journal.vm1.3")).unwrap().len();
        (journal.core.iter().collect(), journal.key.iter().collect(), contents, length)
    }

    #[test]
    fn what_was_stored_is_told_to_the_next_receiver() {
        let (core, key, contents, length) = after(|journal, directory| {
            for (start, end) in [(0, 10), (10, 20), (40, 50), (5, 15), (20, 30), (30, 40)] {
                store(journal, directory, Object::Core, start..end);
            }
            store(journal, directory, Object::Key, 0..5);
        });
        assert_eq!((core, key), (vec![Range { start: 0, end: 50 }], vec![Range { start: 0, end: 5 }]));
        assert_eq!(contents.head, head());
        assert!(contents.head.is_of_this_boot());
        assert_eq!(length, RECORDS_AT + 4 * RECORD as u64);
    }

    #[test]
    fn a_dump_in_order_takes_one_record() {
        let (core, _, _, length) = after(|journal, directory| {
            for i in 0..1000 {
                store(journal, directory, Object::Core, i * 100..(i + 1) * 100);
            }
        });
        assert_eq!((core, length), (vec![Range { start: 0, end: 100_000 }], RECORDS_AT + RECORD as u64));
    }

    #[test]
    fn a_journal_of_many_records_is_written_anew() {
        // Every other one first, then what lies between.
        let (core, _, contents, length) = after(|journal, directory| {
            journal.header(&HeaderSeen::Valid(KernelDumpHeader::default())).unwrap();
            for i in 0..80_000 {
                store(journal, directory, Object::Core, i * 20..i * 20 + 10);
            }
            for i in 0..79_999 {
                store(journal, directory, Object::Core, i * 20 + 10..(i + 1) * 20);
            }
        });
        assert_eq!(core, [Range { start: 0, end: 79_999 * 20 + 10 }]);
        assert_eq!(
            (contents.head, contents.header),
            (head(), HeaderSeen::Valid(KernelDumpHeader::default()))
        );
        assert!(length < RECORDS_AT + u64::from(MANY_RECORDS) * RECORD as u64 * 2, "{length}");
    }

    #[test]
    fn every_kind_of_header_comes_back() {
        let fields = KernelDumpHeader { panic_string: "boom".into(), dump_length: 9, ..Default::default() };
        let good = fields.to_bytes();
        let (mut bad_parity, mut unreadable) = (good, good);
        bad_parity[0x1ff] ^= 1;
        unreadable[0] = 0;
        for bytes in [good, bad_parity, unreadable] {
            let seen = HeaderSeen::judge(&bytes);
            let (_, _, contents, _) = after(|journal, _| journal.header(&seen).unwrap());
            assert_eq!(contents.header, seen);
        }
        let compressed = HeaderSeen::Valid(KernelDumpHeader { compression: Compression::Zstd, ..fields });
        let (_, _, contents, _) = after(|journal, _| journal.header(&compressed).unwrap());
        assert_eq!(contents.header, compressed);
        assert_eq!(after(|_, _| {}).2.header, HeaderSeen::Missing);
    }

    #[test]
    fn a_journal_belongs_to_its_receiver_as_long_as_that_lives() {
        let (_dir, directory) = directory();
        let journal = Journal::begin(&directory, &head()).unwrap();
        assert!(matches!(Journal::take_over(&directory, "journal.vm1.3"), Err(NotTaken::Alive)));
        drop(journal);
        let (journal, _) = Journal::take_over(&directory, "journal.vm1.3").unwrap();
        assert!(matches!(Journal::take_over(&directory, "journal.vm1.3"), Err(NotTaken::Alive)));
        journal.remove(&directory);
        assert!(!directory.holds("journal.vm1.3"));
    }

    #[test]
    fn a_torn_tail_is_ignored_and_a_torn_head_refused() {
        let (dir, directory) = directory();
        let path = dir.path().join("journal.vm1.3");
        let mut journal = Journal::begin(&directory, &head()).unwrap();
        journal.header(&HeaderSeen::Valid(KernelDumpHeader::default())).unwrap();
        for start in [0, 100, 200] {
            store(&mut journal, &directory, Object::Core, start..start + 10);
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let ranges = [0..10, 100..110, 200..210];
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let taken = Journal::take_over(&directory, "journal.vm1.3").ok();
            taken.map(|(journal, _)| journal.core().iter().collect::<Vec<_>>())
        };
        let first = usize::try_from(RECORDS_AT).unwrap();
        for len in 0..=whole.len() {
            if len > HEAD + 300 && len < first {
                continue;
            }
            let records = len.saturating_sub(first) / RECORD;
            let expected = (len >= first).then(|| ranges[..records].to_vec());
            let found = read(&whole[..len]);
            assert!(
                found == expected || (len < first && found.is_none_or(|found| found.is_empty())),
                "{len}"
            );
        }
        for byte in first..first + 3 * RECORD {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0x10;
            let record = (byte - first) / RECORD;
            let intact = if (byte - first) % RECORD < 28 { record } else { 3 };
            assert_eq!(read(&damaged), Some(ranges[..intact].to_vec()), "byte {byte}");
        }
        for byte in 0..HEAD + 10 {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0x10;
            assert_eq!(read(&damaged), None, "byte {byte}");
        }
    }
}
