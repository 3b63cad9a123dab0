//! A guest that hangs: for `--watchdog SECONDS` no vCPU has made progress. Then it gets an NMI, which makes a kernel that
//! is told to (Linux: `unknown_nmi_panic`) panic in its own words, and a moment later it is dumped.
//!
//! A vCPU makes no progress that is halted with interrupts off, or that was found with interrupts off in the same few
//! pages of code each time somebody looked, without an access to a device in between. One that spins in the kernel with
//! interrupts on counts only beside such a one: it may wait for it, or idle (`idle=poll`). One that is halted with
//! interrupts on is idle, one in user mode is busy; with any of these the guest is alive. Nor is anything known of a
//! vCPU whose thread the host did not let run.
//!
//! Firmware and decompressors run with interrupts off for long, so a guest that has never been seen with interrupts on
//! is given four times as long.

use std::fmt::Write;
use std::time::{Duration, Instant};

use netdump::vmcore::cpu::Activity;

use super::{PanicSource, Places, Wakeup};
use crate::bus::BusError;
use crate::events::PanicEvent;
use crate::vcpu::Glance;

pub(crate) const NAME: &str = "watchdog";
/// How often each vCPU is looked at, within these bounds: so many times in the time that it may hang.
const LOOKS: u32 = 8;
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_secs(1);
/// How long the guest gets to answer the NMI.
const AFTER_NMI: Duration = Duration::from_secs(1);
/// How much longer a guest may take that has never had interrupts on.
const EARLY: u32 = 4;
/// Most pages of code that a vCPU is found in while it only spins: a loop, and what it calls.
const PAGES: usize = 4;
const PAGE: u64 = 4096;
/// A vCPU has run if its thread used so much CPU time.
const HAS_RUN: Duration = Duration::from_micros(500);
/// `RFLAGS.IF`.
const INTERRUPTS_ON: u64 = 1 << 9;

/// The source.
#[derive(Debug)]
pub(super) struct WatchdogSource;

impl PanicSource for WatchdogSource {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "no vCPU makes progress, for the time of --watchdog"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        places.wakeups.extend(places.options.watchdog.map(Wakeup::Hang));
        Ok(())
    }
}

/// What the event loop is to do for the watchdog.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Look at every vCPU.
    Look,
    /// Send the first vCPU an NMI.
    Nmi,
    /// The guest hangs.
    Hung(PanicEvent),
}

/// The watchdog of one boot.
#[derive(Debug)]
pub(crate) struct Watchdog {
    limit: Duration,
    next: Instant,
    cpus: Vec<Watched>,
    /// Whether a vCPU was ever seen with interrupts on.
    is_up: bool,
    nmi_sent: Option<(Instant, String)>,
}

/// One vCPU: nothing is known of it, or since when it has been like this.
#[derive(Debug, Default)]
struct Watched {
    last: Option<Glance>,
    stuck: Option<Stuck>,
}

#[derive(Debug)]
struct Stuck {
    kind: Kind,
    since: Instant,
    until: Instant,
    /// Pages of code that it was found in.
    pages: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It waits for its start, so that it cannot make progress.
    NotStarted,
    Halted,
    Spinning,
    /// It spins with interrupts on.
    Waiting,
}

impl Watchdog {
    /// A watchdog for a guest of `cpus` vCPUs that starts now.
    pub(crate) fn new(limit: Duration, cpus: u32, now: Instant) -> Self {
        let cpus = (0..cpus).map(|_| Watched::default()).collect();
        Self { limit, next: now + period(limit), cpus, is_up: false, nmi_sent: None }
    }

    /// When [`tick`](Self::tick) is next of use.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// What is to be done now, if anything.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Order> {
        if now < self.next {
            return None;
        }
        if let Some((sent, why)) = self.nmi_sent.take() {
            self.next = now + period(self.limit);
            self.cpus.iter_mut().for_each(|cpu| *cpu = Watched::default());
            return Some(Order::Hung(hung(why, sent)));
        }
        if self.is_hung() {
            self.next = now + AFTER_NMI;
            self.nmi_sent = Some((now, self.describe()));
            return Some(Order::Nmi);
        }
        self.next = now + period(self.limit);
        Some(Order::Look)
    }

    /// What was found on a vCPU.
    pub(crate) fn see(&mut self, glance: Glance, now: Instant) {
        self.is_up |= glance.rflags & INTERRUPTS_ON != 0 && glance.activity != Activity::NotStarted;
        let index = usize::try_from(glance.vcpu).unwrap_or(usize::MAX);
        if let Some(cpu) = self.cpus.get_mut(index) {
            cpu.see(glance, now);
        }
    }

    fn is_hung(&self) -> bool {
        let limit = if self.is_up { self.limit } else { self.limit * EARLY };
        let for_long = |cpu: &Watched| {
            cpu.stuck.as_ref().filter(|stuck| stuck.until - stuck.since >= limit).map(|stuck| stuck.kind)
        };
        let kinds: Option<Vec<_>> = self.cpus.iter().map(for_long).collect();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| matches!(kind, Kind::Halted | Kind::Spinning)))
    }

    fn describe(&self) -> String {
        let mut text = format!("no vCPU has made progress for {} s:", self.limit.as_secs_f32());
        for (index, cpu) in self.cpus.iter().enumerate() {
            let (Some(glance), Some(stuck)) = (&cpu.last, &cpu.stuck) else { continue };
            let what = match stuck.kind {
                Kind::NotStarted => continue,
                Kind::Halted => "is halted with interrupts off",
                Kind::Spinning => "spins with interrupts off",
                Kind::Waiting => "spins",
            };
            // Writing to a string cannot fail.
            let _ = write!(text, " vCPU {index} {what} at {:#x},", glance.rip);
        }
        text.truncate(text.trim_end_matches(',').len());
        text
    }
}

impl Watched {
    fn see(&mut self, glance: Glance, now: Instant) {
        let Some(kind) = kind(&glance) else {
            *self = Self { last: Some(glance), stuck: None };
            return;
        };
        let last = self.last.replace(glance);
        let has_run =
            last.as_ref().is_none_or(|last| glance.cpu_time.saturating_sub(last.cpu_time) >= HAS_RUN);
        let spins = matches!(kind, Kind::Spinning | Kind::Waiting);
        if spins && !has_run {
            return;
        }
        let page = glance.rip / PAGE;
        let same = self
            .stuck
            .as_mut()
            .filter(|stuck| stuck.kind == kind && last.is_some_and(|last| last.accesses == glance.accesses));
        match same {
            Some(stuck) if !spins || stuck.pages.contains(&page) => stuck.until = now,
            Some(stuck) if stuck.pages.len() < PAGES => {
                stuck.pages.push(page);
                stuck.until = now;
            }
            _ => self.stuck = Some(Stuck { kind, since: now, until: now, pages: vec![page] }),
        }
    }
}

/// How a vCPU makes no progress; `None` when it does, or may.
fn kind(glance: &Glance) -> Option<Kind> {
    let interrupts_on = glance.rflags & INTERRUPTS_ON != 0;
    match glance.activity {
        Activity::NotStarted => Some(Kind::NotStarted),
        Activity::Halted => (!interrupts_on).then_some(Kind::Halted),
        Activity::Running if !interrupts_on => Some(Kind::Spinning),
        Activity::Running => glance.is_kernel.then_some(Kind::Waiting),
        Activity::NotStopped => None,
    }
}

fn period(limit: Duration) -> Duration {
    (limit / LOOKS).clamp(OFTEN, SELDOM)
}

fn hung(why: String, at: Instant) -> PanicEvent {
    let detail = format!("{why}; an NMI did not end that");
    // It cannot be waited for: nothing would come.
    PanicEvent { source: NAME, vcpu: None, at, text: None, detail, survivable: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(8);
    const ON: u64 = INTERRUPTS_ON | 2;
    const OFF: u64 = 2;

    /// Runs guests second by second.
    struct Bench {
        watchdog: Watchdog,
        now: Instant,
        second: u64,
    }

    fn bench(cpus: u32) -> Bench {
        let now = Instant::now();
        Bench { watchdog: Watchdog::new(LIMIT, cpus, now), now, second: 0 }
    }

    fn glance(vcpu: u32, activity: Activity, rflags: u64, rip: u64) -> Glance {
        Glance { vcpu, activity, rip, rflags, is_kernel: true, accesses: 0, cpu_time: Duration::ZERO }
    }

    impl Bench {
        /// Lets the guest run so many seconds, each vCPU as `cpus` says in each; what the watchdog orders at the end.
        fn run(&mut self, seconds: u64, cpus: impl Fn(u64) -> Vec<Glance>) -> Option<Order> {
            for _ in 0..seconds {
                self.second += 1;
                self.now += Duration::from_secs(1);
                match self.watchdog.tick(self.now) {
                    Some(Order::Look) => {}
                    other => return other,
                }
                for mut glance in cpus(self.second) {
                    glance.cpu_time += Duration::from_secs(self.second);
                    self.watchdog.see(glance, self.now);
                }
            }
            None
        }
    }

    fn spinning(vcpu: u32) -> Glance {
        glance(vcpu, Activity::Running, OFF, 0xffff_ffff_8100_1000)
    }

    fn halted(vcpu: u32) -> Glance {
        glance(vcpu, Activity::Halted, OFF, 0xffff_ffff_8100_2000)
    }

    fn idle(vcpu: u32) -> Glance {
        glance(vcpu, Activity::Halted, ON, 0xffff_ffff_8100_3000)
    }

    /// A guest that has booted: interrupts were on.
    fn booted(cpus: u32) -> Bench {
        let mut bench = bench(cpus);
        assert_eq!(bench.run(3, |_| (0..cpus).map(idle).collect()), None);
        bench
    }

    #[test]
    fn spinning_and_halted_vcpus_make_a_hung_guest_that_gets_an_nmi_and_then_a_dump() {
        let mut bench = booted(2);
        assert_eq!(bench.run(20, |_| vec![spinning(0), halted(1)]), Some(Order::Nmi));
        assert!((11..=14).contains(&bench.second), "{}", bench.second);
        let Some(Order::Hung(event)) = bench.run(1, |_| Vec::new()) else { panic!("no dump") };
        assert_eq!((event.source, event.survivable), (NAME, false));
        assert!(event.detail.contains("vCPU 0 spins with interrupts off at 0xffffffff81001000"), "{event:?}");
        assert!(event.detail.contains("vCPU 1 is halted with interrupts off"), "{event:?}");
    }

    #[test]
    fn an_idle_or_busy_guest_is_alive_for_ever() {
        let user = |vcpu| Glance { is_kernel: false, ..glance(vcpu, Activity::Running, ON, 0x40_0000) };
        let polling = |vcpu| glance(vcpu, Activity::Running, ON, 0xffff_ffff_8100_4000);
        assert_eq!(booted(2).run(1000, |_| vec![idle(0), idle(1)]), None);
        assert_eq!(booted(2).run(1000, |_| vec![user(0), user(1)]), None);
        assert_eq!(booted(2).run(1000, |_| vec![polling(0), polling(1)]), None, "idle=poll");
        assert_eq!(booted(2).run(1000, |_| vec![spinning(0), idle(1)]), None, "one is alive");
        assert_eq!(booted(2).run(1000, |_| vec![spinning(0), user(1)]), None, "one is busy");
        assert_eq!(booted(1).run(1000, |_| Vec::new()), None, "nobody answers");
    }

    #[test]
    fn one_that_waits_for_a_stuck_one_makes_no_progress() {
        let waiting = |vcpu| glance(vcpu, Activity::Running, ON, 0xffff_ffff_8100_4000);
        assert_eq!(booted(2).run(20, |_| vec![spinning(0), waiting(1)]), Some(Order::Nmi));
    }

    #[test]
    fn work_with_interrupts_off_is_progress() {
        let far =
            |second: u64| vec![glance(0, Activity::Running, OFF, 0xffff_ffff_8100_0000 + second * PAGE)];
        assert_eq!(booted(1).run(1000, far), None, "it runs through the code");
        let accesses = |second: u64| vec![Glance { accesses: second, ..spinning(0) }];
        assert_eq!(booted(1).run(1000, accesses), None, "it talks to a device");
        let now_and_then = |second: u64| vec![if second.is_multiple_of(7) { idle(0) } else { spinning(0) }];
        assert_eq!(booted(1).run(1000, now_and_then), None);
    }

    #[test]
    fn a_starved_vcpu_does_not_hang() {
        let mut bench = booted(1);
        for _ in 0..100 {
            bench.now += Duration::from_secs(1);
            assert_eq!(bench.watchdog.tick(bench.now), Some(Order::Look));
            let cpu_time = Duration::from_secs(100);
            bench.watchdog.see(Glance { cpu_time, ..spinning(0) }, bench.now);
        }
    }

    #[test]
    fn a_guest_that_has_yet_to_start_gets_longer() {
        assert_eq!(bench(1).run(30, |_| vec![spinning(0)]), None);
        assert_eq!(bench(1).run(40, |_| vec![spinning(0)]), Some(Order::Nmi));
        let unstarted = glance(1, Activity::NotStarted, 0, 0);
        assert_eq!(bench(2).run(40, |_| vec![spinning(0), unstarted]), Some(Order::Nmi));
        let unstarted = |vcpu| glance(vcpu, Activity::NotStarted, 0, 0);
        assert_eq!(bench(2).run(1000, |_| vec![unstarted(0), unstarted(1)]), None, "there is nobody to hang");
    }
}
