//! The core of a real FreeBSD 14 kernel, unpacked once, with the symbols of that kernel.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use harness::fake_kernel::FakeKernel;
use harness::needs::{self, Need};
use harness::readers::freebsd::Symbols;
use netdump::vmcore::KernelSymbols;

const CORE: &str = "freebsd14-amd64-minidump.vmcore.bz2";
const SYMBOLS: &str = "freebsd14-amd64.symbols.txt";

/// The real core.
pub(crate) struct Fixture {
    pub(crate) core: PathBuf,
    pub(crate) symbols: Symbols,
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// An ELF file with the kernel's symbols and without its code.
    pub(crate) fn kernel(&self) -> Vec<u8> {
        let symbols = self.symbols.0.iter();
        symbols
            .fold(FakeKernel::default(), |kernel, (name, &(address, size))| {
                kernel.symbol(name, address, size)
            })
            .image()
    }

    pub(crate) fn kernel_symbols(&self) -> KernelSymbols {
        KernelSymbols::parse(&self.kernel()).unwrap()
    }
}

/// The real core; where it is not there, that has been said.
pub(crate) fn fixture() -> Option<&'static Fixture> {
    static FIXTURE: LazyLock<Option<Fixture>> = LazyLock::new(unpack);
    (Need::Fixtures.or_skip() && Need::Bzip2.or_skip()).then(|| FIXTURE.as_ref().expect("it is unpacked"))
}

fn unpack() -> Option<Fixture> {
    let folder = needs::fixtures()?;
    let output = Command::new("bzip2").arg("-dc").arg(folder.join(CORE)).output().ok()?;
    assert!(output.status.success(), "{CORE} is damaged");
    let directory = tempfile::tempdir().unwrap();
    let core = directory.path().join("vmcore.real.0");
    std::fs::write(&core, output.stdout).unwrap();
    let symbols = Symbols::from_list(&std::fs::read_to_string(folder.join(SYMBOLS)).unwrap()).unwrap();
    Some(Fixture { core, symbols, _directory: directory })
}
