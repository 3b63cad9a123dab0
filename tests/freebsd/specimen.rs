//! One run of the guest that plays FreeBSD, and what any core of it must show: see `guest_images::freebsd` for what the
//! guest promises.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use guest_images::freebsd::{self, MESSAGE_BUFFER, MESSAGE_LINES, Reach, message_line};
use guest_images::{DEFAULT_SEED, Guest, PatternPage, first_mismatch};
use harness::guests::{Bench, assert_code, verify};
use harness::programs::Ended;
use harness::readers::freebsd::{Symbols, Thread, VirtualMemory, registers, threads};
use harness::readers::minidump::MiniCore;
use serde_json::Value;

/// The guest ends in a write to pvpanic, and nothing else is listened to: all that the kernel does in a panic is done.
const SETTLED: [&str; 4] = ["--panic-source", "pvpanic", "--kenv", "abi.panic=pvpanic"];
/// The symbols that tests and readers ask for, and the functions that call chains go through.
const SYMBOLS: [&str; 31] = [
    "kernbase",
    "KPML4phys",
    "allproc",
    "cpuid_to_pcpu",
    "dump_avail",
    "dumppcb",
    "dumptid",
    "msgbufp",
    "oracle_bitmap",
    "oracle_pages",
    "panicstr",
    "pattern_pages",
    "pcb_size",
    "proc_off_p_comm",
    "proc_off_p_list",
    "proc_off_p_pid",
    "proc_off_p_threads",
    "stoppcbs",
    "stopped_cpus",
    "thread_off_td_name",
    "thread_off_td_oncpu",
    "thread_off_td_pcb",
    "thread_off_td_plist",
    "thread_off_td_tid",
    "version",
    "cpustop_handler",
    "doadump",
    "kern_reboot",
    "nmi_calltrap",
    "shutdown_final",
    "vpanic",
];
const FUNCTIONS: [&str; 24] = [
    "_sleep",
    "amd64_syscall",
    "cpu_idle",
    "cpustop_handler",
    "doadump",
    "fast_syscall_common",
    "fork_exit",
    "fork_trampoline",
    "kdb_enter",
    "kern_reboot",
    "kern_wait6",
    "mi_switch",
    "nmi_calltrap",
    "panic",
    "prf_putbuf",
    "sched_idletd",
    "sched_switch",
    "shutdown_final",
    "sleepq_wait",
    "stop_cpus_hard",
    "sys_abi_panic",
    "sys_wait4",
    "tsc_delay",
    "vpanic",
];
/// A `thread` that sleeps or is idle lies this deep at most.
const MAX_FRAMES: usize = 20;

/// A guest that was dumped.
pub(crate) struct Specimen {
    pub(crate) bench: Bench,
    pub(crate) guest: &'static Guest,
    pub(crate) symbols: Symbols,
    pub(crate) ended: Ended,
    pub(crate) report: Value,
    /// How many CPUs it had, and which one panicked.
    pub(crate) cpus: u32,
    pub(crate) panicking: u32,
}

/// Options for a guest that is told these things.
pub(crate) fn told<'a>(variables: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    variables.iter().flat_map(|variable| ["--kenv", variable]).chain(options.iter().copied()).collect()
}

/// The options of a guest with these variables that panics and stands still only when its kernel is done.
pub(crate) fn settled<'a>(variables: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    [&SETTLED[..], &told(variables, options)].concat()
}

impl Specimen {
    /// A guest with one CPU, dumped into the embedded receiver.
    pub(crate) fn dumped(flavour: &str, variables: &[&str], options: &[&str]) -> Self {
        let bench = Bench::new(flavour);
        let ended = bench.run(&settled(variables, options));
        assert_code(&ended, 10);
        Self::of(flavour, bench, ended)
    }

    /// A guest with four CPUs, the third of which panics.
    pub(crate) fn dumped_with_4_cpus(flavour: &str, variables: &[&str], options: &[&str]) -> Self {
        let variables = [&["abi.cpus=4", "abi.cpu=2"], variables].concat();
        let specimen = Self::dumped(flavour, &variables, &[&["--cpus", "4"], options].concat());
        Self { cpus: 4, panicking: 2, ..specimen }
    }

    /// What was left by a run that has ended.
    pub(crate) fn of(flavour: &str, bench: Bench, ended: Ended) -> Self {
        let report = bench.report();
        let guest = guest_images::find(flavour).unwrap();
        Self { guest, symbols: symbols(guest), report, bench, ended, cpus: 1, panicking: 0 }
    }

    pub(crate) fn core_path(&self) -> PathBuf {
        self.report["core"].as_str().expect("the report names the core").into()
    }

    /// The core, which must be whole and a minidump.
    pub(crate) fn minidump(&self) -> MiniCore {
        assert_eq!(self.report["core_format"], "minidump");
        self.verify();
        MiniCore::open(&self.core_path()).unwrap()
    }

    /// `netdump verify` of the stored core.
    pub(crate) fn verify(&self) {
        verify(&self.core_path(), &self.bench.report_path());
    }

    /// The report's remarks.
    pub(crate) fn remarks(&self) -> Vec<String> {
        self.report["remarks"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().into()).collect()
    }

    /// Asserts that exactly one remark has these words, and that a person sees it.
    #[track_caller]
    pub(crate) fn assert_remark(&self, words: &str) {
        let remarks = self.remarks();
        assert_eq!(remarks.iter().filter(|text| text.contains(words)).count(), 1, "{words:?} in {remarks:?}");
        assert!(self.ended.stderr.contains(words), "no {words:?} in {}", self.ended.stderr);
    }

    /// The text beside a core.
    pub(crate) fn info(&self) -> String {
        info(&self.core_path())
    }

    /// The function that an address lies in.
    fn function(&self, address: u64) -> String {
        let holds = |name: &&&str| {
            let symbol = self.guest.symbol(name).unwrap();
            (symbol.address..symbol.address + symbol.size).contains(&address)
        };
        FUNCTIONS.iter().find(holds).map_or_else(|| format!("{address:#x}"), |name| (*name).to_owned())
    }

    /// The functions of a call chain by frame pointers, the innermost first.
    pub(crate) fn backtrace(&self, core: &dyn VirtualMemory, pcb: u64) -> Vec<String> {
        let registers = registers(core, pcb).unwrap();
        let (mut chain, mut frame) = (vec![self.function(registers["rip"])], registers["rbp"]);
        while let (Ok(caller), Ok(back)) = (core.u64_va(frame), core.u64_va(frame.wrapping_add(8))) {
            // A call may be the last of its function, with the next function behind it.
            chain.push(self.function(back.wrapping_sub(1)));
            assert!(chain.len() < MAX_FRAMES, "{chain:?}");
            frame = caller;
        }
        chain
    }

    /// Asserts that a debugger sees all that the guest promises of its threads, and the panic in the one that panicked.
    #[track_caller]
    pub(crate) fn check_threads(&self, core: &dyn VirtualMemory) {
        let found = threads(core, &self.symbols).unwrap();
        let list = found.iter().map(|thread| {
            (thread.pid, thread.tid, thread.comm.as_str(), thread.name.clone(), thread.oncpu, thread.crashed)
        });
        let promised = self.promised_threads();
        assert_eq!(list.collect::<Vec<_>>(), promised);
        let crashed = found.iter().find(|thread| thread.crashed).unwrap();
        let chain = self.backtrace(core, crashed.pcb);
        assert!(ends_with(&chain, freebsd::PANIC_BACKTRACE), "{chain:?}");
        for thread in found.iter().filter(|thread| thread.oncpu == -1 && thread.pid != 11) {
            assert_eq!(self.backtrace(core, thread.pcb), freebsd::SLEEPING_BACKTRACE, "{thread:?}");
        }
    }

    fn promised_threads(&self) -> Vec<(u32, u32, &'static str, String, i32, bool)> {
        let thread = |about: freebsd::Thread, name: String, cpu: i32, crashed| {
            (about.pid.cast_unsigned(), about.tid.cast_unsigned(), about.command, name, cpu, crashed)
        };
        let asleep = |about: freebsd::Thread| thread(about, about.name.into(), -1, false);
        let panicking = self.panicking.cast_signed();
        let idle = (0..self.cpus.cast_signed()).map(|cpu| {
            let about = freebsd::Thread { tid: freebsd::IDLE.tid + cpu, ..freebsd::IDLE };
            thread(about, format!("{}{cpu}", about.name), if cpu == panicking { -1 } else { cpu }, false)
        });
        let crashed = freebsd::CRASHED;
        let before = [
            thread(crashed, crashed.name.into(), panicking, true),
            asleep(freebsd::WORKER),
            asleep(freebsd::BUSY),
        ];
        before.into_iter().chain(idle).chain([asleep(freebsd::INIT), asleep(freebsd::KERNEL)]).collect()
    }

    /// The threads on CPUs other than the one that panicked.
    pub(crate) fn others(&self, core: &dyn VirtualMemory) -> Vec<Thread> {
        let threads = threads(core, &self.symbols).unwrap();
        threads.into_iter().filter(|thread| thread.oncpu >= 0 && !thread.crashed).collect()
    }

    /// The bits of `stopped_cpus`.
    pub(crate) fn stopped_cpus(&self, core: &dyn VirtualMemory) -> u64 {
        core.u64_va(self.symbols.address("stopped_cpus").unwrap()).unwrap()
    }

    /// The pages that the guest filled with the pattern.
    pub(crate) fn pattern_pages(&self, core: &dyn VirtualMemory) -> Vec<PatternPage> {
        let list = self.symbols.address("pattern_pages").unwrap();
        let pages = PatternPage::parse_list(&core.read_va(list, PatternPage::LIST_SIZE).unwrap()).unwrap();
        for reach in [Reach::Direct, Reach::Small, Reach::Large, Reach::NoDump, Reach::Free] {
            assert!(pages.iter().any(|page| page.reach == reach), "no page is {reach:?}");
        }
        pages
    }

    /// Asserts that a minidump is the one that the guest's kernel would have written.
    #[track_caller]
    pub(crate) fn check_minidump(&self, core: &MiniCore) {
        self.check_header(core);
        self.check_messages(core);
        let found: BTreeSet<u64> = core.pages().keys().copied().collect();
        let differ: Vec<u64> = found.symmetric_difference(&self.oracle(core)).copied().collect();
        assert!(differ.is_empty(), "pages that are in one but not the other: {differ:x?}");
        for page in self.pattern_pages(core) {
            let (va, pa) = (page.virtual_address, page.physical_address);
            assert_eq!(core.translate(va).ok(), Some(pa), "{page:x?}");
            if core.pages().contains_key(&pa) {
                assert_pattern(pa, &core.read_va(va, 4096).unwrap());
            }
        }
        self.check_threads(core);
        self.check_stopped(core);
    }

    #[track_caller]
    fn check_header(&self, core: &MiniCore) {
        let header = core.header();
        let is_12 = self.guest.name == "freebsd-abi-12";
        assert_eq!((header.version, header.dumpavailsize), if is_12 { (2, 0) } else { (3, 4096) });
        assert_eq!(header.msgbufsize as usize, MESSAGE_BUFFER);
        // From the first kernel address to the end of the GiB that the image is in.
        assert_eq!(header.pmapsize, 2047 * 4096);
        assert_eq!(header.kernbase, 0xffff_fe00_0000_0000);
        assert_eq!((header.dmapbase, header.dmapend), (0xffff_f800_0000_0000, 0xffff_fc00_0000_0000));
        assert_eq!(core.length(), core.expected_length());
        if !is_12 {
            assert_eq!(core.dump_avail(), self.dump_avail(core));
        }
    }

    /// The kernel's own variable, through its own tables.
    pub(crate) fn dump_avail(&self, core: &dyn VirtualMemory) -> Vec<(u64, u64)> {
        let array = self.symbols.address("dump_avail").unwrap();
        let pair = |index: u64| {
            (core.u64_va(array + 16 * index).unwrap(), core.u64_va(array + 16 * index + 8).unwrap())
        };
        (0..).map(pair).take_while(|&(_, end)| end != 0).collect()
    }

    /// Asserts that the section of the message buffer is the guest's ring, whose newest text is the panic's.
    #[track_caller]
    fn check_messages(&self, core: &MiniCore) {
        let section = core.message_buffer().unwrap();
        let structure = core.u64_va(self.symbols.address("msgbufp").unwrap()).unwrap();
        let text = core.u64_va(structure).unwrap();
        assert!(section == core.read_va(text, MESSAGE_BUFFER).unwrap(), "another ring");
        let written = core.u32_va(structure + 16).unwrap() as usize % MESSAGE_BUFFER;
        let newest = String::from_utf8([&section[written..], &section[..written]].concat()).unwrap();
        let end = format!(
            "panic: {}\ncpuid = {}\ntime = {}\n",
            freebsd::PANIC_TEXT,
            self.panicking,
            freebsd::TIME_SECOND
        );
        assert!(newest.ends_with(&end), "{}", &newest[newest.len() - 200..]);
        // As many of the filling lines as there is room for.
        let lines: BTreeSet<&str> = newest.lines().collect();
        let line = |number| String::from_utf8(message_line(number).to_vec()).unwrap();
        let held = (0..MESSAGE_LINES).filter(|&number| lines.contains(line(number).trim_end()));
        let held: Vec<u32> = held.collect();
        assert!(held.len() > 1400, "{} lines", held.len());
        assert!(held.iter().copied().eq(held[0]..MESSAGE_LINES), "the lines have a gap");
    }

    /// The pages that the guest found when it did what its kernel would: from its own bitmap, which is in the dump.
    fn oracle(&self, core: &dyn VirtualMemory) -> BTreeSet<u64> {
        let word = |name| core.u64_va(self.symbols.address(name).unwrap()).unwrap();
        let numbered: Vec<u64> = match self.guest.name {
            "freebsd-abi-12" => (0..self.dump_avail(core).last().unwrap().1).step_by(4096).collect(),
            _ => self.dump_avail(core).iter().flat_map(|&(start, end)| (start..end).step_by(4096)).collect(),
        };
        let bitmap = core.read_va(word("oracle_bitmap"), numbered.len().div_ceil(64) * 8).unwrap();
        let is_set = |bit: usize| bitmap[bit / 8] >> (bit % 8) & 1 == 1;
        let pages = numbered.iter().enumerate().filter(|&(bit, _)| is_set(bit)).map(|(_, &page)| page);
        let pages: BTreeSet<u64> = pages.collect();
        assert_eq!(pages.len() as u64, word("oracle_pages"));
        pages
    }

    /// Asserts that the others were stopped by the kernel, and the one that panicked was not.
    #[track_caller]
    fn check_stopped(&self, core: &dyn VirtualMemory) {
        assert_eq!(self.stopped_cpus(core), ((1 << self.cpus) - 1) & !(1 << self.panicking));
        let others = self.others(core);
        assert_eq!(others.len() as u64, u64::from(self.cpus) - 1);
        for thread in others {
            assert_eq!(self.backtrace(core, thread.pcb), freebsd::STOPPED_BACKTRACE, "{thread:?}");
        }
    }
}

/// Address and size of the symbols that this kernel has.
fn symbols(guest: &Guest) -> Symbols {
    let of = |name: &&str| Some(((*name).to_owned(), guest.symbol(name)?));
    let found: BTreeMap<_, _> = SYMBOLS.iter().filter_map(of).collect();
    Symbols(found.into_iter().map(|(name, symbol)| (name, (symbol.address, symbol.size))).collect())
}

/// The info file that belongs to a core.
pub(crate) fn info(core: &Path) -> String {
    let name = core.file_name().unwrap().to_str().unwrap();
    let rest = name.trim_start_matches("vmcore_encrypted.").trim_start_matches("vmcore.");
    let rest = rest.trim_end_matches(".incomplete").trim_end_matches(".gz").trim_end_matches(".zst");
    std::fs::read_to_string(core.with_file_name(format!("info.{rest}"))).unwrap()
}

#[track_caller]
pub(crate) fn assert_pattern(address: u64, bytes: &[u8]) {
    assert_eq!(first_mismatch(DEFAULT_SEED, address, bytes), None, "memory differs from the pattern");
}

/// Whether a call chain ends with these functions.
pub(crate) fn ends_with(chain: &[String], functions: &[&str]) -> bool {
    chain.len() >= functions.len() && chain[chain.len() - functions.len()..] == *functions
}
