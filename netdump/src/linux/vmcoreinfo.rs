//! VMCOREINFO: lines of `KEY=value` in which a Linux kernel tells its addresses, offsets and numbers to the tools that
//! read its dumps (`kernel/vmcore_info.c`, before 6.9 `kernel/crash_core.c`; vmcoreinfo.rst lists the keys).
//!
//! The kernel keeps it from early in its boot on as an ELF note at the start of a page: `u32` 11, `u32` length of the
//! text, `u32` 0, the name `VMCOREINFO` padded to 12 bytes, the text. Addresses are hexadecimal without `0x`; numbers
//! are decimal, some since 6.12 hexadecimal with `0x`; offsets, sizes and lengths are decimal.

use super::image::{ALIGNMENT, WINDOW, WINDOW_LEN};
use super::search;
use crate::vmcore::{KernelSymbols, PhysicalMemory};

/// The kernel's room for the text (`VMCOREINFO_BYTES` is a page).
pub const MAX_TEXT: usize = 4096;
/// No kernel says less: the release, the page size and a few addresses.
pub const MIN_TEXT: usize = 64;
/// Bytes of one of the six texts of `struct new_utsname`, and the place of the release among them.
const UTS_FIELD: u64 = 65;
const UTS_RELEASE: u64 = 2;

/// The line that a text has which was put together from a kernel's image (see [`Vmcoreinfo::is_put_together`]). No kernel says
/// it, and no reader minds it.
pub(super) const PUT_TOGETHER: &str = "NETDUMP(PUT_TOGETHER)";

/// The text of a kernel, with everything in it that is needed to find its way in its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmcoreinfo {
    text: String,
}

impl Vmcoreinfo {
    /// Finds it in a stopped guest's memory: by the kernel's symbols (as its file has them, not moved by address
    /// randomisation) where they are known, else by its page.
    ///
    /// Memory may hold copies that are not the running kernel's: of an earlier boot, of a dump that was in the page
    /// cache, or planted. What does not fit the page tables that the CPUs used is none.
    pub fn locate(memory: &dyn PhysicalMemory, symbols: Option<&KernelSymbols>) -> Option<Self> {
        search::locate(memory, symbols)
    }

    /// Takes a text that says enough of a kernel and does not contradict itself.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let lengths = MIN_TEXT..=MAX_TEXT;
        let printable = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n');
        if !lengths.contains(&text.len()) || !text.ends_with(b"\n") || !text.iter().all(printable) {
            return None;
        }
        let info = Self { text: String::from_utf8(text.to_vec()).ok()? };
        info.is_plausible().then_some(info)
    }

    /// Whether no kernel said this: it panicked before it had VMCOREINFO, and who made the core put together what it would
    /// have said.
    pub fn is_put_together(&self) -> bool {
        self.value(PUT_TOGETHER).is_some()
    }

    /// The whole text, which ends with a newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The kernel's release, such as "6.1.0-56-cloud-amd64".
    pub fn os_release(&self) -> &str {
        self.value("OSRELEASE").unwrap_or_default()
    }

    /// Run-time address of a variable. Of `mem_section` and `vmemmap` it is the variable's value.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.tagged("SYMBOL", name)?, 16).ok()
    }

    /// The value of a constant or variable.
    pub fn number(&self, name: &str) -> Option<i64> {
        let value = self.tagged("NUMBER", name)?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok().map(u64::cast_signed),
            None => value.parse().ok(),
        }
    }

    /// Offset of a field, such as "page.flags", in its structure, in bytes.
    pub fn offset(&self, field: &str) -> Option<u64> {
        self.tagged("OFFSET", field)?.parse().ok()
    }

    /// Size of a structure in bytes.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.tagged("SIZE", name)?.parse().ok()
    }

    /// Number of elements of an array.
    pub fn length(&self, name: &str) -> Option<u64> {
        self.tagged("LENGTH", name)?.parse().ok()
    }

    /// How far address randomisation moved the kernel's image from the addresses in its file, in bytes.
    pub fn kernel_offset(&self) -> u64 {
        self.value("KERNELOFFSET").and_then(|value| u64::from_str_radix(value, 16).ok()).unwrap_or(0)
    }

    /// What is added, modulo 2^64, to the distance of an address from the start of the image's window
    /// ([`WINDOW`]) to make it a guest-physical address.
    pub fn phys_base(&self) -> u64 {
        self.number("phys_base").unwrap_or(0).cast_unsigned()
    }

    /// Guest-physical address of a byte of the kernel's image; `None` for any other address.
    pub fn image_address(&self, address: u64) -> Option<u64> {
        let inside = address.checked_sub(WINDOW).filter(|&inside| inside < WINDOW_LEN)?;
        Some(inside.wrapping_add(self.phys_base()))
    }

    /// The value of a line.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of a line such as `SYMBOL(name)=value`.
    fn tagged(&self, tag: &str, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            line.strip_prefix(tag)?.strip_prefix('(')?.strip_prefix(name)?.strip_prefix(")=")
        })
    }

    fn is_plausible(&self) -> bool {
        let offset = self.kernel_offset();
        let linked = |name| self.symbol(name).and_then(|address| address.checked_sub(offset));
        self.text.starts_with("OSRELEASE=")
            && self.value("PAGESIZE") == Some("4096")
            && offset.is_multiple_of(ALIGNMENT)
            && offset < WINDOW_LEN
            && self.number("phys_base").is_some_and(|base| base.cast_unsigned().is_multiple_of(ALIGNMENT))
            && linked("_stext").is_some_and(|stext| (WINDOW..WINDOW + WINDOW_LEN).contains(&stext))
            && self.symbol("swapper_pg_dir").and_then(|root| self.image_address(root)).is_some()
    }

    /// Whether the kernel that lies where this says has the release that this says.
    pub(super) fn names_release_of(&self, memory: &dyn PhysicalMemory) -> bool {
        let release = self.os_release().as_bytes();
        let Some(field) = self.symbol("init_uts_ns").and_then(|names| {
            let texts = names.checked_add(self.offset("uts_namespace.name")?)?;
            self.image_address(texts.checked_add(UTS_RELEASE * UTS_FIELD)?)
        }) else {
            return false;
        };
        let mut found = vec![0; release.len() + 1];
        release.len() < 65
            && memory.read(field, &mut found).is_ok()
            && found.strip_suffix(&[0]) == Some(release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian's kernels have them: 12's cloud and generic kernel, 13's cloud kernel.
    const REAL: [&[u8]; 3] = [
        include_bytes!("fixtures/vmcoreinfo-6.1.0-56-cloud-amd64.txt"),
        include_bytes!("fixtures/vmcoreinfo-6.1.0-56-amd64.txt"),
        include_bytes!("fixtures/vmcoreinfo-6.12.117+deb13-cloud-amd64.txt"),
    ];

    #[test]
    fn every_kind_of_line_is_read() {
        let info = Vmcoreinfo::parse(REAL[0]).unwrap();
        assert_eq!(info.text().as_bytes(), REAL[0]);
        assert_eq!(info.os_release(), "6.1.0-56-cloud-amd64");
        assert_eq!(info.symbol("_stext"), Some(0xffff_ffff_8660_0000));
        assert_eq!(info.number("PAGE_BUDDY_MAPCOUNT_VALUE"), Some(-129));
        assert_eq!(info.offset("page._mapcount"), Some(48));
        assert_eq!(info.size("page"), Some(64));
        assert_eq!(info.length("mem_section"), Some(2048));
        assert_eq!((info.kernel_offset(), info.phys_base()), (0x560_0000, 0x220_0000_u64.wrapping_neg()));
        assert_eq!(info.image_address(0xffff_ffff_8660_0000), Some(0x440_0000));
        assert_eq!(info.image_address(0xffff_88c8_1fea_5000), None);
    }

    #[test]
    fn newer_kernels_say_numbers_in_hexadecimal_too() {
        let info = Vmcoreinfo::parse(REAL[2]).unwrap();
        assert_eq!(info.number("VMALLOC_START"), Some(0xffff_d4bc_c000_0000_u64.cast_signed()));
        assert_eq!(info.symbol("vmemmap"), Some(0xffff_fc72_8000_0000));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let info = Vmcoreinfo::parse(REAL[1]).unwrap();
        assert_eq!(info.symbol("stext"), None);
        assert_eq!(info.symbol("_stex"), None);
        assert_eq!(info.offset("page"), None);
        assert_eq!(info.size("page.flags"), None, "an offset is no size");
        assert_eq!(info.value("OSRELEAS"), None);
    }

    #[test]
    fn every_cut_or_contradictory_text_is_refused() {
        for real in REAL {
            let text = std::str::from_utf8(real).unwrap();
            assert!(Vmcoreinfo::parse(real).is_some());
            assert!(Vmcoreinfo::parse(&real[..real.len() - 1]).is_none(), "cut inside a line");
            assert!(Vmcoreinfo::parse(&real[..63]).is_none());
            let changed = |from: &str, to: &str| {
                assert!(text.contains(from), "{from}");
                Vmcoreinfo::parse(text.replace(from, to).as_bytes())
            };
            assert!(changed("OSRELEASE=", "OS=").is_none());
            assert!(changed("PAGESIZE=4096", "PAGESIZE=65536").is_none());
            assert!(changed("KERNELOFFSET=", "KERNELOFFSET=1").is_none(), "more than the window");
            assert!(changed("SYMBOL(_stext)=ffffffff", "SYMBOL(_stext)=ffff8880").is_none());
            assert!(changed("SYMBOL(swapper_pg_dir)=", "SYMBOL(swapper)=").is_none());
            assert!(changed("NUMBER(phys_base)=", "NUMBER(phys_base)=1").is_none(), "not on 2 MiB");
            assert!(changed("PAGESIZE=", "\u{1b}PAGESIZE=").is_none());
        }
    }
}
