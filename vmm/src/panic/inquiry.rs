//! What all sources say of one boot's panic, and when the guest is dumped: at the first sign, but a kernel whose own
//! words can be read gets a moment to finish its message, to stop its other CPUs and to say what it has to say (FreeBSD
//! prints where it panicked, which the core's message buffer then has), and one that dumps for itself is left to that.
//!
//! ```text
//! quiet --a sign, and the kernel's words say nothing--> dump
//! quiet --a sign, and the kernel is busy with its panic--> waiting --it settles, or the time is over--> dump
//! quiet, waiting --the kernel has a dumper of its own--> left to the guest
//! any --the guest ends, panicked and without a dump of its own--> dump
//! ```

use std::time::{Duration, Instant};

use netdump::panicked::{OwnDump, Panicked};

use super::console::NAME as FORGEABLE;
use super::triple_fault::NAME as TRIPLE_FAULT;
use super::{Lookout, REQUEST, SourceOptions};
use crate::events::PanicEvent;

/// How often lookouts look: short beside the time that a person waits for a dump, long beside what a look costs.
const EVERY: Duration = Duration::from_millis(5);

/// How long a kernel is silent that has said all. Its console may take some milliseconds for a line.
const SILENCE: Duration = Duration::from_millis(20);

/// How long nothing may change while a kernel is given time. Linux waits a second for CPUs that do not answer.
const STALLED: Duration = Duration::from_secs(2);

/// The state of one boot's inquiry.
#[derive(Debug)]
pub(crate) struct Inquiry {
    lookouts: Vec<Box<dyn Lookout>>,
    options: SourceOptions,
    next_look: Instant,
    waiting: Option<Waiting>,
    left_to_guest: bool,
    /// Whether a sign came after that.
    told_of_more: bool,
    signs: Vec<Sign>,
}

/// A panic whose kernel is given time.
#[derive(Debug)]
struct Waiting {
    first: PanicEvent,
    last: Panicked,
    /// Since when its words have been the same.
    unchanged_since: Instant,
}

/// A source has seen the panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sign {
    pub(crate) source: &'static str,
    pub(crate) at: Instant,
}

/// A panic that is to be dumped.
#[derive(Debug)]
pub(crate) struct Finding {
    /// The first sign of it.
    pub(crate) event: PanicEvent,
    /// The first sign of each source, in their order.
    pub(crate) signs: Vec<Sign>,
    /// How long the kernel was let run on after the first one.
    pub(crate) waited: Duration,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Ruling {
    /// Nothing.
    GoOn,
    /// vCPUs that wait after an event run on.
    RunOn,
    /// The guest is paused and dumped.
    Dump(Box<Finding>),
    /// The guest runs on undumped, as it dumps for itself. This is said once.
    Leave {
        /// The vCPU that panicked.
        vcpu: Option<u32>,
        /// Why it is left alone.
        why: &'static str,
    },
    /// The guest has ended, and there is nothing to dump.
    Over,
}

impl Inquiry {
    pub(crate) fn new(lookouts: Vec<Box<dyn Lookout>>, options: SourceOptions, now: Instant) -> Self {
        Self {
            lookouts,
            options,
            next_look: now,
            waiting: None,
            left_to_guest: false,
            told_of_more: false,
            signs: Vec::new(),
        }
    }

    /// When [`look`](Self::look) is next of use.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let is_of_use = self.lookouts.iter().any(|lookout| lookout.looks_at_running_guests());
        (is_of_use && !self.left_to_guest).then_some(self.next_look)
    }

    /// Whether the guest's panic was left to the guest itself.
    pub(crate) fn is_left_to_guest(&self) -> bool {
        self.left_to_guest
    }

    /// Whether a panic was seen that has not been dumped.
    pub(crate) fn has_panicked(&self) -> bool {
        self.left_to_guest || self.waiting.is_some()
    }

    /// The guest says, by other means than its memory, that it dumps for itself.
    pub(crate) fn leave(&mut self) {
        self.left_to_guest = true;
    }

    /// A source has seen what may become a panic; its sign is told with it.
    pub(crate) fn suspect(&mut self, source: &'static str, now: Instant) {
        self.note(source, now);
    }

    /// Looks at the running guest, when it is time.
    pub(crate) fn look(&mut self, now: Instant) -> Ruling {
        if self.next_look().is_none_or(|at| now < at) {
            return Ruling::GoOn;
        }
        self.next_look = now + EVERY;
        match self.ask(now) {
            Some((event, seen)) => self.weigh(event, seen, now).unwrap_or(Ruling::GoOn),
            // Words that were set and are so no more: the panic was still seen.
            None => match self.waiting.take() {
                Some(waiting) if self.is_late(&waiting.first, waiting.last.patience, now) => {
                    self.dump(waiting.first, None, now)
                }
                waiting => {
                    self.waiting = waiting;
                    Ruling::GoOn
                }
            },
        }
    }

    /// A source reports a panic.
    pub(crate) fn hear(&mut self, event: PanicEvent, now: Instant) -> Ruling {
        self.note(event.source, event.at);
        if !event.survivable {
            let by = event.detail.clone();
            return self.end(Some(event), &by, now);
        }
        if self.left_to_guest {
            if !std::mem::replace(&mut self.told_of_more, true) {
                tracing::info!(source = event.source, "left to the guest, which dumps for itself");
            }
            return Ruling::RunOn;
        }
        match self.ask(now) {
            Some((_, seen)) => self.weigh(event, seen, now).unwrap_or(Ruling::RunOn),
            None if event.source == FORGEABLE && self.lookouts.iter_mut().any(|look| look.says_well()) => {
                self.signs.retain(|sign| sign.source != FORGEABLE);
                tracing::info!(
                    line = event.detail,
                    "the console told of a panic, but the kernel does not say that it has panicked"
                );
                Ruling::RunOn
            }
            None => {
                let first = self.waiting.take().map_or(event, |waiting| waiting.first);
                self.dump(first, None, now)
            }
        }
    }

    /// Somebody asks for a dump, whatever the guest does. A panic that is waited for stays what is dumped.
    pub(crate) fn request(&mut self, by: &str, now: Instant) -> Box<Finding> {
        self.note(REQUEST, now);
        let seen = self.ask_by(now, |lookout| lookout.look_at_end()).map(|(_, seen)| seen);
        let event = match self.waiting.take() {
            Some(Waiting { mut first, .. }) => {
                first.detail = format!("{}; then a dump was asked for: {by}", first.detail);
                first
            }
            None => PanicEvent {
                source: REQUEST,
                vcpu: None,
                at: now,
                text: None,
                detail: by.to_owned(),
                survivable: false,
            },
        };
        self.finding(event, seen, now)
    }

    /// The guest has ended by the means named, and waits: its memory is asked once more.
    pub(crate) fn ended(&mut self, by: &str, now: Instant) -> Ruling {
        self.end(None, by, now)
    }

    fn end(&mut self, event: Option<PanicEvent>, by: &str, now: Instant) -> Ruling {
        let vcpu = event.as_ref().and_then(|event| event.vcpu);
        let (word, seen) = self.ask_by(now, |lookout| lookout.look_at_end()).unzip();
        let has_dumped = seen.as_ref().is_some_and(|seen| seen.own_dump == OwnDump::Over);
        if has_dumped && !self.options.ignore_crashloaded {
            self.left_to_guest = true;
            return Ruling::Over;
        }
        // The kernel panicked before it ended, also when only its end was noticed.
        if let Some(mut first) = self.waiting.take().map(|waiting| waiting.first).or(word) {
            first.detail = format!("{}; then the guest ended: {by}", first.detail);
            first.vcpu = first.vcpu.or(vcpu);
            return self.dump(first, seen, now);
        }
        match event {
            Some(event) if event.source == TRIPLE_FAULT && self.resets_by_triple_fault() => Ruling::Over,
            Some(event) => self.dump(event, None, now),
            None => Ruling::Over,
        }
    }

    fn resets_by_triple_fault(&mut self) -> bool {
        self.lookouts.iter_mut().any(|lookout| lookout.resets_by_triple_fault())
    }

    /// What the kernel's own words say, as an event of the lookout that reads them.
    fn ask(&mut self, now: Instant) -> Option<(PanicEvent, Panicked)> {
        self.ask_by(now, |lookout| lookout.look())
    }

    fn ask_by(
        &mut self,
        now: Instant,
        look: fn(&mut dyn Lookout) -> Option<Panicked>,
    ) -> Option<(PanicEvent, Panicked)> {
        let mut lookouts = self.lookouts.iter_mut();
        let (source, seen) = lookouts.find_map(|lookout| Some((lookout.name(), look(lookout.as_mut())?)))?;
        self.note(source, now);
        let event = PanicEvent {
            source,
            vcpu: None,
            at: now,
            text: None,
            detail: seen.evidence.into(),
            survivable: true,
        };
        Some((event, seen))
    }

    fn note(&mut self, source: &'static str, at: Instant) {
        if !self.signs.iter().any(|sign| sign.source == source) {
            tracing::debug!(source, "panic seen");
            self.signs.push(Sign { source, at });
        }
    }

    /// A sign of a kernel whose words say how far it is: `None` when it is given more time.
    fn weigh(&mut self, event: PanicEvent, seen: Panicked, now: Instant) -> Option<Ruling> {
        if let Some(why) = self.own_dump(&seen) {
            self.left_to_guest = true;
            self.waiting = None;
            return Some(Ruling::Leave { vcpu: event.vcpu.or(seen.cpu), why });
        }
        let (first, unchanged_since) = match self.waiting.take() {
            Some(Waiting { first, last, unchanged_since }) => {
                let since = if last == seen { unchanged_since } else { now };
                (PanicEvent { vcpu: first.vcpu.or(event.vcpu), ..first }, since)
            }
            None => (event, now),
        };
        let unchanged = now.saturating_duration_since(unchanged_since);
        let settled = seen.is_through() || (unchanged >= SILENCE && seen.looks_settled());
        let stalled = self.options.settle.is_none() && unchanged >= STALLED;
        // The user does not want its crash kernel's dump, but it will jump there next, and be gone.
        let is_leaving = seen.formatted && matches!(seen.own_dump, OwnDump::CrashKernel | OwnDump::Over);
        if settled || is_leaving || stalled || self.is_late(&first, seen.patience, now) {
            return Some(self.dump(first, Some(seen), now));
        }
        self.waiting = Some(Waiting { first, last: seen, unchanged_since });
        None
    }

    fn own_dump(&self, seen: &Panicked) -> Option<&'static str> {
        let why = match seen.own_dump {
            OwnDump::None => return None,
            OwnDump::Configured => "it has a dump device of its own",
            OwnDump::CrashKernel => "its own crash kernel takes over",
            OwnDump::Running => "it is dumping by itself",
            OwnDump::Over => "it has dumped by itself",
        };
        (!self.options.ignore_crashloaded).then_some(why)
    }

    fn is_late(&self, first: &PanicEvent, patience: Duration, now: Instant) -> bool {
        now.saturating_duration_since(first.at) >= self.options.settle.unwrap_or(patience)
    }

    fn dump(&self, event: PanicEvent, seen: Option<Panicked>, now: Instant) -> Ruling {
        Ruling::Dump(self.finding(event, seen, now))
    }

    fn finding(&self, mut event: PanicEvent, seen: Option<Panicked>, now: Instant) -> Box<Finding> {
        if let Some(seen) = seen {
            if !seen.looks_settled() && event.survivable {
                event.detail.push_str(", and it was not through with its panic when it was paused");
            }
            event.vcpu = event.vcpu.or(seen.cpu);
            event.text = event.text.or(seen.text);
        }
        let mut signs = self.signs.clone();
        signs.sort_by_key(|sign| sign.at);
        let waited = now.saturating_duration_since(event.at);
        Box::new(Finding { event, signs, waited })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What no test varies.
    const QUIET: Panicked = Panicked {
        evidence: "words",
        text: None,
        cpu: None,
        own_dump: OwnDump::None,
        formatted: true,
        others_stopped: true,
        written: None,
        finished: None,
        patience: Duration::from_millis(250),
    };

    /// A lookout that says what the test wants: of a panic, that the kernel is well, that it resets by a triple fault.
    #[derive(Debug, Clone, Default)]
    struct Words(Arc<Mutex<Option<Panicked>>>, Arc<Mutex<bool>>, Arc<Mutex<bool>>);

    impl Lookout for Words {
        fn name(&self) -> &'static str {
            "words"
        }

        fn look(&mut self) -> Option<Panicked> {
            self.0.lock().unwrap().clone()
        }

        fn says_well(&mut self) -> bool {
            *self.1.lock().unwrap()
        }

        fn resets_by_triple_fault(&mut self) -> bool {
            *self.2.lock().unwrap()
        }
    }

    struct Bench {
        words: Words,
        inquiry: Inquiry,
        now: Instant,
    }

    impl Bench {
        fn new(options: SourceOptions) -> Self {
            let (words, now) = (Words::default(), Instant::now());
            Self { inquiry: Inquiry::new(vec![Box::new(words.clone())], options, now), words, now }
        }

        fn say(&self, formatted: bool, others_stopped: bool, own_dump: OwnDump) {
            let cpu = others_stopped.then_some(3);
            let text = Some(if formatted { "text" } else { "format" }.to_owned());
            let written = Some(7);
            *self.words.0.lock().unwrap() =
                Some(Panicked { text, cpu, own_dump, formatted, others_stopped, written, ..QUIET });
        }

        /// The kernel goes on printing.
        fn print(&self) {
            let mut words = self.words.0.lock().unwrap();
            *words.as_mut().unwrap().written.as_mut().unwrap() += 1;
        }

        /// Looks until there is something to do, `within` so many times; how many it took.
        fn look_until_found(&mut self, within: u32) -> (u32, Finding) {
            for looks in 1..=within {
                if let Ruling::Dump(finding) = self.look() {
                    return (looks, *finding);
                }
            }
            panic!("nothing is found in {within} looks");
        }

        fn look(&mut self) -> Ruling {
            self.now += EVERY;
            self.inquiry.look(self.now)
        }

        fn hear(&mut self, source: &'static str, survivable: bool) -> Ruling {
            let event = PanicEvent {
                source,
                vcpu: None,
                at: self.now,
                text: None,
                detail: source.into(),
                survivable,
            };
            self.inquiry.hear(event, self.now)
        }
    }

    fn bench() -> Bench {
        Bench::new(SourceOptions::default())
    }

    fn found(ruling: Ruling) -> Finding {
        let Ruling::Dump(finding) = ruling else { panic!("not dumped: {ruling:?}") };
        *finding
    }

    fn sources(finding: &Finding) -> Vec<&str> {
        finding.signs.iter().map(|sign| sign.source).collect()
    }

    #[test]
    fn a_quiet_kernel_is_looked_at_for_ever_and_ends_without_a_dump() {
        let mut bench = bench();
        for _ in 0..1000 {
            assert!(matches!(bench.look(), Ruling::GoOn));
        }
        assert!(matches!(bench.inquiry.ended("reset", bench.now), Ruling::Over));
        assert!(!bench.inquiry.has_panicked());
    }

    #[test]
    fn a_settled_kernel_is_dumped_once_it_is_silent() {
        let mut bench = bench();
        bench.say(true, true, OwnDump::None);
        let (looks, finding) = bench.look_until_found(10);
        assert_eq!((finding.event.source, finding.event.vcpu), ("words", Some(3)));
        assert_eq!((looks, finding.waited), (5, SILENCE));
        assert_eq!(finding.event.text.as_deref(), Some("text"));
    }

    #[test]
    fn words_that_change_are_waited_for() {
        let mut bench = bench();
        bench.say(false, false, OwnDump::None);
        for _ in 0..6 {
            assert!(matches!(bench.look(), Ruling::GoOn));
        }
        bench.say(true, false, OwnDump::None);
        for _ in 0..6 {
            assert!(matches!(bench.look(), Ruling::GoOn));
        }
        bench.say(true, true, OwnDump::None);
        let (looks, finding) = bench.look_until_found(10);
        assert_eq!(looks, 5);
        assert!(!finding.event.detail.contains("not through"));
    }

    #[test]
    fn a_kernel_that_prints_is_heard_out_until_its_time_is_over() {
        let mut bench = bench();
        bench.say(true, true, OwnDump::None);
        for _ in 0..10 {
            assert!(matches!(bench.look(), Ruling::GoOn));
            bench.print();
        }
        assert_eq!(bench.look_until_found(10).0, 5);
        let mut chatty = Bench::new(SourceOptions::default());
        chatty.say(true, true, OwnDump::None);
        for _ in 0..50 {
            assert!(matches!(chatty.look(), Ruling::GoOn));
            chatty.print();
        }
        assert!(!found(chatty.look()).event.detail.contains("not through"));
    }

    #[test]
    fn a_kernel_that_never_settles_is_dumped_when_its_time_is_over() {
        let mut bench = bench();
        bench.say(false, false, OwnDump::None);
        let mut looks = 0;
        let finding = loop {
            looks += 1;
            if let Ruling::Dump(finding) = bench.look() {
                break finding;
            }
        };
        assert_eq!(looks, 51, "250 ms after the first");
        assert!(finding.event.detail.contains("not through"), "{}", finding.event.detail);
        let mut impatient =
            Bench::new(SourceOptions { settle: Some(Duration::ZERO), ..SourceOptions::default() });
        impatient.say(false, false, OwnDump::None);
        found(impatient.look());
    }

    #[test]
    fn a_first_sign_from_elsewhere_waits_for_the_kernel_and_stays_the_first() {
        let mut bench = bench();
        bench.say(true, false, OwnDump::None);
        assert!(matches!(bench.hear("console", true), Ruling::RunOn));
        bench.say(true, true, OwnDump::None);
        let (_, finding) = bench.look_until_found(10);
        assert_eq!((finding.event.source, finding.event.vcpu), ("console", Some(3)));
        assert_eq!(sources(&finding), ["console", "words"]);
    }

    #[test]
    fn a_sign_of_an_unknown_kernel_is_dumped_at_once() {
        let finding = found(bench().hear("pvpanic", true));
        assert_eq!((sources(&finding), finding.waited), (vec!["pvpanic"], Duration::ZERO));
    }

    #[test]
    fn a_line_on_the_console_is_no_sign_where_the_kernel_says_that_it_is_well() {
        let mut bench = bench();
        *bench.words.1.lock().unwrap() = true;
        assert!(matches!(bench.hear("console", true), Ruling::RunOn));
        assert!(!bench.inquiry.has_panicked());
        assert_eq!(sources(&found(bench.hear("pvpanic", true))), ["pvpanic"]);
    }

    #[test]
    fn a_kernel_that_says_that_it_is_through_is_dumped_at_once_and_one_that_will_say_so_is_waited_for() {
        let mut bench = bench();
        bench.say(true, true, OwnDump::None);
        let finished = |bench: &Bench, finished| {
            bench.words.0.lock().unwrap().as_mut().unwrap().finished = Some(finished);
        };
        finished(&bench, false);
        for _ in 0..20 {
            assert!(matches!(bench.look(), Ruling::GoOn));
        }
        finished(&bench, true);
        assert!(!found(bench.look()).event.detail.contains("not through"));
    }

    #[test]
    fn a_kernel_that_stalls_is_not_waited_for_as_long_as_one_that_goes_on() {
        let mut bench = bench();
        bench.say(true, false, OwnDump::None);
        bench.words.0.lock().unwrap().as_mut().unwrap().patience = Duration::from_secs(60);
        for _ in 0..2000 {
            assert!(matches!(bench.look(), Ruling::GoOn));
            bench.print();
        }
        let (looks, finding) = bench.look_until_found(500);
        assert_eq!(looks, 401, "2 s");
        assert!(finding.event.detail.contains("not through"));
    }

    #[test]
    fn a_suspicion_is_told_with_what_comes_of_it() {
        let mut bench = bench();
        bench.inquiry.suspect("watchdog", bench.now);
        assert!(!bench.inquiry.has_panicked());
        bench.now += EVERY;
        assert_eq!(sources(&found(bench.hear("pvpanic", true))), ["watchdog", "pvpanic"]);
    }

    #[test]
    fn a_guest_that_cannot_run_on_is_not_waited_for() {
        let mut bench = bench();
        assert_eq!(found(bench.hear("triple-fault", false)).event.source, "triple-fault");
        let mut panicked = Bench::new(SourceOptions::default());
        panicked.say(false, false, OwnDump::None);
        let finding = found(panicked.hear("triple-fault", false));
        assert_eq!(finding.event.source, "words");
        assert!(finding.event.detail.contains("triple-fault"), "{}", finding.event.detail);
    }

    #[test]
    fn a_triple_fault_that_the_kernel_means_is_a_reset_unless_it_has_panicked() {
        let mut well = bench();
        *well.words.2.lock().unwrap() = true;
        assert!(matches!(well.hear(TRIPLE_FAULT, false), Ruling::Over));
        assert!(!well.inquiry.has_panicked());
        assert_eq!(found(well.hear("kvm-error", false)).event.source, "kvm-error");

        let mut panicked = bench();
        *panicked.words.2.lock().unwrap() = true;
        panicked.say(true, true, OwnDump::None);
        assert_eq!(found(panicked.hear(TRIPLE_FAULT, false)).event.source, "words");
    }

    #[test]
    fn an_end_after_a_panic_is_one_even_while_the_kernel_is_waited_for() {
        let mut bench = bench();
        bench.say(true, true, OwnDump::None);
        assert!(found(bench.inquiry.ended("power-off", bench.now)).event.detail.contains("power-off"));
        let mut waiting = Bench::new(SourceOptions::default());
        waiting.say(false, false, OwnDump::None);
        waiting.look();
        assert!(waiting.inquiry.has_panicked());
        found(waiting.inquiry.ended("reset", waiting.now));
    }

    #[test]
    fn a_guest_with_a_dumper_is_left_alone_until_it_ends_without_a_dump() {
        let mut bench = bench();
        bench.say(false, false, OwnDump::Configured);
        assert!(matches!(bench.look(), Ruling::Leave { .. }));
        assert!(matches!(bench.hear("console", true), Ruling::RunOn));
        assert_eq!(bench.inquiry.next_look(), None);
        bench.say(true, true, OwnDump::Over);
        assert!(matches!(bench.inquiry.ended("reset", bench.now), Ruling::Over));
        assert!(bench.inquiry.is_left_to_guest());
        for unfinished in [OwnDump::Configured, OwnDump::Running] {
            bench.say(true, true, unfinished);
            found(bench.inquiry.ended("reset", bench.now));
        }
    }

    #[test]
    fn a_request_dumps_at_any_time_and_forgets_no_sign() {
        assert_eq!(sources(&bench().inquiry.request("SIGUSR1", Instant::now())), [REQUEST]);

        let mut waiting = bench();
        waiting.say(false, false, OwnDump::None);
        waiting.look();
        let finding = waiting.inquiry.request("SIGUSR1", waiting.now + EVERY);
        assert_eq!((finding.event.source, finding.waited), ("words", EVERY));
        assert!(finding.event.detail.contains("SIGUSR1"), "{}", finding.event.detail);
        assert_eq!(sources(&finding), ["words", REQUEST]);

        let mut left = bench();
        left.say(true, true, OwnDump::Configured);
        left.look();
        let finding = left.inquiry.request("SIGUSR1", left.now + EVERY);
        assert_eq!((finding.event.source, finding.event.vcpu), (REQUEST, Some(3)));
        assert_eq!(sources(&finding), ["words", REQUEST]);
    }

    #[test]
    fn a_kernel_that_is_to_jump_into_its_crash_kernel_is_not_waited_for() {
        let mut bench = Bench::new(SourceOptions { ignore_crashloaded: true, ..SourceOptions::default() });
        bench.say(false, false, OwnDump::CrashKernel);
        assert!(matches!(bench.look(), Ruling::GoOn), "it has not said yet why it panicked");
        bench.say(true, false, OwnDump::CrashKernel);
        assert_eq!(bench.look_until_found(10).0, 1);
    }

    #[test]
    fn a_dumper_does_not_count_if_the_user_says_so() {
        let mut bench = Bench::new(SourceOptions { ignore_crashloaded: true, ..SourceOptions::default() });
        for own in [OwnDump::Configured, OwnDump::Running] {
            bench.say(true, true, own);
            assert!(matches!(bench.hear("console", true), Ruling::RunOn));
            bench.look_until_found(10);
        }
        for own in [OwnDump::CrashKernel, OwnDump::Over] {
            bench.say(true, true, own);
            found(bench.hear("console", true));
        }
        found(bench.inquiry.ended("reset", bench.now));
    }
}
