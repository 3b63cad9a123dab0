//! What kvm-ioctls leaves to its caller: memory slots, and one union of the run page.

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// Maps a region of guest RAM into the guest.
///
/// The VM must not outlive `region`: `Vm` owns both and drops the VM first.
pub(crate) fn add_memory_slot(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap<()>,
) -> Result<(), kvm_ioctls::Error> {
    let description = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY:
    // - the address and length are those of a live mapping, which `region` owns;
    // - regions of one guest do not overlap, and each is added once, under its own slot number;
    // - the mapping stays while KVM uses it: see above;
    // - nobody here holds a reference into the mapping: all accesses go through vm-memory's volatile ones.
    unsafe { vm.set_user_memory_region(description) }
}

/// The suberror of a KVM_EXIT_INTERNAL_ERROR that this vCPU's last run ended with; 0 after another exit.
pub(crate) fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return 0;
    }
    // SAFETY: the exit reason, written by the kernel, says that `internal` is the live field of the union; it is plain
    // integers, valid for any bits.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}
