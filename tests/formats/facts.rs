//! What stopped guests say of themselves: a kernel of FreeBSD's kind laid out here, whole and hostile.

use std::time::{Duration, Instant};

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::facts::{self, GuestFacts};
use netdump::vmcore::{KernelSymbols, Registers};
use proptest::prelude::*;

const BASE: u64 = 0xffff_ffff_8000_0000;
/// Where the kernel's variables lie: virtual `BASE + DATA`, physical `DATA`.
const DATA: u64 = 0x20_0000;
/// A heap of 2 MiB, virtual `HEAP_VA`, physical `HEAP`.
const HEAP: u64 = 0x60_0000;
const HEAP_VA: u64 = 0xffff_f800_0000_0000 + HEAP;
/// Page tables, physical.
const PML4: u64 = 0x40_0000;

/// Variables, by offset from DATA.
const VARIABLES: [(&str, u64, u64); 11] = [
    ("KPML4phys", 0x00, 8),
    ("dynamic_kenv", 0x08, 4),
    ("kenvp", 0x10, 8),
    ("md_envp", 0x18, 8),
    ("kern_envp", 0x20, 8),
    ("panicstr", 0x28, 8),
    ("ostype", 0x40, 8),
    ("osrelease", 0x60, 32),
    ("version", 0x80, 128),
    ("prison0", 0x100, 1000),
    ("static_block", 0x600, 256),
];

pub(super) fn kernel() -> FakeKernel {
    let kernel = FakeKernel::default().segment(BASE + DATA, DATA, 0x20_0000);
    VARIABLES
        .iter()
        .fold(kernel, |kernel, (name, offset, size)| kernel.symbol(name, BASE + DATA + offset, *size))
}

fn symbols() -> KernelSymbols {
    KernelSymbols::parse(&kernel().image()).unwrap()
}

/// A guest whose tables map the kernel's two regions, with empty variables and a CPU on those tables.
fn guest() -> FakeGuest {
    let registers =
        Registers { cr0: 1 << 31, efer: 1 << 10, cr3: PML4 | 1 << 63 | 0x123, ..Registers::default() };
    let mut guest = FakeGuest::new(9).ram(0, 0x100_0000).cpu_with(registers);
    guest.write(DATA, &[0; 4096]);
    guest.write(HEAP, &[0; 3 * 4096]);
    guest.write(PML4, &[0; 4 * 4096]);
    guest.write_words(DATA, &[PML4]);
    // Kernel: slot 511, 510, then 2 MiB pages from 0 on. Heap: slot 496, 0, then 2 MiB pages from 0 on.
    guest.write_words(PML4 + 8 * 511, &[PML4 + 0x1003]);
    guest.write_words(PML4 + 8 * 496, &[PML4 + 0x2003]);
    guest.write_words(PML4 + 0x1000 + 8 * 510, &[PML4 + 0x3003]);
    guest.write_words(PML4 + 0x2000, &[PML4 + 0x3003]);
    let pages: Vec<u64> = (0..8).map(|page| page << 21 | 0x83).collect();
    guest.write_words(PML4 + 0x3000, &pages);
    guest
}

fn set(guest: &mut FakeGuest, variable: &str, value: u64) {
    let (_, offset, _) = VARIABLES.iter().find(|(name, _, _)| *name == variable).unwrap();
    guest.write_words(DATA + offset, &[value]);
}

fn set_text(guest: &mut FakeGuest, variable: &str, text: &[u8]) {
    let (_, offset, _) = VARIABLES.iter().find(|(name, _, _)| *name == variable).unwrap();
    guest.write(DATA + offset, text);
}

/// Puts `kenvp[]` at the start of the heap, each string on its own 64 bytes behind it.
fn set_dynamic(guest: &mut FakeGuest, strings: &[&[u8]]) {
    guest.write_words(DATA + 0x08, &[1]);
    set(guest, "kenvp", HEAP_VA);
    for (index, string) in (0_u64..).zip(strings) {
        guest.write_words(HEAP + 8 * index, &[HEAP_VA + 0x1008 + 64 * index]);
        guest.write(HEAP + 0x1008 + 64 * index, string);
    }
}

fn variables(facts: &GuestFacts) -> Vec<(&str, &str)> {
    facts.environment.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn dynamic_environment_is_read_through_the_kernels_tables() {
    let mut guest = guest();
    set_dynamic(&mut guest, &[b"net.dump.server=10.0.0.9\0", b"a=b=c\0", b"empty=\0"]);
    set(&mut guest, "md_envp", BASE + DATA + 0x600);
    set_text(&mut guest, "static_block", b"boot=only\0\0");
    let facts = facts::gather(&guest, Some(&symbols()));
    assert_eq!(variables(&facts), [("net.dump.server", "10.0.0.9"), ("a", "b=c"), ("empty", "")]);
    assert_eq!(facts.variable("a"), Some("b=c"));
    assert_eq!(facts.variable("boot"), None, "the boot-time block is no longer in force");
}

#[test]
fn static_blocks_are_read_before_the_dynamic_environment_is_in_force() {
    let mut guest = guest();
    set(&mut guest, "md_envp", BASE + DATA + 0x600);
    set_text(&mut guest, "static_block", b"x=loader\0no equals sign\0y=1\0\0z=behind the end\0");
    set(&mut guest, "kern_envp", HEAP_VA);
    guest.write(HEAP, b"x=compiled in\0w=2\0\0");
    let facts = facts::gather(&guest, Some(&symbols()));
    assert_eq!(variables(&facts), [("x", "loader"), ("y", "1"), ("x", "compiled in"), ("w", "2")]);
    assert_eq!(facts.variable("x"), Some("loader"));
}

#[test]
fn empty_environment_is_told_from_none() {
    let mut empty = guest();
    set_dynamic(&mut empty, &[]);
    assert_eq!(facts::gather(&empty, Some(&symbols())).environment, Some(vec![]));
    assert_eq!(facts::gather(&guest(), Some(&symbols())).environment, None);
}

#[test]
fn texts_of_the_kernel_are_read() {
    let mut guest = guest();
    set_text(&mut guest, "ostype", b"FreeBSD\0");
    set_text(&mut guest, "osrelease", b"14.1-RELEASE\0");
    set_text(&mut guest, "version", b"FreeBSD 14.1-RELEASE\n    root@x\n\0");
    set(&mut guest, "panicstr", HEAP_VA + 0xff0);
    guest.write(HEAP + 0xff0, b"page fault across a page\0");
    // 608 bytes before the end of 1000.
    guest.write(DATA + 0x100 + 392, b"vm1.example.org\0");
    let facts = facts::gather(&guest, Some(&symbols()));
    assert_eq!(facts.os.as_deref(), Some("FreeBSD"));
    assert_eq!(facts.release.as_deref(), Some("14.1-RELEASE"));
    assert_eq!(facts.version.as_deref(), Some("FreeBSD 14.1-RELEASE\n    root@x\n"));
    assert_eq!(facts.panic_text.as_deref(), Some("page fault across a page"));
    assert_eq!(facts.host_name.as_deref(), Some("vm1.example.org"));
}

#[test]
fn panic_text_without_end_is_cut() {
    let mut guest = guest();
    set(&mut guest, "panicstr", HEAP_VA);
    guest.write(HEAP, &[b'x'; 8192]);
    assert_eq!(facts::gather(&guest, Some(&symbols())).panic_text, Some("x".repeat(256)));
    set(&mut guest, "panicstr", 0xdead_0000_0000);
    assert_eq!(facts::gather(&guest, Some(&symbols())).panic_text, None);
}

#[test]
fn host_name_may_have_an_array_of_its_own() {
    let kernel = kernel().symbol("hostname", BASE + DATA + 0x500, 256);
    let symbols = KernelSymbols::parse(&kernel.image()).unwrap();
    let mut guest = guest();
    guest.write(DATA + 0x500, b"vm2\0");
    assert_eq!(facts::gather(&guest, Some(&symbols)).host_name.as_deref(), Some("vm2"));
    // What lies in prison0 is no name.
    guest.write(DATA + 0x100 + 392, b"\x01\x02\0");
    assert_eq!(facts::gather(&guest, Some(&symbols)).host_name.as_deref(), Some("vm2"));
    guest.write(DATA + 0x100 + 392, b"vm1\0");
    assert_eq!(facts::gather(&guest, Some(&symbols)).host_name.as_deref(), Some("vm1"));
}

#[test]
fn tables_of_another_cpu_serve_when_the_first_lacks_the_kernel() {
    let user_tables = Registers { cr0: 1 << 31, efer: 1 << 10, cr3: HEAP, ..Registers::default() };
    let reset = Registers { cr0: 0x6000_0010, ..Registers::default() };
    let paged = guest();
    let whole = netdump::vmcore::PhysicalMemory::cpus(&paged)[0].registers.clone().unwrap();
    let mut guest =
        FakeGuest::new(9).ram(0, 0x100_0000).cpu_with(reset).cpu_with(user_tables).cpu_with(*whole);
    for address in [DATA, PML4, PML4 + 0x1000, PML4 + 0x2000, PML4 + 0x3000] {
        let page: Vec<u8> = (address..address + 4096).map(|at| paged.byte(at)).collect();
        guest.write(address, &page);
    }
    guest.write(HEAP, &[0; 3 * 4096]);
    set(&mut guest, "KPML4phys", 0);
    set_dynamic(&mut guest, &[b"a=1\0"]);
    // The user's tables begin with a zero, as `kenvp[]` lies there; give the array another place.
    set(&mut guest, "kenvp", HEAP_VA + 0x2000);
    guest.write(HEAP, &[0; 4096]);
    guest.write_words(HEAP + 0x2000, &[HEAP_VA + 0x1008]);
    assert_eq!(variables(&facts::gather(&guest, Some(&symbols()))), [("a", "1")]);
}

#[test]
fn kernel_without_paging_is_read_where_it_is() {
    let kernel = FakeKernel::default()
        .segment(DATA, DATA, 0x1000)
        .symbol("kern_envp", DATA + 8, 8)
        .symbol("dynamic_kenv", DATA, 1)
        .symbol("kenvp", DATA + 16, 8);
    let symbols = KernelSymbols::parse(&kernel.image()).unwrap();
    let mut guest = FakeGuest::new(1).ram(0, 0x40_0000).cpu_with(Registers::default());
    // Bytes behind a bool are no part of it.
    guest.write(DATA, &[0, 1, 1, 1, 1, 1, 1, 1]);
    guest.write_words(DATA + 8, &[0x30_0000, 0x31_0000]);
    guest.write(0x30_0000, b"a=static\0\0");
    guest.write(0x31_0000, &0x32_0000_u64.to_le_bytes());
    guest.write(0x31_0008, &[0; 8]);
    guest.write(0x32_0000, b"a=dynamic\0");
    assert_eq!(facts::gather(&guest, Some(&symbols)).variable("a"), Some("static"));
    guest.write(DATA, &[1]);
    assert_eq!(facts::gather(&guest, Some(&symbols)).variable("a"), Some("dynamic"));
}

#[test]
fn variables_are_read_where_the_image_was_loaded_when_no_tables_are_left() {
    let paged = guest();
    let mut guest = FakeGuest::new(9).ram(0, 0x100_0000);
    let page: Vec<u8> = (DATA..DATA + 4096).map(|at| paged.byte(at)).collect();
    guest.write(DATA, &page);
    set(&mut guest, "KPML4phys", 0);
    set_text(&mut guest, "ostype", b"FreeBSD\0");
    set(&mut guest, "md_envp", BASE + DATA + 0x600);
    set_text(&mut guest, "static_block", b"x=1\0\0");
    let facts = facts::gather(&guest, Some(&symbols()));
    assert_eq!((facts.os.as_deref(), facts.variable("x")), (Some("FreeBSD"), Some("1")));
}

#[test]
fn guest_without_known_symbols_says_nothing() {
    let other = KernelSymbols::parse(&FakeKernel::default().symbol("start_kernel", 1, 1).image()).unwrap();
    for symbols in [None, Some(&other), Some(&KernelSymbols::default())] {
        assert_eq!(facts::gather(&guest(), symbols), GuestFacts::default());
    }
}

#[test]
fn odd_strings_are_left_out_or_made_readable() {
    let mut guest = guest();
    set_dynamic(
        &mut guest,
        &[b"caf\xe9=na\xefve\0", b"=no name\0", b"no equals sign\0", b"\0", b"z=\x1b[2J\0"],
    );
    let facts = facts::gather(&guest, Some(&symbols()));
    assert_eq!(variables(&facts), [("caf\u{fffd}", "na\u{fffd}ve"), ("z", "\u{1b}[2J")]);
}

#[test]
fn unreadable_and_unterminated_strings_cost_only_themselves() {
    let mut guest = guest();
    set_dynamic(&mut guest, &[b"a=1\0", b"b=2\0", b"c=3\0", b"d=4\0"]);
    // Not mapped; and 8 KiB without a NUL.
    guest.write_words(HEAP + 8, &[0xdead_0000_0000, HEAP_VA + 0x10_0000]);
    guest.write(HEAP + 0x10_0000, &[b'='; 8192]);
    assert_eq!(variables(&facts::gather(&guest, Some(&symbols()))), [("a", "1"), ("d", "4")]);
}

#[test]
fn array_without_end_is_read_to_its_limit() {
    let mut guest = guest();
    set_dynamic(&mut guest, &[b"a=1\0"]);
    guest.write_words(HEAP, &[HEAP_VA + 0x1_0000; 1000]);
    guest.write(HEAP + 0x1_0000, b"a=1\0");
    assert_eq!(variables(&facts::gather(&guest, Some(&symbols()))).len(), 512);
}

#[test]
fn block_without_end_is_read_to_its_limit() {
    let mut guest = guest();
    set(&mut guest, "md_envp", HEAP_VA);
    guest.write(HEAP, &b"a=1\0".repeat(100_000));
    let started = Instant::now();
    let facts = facts::gather(&guest, Some(&symbols()));
    assert_eq!(variables(&facts).len(), 4096);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn tables_that_point_at_themselves_end() {
    let mut guest = guest();
    guest.write_words(PML4, &[PML4 | 3; 512]);
    set_dynamic(&mut guest, &[]);
    // Whatever it is, it is found in bounded time: the tables map everything to the tables.
    facts::gather(&guest, Some(&symbols()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise_for_a_guest_does_no_harm(seed: u64, pointers in prop::collection::vec(any::<u64>(), 6), near in prop::collection::vec(0_u64..0x100_0000, 6)) {
        let mut guest = guest();
        let noise: Vec<u64> = (0..512).map(|index| seed.wrapping_mul(index * 2 + 1)).collect();
        guest.write_words(HEAP, &noise);
        guest.write_words(DATA + 0x08, &pointers);
        facts::gather(&guest, Some(&symbols()));
        let near: Vec<u64> = near.iter().map(|offset| HEAP_VA - HEAP + offset).collect();
        guest.write_words(DATA + 0x08, &near);
        facts::gather(&guest, Some(&symbols()));
    }
}
