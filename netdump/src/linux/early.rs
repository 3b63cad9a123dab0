//! A kernel that panicked before it had VMCOREINFO, early in its start: what VMCOREINFO would say is put together from the
//! page tables, the kernel's own symbols, which are in its image from the first instruction on, and its types.

use std::fmt::Write as _;
use std::sync::Arc;

use super::btf::Btf;
use super::image::KernelImage;
use super::kallsyms::Kallsyms;
use super::layout::DIRECT_MAP_ALIGNMENT;
use super::vmcoreinfo::PUT_TOGETHER;
use super::{LinuxMemory, Vmcoreinfo};
use crate::vmcore::PhysicalMemory;
use crate::vmcore::VirtualMemory;
use crate::vmcore::paging::Mapping;

/// Where kernels are linked to begin (`__START_KERNEL` with the usual `CONFIG_PHYSICAL_START`).
const LINKED_AT: u64 = 0xffff_ffff_8100_0000;
/// How much of an image is searched.
const MAX_IMAGE: usize = 64 << 20;
/// Most bytes of the image's notes; kernels have some hundred.
const MAX_NOTES: usize = 64 << 10;
/// Longest banner that is read, and how it begins.
const MAX_BANNER: usize = 512;
const BANNER: &str = "Linux version ";
/// Structures of printk's ring buffer, and the fields that its reader needs (`kernel/printk/printk_ringbuffer.h`).
const LOG_STRUCTURES: [(&str, &[&str]); 6] = [
    ("printk_ringbuffer", &["desc_ring", "text_data_ring"]),
    ("prb_desc_ring", &["count_bits", "descs", "infos", "head_id", "tail_id"]),
    ("prb_desc", &["state_var", "text_blk_lpos"]),
    ("prb_data_blk_lpos", &["begin", "next"]),
    ("printk_info", &["ts_nsec", "text_len"]),
    ("prb_data_ring", &["size_bits", "data"]),
];

/// Such a kernel.
#[derive(Debug, Clone)]
pub struct EarlyKernel {
    /// What its VMCOREINFO would say, marked as put together ([`Vmcoreinfo::is_put_together`]).
    pub(super) info: Vmcoreinfo,
    /// Its symbols, as it runs.
    pub(super) symbols: Kallsyms,
    /// Kernel address of guest-physical address 0 in the direct map, where the page tables agree with what the kernel says.
    pub(super) direct_map: Option<u64>,
}

/// The kernel whose image the CPUs' page tables map. It is looked for once in a memory that keeps what was found.
pub(super) fn find(memory: &dyn PhysicalMemory) -> Option<Arc<EarlyKernel>> {
    let search = || search(memory).map(Arc::new);
    match memory.findings() {
        Some(findings) => findings.early.get_or_init(search).clone(),
        None => search(),
    }
}

fn search(memory: &dyn PhysicalMemory) -> Option<EarlyKernel> {
    let image = KernelImage::find(memory)?;
    let symbols = Kallsyms::from_image(&image_bytes(memory, image)?)?;
    let names = [
        "_text",
        "_stext",
        "init_top_pgt",
        "init_uts_ns",
        "linux_banner",
        "prb",
        "__start_BTF",
        "__stop_BTF",
        "page_offset_base",
        "__start_notes",
        "__stop_notes",
    ];
    let [text, stext, root, uts, banner, log, types, types_end, direct_map, notes, notes_end] =
        symbols.addresses(names);
    if text != Some(image.virtual_start) {
        return None;
    }
    let physical = |address: u64| address.checked_sub(image.virtual_start)?.checked_add(image.physical_start);
    let release = release(memory, physical(banner?)?)?;
    let mut said = format!("OSRELEASE={release}\nPAGESIZE=4096\n{PUT_TOGETHER}=1\n");
    let five_levels = u8::from(matches!(image.mapping, Mapping::FiveLevel(_)));
    let moved = image.virtual_start.checked_sub(LINKED_AT)?;
    let lines = [
        format!("SYMBOL(init_uts_ns)={:x}", uts?),
        format!("SYMBOL(swapper_pg_dir)={:x}", root?),
        // makedumpfile asks for the tables by this name.
        format!("SYMBOL(init_top_pgt)={:x}", root?),
        format!("SYMBOL(_stext)={:x}", stext?),
        format!("SYMBOL(prb)={:x}", log?),
        format!("NUMBER(phys_base)={}", image.phys_base().cast_signed()),
        format!("NUMBER(pgtable_l5_enabled)={five_levels}"),
        format!("KERNELOFFSET={moved:x}"),
    ];
    let notes = notes.zip(notes_end).and_then(|(from, to)| Some((physical(from)?, to.checked_sub(from)?)));
    let build =
        notes.and_then(|(start, len)| build_id(memory, start, len)).map(|id| format!("BUILD-ID={id}"));
    for line in lines.into_iter().chain(build) {
        writeln!(said, "{line}").ok()?;
    }
    let known = Vmcoreinfo::parse(said.as_bytes())?;
    let virtual_memory = LinuxMemory::new(memory, &known)?;
    if let Some(types) = types.zip(types_end).and_then(|(from, to)| Btf::read(&virtual_memory, from, to)) {
        said.push_str(&layouts(&types)?);
    }
    // The page tables must have the image there too: before they do, the variable says what is not yet so.
    let direct_map = direct_map.and_then(|variable| virtual_memory.read_u64(variable)).filter(|base| {
        base.is_multiple_of(DIRECT_MAP_ALIGNMENT)
            && base >> 63 == 1
            && virtual_memory.walk(base.wrapping_add(image.physical_start)) == Some(image.physical_start)
    });
    Some(EarlyKernel { info: Vmcoreinfo::parse(said.as_bytes())?, symbols, direct_map })
}

/// The image from its start on, as far as it is RAM.
fn image_bytes(memory: &dyn PhysicalMemory, image: KernelImage) -> Option<Vec<u8>> {
    let room = memory.range_at(image.physical_start)?.end() - image.physical_start;
    let mut bytes = vec![0; usize::try_from(room).map_or(MAX_IMAGE, |room| room.min(MAX_IMAGE))];
    memory.read(image.physical_start, &mut bytes).ok()?;
    Some(bytes)
}

/// "6.1.0-18-amd64" of "Linux version 6.1.0-18-amd64 (...".
fn release(memory: &dyn PhysicalMemory, banner: u64) -> Option<String> {
    let mut bytes = [0; MAX_BANNER];
    memory.read(banner, &mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.strip_prefix(BANNER)?.split_whitespace().next().map(str::to_owned)
}

/// The hexadecimal digits of what tells this build from all others: the note of GNU's linker among the image's notes, each of
/// lengths of name and content, type, name, content, on 4 bytes.
fn build_id(memory: &dyn PhysicalMemory, start: u64, len: u64) -> Option<String> {
    const HEAD: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    let mut notes = vec![0; usize::try_from(len).ok().filter(|&len| len <= MAX_NOTES)?];
    memory.read(start, &mut notes).ok()?;
    let at = notes.windows(HEAD.len()).step_by(4).position(|head| head == HEAD)?;
    let id = notes[4 * at + HEAD.len()..].get(..20)?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Lines that say where fields lie.
fn layouts(types: &Btf) -> Option<String> {
    let mut said = String::new();
    let found = types.structures(LOG_STRUCTURES.map(|(name, _)| name));
    for ((name, fields), structure) in LOG_STRUCTURES.into_iter().zip(found) {
        let Some(structure) = structure else { continue };
        writeln!(said, "SIZE({name})={}", structure.size()).ok()?;
        for field in fields {
            if let Some(offset) = structure.offset(field) {
                writeln!(said, "OFFSET({name}.{field})={offset}").ok()?;
            }
        }
    }
    let [uts] = types.structures(["uts_namespace"]);
    if let Some(offset) = uts.and_then(|uts| uts.offset("name")) {
        writeln!(said, "OFFSET(uts_namespace.name)={offset}").ok()?;
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::super::fake::{FakeGuest, PHYSICAL, TABLES, TEXT};
    use super::super::kallsyms::tests::FakeTables;
    use super::*;
    use crate::vmcore::notes::CoreNotes;
    use crate::vmcore::{Activity, CpuState, Registers, StoppedGuest};

    const DIRECT_MAP: u64 = 0xffff_88c8_0000_0000;

    fn physical(address: u64) -> u64 {
        address - TEXT + PHYSICAL
    }

    /// A guest whose kernel has its symbols and no VMCOREINFO; its only CPU uses the kernel's tables.
    fn guest() -> FakeGuest {
        let mut guest = FakeGuest::new();
        let registers = Registers { cr0: 1 << 31, cr3: physical(TABLES), ..Registers::default() };
        guest.cpus =
            vec![CpuState { index: 0, activity: Activity::Running, registers: Some(Box::new(registers)) }];
        let all_memory = TABLES + 0x3000;
        guest.put_u64(TABLES + 8 * (DIRECT_MAP >> 39 & 511), physical(all_memory) | 3);
        guest.put_u64(all_memory + 8 * (DIRECT_MAP >> 30 & 511), 0x83);
        let uts = u64::from_str_radix(&guest.said("SYMBOL(init_uts_ns)"), 16).unwrap();
        let banner = guest.place(b"Linux version 6.1.0-fake (gcc) #1 SMP Fake\n\0");
        let base = guest.place(&DIRECT_MAP.to_le_bytes());
        let note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0abcdefghijklmnopqrst";
        let notes = guest.place(&[&b"\x04\0\0\0\x04\0\0\0\x06\0\0\0Xen\0\0\0\0\0"[..], note].concat());
        let mut tables = FakeTables::new(TEXT, 2000);
        let symbols = [
            ("init_top_pgt", TABLES),
            ("init_uts_ns", uts),
            ("linux_banner", banner),
            ("prb", base),
            ("page_offset_base", base),
            ("__start_notes", notes),
            ("__stop_notes", notes + 56),
        ];
        tables.symbols.extend(symbols.map(|(name, address)| (address, 'D', name.to_owned())));
        let symbols = tables.bytes();
        guest.align(8);
        guest.place(&symbols);
        guest
    }

    #[test]
    fn what_the_kernel_would_say_is_put_together() {
        let guest = guest();
        let found = find(&guest).unwrap();
        assert_eq!(found.info.os_release(), "6.1.0-fake");
        assert_eq!(found.info.symbol("_stext"), Some(TEXT));
        assert_eq!(found.info.symbol("swapper_pg_dir"), Some(TABLES));
        assert_eq!(found.info.image_address(TEXT), Some(PHYSICAL));
        assert_eq!(found.info.kernel_offset(), TEXT - LINKED_AT);
        assert_eq!(found.info.value("BUILD-ID"), Some("6162636465666768696a6b6c6d6e6f7071727374"));
        assert_eq!(found.direct_map, Some(DIRECT_MAP));
        assert!(found.info.is_put_together() && !guest.vmcoreinfo().is_put_together());
        assert!(!Kernel::early(&guest).unwrap().has_vmcoreinfo());
    }

    #[test]
    fn its_core_says_so_and_shows_image_and_direct_map() {
        let (guest, notes) = (guest(), CoreNotes::default());
        for format in ["elf", "kdump"] {
            let format = crate::vmcore::format(format).unwrap();
            let guest = StoppedGuest { memory: &guest, symbols: None, notes: &notes };
            let [remark] = <[_; 1]>::try_from(format.plan(&guest).unwrap().remarks).unwrap();
            assert!(remark.contains("put together"), "{remark}");
        }
        let stopped = StoppedGuest { memory: &guest, symbols: None, notes: &notes };
        let layout = super::super::LinuxLayout::of(&stopped).unwrap();
        let image = layout.image.unwrap();
        assert_eq!((image.virtual_start, image.physical.start), (TEXT, PHYSICAL));
        assert_eq!(layout.direct_map, Some(DIRECT_MAP));
    }

    /// Without tables, names or with a banner of nothing there is no kernel; a direct map that is not mapped is none.
    #[test]
    fn what_is_not_there_is_not_made_up() {
        let whole = guest();
        let banner = physical(u64::from_str_radix(&whole.said("SYMBOL(init_uts_ns)"), 16).unwrap()) + 400;
        let mut text = [0; 14];
        whole.read(banner, &mut text).unwrap();
        assert_eq!(&text, b"Linux version ", "the place is right");
        let mut other = guest();
        other.put(banner - PHYSICAL + TEXT, b"Minix");
        assert!(find(&other).is_none());
        let mut other = guest();
        other.cpus.clear();
        assert!(find(&other).is_none());
        let mut other = guest();
        other.put_u64(TABLES + 8 * (DIRECT_MAP >> 39 & 511), 0);
        assert_eq!(find(&other).unwrap().direct_map, None);
    }
}
