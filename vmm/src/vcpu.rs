//! One virtual CPU: the thread that runs it (`Vcpu`) and the controller's end of it (`VcpuHandle`).
//!
//! A vCPU thread never pauses the machine and never waits for another vCPU: it would wait for itself. What it cannot
//! go on from it reports, then it waits for its next command.
//!
//! ```text
//! Running --(a device says park, an exit ends the run)--> Waiting --(run on)--> Running
//! Running, Waiting --(park)--> Parked: pending access completed, registers read and handed over --(finish)--> gone
//! ```

mod orders;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use netdump::vmcore::cpu::{Activity, CpuState};
use nix::time::{ClockId, clock_gettime};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::{AfterWrite, Bus};
use crate::events::{EventSender, MachineEvent, PanicEvent, set_current_vcpu};
use crate::hyperv::HypervMsrs;
use crate::panic::ExitHook;
use crate::sys;
use crate::x86_64::regs;
use orders::{Command, Control};

/// Parts of the longest access, rounded up generously: KVM cuts at pages and, for MMIO, every 8 bytes.
const MOST_PARTS: usize = 16;

/// A vCPU that has stopped, sent to whoever pauses the machine.
#[derive(Debug)]
pub(crate) struct Parked {
    /// When it stopped executing guest instructions.
    pub(crate) at: Instant,
    /// Its state.
    pub(crate) state: CpuState,
}

/// Exits from which a vCPU does not go on by itself. KVM's other exits never leave this file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Triple fault, or another shutdown condition of the CPU.
    Shutdown,
    /// KVM gave up on an instruction or on itself.
    InternalError {
        /// KVM's suberror; 1 is an instruction that it could not emulate.
        suberror: u32,
    },
    /// The CPU refused the guest's state.
    FailEntry {
        /// The hardware's reason code.
        reason: u64,
    },
    /// The guest asked KVM for a reset or power-off.
    SystemEvent(u32),
    /// An exit that nothing here asked for, or an error of KVM_RUN.
    Unexpected(String),
}

/// What a look at a running vCPU shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Which one.
    pub vcpu: u32,
    /// Whether it runs.
    pub activity: Activity,
    /// Its instruction pointer.
    pub rip: u64,
    /// Its flags.
    pub rflags: u64,
    /// Whether it is in the most privileged mode.
    pub is_kernel: bool,
    /// How often it has come out of the guest for a device.
    pub accesses: u64,
    /// CPU time that its thread has used.
    pub cpu_time: Duration,
}

/// The thread's end: runs the guest's instructions.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) index: u32,
    pub(crate) fd: VcpuFd,
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    /// Those that this process keeps for the guest.
    pub(crate) msrs: Option<Arc<HypervMsrs>>,
    pub(crate) exit_hooks: Arc<Vec<ExitHook>>,
    /// How often it has come out of the guest for a device.
    pub(crate) accesses: u64,
    pub(crate) events: EventSender,
    pub(crate) parked: mpsc::Sender<Parked>,
}

/// The controller's end.
#[derive(Debug)]
pub(crate) struct VcpuHandle {
    index: u32,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// Whether the thread goes on after an exit or waits for orders.
enum Next {
    Run,
    Wait,
}

/// The signal that makes KVM_RUN return. Its handler does nothing: the interruption is the message.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the kick signal's handler, once for the process.
pub(crate) fn register_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), nothing).map_err(Into::into)
}

impl Vcpu {
    /// Starts the thread.
    pub(crate) fn start(self) -> io::Result<VcpuHandle> {
        let control = Arc::new(Control::new());
        let index = self.index;
        let mine = control.clone();
        let thread =
            std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || self.run(&mine))?;
        Ok(VcpuHandle { index, control, thread: Some(thread) })
    }

    fn run(mut self, control: &Control) {
        let _span = tracing::info_span!("vcpu", id = self.index).entered();
        set_current_vcpu(self.index);
        loop {
            let orders = *control.orders();
            match orders.command {
                Command::Run => {
                    self.answer(control);
                    if let Next::Wait = self.step() {
                        control.wait_for_news(orders);
                    }
                }
                Command::Park => {
                    self.park();
                    control.wait_while_parked();
                }
                Command::Finish => return,
            }
        }
    }

    /// Does what was asked of a vCPU that goes on running.
    fn answer(&mut self, control: &Control) {
        if control.nmi.take()
            && let Err(error) = regs::send_nmi(&self.fd)
        {
            tracing::debug!(%error, "the NMI cannot be sent");
        }
        if control.glance.take()
            && let Ok((regs, sregs)) = self.fd.get_regs().and_then(|regs| Ok((regs, self.fd.get_sregs()?)))
        {
            self.events.send(MachineEvent::Glance(Glance {
                vcpu: self.index,
                activity: self.activity(),
                rip: regs.rip,
                rflags: regs.rflags,
                is_kernel: sregs.ss.dpl == 0,
                accesses: self.accesses,
                cpu_time: clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
                    .map_or(Duration::ZERO, Duration::from),
            }));
        }
    }

    /// Runs the guest until the next exit and handles it.
    fn step(&mut self) -> Next {
        let exit = self.fd.run();
        if exit.as_ref().is_ok_and(|exit| !matches!(exit, VcpuExit::Intr)) {
            self.accesses += 1;
        }
        let exit = match exit {
            Ok(VcpuExit::Intr) => return Next::Run,
            Ok(VcpuExit::IoOut(port, data)) => return after(self.ports.write(port.into(), data)),
            Ok(VcpuExit::IoIn(port, data)) => {
                self.ports.read(port.into(), data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => return after(self.mmio.write(address, data)),
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.mmio.read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                let value = self.msrs.as_ref().and_then(|msrs| msrs.read(exit.index, self.index));
                (*exit.data, *exit.error) = (value.unwrap_or(0), u8::from(value.is_none()));
                return Next::Run;
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                let done = self.msrs.as_ref().and_then(|msrs| msrs.write(exit.index, exit.data));
                *exit.error = u8::from(done.is_none());
                return after(done.unwrap_or(AfterWrite::Run));
            }
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::FailEntry(reason, _)) => Exit::FailEntry { reason },
            Ok(VcpuExit::SystemEvent(kind, _)) => Exit::SystemEvent(kind),
            Ok(VcpuExit::InternalError) => {
                Exit::InternalError { suberror: sys::internal_suberror(&mut self.fd) }
            }
            Ok(other) => Exit::Unexpected(format!("{other:?}")),
            // EINTR: kicked. EAGAIN: an application processor was just started.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Next::Run,
            Err(error) => Exit::Unexpected(format!("KVM_RUN: {error}")),
        };
        self.report(&exit);
        Next::Wait
    }

    /// Tells the event loop why this vCPU cannot go on: the first panic source that recognises the exit names it.
    fn report(&self, exit: &Exit) {
        let event = self.exit_hooks.iter().find_map(|hook| hook(exit)).map_or_else(
            || self.plain_event(exit),
            |found| {
                MachineEvent::Panic(PanicEvent {
                    source: found.source,
                    vcpu: Some(self.index),
                    at: Instant::now(),
                    text: None,
                    detail: found.detail,
                    survivable: found.survivable,
                })
            },
        );
        self.events.send(event);
    }

    fn plain_event(&self, exit: &Exit) -> MachineEvent {
        match exit {
            Exit::Shutdown => MachineEvent::Reset("triple fault"),
            Exit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN) => MachineEvent::PowerOff,
            Exit::SystemEvent(KVM_SYSTEM_EVENT_RESET) => MachineEvent::Reset("KVM system event"),
            other => MachineEvent::Failed { vcpu: self.index, reason: format!("{other:?}") },
        }
    }

    /// Completes a half-done access, then reads the state and hands it over.
    ///
    /// After an exit for a port or MMIO access the instruction is only finished by the next KVM_RUN; until then RIP
    /// still points at it. With `immediate_exit` KVM finishes it and returns before the next instruction.
    fn park(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // An access that crosses a page or is wider than 8 bytes comes in several parts, an exit each.
        for _ in 0..MOST_PARTS {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    let _ = self.ports.write(port.into(), data);
                }
                Ok(VcpuExit::IoIn(port, data)) => self.ports.read(port.into(), data),
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    let _ = self.mmio.write(address, data);
                }
                Ok(VcpuExit::MmioRead(address, data)) => self.mmio.read(address, data),
                _ => break,
            }
        }
        self.fd.set_kvm_immediate_exit(0);
        let at = Instant::now();
        let registers = regs::read_registers(&self.fd)
            .map_err(|error| tracing::warn!(%error, "this vCPU's registers cannot be read"))
            .ok()
            .map(Box::new);
        let state = CpuState { index: self.index, activity: self.activity(), registers };
        // A controller that gave up waiting does not listen any more.
        let _ = self.parked.send(Parked { at, state });
    }

    fn activity(&self) -> Activity {
        match self.fd.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_RUNNABLE) => Activity::Running,
            Ok(KVM_MP_STATE_HALTED) => Activity::Halted,
            Ok(_) => Activity::NotStarted,
            Err(_) => Activity::Running,
        }
    }
}

fn after(write: AfterWrite) -> Next {
    match write {
        AfterWrite::Run => Next::Run,
        AfterWrite::Park => Next::Wait,
    }
}

impl VcpuHandle {
    /// The vCPU's number.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Asks it to park. The caller keeps kicking until it has: a kick that arrives just before KVM_RUN is lost.
    pub(crate) fn park(&self) {
        self.control.change(|orders| orders.command = Command::Park);
    }

    /// Makes it leave the guest.
    pub(crate) fn kick(&self) {
        if let Some(thread) = &self.thread {
            // The only failure is a thread that has ended, and that one is out of the guest.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Asks a vCPU that runs for a [`Glance`], which comes as an event; one that does not run gives none. A kick that comes
    /// just before KVM_RUN is lost, and the answer then late.
    pub(crate) fn glance(&self) {
        self.control.glance.ask();
        self.kick();
    }

    /// Sends an NMI to a vCPU that runs.
    pub(crate) fn nmi(&self) {
        self.control.nmi.ask();
        self.kick();
    }

    /// Lets a vCPU that waits after an event run on.
    pub(crate) fn run_on(&self) {
        self.control.change(|orders| orders.run_on += 1);
    }

    /// Asks the thread to end.
    pub(crate) fn finish(&self) {
        self.control.change(|orders| orders.command = Command::Finish);
        self.kick();
    }

    /// Whether the thread has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for a thread that has been told to finish.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; nothing more can be learned from it here.
            let _ = thread.join();
        }
    }
}
