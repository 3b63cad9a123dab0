//! Boot protocols: how a kernel is put into memory and entered. Each is a file and a line in [`ALL`].
//!
//! A protocol writes into guest memory and returns the boot CPU's state as plain data; it never sees a vCPU.

mod kernel_image;
mod pvh;
mod symbol_file;

use std::fmt;

use kvm_bindings::kvm_sregs;
use thiserror::Error;
use vm_memory::GuestMemoryError;

pub use kernel_image::{ImageError, KernelImage};
pub use symbol_file::SymbolFileError;

use crate::memory::GuestMemory;

/// Every protocol, in the order in which they are tried.
pub static ALL: &[&dyn BootProtocol] = &[&pvh::Pvh];

/// A way to start a kernel.
pub trait BootProtocol: Sync + fmt::Debug {
    /// Its name in options and messages.
    fn name(&self) -> &'static str;

    /// Whether this image can be started so.
    fn recognises(&self, image: &KernelImage) -> bool;

    /// Loads the image and everything that the kernel is handed.
    fn load(
        &self,
        image: &KernelImage,
        with: &Handover,
        memory: &GuestMemory,
    ) -> Result<BootState, BootError>;
}

/// What the kernel is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handover {
    /// The command line.
    pub cmdline: String,
    /// The kernel environment, in order.
    pub environment: Vec<(String, String)>,
}

/// The boot CPU's state at the kernel's first instruction, where it differs from power-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootState {
    /// Address of the first instruction.
    pub entry: u64,
    /// What RBX points at.
    pub rbx: u64,
    /// Control registers, segments and tables.
    pub mode: EntryMode,
}

/// The processor mode at the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMode {
    /// 32-bit protected mode, flat, paging off, interrupts off (PVH).
    Protected32,
}

impl BootState {
    pub(crate) fn apply(&self, sregs: &mut kvm_sregs) {
        match self.mode {
            EntryMode::Protected32 => pvh::apply_protected_mode(sregs),
        }
    }
}

/// Why a kernel could not be put into the guest.
#[derive(Debug, Error)]
pub enum BootError {
    /// No protocol fits.
    #[error(
        "{image} is an ELF kernel without a PVH entry (a Xen note of type 18), and this version boots no other kind"
    )]
    NoProtocol {
        /// The file.
        image: String,
    },
    /// The kernel is larger than the guest's memory.
    #[error("{image} needs guest memory up to {needed:#x} ({} MiB), the guest has {available:#x}: give it more with --memory", needed.div_ceil(1 << 20))]
    TooLarge {
        /// The file.
        image: String,
        /// End of its highest segment.
        needed: u64,
        /// End of low RAM.
        available: u64,
    },
    /// A segment lies where the boot data goes.
    #[error("{image} wants to be loaded at {at:#x}, below 1 MiB where the boot data goes")]
    TooLow {
        /// The file.
        image: String,
        /// Start of its lowest segment.
        at: u64,
    },
    /// The loader found the file inconsistent.
    #[error("loading {image}")]
    Load {
        /// The file.
        image: String,
        /// What is wrong with it.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// An environment variable cannot be passed.
    #[error("kernel environment variable '{name}': {problem}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Command line and environment are too long together.
    #[error("command line and kernel environment have {len} bytes together, at most {max} can be passed")]
    CmdlineTooLong {
        /// Bytes, NUL included.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A NUL in the command line would end it early.
    #[error("the command line contains a NUL byte")]
    CmdlineNul,
    /// Boot data did not fit into guest memory.
    #[error("writing {what} into guest memory")]
    Write {
        /// What was being written.
        what: &'static str,
        /// Where it failed.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads `image` by the first protocol that recognises it.
pub fn load(image: &KernelImage, with: &Handover, memory: &GuestMemory) -> Result<BootState, BootError> {
    let protocol = protocol_for(image)?;
    tracing::debug!(protocol = protocol.name(), image = %image.path().display(), "loading");
    protocol.load(image, with, memory)
}

/// The protocol that [`load`] will use.
pub fn protocol_for(image: &KernelImage) -> Result<&'static dyn BootProtocol, BootError> {
    let found = ALL.iter().copied().find(|protocol| protocol.recognises(image));
    found.ok_or_else(|| BootError::NoProtocol { image: image.path().display().to_string() })
}
