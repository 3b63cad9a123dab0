//! Dumps in real directories, with planted links, taken names and a full disk.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::store::{Commit, OpenDump};
use super::super::{
    Cause, DumpSummary, Ending, Endpoint, HeaderSeen, Receiver, ReceiverConfig, ReceiverEvent,
};
use std::io::IoSlice;

mod limits;
mod manifests;
mod recovery;

use super::*;
use crate::manifest::{self, Manifest};
use crate::receiver::ranges::{Gaps, RangeSet};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::Compression;
use crate::wire::{Message, MessageKind};

const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 20024);
/// HOST of the peer in file names.
const H: &str = "10.0.0.2";

fn store(directory: &Path) -> DiskStore {
    DiskStore::open(directory, HostNames::numeric()).unwrap()
}

fn request(path: &[u8]) -> NewDump {
    NewDump { peer: PEER, local: Ipv4Addr::LOCALHOST, path: DumpPath::from_herald(path), dump_id: None }
}

fn summary(header: HeaderSeen, end: u64) -> DumpSummary {
    let mut received = RangeSet::with_cap(10);
    received.insert(0..end);
    let length = header.file_length(end);
    DumpSummary {
        peer: PEER,
        local: Ipv4Addr::LOCALHOST,
        dump_id: None,
        resumed: 0,
        bytes: end,
        end,
        length,
        gaps: received.gaps(length),
        header,
        messages: 1,
        repeated: 0,
        ignored: 0,
        elapsed: Duration::from_secs(1),
    }
}

fn commit(dump: &mut DiskDump, summary: &DumpSummary) -> Result<StoredDump, StoreError> {
    loop {
        if let Commit::Done(stored) = dump.commit(summary)? {
            return Ok(stored);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A whole dump of these bytes.
fn dump(store: &mut DiskStore, path: &[u8], core: &[u8]) -> StoredDump {
    let mut dump = store.create(&request(path)).unwrap();
    dump.write_at(0, &[IoSlice::new(core)]).unwrap();
    commit(&mut dump, &summary(HeaderSeen::Missing, core.len() as u64)).unwrap()
}

/// What its manifest says, as soon as there is one.
fn manifest(stored: &StoredDump) -> Manifest {
    loop {
        match stored.proof.outcome() {
            Some(proven) => return manifest::read(&proven.as_ref().unwrap().manifest).unwrap(),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn files_are_named_and_kept_as_netdumpd_does() {
    let dir = tempfile::tempdir().unwrap();
    let stored = dump(&mut store(dir.path()), b"", b"core");
    manifest(&stored);
    let expected = [
        "bounds.H",
        "info.H.0",
        "info.H.last",
        "manifest.H.0.json",
        "manifest.H.last.json",
        "vmcore.H.0",
        "vmcore.H.last",
    ];
    assert_eq!(names(dir.path()), expected.map(|name| name.replace('H', H)));
    assert_eq!(fs::read(&stored.core).unwrap(), b"core");
    assert_eq!(stored.core, dir.path().join(format!("vmcore.{H}.0")));
    assert!(stored.complete);
    for path in [&stored.core, &stored.info, &stored.proof.outcome().unwrap().as_ref().unwrap().manifest] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(text(dir.path().join(format!("bounds.{H}"))), "1\n");
    let link = fs::read_link(dir.path().join(format!("vmcore.{H}.last"))).unwrap();
    assert_eq!(link, Path::new(&format!("vmcore.{H}.0")));
    let info = text(dir.path().join(format!("info.{H}.last")));
    assert!(
        info.starts_with("Dump from 10.0.0.2 [10.0.0.2]\n") && info.ends_with("Dump complete\n"),
        "{info}"
    );
}

#[test]
fn next_dump_takes_the_next_number_and_the_links() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    dump(&mut store, b"", b"first");
    dump(&mut store, b"", b"second");
    fs::write(dir.path().join(format!("bounds.{H}")), "junk").unwrap();
    let third = dump(&mut store, b"", b"third");
    assert_eq!(third.core, dir.path().join(format!("vmcore.{H}.2")));
    assert_eq!(text(dir.path().join(format!("vmcore.{H}.last"))), "third");
    fs::write(dir.path().join(format!("bounds.{H}")), "40").unwrap();
    assert_eq!(dump(&mut store, b"", b"x").core, dir.path().join(format!("vmcore.{H}.40")));
    fs::write(dir.path().join(format!("bounds.{H}")), u32::MAX.to_string()).unwrap();
    assert_eq!(dump(&mut store, b"", b"x").core, dir.path().join(format!("vmcore.{H}.3")));
}

#[test]
fn nothing_is_left_of_a_dump_that_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    store.create(&request(b"")).unwrap().discard();
    assert_eq!(names(dir.path()), [format!("bounds.{H}")]);
}

#[test]
fn while_it_is_received_a_dump_is_said_to_be_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = store(dir.path()).create(&request(b"")).unwrap();
    let info = dir.path().join(format!("info.{H}.0"));
    assert!(text(&info).ends_with("Dump incomplete: the receiver was still receiving it\n"));
    let header = KernelDumpHeader { panic_string: "boom".into(), ..Default::default() };
    dump.header(&HeaderSeen::judge(&header.to_bytes())).unwrap();
    dump.write_at(0, &[IoSlice::new(b"core")]).unwrap();
    // As after kill -9: what was acknowledged is in the files.
    drop(dump);
    assert_eq!(text(dir.path().join(format!("info.{H}.0.partial"))), "");
    assert!(text(&info).contains("Panic String: boom\n"));
    assert_eq!(text(dir.path().join(format!("vmcore.{H}.0.partial"))), "core");
    let mut again = store(dir.path());
    assert!(self::dump(&mut again, b"", b"x").core.ends_with(format!("vmcore.{H}.1")));
}

#[test]
fn abandoned_dump_is_kept_under_a_name_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = store(dir.path()).create(&request(b"")).unwrap();
    dump.write_at(0, &[IoSlice::new(b"half")]).unwrap();
    dump.key_at(0, b"key").unwrap();
    let stored =
        dump.abandon(&summary(HeaderSeen::Missing, 4), &Ending::Incomplete(Cause::TimedOut)).unwrap();
    assert!(!stored.complete);
    assert_eq!(text(&stored.core), "half");
    assert!(!manifest(&stored).complete);
    let expected = ["bounds.H", "info.H.0", "key.H.0.incomplete", "manifest.H.0.json"];
    assert_eq!(names(dir.path())[..4], expected.map(|name| name.replace('H', H)));
    assert!(stored.core.ends_with(format!("vmcore_encrypted.{H}.0.incomplete")), "there is a key");
    assert!(text(stored.info).ends_with("Dump incomplete: client timed out\n"));
}

#[test]
fn encrypted_and_compressed_cores_are_named_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = store(dir.path()).create(&request(b"")).unwrap();
    let header = KernelDumpHeader {
        dump_length: 3,
        key_size: 5,
        compression: Compression::Zstd,
        ..Default::default()
    };
    let header = HeaderSeen::judge(&header.to_bytes());
    dump.write_at(0, &[IoSlice::new(b"abc\0\0\0")]).unwrap();
    dump.key_at(3, b"ey").unwrap();
    dump.key_at(0, b"the").unwrap();
    dump.header(&header).unwrap();
    let stored = commit(&mut dump, &summary(header, 6)).unwrap();
    assert_eq!(stored.core, dir.path().join(format!("vmcore_encrypted.{H}.0.zst")));
    assert_eq!(text(stored.core), "abc");
    let key = stored.key.unwrap();
    assert_eq!((key.as_path(), text(&key).as_str()), (&*dir.path().join(format!("key.{H}.0")), "theey"));
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o400);
}

#[test]
fn endings_follow_the_header_and_links_follow_the_names() {
    let names_of = |key_size: u32, compression: u8| {
        let dir = tempfile::tempdir().unwrap();
        let mut dump = store(dir.path()).create(&request(b"")).unwrap();
        let header = KernelDumpHeader { dump_length: 3, key_size, ..Default::default() };
        let mut bytes = header.to_bytes();
        // The compression is the last byte of its word, and so of the parity.
        bytes[0x1ef] = compression;
        bytes[0x1ff] ^= compression;
        let header = HeaderSeen::judge(&bytes);
        dump.write_at(0, &[IoSlice::new(b"abc")]).unwrap();
        if key_size > 0 {
            dump.key_at(0, b"key").unwrap();
        }
        dump.header(&header).unwrap();
        let stored = commit(&mut dump, &summary(header, 3)).unwrap();
        let link = fs::read_link(dir.path().join(format!("vmcore.{H}.last"))).unwrap();
        assert_eq!(link.to_str(), stored.core.file_name().unwrap().to_str());
        let info = fs::read_link(dir.path().join(format!("info.{H}.last"))).unwrap();
        assert_eq!(info.to_str(), Some(&*format!("info.{H}.0")));
        (link.to_str().unwrap().to_owned(), text(stored.info))
    };
    assert_eq!(names_of(0, 0).0, format!("vmcore.{H}.0"));
    assert_eq!(names_of(0, 1).0, format!("vmcore.{H}.0.gz"));
    assert_eq!(names_of(0, 2).0, format!("vmcore.{H}.0.zst"));
    assert_eq!(names_of(4096, 0).0, format!("vmcore_encrypted.{H}.0"));
    assert_eq!(names_of(4096, 1).0, format!("vmcore_encrypted.{H}.0.gz"));
    let (name, info) = names_of(0, 3);
    assert_eq!(name, format!("vmcore.{H}.0"));
    assert!(info.contains("Header: not usable: compression 3"), "{info}");
    // Its header is of no use, but there is a key.
    assert_eq!(names_of(4096, 3).0, format!("vmcore_encrypted.{H}.0"));
}

#[test]
fn path_below_the_directory_is_used() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    symlink("a/b", dir.path().join("inside")).unwrap();
    let mut store = store(dir.path());
    assert_eq!(dump(&mut store, b"a/b\0", b"x").core, dir.path().join(format!("a/b/vmcore.{H}.0")));
    assert_eq!(dump(&mut store, b"inside\0", b"x").core, dir.path().join(format!("inside/vmcore.{H}.1")));
}

#[test]
fn path_that_cannot_be_used_leads_to_the_default_directory_and_is_named_in_info() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    symlink(outside.path(), dir.path().join("absolute")).unwrap();
    let relative = Path::new("..").join(outside.path().file_name().unwrap());
    symlink(relative, dir.path().join("climbing")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let mut store = store(dir.path());
    let refused: [&[u8]; 8] =
        [b"absolute\0", b"climbing\0", b"loop\0", b"file\0", b"missing\0", b"../x\0", b"/tmp\0", b"no-nul"];
    for path in refused {
        let stored = dump(&mut store, path, b"x");
        assert_eq!(stored.core.parent(), Some(dir.path()), "{path:?}");
        let info = text(stored.info);
        assert!(info.contains("  Note: ") && info.contains("was not used: "), "{path:?} {info}");
    }
    assert_eq!(names(outside.path()), [""; 0]);
}

#[test]
fn planted_links_are_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let planted = [
        "info.H.0",
        "vmcore.H.0",
        "vmcore.H.0.partial",
        "info.H.0.partial",
        "vmcore_encrypted.H.0.gz",
        "key.H.0.partial",
        "journal.H.0",
        ".journal.H.0.new",
        "manifest.H.0.json",
        "manifest.H.0.json.partial",
        "manifest.H.last.json",
        "vmcore.H.0.incomplete",
        "vmcore.H.last",
        "info.H.last",
        "bounds.H",
        ".bounds.H.new",
        ".vmcore.H.last.new",
    ];
    for name in planted {
        let dir = tempfile::tempdir().unwrap();
        for target in [victim.as_path(), &outside.path().join("new")] {
            let name = name.replace('H', H);
            let _ = fs::remove_file(dir.path().join(&name));
            symlink(target, dir.path().join(&name)).unwrap();
            let stored = dump(&mut store(dir.path()), b"", b"core");
            manifest(&stored);
            assert_eq!(text(stored.core), "core", "{name}");
        }
        assert_eq!(names(outside.path()), ["victim"], "{name}");
        assert_eq!(text(&victim), "precious", "{name}");
    }
}

#[test]
fn name_taken_while_the_dump_runs_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut dump = store(dir.path()).create(&request(b"")).unwrap();
    dump.write_at(0, &[IoSlice::new(b"core")]).unwrap();
    fs::write(dir.path().join(format!("vmcore.{H}.0")), "other").unwrap();
    let summary = summary(HeaderSeen::Missing, 4);
    let error = commit(&mut dump, &summary).unwrap_err();
    let ending = Ending::Incomplete(Cause::Store(Arc::new(error)));
    let stored = dump.abandon(&summary, &ending).unwrap();
    assert_eq!(text(dir.path().join(format!("vmcore.{H}.0"))), "other");
    assert_eq!(text(stored.core), "core");
    assert!(text(stored.info).contains("\nDump unsuccessful: renaming "));
}

#[test]
fn numbers_are_claimed_once() {
    let dir = tempfile::tempdir().unwrap();
    let cores: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..10).map(|_| dump(&mut store(dir.path()), b"", b"x").core).collect()))
            .collect();
        threads.into_iter().flat_map(|t| -> Vec<PathBuf> { t.join().unwrap() }).collect()
    });
    let mut unique = cores.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 80);
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, reason) in [(file, "Not a directory"), (dir.path().join("missing"), "No such file")] {
        let error = DiskStore::open(&path, HostNames::numeric()).unwrap_err();
        assert_eq!(error.to_string(), format!("directory {} cannot be used", path.display()));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(reason), "{source}");
    }
}

/// A file system of 1 MiB, for as long as this lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        println!("SKIPPED mount: a full disk needs the right to mount a tmpfs");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn full_disk_ends_the_dump_and_keeps_what_came_and_why() {
    let Some(disk) = SmallDisk::mount() else { return };
    let directory = disk.0.path();
    let mut receiver = Receiver::new(ReceiverConfig::default(), store(directory));
    let now = Instant::now();
    let mut train = Vec::new();
    let mut send = |to: Endpoint, kind, sequence: u32, payload: &[u8]| {
        let mut bytes = Vec::new();
        let offset = u64::from(sequence.saturating_sub(2)) * 4096;
        Message { kind, sequence, offset, payload, aux: 0 }.emit(&mut bytes);
        let _ = receiver.handle_datagram(now, to, PEER, &bytes);
        let events: Vec<_> = std::iter::from_fn(|| receiver.poll_event()).collect();
        let mut acks = 0;
        while receiver.poll_transmit(&mut train).is_some() {
            acks += train.len() / 4;
        }
        (acks, events)
    };
    let (_, events) = send(Endpoint::Herald { local: Ipv4Addr::LOCALHOST }, MessageKind::Herald, 1, b"");
    let [ReceiverEvent::Opened { session, .. }] = events[..] else { panic!("{events:?}") };
    let to = Endpoint::Session(session);
    let mut acknowledged = 0;
    let end = (2..400).find_map(|sequence| {
        let (acks, events) = send(to, MessageKind::Vmcore, sequence, &[0x5a; 4096]);
        acknowledged += acks as u64;
        events.into_iter().next()
    });
    let Some(ReceiverEvent::Ended { ending, summary, stored, .. }) = end else { panic!("{end:?}") };
    assert!(ending.to_string().contains("No space left on device"), "{ending}");
    assert_eq!(summary.bytes, acknowledged * 4096);
    assert_eq!(send(to, MessageKind::Vmcore, 2, &[0x5a; 4096]).0, 0);
    let stored = stored.unwrap();
    let core = fs::read(&stored.core).unwrap();
    assert!(core.len() as u64 >= summary.bytes && core.iter().all(|&b| b == 0x5a));
    assert!(stored.core.ends_with(format!("vmcore.{H}.0.incomplete")));
    let info = text(stored.info);
    assert!(info.contains("No space left on device") && info.contains("  Missing: 0 ranges"), "{info}");
    // Another client is refused without a trace.
    let other = send(Endpoint::Herald { local: Ipv4Addr::new(127, 0, 0, 2) }, MessageKind::Herald, 1, b"");
    assert!(matches!(&other.1[..], [ReceiverEvent::Refused { .. }]), "{other:?}");
    assert_eq!(other.0, 0);
}
