//! What a running Linux kernel's words say of its panic, wherever it lies; copies of it that do not count; words and logs
//! that lie.

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use netdump::linux::panic_state::PanicWords;
use netdump::panicked::{OwnDump, Panicked};
use netdump::vmcore::KernelSymbols;

const WINDOW: u64 = 0xffff_ffff_8000_0000;
/// The image is linked here, in physical addresses; its data 2 MiB further.
const TEXT: u64 = 0x100_0000;
const DATA: u64 = TEXT + 0x20_0000;
const LEN: u64 = 0x40_0000;
const RAM: u64 = 256 << 20;
/// Virtual and physical move of the kernel that ran.
const SLIDE: u64 = 0x560_0000;
const MOVED: u64 = 0x340_0000;
const RELEASE: &str = "6.1.0-56-cloud-amd64";

/// Variables by offset from DATA.
const VARIABLES: [(&str, u64); 18] = [
    ("init_uts_ns", 0x000),
    ("phys_base", 0x200),
    ("prb", 0x208),
    ("printk_rb_static", 0x210),
    ("printk_rb_dynamic", 0x280),
    ("panic_timeout", 0x300),
    ("suppress_printk", 0x304),
    ("kexec_crash_image", 0x308),
    ("crashing_cpu", 0x310),
    ("waiting_for_crash_ipi", 0x314),
    ("__cpu_online_mask", 0x318),
    ("page_offset_base", 0x320),
    ("tainted_mask", 0x328),
    ("reboot_type", 0x330),
    ("reboot_emergency", 0x334),
    ("system_state", 0x338),
    ("panic_cpu", 0x1000),
    ("panic_neighbour", 0x1004),
];
/// The log: descriptors and infos in the image, text in the direct map.
const DESCRIPTORS: u64 = DATA + 0x2000;
const INFOS: u64 = DATA + 0x3000;
const DIRECT_MAP: u64 = 0xff23_c435_8000_0000;
const LOG: u64 = 0x80_0000;
const COUNT_BITS: u32 = 4;
const SIZE_BITS: u32 = 10;

fn symbols(leave_out: &[&str]) -> KernelSymbols {
    let kernel = FakeKernel::default().segment(WINDOW + TEXT, TEXT, LEN);
    let kernel = kernel.symbol("_text", WINDOW + TEXT, 0).symbol("linux_banner", WINDOW + TEXT + 0x1234, 0);
    let kernel = VARIABLES
        .iter()
        .filter(|(name, _)| !leave_out.contains(name))
        .fold(kernel, |kernel, (name, offset)| kernel.symbol(name, WINDOW + DATA + offset, 0));
    KernelSymbols::parse(&kernel.image()).unwrap()
}

fn offset(name: &str) -> u64 {
    VARIABLES.iter().find(|(known, _)| *known == name).unwrap().1
}

/// A guest and where its kernel lies.
struct Bench {
    guest: FakeGuest,
    words: PanicWords,
    moved: u64,
    slide: u64,
    records: u64,
}

/// A kernel of two CPUs that has not panicked, and has logged two lines.
fn bench_at(moved: u64, slide: u64) -> Bench {
    let guest = FakeGuest::new(7).ram(0, RAM);
    let words = PanicWords::find(&symbols(&[])).unwrap();
    let mut bench = Bench { guest, words, moved, slide, records: 0xffff_efff };
    bench.put_image(moved, slide);
    bench.set("phys_base", &moved.wrapping_sub(slide).to_le_bytes());
    bench.log("Linux version", 0);
    bench.log("booting", 0);
    bench
}

fn bench() -> Bench {
    bench_at(MOVED, SLIDE)
}

impl Bench {
    fn set(&mut self, name: &str, bytes: &[u8]) {
        self.guest.write(DATA + self.moved + offset(name), bytes);
    }

    fn set_word(&mut self, name: &str, value: u64) {
        self.set(name, &value.to_le_bytes());
    }

    /// The image as the decompressor leaves it, its pointers moved by `slide`.
    fn put_image(&mut self, moved: u64, slide: u64) {
        let banner = format!("Linux version {RELEASE} (debian-kernel@lists.debian.org) #1 SMP\n\0");
        self.guest.write(TEXT + moved + 0x1234, banner.as_bytes());
        let mut uts = vec![0; 390];
        uts[..5].copy_from_slice(b"Linux");
        uts[130..130 + RELEASE.len()].copy_from_slice(RELEASE.as_bytes());
        let mut data = vec![0; 0x4000];
        data[..390].copy_from_slice(&uts);
        let mut put = |name: &str, bytes: &[u8]| {
            let at = usize::try_from(offset(name)).unwrap();
            data[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put("prb", &(WINDOW + DATA + offset("printk_rb_static") + slide).to_le_bytes());
        put("panic_cpu", &u32::MAX.to_le_bytes());
        put("panic_neighbour", b"data");
        put("crashing_cpu", &u32::MAX.to_le_bytes());
        put("__cpu_online_mask", &3_u64.to_le_bytes());
        put("page_offset_base", &DIRECT_MAP.to_le_bytes());
        self.guest.write(DATA + moved, &data);
    }

    fn log(&mut self, text: &str, facility: u8) {
        self.records += 1;
        let (id, index) = (self.records, self.records % (1 << COUNT_BITS));
        let begin = index * 64;
        self.guest.write(LOG + begin + 8, text.as_bytes());
        let mut info = [0; 88];
        info[16] = u8::try_from(text.len()).unwrap();
        info[18] = facility;
        self.guest.write(INFOS + self.moved + 88 * index, &info);
        let words = [id | 2 << 62, begin, begin + 64];
        self.guest.write(DESCRIPTORS + self.moved + 24 * index, &bytes(&words));
        let image = |physical: u64| WINDOW + physical + self.slide;
        let (bits, size) = (u64::from(COUNT_BITS), u64::from(SIZE_BITS));
        let tail = id.saturating_sub(5).max(0xffff_f000);
        let ring = [bits, image(DESCRIPTORS), image(INFOS), id, tail, 0, size, DIRECT_MAP + LOG, begin + 64];
        self.set("printk_rb_static", &bytes(&ring));
    }

    /// All of panic() on CPU 1.
    fn panic(&mut self) {
        self.set("panic_cpu", &1_u32.to_le_bytes());
        self.log("Kernel panic - not syncing: sysrq triggered crash", 0);
        self.set_word("__cpu_online_mask", 2);
        self.log("---[ end Kernel panic - not syncing: sysrq triggered crash ]---", 0);
        self.set("suppress_printk", &[1]);
    }

    fn read(&mut self) -> Option<Panicked> {
        self.words.read(&self.guest, 2)
    }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_panic_is_read_wherever_the_kernel_lies() {
    for (moved, slide) in [(0, 0), (MOVED, SLIDE), (0, SLIDE), (MOVED, 0), (MOVED, MOVED)] {
        let mut bench = bench_at(moved, slide);
        assert_eq!(bench.read(), None);
        let place = bench.words.place().unwrap();
        assert_eq!((place.moved, place.slide), (moved, slide));
        assert!(bench.words.is_well(&bench.guest));
        bench.panic();
        let seen = bench.read().unwrap();
        assert_eq!(seen.text.as_deref(), Some("sysrq triggered crash"));
        assert_eq!((seen.cpu, seen.own_dump, seen.finished), (Some(1), OwnDump::None, Some(true)));
        assert!(seen.is_through());
        assert!(!bench.words.is_well(&bench.guest));
    }
}

#[test]
fn each_step_of_a_panic_shows() {
    let mut bench = bench();
    bench.set("panic_cpu", &0_u32.to_le_bytes());
    let first = bench.read().unwrap();
    assert_eq!((first.formatted, first.others_stopped, first.finished), (false, false, Some(false)));
    bench.log("Kernel panic - not syncing: first\nsecond line", 0);
    let printed = bench.read().unwrap();
    assert_eq!((printed.formatted, printed.text.as_deref()), (true, Some("first")));
    assert_ne!(printed.written, first.written);
    assert!(!printed.looks_settled());
    bench.set_word("__cpu_online_mask", 1);
    assert!(bench.read().unwrap().others_stopped && !bench.read().unwrap().looks_settled());
    bench.set("panic_timeout", &10_u32.to_le_bytes());
    let to_reboot = bench.read().unwrap();
    assert!(to_reboot.looks_settled() && !to_reboot.is_through());
    bench.set_word("tainted_mask", 1 << 7);
    assert!(bench.read().unwrap().evidence.contains("after an oops"));
}

#[test]
fn cpus_that_an_nmi_stopped_have_stopped() {
    let mut bench = bench();
    bench.set("panic_cpu", &0_u32.to_le_bytes());
    bench.set("crashing_cpu", &0_u32.to_le_bytes());
    bench.set("waiting_for_crash_ipi", &1_u32.to_le_bytes());
    assert!(!bench.read().unwrap().others_stopped);
    bench.set("waiting_for_crash_ipi", &0_u32.to_le_bytes());
    assert!(bench.read().unwrap().others_stopped);
}

#[test]
fn a_crash_kernel_is_told_before_and_after_it_took_over() {
    let mut bench = bench();
    bench.panic();
    bench.set_word("kexec_crash_image", 0xffff_8880_0000_1000);
    assert_eq!(bench.read().unwrap().own_dump, OwnDump::CrashKernel);
    bench.set("crashing_cpu", &1_u32.to_le_bytes());
    assert_eq!(bench.read().unwrap().own_dump, OwnDump::Over);
}

#[test]
fn a_triple_fault_is_a_reset_only_where_the_kernel_says_that_it_is_about_to() {
    const RUNNING: u32 = 3;
    const RESTART: u32 = 6;
    for (kind, state, emergency, is_wanted) in [
        (b't', RESTART, 0, true),
        (b't', RESTART - 1, 0, true),
        (b't', RUNNING, 1, true),
        (b't', RUNNING, 0, false),
        (b'a', RESTART, 1, false),
        (b't', u32::MAX, 0, false),
    ] {
        let mut bench = bench();
        bench.set("reboot_type", &u32::from(kind).to_le_bytes());
        bench.set("system_state", &state.to_le_bytes());
        bench.set("reboot_emergency", &[emergency, 0, 0, 0]);
        assert!(!bench.words.resets_by_triple_fault(&bench.guest), "not found yet");
        assert_eq!(bench.words.read_at_end(&bench.guest, 2), None);
        assert_eq!(bench.words.resets_by_triple_fault(&bench.guest), is_wanted, "{kind} {state} {emergency}");
        bench.set("panic_cpu", &0_u32.to_le_bytes());
        assert!(!bench.words.resets_by_triple_fault(&bench.guest), "it has panicked");
    }
}

#[test]
fn an_image_that_has_yet_to_be_moved_or_started_does_not_count() {
    // What the decompressor unpacks first lies 2 MiB further, without its pointers moved, and all zeros at some time.
    let mut bench = bench();
    bench.set_word("phys_base", 0);
    bench.set("panic_cpu", &0_u32.to_le_bytes());
    assert_eq!((bench.read(), bench.words.place()), (None, None));
    let mut bench = bench_at(MOVED, SLIDE);
    bench.put_image(MOVED + 0x20_0000, 0);
    bench.guest.write(DATA + MOVED + 0x20_0000 + offset("panic_cpu"), &[0; 4]);
    assert_eq!(bench.read(), None);
    assert_eq!(bench.words.place().unwrap().moved, MOVED);
    // Another release in its place is another kernel.
    bench.set("init_uts_ns", &[b'X'; 200]);
    bench.panic();
    assert_eq!((bench.read(), bench.words.place()), (None, None));
}

#[test]
fn a_kernel_that_moves_is_found_again() {
    let mut bench = bench();
    assert!(bench.read().is_none() && bench.words.place().is_some());
    bench.guest.write(TEXT + MOVED + 0x1234, &[0; 64]);
    assert!(bench.read().is_none() && bench.words.place().is_none());
    let mut second = bench_at(MOVED + (64 << 20), SLIDE);
    second.words = bench.words;
    second.panic();
    let found = (0..20).find_map(|_| second.read());
    assert_eq!(found.unwrap().cpu, Some(1));
}

#[test]
fn what_is_never_found_is_sought_ever_less_and_at_the_end_everywhere() {
    let mut bench = bench();
    bench.guest = FakeGuest::new(7).untouched_ram(0, 64 << 30);
    for _ in 0..2000 {
        assert_eq!(bench.read(), None);
    }
    assert_eq!(bench.guest.untouched_reads(), 2000, "only the place that the image asks for");
    let mut bench = bench_at(MOVED, SLIDE);
    bench.panic();
    assert_eq!(bench.words.read_at_end(&bench.guest, 2).unwrap().cpu, Some(1));
}

#[test]
fn words_that_cannot_be_are_none() {
    let mut bench = bench();
    for cpu in [2_u32, 255, 0x7fff_ffff, u32::MAX] {
        bench.set("panic_cpu", &cpu.to_le_bytes());
        assert_eq!(bench.read(), None, "{cpu:#x}");
    }
    // A page that was cleared is the memory of someone else.
    bench.guest.write(DATA + MOVED + 0x1000, &[0; 4096]);
    assert_eq!(bench.read(), None);
}

#[test]
fn a_log_that_lies_costs_the_text_and_nothing_else() {
    let mut bench = bench();
    bench.set("panic_cpu", &0_u32.to_le_bytes());
    bench.log("Kernel panic - not syncing: forged", 1);
    assert_eq!(bench.read().unwrap().text, None, "a user wrote that");
    bench.panic();
    let ring = offset("printk_rb_static");
    for (at, value) in
        [(0, u64::MAX), (0, 0), (8, u64::MAX - 7), (16, 0), (24, 5), (48, 64), (56, u64::MAX), (56, 0x1000)]
    {
        let mut lying = bench_at(MOVED, SLIDE);
        lying.panic();
        lying.guest.write(DATA + MOVED + ring + at, &bytes(&[value]));
        let seen = lying.read().unwrap();
        assert_eq!((seen.cpu, seen.text), (Some(1), None), "{at} {value:#x}");
    }
}

#[test]
fn a_kernel_without_the_symbols_is_not_watched() {
    for missing in ["panic_cpu", "phys_base", "prb", "init_uts_ns", "printk_rb_static"] {
        assert!(PanicWords::find(&symbols(&[missing])).is_none(), "{missing}");
    }
    assert!(PanicWords::find(&symbols(&["printk_rb_dynamic", "suppress_printk"])).is_some());
}
