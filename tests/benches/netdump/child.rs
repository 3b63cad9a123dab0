//! The memory that a dump takes beyond the guest's: measured in a process of its own, which does nothing else.

use std::net::SocketAddrV4;
use std::process::Command;

use anyhow::{Context, ensure};
use netdump::client::WindowChoice;
use serde_json::{Value, json};
use vmm::memory::MemorySize;

use super::dump::{self, SendTo, Way};
use super::guest::Guest;
use super::lab::{CHILD_WIRE, Lab, Store, Wire};
use super::outcome::Sample;

const KIB_IN_MIB: f64 = 1024.0;

/// Starts the process and lets it dump a guest that has used so many bytes of its memory.
pub(crate) fn measure(lab: &mut Lab, size: MemorySize, touched: u64) -> anyhow::Result<Sample> {
    let guest = lab.guest_of(size, touched);
    let receiver = lab.receiver(Store::Shm)?;
    let ended = receiver.ended();
    let job =
        json!({ "size": size.bytes(), "touched": touched, "port": receiver.at([0, 0, 0, 0].into()).port() });
    let output = Command::new(std::env::current_exe()?).args(["--child", &job.to_string()]).output()?;
    ensure!(output.status.success(), "the dumper: {}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let kib = answer["kib"].as_f64().context("the dumper did not say how much memory it took")?;
    receiver.check(ended + 1, &guest, 1)?;
    Ok(Sample::of(kib / KIB_IN_MIB).with_note(format!("{answer}")))
}

/// The process: dumps and prints what it took.
pub(crate) fn run(job: &str) -> anyhow::Result<()> {
    let job: Value = serde_json::from_str(job)?;
    let number = |key: &str| job[key].as_u64().context("a job of our own");
    let (size, touched) = (MemorySize::new(number("size")?)?, number("touched")?);
    let guest = if touched == size.bytes() { Guest::dense(size) } else { Guest::sparse(size, touched) };
    let wire = Wire::open(CHILD_WIRE)?;
    let server = SocketAddrV4::new(wire.server, u16::try_from(number("port")?)?);

    let before = Memory::now()?;
    // From here on the peak counts (proc(5), clear_refs).
    std::fs::write("/proc/self/clear_refs", "5").context("resetting the peak of this process's memory")?;
    let mut link = dump::link(Way::Tap, &wire, &guest)?;
    dump::send(&guest, &mut *link, SendTo::over(&wire, server, WindowChoice::default()))?;
    let after = Memory::now()?;
    let own = after.peak.saturating_sub(after.shared).saturating_sub(before.own);
    println!("{}", json!({ "kib": own, "before_kib": before.own, "guest_kib": after.shared }));
    Ok(())
}

/// Resident memory of this process in KiB, as `/proc/self/status` tells it.
struct Memory {
    /// The most that there was (`VmHWM`).
    peak: u64,
    /// Of the guest, as nothing else is shared (`RssShmem`).
    shared: u64,
    /// All else (`RssAnon`, `RssFile`).
    own: u64,
}

impl Memory {
    fn now() -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next());
            number
                .and_then(|number| number.parse::<u64>().ok())
                .with_context(|| format!("no {name} in status"))
        };
        Ok(Self {
            peak: field("VmHWM")?,
            shared: field("RssShmem")?,
            own: field("RssAnon")? + field("RssFile")?,
        })
    }
}
