//! Plays a Linux kernel, as far as one is watched from outside: its words, its log and where it lies, but nothing of what
//! it does. It can lie elsewhere than the image asks to be, as address randomisation does it.
//!
//! Environment, besides what every guest takes:
//! - `moved`: MiB (a multiple of 2) that the kernel lies higher in physical memory; `slide`: MiB in virtual memory.
//! - `panic`: `yes` (default), `no`, or `oops`, which is an oops and no panic.
//! - `cpu`: the CPU that panics; `cpus`: how many the kernel has (default 2); `stop`: `yes` (default) or `no`: the others
//!   do not stop.
//! - `lines`: log lines behind the message (default 10); `delay`: milliseconds before each step and line.
//! - `timeout`: `panic_timeout`; unless it is 0 (default), there is no last word.
//! - `crash`: `none` (default), `loaded`: there is a crash kernel; `started`: and it takes over.
//! - `forge`: `none` (default), `console` or `log`: a user writes what a panic would.
//! - `end`: `spin` (default), `poweroff`, `i8042`, `cf9`, `triple`, `hyperv` (the crash registers, then spin), `hlt`
//!   (halted with interrupts off).
//!
//! Memory: no pattern unless `fill` asks for it. Between 8 and 9 MiB: the log's text.
#![no_std]
#![no_main]
#![allow(non_upper_case_globals)]

use core::arch::asm;
use core::fmt::Write;

use rt::cpu::{self, RegisterImage};
use rt::global::Global;
use rt::{kenv, memory, power, print, println, time};

rt::guest!("linux-abi", run);

/// A word of the kernel.
macro_rules! words {
    ($($name:ident: $type:ty = $value:expr;)*) => {
        $(#[unsafe(no_mangle)] #[unsafe(link_section = ".data.words")] static $name: Global<$type> = Global::new($value);)*
    };
}

const BANNER: [u8; 64] = *b"Linux version 6.1.0-abi (guest-images) #1 SMP PREEMPT_DYNAMIC\n\0\0";

words! {
    linux_banner: [u8; 64] = BANNER;
    init_uts_ns: [u8; 390] = uts();
    phys_base: u64 = 0;
    page_offset_base: u64 = DIRECT_MAP;
    prb: u64 = 0;
    printk_rb_static: [u64; 11] = [0; 11];
    descriptors: [u64; 3 * RECORDS] = [0; 3 * RECORDS];
    infos: [u64; 11 * RECORDS] = [0; 11 * RECORDS];
    panic_cpu: u32 = u32::MAX;
    panic_timeout: u32 = 0;
    suppress_printk: u32 = 0;
    oops_in_progress: u32 = 0;
    crashing_cpu: u32 = u32::MAX;
    waiting_for_crash_ipi: u32 = 0;
    tainted_mask: u64 = 0;
    kexec_crash_image: u64 = 0;
    __cpu_online_mask: [u64; 2] = [0; 2];
}

/// Where the kernel's direct map begins.
const DIRECT_MAP: u64 = 0xff11_0000_0000_0000;
/// The log: records, bits of the size of its text, and where that is.
const RECORDS: usize = 1 << RECORD_BITS;
const RECORD_BITS: u32 = 5;
const TEXT_BITS: u32 = 12;
const TEXT: u64 = 8 << 20;
/// Number of the first record, near what Linux begins with.
const FIRST_RECORD: u64 = 0xffff_efff;
const FINALIZED: u64 = 2 << 62;
/// The facility of what users write.
const USER: u64 = 1;

/// `struct new_utsname`: system, node, release.
const fn uts() -> [u8; 390] {
    let mut uts = [0; 390];
    let (mut at, system, release) = (0, b"Linux", b"6.1.0-abi");
    while at < release.len() {
        if at < system.len() {
            uts[at] = system[at];
        }
        uts[130 + at] = release[at];
        at += 1;
    }
    uts
}

unsafe extern "C" {
    static _text: u8;
    static _end: u8;
}

/// The kernel, at its place.
struct Kernel {
    moved: u64,
    slide: u64,
    next_record: u64,
    text_end: u64,
    delay: u64,
}

fn run() -> ! {
    memory::fill(0);
    let mut kernel = Kernel::boot();
    println!("the kernel lies at {:#x}", (&raw const _text).addr() as u64 + kernel.moved);
    kernel.log(format_args!("Linux version 6.1.0-abi"), 0);
    time::wait_as_told();
    kernel.forge();
    match kenv::choice("panic", &[("yes", Some(true)), ("no", None), ("oops", Some(false))]) {
        Some(true) => kernel.panic(),
        Some(false) => {
            kernel.put(&oops_in_progress, 1);
            kernel.put(&tainted_mask, 1 << 7);
            time::wait(100);
        }
        None => {}
    }
    end()
}

impl Kernel {
    fn boot() -> Self {
        let (moved, slide) = (kenv::number("moved", 0) << 20, kenv::number("slide", 0) << 20);
        let start = (&raw const _text).addr();
        let len = (&raw const _end).addr() - start;
        let kernel = Self {
            moved,
            slide,
            next_record: FIRST_RECORD,
            // The text wraps around soon.
            text_end: (1 << TEXT_BITS) - 100,
            delay: kenv::number("delay", 0),
        };
        if moved != 0 {
            // SAFETY: RAM above the image that is ours alone, and mapped.
            unsafe {
                core::ptr::copy_nonoverlapping(start as *const u8, (start as u64 + moved) as *mut u8, len)
            };
            // What was there first is no kernel.
            linux_banner.write([0; 64]);
        }
        let cpus = kenv::number("cpus", 2);
        kernel.put(&__cpu_online_mask, [(1 << cpus) - 1, 0]);
        kernel.put(&panic_timeout, kenv::number("timeout", 0) as u32);
        if kenv::choice("crash", &CRASH) > 0 {
            kernel.put(&kexec_crash_image, 0xffff_8880_1234_5000);
        }
        let ring = [
            RECORD_BITS.into(),
            kernel.address(&descriptors),
            kernel.address(&infos),
            FIRST_RECORD - 1,
            FIRST_RECORD,
            0,
            TEXT_BITS.into(),
            DIRECT_MAP + TEXT,
            0,
            0,
            0,
        ];
        kernel.put(&printk_rb_static, ring);
        kernel.put(&prb, kernel.address(&printk_rb_static));
        kernel.put(&phys_base, moved.wrapping_sub(slide));
        kernel
    }

    /// Sets a word where the kernel lies.
    fn put<T: Copy>(&self, word: &Global<T>, value: T) {
        // SAFETY: the image was copied there, or is there.
        unsafe { ((word.address() + self.moved) as *mut T).write_volatile(value) }
    }

    /// The kernel's own address of a word.
    fn address<T>(&self, word: &Global<T>) -> u64 {
        word.address() + self.slide
    }

    fn step(&self) {
        if self.delay > 0 {
            time::wait(self.delay);
        }
    }

    fn panic(&mut self) {
        let cpu = kenv::number("cpu", 0);
        self.step();
        self.put(&panic_cpu, cpu as u32);
        self.step();
        let text = kenv::text("text", "told to panic by the environment");
        self.log(format_args!("Kernel panic - not syncing: {text}"), 0);
        for line in 0..kenv::number("lines", 10) {
            self.step();
            self.log(format_args!("stack frame {line}"), 0);
        }
        if kenv::choice("crash", &CRASH) > 1 {
            self.put(&crashing_cpu, cpu as u32);
            return;
        }
        if kenv::choice("stop", &[("yes", true), ("no", false)]) {
            self.put(&__cpu_online_mask, [1 << cpu, 0]);
        }
        self.step();
        if kenv::number("timeout", 0) == 0 {
            self.log(format_args!("---[ end Kernel panic - not syncing: {text} ]---"), 0);
            self.put(&suppress_printk, 1);
        }
    }

    /// What a user can do to be taken for a panicked kernel.
    fn forge(&mut self) {
        match kenv::choice("forge", &[("none", 0), ("console", 1), ("log", 2)]) {
            1 => println!("Kernel panic - not syncing: forged"),
            2 => self.log(format_args!("Kernel panic - not syncing: forged"), USER),
            _ => {}
        }
    }

    /// Appends a record, as `prb_reserve` and `prb_commit` do.
    fn log(&mut self, text: core::fmt::Arguments<'_>, facility: u64) {
        let mut line = Line { bytes: [0; 120], len: 0 };
        let _ = line.write_fmt(text);
        let size = 1 << TEXT_BITS;
        let block = (8 + line.len as u64).next_multiple_of(8);
        let begin = self.text_end;
        let mut next = begin + block;
        let mut place = begin % size;
        if begin / size != (next - 1) / size {
            next = next / size * size + block;
            place = 0;
        }
        let at = (TEXT + place + 8) as *mut u8;
        // SAFETY: RAM that is ours alone, and mapped; a block ends within it.
        unsafe { core::ptr::copy_nonoverlapping(line.bytes.as_ptr(), at, line.len) };
        let id = self.next_record;
        let index = id % RECORDS as u64;
        let put = |word: u64, value: u64| {
            // SAFETY: the image was copied there, or is there.
            unsafe { ((word + self.moved) as *mut u64).write_volatile(value) }
        };
        put(infos.address() + 88 * index + 16, line.len as u64 | facility << 16);
        put(descriptors.address() + 24 * index + 8, begin);
        put(descriptors.address() + 24 * index + 16, next);
        put(descriptors.address() + 24 * index, id | FINALIZED);
        put(printk_rb_static.address() + 24, id);
        put(printk_rb_static.address() + 32, FIRST_RECORD.max(id.saturating_sub(RECORDS as u64 - 1)));
        put(printk_rb_static.address() + 64, next);
        self.next_record += 1;
        self.text_end = next;
    }
}

const CRASH: [(&str, u32); 3] = [("none", 0), ("loaded", 1), ("started", 2)];

struct Line {
    bytes: [u8; 120],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for &byte in text.as_bytes().iter().take(self.bytes.len() - self.len) {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum End {
    Spin,
    Halt,
    PowerOff,
    HyperV,
    Reset(power::Reset),
}

fn end() -> ! {
    let ends = [
        ("spin", End::Spin),
        ("hlt", End::Halt),
        ("poweroff", End::PowerOff),
        ("hyperv", End::HyperV),
        ("i8042", End::Reset(power::Reset::I8042)),
        ("cf9", End::Reset(power::Reset::ResetControl)),
        ("triple", End::Reset(power::Reset::TripleFault)),
    ];
    match kenv::choice("end", &ends) {
        End::Spin => cpu::busy_spin(&RegisterImage::known(0)),
        End::Halt => cpu::halt(),
        End::PowerOff => power::off(),
        End::HyperV => {
            tell_hyperv();
            cpu::busy_spin(&RegisterImage::known(0))
        }
        End::Reset(how) => power::reset(how),
    }
}

/// What Linux does when it finds crash registers that take no text: five numbers, then CTL.
fn tell_hyperv() {
    let leaf = core::arch::x86_64::__cpuid(0x4000_0000);
    let features = core::arch::x86_64::__cpuid(0x4000_0003).edx;
    print!("hypervisor {:#x}, ", leaf.ebx);
    println!("crash registers: {}", features & 1 << 10 != 0);
    // SAFETY: INT3 goes on in ring 0, on another stack (`rt::trap`), which is left again.
    unsafe { asm!("mov {stack}, rsp", "int3", "mov rsp, {stack}", stack = out(reg) _) };
    for (msr, value) in (0x4000_0100_u32..).zip([0x11, 0x22, 0x33, 0x44, 0x55, 1_u64 << 63]) {
        // SAFETY: WRMSR changes no memory.
        unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32) };
    }
}
