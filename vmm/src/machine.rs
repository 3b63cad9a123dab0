//! The whole: builds the machine in order, runs its event loop, and turns a panic into a dump. The only file that knows
//! everyone; it holds lists, not details.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use netdump::facts::{self, GuestFacts};
use netdump::link::LinkError;
use netdump::vmcore::{CoreNotes, PhysicalMemory};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, BootError, KernelImage};
use crate::bus::{Bus, BusDevice, BusError};
use crate::config::{DumpConfig, OnPanic, OnReset, Target, VmConfig, Wishes};
use crate::console::{Console, ConsoleOutput};
use crate::devices::serial::{self, Line, SerialPort};
use crate::devices::{i8042, reset, sleep};
use crate::dump::{self, Dumped, Job};
use crate::events::{self, EventQueue, EventSender, MachineEvent, PanicEvent};
use crate::input::Input;
use crate::link::TapRoute;
use crate::memory::{self, GuestMemory};
use crate::nic::Nic;
use crate::panic::{Places, REQUEST, Wakeup};
use crate::report::{
    Event, ExitStatus, GuestReport, Observer, PanicReport, PanicSeen, PauseReport, TargetReport, memory_of,
};
use crate::signals::Signals;
use crate::sys::tap::TapError;
use crate::vm::{PausedGuest, VcpuEnvironment, Vm, VmBuilder, VmError};
use crate::x86_64::layout;

/// How long vCPUs get to stop. One that needs longer is blocked in this process, not in the guest.
const PAUSE_DEADLINE: Duration = Duration::from_secs(2);

/// Why the VMM itself failed.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant is the error of the module it names")]
pub enum MachineError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("guest memory")]
    Memory(#[from] memory::MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("building the machine")]
    Bus(#[from] BusError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{doing}")]
    Os {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("vCPU {vcpu} cannot be run: {reason}")]
    Vcpu { vcpu: u32, reason: String },
    #[error("writing the report to {path}")]
    Report {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn os(doing: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Os { doing, source }
}

/// Everything that outlives one boot of the guest.
#[derive(Debug)]
pub struct Host<'a> {
    /// The machine's options.
    pub vm: &'a VmConfig,
    /// The dump's options.
    pub dump: &'a DumpConfig,
    /// What is booted.
    pub image: &'a KernelImage,
    /// Where `--report` goes.
    pub report: Option<PathBuf>,
}

impl Host<'_> {
    /// Finds out before the guest starts, not after it panicked, whether the link that the options name can be used.
    fn check_link(&self, nic: Option<&Nic>) -> Result<Option<TapRoute>, MachineError> {
        if !self.dump.enabled {
            return Ok(None);
        }
        let link = self.dump.link_for(self.dump.server, nic.is_some());
        Ok(link.check(nic.map(Nic::tap))?)
    }
}

/// Runs the guest until it is over, however often it boots. `console` makes the output of each boot's console.
pub fn run(
    host: &Host<'_>,
    console: &mut dyn FnMut() -> ConsoleOutput,
    observer: &mut dyn Observer,
) -> Result<ExitStatus, MachineError> {
    // Blocked before any thread starts, so that every thread inherits it and only the event loop sees these signals.
    let signals = Signals::block().map_err(os("blocking signals"))?;
    let mut nic = host.vm.tap.as_ref().map(|tap| Nic::open(tap.clone(), host.vm.mac)).transpose()?;
    let route = host.check_link(nic.as_ref())?;
    let mut input = Input::open();
    loop {
        let mut machine = Machine::build(host, console(), nic.as_mut(), observer)?;
        let end = machine.run(&signals, &mut input, observer)?;
        let verdict = match end {
            End::PowerOff => return Ok(machine.status_without_panic()),
            End::Stopped => return Ok(ExitStatus::PoweredOff),
            End::Reset if machine.crash_loaded => {
                machine.after_panic(host.vm.on_panic, ExitStatus::NotDumped)
            }
            End::Reset if host.vm.on_reset == OnReset::Exit => return Ok(ExitStatus::PoweredOff),
            End::Reset => Verdict::BootAgain,
            End::Panic(panic) => {
                let nic = nic.as_ref();
                let mut ending =
                    PanicEnding { host, signals: &signals, observer, nic, route: route.as_ref() };
                let status = ending.dump(&mut machine, &panic)?;
                // Whoever interrupted the dump wants the VMM to end, not the guest to boot again.
                let policy = if signals.stop_requested().is_some() { OnPanic::Exit } else { host.vm.on_panic };
                machine.after_panic(policy, status)
            }
        };
        match verdict {
            Verdict::BootAgain => {}
            Verdict::Exit(status) => return Ok(status),
            Verdict::Hold(status) => {
                observer.event(&Event::Holding);
                signals.wait_for_stop();
                return Ok(status);
            }
        }
    }
}

/// Why the event loop ended.
enum End {
    PowerOff,
    Reset,
    Stopped,
    Panic(PanicEvent),
}

/// What follows.
enum Verdict {
    BootAgain,
    Exit(ExitStatus),
    Hold(ExitStatus),
}

/// One boot of the guest.
struct Machine {
    vm: Vm,
    events: EventQueue,
    console: Console,
    serial: Arc<Mutex<SerialPort>>,
    wakeups: Vec<Wakeup>,
    started: Instant,
    ask_console_at: Option<Instant>,
    crash_loaded: bool,
}

impl Machine {
    fn build(
        host: &Host<'_>,
        output: ConsoleOutput,
        nic: Option<&mut Nic>,
        observer: &mut dyn Observer,
    ) -> Result<Self, MachineError> {
        let memory = memory::create(host.vm.memory)?;
        let entry = boot::load(host.image, &host.vm.handover, &memory)?;
        let vm = VmBuilder::new(memory.clone())?;
        let (sender, events) = events::channel().map_err(os("creating an event channel"))?;
        let mut parts = Parts { ports: Bus::new(), mmio: Bus::new(), vm, sender };
        let (mut watchers, mut exits, mut wakeups) = (Vec::new(), Vec::new(), Vec::new());
        for source in &host.vm.sources {
            source.arm(&mut Places {
                ports: &mut parts.ports,
                console: &mut watchers,
                exits: &mut exits,
                wakeups: &mut wakeups,
                options: host.vm.source_options,
                events: &parts.sender,
            })?;
        }
        let console = Console::new(output, watchers);
        let serial = parts.add_platform(console.clone())?;
        if let Some(nic) = nic {
            parts.add_nic(nic, &memory)?;
        }
        let protocol = boot::protocol_for(host.image)?.name();
        observer.event(&Event::Booting {
            image: &host.image.path().to_string_lossy(),
            memory: host.vm.memory.bytes(),
            cpus: host.vm.cpus,
            protocol,
        });
        let environment = VcpuEnvironment {
            ports: Arc::new(parts.ports),
            mmio: Arc::new(parts.mmio),
            exit_hooks: Arc::new(exits),
            events: parts.sender,
        };
        let started = Instant::now();
        let vm = parts.vm.start(host.vm.cpus, &entry, &environment)?;
        Ok(Self { vm, events, console, serial, wakeups, started, ask_console_at: None, crash_loaded: false })
    }

    /// The event loop: sleeps until something happens that ends this boot.
    fn run(
        &mut self,
        signals: &Signals,
        input: &mut Input,
        observer: &mut dyn Observer,
    ) -> Result<End, MachineError> {
        loop {
            self.wait(signals, input)?;
            while let Some(event) = self.events.next() {
                if let Some(end) = self.handle(event, observer)? {
                    return Ok(end);
                }
            }
            while let Some(signal) = signals.next() {
                if self.wakeups.contains(&Wakeup::Signal(signal)) {
                    return Ok(End::Panic(request(signal.as_str())));
                }
                if signal != Signal::SIGUSR1 {
                    observer.event(&Event::Stopped { by: signal.as_str() });
                    return Ok(End::Stopped);
                }
            }
            let now = Instant::now();
            if self.dump_at().is_some_and(|at| now >= at) {
                return Ok(End::Panic(request("the time of --dump-after is over")));
            }
            if self.ask_console_at.is_some_and(|at| now >= at) {
                self.ask_console_at = None;
                self.console.ask(now);
            }
        }
    }

    fn wait(&mut self, signals: &Signals, input: &mut Input) -> Result<(), MachineError> {
        let next = self.dump_at().into_iter().chain(self.ask_console_at).min();
        // A millisecond more: poll counts in whole ones, and waking early would only mean to wait again.
        let timeout = next.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout =
            timeout.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        let watched = [self.events.as_fd(), signals.as_fd()];
        let mut fds: Vec<_> = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into();
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let listens = input.fd().filter(|_| serial.input_room() > 0);
        fds.extend(listens.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        drop(serial);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(os("waiting for events")(error.into())),
        }
        let typed = fds.get(2).and_then(|fd| fd.any()).unwrap_or(false);
        drop(fds);
        if typed {
            serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = input.read(serial.input_room());
            serial.input(&bytes);
        }
        Ok(())
    }

    fn handle(
        &mut self,
        event: MachineEvent,
        observer: &mut dyn Observer,
    ) -> Result<Option<End>, MachineError> {
        match event {
            MachineEvent::Panic(panic) if self.crash_loaded && panic.survivable => {
                tracing::info!(source = panic.source, "left to the guest's own crash kernel");
                self.vm.run_on();
            }
            MachineEvent::Panic(panic) => return Ok(Some(End::Panic(panic))),
            MachineEvent::CrashLoaded { vcpu } => {
                self.crash_loaded = true;
                observer.event(&Event::CrashLoaded { vcpu });
            }
            MachineEvent::Reset(by) => {
                observer.event(&Event::Reset { by });
                return Ok(Some(End::Reset));
            }
            MachineEvent::PowerOff => {
                observer.event(&Event::PowerOff);
                return Ok(Some(End::PowerOff));
            }
            MachineEvent::Failed { vcpu, reason } => return Err(MachineError::Vcpu { vcpu, reason }),
            MachineEvent::AskConsole(after) => self.ask_console_at = Some(Instant::now() + after),
        }
        Ok(None)
    }

    fn dump_at(&self) -> Option<Instant> {
        self.wakeups.iter().find_map(|wakeup| match wakeup {
            Wakeup::After(time) => Some(self.started + *time),
            Wakeup::Signal(_) => None,
        })
    }

    fn status_without_panic(&self) -> ExitStatus {
        if self.crash_loaded { ExitStatus::NotDumped } else { ExitStatus::PoweredOff }
    }

    fn after_panic(&self, policy: OnPanic, status: ExitStatus) -> Verdict {
        match policy {
            OnPanic::Exit => Verdict::Exit(status),
            OnPanic::Reset => Verdict::BootAgain,
            OnPanic::Hold => Verdict::Hold(status),
        }
    }
}

fn request(detail: &str) -> PanicEvent {
    PanicEvent {
        source: REQUEST,
        vcpu: None,
        at: Instant::now(),
        text: None,
        detail: detail.to_owned(),
        survivable: false,
    }
}

/// A machine that is being built.
struct Parts {
    ports: Bus,
    mmio: Bus,
    vm: VmBuilder,
    sender: EventSender,
}

impl Parts {
    /// The devices that every machine has.
    fn add_platform(&mut self, console: Console) -> Result<Arc<Mutex<SerialPort>>, MachineError> {
        let line = Line(Arc::new(self.interrupt(layout::COM1_IRQ)?));
        let serial = Arc::new(Mutex::new(SerialPort::new(line, console)));
        self.ports.insert("com1", layout::COM1, serial::LEN, serial.clone())?;
        let sender = self.sender.clone();
        self.add_port("i8042", layout::I8042, i8042::LEN, i8042::I8042::new(sender.clone()))?;
        self.add_port("reset", layout::RESET_CONTROL, reset::LEN, reset::ResetControl::new(sender.clone()))?;
        self.add_port("sleep", layout::SLEEP_CONTROL, sleep::LEN, sleep::SleepControl::new(sender))?;
        Ok(serial)
    }

    fn add_port(
        &mut self,
        name: &'static str,
        base: u64,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), BusError> {
        self.ports.insert(name, base, len, Arc::new(Mutex::new(device)))
    }

    fn add_nic(&mut self, nic: &mut Nic, memory: &GuestMemory) -> Result<(), MachineError> {
        let interrupt = self.interrupt(layout::VIRTIO_MMIO_IRQ)?;
        let device = nic.plug(memory.clone(), interrupt);
        self.mmio.insert("virtio-net", layout::VIRTIO_MMIO, layout::VIRTIO_MMIO_LEN, device)?;
        Ok(())
    }

    fn interrupt(&self, irq: u32) -> Result<EventFd, MachineError> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(os("creating an interrupt line"))?;
        self.vm.connect_irq(&line, irq)?;
        Ok(line)
    }
}

/// From the panic to the report.
struct PanicEnding<'a> {
    host: &'a Host<'a>,
    signals: &'a Signals,
    observer: &'a mut dyn Observer,
    nic: Option<&'a Nic>,
    route: Option<&'a TapRoute>,
}

impl PanicEnding<'_> {
    fn dump(&mut self, machine: &mut Machine, panic: &PanicEvent) -> Result<ExitStatus, MachineError> {
        let time = SystemTime::now();
        let guest = machine.vm.pause(PAUSE_DEADLINE);
        // After the vCPUs: a driver that runs could start the device again.
        if let Some(nic) = self.nic {
            nic.stop();
        }
        let facts = facts::gather(&guest, Some(self.host.image.symbols()));
        let seen = seen(panic, &facts, time);
        self.observer.event(&Event::Panic { seen: &seen });
        let pause = PauseReport {
            microseconds: micros(guest.stopped_at().saturating_duration_since(panic.at)),
            not_stopped: guest.not_stopped(),
        };
        self.observer.event(&Event::Paused { pause: &pause });
        let sent = self.host.dump.enabled.then(|| self.send(&guest, &seen, &facts, time));
        let status =
            sent.as_ref().map_or(ExitStatus::NotDumped, |sent| ExitStatus::of(sent.1.report.outcome));
        let report = self.report(&guest, seen, pause, facts, sent, status);
        self.observer.event(&Event::Dumped { report: &report });
        self.write(&report)?;
        Ok(status)
    }

    fn send(
        &mut self,
        guest: &PausedGuest<'_>,
        seen: &PanicSeen,
        facts: &GuestFacts,
        time: SystemTime,
    ) -> (TargetReport, Dumped) {
        let config = self.host.dump;
        let target = config.target(&Wishes {
            environment: facts.environment.as_deref().unwrap_or(&self.host.vm.handover.environment),
            seen: self.nic.and_then(Nic::last_ipv4),
            has_tap: self.nic.is_some(),
        });
        let target_report = report_target(&target);
        let notes = CoreNotes {
            panic_cpu: seen.vcpu,
            panic_source: Some(seen.source.to_owned()),
            panic_text: seen.text.clone(),
            panic_time: Some(seen.time),
            facts: facts.clone(),
        };
        let host_name = facts.host_name.clone().unwrap_or_else(|| config.name.clone());
        let route = self.route.filter(|_| target.link == config.link_for(config.server, self.nic.is_some()));
        let job = Job { config, target: &target, notes, host_name, time, route, nic: self.nic };
        let (signals, observer) = (self.signals, &mut *self.observer);
        let mut announced = false;
        let dumped = dump::run(&job, guest, &mut |progress| {
            if !std::mem::replace(&mut announced, true) {
                observer.event(&Event::Dumping { target: &target_report, length: progress.total });
            }
            observer.progress(progress);
            match signals.stop_requested() {
                Some(signal) => ControlFlow::Break(format!("interrupted by {}", signal.as_str())),
                None => ControlFlow::Continue(()),
            }
        });
        self.observer.dump_ended(&dumped.report);
        (target_report, dumped)
    }

    fn report(
        &self,
        guest: &PausedGuest<'_>,
        panic: PanicSeen,
        pause: PauseReport,
        facts: GuestFacts,
        sent: Option<(TargetReport, Dumped)>,
        status: ExitStatus,
    ) -> PanicReport {
        let (target, dumped) = sent.unzip();
        let (dump, core) = dumped.map(|dumped| (dumped.report, dumped.core)).unzip();
        PanicReport {
            image: self.host.image.path().display().to_string(),
            panic,
            pause,
            guest: GuestReport {
                os: facts.os,
                version: facts.version,
                host_name: facts.host_name.unwrap_or_else(|| self.host.dump.name.clone()),
                environment: facts.environment.unwrap_or_else(|| self.host.vm.handover.environment.clone()),
            },
            memory: memory_of(guest.ranges()),
            cpus: guest.cpus().to_vec(),
            target,
            dump,
            core: core.flatten(),
            exit_code: status.code(),
        }
    }

    /// Writes the report aside and renames it: whoever waits for the file never sees half of it.
    fn write(&self, report: &PanicReport) -> Result<(), MachineError> {
        let Some(path) = &self.host.report else { return Ok(()) };
        let aside = path.with_added_extension("partial");
        let json = serde_json::to_vec_pretty(report).expect("a report is plain data");
        std::fs::write(&aside, json)
            .and_then(|()| std::fs::rename(&aside, path))
            .map_err(|source| MachineError::Report { path: path.clone(), source })
    }
}

fn seen(panic: &PanicEvent, facts: &GuestFacts, time: SystemTime) -> PanicSeen {
    PanicSeen {
        source: panic.source,
        vcpu: panic.vcpu,
        // What the kernel formatted says more than its line on the console, which may be cut.
        text: facts.panic_text.clone().or_else(|| panic.text.clone()),
        detail: panic.detail.clone(),
        time: time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

fn report_target(target: &Target) -> TargetReport {
    TargetReport {
        link: target.link.to_string(),
        server: target.server.map(|server| server.to_string()),
        client: target.client.map(|client| client.to_string()),
        gateway: target.gateway.map(|gateway| gateway.to_string()),
        path: target.path.clone(),
        refused: target.refused.clone(),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
