//! ELF cores of Linux guests: the layout that crash, drgn, libkdumpfile and makedumpfile open.

use harness::fake_linux::{self, DIRECT_MAP, IMAGE, IMAGE_LEN, RAM, TEXT_START};
use harness::readers::elf::ElfCore;
use netdump::linux::Vmcoreinfo;
use netdump::vmcore::{CoreNotes, PhysicalMemory};

use super::{all_bytes, notes, plan, store};

/// Kind, offset, virtual and physical address and both lengths of every program header.
fn segments(core: &[u8]) -> Vec<(u32, [u64; 5])> {
    let word = |at: usize| u64::from_le_bytes(core[at..at + 8].try_into().unwrap());
    let count = usize::from(core[56]);
    (0..count)
        .map(|index| 64 + 56 * index)
        .map(|at| (u32::from(core[at]), [8, 16, 24, 32, 40].map(|field| word(at + field))))
        .collect()
}

#[test]
fn image_comes_first_and_memory_has_the_addresses_of_the_direct_map() {
    let guest = fake_linux::guest();
    let core = all_bytes(&plan(&guest, &notes()));
    let [note, image, memory] = segments(&core).try_into().unwrap();
    assert_eq!((note.0, note.1[0]), (4, 64 + 3 * 56), "the notes follow the program headers");
    let data = u64::try_from(core.len()).unwrap() - RAM;
    assert_eq!(memory, (1, [data, DIRECT_MAP, 0, RAM, RAM]));
    assert_eq!(image, (1, [data + IMAGE, TEXT_START, IMAGE, IMAGE_LEN, IMAGE_LEN]));
}

/// crash (`is_netdump` of its netdump.c) looks at the first PT_LOAD: one on a page with an alignment is an old netdump's, for
/// which it does not ask VMCOREINFO where the kernel is.
#[test]
fn crash_takes_it_for_a_kdump_core() {
    let core = all_bytes(&plan(&fake_linux::guest(), &notes()));
    let first_load = &core[64 + 56..64 + 2 * 56];
    assert_eq!(first_load[..4], 1_u32.to_le_bytes());
    assert_eq!(first_load[48..], [0; 8]);
}

#[test]
fn the_note_is_the_kernels_own_text_and_is_read_again() {
    let guest = fake_linux::guest();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    store(&plan(&guest, &notes()), &path);
    let independent = ElfCore::open(&path).unwrap();
    let owners: Vec<_> = independent.notes.iter().map(|note| note.name.as_str()).collect();
    assert_eq!(owners, ["CORE", "CORE", "QEMU", "QEMU", "VMCOREINFO", "NETDUMP"]);
    let core = netdump::vmcore::open(&path).unwrap();
    assert_eq!(Vmcoreinfo::locate(&core, None), Some(fake_linux::info()));
    assert_eq!((core.notes(), core.ranges()), (&notes(), guest.ranges()));
}

#[test]
fn a_kernel_that_has_not_come_so_far_has_a_core_without_it() {
    let mut guest = fake_linux::guest();
    guest.write(fake_linux::NOTE, &[0; 24]);
    let core = all_bytes(&plan(&guest, &CoreNotes::default()));
    let [_, memory] = segments(&core).try_into().unwrap();
    assert_eq!(memory.1[1..3], [0, 0]);
}
