//! Hyper-V, as far as a guest needs it to report a crash: the CPUID leaves that announce it, and its MSRs for a KVM that
//! does not keep them itself (`KVM_CAP_HYPERV`).
//!
//! Linux has its side built in (`drivers/hv/hv_common.c`): when it panics it writes five numbers to the crash registers
//! and then CTL, or, if CTL offers that, the last page of its log to memory, and where that is to P3 and P4.
//!
//! Reference: Microsoft, "Hypervisor Top Level Functional Specification" 6.0b, chapters 2 (discovery), 3 (hypercalls),
//! 12 (timers); Linux `arch/x86/kernel/cpu/mshyperv.c`, `arch/x86/hyperv/hv_init.c`, `arch/x86/kvm/hyperv.c`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_bindings::{CpuId, KVM_MSR_EXIT_REASON_FILTER, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::AfterWrite;
use crate::events::{EventSender, MachineEvent, PanicEvent, current_vcpu};
use crate::memory::GuestMemory;

/// Name of the panic source that this serves.
pub(crate) const SOURCE: &str = "hyperv-crash";

/// MSRs.
const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const RESET: u32 = 0x4000_0003;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const CRASH_P0: u32 = 0x4000_0100;
const CRASH_P4: u32 = 0x4000_0104;
const CRASH_CTL: u32 = 0x4000_0105;
const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
/// All of Hyper-V's that a guest may try, from the first on.
const MSR_COUNT: u32 = 0x200;

/// Bits of CTL: a crash is told; a text is told with it.
const CRASH_NOTIFY: u64 = 1 << 63;
const CRASH_NOTIFY_MSG: u64 = 1 << 62;
/// Most bytes of that text.
const MAX_TEXT: u64 = 4096;
/// What Linux prints before its panic's message.
const LINUX: &str = "Kernel panic - not syncing: ";

/// Bit of the hypercall register that enables the page, and what the page is filled with: `mov eax, 2; ret`. No
/// hypercall exists, and 2 is the status that says so.
const HYPERCALL_ENABLE: u64 = 1;
const HYPERCALL_PAGE: [u8; 6] = [0xb8, 2, 0, 0, 0, 0xc3];
const PAGE_MASK: u64 = !0xfff;

/// CPUID leaves.
const FIRST_LEAF: u32 = 0x4000_0000;
const LAST_LEAF: u32 = 0x4000_0005;
/// All leaves that hypervisors use.
const HYPERVISOR_LEAVES: std::ops::Range<u32> = 0x4000_0000..0x4001_0000;
/// Leaf 3 EAX: what the guest may use.
const ACCESS_TIME_REF_COUNT: u32 = 1 << 1;
const ACCESS_HYPERCALL: u32 = 1 << 5;
const ACCESS_VP_INDEX: u32 = 1 << 6;
const ACCESS_RESET: u32 = 1 << 7;
const ACCESS_FREQUENCIES: u32 = 1 << 11;
const ACCESS_TSC_INVARIANT: u32 = 1 << 15;
/// Leaf 3 EDX: what there is.
const FREQUENCIES: u32 = 1 << 8;
const CRASH_MSRS: u32 = 1 << 10;
/// Leaf 4 EBX: the guest need not tell of spinlocks that it waits for.
const NEVER_NOTIFY: u32 = u32::MAX;
/// KVM's APIC timer counts nanoseconds.
const APIC_HZ: u64 = 1_000_000_000;

/// Lets accesses to Hyper-V's MSRs come to this process, which otherwise are faults.
pub(crate) fn keep_msrs(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let reasons = u64::from(KVM_MSR_EXIT_REASON_FILTER);
    let cap = Cap::X86UserSpaceMsr as u32;
    vm.enable_cap(&kvm_enable_cap { cap, args: [reasons, 0, 0, 0], ..Default::default() })?;
    let none = [0; MSR_COUNT as usize / 8];
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range = MsrFilterRange { flags, base: GUEST_OS_ID, msr_count: MSR_COUNT, bitmap: &none };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
}

/// The table of a CPU with Hyper-V's leaves in place of all others that a hypervisor has: guests believe the one with the
/// highest number. `by_kvm`: KVM keeps the MSRs.
pub(crate) fn announce(table: &CpuId, cpus: u8, by_kvm: bool, has_rates: bool) -> CpuId {
    let entries = table.as_slice().iter().filter(|entry| !HYPERVISOR_LEAVES.contains(&entry.function));
    let mut entries: Vec<_> = entries.copied().collect();
    let text = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let mut access = ACCESS_HYPERCALL | ACCESS_VP_INDEX | ACCESS_RESET | ACCESS_TIME_REF_COUNT;
    let mut there = CRASH_MSRS;
    if has_rates {
        access |= ACCESS_FREQUENCIES;
        there |= FREQUENCIES;
        // Not every KVM that keeps the MSRs has this one.
        access |= if by_kvm { 0 } else { ACCESS_TSC_INVARIANT };
    }
    let cpus = u32::from(cpus);
    entries.extend(
        [
            (FIRST_LEAF, [LAST_LEAF, text(b"Micr"), text(b"osof"), text(b"t Hv")]),
            (FIRST_LEAF + 1, [text(b"Hv#1"), 0, 0, 0]),
            (FIRST_LEAF + 2, [0; 4]),
            (FIRST_LEAF + 3, [access, 0, 0, there]),
            (FIRST_LEAF + 4, [0, NEVER_NOTIFY, 0, 0]),
            (LAST_LEAF, [cpus, cpus, 0, 0]),
        ]
        .map(|(function, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }),
    );
    CpuId::from_entries(&entries).expect("a table with room for a hypervisor's leaves")
}

/// The MSRs, kept here.
#[derive(Debug)]
pub struct HypervMsrs {
    memory: GuestMemory,
    events: EventSender,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    guest_os_id: u64,
    hypercall: u64,
    crash: [u64; 5],
    tsc_hz: Option<u64>,
    tsc_invariant: u64,
}

impl HypervMsrs {
    /// MSRs that report to `events`.
    pub(crate) fn new(memory: GuestMemory, events: EventSender) -> Self {
        Self { memory, events, started: Instant::now(), state: Mutex::default() }
    }

    /// The rate of the guest's TSC.
    pub(crate) fn set_clock(&self, tsc_khz: Option<u32>) {
        self.state().tsc_hz = tsc_khz.map(|khz| 1000 * u64::from(khz));
    }

    /// What an MSR reads as on that vCPU; `None` where there is none, which is a fault.
    pub(crate) fn read(&self, msr: u32, vcpu: u32) -> Option<u64> {
        let state = self.state();
        Some(match msr {
            GUEST_OS_ID => state.guest_os_id,
            HYPERCALL => state.hypercall,
            VP_INDEX => vcpu.into(),
            RESET => 0,
            // Units of 100 ns.
            TIME_REF_COUNT => u64::try_from(self.started.elapsed().as_nanos() / 100).unwrap_or(u64::MAX),
            TSC_FREQUENCY => state.tsc_hz?,
            APIC_FREQUENCY => APIC_HZ,
            CRASH_P0..=CRASH_P4 => *state.crash.get(usize::try_from(msr - CRASH_P0).ok()?)?,
            CRASH_CTL => CRASH_NOTIFY | CRASH_NOTIFY_MSG,
            TSC_INVARIANT_CONTROL => state.tsc_invariant,
            _ => return None,
        })
    }

    /// Writes an MSR; `None` where there is none to be written.
    pub(crate) fn write(&self, msr: u32, value: u64) -> Option<AfterWrite> {
        let mut state = self.state();
        match msr {
            GUEST_OS_ID => state.guest_os_id = value,
            HYPERCALL => {
                state.hypercall = value;
                if value & HYPERCALL_ENABLE != 0 {
                    let page = GuestAddress(value & PAGE_MASK);
                    self.memory.write_slice(&HYPERCALL_PAGE, page).ok()?;
                }
            }
            RESET if value & 1 != 0 => {
                self.events.send(MachineEvent::Reset("Hyper-V's reset register"));
                return Some(AfterWrite::Park);
            }
            RESET => {}
            CRASH_P0..=CRASH_P4 => {
                *state.crash.get_mut(usize::try_from(msr - CRASH_P0).ok()?)? = value;
            }
            CRASH_CTL if value & CRASH_NOTIFY != 0 => {
                let event = self.crash(state.crash, value & CRASH_NOTIFY_MSG != 0);
                self.events.send(MachineEvent::Panic(event));
                return Some(AfterWrite::Park);
            }
            CRASH_CTL => {}
            TSC_INVARIANT_CONTROL => state.tsc_invariant = value,
            _ => return None,
        }
        Some(AfterWrite::Run)
    }

    fn crash(&self, [p0, p1, p2, p3, p4]: [u64; 5], has_text: bool) -> PanicEvent {
        let text = has_text.then(|| self.text(p3, p4)).flatten();
        let detail = if has_text {
            "the guest told Hyper-V of a crash, with the end of its log".to_owned()
        } else {
            format!(
                "the guest told Hyper-V of a crash: error {p0:#x}, system {p1:#x}, RIP {p2:#x}, RAX {p3:#x}, RSP {p4:#x}"
            )
        };
        let at = Instant::now();
        PanicEvent { source: SOURCE, vcpu: current_vcpu(), at, text, detail, survivable: true }
    }

    /// The message of the panic in a log of `length` bytes at a guest-physical address.
    fn text(&self, address: u64, length: u64) -> Option<String> {
        let mut log = vec![0; usize::try_from(length.min(MAX_TEXT)).ok()?];
        self.memory.read_slice(&mut log, GuestAddress(address)).ok()?;
        let log = String::from_utf8_lossy(&log);
        let mut lines = log.lines().rev().filter(|line| !line.contains("---[ end "));
        let message = lines.find_map(|line| Some(line.split_once(LINUX)?.1))?;
        Some(message.chars().filter(|c| !c.is_control()).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{self, EventQueue};
    use crate::memory::{MemorySize, create};

    const LOG: u64 = 0x5000;

    fn msrs() -> (HypervMsrs, EventQueue) {
        let (events, queue) = events::channel().unwrap();
        (HypervMsrs::new(create(MemorySize::new(2 << 20).unwrap()).unwrap(), events), queue)
    }

    fn panic(queue: &EventQueue) -> PanicEvent {
        match queue.next() {
            Some(MachineEvent::Panic(event)) => event,
            other => panic!("no panic but {other:?}"),
        }
    }

    #[test]
    fn a_crash_is_told_with_its_numbers() {
        let (msrs, queue) = msrs();
        for (msr, value) in (CRASH_P0..=CRASH_P4).zip(1..) {
            assert_eq!(msrs.write(msr, value), Some(AfterWrite::Run));
            assert_eq!(msrs.read(msr, 0), Some(value));
        }
        assert!(queue.next().is_none());
        assert_eq!(msrs.write(CRASH_CTL, CRASH_NOTIFY), Some(AfterWrite::Park));
        let event = panic(&queue);
        assert!(event.detail.ends_with("error 0x1, system 0x2, RIP 0x3, RAX 0x4, RSP 0x5"), "{event:?}");
        assert!(event.survivable && event.text.is_none());
    }

    #[test]
    fn a_log_gives_the_panics_message_wherever_it_is_said_to_be() {
        let (msrs, queue) = msrs();
        let log = "<4>[1.0] noise\n<0>[1.5] Kernel panic - not syncing: VFS: no root\n<4>[1.6] more\n<0>[2] ---[ end \
                   Kernel panic - not syncing: VFS ]---\n";
        msrs.memory.write_slice(log.as_bytes(), GuestAddress(LOG)).unwrap();
        let tell = |address, length| {
            let _ = msrs.write(CRASH_P0 + 3, address).unwrap();
            let _ = msrs.write(CRASH_P4, length).unwrap();
            assert_eq!(msrs.write(CRASH_CTL, CRASH_NOTIFY | CRASH_NOTIFY_MSG), Some(AfterWrite::Park));
            panic(&queue).text
        };
        assert_eq!(tell(LOG, log.len() as u64).as_deref(), Some("VFS: no root"));
        assert_eq!(tell(LOG, u64::MAX).as_deref(), Some("VFS: no root"));
        assert_eq!(tell(LOG, 10), None);
        assert_eq!(tell(u64::MAX - 5, u64::MAX), None);
    }

    #[test]
    fn hypercalls_answer_that_there_is_none() {
        let (msrs, queue) = msrs();
        assert_eq!(msrs.write(HYPERCALL, LOG), Some(AfterWrite::Run), "not enabled");
        assert_eq!(msrs.memory.read_obj::<u8>(GuestAddress(LOG)).unwrap(), 0);
        assert_eq!(msrs.write(HYPERCALL, LOG | HYPERCALL_ENABLE), Some(AfterWrite::Run));
        assert_eq!(msrs.memory.read_obj::<[u8; 6]>(GuestAddress(LOG)).unwrap(), HYPERCALL_PAGE);
        assert_eq!(msrs.write(HYPERCALL, 1 << 40 | HYPERCALL_ENABLE), None, "no memory there");
        assert_eq!((msrs.read(VP_INDEX, 3), msrs.write(VP_INDEX, 3)), (Some(3), None));
        assert_eq!(msrs.read(0x4000_0090, 0), None);
        assert!(queue.next().is_none());
        assert_eq!(msrs.write(RESET, 1), Some(AfterWrite::Park));
        assert!(matches!(queue.next(), Some(MachineEvent::Reset(_))));
    }

    #[test]
    fn hyperv_is_the_only_hypervisor_of_the_table() {
        let kvm = kvm_cpuid_entry2 { function: FIRST_LEAF, ebx: 0x4b4d_564b, ..Default::default() };
        let rates = kvm_cpuid_entry2 { function: 0x4000_0010, ..Default::default() };
        let other = kvm_cpuid_entry2 { function: 7, eax: 2, ..Default::default() };
        let table = announce(&CpuId::from_entries(&[other, kvm, rates]).unwrap(), 4, false, true);
        let leaves: Vec<_> = table.as_slice().iter().map(|entry| entry.function).collect();
        assert_eq!(leaves, [7, 0x4000_0000, 0x4000_0001, 0x4000_0002, 0x4000_0003, 0x4000_0004, 0x4000_0005]);
        let [_, first, _, _, features, _, limits] = table.as_slice() else { unreachable!() };
        let name = [first.ebx, first.ecx, first.edx].map(u32::to_le_bytes);
        assert_eq!((name.as_flattened(), first.eax), (b"Microsoft Hv".as_slice(), LAST_LEAF));
        assert_eq!(features.edx & (CRASH_MSRS | FREQUENCIES), CRASH_MSRS | FREQUENCIES);
        assert_eq!(limits.eax, 4);
    }
}
