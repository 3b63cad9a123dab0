//! Message-signalled interrupts through KVM: an eventfd each (irqfd), and a table that says which message it sends.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::pci::msix::MsiLine;
use crate::vm::{MappedVm, VmError};

/// Pins of KVM's IOAPIC: interrupts of their own behind them.
const IOAPIC_PINS: u32 = 24;
/// Pins of each of the two 8259s.
const PIC_PINS: u32 = 8;

/// All messages of a VM.
#[derive(Debug)]
pub(crate) struct MsiRoutes {
    vm: Arc<MappedVm>,
    messages: Mutex<Vec<Option<(u64, u32)>>>,
}

impl MsiRoutes {
    pub(crate) fn new(vm: Arc<MappedVm>) -> Arc<Self> {
        Arc::new(Self { vm, messages: Mutex::default() })
    }

    /// One more interrupt, which sends nothing until it is routed.
    pub(crate) fn line(self: &Arc<Self>) -> Result<Box<dyn MsiLine>, VmError> {
        let failed = |source| VmError::Os { doing: "creating an eventfd for an interrupt", source };
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed)?;
        let index = {
            let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
            messages.push(None);
            messages.len() - 1
        };
        let interrupt = |source| VmError::Kvm { doing: "connecting an interrupt", source };
        self.vm.register_irqfd(&event, gsi(index)).map_err(interrupt)?;
        Ok(Box::new(Line { routes: Arc::clone(self), index, event }))
    }

    fn set(&self, index: usize, message: (u64, u32)) -> Result<(), kvm_ioctls::Error> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = messages.get_mut(index) {
            *slot = Some(message);
        }
        // KVM takes the table whole, and forgets its own: the pins of its interrupt controllers.
        let mut entries = chip_pins();
        let routed = messages.iter().enumerate();
        entries.extend(routed.filter_map(|(index, message)| message.map(|message| entry(index, message))));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table)
    }
}

fn gsi(index: usize) -> u32 {
    IOAPIC_PINS + u32::try_from(index).expect("a handful of interrupts")
}

/// The routes that KVM has by itself.
fn chip_pins() -> Vec<kvm_irq_routing_entry> {
    let pin = |gsi, irqchip, pin| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let pic = (0..2 * PIC_PINS).map(|gsi| {
        let chip = if gsi < PIC_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        pin(gsi, chip, gsi % PIC_PINS)
    });
    pic.chain((0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi))).collect()
}

fn entry(index: usize, (address, data): (u64, u32)) -> kvm_irq_routing_entry {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    let message = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data,
        ..Default::default()
    };
    let mut entry =
        kvm_irq_routing_entry { gsi: gsi(index), type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = message;
    entry
}

#[derive(Debug)]
struct Line {
    routes: Arc<MsiRoutes>,
    index: usize,
    event: EventFd,
}

impl MsiLine for Line {
    fn route(&self, address: u64, data: u32) {
        if let Err(error) = self.routes.set(self.index, (address, data)) {
            // KVM refuses messages that no interrupt controller could take; such a line stays silent.
            tracing::trace!(%error, address, data, "a message cannot be routed");
        }
    }

    fn fire(&self) {
        // Fails only when 2^64 - 1 have gathered, and then one is under way.
        let _ = self.event.write(1);
    }
}
