//! What a run tells: events while it goes on, and for each panic a report, for machines (serde) and for people.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use netdump::drive::Progress;
use netdump::linux::CrashCard;
use netdump::progress::with_restarts;
use netdump::report::{DumpReport, Outcome};
use netdump::vmcore::MemoryRange;
use netdump::vmcore::cpu::{Activity, CpuState, Registers};
use netdump::vmcore::inspect::bytes_text;
use serde::Serialize;

use crate::config::Refused;
use crate::panic::REQUEST;

/// How the run of the VMM ended; the discriminants are its exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// The guest switched itself off, or the VMM was told to stop.
    PoweredOff = 0,
    /// It panicked; the core is delivered and acknowledged.
    Dumped = 10,
    /// It panicked; the dump failed or is incomplete.
    DumpFailed = 11,
    /// It panicked and was not dumped: dumping is disabled, or was left to the guest's own crash kernel or dumper.
    NotDumped = 12,
    /// It panicked; all data is acknowledged, FINISHED is not.
    Unconfirmed = 13,
}

impl ExitStatus {
    /// The exit code for an outcome.
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Complete => Self::Dumped,
            Outcome::Unconfirmed => Self::Unconfirmed,
            Outcome::Failed => Self::DumpFailed,
        }
    }

    /// The process's exit code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Everything about one panic, as `--report` writes it.
#[derive(Debug, Clone, Serialize)]
pub struct PanicReport {
    /// The image that was booted.
    pub image: String,
    /// How the panic was seen.
    pub panic: PanicSeen,
    /// How the guest was stopped.
    pub pause: PauseReport,
    /// What is known of the guest.
    pub guest: GuestReport,
    /// What a Linux guest told of its crash.
    pub card: Option<CardReport>,
    /// RAM ranges as `[start, end)`.
    pub memory: Vec<(u64, u64)>,
    /// The vCPUs with their registers, in the order of their numbers.
    pub cpus: Vec<CpuState>,
    /// Where the dump was to go; absent when dumping is disabled.
    pub target: Option<TargetReport>,
    /// The core's format.
    pub core_format: Option<&'static str>,
    /// What a person should know of the core, one sentence each.
    pub remarks: Vec<String>,
    /// How the dump went; absent when dumping is disabled.
    pub dump: Option<DumpReport>,
    /// The core, when the embedded receiver stored it.
    pub core: Option<PathBuf>,
    /// The commands that open it in a debugger, where there are some that read the format.
    pub debuggers: Vec<String>,
    /// The exit code that follows from it.
    pub exit_code: u8,
}

/// How the panic was seen.
#[derive(Debug, Clone, Serialize)]
pub struct PanicSeen {
    /// The source that saw it first.
    pub source: &'static str,
    /// The vCPU on which it showed.
    pub vcpu: Option<u32>,
    /// The guest's own words.
    pub text: Option<String>,
    /// What the source saw.
    pub detail: String,
    /// When, in seconds since 1970.
    pub time: u64,
    /// All sources that saw it, in their order.
    pub signs: Vec<SignReport>,
}

/// One source that saw the panic.
#[derive(Debug, Clone, Serialize)]
pub struct SignReport {
    /// Its name.
    pub source: &'static str,
    /// When, in microseconds after the first.
    pub microseconds: u64,
}

/// How the guest was stopped.
#[derive(Debug, Clone, Serialize)]
pub struct PauseReport {
    /// From the panic being noticed to the last vCPU having stopped, in microseconds.
    pub microseconds: u64,
    /// How much of it the kernel was given to finish its message and to stop its other CPUs.
    pub settling_microseconds: u64,
    /// vCPUs that did not stop before the deadline; the dump has no registers of them.
    pub not_stopped: Vec<u32>,
}

/// A Linux guest's crash card.
#[derive(Debug, Clone, Serialize)]
pub struct CardReport {
    /// How long it took to make, in microseconds.
    pub microseconds: u64,
    /// The card.
    #[serde(flatten)]
    pub card: CrashCard,
}

/// What is known of the guest.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GuestReport {
    /// Its operating system, where recognised.
    pub os: Option<String>,
    /// The kernel's version text.
    pub version: Option<String>,
    /// Its name, from the guest or else from the options.
    pub host_name: String,
    /// Its kernel environment.
    pub environment: Vec<(String, String)>,
}

/// Where a dump was to go.
#[derive(Debug, Clone, Serialize)]
pub struct TargetReport {
    /// The link, as in `--netdump-link`.
    pub link: String,
    /// The receiver.
    pub server: Option<String>,
    /// The guest's address.
    pub client: Option<String>,
    /// The gateway.
    pub gateway: Option<String>,
    /// The directory.
    pub path: Option<String>,
    /// What the guest asked for and did not get.
    pub refused: Vec<Refused>,
}

/// One thing that happened; `--json` prints each as a line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The guest starts, for the first time or again.
    Booting {
        /// The image.
        image: &'a str,
        /// RAM in bytes.
        memory: u64,
        /// vCPUs.
        cpus: u8,
        /// The boot protocol.
        protocol: &'a str,
    },
    /// The guest panicked.
    Panic {
        /// How it was seen.
        #[serde(flatten)]
        seen: &'a PanicSeen,
    },
    /// The guest panicked and is not dumped, as its own crash kernel or dumper takes over.
    CrashLoaded {
        /// The vCPU that panicked.
        vcpu: Option<u32>,
        /// What takes over.
        why: &'static str,
    },
    /// All vCPUs are stopped, or the deadline is over.
    Paused {
        /// How it went.
        #[serde(flatten)]
        pause: &'a PauseReport,
    },
    /// What a Linux guest tells of its crash, before its dump starts.
    Card {
        /// The card.
        #[serde(flatten)]
        card: &'a CardReport,
    },
    /// The dump starts.
    Dumping {
        /// Where it goes.
        #[serde(flatten)]
        target: &'a TargetReport,
        /// Bytes of the core.
        length: u64,
    },
    /// The dump has ended; the whole report.
    Dumped {
        /// Everything about the panic.
        report: &'a PanicReport,
    },
    /// The guest asked for a reset.
    Reset {
        /// By which means.
        by: &'static str,
    },
    /// The guest switched itself off.
    PowerOff,
    /// The guest stays paused until SIGTERM.
    Holding,
    /// The VMM was told to stop.
    Stopped {
        /// By which signal.
        by: &'static str,
    },
}

/// Whoever shows events to the user.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>);
    /// The dump goes on.
    fn progress(&mut self, progress: &Progress);
    /// The dump has ended.
    fn dump_ended(&mut self, report: &DumpReport);
}

impl PanicReport {
    /// The CPU that panicked, where it is known and its registers were read.
    fn panicked_cpu(&self) -> Option<(&CpuState, &Registers)> {
        let index = self.panic.vcpu?;
        let cpu = self.cpus.iter().find(|cpu| cpu.index == index)?;
        Some((cpu, cpu.registers.as_deref()?))
    }
}

impl fmt::Display for PanicReport {
    /// A report that a person reads at a glance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = printable(&self.panic.detail);
        match self.panic.vcpu {
            _ if self.panic.source == REQUEST => writeln!(f, "guest dumped on request: {detail}")?,
            Some(cpu) => writeln!(f, "guest panicked on CPU {cpu}, seen by {}: {detail}", self.panic.source)?,
            None => writeln!(f, "guest panicked, seen by {}: {detail}", self.panic.source)?,
        }
        line(f, "panic", self.panic.text.as_deref().unwrap_or("(the guest left no words)"))?;
        line(f, "kernel", self.guest.version.as_deref().unwrap_or("unknown").trim())?;
        line(f, "host", &self.guest.host_name)?;
        line(f, "paused", &self.pause.to_string())?;
        line(f, "CPUs", &self.cpus.iter().map(brief).collect::<Vec<_>>().join(", "))?;
        line(f, "memory", &ranges(&self.memory))?;
        if let Some((_, registers)) = self.panicked_cpu() {
            write_registers(f, registers)?;
        }
        self.write_dump(f)
    }
}

impl PanicReport {
    fn write_dump(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(target), Some(dump)) = (&self.target, &self.dump) else {
            return line(f, "dump", "none: dumping is disabled");
        };
        for refused in &target.refused {
            line(f, "refused", &format!("{}={} ({})", refused.variable, refused.value, refused.reason))?;
        }
        match &target.server {
            Some(server) => line(f, "sent to", &format!("{server} over {}", target.link))?,
            None => line(f, "sent to", "the embedded receiver")?,
        }
        let outcome = match dump.outcome {
            Outcome::Complete => "complete, acknowledged by the receiver",
            Outcome::Unconfirmed => "all data acknowledged, FINISHED not",
            Outcome::Failed => "FAILED",
        };
        let reason = dump.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        line(f, "dump", &format!("{outcome}{reason}"))?;
        line(f, "", &amounts(dump))?;
        if let Some(digest) = &dump.digest {
            line(f, "digest", &digest.root_hex())?;
        }
        if let Some(core) = &self.core {
            line(f, "core", &core.display().to_string())?;
        }
        if let Some(format) = self.core_format {
            line(f, "format", format)?;
        }
        for remark in &self.remarks {
            line(f, "remark", remark)?;
        }
        for command in &self.debuggers {
            line(f, "open by", command)?;
        }
        Ok(())
    }
}

impl fmt::Display for PauseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after the panic was seen", Duration::from_micros(self.microseconds))?;
        // Less than that is only the way here.
        if self.settling_microseconds >= 1000 {
            let given = Duration::from_micros(self.settling_microseconds);
            write!(f, ", {given:?} of it given to the kernel to settle")?;
        }
        match self.not_stopped.as_slice() {
            [] => Ok(()),
            stuck => write!(f, "; CPUs that did not stop: {stuck:?}"),
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "  {name:<8} {}", printable(value))
}

/// The guest's own words without what would steer the reader's terminal: control characters, and those that turn the
/// direction of writing (Unicode's bidirectional controls).
fn printable(text: &str) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

fn brief(cpu: &CpuState) -> String {
    let doing = match cpu.activity {
        Activity::Running => "running",
        Activity::Halted => "halted",
        Activity::NotStarted => "not started",
        Activity::NotStopped => "DID NOT STOP",
    };
    format!("{} {doing}", cpu.index)
}

fn ranges(memory: &[(u64, u64)]) -> String {
    memory.iter().map(|(start, end)| format!("{start:#x}-{end:#x}")).collect::<Vec<_>>().join(", ")
}

fn amounts(dump: &DumpReport) -> String {
    let mib = |bytes: u64| (bytes + (1 << 19)) >> 20;
    let rate = f64_of(dump.bytes_sent) / dump.seconds.max(1e-9) / 1e6;
    let sizes = match &dump.packing {
        // Its end is not known, nor what the whole core would have become.
        Some(packing) if packing.ratio.is_none() => {
            let (core, sent) = (bytes_text(packing.unpacked), bytes_text(dump.bytes_sent));
            format!("{core} core, {sent} sent of it packed ({packing})")
        }
        Some(packing) => {
            let (core, stored) = (bytes_text(packing.unpacked), bytes_text(dump.length));
            format!("{core} core packed into {stored} ({packing})")
        }
        None => format!(
            "{} MiB core: {} MiB sent, {} MiB never touched, {} MiB of zeros left out",
            mib(dump.length),
            mib(dump.bytes_sent),
            mib(dump.bytes_untouched),
            mib(dump.bytes_zero)
        ),
    };
    let troubles = with_restarts(dump);
    format!(
        "{sizes}; {} messages, {} resent{troubles}; {:.2} s, {rate:.0} MB/s",
        dump.messages, dump.resends, dump.seconds,
    )
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people: 53 bits are plenty")]
fn f64_of(bytes: u64) -> f64 {
    bytes as f64
}

fn write_registers(f: &mut fmt::Formatter<'_>, r: &Registers) -> fmt::Result {
    let rows = [
        [("rip", r.rip), ("rsp", r.rsp), ("rbp", r.rbp), ("rflags", r.rflags)],
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9)],
        [("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
        [("r14", r.r14), ("r15", r.r15), ("cr2", r.cr2), ("cr3", r.cr3)],
    ];
    for row in rows {
        let cells = row.map(|(name, value)| format!("{name:>6} {value:016x}"));
        writeln!(f, "  {}", cells.join(" "))?;
    }
    Ok(())
}

/// RAM ranges as the report has them.
pub(crate) fn memory_of(ranges: &[MemoryRange]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.start, range.end())).collect()
}
