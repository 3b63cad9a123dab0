//! The whole: builds the machine in order, runs its event loop, and turns a panic into a dump. The only file that knows
//! everyone; it holds lists, not details.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netdump::link::LinkError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use thiserror::Error;

use crate::aftermath::Aftermath;
use crate::boot::{self, BootError, KernelImage, RestoreError};
use crate::boot_disk::BootDiskError;
use crate::bus::BusError;
use crate::config::{OnPanic, OnReset, Virtio};
use crate::console::{Console, ConsoleOutput};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::VirtioDevices;
use crate::devices::virtio::blk::{Blk, Disk, DiskError};
use crate::devices::virtio::net::Sending;
use crate::devices::virtio::rng::Rng;
use crate::events::{self, EventQueue, MachineEvent};
pub use crate::host::Host;
use crate::input::Input;
use crate::memory;
use crate::nic::Nic;
use crate::panic::inquiry::{Finding, Inquiry, Ruling};
use crate::panic::watchdog::{self, Order, Watchdog};
use crate::panic::{self, Armed, Wakeup, WatchedGuest};
use crate::platform::{Platform, PlatformError};
use crate::report::{Event, ExitStatus, Observer};
use crate::signals::Signals;
use crate::sys::tap::TapError;
use crate::vm::{VcpuEnvironment, Vm, VmBuilder, VmError};
use crate::x86_64::firmware;

/// Why the VMM itself failed.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant is the error of the module it names")]
pub enum MachineError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("guest memory")]
    Memory(#[from] memory::MemoryError),
    #[error("writing firmware tables into guest memory")]
    Firmware(#[source] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Image(#[from] RestoreError),
    #[error(transparent)]
    BootDisk(#[from] BootDiskError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("arming the panic sources")]
    Source(#[from] BusError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Disk(#[from] DiskError),
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
    #[error("--crash-dir {0} is not a folder")]
    CrashDir(PathBuf),
}

fn os(doing: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Os { doing, source }
}

/// Runs the guest until it is over, however often it boots. `console` makes the output of each boot's console.
pub fn run(
    host: &mut Host<'_>,
    console: &mut dyn FnMut() -> ConsoleOutput,
    observer: &mut dyn Observer,
) -> Result<ExitStatus, MachineError> {
    // Blocked before any thread starts, so that every thread inherits it and only the event loop sees these signals.
    let signals = Signals::block().map_err(os("blocking signals"))?;
    let mut nic = host.vm.tap.as_ref().map(|tap| Nic::open(tap.clone(), host.vm.mac)).transpose()?;
    let disks = host.disks()?;
    let route = host.check_link(nic.as_ref())?;
    let mut input = Input::open();
    loop {
        host.restore()?;
        let mut machine = Machine::build(host, console(), nic.as_mut(), &disks, observer)?;
        // Nothing of the file is needed while the guest runs, and it may be larger than all else here.
        host.release();
        let host = &*host;
        let end = machine.run(&signals, &mut input, observer)?;
        let verdict = match end {
            End::PowerOff => return Ok(machine.status_without_panic()),
            End::Stopped => return Ok(machine.status_without_panic()),
            End::Reset if machine.inquiry.is_left_to_guest() => {
                machine.after_panic(host.vm.on_panic, ExitStatus::NotDumped)
            }
            End::Reset if host.vm.on_reset == OnReset::Exit => return Ok(ExitStatus::PoweredOff),
            // A guest that resets faster than signals are looked at must not outrun them.
            End::Reset if signals.stop_requested().is_some() => return Ok(ExitStatus::PoweredOff),
            End::Reset => Verdict::BootAgain,
            End::Panic(panic) => {
                let nic = nic.as_ref();
                let mut ending = Aftermath { host, signals: &signals, observer, nic, route: route.as_ref() };
                let status = ending.dump(&mut machine.vm, &machine.virtio, &panic);
                // Whoever interrupted the dump wants the VMM to end, not the guest to boot again.
                let policy =
                    if signals.stop_requested().is_some() { OnPanic::Exit } else { host.vm.on_panic };
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

/// Linux takes back no frame before the card has given it back, so it need not wait until each has left.
fn sending_for(image: &KernelImage) -> Sending {
    if image.is_linux_kernel() { Sending::ByWorker } else { Sending::AtOnce }
}

/// Why the event loop ended.
enum End {
    PowerOff,
    Reset,
    Stopped,
    Panic(Box<Finding>),
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
    virtio: VirtioDevices,
    wakeups: Vec<Wakeup>,
    started: Instant,
    ask_console_at: Option<Instant>,
    inquiry: Inquiry,
    watchdog: Option<Watchdog>,
}

impl Machine {
    fn build(
        host: &Host<'_>,
        output: ConsoleOutput,
        nic: Option<&mut Nic>,
        disks: &[Arc<Disk>],
        observer: &mut dyn Observer,
    ) -> Result<Self, MachineError> {
        let memory = memory::create(host.vm.memory)?;
        let vm = VmBuilder::new(memory.clone())?;
        let (sender, events) = events::channel().map_err(os("creating an event channel"))?;
        let transport = host.vm.virtio.unwrap_or_else(|| Virtio::for_image(&host.image));
        let mut platform = Platform::new(vm, sender, transport);
        let guest =
            WatchedGuest { memory: &memory, symbols: host.image.symbols(), cpus: host.vm.cpus.into() };
        let Armed { console: watchers, exits, wakeups, lookouts, hyperv } =
            panic::arm(&host.vm.sources, &mut platform, &guest, host.vm.source_options)?;
        let console = Console::new(output, watchers);
        let serial = platform.add_devices(console.clone())?;
        if let Some(nic) = nic {
            platform.add_virtio("virtio-net", nic.plug(sending_for(&host.image)), &memory)?;
        }
        for (number, disk) in disks.iter().enumerate() {
            platform.add_virtio(
                "virtio-blk",
                Arc::new(Mutex::new(Blk::new(disk.clone(), number))),
                &memory,
            )?;
        }
        platform.add_virtio("virtio-rng", Arc::new(Mutex::new(Rng::new())), &memory)?;
        let hardware = platform.finish(host.vm.cpus)?;
        firmware::write(&memory, &hardware).map_err(MachineError::Firmware)?;
        let protocol = boot::protocol_for(&host.image, host.vm.boot)?;
        let entry = protocol.load(&host.image, host.handover(), &hardware, &memory)?;
        observer.event(&Event::Booting {
            image: &host.image.path().to_string_lossy(),
            memory: host.vm.memory.bytes(),
            cpus: host.vm.cpus,
            protocol: protocol.name(),
        });
        let environment = VcpuEnvironment {
            ports: Arc::new(platform.ports),
            mmio: Arc::new(platform.mmio),
            exit_hooks: Arc::new(exits),
            events: platform.events,
            hyperv,
            cpu_mask: host.vm.cpu_mask.clone(),
        };
        let started = Instant::now();
        let vm = platform.vm.start(host.vm.cpus, &entry, &environment)?;
        Ok(Self {
            watchdog: Wakeup::hang(&wakeups).map(|limit| Watchdog::new(limit, host.vm.cpus.into(), started)),
            vm,
            events,
            console,
            serial,
            virtio: platform.virtio,
            wakeups,
            started,
            ask_console_at: None,
            inquiry: Inquiry::new(lookouts, host.vm.source_options, started),
        })
    }

    /// The event loop: sleeps until something happens that ends this boot.
    fn run(
        &mut self,
        signals: &Signals,
        input: &mut Input,
        observer: &mut dyn Observer,
    ) -> Result<End, MachineError> {
        loop {
            let woken = self.wait(signals, input)?;
            while woken && let Some(event) = self.events.next() {
                if let Some(end) = self.handle(event, observer)? {
                    return Ok(end);
                }
            }
            while woken && let Some(signal) = signals.next() {
                if self.wakeups.contains(&Wakeup::Signal(signal)) {
                    return Ok(End::Panic(self.inquiry.request(signal.as_str(), Instant::now())));
                }
                if signal != Signal::SIGUSR1 {
                    observer.event(&Event::Stopped { by: signal.as_str() });
                    return Ok(End::Stopped);
                }
            }
            let now = Instant::now();
            if self.dump_at().is_some_and(|at| now >= at) {
                return Ok(End::Panic(self.inquiry.request("the time of --dump-after is over", now)));
            }
            if let Some(end) = self.watch(now, observer) {
                return Ok(end);
            }
            let ruling = self.inquiry.look(now);
            if let Some(end) = self.obey(ruling, observer) {
                return Ok(end);
            }
            if self.ask_console_at.is_some_and(|at| now >= at) {
                self.ask_console_at = None;
                self.console.ask(now);
            }
        }
    }

    /// Waits; whether something happened, and not only the time passed until the next thing to do.
    fn wait(&mut self, signals: &Signals, input: &mut Input) -> Result<bool, MachineError> {
        let now = Instant::now();
        let held_back = input.held_back_until(now);
        let watchdog = self.watchdog.as_ref().map(Watchdog::next);
        let next = [self.dump_at(), self.ask_console_at, held_back, self.inquiry.next_look(), watchdog];
        let next = next.into_iter().flatten().min();
        // A millisecond more: poll counts in whole ones, and waking early would only mean to wait again.
        let timeout = next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
        let timeout =
            timeout.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        let watched = [self.events.as_fd(), signals.as_fd()];
        let mut fds: Vec<_> = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into();
        fds.extend(input.fd(now).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let woken = match poll(&mut fds, timeout) {
            Ok(ready) => ready > 0,
            Err(nix::errno::Errno::EINTR) => true,
            Err(error) => return Err(os("waiting for events")(error.into())),
        };
        let typed = fds.get(2).and_then(|fd| fd.any()).unwrap_or(false);
        drop(fds);
        if typed {
            input.pass_on(&self.serial);
        }
        Ok(woken)
    }

    fn handle(
        &mut self,
        event: MachineEvent,
        observer: &mut dyn Observer,
    ) -> Result<Option<End>, MachineError> {
        match event {
            MachineEvent::Panic(panic) => {
                let by = panic.source;
                let ruling = self.inquiry.hear(panic, Instant::now());
                if matches!(ruling, Ruling::Over) {
                    observer.event(&Event::Reset { by });
                }
                return Ok(self.obey(ruling, observer));
            }
            MachineEvent::CrashLoaded { vcpu } => {
                self.inquiry.leave();
                observer.event(&Event::CrashLoaded { vcpu, why: "its own crash kernel takes over" });
            }
            MachineEvent::Reset(by) => {
                observer.event(&Event::Reset { by });
                return Ok(Some(self.ended(&format!("reset by {by}"), End::Reset)));
            }
            MachineEvent::PowerOff => {
                observer.event(&Event::PowerOff);
                return Ok(Some(self.ended("power-off", End::PowerOff)));
            }
            MachineEvent::Failed { vcpu, reason } => return Err(MachineError::Vcpu { vcpu, reason }),
            MachineEvent::Glance(glance) => {
                if let Some(watchdog) = &mut self.watchdog {
                    watchdog.see(glance, Instant::now());
                }
            }
            MachineEvent::AskConsole(after) => self.ask_console_at = Some(Instant::now() + after),
        }
        Ok(None)
    }

    /// Does what the watchdog wants.
    fn watch(&mut self, now: Instant, observer: &mut dyn Observer) -> Option<End> {
        match self.watchdog.as_mut()?.tick(now)? {
            Order::Look => self.vm.glance(),
            Order::Nmi => {
                self.inquiry.suspect(watchdog::NAME, now);
                self.vm.nmi();
            }
            Order::Hung(event) => {
                let ruling = self.inquiry.hear(event, now);
                return self.obey(ruling, observer);
            }
        }
        None
    }

    /// The end of a guest that switched itself off or asks for a reset: a panic, if its memory says so.
    fn ended(&mut self, by: &str, end: End) -> End {
        match self.inquiry.ended(by, Instant::now()) {
            Ruling::Dump(finding) => End::Panic(finding),
            _ => end,
        }
    }

    fn obey(&mut self, ruling: Ruling, observer: &mut dyn Observer) -> Option<End> {
        match ruling {
            Ruling::GoOn => {}
            Ruling::RunOn => self.vm.run_on(),
            Ruling::Dump(finding) => return Some(End::Panic(finding)),
            Ruling::Leave { vcpu, why } => {
                observer.event(&Event::CrashLoaded { vcpu, why });
                self.vm.run_on();
            }
            // A guest that cannot run on, which only a panic source told.
            Ruling::Over => return Some(End::Reset),
        }
        None
    }

    fn dump_at(&self) -> Option<Instant> {
        Wakeup::time(&self.wakeups).map(|time| self.started + time)
    }

    fn status_without_panic(&self) -> ExitStatus {
        if self.inquiry.has_panicked() { ExitStatus::NotDumped } else { ExitStatus::PoweredOff }
    }

    fn after_panic(&self, policy: OnPanic, status: ExitStatus) -> Verdict {
        match policy {
            OnPanic::Exit => Verdict::Exit(status),
            OnPanic::Reset => Verdict::BootAgain,
            OnPanic::Hold => Verdict::Hold(status),
        }
    }
}
