//! Honours the kernel ABI of FreeBSD/amd64 that a dumper from outside relies on: the file, both entries, symbols, page
//! tables, lists, environment, message buffer and the order of events in a panic. It then panics as it is told.
//!
//! Three flavours are built from this source: `freebsd-abi` (as 14: `stoppcbs` is a pointer), `freebsd-abi-13`
//! (`stoppcbs` is an array) and `freebsd-abi-12` (the bitmap counts from address 0, `vm_page_dump_size` in bytes,
//! `zombproc`, one `dumper`, flags that are `int`).
//!
//! Environment:
//! - `abi.panic`: what the panic ends in. `halt` (default), `spin`, `reset-8042`, `reset-cf9`, `poweroff`, `triple`;
//!   `ddb` (in the debugger, before any of these), `dump` (as `abi.dumper=yes`, then `reset-8042`), `pvpanic` (tells
//!   pvpanic, then halts), `none` (no panic; all CPUs idle).
//! - `abi.end`: with `abi.panic=none`, how the guest ends without a panic: `stay` (default), `reset-8042`, `reset-cf9`
//!   or `poweroff`.
//! - `abi.text`: the panic text behind `abi: `, with a space for each `_`.
//! - `abi.cpu` (default 0): number of the CPU that panics; 0 when there is no such CPU.
//! - `abi.cpus` (default 1): how many CPUs to wait for, two seconds at most.
//! - `abi.after` (default 0): milliseconds to wait before the panic.
//! - `abi.delay` (default 0): milliseconds between the raw `panicstr` and the formatted one.
//! - `abi.stop`: whether the other CPUs are stopped, so that `stoppcbs` and `stopped_cpus` are filled: `yes` (default)
//!   or `no`, when they stay in `cpu_idle`.
//! - `abi.dump_ms`: see `abi.dumper`.
//! - `abi.savectx`: whether `doadump` fills `dumppcb` and `dumptid`: `no` (default; as without a dumper) or `yes`.
//! - `abi.dumper`: `yes`: a dumper is configured (`dumper_configs` or `dumper` is not empty). `doadump` then does what
//!   `abi.savectx=yes` does, sets `dumping`, and says for `abi.dump_ms` (default 100) milliseconds that it dumps.
//!   `idle`: it is configured, and `doadump` does nothing, as in a panic from which the kernel comes no further. `no` is
//!   the default.
//! - `abi.console`: `quiet`: the panic message goes to the message buffer alone.
//! - `abi.user`: `yes`: CPU 1 (or 0 when 1 panics) runs a user process on tables that lack most of the kernel half, is
//!   never stopped, and has its user GS base in place (`swapgs` not done).
//! - `abi.kenv.set=NAME=VALUE`, `abi.kenv.unset=NAME`: changes at run time, once the environment is dynamic; each may
//!   be repeated.
//! - `abi.kenv.static=yes`: the environment stays static, as in a panic early in the boot.
//! - `abi.gigantic` (default 1): the GiB of physical addresses that the 1 GiB mapping shows. Those of its pages that
//!   are in `dump_avail` belong to the dump: with 0 all of the first GiB.
//! - `abi.dmap`: `2M` makes the direct map of 2 MiB pages; `auto` (default) of 1 GiB pages where the CPU has them.
//! - `abi.hostile`: what of its memory the guest damages at the very end of the panic, see hostile.rs; `no` (default)
//!   for nothing.
//! - `abi.hostname`: instead of `abi.example.org`.
//!
//! Memory: see `src/freebsd.rs` for everything a test may expect; `pattern_pages`, `oracle_bitmap` and `oracle_pages`
//! tell where pattern lies and which pages a minidump has.
//!
//! Registers: an idle CPU that is not stopped has `known_register(cpu, ..)` in RBX and R12 to R15. So has the CPU that
//! panics.
#![no_std]
#![no_main]

#[path = "../rt/console.rs"]
#[allow(dead_code, reason = "other guests use the rest")]
mod console;
#[path = "../../src/contract.rs"]
#[allow(dead_code, reason = "other guests use the rest")]
mod contract;
mod cpus;
mod flavour;
#[path = "../../src/freebsd.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod freebsd;
#[path = "../rt/global.rs"]
#[allow(dead_code, reason = "other guests use the rest")]
mod global;
mod handover;
mod hostile;
mod kenv;
#[path = "../rt/libc.rs"]
mod libc;
mod msgbuf;
mod oracle;
mod pages;
mod paging;
mod panic;
mod pattern;
#[path = "../rt/port.rs"]
mod port;
mod procs;
#[path = "../rt/start_info.rs"]
mod start_info;
#[path = "../rt/time.rs"]
#[allow(dead_code, reason = "other guests use the rest")]
mod time;
mod traps;
mod variables;

use handover::Handover;

/// The first CPU in ring 3, on its own stack, with `.bss` zeroed. `entry` tells which of the two it came by; the
/// others are what that protocol gave, and whether there are 1 GiB pages.
#[unsafe(no_mangle)]
extern "C" fn boot(entry: u32, first: u32, second: u32, has_gib_pages: u32) -> ! {
    traps::install();
    console::init();
    variables::cold.write(1);
    let handover = Handover::read(entry, first, second);
    pages::init(&handover);
    kenv::init(&handover);
    msgbuf::init_buffer();
    println!("{}", identity().trim_end());
    println!("{} hand-off, environment of {} strings", handover.name(), kenv::count());
    paging::build(has_gib_pages != 0 && kenv::choice("abi.dmap", &[("auto", true), ("2M", false)]));
    identify();
    if !kenv::is_yes("abi.kenv.static", false) {
        kenv::make_dynamic();
        kenv::change_as_told();
    }
    let cpus = cpus::start();
    procs::make(&cpus);
    pattern::spread();
    variables::cold.write(0);
    panic::order(&cpus);
    oracle::write();
    hostile::order();
    cpus::launch(&cpus)
}

const VERSION: &str = match flavour::OSRELDATE / 100_000 {
    14 => {
        "FreeBSD 14.0-ABI #0 micro-guest: Tue Nov 14 22:13:20 UTC 2023\n    builder@abi.example.org:/usr/obj/FREEBSD-ABI\n"
    }
    13 => {
        "FreeBSD 13.2-ABI #0 micro-guest: Tue Nov 14 22:13:20 UTC 2023\n    builder@abi.example.org:/usr/obj/FREEBSD-ABI\n"
    }
    _ => {
        "FreeBSD 12.4-ABI #0 micro-guest: Tue Nov 14 22:13:20 UTC 2023\n    builder@abi.example.org:/usr/obj/FREEBSD-ABI\n"
    }
};

/// A text as C has it: with a NUL behind it.
const fn c_text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let (head, _) = bytes.split_at_mut(text.len());
    head.copy_from_slice(text.as_bytes());
    bytes
}

macro_rules! text_variable {
    ($name:ident, $text:expr) => {
        #[unsafe(no_mangle)]
        #[used]
        #[allow(non_upper_case_globals)]
        static $name: [u8; $text.len() + 1] = c_text($text);
    };
}
text_variable!(version, VERSION);
text_variable!(ostype, "FreeBSD");
text_variable!(osrelease, flavour::RELEASE);
text_variable!(kern_ident, freebsd::KERN_IDENT);

fn identity() -> &'static str {
    VERSION
}

/// The host name, the time and the like.
fn identify() {
    variables::time_second.write(freebsd::TIME_SECOND);
    let start = flavour::PRISON_SIZE - flavour::HOST_NAME_FROM_END;
    for (i, &byte) in kenv::value("abi.hostname").unwrap_or(freebsd::HOST_NAME).as_bytes().iter().enumerate()
    {
        variables::prison0.set(start + i, byte);
    }
}
