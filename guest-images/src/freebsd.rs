//! What the guests `freebsd-abi` and those who look into them agree on: the processes and threads, the backtraces, the
//! texts, the offsets that the kernel's own `*_off_*` constants tell, and where pattern lies. Compiled twice, as
//! [`pattern`](crate::pattern) and its neighbours are.

/// Offsets in `struct proc` and `struct thread`; none is that of a real kernel, so that nobody can hard-code those.
#[allow(missing_docs, reason = "the names of the kernel's constants")]
pub mod offsets {
    pub const P_LIST: usize = 0x18;
    pub const P_THREADS: usize = 0x30;
    pub const P_PID: usize = 0xd4;
    pub const P_HASH: usize = 0xe0;
    pub const P_COMM: usize = 0x3c8;
    pub const TD_PLIST: usize = 0x20;
    pub const TD_TID: usize = 0x9c;
    pub const TD_NAME: usize = 0x2a4;
    pub const TD_PCB: usize = 0x450;
    pub const TD_ONCPU: usize = 0x6a4;
}

/// What a virtual address of the image is higher than the physical one.
pub const KERNBASE: u64 = 0xffff_ffff_8000_0000;
/// Value of `hz`.
pub const HZ: u32 = 250;
/// Value of `time_second`, which stands still: 2023-11-14 22:13:20 UTC.
pub const TIME_SECOND: u64 = 1_700_000_000;
/// Host name unless the environment has `abi.hostname`.
pub const HOST_NAME: &str = "abi.example.org";
/// Value of `kern_ident`.
pub const KERN_IDENT: &str = "FREEBSD-ABI";
/// What `panicstr` points at first.
pub const PANIC_FORMAT: &str = "abi: %s";
/// What it points at once it is formatted, unless the environment has `abi.text`, which replaces what is behind the
/// colon.
pub const PANIC_TEXT: &str = "abi: told to panic by the environment";
/// The one variable of the compiled-in environment.
pub const COMPILED_IN: (&str, &str) = ("abi.compiled_in", "yes");

/// A process or a thread, as lists show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    /// Number of its process.
    pub pid: i32,
    /// Its own.
    pub tid: i32,
    /// The process's command.
    pub command: &'static str,
    /// The thread's name; that of an idle thread has the number of its CPU behind it.
    pub name: &'static str,
}

/// The shell's thread that panics; it runs on the CPU that does.
pub const CRASHED: Thread = Thread { pid: 712, tid: 100_101, command: "sh", name: "sh" };
/// The shell's other thread, asleep.
pub const WORKER: Thread = Thread { pid: 712, tid: 100_102, command: "sh", name: "sh worker" };
/// Asleep, or on CPU 1 in user mode with `abi.user=yes`.
pub const BUSY: Thread = Thread { pid: 713, tid: 100_110, command: "busyloop", name: "busyloop" };
/// The idle thread of CPU 0; that of CPU n has a tid n higher. All but that of the CPU that panics are on their CPUs.
pub const IDLE: Thread = Thread { pid: 11, tid: 100_003, command: "idle", name: "idle: cpu" };
/// Asleep.
pub const INIT: Thread = Thread { pid: 1, tid: 100_002, command: "init", name: "init" };
/// Asleep.
pub const KERNEL: Thread = Thread { pid: 0, tid: 100_000, command: "kernel", name: "swapper" };
/// The only one of `zombproc`, which the 12 flavour has.
pub const ZOMBIE: Thread = Thread { pid: 650, tid: 100_090, command: "defunct", name: "defunct" };

/// Backtrace of a thread that sleeps: the functions that its addresses lie in, the innermost first.
pub const SLEEPING_BACKTRACE: &[&str] = &[
    "sched_switch",
    "mi_switch",
    "sleepq_wait",
    "_sleep",
    "kern_wait6",
    "sys_wait4",
    "amd64_syscall",
    "fast_syscall_common",
];
/// Backtrace of an idle thread whose CPU nobody has stopped.
pub const IDLE_BACKTRACE: &[&str] = &["cpu_idle", "sched_idletd", "fork_exit", "fork_trampoline"];
/// Backtrace of an idle thread whose CPU was stopped before it saved its context in `stoppcbs`.
pub const STOPPED_BACKTRACE: &[&str] =
    &["cpustop_handler", "nmi_calltrap", "cpu_idle", "sched_idletd", "fork_exit", "fork_trampoline"];
/// Backtrace of the panic, from `vpanic` out. What called it last is in front: `shutdown_final` and `kern_reboot` at
/// the end, `doadump` and `kern_reboot` in `dumppcb`, `kdb_enter` in the debugger.
pub const PANIC_BACKTRACE: &[&str] =
    &["vpanic", "panic", "sys_abi_panic", "amd64_syscall", "fast_syscall_common"];

/// Lines that fill the message buffer until it has wrapped; those of the panic follow.
pub const MESSAGE_LINES: u32 = 2000;
/// Bytes of each.
pub const MESSAGE_LINE: usize = 64;
/// Bytes of the message buffer's text.
pub const MESSAGE_BUFFER: usize = 98304 - 72;

/// Line `number` of the message buffer, with its line end: the number in four digits within a fixed text.
pub const fn message_line(number: u32) -> [u8; MESSAGE_LINE] {
    let mut line = *b"message 0000 of a buffer that wraps around, oldest lines first.\n";
    let (mut left, mut place) = (number, 11);
    while place > 7 {
        line[place] = b'0' + (left % 10) as u8;
        left /= 10;
        place -= 1;
    }
    line
}

/// How a page with the pattern (of [`DEFAULT_SEED`](crate::DEFAULT_SEED), by physical address) is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Reach {
    /// By the direct map alone, and in `vm_page_dump`: in the dump.
    Direct = 1,
    /// By a 4 KiB mapping: in the dump.
    Small = 2,
    /// By a 2 MiB mapping: in the dump.
    Large = 3,
    /// By the direct map alone, allocated so as not to be dumped: not in the dump.
    NoDump = 4,
    /// By the direct map alone, and free: not in the dump.
    Free = 5,
    /// By a user process's tables: not in the dump.
    User = 6,
}

impl Reach {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Direct, Self::Small, Self::Large, Self::NoDump, Self::Free, Self::User];

    /// Whether the page belongs to a minidump.
    pub const fn is_dumped(self) -> bool {
        matches!(self, Self::Direct | Self::Small | Self::Large)
    }
}
