//! Symbols and load maps of kernel images, on images made here.

use harness::fake_kernel::FakeKernel;
use netdump::vmcore::{KernelSymbols, SymbolsError};
use proptest::prelude::*;

fn kernel() -> FakeKernel {
    FakeKernel::default()
        .segment(0xffff_ffff_8020_0000, 0x20_0000, 0x10_0000)
        .segment(0x1000, 0x1000, 0x800)
        .local("twice", 1, 0)
        .symbol("panicstr", 0xffff_ffff_8020_1000, 8)
        .symbol("twice", 2, 4)
        .local("twice", 3, 0)
        .local("md_envp", 0xffff_ffff_8020_1008, 8)
}

#[test]
fn variables_of_every_built_guest_are_found() {
    for guest in guest_images::ALL {
        let symbols = KernelSymbols::parse(guest.elf).unwrap();
        for name in ["kenvp", "dynamic_kenv", "md_envp", "kern_envp", "panicstr", "hostname", "version"] {
            let known = guest.symbol(name).unwrap();
            assert_eq!(symbols.address(name), Some(known.address), "{} {name}", guest.name);
            assert_eq!(symbols.size(name), Some(known.size), "{} {name}", guest.name);
            assert_eq!(symbols.physical(known.address), Some(known.address), "{} {name}", guest.name);
        }
    }
}

#[test]
fn addresses_and_sizes_are_found() {
    let symbols = KernelSymbols::parse(&kernel().image()).unwrap();
    assert_eq!(symbols.address("panicstr"), Some(0xffff_ffff_8020_1000));
    assert_eq!(symbols.size("panicstr"), Some(8));
    assert_eq!(symbols.address("md_envp"), Some(0xffff_ffff_8020_1008));
    assert_eq!(symbols.address("panicst"), None);
    assert_eq!((symbols.len(), symbols.is_empty()), (3, false));
}

#[test]
fn global_symbol_wins_over_local_ones() {
    let symbols = KernelSymbols::parse(&kernel().image()).unwrap();
    assert_eq!((symbols.address("twice"), symbols.size("twice")), (Some(2), Some(4)));
}

#[test]
fn undefined_symbols_sections_and_files_are_no_symbols() {
    let image = kernel()
        .raw_symbol("undefined", 1, 0, 0x10, 0)
        .raw_symbol("section", 1, 0, 0x03, 1)
        .raw_symbol("file.c", 1, 0, 0x04, 0xfff1)
        .symbol("", 1, 0)
        .image();
    assert_eq!(KernelSymbols::parse(&image).unwrap().len(), 3);
}

#[test]
fn physical_addresses_come_from_the_load_map() {
    let symbols = KernelSymbols::parse(&kernel().image()).unwrap();
    assert_eq!(symbols.physical(0xffff_ffff_8020_1000), Some(0x20_1000));
    assert_eq!(symbols.physical(0x17ff), Some(0x17ff));
    for outside in [0, 0xfff, 0x1800, 0xffff_ffff_8030_0000] {
        assert_eq!(symbols.physical(outside), None, "{outside:#x}");
    }
}

#[test]
fn entries_of_assembly_are_functions_without_being_called_so() {
    let text = 0xffff_ffff_8020_0000;
    let (global_function, local_label) = (0x12, 0x00);
    let symbols = kernel()
        .segment_without_code(0xffff_ffff_8040_0000, 0x40_0000, 0x1000)
        .raw_symbol("copyin", text + 0x100, 0x80, global_function, 1)
        .raw_symbol("copyin_loop", text + 0x140, 0, local_label, 1)
        .raw_symbol("Xfast_syscall", text + 0x200, 0, global_function, 1)
        .raw_symbol("an_alias", text + 0x200, 0, local_label, 1)
        .raw_symbol("fast_syscall_common", text + 0x203, 0, local_label, 1)
        .raw_symbol("a_constant", text + 0x210, 0, local_label, 0xfff1)
        .raw_symbol("end_of_data", 0xffff_ffff_8040_0000, 0, local_label, 1);
    let symbols = KernelSymbols::parse(&symbols.image()).unwrap();
    let at = |address| symbols.function_at(address).map(|place| (place.function, place.offset));
    assert_eq!(at(text + 0x144), Some(("copyin", 0x44)), "a label in a function is no function");
    assert_eq!(at(text + 0x202), Some(("Xfast_syscall", 2)));
    assert_eq!(at(text + 0x2fb), Some(("fast_syscall_common", 0xf8)));
    assert_eq!(at(0xffff_ffff_8040_0000), Some(("fast_syscall_common", 0x1f_fdfd)), "data is no function");
}

#[test]
fn stripped_image_has_no_symbols_but_a_load_map() {
    let mut image = kernel().image();
    // e_shoff, e_shnum, e_shstrndx.
    image[40..48].fill(0);
    image[60..64].fill(0);
    let symbols = KernelSymbols::parse(&image).unwrap();
    assert!(symbols.is_empty());
    assert_eq!(symbols.physical(0x1000), Some(0x1000));
}

#[test]
fn other_files_are_refused() {
    let mut small = kernel().image();
    small[4] = 1;
    let mut big_endian = kernel().image();
    big_endian[5] = 2;
    for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh", &small, &big_endian] {
        assert!(matches!(
            KernelSymbols::parse(bytes),
            Err(SymbolsError::NotElf64 | SymbolsError::Damaged(_))
        ));
    }
}

#[test]
fn image_need_not_be_aligned_in_memory() {
    let mut bytes = vec![0];
    bytes.extend(kernel().image());
    assert_eq!(KernelSymbols::parse(&bytes[1..]).unwrap().len(), 3);
}

#[test]
fn overlong_names_are_left_out() {
    let image = kernel().symbol(&"n".repeat(513), 1, 0).symbol(&"n".repeat(512), 1, 0).image();
    assert_eq!(KernelSymbols::parse(&image).unwrap().len(), 4);
}

/// An image with this symbol table and these strings.
fn with_tables(table: &[u8], strings: &[u8]) -> Vec<u8> {
    let mut image = kernel().image();
    let sections = usize::try_from(u64::from_le_bytes(image[40..48].try_into().unwrap())).unwrap();
    for (index, bytes) in [(1, table), (2, strings)] {
        let place = [image.len() as u64, bytes.len() as u64];
        for (word, at) in place.iter().zip([24, 32]) {
            let at = sections + 64 * index + at;
            image[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        image.extend(bytes);
    }
    image
}

#[test]
fn more_symbols_than_any_kernel_has_are_refused() {
    let image = with_tables(&vec![0; 24 * ((1 << 20) + 1)], &[0]);
    assert!(matches!(KernelSymbols::parse(&image), Err(SymbolsError::TooMany(1_048_577))));
}

#[test]
fn names_that_overlap_in_the_file_are_bounded_in_memory() {
    let blocks: u32 = 17_000;
    let strings: Vec<u8> = (0..blocks).flat_map(|block| format!("{block:0512}\0").into_bytes()).collect();
    let starts = (0..blocks).flat_map(|block| (0..8).map(move |skip| block * 513 + skip));
    // Global objects at address 0, each name beginning in another place of its block.
    let table: Vec<u8> = starts
        .filter(|&start| start > 0)
        .flat_map(|start| start.to_le_bytes().into_iter().chain([0x11, 0, 0xf1, 0xff]).chain([0; 16]))
        .collect();
    let image = with_tables(&table, &strings);
    assert!(image.len() < 16 << 20, "the file alone is no bound");
    assert!(matches!(KernelSymbols::parse(&image), Err(SymbolsError::NamesTooLong)));
}

proptest! {
    #[test]
    fn damaged_images_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut: prop::sample::Index) {
        let mut image = kernel().image();
        for (place, value) in changes {
            let place = place.index(image.len());
            image[place] = value;
        }
        let _ = KernelSymbols::parse(&image);
        let cut = cut.index(image.len());
        let _ = KernelSymbols::parse(&image[..cut]);
    }
}

#[test]
fn names_that_share_an_endless_string_cost_little() {
    const COUNT: usize = 200_000;
    let long = FakeKernel::default().symbol(&"x".repeat(8 << 20), 1, 0);
    let kernel = (0..COUNT).fold(long, |kernel, _| kernel.symbol("", 1, 0));
    let mut image = kernel.image();
    for (place, entry) in (1_u32..).zip(image[64..].chunks_exact_mut(24).skip(1).take(COUNT)) {
        entry[..4].copy_from_slice(&place.to_le_bytes());
    }
    let start = std::time::Instant::now();
    assert!(KernelSymbols::parse(&image).unwrap().is_empty());
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
}
