//! What a FreeBSD kernel is handed, made from anything: a command line (to the first NUL), a variable (to the next
//! two), a module (the rest). The list that comes of it can be walked to its end, within what was handed over.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::boot::{self, Handover, KernelImage, Module};
use vmm::memory::{self, GuestMemory, MemorySize};
use vmm::x86_64::firmware::Hardware;

const KERNEL: &[u8] = include_bytes!("../corpus/kernel_image/freebsd");

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(4, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let mut text = || String::from_utf8_lossy(next()).into_owned();
    let (cmdline, environment) = (text(), vec![(text(), text())]);
    let module = Module::from_bytes(Path::new("module"), None, next().to_vec());
    let with =
        Handover { cmdline, environment, modules: module.into_iter().collect(), ..Handover::default() };
    let image = KernelImage::from_bytes(Path::new("kernel"), KERNEL.to_vec()).expect("a whole kernel");
    let memory = memory::create(MemorySize::new(64 << 20).expect("whole MiB")).expect("64 MiB of memory");
    let native = boot::protocol("native").expect("there is such a protocol");
    if native.load(&image, &with, &Hardware::default(), &memory).is_ok() {
        walk(&memory);
    }
});

fn walk(memory: &GuestMemory) {
    let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).expect("handed over below 64 MiB");
    let (mut at, end) = (u64::from(word(0x1004)), u64::from(word(0x1008)));
    loop {
        let (kind, len) = (word(at), word(at + 4));
        at += 8 + u64::from(len).next_multiple_of(8);
        assert!(at <= end, "the list runs over its end");
        if (kind, len) == (0, 0) {
            break;
        }
    }
}
