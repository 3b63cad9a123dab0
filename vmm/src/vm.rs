//! The virtual machine: KVM's VM with its memory slots and interrupt controllers, its vCPUs, and how they stop.

use std::io;
use std::ops::{Deref, Range};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use netdump::vmcore::cpu::{Activity, CpuState};
use netdump::vmcore::{Findings, MemoryError, MemoryRange, PhysicalMemory};
use thiserror::Error;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::BootState;
use crate::bus::Bus;
use crate::events::EventSender;
use crate::hyperv::{self, HypervMsrs};
use crate::memory::{GuestMemory, next_touched, ranges_of, read, touched_from};
use crate::panic::ExitHook;
use crate::sys;
use crate::vcpu::{Parked, Vcpu, VcpuHandle, register_kick_handler};
use crate::x86_64::cpu_mask::CpuMask;
use crate::x86_64::{cpuid, layout, regs};

/// How long a kicked vCPU gets before it is kicked again: the first kick may have come just before KVM_RUN.
const KICK_AGAIN: Duration = Duration::from_micros(500);
/// How long vCPU threads get to end before they are left behind.
const FINISH_DEADLINE: Duration = Duration::from_secs(2);
/// Most vCPUs of a guest: APIC numbers are 8 bits wide, and 255 is the broadcast.
pub const MAX_CPUS: u8 = 254;

/// Why the virtual machine could not be made or run.
#[derive(Debug, Error)]
pub enum VmError {
    /// No /dev/kvm.
    #[error(
        "/dev/kvm does not exist: this machine offers no hardware virtualisation to Linux; enable it in the firmware \
         (VT-x, AMD-V), or nested virtualisation when this is itself a virtual machine, and load kvm-intel or kvm-amd"
    )]
    NoKvm,
    /// No permission to use /dev/kvm.
    #[error(
        "/dev/kvm may not be opened by this user: join its group (usually `sudo usermod -aG kvm $USER`, then log in again)"
    )]
    KvmForbidden,
    /// Anything else that KVM refused.
    #[error("KVM: {doing}")]
    Kvm {
        /// What was being done.
        doing: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A thread or signal handler could not be set up.
    #[error("{doing}")]
    Os {
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// More vCPUs than this host can run.
    #[error("{wanted} vCPUs are more than KVM on this host supports ({supported})")]
    TooManyCpus {
        /// How many were asked for.
        wanted: u8,
        /// How many KVM offers.
        supported: usize,
    },
}

fn kvm_error(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { doing, source }
}

/// Opens /dev/kvm, or says what is missing and how to get it.
pub fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|source| match source.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::KvmForbidden,
        _ => VmError::Kvm { doing: "opening /dev/kvm", source },
    })?;
    Ok(kvm)
}

/// KVM's VM, for all who hold on to it.
///
/// Field order matters: the VM goes before the memory that it maps.
#[derive(Debug)]
pub(crate) struct MappedVm {
    fd: VmFd,
    _memory: GuestMemory,
}

impl Deref for MappedVm {
    type Target = VmFd;

    fn deref(&self) -> &VmFd {
        &self.fd
    }
}

/// KVM's VM with memory, interrupt controllers and timer, before it has vCPUs.
#[derive(Debug)]
pub(crate) struct VmBuilder {
    kvm: Kvm,
    fd: Arc<MappedVm>,
    memory: GuestMemory,
}

/// The running machine.
#[derive(Debug)]
pub(crate) struct Vm {
    vcpus: Vec<VcpuHandle>,
    parked: mpsc::Receiver<Parked>,
    _fd: Arc<MappedVm>,
    memory: GuestMemory,
}

/// What vCPUs need from the rest of the machine.
#[derive(Debug)]
pub(crate) struct VcpuEnvironment {
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) exit_hooks: Arc<Vec<ExitHook>>,
    pub(crate) events: EventSender,
    /// The guest is to find Hyper-V.
    pub(crate) hyperv: Option<Arc<HypervMsrs>>,
    pub(crate) cpu_mask: CpuMask,
}

impl VmBuilder {
    /// Makes a VM around `memory`.
    pub(crate) fn new(memory: GuestMemory) -> Result<Self, VmError> {
        let kvm = open_kvm()?;
        let fd = kvm.create_vm().map_err(kvm_error("creating a virtual machine"))?;
        fd.set_tss_address(layout::KVM_TSS).map_err(kvm_error("placing the TSS"))?;
        fd.create_irq_chip().map_err(kvm_error("creating the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(kvm_error("creating the interval timer"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            sys::add_memory_slot(&fd, slot, region).map_err(kvm_error("mapping guest memory"))?;
        }
        let fd = Arc::new(MappedVm { fd, _memory: memory.clone() });
        Ok(Self { kvm, fd, memory })
    }

    /// KVM's VM, for what sends messages and takes notifications.
    pub(crate) fn kvm_vm(&self) -> &Arc<MappedVm> {
        &self.fd
    }

    /// Connects an eventfd to a pin of the interrupt controllers.
    pub(crate) fn connect_irq(&self, fd: &EventFd, irq: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(fd, irq).map_err(kvm_error("connecting an interrupt"))
    }

    /// Makes `count` vCPUs and starts them: the first at the kernel's entry, the others waiting for the guest's INIT
    /// and SIPI, which KVM's local APICs handle.
    pub(crate) fn start(self, count: u8, entry: &BootState, with: &VcpuEnvironment) -> Result<Vm, VmError> {
        self.check_cpu_count(count)?;
        register_kick_handler()
            .map_err(|source| VmError::Os { doing: "installing a signal handler", source })?;
        let (sender, parked) = mpsc::channel();
        let supported =
            cpuid::supported(&self.kvm).map_err(kvm_error("asking for supported CPU features"))?;
        let by_kvm = with.hyperv.is_some() && self.kvm.check_extension(Cap::Hyperv);
        if with.hyperv.is_some() && !by_kvm {
            hyperv::keep_msrs(&self.fd).map_err(kvm_error("taking over Hyper-V's MSRs"))?;
        }
        let has_tsc_deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        // All are made before any runs: the guest must find every CPU that it is told of.
        let vcpus = (0..count)
            .map(|index| {
                let fd = self.fd.create_vcpu(index.into()).map_err(kvm_error("creating a vCPU"))?;
                let clocks =
                    cpuid::Clocks { has_tsc_deadline, tsc_khz: fd.get_tsc_khz().ok().filter(|&khz| khz > 0) };
                let mut table = cpuid::adapt(&supported, index, count, clocks);
                if let Some(msrs) = &with.hyperv {
                    msrs.set_clock(clocks.tsc_khz);
                    table = hyperv::announce(&table, count, by_kvm, clocks.tsc_khz.is_some());
                }
                with.cpu_mask.apply(table.as_mut_slice());
                fd.set_cpuid2(&table).map_err(kvm_error("setting a vCPU's features"))?;
                vcpu(index, fd, entry, with, &sender)
            })
            .collect::<Result<Vec<_>, _>>()?;
        // Should one thread not start, the machine ends those that run before memory goes.
        let mut vm = Vm { vcpus: Vec::new(), parked, _fd: self.fd, memory: self.memory };
        for vcpu in vcpus {
            let handle =
                vcpu.start().map_err(|source| VmError::Os { doing: "starting a vCPU thread", source })?;
            vm.vcpus.push(handle);
        }
        Ok(vm)
    }

    fn check_cpu_count(&self, wanted: u8) -> Result<(), VmError> {
        let supported = self.kvm.get_max_vcpus();
        if usize::from(wanted) > supported {
            return Err(VmError::TooManyCpus { wanted, supported });
        }
        let recommended = self.fd.check_extension_int(Cap::NrVcpus);
        if i32::from(wanted) > recommended {
            tracing::debug!(wanted, recommended, "more vCPUs than KVM recommends");
        }
        Ok(())
    }
}

/// Gives a vCPU its registers at power-on; the first starts at the kernel's entry.
fn vcpu(
    index: u8,
    fd: VcpuFd,
    entry: &BootState,
    with: &VcpuEnvironment,
    parked: &mpsc::Sender<Parked>,
) -> Result<Vcpu, VmError> {
    regs::set_power_on(&fd).map_err(kvm_error("setting a vCPU's power-on state"))?;
    if index == 0 {
        regs::set_entry(&fd, entry).map_err(kvm_error("putting the boot CPU at the kernel's entry"))?;
    }
    Ok(Vcpu {
        index: index.into(),
        fd,
        ports: with.ports.clone(),
        mmio: with.mmio.clone(),
        msrs: with.hyperv.clone(),
        accesses: 0,
        exit_hooks: with.exit_hooks.clone(),
        events: with.events.clone(),
        parked: parked.clone(),
    })
}

impl Vm {
    /// Stops every vCPU and reads its registers. Those that do not stop before the deadline are named in the result,
    /// which then has no registers of them.
    pub(crate) fn pause(&mut self, deadline: Duration) -> PausedGuest<'_> {
        let until = Instant::now() + deadline;
        let mut states: Vec<Option<Parked>> = self.vcpus.iter().map(|_| None).collect();
        for vcpu in &self.vcpus {
            vcpu.park();
            vcpu.kick();
        }
        while states.iter().any(Option::is_none) && Instant::now() < until {
            match self.parked.recv_timeout(KICK_AGAIN) {
                Ok(parked) => {
                    let slot = usize::try_from(parked.state.index).ok().and_then(|i| states.get_mut(i));
                    *slot.expect("a vCPU of this machine parked") = Some(parked);
                }
                Err(_) => self.kick_where(|index| states.get(index).is_some_and(Option::is_none)),
            }
        }
        let stopped_at = states.iter().map(|parked| parked.as_ref().map_or(until, |parked| parked.at)).max();
        let cpus = (0..).zip(states).map(|(index, parked)| state_of(index, parked)).collect();
        let ranges = ranges_of(&self.memory);
        let stopped_at = stopped_at.unwrap_or(until);
        PausedGuest { memory: &self.memory, ranges, cpus, stopped_at, findings: Findings::default() }
    }

    fn kick_where(&self, wanted: impl Fn(usize) -> bool) {
        self.vcpus.iter().enumerate().filter(|(index, _)| wanted(*index)).for_each(|(_, vcpu)| vcpu.kick());
    }

    /// Looks at every vCPU that runs; what it finds comes as events.
    pub(crate) fn glance(&self) {
        self.vcpus.iter().for_each(VcpuHandle::glance);
    }

    /// Sends the first vCPU an NMI.
    pub(crate) fn nmi(&self) {
        self.vcpus.iter().take(1).for_each(VcpuHandle::nmi);
    }

    /// Lets vCPUs that wait after an event run on.
    pub(crate) fn run_on(&self) {
        self.vcpus.iter().for_each(VcpuHandle::run_on);
    }
}

fn state_of(index: u32, parked: Option<Parked>) -> CpuState {
    parked.map_or(CpuState { index, activity: Activity::NotStopped, registers: None }, |parked| parked.state)
}

impl Drop for Vm {
    /// Ends the vCPU threads. One that is stuck in a device is left behind rather than waited for: it can only be
    /// blocked in a system call of this process, and guest memory stays mapped for it.
    fn drop(&mut self) {
        let until = Instant::now() + FINISH_DEADLINE;
        self.vcpus.iter().for_each(VcpuHandle::finish);
        while self.vcpus.iter().any(|vcpu| !vcpu.is_finished()) && Instant::now() < until {
            std::thread::sleep(KICK_AGAIN);
            self.vcpus.iter().filter(|vcpu| !vcpu.is_finished()).for_each(VcpuHandle::kick);
        }
        for vcpu in &mut self.vcpus {
            if vcpu.is_finished() {
                vcpu.join();
            } else {
                tracing::warn!(vcpu = vcpu.index(), "this vCPU's thread does not end and is left behind");
                std::mem::forget(self.memory.clone());
            }
        }
    }
}

/// Proof that the guest is paused, and its state. Only [`Vm::pause`] makes one; the guest stays paused while it exists.
#[derive(Debug)]
pub(crate) struct PausedGuest<'vm> {
    memory: &'vm GuestMemory,
    ranges: Vec<MemoryRange>,
    cpus: Vec<CpuState>,
    stopped_at: Instant,
    findings: Findings,
}

impl PausedGuest<'_> {
    /// When the last vCPU stopped, or when waiting for one that did not was given up.
    pub(crate) fn stopped_at(&self) -> Instant {
        self.stopped_at
    }

    /// The vCPUs that did not stop.
    pub(crate) fn not_stopped(&self) -> Vec<u32> {
        self.cpus.iter().filter(|cpu| cpu.activity == Activity::NotStopped).map(|cpu| cpu.index).collect()
    }

    /// The guest's memory, for a device that carries frames.
    pub(crate) fn guest_memory(&self) -> &GuestMemory {
        self.memory
    }
}

impl PhysicalMemory for PausedGuest<'_> {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        read(self.memory, address, buf)
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        next_touched(self.memory, address)
    }

    fn touched_from(&self, address: u64) -> Option<u64> {
        touched_from(self.memory, address)
    }

    fn findings(&self) -> Option<&Findings> {
        Some(&self.findings)
    }

    fn cpus(&self) -> &[CpuState] {
        &self.cpus
    }
}

#[cfg(test)]
mod tests;
