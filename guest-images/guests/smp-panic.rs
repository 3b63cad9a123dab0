//! Panics on one CPU while the others are busy, all with known values in their registers.
//!
//! Environment, besides what every guest takes:
//! - `cpus`: how many CPUs to wait for (default 4; fewer are used when no more come within two seconds).
//! - `cpu`: number of the CPU that panics (default 2; 0 when that one has not come).
//! - `busy`: what the others do. `spin` (default): nothing, in `busy_spin`. `out`: they write their number as a digit to
//!   the serial port, in `busy_out`. `in`: they read its line status, in `busy_in`. `mmio`: they read the first register
//!   of the virtio-net device, in `busy_mmio`. `halt`: they are halted.
//! - `after` (default 10): milliseconds in which they are busy before the panic.
//!
//! Memory: the pattern in the first 32 MiB (or `fill`) from 16 MiB up; `panicstr` points at the text.
//!
//! Registers, XMM registers `known_xmm(cpu, ..)` everywhere, RSP in the CPU's part of `cpu_stacks`:
//! - the panicking CPU: `signalling_register(cpu, .., 1)`, RIP in `signal_and_spin`.
//! - `spin`: `known_register(cpu, ..)`, RIP in `busy_spin`.
//! - `out`, `in`, `mmio`: the same but for RAX, RDX (port or address), RBX and RCX. RBX is the number of accesses begun
//!   and RCX that of accesses done, so RBX - RCX is 1 from the INC before the access to that after it, else 0. A port
//!   access whose device has acted is complete: a host that has seen N digits of a CPU finds RCX = N, or RCX = N - 1
//!   and RIP behind the OUT. After IN or the MMIO read, RAX holds what the device gave.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use rt::cpu::{self, RegisterImage};
use rt::pvpanic::{self, PANICKED};
use rt::virtio_mmio::Mmio;
use rt::{Register, console, kenv, memory, println, smp, time};

rt::guest!("smp-panic", run);

#[derive(Clone, Copy)]
enum Busy {
    Spin,
    Out,
    In,
    Mmio,
    Halt,
}

/// Set when everything is printed: from then on the CPUs do what they are here for.
static GO: AtomicU32 = AtomicU32::new(0);
/// Bits of the CPUs that are about to be busy.
static READY: AtomicU32 = AtomicU32::new(0);
static PANICKING: AtomicU32 = AtomicU32::new(0);

fn run() -> ! {
    memory::fill(rt::DEFAULT_FILL);
    let running = smp::start(kenv::number("cpus", 4) as u32, 2000, work);
    let chosen = kenv::number("cpu", 2) as u32 % 32;
    let panicking = if running & 1 << chosen != 0 { chosen } else { 0 };
    if let Busy::Mmio = busy() {
        memory::map_device(Mmio::first_place());
    }
    println!("CPUs running: {}; CPU {panicking} is to panic", running.count_ones());
    pvpanic::announce(format_args!("{}", kenv::text("text", "one CPU of several was told to panic")));
    PANICKING.store(panicking, Ordering::SeqCst);
    GO.store(running, Ordering::SeqCst);
    work(0)
}

fn work(cpu: u32) -> ! {
    while GO.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    if cpu == PANICKING.load(Ordering::SeqCst) {
        let others = GO.load(Ordering::SeqCst) & !(1 << cpu);
        while READY.load(Ordering::SeqCst) != others {
            core::hint::spin_loop();
        }
        time::wait(kenv::number("after", 10));
        pvpanic::signal_from(cpu, PANICKED);
    }
    let image = RegisterImage::known(cpu);
    READY.fetch_or(1 << cpu, Ordering::SeqCst);
    let counting = |rax: u64, rdx: u64| {
        RegisterImage::known(cpu)
            .with(Register::Rax, rax)
            .with(Register::Rdx, rdx)
            .with(Register::Rbx, 0)
            .with(Register::Rcx, 0)
    };
    match busy() {
        Busy::Spin => cpu::busy_spin(&image),
        Busy::Out => cpu::busy_out(&counting(u64::from(b'0') + u64::from(cpu), console::UART.into())),
        Busy::In => cpu::busy_in(&counting(0, console::LINE_STATUS.into())),
        Busy::Mmio => cpu::busy_mmio(&counting(0, Mmio::first_place())),
        Busy::Halt => cpu::halt(),
    }
}

fn busy() -> Busy {
    let choices = [
        ("spin", Busy::Spin),
        ("out", Busy::Out),
        ("in", Busy::In),
        ("mmio", Busy::Mmio),
        ("halt", Busy::Halt),
    ];
    kenv::choice("busy", &choices)
}
