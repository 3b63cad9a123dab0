//! Whether a FreeBSD kernel has panicked, how far it is with that, and whether it dumps for itself, as the variables of
//! `sys/kern/kern_shutdown.c` and `sys/kern/subr_smp.c` say.
//!
//! vpanic() stops the other CPUs (each sets its bit in `stopped_cpus`), points `panicstr` at the raw format, sets
//! `panicked`, formats the message into a static buffer and points `panicstr` at that. Later doadump() sets `dumptid`
//! and counts `dumping` up while a configured dumper works: the list `dumper_configs` since release 13, one structure
//! `dumper` before. In between it says on its console, and in its message buffer, what it has to say of the panic.
//!
//! The guest may run while it is read, so nothing here trusts two words to be of one moment, and no page tables are
//! walked: every variable lies where the image's load map says, the message buffer in the direct map. Each value is
//! checked for being plausible.

use std::time::Duration;

use super::layout::{DMAP_MAX, DMAP_MIN};
use crate::panicked::{OwnDump, Panicked};
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// How long it may take to say where it panicked, printing on a console as slow as an emulated one.
const PATIENCE: Duration = Duration::from_millis(250);
/// Size of vpanic()'s static buffer.
const MAX_TEXT: usize = 256;
/// Most CPUs of any kernel (`MAXCPU`), in words of a `cpuset_t`.
const CPU_WORDS: usize = 16;
/// First kernel address of any layout of the address space.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
/// `msg_magic` (`sys/sys/msgbuf.h`).
const MESSAGE_BUFFER_MAGIC: u32 = 0x06_3062;

const WORDS: [&str; 10] = [
    "panicstr",
    "panicked",
    "all_cpus",
    "stopped_cpus",
    "smp_started",
    "dumping",
    "dumptid",
    "dumper_configs",
    "dumper",
    "msgbufp",
];

/// Where a kernel keeps the words.
#[derive(Debug, Clone)]
pub struct PanicWords {
    symbols: KernelSymbols,
}

impl PanicWords {
    /// The words of the kernel with these symbols; `None` when it has no such words, or no symbols.
    pub fn find(symbols: &KernelSymbols) -> Option<Self> {
        let symbols = symbols.only(&WORDS);
        // Some small kernels have a `panicstr` and nothing else of FreeBSD's panic.
        let has = |name| symbols.address(name).is_some();
        (has("panicstr") && (has("panicked") || has("dumping"))).then_some(Self { symbols })
    }

    /// What the words say now; `None` when the kernel has not panicked. The machine has `cpus` CPUs.
    pub fn read(&self, memory: &dyn PhysicalMemory, cpus: u32) -> Option<Panicked> {
        let words = Reader { symbols: &self.symbols, memory };
        let message = words.word("panicstr").filter(|&address| address != 0)?;
        match words.flag("panicked") {
            Some(false) => return None,
            Some(true) if message >= KERNEL_HALF || self.symbols.physical(message).is_some() => {}
            None if self.symbols.physical(message).is_some() => {}
            _ => return None,
        }
        let running = words.running(cpus);
        Some(Panicked {
            evidence: "the kernel's panicstr is set",
            text: words.text(message),
            cpu: running.unwrap_or_else(|| CpuSet::lowest(cpus)).only(),
            own_dump: words.own_dump(),
            formatted: self.symbols.is_writable(message),
            others_stopped: running.is_none_or(|set| set.count() <= 1),
            written: words.written().map(u64::from),
            finished: None,
            patience: PATIENCE,
        })
    }
}

/// Reads variables where the load map puts them.
struct Reader<'a> {
    symbols: &'a KernelSymbols,
    memory: &'a dyn PhysicalMemory,
}

impl Reader<'_> {
    fn read(&self, symbol: &str, buf: &mut [u8]) -> Option<()> {
        let physical = self.symbols.physical(self.symbols.address(symbol)?)?;
        self.memory.read(physical, buf).ok()
    }

    fn word(&self, symbol: &str) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(symbol, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    fn int(&self, symbol: &str) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(symbol, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// A `bool`, which is one byte, or an `int`.
    fn flag(&self, symbol: &str) -> Option<bool> {
        let mut bytes = [0; 4];
        let width = if self.symbols.size(symbol)? >= 4 { 4 } else { 1 };
        self.read(symbol, &mut bytes[..width])?;
        Some(bytes != [0; 4])
    }

    fn text(&self, address: u64) -> Option<String> {
        let physical = self.symbols.physical(address)?;
        let mut bytes = [0; MAX_TEXT];
        // A message at the very end of RAM is nobody's.
        self.memory.read(physical, &mut bytes).ok()?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(MAX_TEXT);
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// The CPUs that have not stopped; `None` for a kernel that stops none, as one for a single CPU.
    fn running(&self, cpus: u32) -> Option<CpuSet> {
        let stopped = self.cpu_set("stopped_cpus")?;
        if self.flag("smp_started") == Some(false) {
            // The others are not under way yet, and nobody would stop them.
            return Some(CpuSet::lowest(1));
        }
        let machine = CpuSet::lowest(cpus);
        let all = self.cpu_set("all_cpus").map(|set| set.and(machine)).filter(|set| set.count() > 0);
        Some(all.unwrap_or(machine).without(stopped))
    }

    fn cpu_set(&self, symbol: &str) -> Option<CpuSet> {
        let size = usize::try_from(self.symbols.size(symbol)?).ok()?.clamp(8, 8 * CPU_WORDS);
        let mut bytes = [0; 8 * CPU_WORDS];
        self.read(symbol, &mut bytes[..size])?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut set = CpuSet([0; CPU_WORDS]);
        set.0.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        Some(set)
    }

    /// `msg_wseq` of the message buffer, which kernels before 15 reach by the direct map at its usual place.
    fn written(&self) -> Option<u32> {
        let buffer = self.word("msgbufp")?;
        let physical = match buffer {
            DMAP_MIN..DMAP_MAX => buffer - DMAP_MIN,
            _ => self.symbols.physical(buffer)?,
        };
        // The text's address, magic, size, where to write.
        let mut head = [0; 20];
        self.memory.read(physical, &mut head).ok()?;
        let field = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        (field(8) == MESSAGE_BUFFER_MAGIC).then(|| field(16))
    }

    fn own_dump(&self) -> OwnDump {
        let is_set = |symbol| self.int(symbol).is_some_and(|value| value != 0);
        // The first field of a list's head is its first element; that of `struct dumperinfo` is its function.
        let dumper = ["dumper_configs", "dumper"].iter().find_map(|name| self.word(name));
        match dumper.is_some_and(|first| first != 0) {
            _ if is_set("dumping") => OwnDump::Running,
            true if is_set("dumptid") => OwnDump::Over,
            true => OwnDump::Configured,
            false => OwnDump::None,
        }
    }
}

/// A `cpuset_t`: one bit for each CPU, in little-endian words.
#[derive(Clone, Copy)]
struct CpuSet([u64; CPU_WORDS]);

impl CpuSet {
    fn lowest(count: u32) -> Self {
        let mut words = [0; CPU_WORDS];
        for (first, word) in (0_u32..).step_by(64).zip(&mut words) {
            *word = match count.saturating_sub(first) {
                0 => 0,
                bits @ 1..64 => (1 << bits) - 1,
                _ => u64::MAX,
            };
        }
        Self(words)
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] & other.0[index]))
    }

    fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] & !other.0[index]))
    }

    fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The CPU of a set of one.
    fn only(self) -> Option<u32> {
        let mut words = (0_u32..).step_by(64).zip(self.0);
        let (first, word) = words.find(|(_, word)| *word != 0)?;
        (self.count() == 1).then_some(first + word.trailing_zeros())
    }
}
