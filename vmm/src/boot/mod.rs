//! Boot protocols: how a kernel is put into memory and entered. Each is a file and a line in [`ALL`].
//!
//! A protocol writes into guest memory and returns the boot CPU's state as plain data; it never sees a vCPU.

mod bzimage;
mod elf_tables;
mod freebsd;
mod kenv;
mod kernel_image;
pub(crate) mod linux;
mod long_mode;
mod modinfo;
mod module;
mod pvh;
mod space;
mod symbol_file;
#[cfg(test)]
mod test_bzimage;
#[cfg(test)]
mod test_kernel;
mod unpack;

use std::fmt;

use kvm_bindings::kvm_sregs;
use thiserror::Error;
use vm_memory::GuestMemoryError;

pub use bzimage::SetupError;
pub use kernel_image::{ImageError, KernelImage, PayloadError, RestoreError};
pub use linux::{Initrd, InitrdError};
pub use module::{Module, ModuleError, ModuleSpec, ParseModuleError};
pub use symbol_file::SymbolFileError;
pub use unpack::UnpackError;

use crate::memory::GuestMemory;
use crate::x86_64::firmware::Hardware;

/// Every protocol, in the order in which they are tried. FreeBSD's own comes first, as it passes the environment whole;
/// PVH comes before a bzImage's own way, as the kernel is unpacked for its symbols anyway and starts sooner so.
pub static ALL: &[&dyn BootProtocol] = &[&freebsd::Native, &pvh::Pvh, &bzimage::Bzimage];

/// A way to start a kernel.
pub trait BootProtocol: Sync + fmt::Debug {
    /// Its name in options and messages.
    fn name(&self) -> &'static str;

    /// What it starts, for help and messages.
    fn takes(&self) -> &'static str;

    /// Whether this image can be started so.
    fn recognises(&self, image: &KernelImage) -> bool;

    /// Loads the image and everything that the kernel is handed.
    fn load(
        &self,
        image: &KernelImage,
        with: &Handover,
        hardware: &Hardware,
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
    /// Kernel modules and other files, in order.
    pub modules: Vec<Module>,
    /// A Linux kernel's first root file system.
    pub initrd: Option<Initrd>,
}

/// The boot CPU's state at the kernel's first instruction, where it differs from power-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootState {
    /// Address of the first instruction.
    pub entry: u64,
    /// What RBX points at.
    pub rbx: u64,
    /// What RSI points at.
    pub rsi: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// Control registers, segments and tables.
    pub mode: EntryMode,
}

/// The processor mode at the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMode {
    /// 32-bit protected mode, flat, paging off, interrupts off (PVH).
    Protected32,
    /// 64-bit mode with the page tables of FreeBSD's loader, interrupts off.
    FreebsdLong,
    /// 64-bit mode with the first GiB mapped to itself, interrupts off.
    LinuxLong,
}

impl EntryMode {
    pub(crate) fn apply(self, sregs: &mut kvm_sregs) {
        match self {
            Self::Protected32 => pvh::apply_protected_mode(sregs),
            Self::FreebsdLong => freebsd::apply_long_mode(sregs),
            Self::LinuxLong => bzimage::apply_long_mode(sregs),
        }
    }
}

/// Why a kernel could not be put into the guest.
#[derive(Debug, Error)]
pub enum BootError {
    /// No protocol fits.
    #[error(
        "{image} is an ELF file without a PVH entry (a Xen note of type 18) and no FreeBSD kernel: nothing here can boot it"
    )]
    NoProtocol {
        /// The file.
        image: String,
    },
    /// The protocol that was asked for does not fit.
    #[error("{image} cannot be booted by --boot {protocol}, which takes {takes}")]
    WrongProtocol {
        /// The file.
        image: String,
        /// The protocol's name.
        protocol: &'static str,
        /// What it is for.
        takes: &'static str,
    },
    /// The protocol has no way to hand modules over.
    #[error("--boot {protocol} cannot hand modules to {image}")]
    NoModules {
        /// The file.
        image: String,
        /// The protocol's name.
        protocol: &'static str,
    },
    /// A module cannot be handed over.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The kernel knows no initrd.
    #[error("--boot {protocol} cannot hand an initrd to {image}, which is no Linux kernel")]
    NoInitrd {
        /// The file.
        image: String,
        /// The protocol's name.
        protocol: &'static str,
    },
    /// The initrd cannot be handed over.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The first page tables do not reach it.
    #[error(
        "{image} and what it is handed need memory up to {needed:#x}; {system} starts within the first GiB"
    )]
    BeyondMap {
        /// The file.
        image: String,
        /// Whose first page tables those are.
        system: &'static str,
        /// Where the last of it would end.
        needed: u64,
    },
    /// A segment is not where a FreeBSD kernel finds it.
    #[error(
        "{image} has a segment of virtual address {virtual_start:#x} at physical address {start:#x}; a FreeBSD kernel \
         has its segments at their virtual address less 0xffffffff80000000"
    )]
    Misplaced {
        /// The file.
        image: String,
        /// Virtual start.
        virtual_start: u64,
        /// Physical start.
        start: u64,
    },
    /// The entry is in no segment.
    #[error("{image} begins at {at:#x}, where it has nothing to load")]
    Entry {
        /// The file.
        image: String,
        /// Virtual address of the entry.
        at: u64,
    },
    /// The symbol tables contradict themselves.
    #[error("reading the symbol tables of {image}")]
    Symbols {
        /// The file.
        image: String,
        /// What is wrong with them.
        #[source]
        source: object::Error,
    },
    /// A letter of the command line that is no boot flag.
    #[error(
        "-{flag} on the command line is no boot flag of FreeBSD: those are -a -C -d -D -g -h -m -p -r -s -S -v"
    )]
    Flag {
        /// The letter.
        flag: char,
    },
    /// More variables than the kernel keeps.
    #[error("the kernel environment has {count} variables, the kernel keeps {max}")]
    TooManyVariables {
        /// How many there are.
        count: usize,
        /// The limit.
        max: usize,
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

/// The protocol for an image: the one that was asked for, else the first that recognises it.
pub fn protocol_for(
    image: &KernelImage,
    asked: Option<&'static dyn BootProtocol>,
) -> Result<&'static dyn BootProtocol, BootError> {
    let name = || image.path().display().to_string();
    match asked {
        Some(protocol) if protocol.recognises(image) => Ok(protocol),
        Some(protocol) => Err(BootError::WrongProtocol {
            image: name(),
            protocol: protocol.name(),
            takes: protocol.takes(),
        }),
        None => {
            let found = ALL.iter().copied().find(|protocol| protocol.recognises(image));
            found.ok_or_else(|| BootError::NoProtocol { image: name() })
        }
    }
}

/// A protocol by its name.
pub fn protocol(name: &str) -> Option<&'static dyn BootProtocol> {
    ALL.iter().copied().find(|protocol| protocol.name() == name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use vm_memory::{Bytes, GuestAddress};

    use super::test_kernel::{Kernel, mutate};
    use super::*;
    use crate::memory::{MemorySize, create};
    use crate::x86_64::firmware;

    #[test]
    fn an_image_decides_its_protocol_unless_another_is_asked_for() {
        let guest = guest_images::find("panic").unwrap().elf.to_vec();
        let guest = KernelImage::from_bytes(Path::new("panic"), guest).unwrap();
        let freebsd = Kernel::default().image();
        let name = |image, asked: &str| protocol_for(image, protocol(asked)).map(|protocol| protocol.name());
        assert_eq!(name(&guest, "auto").unwrap(), "pvh");
        assert_eq!(name(&freebsd, "auto").unwrap(), "native");
        assert_eq!(name(&freebsd, "pvh").unwrap(), "pvh");
        let linux = test_bzimage::image();
        assert_eq!(name(&linux, "auto").unwrap(), "pvh");
        assert_eq!(name(&linux, "bzimage").unwrap(), "bzimage");
        assert!(matches!(name(&linux, "native"), Err(BootError::WrongProtocol { .. })));
        let refused = name(&guest, "native").unwrap_err().to_string();
        assert_eq!(
            refused,
            "panic cannot be booted by --boot native, which takes a FreeBSD/amd64 kernel, started as its loader does it"
        );
    }

    /// For each protocol an image that it takes.
    fn samples() -> Vec<(&'static dyn BootProtocol, KernelImage)> {
        let sample = |name| match name {
            "native" => Kernel::default().image(),
            "pvh" => Kernel { os_abi: 0, ..Kernel::default() }.image(),
            _ => test_bzimage::image(),
        };
        ALL.iter().map(|&protocol| (protocol, sample(protocol.name()))).collect()
    }

    #[test]
    fn every_protocol_keeps_the_contract() {
        let hardware = Hardware { cpus: 2, ..Hardware::default() };
        for (protocol, image) in samples() {
            let name = protocol.name();
            assert!(protocol.recognises(&image), "{name}");
            assert_eq!(boot_name(name), Some(name));
            let memory = create(MemorySize::new(64 << 20).unwrap()).unwrap();
            firmware::write(&memory, &hardware).unwrap();
            let tables = |memory: &GuestMemory| {
                let mut tables = vec![0; 0x2_0000];
                memory.read_slice(&mut tables, GuestAddress(0xe_0000)).unwrap();
                tables
            };
            let before = tables(&memory);
            let with = Handover { cmdline: "boot_verbose=YES".into(), ..Handover::default() };
            let state = protocol.load(&image, &with, &hardware, &memory).unwrap();
            assert_eq!(tables(&memory), before, "{name} leaves what firmware wrote");
            // Kernels in the upper half are mapped to the first GiB.
            let entry = state.entry & 0x3fff_ffff;
            let code = memory.read_obj::<u64>(GuestAddress(entry)).unwrap();
            assert_ne!(code, 0, "{name}: there is something at the entry");
            let little = create(MemorySize::new(2 << 20).unwrap()).unwrap();
            let refused = protocol.load(&image, &with, &hardware, &little).unwrap_err().to_string();
            assert!(refused.ends_with("give it more with --memory"), "{name}: {refused}");
            let long = Handover { cmdline: "x".repeat(1 << 16), ..Handover::default() };
            protocol.load(&image, &long, &hardware, &memory).unwrap_err();
            let nul = Handover { cmdline: "a=\0b".into(), ..Handover::default() };
            protocol.load(&image, &nul, &hardware, &memory).unwrap_err();
        }
    }

    fn boot_name(name: &str) -> Option<&'static str> {
        protocol(name).map(|protocol| protocol.name())
    }

    #[test]
    fn an_initrd_is_for_linux_kernels() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x").unwrap();
        let with = Handover { initrd: Some(Initrd::new(file.path()).unwrap()), ..Handover::default() };
        let memory = create(MemorySize::new(64 << 20).unwrap()).unwrap();
        let freebsd = Kernel::default().image();
        for protocol in ALL.iter().filter(|protocol| protocol.recognises(&freebsd)) {
            let refused = protocol.load(&freebsd, &with, &Hardware::default(), &memory).unwrap_err();
            assert!(matches!(refused, BootError::NoInitrd { .. }), "{refused}");
        }
        // PVH's module list: one, at the end of memory.
        let linux = test_bzimage::image();
        pvh::Pvh.load(&linux, &with, &Hardware::default(), &memory).unwrap();
        let word = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!((word(0x6008) >> 32, word(0x6010)), (1, 0x6800));
        assert_eq!([word(0x6800), word(0x6808), word(0x6810)], [(64 << 20) - 0x1000, 1, 0]);
    }

    #[test]
    fn what_is_no_initrd_is_refused_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let told = |name: &str| Initrd::new(&folder.path().join(name)).unwrap_err().to_string();
        assert!(told("absent").starts_with("reading the initrd "));
        assert!(told("").ends_with(" is not a regular file"));
        std::fs::write(folder.path().join("empty"), "").unwrap();
        assert!(told("empty").ends_with(" is empty"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn damaged_kernels_are_refused_or_loaded(damage in mutate()) {
            let memory = create(MemorySize::new(64 << 20).unwrap()).unwrap();
            for file in [Kernel::default().elf(), test_bzimage::bzimage()] {
                let Ok(image) = KernelImage::from_bytes(Path::new("x"), damage.apply(file)) else { continue };
                for protocol in ALL.iter().filter(|protocol| protocol.recognises(&image)) {
                    let _ = protocol.load(&image, &Handover::default(), &Hardware::default(), &memory);
                }
            }
        }
    }
}
