//! A file that claims to be a core: it is refused, or everything is said of it that `inspect` and `verify` can say,
//! with the symbols of a kernel that some of the seeds are cores of.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use netdump::facts::Backtraces;
use netdump::vmcore::{InspectOptions, KernelSymbols, inspect_with, verify};

static SYMBOLS: LazyLock<KernelSymbols> =
    LazyLock::new(|| KernelSymbols::parse(include_bytes!("../kernel.elf")).expect("a whole symbol table"));

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("room for it");
    for symbols in [None, Some(&*SYMBOLS)] {
        let options = InspectOptions {
            symbols,
            kernel: None,
            backtraces: Backtraces::All,
            unpack_limit: Some(1 << 20),
        };
        let Ok(inspection) = inspect_with(file.path(), &options) else { break };
        let text = inspection.to_string();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "a terminal would obey");
        serde_json::to_string(&inspection).expect("a finite structure");
    }
    let _ = verify(file.path(), None, &mut |_, _| {}).to_string();
});
