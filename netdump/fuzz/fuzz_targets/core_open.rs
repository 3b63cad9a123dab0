//! A file that claims to be a core: it is refused, or everything is said of it that `inspect` and `verify` can say,
//! with the symbols of a kernel that some of the seeds are cores of.

#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use netdump::facts::Backtraces;
use netdump::vmcore::{InspectOptions, KernelSymbols, inspect_with, verify};

static SYMBOLS: LazyLock<KernelSymbols> =
    LazyLock::new(|| KernelSymbols::parse(include_bytes!("../kernel.elf")).expect("a whole symbol table"));

/// The core's file, in memory where there is such a file system. Without a name, it goes when the program goes.
static CORE: LazyLock<File> = LazyLock::new(|| {
    tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).expect("a temporary file")
});

fuzz_target!(|bytes: &[u8]| {
    CORE.set_len(0).expect("it is ours");
    CORE.write_all_at(bytes, 0).expect("room for it");
    let path = PathBuf::from(format!("/proc/self/fd/{}", CORE.as_raw_fd()));
    for symbols in [None, Some(&*SYMBOLS)] {
        let options = InspectOptions {
            symbols,
            kernel: None,
            backtraces: Backtraces::All,
            unpack_limit: Some(1 << 20),
        };
        let Ok(inspection) = inspect_with(&path, &options) else { break };
        let text = inspection.to_string();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "a terminal would obey");
        serde_json::to_string(&inspection).expect("a finite structure");
    }
    let _ = verify(&path, None, &mut |_, _| {}).to_string();
});
