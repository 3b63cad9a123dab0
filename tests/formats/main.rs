//! Core files: what the product writes, against a naive writer, an independent reader and other people's tools; what
//! it makes of files and guests that mean it harm.
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod contract;
mod ekcd;
mod elf_oracle;
mod elf_reader;
mod facts;
mod fixture;
mod freebsd_contexts;
mod freebsd_guest;
mod freebsd_inspect;
mod full;
mod fuzz_seeds;
mod hostile_files;
mod image;
mod image_pages;
mod inspect;
mod linux_elf;
mod linux_filter;
mod linux_kdump;
mod linux_panic_state;
mod linux_vmcoreinfo;
mod minidump_hostile;
mod minidump_oracle;
mod minidump_reader;
mod packed;
mod paging;
mod panic_state;
mod symbols;
mod third_party;
mod verify;

use std::path::Path;

use harness::fake_guest::FakeGuest;
use netdump::ReadAt;
use netdump::facts::GuestFacts;
use netdump::vmcore::{Activity, CoreNotes, DumpImage, StoppedGuest};

/// Three CPUs, one of which did not stop; RAM below 1 MiB, above it with a hole that was never touched, above 4 GiB.
fn guest() -> FakeGuest {
    FakeGuest::new(7)
        .ram(0, 0x9f000)
        .untouched_ram(0x10_0000, 0x4_0000)
        .touched(0x10_0000..0x11_0000)
        .touched(0x13_0000..0x14_0000)
        .ram(1 << 32, 0x4000)
        .cpu(Activity::Running)
        .cpu(Activity::Halted)
        .cpu(Activity::NotStopped)
}

fn notes() -> CoreNotes {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    CoreNotes {
        panic_cpu: Some(1),
        panic_source: Some("pvpanic".into()),
        panic_text: Some("panic: bad=trap \\ here\n\u{1b}[2J".into()),
        panic_time: Some(1_767_225_600),
        facts: GuestFacts {
            os: Some("FreeBSD".into()),
            release: Some("14.1-RELEASE".into()),
            version: Some("FreeBSD 14.1-RELEASE GENERIC\n    root@builder:/usr/obj\n".into()),
            host_name: Some("vm1".into()),
            panic_text: Some("bad trap".into()),
            environment: Some(vec![
                variable("net.dump.server", "10.0.0.9"),
                variable("odd=name\n", "größe=\"1\""),
                variable("empty", ""),
            ]),
        },
    }
}

fn plan<'m>(guest: &'m FakeGuest, notes: &CoreNotes) -> DumpImage<'m> {
    let guest = StoppedGuest { memory: guest, symbols: None, notes };
    netdump::vmcore::format("elf").expect("the format exists").plan(&guest).expect("a plan").image
}

fn all_bytes(image: &DumpImage<'_>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.length()).expect("a small core")];
    image.read_at(0, &mut bytes).expect("inside the core");
    bytes
}

fn store(image: &DumpImage<'_>, path: &Path) {
    std::fs::write(path, all_bytes(image)).expect("room for a small core");
}

/// A core of [`guest`] in a file of its own, which goes when the second value does.
fn stored() -> (std::path::PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vmcore.vm1.0");
    store(&plan(&guest(), &notes()), &path);
    (path, directory)
}
