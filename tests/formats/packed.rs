//! Compressed cores, packed by gzip's and zstd's own commands: read as the core inside, damaged and hostile ones too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::needs::Need;
use harness::programs::{program, run, start_command};
use netdump::vmcore::unpack::Damage;
use netdump::vmcore::verify::{Check, Finding};
use netdump::vmcore::{Inspection, Verdict, inspect, open, verify};

use super::stored;
use super::verify::report_of;

/// Command, and the ending of its files.
const PACKERS: [(&[&str], &str); 2] = [(&["gzip", "-c"], "gz"), (&["zstd", "-q", "-c", "--check"], "zst")];

/// A core, and where it is packed in each way.
struct Bench {
    core: PathBuf,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        let (core, folder) = stored();
        (Need::Gzip.or_skip() && Need::Zstd.or_skip()).then_some(Self { core, folder })
    }

    fn plain(&self) -> Vec<u8> {
        fs::read(&self.core).unwrap()
    }

    /// Writes these bytes under the name of a core of that ending, alone in a folder.
    fn file(&self, ending: &str, bytes: &[u8]) -> PathBuf {
        let folder = self.folder.path().join("packed");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let path = folder.join(format!("vmcore.vm1.0.{ending}"));
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// These bytes, packed.
fn pack(packer: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(packer[0])
        .args(&packer[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    output.stdout
}

fn check(path: &Path) -> Verdict {
    verify(path, None, &mut |_, _| {})
}

/// The damage of a core of which something could be unpacked.
#[track_caller]
fn damage(path: &Path) -> Option<Damage> {
    open(path).unwrap().file().packed().expect("it is packed").damage.clone()
}

/// What failed, and the sentence of the packing.
#[track_caller]
fn failures(path: &Path) -> (Vec<&'static str>, String) {
    let verdict = check(path);
    assert!(!verdict.whole(), "{verdict}");
    let failed: Vec<_> = verdict.checks.iter().filter(|check| check.finding == Finding::Fail).collect();
    let packing = failed.iter().find(|check| check.name == "packing");
    (
        failed.iter().map(|check| check.name).collect(),
        packing.map(|check| check.text.clone()).unwrap_or_default(),
    )
}

#[test]
fn packed_core_is_read_as_the_core_in_it() {
    let Some(bench) = Bench::new() else { return };
    let plain = inspect(&bench.core, None).unwrap();
    for (packer, ending) in PACKERS {
        let packed_bytes = pack(packer, &bench.plain());
        let path = bench.file(ending, &packed_bytes);
        let inspection = inspect(&path, None).unwrap();
        let packed = inspection.packed.clone().unwrap();
        assert_eq!((packed.stored, packed.unpacked), (packed_bytes.len() as u64, bench.plain().len() as u64));
        assert_eq!(packed.damage, None);
        assert!(inspection.to_string().contains(&format!("of {}\n", packed.method.name())), "{inspection}");
        // Zeros may be holes in one and not in the other.
        let strip = |mut inspection: Inspection| {
            inspection.memory.iter_mut().for_each(|range| range.stored = 0);
            Inspection { path: PathBuf::new(), packed: None, ..inspection }
        };
        assert_eq!(strip(inspection), strip(plain.clone()));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}

#[test]
fn content_of_a_packed_core_is_the_stored_bytes() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let mut bytes = pack(packer, &bench.plain());
        let path = bench.file(ending, &bytes);
        let report = report_of(&path);
        let info = "Dump from vm1 [10.0.0.2]\n  Dump Length: {length}B (0 MB)\n  Header Parity Check: Pass\n";
        let info = info.replace("{length}", &bytes.len().to_string()) + "Dump complete\n";
        fs::write(path.with_file_name("info.vm1.0"), info).unwrap();
        let verdict = verify(&path, Some(&report), &mut |_, _| {});
        assert!(verdict.whole() && verdict.is_content_proven(), "{verdict}");
        let manifest = verdict.checks.iter().position(|check| check.name == "manifest").unwrap();
        let good = |(at, check): (usize, &Check)| check.finding == Finding::Pass || at == manifest;
        assert!(verdict.checks.iter().enumerate().all(good), "{verdict}");
        // The flags of gzip's header, and of zstd's frame, where a reserved bit goes unnoticed by neither.
        bytes[4] ^= 0x08;
        fs::write(&path, &bytes).unwrap();
        let verdict = verify(&path, Some(&report), &mut |_, _| {});
        assert!(!verdict.whole(), "{verdict}");
        let content = verdict.checks.iter().find(|check| check.name == "content").unwrap();
        assert_eq!(content.finding, Finding::Fail, "{verdict}");
        fs::remove_file(path.with_file_name("info.vm1.0")).unwrap();
    }
}

#[test]
fn members_and_frames_in_a_row_are_one_core() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let plain = bench.plain();
        let (a, b) = plain.split_at(plain.len() / 3);
        let path = bench.file(ending, &[pack(packer, a), pack(packer, b)].concat());
        assert!(check(&path).whole(), "{}", check(&path));
        assert_eq!(damage(&path), None);
    }
}

#[test]
fn padding_of_a_last_block_is_no_damage_and_other_bytes_are() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let packed = pack(packer, &bench.plain());
        let path = bench.file(ending, &[&packed[..], &[0; 4095]].concat());
        assert_eq!(damage(&path), None);
        let at = packed.len() as u64;
        for (behind, len) in [(&b"garbage"[..], 7), (&[0; 4096], 4096)] {
            let path = bench.file(ending, &[&packed[..], behind].concat());
            assert_eq!(damage(&path), Some(Damage::Trailing { at, len }));
            let (failed, text) = failures(&path);
            assert_eq!(failed, ["packing"]);
            assert!(text.contains(&format!("ends at byte {at}; the {len} bytes")), "{text}");
        }
    }
}

#[test]
fn of_a_cut_stream_what_there_is_is_kept() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let packed = pack(packer, &bench.plain());
        // Into the data; before the end of the data; within the trailer.
        for at in [packed.len() / 2, packed.len() - 200, packed.len() - 2] {
            let path = bench.file(ending, &packed[..at]);
            assert_eq!(damage(&path), Some(Damage::Cut { at: at as u64 }), "{ending} {at}");
            let (failed, text) = failures(&path);
            assert_eq!(failed[0], "packing");
            assert!(text.contains(&format!("the file ends at byte {at}")), "{text}");
            let core = open(&path).unwrap();
            let unpacked = usize::try_from(core.file().length()).unwrap();
            assert!(core.file().read_up_to(0, unpacked).unwrap() == bench.plain()[..unpacked]);
            let inspection = inspect(&path, None).unwrap().to_string();
            assert!(inspection.contains("DAMAGED: the stream is cut"), "{inspection}");
        }
        let path = bench.file(ending, &packed[..9]);
        let nothing = open(&path).unwrap_err().to_string();
        assert!(nothing.contains("nothing can be unpacked") && nothing.contains("byte 9"), "{nothing}");
    }
}

#[test]
fn of_a_damaged_stream_what_comes_before_is_kept() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let mut packed = pack(packer, &bench.plain());
        let middle = packed.len() * 3 / 4;
        packed[middle..middle + 64].fill(0xff);
        let path = bench.file(ending, &packed);
        let Some(Damage::Corrupt { at, .. }) = damage(&path) else { panic!("{:?}", damage(&path)) };
        assert!(usize::try_from(at).unwrap() > middle / 2, "{at}");
        assert_eq!(failures(&path).0[0], "packing");
    }
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let path = bench.file(ending, &pack(packer, &bench.plain()));
        let info = path.with_file_name("info.vm1.0");
        let length = bench.plain().len() as u64;
        let with_extent = |extent: u64| {
            fs::write(&info, format!("Dump from vm1 [10.0.0.2]\n  Dump Extent: {extent}B, unpacked\n"))
                .unwrap();
            open(&path)
        };
        assert!(with_extent(length).is_ok());
        assert!(with_extent(u64::MAX).is_ok());
        let refused = with_extent(length - 1).unwrap_err().to_string();
        assert!(refused.contains(&format!("more than {} bytes", length - 1)), "{refused}");
        assert!(refused.contains("info file") && refused.contains("--unpack-limit"), "{refused}");
        // The user's word is the last.
        let path_text = path.to_str().unwrap();
        let limited = |limit: &str| run(program("netdump"), &["inspect", "--unpack-limit", limit, path_text]);
        assert_eq!(limited("1G").code, Some(0));
        let refused = limited("10K");
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("more than 10240 bytes; --unpack-limit allows more"), "{refused:?}");
        fs::remove_file(info).unwrap();
    }
}

#[test]
fn a_full_disk_is_named() {
    if !Need::Mount.or_skip() {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let (packer, ending) = PACKERS[1];
    let path = bench.file(ending, &pack(packer, &[&bench.plain()[..], &noise(1 << 20)].concat()));
    let mount = bench.folder.path().join("small");
    fs::create_dir(&mount).unwrap();
    let mounted = |arguments: &[&str]| Command::new(arguments[0]).args(&arguments[1..]).arg(&mount).status();
    assert!(mounted(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs"]).unwrap().success());
    let mut command = Command::new(program("netdump"));
    let ended = start_command(command.env("TMPDIR", &mount).arg("inspect").arg(&path)).wait();
    assert!(mounted(&["umount"]).unwrap().success());
    assert_eq!(ended.code, Some(1));
    let words = ["bytes fit into", mount.to_str().unwrap(), "TMPDIR", "No space left"];
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    let mut command = Command::new(program("netdump"));
    let ended = start_command(command.env("TMPDIR", "/nowhere").arg("inspect").arg(&path)).wait();
    assert!(ended.stderr.contains("can be made in /nowhere"), "{ended:?}");
}

#[test]
fn zeros_are_holes_of_the_unpacked_core() {
    let Some(bench) = Bench::new() else { return };
    for (packer, ending) in PACKERS {
        let plain = [&bench.plain()[..], &vec![0; 64 << 20]].concat();
        let path = bench.file(ending, &pack(packer, &plain));
        let core = open(&path).unwrap();
        assert_eq!(core.file().length(), plain.len() as u64);
        let mut data = 0;
        let mut at = 0;
        while let Some(run) = core.file().next_data(at) {
            data += run.end - run.start;
            at = run.end;
        }
        assert!(data <= bench.plain().len() as u64 + 4096, "{data}");
    }
}

#[test]
fn encrypted_core_is_refused_with_the_command_that_helps() {
    let (core, folder) = stored();
    let named = folder.path().join("vmcore_encrypted.vm1.0.zst");
    fs::write(&named, noise(10_000)).unwrap();
    let refused = open(&named).unwrap_err().to_string();
    assert!(refused.contains("its name says so"), "{refused}");
    assert!(refused.contains(&format!("netdump decrypt --key PRIVATE.pem {}", named.display())), "{refused}");
    let verdict = verify(&named, Some(&report_of(&named)), &mut |_, _| {});
    assert!(verdict.is_content_proven(), "{verdict}");
    fs::write(&core, noise(10_000)).unwrap();
    assert!(!open(&core).unwrap_err().to_string().contains("encrypted"));
    fs::write(folder.path().join("key.vm1.0"), "").unwrap();
    assert!(open(&core).unwrap_err().to_string().contains("its key lies beside it"));
}

/// Numbers of a linear congruential generator (Knuth's MMIX): nothing packs or knows them.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}
