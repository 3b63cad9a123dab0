//! The guest's network card over all its boots: the host tap stays open from the first boot to the last, so that a
//! bridge keeps its port, and each boot plugs a new device in front of it.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netdump::wire::MacAddr;

use crate::devices::virtio::net::{Net, Sending};
use crate::sys::interface::InterfaceName;
use crate::sys::tap::{Tap, TapError};

/// The address of a card that was given none: locally administered, as QEMU's.
pub const DEFAULT_MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x6e, 0x64, 0x01]);

/// The card.
pub struct Nic {
    tap: Arc<Tap>,
    mac: MacAddr,
    device: Option<Arc<Mutex<Net>>>,
}

impl Nic {
    /// Opens the tap, creating it if it is absent.
    pub fn open(tap: InterfaceName, mac: MacAddr) -> Result<Self, TapError> {
        Ok(Self { tap: Arc::new(Tap::open(tap)?), mac, device: None })
    }

    /// Makes the device for a boot of the guest.
    pub fn plug(&mut self, sending: Sending) -> Arc<Mutex<Net>> {
        let device = Arc::new(Mutex::new(Net::new(self.tap.clone(), self.mac).sending(sending)));
        self.device = Some(device.clone());
        device
    }

    /// The IPv4 address that the guest last sent from.
    pub fn last_ipv4(&self) -> Option<Ipv4Addr> {
        self.device.as_ref().and_then(|device| lock(device).last_ipv4())
    }

    /// The card's address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// The tap behind it.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// The device of this boot.
    pub fn device(&self) -> Option<&Arc<Mutex<Net>>> {
        self.device.as_ref()
    }
}

fn lock(device: &Mutex<Net>) -> MutexGuard<'_, Net> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic").field("tap", self.tap.name()).field("mac", &self.mac).finish_non_exhaustive()
    }
}
