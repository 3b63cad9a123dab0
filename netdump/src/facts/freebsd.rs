//! FreeBSD and guests that keep its conventions: `sys/kern/kern_environment.c` for the kernel environment,
//! `sys/kern/kern_shutdown.c` for the panic message, `sys/sys/jail.h` for the host name.

use super::{GuestFacts, GuestOs, KernelState, StateRequest};
use crate::freebsd::{is_freebsd, kernel_memory, msgbuf, threads};
use crate::vmcore::VirtualMemory;
use crate::vmcore::kernel_memory::{KernelMemory, text};
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// Pointers in `kenvp[]` (`KENV_SIZE`).
const KENV_SIZE: u64 = 512;
/// Longest "name=value" with its NUL. The kernel's own limits are 128 for a name and, unless tuned, 128 for a value.
const MAX_VARIABLE: usize = 4096;
/// Most variables and bytes of a block that a boot loader passed. Loaders pass some hundred variables.
const MAX_STATIC_VARIABLES: usize = 4096;
const MAX_STATIC_BLOCK: usize = 256 << 10;
/// Size of the static buffer that `panicstr` points at; a longer text is cut.
const MAX_PANIC_TEXT: usize = 256;
/// `struct prison` ends with hostname[256], domainname[256], hostuuid[64], osrelease[32].
const HOST_NAME_FROM_END: u64 = 608;
const MAX_HOST_NAME: usize = 256;

/// A FreeBSD kernel, told by its symbols.
pub(super) struct FreeBsd;

impl GuestOs for FreeBsd {
    fn name(&self) -> &'static str {
        "freebsd"
    }

    fn recognise(&self, _memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> bool {
        kernel.is_some_and(is_freebsd)
    }

    /// `time_second`, which the clock interrupt updates: it stands still from the panic on.
    fn clock(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> Option<u64> {
        kernel_memory(memory, kernel?).pointer("time_second")
    }

    fn facts(&self, memory: &dyn PhysicalMemory, kernel: Option<&KernelSymbols>) -> GuestFacts {
        let Some(symbols) = kernel else { return GuestFacts::default() };
        let kernel = kernel_memory(memory, symbols);
        GuestFacts {
            os: kernel.array_text("ostype"),
            release: kernel.array_text("osrelease"),
            version: kernel.array_text("version"),
            host_name: host_name(&kernel, symbols),
            panic_text: panic_text(&kernel),
            environment: environment(&kernel),
        }
    }

    fn state(
        &self,
        memory: &dyn PhysicalMemory,
        kernel: Option<&KernelSymbols>,
        request: StateRequest,
    ) -> KernelState {
        let Some(symbols) = kernel else { return KernelState::default() };
        let kernel = kernel_memory(memory, symbols);
        let mut state = KernelState { message_buffer: msgbuf::read(&kernel), ..KernelState::default() };
        threads::gather(&kernel, request, &mut state);
        state
    }
}

/// The formatted message: `panicstr` points at it once the kernel has panicked.
fn panic_text(kernel: &KernelMemory<'_>) -> Option<String> {
    let address = kernel.pointer("panicstr").filter(|&address| address != 0)?;
    text(&kernel.read_cut_string(address, MAX_PANIC_TEXT)?)
}

/// `prison0.pr_hostname`, or the array `hostname` that kernels without jails' own names have.
///
/// The kernel has no constant for the offset in `prison0`, but the end of the structure has been the same in all
/// versions read; a name that cannot be one tells that it is not any more.
fn host_name(kernel: &KernelMemory<'_>, symbols: &KernelSymbols) -> Option<String> {
    let in_prison = || {
        let from_start = symbols.size("prison0")?.checked_sub(HOST_NAME_FROM_END)?;
        let address = symbols.address("prison0")?.checked_add(from_start)?;
        text(&kernel.read_string(address, MAX_HOST_NAME)?)
    };
    let plausible = |name: &String| name.len() < MAX_HOST_NAME && name.chars().all(|c| c.is_ascii_graphic());
    in_prison().filter(plausible).or_else(|| kernel.array_text("hostname").filter(plausible))
}

/// As the guest last set it: `kenvp[]` once it is in force, the boot loader's and the compiled-in blocks before that
/// (they are wiped when `kenvp[]` takes over).
fn environment(kernel: &KernelMemory<'_>) -> Option<Vec<(String, String)>> {
    if kernel.flag("dynamic_kenv") == Some(true) {
        return kernel.pointer("kenvp").filter(|&address| address != 0).map(|array| dynamic(kernel, array));
    }
    let blocks: Vec<_> = ["md_envp", "kern_envp"]
        .into_iter()
        .filter_map(|block| kernel.pointer(block).filter(|&address| address != 0))
        .collect();
    (!blocks.is_empty()).then(|| blocks.into_iter().flat_map(|block| fixed(kernel, block)).collect())
}

/// The strings that a NULL-terminated array of pointers names. Unreadable ones are left out.
fn dynamic(kernel: &KernelMemory<'_>, array: u64) -> Vec<(String, String)> {
    (0..KENV_SIZE)
        .map_while(|index| {
            let entry = kernel.read_u64(array.checked_add(8 * index)?)?;
            (entry != 0).then_some(entry)
        })
        .filter_map(|string| variable(&kernel.read_string(string, MAX_VARIABLE)?))
        .collect()
}

/// The strings of a block, one behind the other, ended by an empty one.
fn fixed(kernel: &KernelMemory<'_>, block: u64) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut used = 0;
    for _ in 0..MAX_STATIC_VARIABLES {
        let Some(string) = block
            .checked_add(used as u64)
            .and_then(|address| kernel.read_string(address, MAX_VARIABLE.min(MAX_STATIC_BLOCK - used)))
            .filter(|string| !string.is_empty())
        else {
            break;
        };
        used += string.len() + 1;
        variables.extend(variable(&string));
    }
    variables
}

fn variable(string: &[u8]) -> Option<(String, String)> {
    let equals = string.iter().position(|&byte| byte == b'=')?;
    Some((text(&string[..equals])?, String::from_utf8_lossy(&string[equals + 1..]).into_owned()))
}
