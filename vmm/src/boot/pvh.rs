//! The PVH boot protocol: an ELF kernel with a 32-bit entry, handed a start info structure (Xen `docs/misc/pvh.pandoc`,
//! `public/arch-x86/hvm/start_info.h`). Loading and structures are linux-loader's.
//!
//! Command line and kernel environment share one string, as FreeBSD's PVH entry wants it: tokens separated by blanks,
//! `name=value` each, at most 127 bytes a token and 4 KiB in all.

use std::io::Cursor;

use kvm_bindings::{kvm_dtable, kvm_sregs};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use super::kenv::Kenv;
use super::linux::{self, Placed, write_command_line};
use super::space::low_ram_end;
use super::{BootError, BootProtocol, BootState, EntryMode, Handover, KernelImage};
use crate::memory::GuestMemory;
use crate::x86_64::firmware::{self, Hardware, MapEntry};
use crate::x86_64::layout;
use crate::x86_64::regs::segment_from_descriptor;

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// Longest `name=value` that FreeBSD keeps of a token.
const TOKEN_MAX: usize = 127;
/// Null, flat code, flat data, task state; the last limit is a byte limit.
const GDT: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;

/// The protocol.
#[derive(Debug)]
pub(super) struct Pvh;

impl BootProtocol for Pvh {
    fn name(&self) -> &'static str {
        "pvh"
    }

    fn takes(&self) -> &'static str {
        "an ELF kernel with a PVH entry (a Xen note of type 18), as it is or in a Linux bzImage"
    }

    fn recognises(&self, image: &KernelImage) -> bool {
        image.has_pvh_entry()
    }

    fn load(
        &self,
        image: &KernelImage,
        with: &Handover,
        hardware: &Hardware,
        memory: &GuestMemory,
    ) -> Result<BootState, BootError> {
        check_segments(image, memory)?;
        if !with.modules.is_empty() {
            return Err(BootError::NoModules { image: image.name(), protocol: self.name() });
        }
        let entry = load_elf(image, memory)?;
        let initrd = load_initrd(image, with, memory)?;
        let line = if image.is_linux_kernel() {
            linux::command_line(with, linux::CMDLINE_MAX)?
        } else if image.is_freebsd_kernel() {
            // The flags of its command line are lost on the kernel, the variables of the same meaning are not.
            tokens("", Kenv::new(image, with, hardware)?.variables())?
        } else {
            tokens(&with.cmdline, &with.environment)?
        };
        write_command_line(memory, &line)?;
        write_start_info(memory, initrd)?;
        write_gdt(memory)?;
        Ok(BootState { entry, rbx: layout::PVH_START_INFO, rsi: 0, rsp: 0, mode: EntryMode::Protected32 })
    }
}

/// Control registers and segments at the entry.
pub(super) fn apply_protected_mode(sregs: &mut kvm_sregs) {
    let data = segment_from_descriptor(GDT[2], 2);
    sregs.cs = segment_from_descriptor(GDT[1], 1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment_from_descriptor(GDT[3], 3);
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: 8 * 4 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
}

fn check_segments(image: &KernelImage, memory: &GuestMemory) -> Result<(), BootError> {
    let available = low_ram_end(memory);
    let needed = image.segments().iter().map(|segment| segment.end).max().unwrap_or(0);
    if needed > available {
        return Err(BootError::TooLarge { image: image.name(), needed, available });
    }
    match image.segments().iter().map(|segment| segment.start).min() {
        Some(at) if at < layout::HIMEM => Err(BootError::TooLow { image: image.name(), at }),
        _ => Ok(()),
    }
}

fn load_elf(image: &KernelImage, memory: &GuestMemory) -> Result<u64, BootError> {
    let loaded = Elf::load(memory, None, &mut Cursor::new(image.bytes()), None)
        .map_err(|source| BootError::Load { image: image.name(), source })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry.0),
        _ => Err(BootError::NoProtocol { image: image.name() }),
    }
}

/// The command line with the environment behind it.
fn tokens(cmdline: &str, environment: &[(String, String)]) -> Result<String, BootError> {
    let mut line = cmdline.to_owned();
    for (name, value) in environment {
        check_variable(name, value)?;
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&format!("{name}={value}"));
    }
    Ok(line)
}

fn check_variable(name: &str, value: &str) -> Result<(), BootError> {
    let separates = |c: char| matches!(c, ' ' | ',' | '\t' | '\n' | '\0');
    let problem = if name.contains(separates) || value.contains(separates) {
        "the PVH boot protocol cannot pass a name or value with a blank, comma, tab, newline or NUL: variables are \
         separated by blanks, and --boot native passes such values to a FreeBSD kernel"
    } else if name.len() + 1 + value.len() > TOKEN_MAX {
        "name and value are longer than 126 bytes together, which the kernel would cut"
    } else {
        return Ok(());
    };
    Err(BootError::Variable { name: name.to_owned(), problem })
}

/// Behind the kernel; where it is.
fn load_initrd(
    image: &KernelImage,
    with: &Handover,
    memory: &GuestMemory,
) -> Result<Option<Placed>, BootError> {
    let Some(initrd) = &with.initrd else { return Ok(None) };
    if image.is_freebsd_kernel() {
        return Err(BootError::NoInitrd { image: image.name(), protocol: Pvh.name() });
    }
    let end = image.segments().iter().map(|segment| segment.end).max().unwrap_or(layout::HIMEM);
    Ok(Some(initrd.load(memory, end, layout::HOLE_END)?))
}

fn write_start_info(memory: &GuestMemory, initrd: Option<Placed>) -> Result<(), BootError> {
    let memmap = memmap(memory);
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| layout::PVH_MODULES),
        rsdp_paddr: layout::ACPI,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: u32::try_from(memmap.len()).expect("a handful of entries"),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&memmap, GuestAddress(layout::PVH_MEMMAP));
    if let Some(Placed { start, len }) = initrd {
        let module = hvm_modlist_entry { paddr: start, size: len, ..Default::default() };
        params.set_modules(&[module], GuestAddress(layout::PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
        .expect("RAM reaches beyond the boot data: the smallest guest has 2 MiB");
    Ok(())
}

fn memmap(memory: &GuestMemory) -> Vec<hvm_memmap_table_entry> {
    let entry = |entry: MapEntry| hvm_memmap_table_entry {
        addr: entry.start,
        size: entry.end - entry.start,
        type_: entry.kind as u32,
        reserved: 0,
    };
    firmware::memory_map(memory).into_iter().map(entry).collect()
}

fn write_gdt(memory: &GuestMemory) -> Result<(), BootError> {
    for (at, descriptor) in (layout::GDT..).step_by(8).zip(GDT) {
        memory
            .write_obj(descriptor, GuestAddress(at))
            .map_err(|source| BootError::Write { what: "the descriptor table", source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Module;
    use crate::boot::test_kernel::Kernel;
    use crate::memory::{MemorySize, create};
    use std::path::Path;

    fn image() -> KernelImage {
        let bytes = guest_images::find("panic").unwrap().elf.to_vec();
        KernelImage::from_bytes(Path::new("panic"), bytes).unwrap()
    }

    fn memory(mib: u64) -> GuestMemory {
        create(MemorySize::new(mib << 20).unwrap()).unwrap()
    }

    fn environment(pairs: &[(&str, &str)]) -> Handover {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Handover { cmdline: "-v".into(), environment: pairs.iter().map(own).collect(), ..Default::default() }
    }

    #[test]
    fn start_info_memory_map_and_command_line_are_where_the_kernel_looks() {
        let memory = memory(4096);
        let with = environment(&[("net.dump.server", "10.0.0.9"), ("a", "")]);
        let state = Pvh.load(&image(), &with, &Hardware::default(), &memory).unwrap();
        let word = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(state.rbx, layout::PVH_START_INFO);
        assert_eq!(word(state.rbx), 0x1_336e_c578);
        assert_eq!((word(state.rbx + 24), word(state.rbx + 40)), (layout::CMDLINE, layout::PVH_MEMMAP));
        assert_eq!((word(state.rbx + 32), word(state.rbx + 48)), (0xe_0000, 5));
        let map: Vec<_> = (0..5).map(|i| [0, 8, 16].map(|field| word(0x7000 + i * 24 + field))).collect();
        assert_eq!(
            map,
            [
                [0, 0x9_fc00, 1],
                [0x9_fc00, 0x400, 2],
                [0xe_0000, 0x2_0000, 2],
                [0x10_0000, 0xbff0_0000, 1],
                [1 << 32, 1 << 30, 1]
            ]
        );
        let mut line = [0; 32];
        memory.read_slice(&mut line, GuestAddress(layout::CMDLINE)).unwrap();
        assert_eq!(&line, b"-v net.dump.server=10.0.0.9 a=\0\0");
    }

    #[test]
    fn a_freebsd_kernel_gets_flags_as_variables_and_hints_for_its_console() {
        let (memory, kernel) = (memory(64), Kernel::default().image());
        let with = environment(&[("a", "b")]);
        Pvh.load(&kernel, &with, &Hardware::default(), &memory).unwrap();
        let mut line = [0; 256];
        memory.read_slice(&mut line, GuestAddress(layout::CMDLINE)).unwrap();
        let line = std::str::from_utf8(&line).unwrap().trim_end_matches('\0');
        assert_eq!(
            line,
            "boot_verbose=YES a=b console=comconsole boot_serial=YES hint.uart.0.at=isa \
             hint.uart.0.port=0x3F8 hint.uart.0.irq=4 hint.uart.0.flags=0x10 kernelname=/boot/kernel/test"
        );
        // The kernel would take them for several.
        for cmdline in ["a=1,b=2", "a,b=2"] {
            let comma = Handover { cmdline: cmdline.into(), ..Default::default() };
            let refused = Pvh.load(&kernel, &comma, &Hardware::default(), &memory).unwrap_err();
            assert!(refused.to_string().contains("--boot native"), "{refused}");
        }
    }

    #[test]
    fn modules_are_refused() {
        let module = Module::from_bytes(Path::new("m"), Some("t".into()), vec![]).unwrap();
        let with = Handover { modules: vec![module], ..Default::default() };
        let refused = Pvh.load(&image(), &with, &Hardware::default(), &memory(64)).unwrap_err();
        assert!(matches!(refused, BootError::NoModules { protocol: "pvh", .. }));
    }

    #[test]
    fn what_cannot_be_passed_is_refused() {
        for value in ["a b", "a,b", "a\tb", "a\nb", "a\0b", &"x".repeat(126)] {
            assert!(matches!(tokens("", &[("n".into(), value.into())]), Err(BootError::Variable { .. })));
        }
        assert!(tokens("", &[("n".into(), "x".repeat(125))]).is_ok());
        let long = Handover { cmdline: "x".repeat(4096), ..Default::default() };
        assert!(matches!(
            Pvh.load(&image(), &long, &Hardware::default(), &memory(64)),
            Err(BootError::CmdlineTooLong { .. })
        ));
        let nul = Handover { cmdline: "a\0b".into(), ..Default::default() };
        assert!(matches!(
            Pvh.load(&image(), &nul, &Hardware::default(), &memory(64)),
            Err(BootError::CmdlineNul)
        ));
    }

    #[test]
    fn a_kernel_larger_than_memory_is_refused_with_both_sizes() {
        let error = Pvh.load(&image(), &Handover::default(), &Hardware::default(), &memory(2)).unwrap_err();
        assert!(matches!(error, BootError::TooLarge { available: 0x20_0000, .. }), "{error}");
    }
}
