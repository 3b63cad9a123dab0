//! What a running FreeBSD kernel's words say of its panic: each step of vpanic(), and words that say nothing.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::freebsd::panic_state::PanicWords;
use netdump::panicked::{OwnDump, Panicked};
use netdump::vmcore::KernelSymbols;

const BASE: u64 = 0xffff_ffff_8000_0000;
/// Constants, with the format, and variables: virtual `BASE +` this, physical this.
const RODATA: u64 = 0x20_0000;
const DATA: u64 = 0x40_0000;
/// The buffer of the formatted message.
const BUFFER: u64 = DATA + 0x800;

/// Variables by offset from DATA, in no order of the kernel's.
const VARIABLES: [(&str, u64, u64); 10] = [
    ("panicstr", 0x00, 8),
    ("panicked", 0x08, 1),
    ("smp_started", 0x0c, 4),
    ("dumping", 0x10, 4),
    ("dumptid", 0x14, 4),
    ("dumper_configs", 0x18, 16),
    ("all_cpus", 0x40, 32),
    ("stopped_cpus", 0x60, 32),
    ("unrelated", 0x80, 8),
    ("msgbufp", 0x88, 8),
];

fn kernel(leave_out: &[&str]) -> KernelSymbols {
    let kernel = FakeKernel::default().read_only_segment(BASE + RODATA, RODATA, 0x1000);
    let kernel = kernel.segment(BASE + DATA, DATA, 0x1000);
    let kernel = VARIABLES
        .iter()
        .filter(|(name, ..)| !leave_out.contains(name))
        .fold(kernel, |kernel, (name, offset, size)| kernel.symbol(name, BASE + DATA + offset, *size));
    KernelSymbols::parse(&kernel.image()).unwrap()
}

/// A kernel of four CPUs that has not panicked.
fn guest() -> FakeGuest {
    let mut guest = FakeGuest::new(5).ram(0, 0x100_0000);
    guest.write(DATA, &[0; 4096]);
    guest.write(RODATA, b"raw %s format\0");
    guest.write(BUFFER, b"formatted\0");
    set(&mut guest, "smp_started", &[1]);
    set(&mut guest, "all_cpus", &[0xf]);
    guest
}

fn set(guest: &mut FakeGuest, variable: &str, bytes: &[u8]) {
    let (_, offset, _) = VARIABLES.iter().find(|(name, ..)| *name == variable).unwrap();
    guest.write(DATA + offset, bytes);
}

fn point_at(guest: &mut FakeGuest, physical: u64) {
    set(guest, "panicstr", &(BASE + physical).to_le_bytes());
}

/// The same guest, its CPU 2 having panicked.
fn panicked() -> FakeGuest {
    let mut guest = guest();
    set(&mut guest, "stopped_cpus", &[0b1011]);
    point_at(&mut guest, BUFFER);
    set(&mut guest, "panicked", &[1]);
    guest
}

fn read(guest: &FakeGuest, kernel: &KernelSymbols) -> Option<Panicked> {
    PanicWords::find(kernel).expect("the kernel has the words").read(guest, 4)
}

fn seen(guest: &FakeGuest) -> Panicked {
    read(guest, &kernel(&[])).expect("the kernel has panicked")
}

#[test]
fn a_kernel_that_runs_has_not_panicked() {
    let mut guest = guest();
    assert_eq!(read(&guest, &kernel(&[])), None);
    // Its debugger has stopped the others; somebody dumps a kernel that lives.
    set(&mut guest, "stopped_cpus", &[0xe]);
    set(&mut guest, "dumping", &[1]);
    assert_eq!(read(&guest, &kernel(&[])), None);
}

#[test]
fn what_the_kernel_writes_into_its_message_buffer_is_noticed() {
    const BUFFER: u64 = 0x50_0000;
    const DIRECT_MAP: u64 = 0xffff_f800_0000_0000;
    let mut guest = panicked();
    assert_eq!(seen(&guest).written, None, "there is no buffer yet");
    let head = |magic: u32, position: u32| -> Vec<u8> {
        [0, 0, magic, 98_232, position].iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
    };
    set(&mut guest, "msgbufp", &(DIRECT_MAP + BUFFER).to_le_bytes());
    guest.write(BUFFER, &head(0x06_3062, 4321));
    let before = seen(&guest);
    assert_eq!(before.written, Some(4321));
    guest.write(BUFFER, &head(0x06_3062, 4322));
    assert_ne!(seen(&guest), before);
    guest.write(BUFFER, &head(0x06_3063, 4322));
    assert_eq!(seen(&guest).written, None, "that is no message buffer");
    for nowhere in [DIRECT_MAP + (1 << 40), u64::MAX, 8] {
        set(&mut guest, "msgbufp", &nowhere.to_le_bytes());
        assert_eq!(seen(&guest).written, None, "{nowhere:#x}");
    }
}

#[test]
fn each_step_of_a_panic_is_told() {
    let mut guest = panicked();
    set(&mut guest, "stopped_cpus", &[0b0011]);
    point_at(&mut guest, RODATA);
    let first = seen(&guest);
    assert_eq!((first.text.as_deref(), first.formatted), (Some("raw %s format"), false));
    assert_eq!((first.others_stopped, first.cpu), (false, None));
    set(&mut guest, "stopped_cpus", &[0b1011]);
    let second = seen(&guest);
    assert_eq!((second.others_stopped, second.cpu), (true, Some(2)));
    assert!(!second.looks_settled());
    point_at(&mut guest, BUFFER);
    let third = seen(&guest);
    assert_eq!(third.text.as_deref(), Some("formatted"));
    assert!(third.looks_settled());
}

#[test]
fn a_format_outside_the_image_counts_once_the_kernel_says_panicked() {
    let mut guest = panicked();
    // In a module's constants, which no load map tells of.
    set(&mut guest, "panicstr", &0xffff_fe00_1234_5678_u64.to_le_bytes());
    let panicked = seen(&guest);
    assert_eq!((panicked.text.as_deref(), panicked.formatted), (None, false));
    set(&mut guest, "panicked", &[0]);
    assert_eq!(read(&guest, &kernel(&[])), None);
    // Without that word only an address in the image is believed.
    assert_eq!(read(&guest, &kernel(&["panicked"])), None);
    point_at(&mut guest, BUFFER);
    assert!(read(&guest, &kernel(&["panicked"])).is_some());
}

#[test]
fn nonsense_is_no_panic() {
    let mut guest = panicked();
    for nonsense in [1, 0x1000, u64::from(u32::MAX), 0x7fff_ffff_ffff_ffff] {
        set(&mut guest, "panicstr", &nonsense.to_le_bytes());
        assert_eq!(read(&guest, &kernel(&[])), None, "{nonsense:#x}");
    }
}

#[test]
fn cpus_that_the_machine_lacks_are_not_waited_for() {
    let mut guest = panicked();
    set(&mut guest, "all_cpus", &[0xff; 32]);
    assert_eq!(seen(&guest).cpu, Some(2));
    // A kernel that does not say which it has: all that the machine has.
    set(&mut guest, "all_cpus", &[0; 32]);
    assert_eq!(seen(&guest).cpu, Some(2));
    assert_eq!(read(&guest, &kernel(&["all_cpus"])).unwrap().cpu, Some(2));
    set(&mut guest, "stopped_cpus", &[0xff; 32]);
    assert_eq!((seen(&guest).cpu, seen(&guest).others_stopped), (None, true));
}

#[test]
fn before_the_other_cpus_run_none_is_waited_for() {
    let mut guest = panicked();
    set(&mut guest, "stopped_cpus", &[0]);
    assert!(!seen(&guest).others_stopped);
    set(&mut guest, "smp_started", &[0]);
    assert_eq!((seen(&guest).others_stopped, seen(&guest).cpu), (true, Some(0)));
    // A kernel for one CPU stops none.
    let single = PanicWords::find(&kernel(&["stopped_cpus", "all_cpus", "smp_started"])).unwrap();
    assert!(single.read(&guest, 1).is_some_and(|seen| seen.looks_settled() && seen.cpu == Some(0)));
}

#[test]
fn a_dump_of_its_own_is_told_from_none_before_while_and_after() {
    let mut guest = panicked();
    assert_eq!(seen(&guest).own_dump, OwnDump::None);
    set(&mut guest, "dumper_configs", &(BASE + DATA).to_le_bytes());
    assert_eq!(seen(&guest).own_dump, OwnDump::Configured);
    set(&mut guest, "dumptid", &100_u32.to_le_bytes());
    set(&mut guest, "dumping", &[1]);
    assert_eq!(seen(&guest).own_dump, OwnDump::Running);
    set(&mut guest, "dumping", &[0]);
    assert_eq!(seen(&guest).own_dump, OwnDump::Over);
}

#[test]
fn kernels_without_the_words_are_not_watched() {
    assert!(PanicWords::find(&kernel(&["panicstr"])).is_none());
    assert!(PanicWords::find(&kernel(&["panicked", "dumping"])).is_none());
    assert!(PanicWords::find(&KernelSymbols::default()).is_none());
    // One whose variables lie outside RAM has not panicked.
    let far = FakeKernel::default().segment(BASE, 1 << 40, 0x1000);
    let far = far.symbol("panicstr", BASE, 8).symbol("panicked", BASE + 8, 1);
    assert_eq!(read(&guest(), &KernelSymbols::parse(&far.image()).unwrap()), None);
}
