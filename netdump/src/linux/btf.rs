//! BTF, the types of a kernel's structures as the kernel keeps them for its own use: where a field lies, without any
//! debug information (Linux `include/uapi/linux/btf.h`, `Documentation/bpf/btf.rst`).
//!
//! ```text
//! 0    u16 0xeb9f, u8 version, u8 flags, u32 length of this header
//! 8    u32 offset and length of the types, u32 offset and length of the strings, behind the header
//! ```
//!
//! A type is u32 name, u32 info (kind in bits 28:24, length of a list in 15:0, a flag in 31), u32 size or type, and what
//! its kind adds. Types are numbered from 1 on. Little-endian; the data is hostile: nothing in it is trusted to lie inside,
//! and no lookup looks at more than a budget of fields.

use std::ops::Range;

use super::LinuxMemory;
use crate::vmcore::VirtualMemory;

const MAGIC: u16 = 0xeb9f;
const TYPE_LEN: usize = 12;
/// Most bytes of types; kernels have 4 to 8 MB.
const MAX_LEN: u64 = 32 << 20;
/// Most types that are taken; kernels have 60,000 to 200,000.
const MAX_TYPES: usize = 1 << 20;
/// Most fields that are looked at for one.
const MAX_STEPS: usize = 1 << 16;
/// How deep unnamed structures and chains of typedefs may go.
const MAX_DEPTH: usize = 16;
/// Longest name that is looked for.
const MAX_NAME: usize = 128;

const INT: u8 = 1;
const POINTER: u8 = 2;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;
const FUNCTION_TYPE: u8 = 13;
const VARIABLE: u8 = 14;
const SECTION: u8 = 15;
const FLOAT: u8 = 16;
const DECLARATION_TAG: u8 = 17;
const ENUM_64: u8 = 19;
/// Typedef, volatile, const, restrict, type tag: other names for a type.
const ALIASES: [u8; 5] = [8, 9, 10, 11, 18];

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type begins, type 1 first.
    types: Vec<u32>,
}

/// A structure.
#[derive(Debug, Clone, Copy)]
pub struct Structure<'b> {
    btf: &'b Btf,
    id: u32,
}

/// Where a field of a structure lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: u64,
    /// Its length in bytes; of an array, of all of it.
    pub size: u64,
    /// Of a field that is not whole bytes: its first bit, counted from the start of the structure, and its length.
    pub bits: Option<(u64, u64)>,
    type_id: u32,
}

/// What every type has.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    list_len: usize,
    has_bit_fields: bool,
    /// Its size in bytes, or the type that it is made of.
    size_or_type: u32,
    /// Where the list behind it begins.
    list: usize,
}

impl Btf {
    /// Those of a stopped kernel, between the addresses `start` and `end`.
    pub fn read(memory: &LinuxMemory<'_>, start: u64, end: u64) -> Option<Self> {
        let len = end.checked_sub(start).filter(|&len| len <= MAX_LEN)?;
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        memory.read(start, &mut bytes)?;
        Self::parse(bytes)
    }

    /// Takes the content of `.BTF`, which lies between `__start_BTF` and `__stop_BTF`. `None` when it is damaged.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        let word = |at| u32_at(&bytes, at).and_then(|word| usize::try_from(word).ok());
        if bytes.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let part = |offset: usize, len: usize| {
            let start = word(4)?.checked_add(offset)?;
            let end = start.checked_add(len)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let types = part(word(8)?, word(12)?)?;
        let strings = part(word(16)?, word(20)?)?;
        let mut places = Vec::new();
        let mut at = types.start;
        while at < types.end {
            places.push(u32::try_from(at).ok()?);
            at = Type::at(&bytes, at)?.end()?;
            if places.len() > MAX_TYPES {
                return None;
            }
        }
        (at == types.end).then_some(Self { bytes, strings, types: places })
    }

    /// The structures of these names, in one pass. Of several of one name the first.
    pub fn structures<const N: usize>(&self, names: [&str; N]) -> [Option<Structure<'_>>; N] {
        let mut found = [None; N];
        for (id, &at) in (1..).zip(&self.types) {
            let Some(kind) = Type::at(&self.bytes, at as usize).filter(|kind| kind.kind == STRUCT) else {
                continue;
            };
            let Some(wanted) = names.iter().position(|wanted| self.is_named(kind.name, wanted)) else {
                continue;
            };
            found[wanted].get_or_insert(Structure { btf: self, id });
        }
        found
    }

    fn of(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        Type::at(&self.bytes, at as usize)
    }

    /// The type that this is another name for.
    fn resolved(&self, mut id: u32) -> Option<(u32, Type)> {
        for _ in 0..MAX_DEPTH {
            let found = self.of(id)?;
            if !ALIASES.contains(&found.kind) {
                return Some((id, found));
            }
            id = found.size_or_type;
        }
        None
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let strings = &self.bytes[self.strings.clone()];
        let Some(text) = strings.get(name as usize..) else { return false };
        wanted.len() <= MAX_NAME && text.starts_with(wanted.as_bytes()) && text.get(wanted.len()) == Some(&0)
    }

    /// Bytes of a value of this type.
    fn size(&self, id: u32) -> Option<u64> {
        let (mut id, mut count) = (id, 1_u64);
        for _ in 0..MAX_DEPTH {
            let (_, found) = self.resolved(id)?;
            match found.kind {
                INT | STRUCT | UNION | ENUM | ENUM_64 | FLOAT => {
                    return count.checked_mul(u64::from(found.size_or_type));
                }
                POINTER => return count.checked_mul(8),
                ARRAY => {
                    count = count.checked_mul(u64::from(u32_at(&self.bytes, found.list + 8)?))?;
                    id = u32_at(&self.bytes, found.list)?;
                }
                _ => return None,
            }
        }
        None
    }

    /// Type and first bit of the field of this name, in the structure or in those without a name in it.
    fn member(
        &self,
        structure: Type,
        name: &str,
        depth: usize,
        steps: &mut usize,
    ) -> Option<(u32, u64, u64)> {
        for index in 0..structure.list_len {
            *steps = steps.checked_sub(1)?;
            let at = structure.list + TYPE_LEN * index;
            let [own_name, id, place] = [0, 4, 8].map(|field| u32_at(&self.bytes, at + field));
            let (own_name, id, place) = (own_name?, id?, place?);
            // With bit fields the upper byte is the number of bits, 0 for whole bytes.
            let (bit, width) =
                if structure.has_bit_fields { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            if self.is_named(own_name, name) {
                return Some((id, u64::from(bit), u64::from(width)));
            }
            if !self.is_named(own_name, "") || depth == 0 {
                continue;
            }
            let inner = self.resolved(id).filter(|(_, inner)| matches!(inner.kind, STRUCT | UNION));
            if let Some((_, inner)) = inner
                && let Some((id, inside, width)) = self.member(inner, name, depth - 1, steps)
            {
                return Some((id, u64::from(bit) + inside, width));
            }
        }
        None
    }
}

impl<'b> Structure<'b> {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.btf.of(self.id).map_or(0, |own| u64::from(own.size_or_type))
    }

    /// A field, by its name or by a path such as `se.on_rq`. Structures and unions without a name are looked through.
    pub fn field(&self, path: &str) -> Option<Field> {
        let mut steps = MAX_STEPS;
        let (mut id, mut first, mut width) = (self.id, 0, 0);
        for name in path.split('.') {
            let (_, structure) = self.btf.resolved(id)?;
            if !matches!(structure.kind, STRUCT | UNION) || name.is_empty() {
                return None;
            }
            let inside;
            (id, inside, width) = self.btf.member(structure, name, MAX_DEPTH, &mut steps)?;
            first += inside;
        }
        let bits = (width != 0).then_some((first, width));
        Some(Field { offset: first / 8, size: self.btf.size(id)?, bits, type_id: id })
    }

    /// Where a field lies, in bytes.
    pub fn offset(&self, path: &str) -> Option<u64> {
        self.field(path).map(|field| field.offset)
    }

    /// The structure that an element of this array is, such as `module_memory` for `module.mem`.
    pub fn element(&self, array: &Field) -> Option<Self> {
        let (_, found) = self.btf.resolved(array.type_id).filter(|(_, found)| found.kind == ARRAY)?;
        let (id, _) = self.btf.resolved(u32_at(&self.btf.bytes, found.list)?)?;
        Some(Structure { btf: self.btf, id })
    }
}

impl Type {
    fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let (name, info, size_or_type) = (u32_at(bytes, at)?, u32_at(bytes, at + 4)?, u32_at(bytes, at + 8)?);
        let [low, high, _, kind] = info.to_le_bytes();
        Some(Self {
            name,
            kind: kind & 0x1f,
            list_len: usize::from(u16::from_le_bytes([low, high])),
            has_bit_fields: kind & 0x80 != 0,
            size_or_type,
            list: at + TYPE_LEN,
        })
    }

    /// Where the next type begins; `None` after a kind of which the length is not known.
    fn end(&self) -> Option<usize> {
        let len = match self.kind {
            INT | VARIABLE | DECLARATION_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | SECTION | ENUM_64 => 12 * self.list_len,
            ENUM | FUNCTION_TYPE => 8 * self.list_len,
            POINTER | 7..=12 | FLOAT | 18 => 0,
            _ => return None,
        };
        Some(self.list + len)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Encodes types.
    #[derive(Default)]
    pub(crate) struct FakeBtf {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl FakeBtf {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(name.bytes());
            self.strings.push(0);
            at
        }

        pub(crate) fn raw(&mut self, name: &str, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
            let name = self.name(name);
            let words = [name, info, size_or_type];
            self.types.extend(words.iter().chain(rest).flat_map(|word| word.to_le_bytes()));
            self.count += 1;
            self.count
        }

        pub(crate) fn int(&mut self, bytes: u32) -> u32 {
            self.raw("int", 1 << 24, bytes, &[8 * bytes])
        }

        pub(crate) fn array(&mut self, of: u32, count: u32) -> u32 {
            self.raw("", 3 << 24, 0, &[of, of, count])
        }

        /// Fields are name, type, first bit; a fourth kind of structure is a union.
        pub(crate) fn structure(&mut self, name: &str, size: u32, fields: &[(&str, u32, u32)]) -> u32 {
            let mut words = Vec::new();
            for (field, id, bit) in fields {
                words.extend([self.name(field), *id, *bit]);
            }
            self.raw(name, 4 << 24 | u32::try_from(fields.len()).unwrap(), size, &words)
        }

        /// The same with the number of bits in the upper byte of each first bit.
        pub(crate) fn bit_fields(&mut self, name: &str, size: u32, fields: &[(&str, u32, u32)]) -> u32 {
            let at = self.types.len();
            let id = self.structure(name, size, fields);
            self.types[at + 7] |= 0x80;
            id
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            let len = |part: &[u8]| u32::try_from(part.len()).unwrap();
            let mut out = vec![0x9f, 0xeb, 1, 0];
            let words = [24, 0, len(&self.types), len(&self.types), len(&self.strings)];
            out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            out.extend(&self.types);
            out.extend(&self.strings);
            out
        }
    }

    fn fake() -> Vec<u8> {
        let mut fake = FakeBtf::default();
        let int = fake.int(4);
        let alias = fake.raw("pid_t", 8 << 24, int, &[]);
        let name = fake.array(int, 4);
        let inner = fake.structure("", 8, &[("unused", int, 0), ("deep", alias, 32)]);
        let memory = fake.structure("module_memory", 8, &[("base", int, 0), ("size", int, 32)]);
        let memories = fake.array(memory, 7);
        fake.raw("task_struct", 7 << 24, 0, &[]);
        let fields = [
            ("pid", alias, 0),
            ("comm", name, 32),
            ("", inner, 160),
            ("mem", memories, 224),
            ("m", memory, 672),
        ];
        fake.structure("task_struct", 92, &fields);
        fake.bit_fields("orc_entry", 6, &[("sp_reg", int, 4 << 24 | 32), ("type", int, 3 << 24 | 40)]);
        fake.bytes()
    }

    #[test]
    fn fields_are_found_through_typedefs_arrays_and_unnamed_structures() {
        let btf = Btf::parse(fake()).unwrap();
        let [task, none] = btf.structures(["task_struct", "no_such"]);
        let task = task.unwrap();
        assert!(none.is_none());
        assert_eq!(task.size(), 92);
        let place = |path| task.field(path).map(|field| (field.offset, field.size));
        assert_eq!(place("pid"), Some((0, 4)));
        assert_eq!(place("comm"), Some((4, 16)));
        assert_eq!(place("deep"), Some((24, 4)));
        assert_eq!(place("m.size"), Some((88, 4)));
        assert_eq!(place("mem"), Some((28, 56)));
        let element = task.element(&task.field("mem").unwrap()).unwrap();
        assert_eq!((element.size(), element.offset("size")), (8, Some(4)));
        for missing in ["", "no", "pid.x", "m.no", "mem.base"] {
            assert_eq!(task.field(missing), None, "{missing}");
        }
    }

    #[test]
    fn bit_fields_have_their_bits() {
        let btf = Btf::parse(fake()).unwrap();
        let [orc] = btf.structures(["orc_entry"]);
        assert_eq!(orc.unwrap().field("type").unwrap().bits, Some((40, 3)));
        assert_eq!(orc.unwrap().field("sp_reg").unwrap().bits, Some((32, 4)));
    }

    #[test]
    fn types_that_contain_themselves_come_to_an_end() {
        let mut fake = FakeBtf::default();
        let fields: Vec<(&str, u32, u32)> = vec![("", 1, 0); 200];
        fake.structure("loop", 8, &fields);
        fake.raw("alias", 8 << 24, 2, &[]);
        fake.raw("", 3 << 24, 0, &[3, 3, u32::MAX]);
        fake.structure("sized", 8, &[("array", 3, 0), ("alias", 2, 0)]);
        let btf = Btf::parse(fake.bytes()).unwrap();
        let [own, sized] = btf.structures(["loop", "sized"]);
        assert_eq!(own.unwrap().field("x"), None);
        assert_eq!(sized.unwrap().field("array"), None);
        assert_eq!(sized.unwrap().field("alias"), None);
    }

    #[test]
    fn cut_and_damaged_types_are_refused_or_harmless() {
        let whole = fake();
        for cut in 0..whole.len() {
            assert!(Btf::parse(whole[..cut].to_vec()).is_none(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            if let Some(btf) = Btf::parse(damaged) {
                let [task] = btf.structures(["task_struct"]);
                for path in ["deep", "comm", "m.size"] {
                    task.map(|task| task.field(path));
                }
            }
        }
    }
}
