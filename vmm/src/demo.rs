//! `vmm demo`: the whole way with nothing but this program. A built-in guest panics on KVM, its core travels as real
//! frames over an in-memory link to the embedded receiver, and is verified against what was sent.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use netdump::report::DumpReport;
use netdump::vmcore::verify::verify;
use vmm::boot::{Handover, KernelImage};
use vmm::config::{DumpConfig, GuestEnvironment, OnPanic, OnReset, VmConfig};
use vmm::link::LinkSpec;
use vmm::machine::{self, Host};
use vmm::nic::DEFAULT_MAC;
use vmm::panic::{self, SourceOptions};
use vmm::report::{Event, ExitStatus, Observer};
use vmm::x86_64::cpu_mask::CpuMask;

use crate::cli::DemoOptions;
use crate::show::Text;

/// The guest of the demonstration.
const GUEST: &str = "smp-panic";
/// Its vCPUs: one panics while the others are busy.
const CPUS: u8 = 4;

/// Runs it; the exit code is 0 when the core arrived whole.
pub(crate) fn run(options: &DemoOptions) -> anyhow::Result<u8> {
    vmm::vm::open_kvm()?;
    let guest = guest_images::find(GUEST).context("the guest of the demonstration is not built in")?;
    let image = KernelImage::from_bytes(Path::new("built-in guest 'smp-panic'"), guest.elf.to_vec())?;
    let (vm, dump) = configure(options);
    let mut host = Host { vm: &vm, dump: &dump, image, disk: None, report: None };
    let mut observer = Remember { shown: Text::default(), core: None, report: None };
    let status = machine::run(&mut host, &mut || Box::new(std::io::stdout()), &mut observer)?;
    if status != ExitStatus::Dumped {
        bail!("the demonstration ended without a complete core ({status:?}); the report above says why");
    }
    let core = observer.core.context("the embedded receiver did not say where the core is")?;
    let verdict = verify(&core, observer.report.as_ref(), &mut |_, _| ());
    println!("\n{verdict}");
    println!("look at it with: cargo run --release -p netdump -- inspect {}", core.display());
    Ok(if verdict.whole() { 0 } else { 1 })
}

fn configure(options: &DemoOptions) -> (VmConfig, DumpConfig) {
    // The guest fills its memory with a pattern; an underscore in its text is a blank.
    let variables = [("fill", "all"), ("cpu", "2"), ("text", "nothing_is_wrong:_this_is_a_demonstration")];
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let vm = VmConfig {
        memory: options.memory,
        cpus: CPUS,
        cpu_mask: CpuMask::default(),
        boot: None,
        handover: Handover { environment, ..Default::default() },
        tap: None,
        mac: DEFAULT_MAC,
        virtio: None,
        disks: Vec::new(),
        sources: panic::ALL.to_vec(),
        source_options: SourceOptions::default(),
        on_panic: OnPanic::Exit,
        on_reset: OnReset::Exit,
    };
    let dump = DumpConfig {
        link: Some(LinkSpec::Embedded),
        guest_environment: GuestEnvironment::Ignore,
        ..DumpConfig::new(options.crash_dir.clone(), "demo".into())
    };
    (vm, dump)
}

/// Shows events and keeps what the verification needs.
#[derive(Debug)]
struct Remember {
    shown: Text,
    core: Option<PathBuf>,
    report: Option<DumpReport>,
}

impl Observer for Remember {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Dumped { report } = event {
            self.core.clone_from(&report.core);
            self.report.clone_from(&report.dump);
        }
        self.shown.event(event);
    }

    fn progress(&mut self, progress: &netdump::drive::Progress) {
        self.shown.progress(progress);
    }

    fn dump_ended(&mut self, report: &DumpReport) {
        self.shown.dump_ended(report);
    }
}
