//! Doorbells: eventfds that KVM writes when a driver notifies (ioeventfd), so that the vCPU goes on at once and the device's
//! own thread wakes. Where KVM refuses one, the vCPU returns to the VMM and the transport notifies the device.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::pci::{Doorbells, notification};
use crate::vm::{MappedVm, VmError};

/// The queues of a device that have doorbells.
type Bells = Vec<(u16, Arc<EventFd>)>;

/// Offers a device doorbells; those that it takes.
pub(crate) fn offer(device: &mut dyn VirtioDevice) -> Result<Bells, VmError> {
    let failed = |source| VmError::Os { doing: "creating an eventfd for a device's queue", source };
    let mut bells = Vec::new();
    for (queue, _) in (0..).zip(device.queue_sizes()) {
        let bell = Arc::new(EventFd::new(EFD_CLOEXEC).map_err(failed)?);
        if device.take_doorbell(queue, &bell) {
            bells.push((queue, bell));
        }
    }
    Ok(bells)
}

/// Connects doorbells to a register that takes the queue's number as 32 bits.
pub(crate) fn connect(vm: &MappedVm, register: u64, bells: &Bells) {
    for (queue, bell) in bells {
        let address = IoEventAddress::Mmio(register);
        if let Err(error) = vm.register_ioevent(bell, &address, u32::from(*queue)) {
            tracing::debug!(%error, queue, "no doorbell for a queue");
        }
    }
}

/// The doorbells of a PCI function, which go where its BAR goes.
#[derive(Debug)]
pub(crate) struct PciDoorbells {
    vm: Arc<MappedVm>,
    bells: Bells,
    /// Where each is connected.
    connected: Vec<(u64, Arc<EventFd>)>,
    bar: Option<u32>,
}

impl PciDoorbells {
    pub(crate) fn new(vm: Arc<MappedVm>, bells: Bells) -> Self {
        Self { vm, bells, connected: Vec::new(), bar: None }
    }
}

impl Doorbells for PciDoorbells {
    fn follow(&mut self, bar: Option<u32>) {
        if bar == self.bar {
            return;
        }
        self.bar = bar;
        for (address, bell) in self.connected.drain(..) {
            // It was connected there, so this cannot fail.
            let _ = self.vm.unregister_ioevent(&bell, &IoEventAddress::Mmio(address), NoDatamatch);
        }
        let Some(bar) = bar else { return };
        for (queue, bell) in &self.bells {
            let address = notification(bar, *queue);
            match self.vm.register_ioevent(bell, &IoEventAddress::Mmio(address), NoDatamatch) {
                Ok(()) => self.connected.push((address, Arc::clone(bell))),
                // Another function's may be there, as the guest can lay one BAR over the other.
                Err(error) => tracing::trace!(%error, queue, address, "no doorbell for a queue"),
            }
        }
    }
}
