use super::super::btf::tests::FakeBtf;
use super::super::fake::{FakeGuest, TEXT};
use super::super::kallsyms::tests::{FakeTables, Order};
use super::super::log::tests::FakeLog;
use super::super::orc::tests::{encoded, place};
use super::*;
use crate::facts::Backtraces;
use crate::vmcore::cpu::Segment;

/// Functions are 256 bytes long, from here on.
const CODE: u64 = TEXT + 0x2_0000;
const FUNCTIONS: [&str; 12] = [
    "delay_tsc",
    "panic",
    "sysrq_handle_crash",
    "do_syscall_64",
    "entry_SYSCALL_64_after_hwframe",
    "stop_this_cpu",
    "asm_sysvec_reboot",
    "worker",
    "kthread",
    "no_tables",
    "__schedule",
    "irq_stack",
];
/// Entries of the newest form: a call with one word pushed, registers, the end.
const CALL: [u8; 6] = [16, 0, 0, 0, 5, 2];
const CURRENT: u64 = 0x100;
const NAMES: [&str; 3] = ["init", "kworker/1:0", "a.out"];

/// A crashed guest with two CPUs.
struct World {
    guest: FakeGuest,
    /// Start and content of what kallsyms will have.
    symbols: Vec<(u64, char, String)>,
    areas: [u64; 2],
    tasks: Vec<u64>,
}

fn function(name: &str) -> u64 {
    CODE + 0x100 * FUNCTIONS.iter().position(|known| *known == name).unwrap() as u64
}

impl World {
    fn new() -> Self {
        let mut guest = FakeGuest::new();
        let mut log = FakeLog::new(&mut guest);
        log.say(&mut guest, 1, "Linux version 6.1.0-fake");
        log.say(&mut guest, 3, "Kernel panic - not syncing: sysrq triggered crash");
        let mut symbols: Vec<_> =
            (0..300_u64).map(|n| (TEXT + 0x100 * n, 't', format!("filler_{n}"))).collect();
        symbols.extend((0..).zip(FUNCTIONS).map(|(n, name)| (CODE + 0x100 * n, 'T', name.to_owned())));
        symbols.push((TEXT, 'T', "_stext".to_owned()));
        symbols.push((CODE + 0x100 * FUNCTIONS.len() as u64, 'T', "_etext".to_owned()));
        symbols.push((CURRENT, 'A', "current_task".to_owned()));
        let mut world = Self { guest, symbols, areas: [0; 2], tasks: Vec::new() };
        world.areas = [world.guest.reserve(0x200), world.guest.reserve(0x200)];
        let table: Vec<u8> = world.areas.iter().flat_map(|area| area.to_le_bytes()).collect();
        world.variable("__per_cpu_offset", &table);
        world.variable("nr_cpu_ids", &2_u32.to_le_bytes());
        world.variable("panic_cpu", &0_u32.to_le_bytes());
        world.variable("tainted_mask", &0x280_u64.to_le_bytes());
        let line = world.guest.place(b"console=ttyS0 net.dump.server=10.0.0.9 quiet net.dump.path=/a\0");
        world.variable("saved_command_line", &line.to_le_bytes());
        world.variable("linux_banner", b"Linux version 6.1.0-fake (me) #1\0");
        world.unwind_tables();
        world.types_and_tasks();
        world.cpus();
        world
    }

    fn variable(&mut self, name: &str, content: &[u8]) -> u64 {
        let address = self.guest.place(content);
        self.symbols.push((address, 'D', name.to_owned()));
        address
    }

    fn symbol(&mut self, name: &str, address: u64) {
        self.symbols.push((address, 'R', name.to_owned()));
    }

    fn unwind_tables(&mut self) {
        let entry = |name: &str| match name {
            "entry_SYSCALL_64_after_hwframe" | "asm_sysvec_reboot" => encoded((0, 5), (0, 0), 3 | 8),
            "kthread" => encoded((0, 0), (0, 0), 1),
            "no_tables" => encoded((0, 0), (0, 0), 0),
            // Of another stack: its pointer was saved where this one points.
            "irq_stack" => encoded((8, 9), (0, 0), 2),
            _ => CALL,
        };
        let code: Vec<_> = FUNCTIONS.iter().map(|name| (function(name), entry(name))).collect();
        let tables = place(&mut self.guest, &code);
        self.symbol("__start_orc_unwind_ip", tables.addresses);
        self.symbol("__stop_orc_unwind_ip", tables.addresses + 4 * tables.count);
        self.symbol("__start_orc_unwind", tables.entries);
    }

    fn types_and_tasks(&mut self) {
        let mut types = FakeBtf::default();
        let (half, word) = (types.int(4), types.int(8));
        let char_type = types.int(1);
        let name = types.array(char_type, 16);
        let list = types.structure("list_head", 16, &[("next", word, 0), ("prev", word, 64)]);
        let thread = types.structure("thread_struct", 8, &[("sp", word, 0)]);
        let fields = [
            ("__state", half, 0),
            ("tasks", list, 8 * 16),
            ("pid", half, 8 * 32),
            ("tgid", half, 8 * 36),
            ("comm", name, 8 * 40),
            ("thread", thread, 8 * 64),
            ("signal", word, 8 * 72),
            ("thread_node", list, 8 * 80),
            ("exit_state", half, 8 * 96),
        ];
        types.structure("task_struct", 128, &fields);
        types.structure("signal_struct", 16, &[("thread_head", list, 0)]);
        let bits = [("type", half, 3 << 24 | 40), ("signal", half, 1 << 24 | 43)];
        types.bit_fields("orc_entry", 6, &bits);
        let types = types.bytes();
        let start = self.guest.place(&types);
        self.symbol("__start_BTF", start);
        self.symbol("__stop_BTF", start + types.len() as u64);
        self.tasks = (0..=NAMES.len()).map(|_| self.guest.reserve(128)).collect();
        self.symbol("init_task", self.tasks[0]);
        for (number, &task) in self.tasks.clone().iter().enumerate() {
            let next = self.tasks[(number + 1) % self.tasks.len()];
            let number = u32::try_from(number).unwrap();
            self.guest.put_u32(task, if number == 3 { 2 } else { 0 });
            self.guest.put_u64(task + 16, next + 16);
            self.guest.put_u32(task + 32, number);
            self.guest.put_u32(task + 36, number);
            let signal = self.guest.reserve(16);
            self.guest.put_u64(task + 72, signal);
            self.guest.put_u64(signal, task + 80);
            self.guest.put_u64(task + 80, signal);
            let name = if number == 0 { "swapper/0" } else { NAMES[number as usize - 1] };
            self.guest.put(task + 40, name.as_bytes());
        }
        // The last one waits.
        let stack =
            self.stack(&[0, 0, 0, 0, 0, 0, function("__schedule") + 0x30, 0, function("kthread") + 9]);
        self.guest.put_u64(self.tasks[3] + 64, stack);
        self.guest.put_u64(self.areas[0] + CURRENT, self.tasks[1]);
        self.guest.put_u64(self.areas[1] + CURRENT, self.tasks[2]);
    }

    /// A stack of its own that holds this.
    fn stack(&mut self, words: &[u64]) -> u64 {
        self.guest.align(16 << 10);
        self.guest.place(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    fn cpus(&mut self) {
        let user = self.registers(0x47_b7a0, 0x33, 0x7fff_0000);
        let mut words = vec![0];
        for caller in ["panic", "sysrq_handle_crash", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"] {
            words.extend([function(caller) + 0x16, 0]);
        }
        words.pop();
        words.extend(user);
        let stack = self.stack(&words);
        self.cpu(0, function("delay_tsc") + 0x33, stack);
        let outer = self.stack(&[0, function("kthread") + 0x40]);
        let interrupted = self.registers(function("worker"), 0x10, outer);
        let mut words = vec![0, function("asm_sysvec_reboot") + 0x16];
        words.extend(interrupted);
        let stack = self.stack(&words);
        self.cpu(1, function("stop_this_cpu") + 1, stack);
    }

    /// `struct pt_regs`.
    fn registers(&self, ip: u64, cs: u64, sp: u64) -> Vec<u64> {
        let mut words = vec![0; 21];
        (words[16], words[17], words[19]) = (ip, cs, sp);
        words
    }

    fn cpu(&mut self, index: u32, rip: u64, rsp: u64) {
        let segment = |selector, base| Segment { selector, base, ..Segment::default() };
        let registers = Registers {
            rip,
            rsp,
            cs: segment(0x10, 0),
            gs: segment(0, self.areas[index as usize]),
            ..Registers::default()
        };
        let cpu = CpuState { index, activity: Activity::Running, registers: Some(Box::new(registers)) };
        self.guest.cpus.retain(|known| known.index != index);
        self.guest.cpus.push(cpu);
        self.guest.cpus.sort_by_key(|cpu| cpu.index);
    }

    fn tables(&mut self) -> FakeTables {
        let mut symbols = std::mem::take(&mut self.symbols);
        symbols.sort_by_key(|(address, ..)| *address);
        FakeTables { symbols, base: TEXT, absolute_percpu: true, order: Order::OffsetsLast }
    }

    /// The guest as a dumper finds it.
    fn finish(mut self) -> FakeGuest {
        let (bytes, places) = self.tables().named();
        let start = self.guest.place(&bytes);
        for (table, place) in places {
            self.guest.say(&format!("SYMBOL(kallsyms_{table})"), format!("{:x}", start + place));
        }
        self.guest
    }

    /// The same of a kernel before 6.0, which does not say where kallsyms is.
    fn finish_unnamed(mut self) -> FakeGuest {
        let bytes = self.tables().bytes();
        self.guest.place(&bytes);
        self.guest
    }
}

fn card(guest: &FakeGuest) -> CrashCard {
    let kernel = Kernel::of(guest, guest.vmcoreinfo()).unwrap();
    Crash::new(kernel).card(StateRequest::default())
}

/// A chain in short: names, `!` for what was interrupted, `?` for what is unsure.
fn chain(frames: &[Frame]) -> Vec<String> {
    let short = |frame: &Frame| {
        let name = match &frame.function {
            Some(name) => name.clone(),
            None if frame.user_mode => "user".to_owned(),
            None => format!("{:#x}", frame.address),
        };
        let unsure = if frame.unsure { "?" } else { "" };
        format!("{unsure}{name}{}", if frame.interrupted { "!" } else { "" })
    };
    frames.iter().map(short).collect()
}

#[test]
fn card_of_a_crashed_guest_has_it_all() {
    let guest = World::new().finish();
    let card = card(&guest);
    assert_eq!(card.problems, [""; 0]);
    assert_eq!(card.panic_text.as_deref(), Some("sysrq triggered crash"));
    assert_eq!((card.release.as_str(), card.host_name.as_deref()), ("6.1.0-fake", Some("guest")));
    assert_eq!(card.version.as_deref(), Some("Linux version 6.1.0-fake (me) #1"));
    assert_eq!((card.panic_cpu, card.uptime_nanoseconds), (Some(0), Some(3_000_000_000)));
    assert_eq!(card.taint.as_deref(), Some("Tainted: GDW"));
    assert!(card.command_line.unwrap().starts_with("console=ttyS0 net.dump.server"));
    assert_eq!(card.log.len(), 2);
    let task = card.task.unwrap();
    assert_eq!((task.tid, task.name.as_str()), (1, "init"));
    assert_eq!(card.registers.unwrap().rip, function("delay_tsc") + 0x33);
    assert_eq!(
        chain(&card.cpus[0].backtrace),
        [
            "delay_tsc",
            "panic",
            "sysrq_handle_crash",
            "do_syscall_64",
            "entry_SYSCALL_64_after_hwframe",
            "user"
        ]
    );
    assert_eq!(card.cpus[0].backtrace[1].offset, Some(0x16));
    assert_eq!(chain(&card.cpus[1].backtrace), ["stop_this_cpu", "asm_sysvec_reboot", "worker!", "kthread"]);
    assert_eq!(card.cpus[1].task.as_ref().unwrap().name, "kworker/1:0");
    let tasks: Vec<_> =
        card.tasks.iter().map(|task| (task.tid, task.name.as_str(), task.cpu, task.state)).collect();
    let expected = [
        (1, "init", Some(0), Some('R')),
        (2, "kworker/1:0", Some(1), Some('R')),
        (3, "a.out", None, Some('D')),
    ];
    assert_eq!(tasks, expected);
}

#[test]
fn symbols_are_found_where_nothing_names_them() {
    let card = card(&World::new().finish_unnamed());
    assert_eq!(chain(&card.cpus[1].backtrace), ["stop_this_cpu", "asm_sysvec_reboot", "worker!", "kthread"]);
}

#[test]
fn facts_configure_the_dump_from_the_command_line() {
    let guest = World::new().finish();
    let facts = Crash::new(Kernel::of(&guest, guest.vmcoreinfo()).unwrap()).facts();
    assert_eq!(facts.os.as_deref(), Some("Linux"));
    assert_eq!(
        (facts.variable("net.dump.server"), facts.variable("net.dump.path")),
        (Some("10.0.0.9"), Some("/a"))
    );
    assert_eq!(facts.variable("quiet"), None);
    assert_eq!(facts.environment.unwrap().len(), 2);
}

#[test]
fn waiting_tasks_have_their_chains_when_asked() {
    let guest = World::new().finish();
    let crash = Crash::new(Kernel::of(&guest, guest.vmcoreinfo()).unwrap());
    let mut card = crash.card(StateRequest { backtraces: Backtraces::All, ..StateRequest::default() });
    assert_eq!(chain(&card.tasks[2].backtrace), ["__schedule", "kthread"]);
    let state = card.take_state(crash.log());
    assert_eq!(state.crashed().unwrap().name, "init");
    assert_eq!(chain(&state.crashed().unwrap().backtrace)[0], "delay_tsc");
    assert!(state.message_buffer.unwrap().ends_with("sysrq triggered crash\n"));
    assert!(card.tasks.is_empty());
}

#[test]
fn null_jump_is_followed_to_who_jumped() {
    let mut world = World::new();
    let caller = function("worker") + 0x20;
    let stack = world.stack(&[caller, 0, function("kthread") + 0x40]);
    world.cpu(1, 0, stack);
    assert_eq!(chain(&card(&world.finish()).cpus[1].backtrace), ["0x0", "worker", "kthread"]);
}

#[test]
fn other_stack_is_followed() {
    let mut world = World::new();
    let outer = world.stack(&[function("worker") + 0x20, 0, function("kthread") + 0x40]);
    let inner = world.stack(&[outer]);
    world.cpu(1, function("irq_stack") + 4, inner);
    assert_eq!(chain(&card(&world.finish()).cpus[1].backtrace), ["irq_stack", "worker", "kthread"]);
}

#[test]
fn what_the_tables_do_not_know_is_a_guess() {
    let mut world = World::new();
    // Data, a return address, where no call can have been, what is no code, another return address.
    let words = [7, function("worker") + 0x20, TEXT, TEXT - 8, function("kthread") + 0x40];
    let stack = world.stack(&words);
    world.cpu(1, function("no_tables") + 4, stack);
    assert_eq!(chain(&card(&world.finish()).cpus[1].backtrace), ["no_tables", "?worker", "?kthread"]);
}

#[test]
fn stack_that_runs_in_a_ring_ends() {
    let mut world = World::new();
    let stack = world.guest.reserve(64);
    world.guest.put_u64(stack, stack - 8);
    world.guest.put_u64(stack - 8, function("irq_stack") + 4);
    world.cpu(1, function("irq_stack") + 4, stack);
    // Registers that bring the CPU back to where it was.
    let ring = world.guest.reserve(256);
    let registers = world.registers(function("asm_sysvec_reboot") + 4, 0x10, ring);
    let words: Vec<u8> = registers.iter().flat_map(|word| word.to_le_bytes()).collect();
    world.guest.put(ring, &words);
    world.cpu(0, function("asm_sysvec_reboot") + 4, ring);
    let card = card(&world.finish());
    assert!(card.cpus.iter().all(|cpu| cpu.backtrace.len() < 100));
}

#[test]
fn task_lists_that_lie_end() {
    for (offset, value) in [(16, 0), (16, 1), (16, u64::MAX), (72, 0), (72, 1 << 63), (80, 0)] {
        let mut world = World::new();
        let task = world.tasks[2];
        world.guest.put_u64(task + offset, value);
        let card = card(&world.finish());
        assert!(!card.tasks.is_empty() && card.tasks.len() < 4096, "{offset} {value:#x}");
        assert!(card.panic_text.is_some());
    }
    let mut world = World::new();
    let (first, second) = (world.tasks[1], world.tasks[2]);
    world.guest.put_u64(second + 16, first + 16);
    let card = card(&world.finish());
    assert_eq!(card.tasks.len(), 2);
    assert!(card.problems[0].contains("comes back"), "{:?}", card.problems);
}

#[test]
fn kernel_without_tables_still_gives_a_short_card() {
    let guest = {
        let mut world = World::new();
        world.symbols.clear();
        world.guest
    };
    let card = card(&guest);
    assert_eq!(card.panic_text.as_deref(), Some("sysrq triggered crash"));
    assert_eq!(card.cpus.len(), 2);
    assert_eq!(card.problems.len(), 3, "{:?}", card.problems);
    assert!(card.tasks.is_empty() && card.task.is_none());
}

#[test]
fn any_damage_leaves_a_card() {
    // Words of the guest's own structures, each in turn something else.
    let whole = World::new().finish();
    for place in (0..0x1_0000).step_by(232).map(|at| TEXT + 0x10_0000 + at) {
        let mut guest = whole.clone();
        guest.put_u64(place, 0xffff_ffff_85ff_fff0);
        if let Some(kernel) = Kernel::of(&guest, whole.vmcoreinfo()) {
            let request = StateRequest { backtraces: Backtraces::All, panic_cpu: Some(1) };
            let card = Crash::new(kernel).card(request);
            assert!(card.to_string().len() < 1 << 16);
        }
    }
}

#[test]
fn text_is_read_at_a_glance() {
    let mut world = World::new();
    world.variable("modules", &[0; 16]);
    let line = world.guest.place(b"a\x1b[2Jb\0");
    world.symbols.retain(|(.., name)| name != "saved_command_line");
    world.variable("saved_command_line", &line.to_le_bytes());
    let text = card(&world.finish()).to_string();
    for expected in [
        "Panic     sysrq triggered crash\n",
        "State     up 3.000 s, host \"guest\", Tainted: GDW\n",
        "Crashed   on CPU 0, in task 1 \"init\"\n",
        "Command   a\\u{1b}[2Jb\n",
        "CPU       0, task 1 \"init\", PANICKED\n",
        " worker+0x0 (interrupted here)\n",
        "(in user mode)\n",
        "Tasks     3, 2 on a CPU, 1 in uninterruptible sleep\n",
        "[    3.000000] Kernel panic - not syncing: sysrq triggered crash\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
}

#[test]
fn taint_has_the_kernels_letters() {
    assert_eq!(taint_text(0), "Not tainted");
    assert_eq!(taint_text(1 | 1 << 12), "Tainted: PO");
    assert_eq!(taint_text(1 << 9), "Tainted: GW");
    assert_eq!(taint_text(1 << 63), "Tainted: G");
}
