//! Running guests under `vmm run`, and looking at what came of it with readers that share nothing with the product.

use std::path::{Path, PathBuf};

use guest_images::{FillMap, Guest, first_mismatch};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{self, Ended, Running, arg, program};
use crate::readers::elf::ElfCore;

/// A folder with one guest image, its report and its cores.
#[derive(Debug)]
pub struct Bench {
    folder: TempDir,
    guest: Guest,
}

impl Bench {
    /// A folder for the guest of that name.
    pub fn new(guest: &str) -> Self {
        let guest = *guest_images::find(guest).unwrap_or_else(|| panic!("there is no guest '{guest}'"));
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::write(folder.path().join(guest.file_name()), guest.elf).expect("it can be written to");
        Self { folder, guest }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The image.
    pub fn image(&self) -> PathBuf {
        self.folder().join(self.guest.file_name())
    }

    /// Where `--report` writes.
    pub fn report_path(&self) -> PathBuf {
        self.folder().join("report.json")
    }

    /// Where the embedded receiver stores.
    pub fn crash_dir(&self) -> PathBuf {
        self.folder().join("crash")
    }

    /// `vmm run` with 64 MiB, a report and a crash folder here, and the options given (which win), to its end.
    pub fn run(&self, options: &[&str]) -> Ended {
        self.start(options).wait()
    }

    /// The same, without waiting for its end.
    pub fn start(&self, options: &[&str]) -> Running {
        programs::start(
            program("vmm"),
            &self.arguments(options).iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }

    /// The arguments of `vmm` that [`start`](Self::start) uses.
    pub fn arguments(&self, options: &[&str]) -> Vec<String> {
        let (image, report, crash) = (self.image(), self.report_path(), self.crash_dir());
        let mut arguments = vec!["run"];
        if !options.iter().any(|option| option.starts_with("--memory")) {
            arguments.push("--memory=64M");
        }
        arguments.extend(["--report", arg(&report), "--crash-dir", arg(&crash)]);
        arguments.extend(options);
        arguments.push(arg(&image));
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// The report.
    pub fn report(&self) -> Value {
        let path = self.report_path();
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
        serde_json::from_slice(&text).expect("a report is JSON")
    }

    /// The core that the embedded receiver stored, as the report tells it.
    pub fn core_path(&self) -> PathBuf {
        self.report()["core"].as_str().expect("the report names the core").into()
    }

    /// Checks a core against what this guest must have in memory; the number of pattern bytes checked.
    pub fn check_memory(&self, core: &Path) -> u64 {
        let core = ElfCore::open(core).expect("the core is an ELF core");
        let symbol = self.guest.symbol("fill_map").expect("every guest has a fill map");
        let map = core.memory(symbol.address, FillMap::SIZE).expect("the core holds the fill map");
        let map = FillMap::parse(&map).expect("the guest left a fill map");
        for range in &map.ranges {
            for start in (range.start..range.end).step_by(1 << 20) {
                let len = usize::try_from((range.end - start).min(1 << 20)).expect("a MiB");
                let memory = core.memory(start, len).expect("the core holds what the guest filled");
                assert_eq!(first_mismatch(map.seed, start, &memory), None, "memory differs from the pattern");
            }
        }
        map.total()
    }

    /// The address of one of the guest's symbols.
    pub fn symbol(&self, name: &str) -> u64 {
        self.guest.symbol(name).unwrap_or_else(|| panic!("no symbol '{name}'")).address
    }
}

/// Asserts an exit code, showing what the program printed when it is another.
#[track_caller]
pub fn assert_code(ended: &Ended, code: i32) {
    let Ended { stdout, stderr, signal, .. } = ended;
    assert_eq!(ended.code, Some(code), "signal {signal:?}\n-- stdout\n{stdout}\n-- stderr\n{stderr}");
}

/// `netdump verify CORE --report REPORT`; panics unless the core is whole.
pub fn verify(core: &Path, report: &Path) -> Ended {
    let ended = programs::run(program("netdump"), &["verify", arg(core), "--report", arg(report)]);
    assert_code(&ended, 0);
    ended
}
