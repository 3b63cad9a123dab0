//! What CPUID tells the guest: what KVM supports, with each CPU's own identity and the machine's topology put in.
//!
//! The topology is flat: one package, one thread per core, and a CPU's number is its (x2)APIC id. KVM leaves it to us:
//! since Linux 6.2 it reports leaves 0xB, 0x1F and 0x8000001E as zeroes, and a guest that believes those sees as many
//! packages as CPUs. Bits are from the Intel SDM, vol. 2A, CPUID, and the AMD APM, vol. 3, appendix E.

use std::ops::Range;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// Leaf 0 EBX, EDX, ECX of vendors that follow AMD's manual.
const AMD_VENDORS: [&[u8]; 2] = [b"AuthenticAMD", b"HygonGenuine"];

/// Leaves that say which CPU this is and what its neighbours are.
const EXTENDED_TOPOLOGY: u32 = 0xb;
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// Most entries that [`adapt`] adds: three subleaves of two leaves, AMD's one, and the clock rates.
const MAX_ADDED: usize = 8;
/// The first leaf of a hypervisor; EAX is its last one (KVM's documentation, `cpuid.rst`).
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// Clock rates: VMware's convention, which KVM VMMs and FreeBSD (`sys/x86/x86/tsc.c`) follow. EAX is the TSC's rate and
/// EBX the APIC timer's, in kHz.
const CLOCK_RATES: u32 = 0x4000_0010;
/// KVM's APIC timer counts nanoseconds (Linux `arch/x86/kvm/lapic.h`, `APIC_BUS_CYCLE_NS` 1).
const APIC_KHZ: u32 = 1_000_000;
/// Leaf 0x80000007 EDX: the TSC runs at one rate whatever the CPU does.
const POWER_MANAGEMENT: u32 = 0x8000_0007;
const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 1 ECX: the APIC timer can be set to a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package has several logical CPUs, so that their number in EBX counts.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX, AMD: the logical CPUs that HTT tells of are cores rather than threads.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 ECX, AMD: leaves 0x8000001D and 0x8000001E exist.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

/// Caches from this level on are shared by the package; those below are a core's own.
const FIRST_SHARED_CACHE: u32 = 3;

/// What KVM on this host can offer to guests, with room left for what [`adapt`] adds.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES - MAX_ADDED)
}

/// The CPUID table of CPU `index` of `count`, made from what KVM supports.
///
/// The TSC is told to be invariant where its rate is known: KVM runs the guest's TSC at that rate, and guests of this
/// VMM do not move to other hosts.
///
/// # Panics
/// If `supported` has no room left: see [`supported`].
pub(crate) fn adapt(supported: &CpuId, index: u8, count: u8, clocks: Clocks) -> CpuId {
    let supported = supported.as_slice();
    let host = Host::of(supported);
    let cpu = Cpu { index: index.into(), count: count.into() };
    let mut entries: Vec<_> = supported.iter().filter(|entry| !is_rebuilt(entry.function)).copied().collect();
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (0x1, _) => set_identity(entry, cpu, clocks.has_tsc_deadline),
            (0x4, _) => set_cache_sharing(entry, cpu),
            (0x8000_0001, _) if host.is_amd => set_bit(&mut entry.ecx, CMP_LEGACY, cpu.count > 1),
            (0x8000_0008, _) if host.is_amd => {
                set_field(&mut entry.ecx, 0..8, cpu.count - 1);
                set_field(&mut entry.ecx, 12..16, cpu.id_bits());
            }
            (POWER_MANAGEMENT, _) => entry.edx |= clocks.tsc_khz.map_or(0, |_| INVARIANT_TSC),
            (0x8000_001d, _) => set_cache_sharing(entry, cpu),
            (HYPERVISOR_LEAF, _) if clocks.tsc_khz.is_some() => entry.eax = entry.eax.max(CLOCK_RATES),
            _ => {}
        }
    }
    for leaf in [EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2] {
        if host.max_leaf >= leaf {
            entries.extend(extended_topology(leaf, cpu));
        }
    }
    if host.has_amd_topology {
        entries.push(amd_topology(cpu));
    }
    entries.extend(clocks.tsc_khz.map(clock_rates));
    CpuId::from_entries(&entries).expect("`supported` leaves room for the topology")
}

/// What KVM says of a CPU's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clocks {
    /// KVM's capability for the APIC timer's TSC-deadline mode, which its CPUID table does not report reliably (KVM
    /// API, `KVM_GET_SUPPORTED_CPUID`).
    pub(crate) has_tsc_deadline: bool,
    /// The rate of the TSC, where KVM tells it (`KVM_GET_TSC_KHZ`).
    pub(crate) tsc_khz: Option<u32>,
}

/// Which CPU of the machine a table is for.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    index: u32,
    /// At least 1.
    count: u32,
}

impl Cpu {
    /// How many bits hold the id of any CPU of the machine.
    fn id_bits(self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }
}

/// What the host's CPU is, as far as the shape of the table depends on it.
#[derive(Debug)]
struct Host {
    max_leaf: u32,
    is_amd: bool,
    /// Whether leaf 0x8000001E is offered.
    has_amd_topology: bool,
}

impl Host {
    fn of(supported: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function| supported.iter().find(|entry| entry.function == function);
        let vendor = leaf(0).map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
        let is_amd = vendor.is_some_and(|name| AMD_VENDORS.contains(&name.as_flattened()));
        let extended_features = leaf(0x8000_0001).map_or(0, |entry| entry.ecx);
        let has_topology_leaf = leaf(0x8000_0000).is_some_and(|entry| entry.eax >= AMD_TOPOLOGY);
        Self {
            max_leaf: leaf(0).map_or(0, |entry| entry.eax),
            is_amd,
            has_amd_topology: is_amd && has_topology_leaf && extended_features & TOPOLOGY_EXTENSIONS != 0,
        }
    }
}

/// Leaves that are made anew rather than changed: what KVM has of them is the host's, or nothing.
fn is_rebuilt(function: u32) -> bool {
    matches!(function, EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_V2 | AMD_TOPOLOGY | CLOCK_RATES)
}

/// Leaf 1: the APIC id, how many CPUs the package has, and features that depend on us.
fn set_identity(entry: &mut kvm_cpuid_entry2, cpu: Cpu, has_tsc_deadline: bool) {
    set_field(&mut entry.ebx, 16..24, cpu.count);
    set_field(&mut entry.ebx, 24..32, cpu.index);
    set_bit(&mut entry.ecx, TSC_DEADLINE, has_tsc_deadline);
    set_bit(&mut entry.ecx, HYPERVISOR, true);
    set_bit(&mut entry.edx, HTT, cpu.count > 1);
}

/// Leaf 4, and AMD's 0x8000001D, which has the same fields but for the number of cores: how many CPUs share a cache.
fn set_cache_sharing(entry: &mut kvm_cpuid_entry2, cpu: Cpu) {
    let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
    // The end of the list of caches.
    if kind == 0 {
        return;
    }
    let sharing = if level >= FIRST_SHARED_CACHE { cpu.count } else { 1 };
    set_field(&mut entry.eax, 14..26, sharing - 1);
    if entry.function == 0x4 {
        // Six bits; guests with more cores go by leaf 0xB.
        set_field(&mut entry.eax, 26..32, (cpu.count - 1).min(63));
    }
}

/// Leaves 0xB and 0x1F: the threads of a core (one), the cores of the package (all), and the end.
fn extended_topology(function: u32, cpu: Cpu) -> [kvm_cpuid_entry2; 3] {
    // Each domain: its kind, its CPUs, and how far to shift an x2APIC id to get the domain's own.
    let (smt, core, end) = ((1, 1, 0), (2, cpu.count, cpu.id_bits()), (0, 0, 0));
    [(0, smt), (1, core), (2, end)].map(|(index, (kind, cpus, shift))| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: cpus,
        ecx: kind << 8 | index,
        edx: cpu.index,
        ..Default::default()
    })
}

/// Leaf 0x8000001E: the extended APIC id, and a core of one thread in a package of one node, number 0.
fn amd_topology(cpu: Cpu) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function: AMD_TOPOLOGY, eax: cpu.index, ebx: cpu.index, ..Default::default() }
}

fn clock_rates(tsc_khz: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function: CLOCK_RATES, eax: tsc_khz, ebx: APIC_KHZ, ..Default::default() }
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// Puts `value` into these bits of a register. It fits: CPU numbers and counts have 8 bits.
fn set_field(register: &mut u32, bits: Range<u32>, value: u32) {
    let mask = (1 << bits.len()) - 1;
    debug_assert!(value <= mask, "{value:#x} in {bits:?}");
    *register = *register & !(mask << bits.start) | value << bits.start;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvm_ioctls::Cap;

    use super::*;
    use crate::vm::{MAX_CPUS, open_kvm};

    const INTEL: &[u8; 12] = b"GenuineIntel";
    const AMD: &[u8; 12] = b"AuthenticAMD";

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn vendor_leaf(max_leaf: u32, vendor: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        entry(0, 0, [max_leaf, word(0), word(8), word(4)])
    }

    /// A recent Intel host as Linux 6.2 and later report it: topology leaves of zeroes, the host's ids elsewhere.
    fn intel() -> CpuId {
        CpuId::from_entries(&[
            vendor_leaf(0x1f, INTEL),
            entry(1, 0, [0x000c_06f2, 0x5a80_0800, TSC_DEADLINE, HTT | 1]),
            entry(4, 0, [0xfc00_4121, 0x02c0_003f, 63, 0]),
            entry(4, 2, [0xfc00_4143, 0x03c0_003f, 2047, 0]),
            entry(4, 3, [0xfc1f_c163, 0x04c0_003f, 0x1_ffff, 4]),
            entry(4, 4, [0; 4]),
            entry(7, 0, [2, 0xf1bf_07ab, 1 << 22, 0]),
            entry(0xb, 0, [0; 4]),
            entry(0x1f, 0, [0; 4]),
            entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, 0x121, 0]),
            entry(0x8000_0008, 0, [0x3934, 0, 0, 0]),
        ])
        .unwrap()
    }

    /// A Zen host, with ids of its own in the leaves that older kernels pass through.
    fn amd(extended_features: u32) -> CpuId {
        CpuId::from_entries(&[
            vendor_leaf(0x10, AMD),
            entry(1, 0, [0x00a0_0f11, 0x0780_0800, 0, HTT | 1]),
            entry(4, 0, [0; 4]),
            entry(0xb, 0, [1, 2, 0x100, 7]),
            entry(0xb, 1, [7, 128, 0x201, 7]),
            entry(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, extended_features, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x0001_707f, 0]),
            entry(0x8000_001d, 0, [0x0000_4121, 0, 0, 0]),
            entry(0x8000_001d, 3, [0x0003_c163, 0, 0, 0]),
            entry(0x8000_001e, 0, [7, 0x103, 0x301, 0]),
        ])
        .unwrap()
    }

    /// A KVM that says nothing of the TSC's rate.
    fn deadline(has_tsc_deadline: bool) -> Clocks {
        Clocks { has_tsc_deadline, tsc_khz: None }
    }

    fn find(table: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
        let found: Vec<_> =
            table.as_slice().iter().filter(|e| (e.function, e.index) == (function, index)).collect();
        assert!(found.len() <= 1, "leaf {function:#x}.{index} is there {} times", found.len());
        found.first().map(|e| [e.eax, e.ebx, e.ecx, e.edx])
    }

    fn leaf(table: &CpuId, function: u32, index: u32) -> [u32; 4] {
        find(table, function, index).unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"))
    }

    #[test]
    fn zeroed_topology_leaves_become_one_package_of_single_thread_cores() {
        let table = adapt(&intel(), 2, 6, deadline(true));
        for function in [0xb, 0x1f] {
            assert_eq!(leaf(&table, function, 0), [0, 1, 0x100, 2]);
            assert_eq!(leaf(&table, function, 1), [3, 6, 0x201, 2]);
            assert_eq!(leaf(&table, function, 2), [0, 0, 2, 2]);
        }
        let flags = table.as_slice().iter().filter(|e| is_rebuilt(e.function)).map(|e| e.flags);
        assert!(flags.eq([KVM_CPUID_FLAG_SIGNIFCANT_INDEX; 6]));
    }

    #[test]
    fn leaf_1_names_the_cpu_and_keeps_the_rest() {
        let [eax, ebx, ecx, edx] = leaf(&adapt(&intel(), 2, 6, deadline(true)), 1, 0);
        assert_eq!((eax, ebx, ecx, edx), (0x000c_06f2, 0x0206_0800, TSC_DEADLINE | HYPERVISOR, HTT | 1));
    }

    #[test]
    fn a_lone_cpu_has_no_neighbours() {
        let table = adapt(&intel(), 0, 1, deadline(true));
        assert_eq!(leaf(&table, 1, 0)[3] & HTT, 0);
        assert_eq!(leaf(&table, 0xb, 1), [0, 1, 0x201, 0]);
        assert_eq!(leaf(&table, 4, 3)[0], 0x163);
        let table = adapt(&amd(TOPOLOGY_EXTENSIONS | CMP_LEGACY), 0, 1, deadline(true));
        assert_eq!(leaf(&table, 0x8000_0001, 0)[2], TOPOLOGY_EXTENSIONS);
        assert_eq!(leaf(&table, 0x8000_0008, 0)[2], 0x0001_0000);
    }

    #[test]
    fn the_tsc_deadline_timer_is_there_exactly_if_kvm_has_it() {
        for (table, has) in [(intel(), false), (intel(), true), (amd(0), false), (amd(0), true)] {
            assert_eq!(leaf(&adapt(&table, 0, 2, deadline(has)), 1, 0)[2] & TSC_DEADLINE != 0, has);
        }
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let table = adapt(&intel(), 2, 6, deadline(true));
        assert_eq!(leaf(&table, 4, 0)[0], 5 << 26 | 0x121);
        assert_eq!(leaf(&table, 4, 2)[0], 5 << 26 | 0x143);
        assert_eq!(leaf(&table, 4, 3)[0], 5 << 26 | 5 << 14 | 0x163);
        assert_eq!(leaf(&table, 4, 4), [0; 4]);
        let table = adapt(&amd(TOPOLOGY_EXTENSIONS), 2, 6, deadline(true));
        assert_eq!(leaf(&table, 4, 0), [0; 4]);
        assert_eq!(leaf(&table, 0x8000_001d, 0)[0], 0x121);
        assert_eq!(leaf(&table, 0x8000_001d, 3)[0], 5 << 14 | 0x163);
    }

    #[test]
    fn the_largest_machine_fits_every_field() {
        let (index, count) = (MAX_CPUS - 1, MAX_CPUS);
        let table = adapt(&intel(), index, count, deadline(true));
        assert_eq!(leaf(&table, 1, 0)[1], 0xfdfe_0800);
        assert_eq!(leaf(&table, 4, 3)[0], 63 << 26 | 253 << 14 | 0x163);
        assert_eq!(leaf(&table, 0xb, 1), [8, 254, 0x201, 253]);
        let table = adapt(&amd(TOPOLOGY_EXTENSIONS), index, count, deadline(true));
        assert_eq!(leaf(&table, 0x8000_0008, 0)[2], 0x0001_80fd);
        assert_eq!(leaf(&table, 0x8000_001e, 0), [253, 253, 0, 0]);
    }

    #[test]
    fn clock_rates_are_told_where_they_are_known() {
        let mut host = intel().as_slice().to_vec();
        host.push(entry(HYPERVISOR_LEAF, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]));
        host.push(entry(POWER_MANAGEMENT, 0, [0; 4]));
        let host = CpuId::from_entries(&host).unwrap();
        let known = adapt(&host, 0, 1, Clocks { has_tsc_deadline: true, tsc_khz: Some(3_000_000) });
        assert_eq!(leaf(&known, HYPERVISOR_LEAF, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(leaf(&known, CLOCK_RATES, 0), [3_000_000, 1_000_000, 0, 0]);
        assert_eq!(leaf(&known, POWER_MANAGEMENT, 0)[3], 1 << 8);
        let unknown = adapt(&host, 0, 1, deadline(true));
        assert_eq!(leaf(&unknown, HYPERVISOR_LEAF, 0)[0], 0x4000_0001);
        assert_eq!(find(&unknown, CLOCK_RATES, 0), None);
        assert_eq!(leaf(&unknown, POWER_MANAGEMENT, 0)[3], 0);
    }

    #[test]
    fn amd_leaves_tell_the_same_topology() {
        let table = adapt(&amd(TOPOLOGY_EXTENSIONS), 2, 6, deadline(true));
        assert_eq!(leaf(&table, 0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(leaf(&table, 0xb, 1), [3, 6, 0x201, 2]);
        assert_eq!(find(&table, 0x1f, 0), None);
        assert_eq!(leaf(&table, 0x8000_0001, 0)[2], TOPOLOGY_EXTENSIONS | CMP_LEGACY);
        assert_eq!(leaf(&table, 0x8000_0008, 0), [0x3030, 0, 0x0001_3005, 0]);
        assert_eq!(leaf(&table, 0x8000_001e, 0), [2, 2, 0, 0]);
    }

    #[test]
    fn without_topology_extensions_the_hosts_ids_are_dropped() {
        assert_eq!(find(&adapt(&amd(0), 2, 6, deadline(true)), 0x8000_001e, 0), None);
    }

    #[test]
    fn amd_fields_are_not_put_into_an_intel_table() {
        let table = adapt(&intel(), 2, 6, deadline(true));
        assert_eq!(leaf(&table, 0x8000_0001, 0)[2], 0x121);
        assert_eq!(leaf(&table, 0x8000_0008, 0), [0x3934, 0, 0, 0]);
        assert_eq!(find(&table, 0x8000_001e, 0), None);
    }

    #[test]
    fn a_cpu_without_topology_leaves_gets_none() {
        let old = [vendor_leaf(0xa, INTEL), entry(1, 0, [0x1067a, 0x0102_0800, 0, 1])];
        let table = adapt(&CpuId::from_entries(&old).unwrap(), 1, 2, deadline(false));
        assert_eq!(table.as_slice().len(), 2);
        assert_eq!(leaf(&table, 1, 0), [0x1067a, 0x0102_0800, HYPERVISOR, HTT | 1]);
    }

    #[test]
    fn kvm_takes_the_tables_and_gives_every_vcpu_its_own_ids() {
        let kvm = match open_kvm() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("SKIPPED kvm: {error}");
                return;
            }
        };
        const COUNT: u8 = 6;
        let host = supported(&kvm).unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let mut ids = BTreeSet::new();
        let has_tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let clocks = Clocks { has_tsc_deadline, tsc_khz: Some(2_345_678) };
        for index in 0..COUNT {
            let table = adapt(&host, index, COUNT, clocks);
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            vcpu.set_cpuid2(&table).unwrap();
            let table = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            let id = leaf(&table, 1, 0)[1] >> 24;
            ids.insert(id);
            for function in [0xb, 0x1f].into_iter().filter(|f| Host::of(host.as_slice()).max_leaf >= *f) {
                assert_eq!(leaf(&table, function, 0), [0, 1, 0x100, id]);
                assert_eq!(leaf(&table, function, 1), [3, COUNT.into(), 0x201, id]);
            }
            let [last, signature, ..] = leaf(&table, HYPERVISOR_LEAF, 0);
            assert_eq!((last, signature), (CLOCK_RATES, u32::from_le_bytes(*b"KVMK")));
            assert_eq!(leaf(&table, CLOCK_RATES, 0), [2_345_678, 1_000_000, 0, 0]);
            if Host::of(host.as_slice()).has_amd_topology {
                assert_eq!(leaf(&table, AMD_TOPOLOGY, 0), [id, id, 0, 0]);
            }
        }
        assert!(ids.into_iter().eq(0..u32::from(COUNT)));
    }
}
