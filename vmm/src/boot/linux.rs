//! What a Linux kernel is handed, however it is entered: its command line and its initrd. Both lie below 4 GiB, as the
//! PVH entry keeps 32 bits of their addresses (Linux `arch/x86/platform/pvh/enlighten.c`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use netdump::linux::kallsyms::Kallsyms;
use netdump::vmcore::KernelSymbols;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::space::{PAGE, low_ram_end};
use super::{BootError, Handover};
use crate::memory::GuestMemory;
use crate::x86_64::layout;

/// Longest command line that a kernel keeps, NUL included (Linux `arch/x86/include/asm/setup.h`, `COMMAND_LINE_SIZE`).
pub(super) const CMDLINE_MAX: usize = 2048;

/// The symbols that are kept of a Linux kernel while it runs: what tells that it panicked, and where it says what it is.
/// All of them would be 30 MB; a stopped guest's memory has the rest.
pub(crate) const KEPT_SYMBOLS: [&str; 27] = [
    "__cpu_online_mask",
    "_end",
    "_stext",
    "_text",
    "asm_exc_divide_error",
    "crashing_cpu",
    "entry_SYSCALL_64",
    "init_task",
    "init_top_pgt",
    "init_uts_ns",
    "kexec_crash_image",
    "linux_banner",
    "oops_in_progress",
    "page_offset_base",
    "panic",
    "panic_cpu",
    "panic_timeout",
    "phys_base",
    "prb",
    "printk_rb_dynamic",
    "printk_rb_static",
    "saved_command_line",
    "suppress_printk",
    "tainted_mask",
    "vmcoreinfo_data",
    "vmcoreinfo_note",
    "waiting_for_crash_ipi",
];

/// The symbols of a kernel whose own table, in `symbols`, may be empty, as a distribution's is: then from its kallsyms.
pub(super) fn kept_symbols(elf: &[u8], symbols: KernelSymbols) -> KernelSymbols {
    if !symbols.is_empty() {
        return symbols.only(&KEPT_SYMBOLS);
    }
    match Kallsyms::from_image(elf) {
        Some(kallsyms) => kallsyms.only(KEPT_SYMBOLS, symbols),
        None => symbols,
    }
}

/// A file that the kernel unpacks into its first root file system. One of the host's is read into guest memory and nowhere
/// else.
#[derive(Clone, PartialEq, Eq)]
pub struct Initrd {
    path: PathBuf,
    len: u64,
    /// Its content, where it is no file of the host's.
    bytes: Option<Vec<u8>>,
}

impl std::fmt::Debug for Initrd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initrd").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

/// Why a file cannot be handed over as the initrd.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// It cannot be read.
    #[error("reading the initrd {path}")]
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a device, a pipe, ...
    #[error("the initrd {path} is not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// The kernel would take it for none.
    #[error("the initrd {path} is empty")]
    Empty {
        /// The file.
        path: String,
    },
    /// It does not fit behind the kernel.
    #[error(
        "the initrd {path} has {len} bytes, and the kernel leaves {room} of low memory: give the guest more with --memory"
    )]
    Large {
        /// The file.
        path: String,
        /// Its size.
        len: u64,
        /// Bytes between the end of the kernel and the end of what it can reach.
        room: u64,
    },
    /// It became shorter since it was looked at, or lies on a disk that fails.
    #[error("reading {len} bytes of the initrd {path} into guest memory")]
    Load {
        /// The file.
        path: String,
        /// How many there were.
        len: u64,
        /// What went wrong.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

impl Initrd {
    /// Looks at the file; it is read when the guest boots, each time anew.
    pub fn new(path: &Path) -> Result<Self, InitrdError> {
        let name = || path.display().to_string();
        // Opened, to find out now whether that is allowed; but not before it is known to be no pipe, which may block.
        let metadata = std::fs::metadata(path);
        let metadata = metadata.map_err(|source| InitrdError::Read { path: name(), source })?;
        if !metadata.is_file() {
            return Err(InitrdError::NotAFile { path: name() });
        }
        File::open(path).map_err(|source| InitrdError::Read { path: name(), source })?;
        match metadata.len() {
            0 => Err(InitrdError::Empty { path: name() }),
            len => Ok(Self { path: path.to_owned(), len, bytes: None }),
        }
    }

    /// One that is in memory; `path` is its name.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, InitrdError> {
        match bytes.len() as u64 {
            0 => Err(InitrdError::Empty { path: path.display().to_string() }),
            len => Ok(Self { path: path.to_owned(), len, bytes: Some(bytes) }),
        }
    }

    /// Puts it as high as it goes, page-aligned: not below `floor` and not beyond `limit` or the end of low RAM.
    pub(super) fn load(&self, memory: &GuestMemory, floor: u64, limit: u64) -> Result<Placed, InitrdError> {
        let path = || self.path.display().to_string();
        let Self { len, .. } = *self;
        let end = limit.min(low_ram_end(memory));
        let start = end.checked_sub(len).map(|start| start / PAGE * PAGE).filter(|&start| start >= floor);
        let Some(start) = start else {
            return Err(InitrdError::Large { path: path(), len, room: end.saturating_sub(floor) });
        };
        if let Some(bytes) = &self.bytes {
            memory.write_slice(bytes, GuestAddress(start)).map_err(|source| InitrdError::Load {
                path: path(),
                len,
                source,
            })?;
            return Ok(Placed { start, len });
        }
        let mut file = File::open(&self.path).map_err(|source| InitrdError::Read { path: path(), source })?;
        let count = usize::try_from(len).expect("it fits into guest memory");
        memory
            .read_exact_volatile_from(GuestAddress(start), &mut file, count)
            .map_err(|source| InitrdError::Load { path: path(), len, source })?;
        Ok(Placed { start, len })
    }
}

/// Where the initrd lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    /// Guest-physical start.
    pub(super) start: u64,
    /// Its length in bytes.
    pub(super) len: u64,
}

/// The command line with the environment behind it, as words. `max` counts the NUL.
pub(super) fn command_line(with: &Handover, max: usize) -> Result<String, BootError> {
    let mut line = with.cmdline.clone();
    for (name, value) in &with.environment {
        // Quotes could carry blanks, but only some readers of a command line know them.
        if [name, value].iter().any(|text| text.contains([' ', '\t', '\n', '\0', '"'])) {
            let problem = "a Linux kernel gets it as a word of its command line, which has no blanks, tabs, newlines, \
                           NULs or quotes";
            return Err(BootError::Variable { name: name.clone(), problem });
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&format!("{name}={value}"));
    }
    check_command_line(&line, max)?;
    Ok(line)
}

/// Writes a command line where every protocol has it.
pub(super) fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    check_command_line(line, layout::CMDLINE_MAX)?;
    let bytes = [line.as_bytes(), &[0]].concat();
    memory
        .write_slice(&bytes, GuestAddress(layout::CMDLINE))
        .map_err(|source| BootError::Write { what: "the command line", source })
}

fn check_command_line(line: &str, max: usize) -> Result<(), BootError> {
    let len = line.len() + 1;
    if len > max {
        return Err(BootError::CmdlineTooLong { len, max });
    }
    if line.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    Ok(())
}
