//! Whether a Linux kernel has panicked, and how far it is with that, as the variables of `kernel/panic.c` and its
//! neighbours say.
//!
//! panic() takes `panic_cpu` (-1 until then), prints its message and the stack, starts the crash kernel if one is loaded
//! (`kexec_crash_image`), stops the other CPUs (each takes its bit out of `__cpu_online_mask`; when panic notifiers go
//! before the crash kernel they answer an NMI instead, which `waiting_for_crash_ipi` counts), tells its notifiers,
//! and at last, unless it is to reboot (`panic_timeout`), prints "end Kernel panic" and sets `suppress_printk`. A CPU
//! that loses the race for `panic_cpu` stops by itself. An oops alone sets none of that, but the bit of a kernel that
//! died in `tainted_mask`.
//!
//! A kernel that collapses in a triple fault without any of that has not panicked, but is as dead; one that resets so by
//! `reboot=t` is well. What it was about to do is in `system_state`, `reboot_emergency` and `reboot_type`.
//!
//! The guest may run while it is read, so nothing here trusts two words to be of one moment, and no page tables are
//! walked: the image lies in one piece wherever [`super::place`] finds it, everything else in the direct map.

use std::time::Duration;

use super::place::{self, Landmarks, Place, Search};
use super::recent_log::RecentLog;
use super::{LinuxMemory, Vmcoreinfo};
use crate::panicked::{OwnDump, Panicked};
use crate::vmcore::VirtualMemory;
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// How long a kernel may take for all of the above: it prints some forty lines, which took 3 s on the console of a nested
/// guest under load.
const PATIENCE: Duration = Duration::from_secs(10);
/// What `panic_cpu` is until a CPU takes it, and `crashing_cpu` too.
const NO_CPU: u32 = u32::MAX;
/// A page that holds variables.
const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;
/// CPUs in a word of a `cpumask`.
const CPUS_IN_WORD: u32 = 64;
/// Most CPUs that are looked at.
const MAX_CPUS: u32 = 1024;
/// Where the direct map begins on a kernel that does not randomise it, with four levels of page tables
/// (`__PAGE_OFFSET_BASE_L4`).
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Longest physical address of x86-64.
const MAX_PHYSICAL: u64 = 1 << 52;
/// `TAINT_DIE` of `tainted_mask`: there was an oops.
const DIED: u64 = 1 << 7;

/// `BOOT_TRIPLE` of `reboot_type` (`include/linux/reboot.h`): the last way to reset, or the first one by `reboot=t`.
const BY_TRIPLE_FAULT: u32 = b't' as u32;
/// Values of `system_state` on the way to a power-off or a reset, in the numbering with `SYSTEM_FREEING_INITMEM` (since 5.14)
/// and in that without (`include/linux/kernel.h`).
const ENDING: std::ops::RangeInclusive<u32> = 4..=6;

/// Variables that are looked at besides those that tell the place.
const WORDS: [&str; 12] = [
    "panic_cpu",
    "panic_timeout",
    "suppress_printk",
    "kexec_crash_image",
    "crashing_cpu",
    "waiting_for_crash_ipi",
    "__cpu_online_mask",
    "page_offset_base",
    "tainted_mask",
    "reboot_type",
    "reboot_emergency",
    "system_state",
];

/// Every symbol that is looked up here, for who keeps a few of a kernel's symbols only.
pub fn symbols() -> impl Iterator<Item = &'static str> {
    WORDS.into_iter().chain(place::SYMBOLS)
}

/// What the log of a guest that has ended tells of a panic. It is found by VMCOREINFO, whichever kernel it is of: no
/// symbols are needed.
pub fn told_by_log(memory: &dyn PhysicalMemory) -> Option<Panicked> {
    let info = Vmcoreinfo::locate(memory, None)?;
    let kernel = LinuxMemory::new(memory, &info)?;
    let read = |address, buf: &mut [u8]| kernel.read(address, buf);
    let log = RecentLog::at(kernel.read_u64(info.symbol("prb")?)?, &read)?;
    Some(Panicked {
        evidence: "the kernel's log tells of a panic",
        text: Some(log.panic_text()?),
        cpu: None,
        own_dump: OwnDump::None,
        formatted: true,
        others_stopped: true,
        written: Some(log.written()),
        finished: None,
        patience: PATIENCE,
    })
}

/// Where a kernel keeps the words.
#[derive(Debug, Clone)]
pub struct PanicWords {
    symbols: KernelSymbols,
    landmarks: Landmarks,
    place: Option<Place>,
    search: Search,
}

impl PanicWords {
    /// The words of the kernel with these symbols, which are at the addresses that it was linked for; `None` when it has
    /// no such words, or no symbols.
    pub fn find(symbols: &KernelSymbols) -> Option<Self> {
        symbols.address("panic_cpu")?;
        let landmarks = Landmarks::of(symbols)?;
        let wanted: Vec<_> = self::symbols().collect();
        Some(Self { symbols: symbols.only(&wanted), landmarks, place: None, search: Search::default() })
    }

    /// Where the kernel lay when it was last looked at.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// What the words say now; `None` when the kernel has not panicked, or is not found (yet: each call searches a
    /// little). The machine has `cpus` CPUs.
    pub fn read(&mut self, memory: &dyn PhysicalMemory, cpus: u32) -> Option<Panicked> {
        let known = self.place.and_then(|place| self.landmarks.check(memory, place.moved));
        self.place = known.or_else(|| self.search.step(memory, &self.landmarks));
        self.words(memory)?.panicked(cpus)
    }

    /// The same of a guest that has ended, for which the kernel is searched everywhere if need be.
    pub fn read_at_end(&mut self, memory: &dyn PhysicalMemory, cpus: u32) -> Option<Panicked> {
        let known = self.place.and_then(|place| self.landmarks.check(memory, place.moved));
        self.place = known.or_else(|| Search::everywhere(memory, &self.landmarks));
        self.words(memory)?.panicked(cpus)
    }

    /// Whether the kernel is found and says itself that it has not panicked.
    pub fn is_well(&self, memory: &dyn PhysicalMemory) -> bool {
        let place = self.place.and_then(|place| self.landmarks.check(memory, place.moved));
        let words = place.map(|place| Words { symbols: &self.symbols, memory, place });
        words.and_then(|words| words.int("panic_cpu")) == Some(NO_CPU)
    }

    /// Whether the kernel, where it was last found, resets the machine by a triple fault of its own will, because somebody asked
    /// it to: in order, or at once (`sysrq b`; `arch/x86/kernel/reboot.c`, `native_machine_emergency_restart`).
    pub fn resets_by_triple_fault(&self, memory: &dyn PhysicalMemory) -> bool {
        let Some(words) = self.words(memory) else { return false };
        let is_ending = words.int("system_state").is_some_and(|state| ENDING.contains(&state));
        let at_once = words.int("reboot_emergency").is_some_and(|emergency| emergency != 0);
        words.int("panic_cpu") == Some(NO_CPU)
            && words.int("reboot_type") == Some(BY_TRIPLE_FAULT)
            && (is_ending || at_once)
    }

    fn words<'a>(&'a self, memory: &'a dyn PhysicalMemory) -> Option<Words<'a>> {
        Some(Words { symbols: &self.symbols, memory, place: self.place? })
    }
}

/// Reads the variables of a kernel whose place is known.
struct Words<'a> {
    symbols: &'a KernelSymbols,
    memory: &'a dyn PhysicalMemory,
    place: Place,
}

impl Words<'_> {
    fn panicked(&self, cpus: u32) -> Option<Panicked> {
        let cpu = self.int("panic_cpu").filter(|&cpu| cpu < cpus)?;
        if self.is_cleared("panic_cpu") {
            return None;
        }
        let read = |address, buf: &mut [u8]| self.read(address, buf);
        let log = self.word("prb").and_then(|ring| RecentLog::at(ring, &read));
        let text = log.as_ref().and_then(RecentLog::panic_text);
        let died = self.word("tainted_mask").is_some_and(|mask| mask & DIED != 0);
        Some(Panicked {
            evidence: if died {
                "the kernel's panic_cpu is set, after an oops"
            } else {
                "the kernel's panic_cpu is set"
            },
            cpu: Some(cpu),
            own_dump: self.own_dump(),
            formatted: text.is_some() || log.is_none(),
            text,
            others_stopped: self.others_stopped(cpus),
            written: log.map(|log| log.written()),
            finished: self.finished(),
            patience: PATIENCE,
        })
    }

    /// Whether the page around a variable has been cleared, which a kernel's data never is: then the memory is another's
    /// by now.
    fn is_cleared(&self, symbol: &str) -> bool {
        let mut page = [0; PAGE_LEN];
        let start = self.physical_of(symbol).map(|physical| physical & !(PAGE - 1));
        start.and_then(|start| self.memory.read(start, &mut page).ok()).is_none()
            || page.iter().all(|&b| b == 0)
    }

    fn own_dump(&self) -> OwnDump {
        match self.word("kexec_crash_image") {
            None | Some(0) => OwnDump::None,
            // Its own CPUs have been told to stop for it: from there on it is the crash kernel's business.
            Some(_) if self.int("crashing_cpu").is_some_and(|cpu| cpu != NO_CPU) => OwnDump::Over,
            Some(_) => OwnDump::CrashKernel,
        }
    }

    fn others_stopped(&self, cpus: u32) -> bool {
        let words = u64::from(cpus.min(MAX_CPUS).div_ceil(CPUS_IN_WORD));
        let word = |index| self.word_behind("__cpu_online_mask", 8 * index).map(u64::count_ones);
        let online = (0..words).map(word).sum::<Option<u32>>();
        let by_nmi = self.int("crashing_cpu").is_some_and(|cpu| cpu < cpus)
            && self.int("waiting_for_crash_ipi") == Some(0);
        by_nmi || online.is_none_or(|online| online <= 1)
    }

    /// Whether the last word has been said; `None` of a kernel that says none, as it reboots instead.
    fn finished(&self) -> Option<bool> {
        let mut suppressed = [0];
        self.read_variable("suppress_printk", 0, &mut suppressed)?;
        (self.int("panic_timeout")? == 0).then_some(suppressed != [0])
    }

    /// A pointer variable.
    fn word(&self, symbol: &str) -> Option<u64> {
        self.word_behind(symbol, 0)
    }

    fn word_behind(&self, symbol: &str, offset: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read_variable(symbol, offset, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    fn int(&self, symbol: &str) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read_variable(symbol, 0, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    fn read_variable(&self, symbol: &str, offset: u64, buf: &mut [u8]) -> Option<()> {
        self.memory.read(self.physical_of(symbol)?.checked_add(offset)?, buf).ok()
    }

    fn physical_of(&self, symbol: &str) -> Option<u64> {
        Some(self.symbols.physical(self.symbols.address(symbol)?)?.wrapping_add(self.place.moved))
    }

    /// Reads at an address of the running kernel, in its image or in the direct map.
    fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        let in_image = self.symbols.physical(address.wrapping_sub(self.place.slide));
        let physical = match in_image {
            Some(physical) => physical.wrapping_add(self.place.moved),
            None => {
                let base = self.word("page_offset_base").unwrap_or(DIRECT_MAP);
                address.checked_sub(base).filter(|&physical| physical < MAX_PHYSICAL)?
            }
        };
        self.memory.read(physical, buf).ok()
    }
}
