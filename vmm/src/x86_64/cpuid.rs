//! What CPUID tells the guest: what KVM supports, with each CPU's own identity put in (Intel SDM vol. 2A, CPUID).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

/// Leaf 1 ECX bit 31: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7.0 ECX bit 16: five-level paging. Hidden: it saves page-table walks and keeps every reader of cores working.
const LA57: u32 = 1 << 16;

/// The CPUID table for CPU `index` of `count`.
pub(crate) fn for_cpu(kvm: &Kvm, index: u8, count: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (0x1, _) => {
                entry.ebx &= 0x0000_ffff;
                entry.ebx |= u32::from(index) << 24 | u32::from(count) << 16;
                entry.ecx |= HYPERVISOR;
            }
            (0x7, 0) => entry.ecx &= !LA57,
            // Topology: one thread per core, all cores in one package.
            (0xb | 0x1f, level) => {
                entry.edx = u32::from(index);
                let (shift, cpus, kind) = match level {
                    0 => (0, 1, 1),
                    1 => (u8::BITS - count.saturating_sub(1).leading_zeros(), u32::from(count), 2),
                    _ => (0, 0, 0),
                };
                (entry.eax, entry.ebx, entry.ecx) = (shift, cpus, level | kind << 8);
            }
            _ => {}
        }
    }
    Ok(cpuid)
}
