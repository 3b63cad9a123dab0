//! The seeds of netdump's fuzz targets: made here from what the tests use, so that they stay what the targets know.
//! `UPDATE_SEEDS=1 cargo test -p harness --test formats fuzz_seeds` writes them.

use std::path::{Path, PathBuf};

use harness::fake_kernel::FakeKernel;
use netdump::vmcore::KernelDumpHeader;

use super::freebsd_guest::{FreeBsd, kernel_behind};
use super::{all_bytes, guest, notes, plan};

fn seeds() -> Vec<(PathBuf, Vec<u8>)> {
    let mut freebsd =
        FreeBsd::new(&[(7, "sh", &[(100_007, "sh", 0, 1)]), (1, "init", &[(100_001, "init", -1, 2)])]);
    freebsd.dumped_by(100_007, 3);
    let mut minidump = freebsd.minidump();
    minidump.pages.retain(|_, page| page.iter().any(|&byte| byte != 0));
    minidump.messages = b"FreeBSD 14.1-RELEASE #0\npanic: here\n".to_vec();
    let old = harness::fake_minidump::FakeMinidump { version: 2, ..minidump.clone() };
    let mut elf = all_bytes(&plan(&guest(), &notes()));
    elf.truncate(0x4000);
    let mut full = freebsd.full_dump();
    full.truncate(0x2000);
    let header = KernelDumpHeader { architecture: "amd64".into(), dump_length: 4096, ..Default::default() };
    [
        ("kernel.elf", kernel_behind(FakeKernel::default()).image()),
        ("corpus/core_open/minidump", minidump.image()),
        ("corpus/core_open/minidump-2", old.image()),
        ("corpus/core_open/elf", elf),
        ("corpus/core_open/full", full),
        ("corpus/minidump_header/header", minidump.image()[..72].to_vec()),
        ("corpus/kdh/header", header.to_bytes().to_vec()),
    ]
    .into_iter()
    .map(|(path, bytes)| (Path::new(env!("CARGO_MANIFEST_DIR")).join("../netdump/fuzz").join(path), bytes))
    .collect()
}

#[test]
fn seeds_are_what_the_tests_use() {
    for (path, bytes) in seeds() {
        if std::env::var_os("UPDATE_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "{} is another", path.display());
    }
}
