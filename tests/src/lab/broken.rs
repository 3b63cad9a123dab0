//! Modules that fail when they are loaded: a kernel's own, with a few other bytes where their work begins. Nothing is
//! compiled, so that every kernel can have one without its headers.

use anyhow::{Context, ensure};
use object::elf::{FileHeader64, R_X86_64_NONE, SHT_RELA};
use object::read::elf::{FileHeader, Rela, SectionHeader, Sym};
use object::{LittleEndian, SectionIndex};
use serde::{Deserialize, Serialize};

type Header = FileHeader64<LittleEndian>;
const LITTLE: LittleEndian = LittleEndian;

/// What a module does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It calls what a null pointer points at.
    NullJump,
    /// It spins with interrupts off.
    Hang,
}

impl Fault {
    /// The module's file in the guest, below its root.
    pub fn file(self) -> String {
        match self {
            Self::NullJump => "null-jump.ko".to_owned(),
            Self::Hang => "hang.ko".to_owned(),
        }
    }

    fn code(self) -> &'static [u8] {
        match self {
            // xor eax, eax; call rax
            Self::NullJump => &[0x31, 0xc0, 0xff, 0xd0],
            // cli; jmp to itself
            Self::Hang => &[0xfa, 0xeb, 0xfe],
        }
    }
}

/// The function that the kernel calls when it loads a module.
const INIT: &[u8] = b"init_module";
/// What functions begin with: a mark for indirect branches, where kernels have it, and a call that tracers use.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const CALL: u8 = 0xe8;
const CALL_LEN: usize = 5;
/// Size of `Elf64_Rela`, and where it has `r_info`, whose low half is the relocation's type.
const RELA_LEN: usize = 24;
const RELA_TYPE: usize = 8;
/// What a signed module ends with, behind the signature and 12 bytes that end with its length (big-endian; Linux
/// `include/linux/module_signature.h`).
const SIGNED: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_INFO: usize = 12;

/// The module with this fault. It is not signed any more: a wrong signature is refused where none is not.
pub fn break_module(mut module: Vec<u8>, fault: Fault) -> anyhow::Result<Vec<u8>> {
    module.truncate(unsigned_len(&module)?);
    let (section, start, at) = work(&module)?;
    let code = fault.code();
    let nowhere = relocations(&module, section, at - start..at - start + code.len())?;
    module.get_mut(at..at + code.len()).context("a module that ends in its code")?.copy_from_slice(code);
    for entry in nowhere {
        let kind = entry + RELA_TYPE;
        module[kind..kind + 4].copy_from_slice(&R_X86_64_NONE.0.to_le_bytes());
    }
    Ok(module)
}

fn unsigned_len(module: &[u8]) -> anyhow::Result<usize> {
    let Some(signed) = module.strip_suffix(SIGNED) else { return Ok(module.len()) };
    let length = signed.last_chunk::<4>().context("a module with half a signature")?;
    let length = usize::try_from(u32::from_be_bytes(*length))? + SIGNATURE_INFO;
    signed.len().checked_sub(length).context("a signature longer than its module")
}

/// The section of the function that loads the module, where that is in the file, and where the function's work begins.
fn work(module: &[u8]) -> anyhow::Result<(SectionIndex, usize, usize)> {
    let header = Header::parse(module)?;
    let sections = header.sections(LITTLE, module)?;
    let symbols = sections.symbols(LITTLE, module, object::elf::SHT_SYMTAB)?;
    let is_init =
        |symbol: &&object::elf::Sym64<LittleEndian>| symbol.name(LITTLE, symbols.strings()) == Ok(INIT);
    let symbol = symbols.iter().find(is_init).context("a module that does nothing when it is loaded")?;
    let index = SectionIndex(symbol.st_shndx(LITTLE).0.into());
    let start = usize::try_from(sections.section(index)?.sh_offset(LITTLE))?;
    let mut at = start + usize::try_from(symbol.st_value(LITTLE))?;
    let rest = |at: usize| module.get(at..).unwrap_or_default();
    if rest(at).starts_with(&ENDBR64) {
        at += ENDBR64.len();
    }
    ensure!(rest(at).first() == Some(&CALL), "a module that is not made for tracers");
    Ok((index, start, at + CALL_LEN))
}

/// Where in the file the relocations are that would change these bytes of the section.
fn relocations(
    module: &[u8],
    section: SectionIndex,
    bytes: std::ops::Range<usize>,
) -> anyhow::Result<Vec<usize>> {
    let header = Header::parse(module)?;
    let mut found = Vec::new();
    for of in header.sections(LITTLE, module)?.iter() {
        let is_of = of.sh_type(LITTLE) == SHT_RELA && of.info_link(LITTLE) == section;
        let Some((relocations, _)) = of.rela(LITTLE, module)?.filter(|_| is_of) else { continue };
        let start = usize::try_from(of.sh_offset(LITTLE))?;
        for (number, relocation) in relocations.iter().enumerate() {
            let at = usize::try_from(relocation.r_offset(LITTLE))?;
            // All that code has are of 4 bytes.
            if at < bytes.end && at + 4 > bytes.start {
                found.push(start + number * RELA_LEN);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_cut_off() {
        let mut module = b"code".to_vec();
        assert_eq!(unsigned_len(&module).unwrap(), 4);
        module.extend([7; 20]);
        module.extend([0; 8]);
        module.extend(20_u32.to_be_bytes());
        module.extend(SIGNED);
        assert_eq!(unsigned_len(&module).unwrap(), 4);
        assert!(unsigned_len(&module[21..]).is_err(), "longer than what is there");
    }

    #[test]
    fn what_is_no_module_is_not_broken() {
        assert!(break_module(b"\x7fELF".to_vec(), Fault::Hang).is_err());
    }
}
