//! What outlives one boot of the guest: options, the kernel, disks.

use std::path::PathBuf;
use std::sync::Arc;

use crate::boot::{Handover, KernelImage};
use crate::boot_disk::BootDisk;
use crate::config::{DumpConfig, VmConfig};
use crate::devices::virtio::blk::{Disk, DiskError};
use crate::link::{LinkSpec, TapRoute};
use crate::machine::MachineError;
use crate::nic::Nic;

/// Everything that outlives one boot of the guest.
#[derive(Debug)]
pub struct Host<'a> {
    /// The machine's options.
    pub vm: &'a VmConfig,
    /// The dump's options.
    pub dump: &'a DumpConfig,
    /// What is booted.
    pub image: KernelImage,
    /// The disk that it is from; none for a kernel that is a file of the host's.
    pub disk: Option<BootDisk>,
    /// Where `--report` goes.
    pub report: Option<PathBuf>,
}

impl Host<'_> {
    /// What the kernel is handed: as the options say, or the disk with them.
    pub(crate) fn handover(&self) -> &Handover {
        self.disk.as_ref().map_or(&self.vm.handover, BootDisk::handover)
    }

    /// Opens the guest's disks; the one that it boots from is the first, and is open already.
    pub(crate) fn disks(&self) -> Result<Vec<Arc<Disk>>, DiskError> {
        let first = self.disk.as_ref().map(|disk| Ok(disk.disk().clone()));
        let others = self.vm.disks.iter().map(|spec| Disk::open(spec).map(Arc::new));
        first.into_iter().chain(others).collect()
    }

    /// Makes the kernel and what it is handed ready for a boot, the first or another.
    pub(crate) fn restore(&mut self) -> Result<(), MachineError> {
        match &mut self.disk {
            Some(disk) => {
                if let Some(image) = disk.restore()? {
                    self.image = image;
                }
            }
            None => self.image.restore()?,
        }
        Ok(())
    }

    /// Gives back memory that is not needed while the guest runs.
    pub(crate) fn release(&mut self) {
        self.image.release();
        if let Some(disk) = &mut self.disk {
            disk.release();
        }
    }

    /// Finds out before the guest starts, not after it panicked, whether the link that the options name can be used.
    pub(crate) fn check_link(&self, nic: Option<&Nic>) -> Result<Option<TapRoute>, MachineError> {
        if !self.dump.enabled {
            return Ok(None);
        }
        let link = self.dump.link_for(self.dump.server, nic.is_some());
        let crash_dir = &self.dump.crash_dir;
        if link == LinkSpec::Embedded && crash_dir.exists() && !crash_dir.is_dir() {
            return Err(MachineError::CrashDir(crash_dir.clone()));
        }
        Ok(link.check(nic.map(Nic::tap))?)
    }
}
