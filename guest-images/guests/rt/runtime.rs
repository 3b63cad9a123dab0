//! The panic handler, and the way from `entry.s` to the guest's main.

use core::panic::PanicInfo;

use crate::{console, kenv, memory, pvpanic, start_info::StartInfo, trap};

unsafe extern "C" {
    safe fn guest_main() -> !;
}

/// The first CPU in ring 3, on its own stack, with `.bss` zeroed.
///
/// # Safety
/// Called once, by `entry.s`, with the address that the VMM gave in EBX.
#[unsafe(no_mangle)]
unsafe extern "C" fn boot(start_info: u64) -> ! {
    trap::install();
    console::init();
    // SAFETY: the PVH protocol promises the structure at that address; `StartInfo` checks its magic.
    let start_info = unsafe { StartInfo::at(start_info) };
    memory::init(&start_info);
    kenv::init(start_info.command_line());
    guest_main()
}

/// A bug in a guest: it ends as other panics do, so that it is seen at once and not waited for.
#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    pvpanic::signal(format_args!("{info}"))
}
