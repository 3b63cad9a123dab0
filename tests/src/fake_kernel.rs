//! An ELF kernel image that never ran: symbols and load segments without code, laid out here byte by byte.

/// A kernel image to be.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    symbols: Vec<Symbol>,
    /// Virtual and physical start, length, flags.
    segments: Vec<[u64; 4]>,
    /// Address and content of the only section with data.
    data: (u64, Vec<u8>),
}

#[derive(Debug, Clone)]
struct Symbol {
    name: String,
    address: u64,
    size: u64,
    info: u8,
    section: u16,
}

impl FakeKernel {
    /// A global object.
    pub fn symbol(self, name: &str, address: u64, size: u64) -> Self {
        self.raw_symbol(name, address, size, 0x11, 0xfff1)
    }

    /// A static object.
    pub fn local(self, name: &str, address: u64, size: u64) -> Self {
        self.raw_symbol(name, address, size, 0x01, 0xfff1)
    }

    /// A global object whose content the file has; there is room for one.
    pub fn with_content(mut self, name: &str, address: u64, content: &[u8]) -> Self {
        self.data = (address, content.to_vec());
        self.raw_symbol(name, address, content.len() as u64, 0x11, 3)
    }

    /// A symbol with any `st_info` and `st_shndx`.
    pub fn raw_symbol(mut self, name: &str, address: u64, size: u64, info: u8, section: u16) -> Self {
        self.symbols.push(Symbol { name: name.to_owned(), address, size, info, section });
        self
    }

    /// A PT_LOAD of `len` bytes of memory that may be read, written and executed.
    pub fn segment(mut self, virtual_start: u64, physical_start: u64, len: u64) -> Self {
        self.segments.push([virtual_start, physical_start, len, 7]);
        self
    }

    /// The same, not writable.
    pub fn read_only_segment(mut self, virtual_start: u64, physical_start: u64, len: u64) -> Self {
        self.segments.push([virtual_start, physical_start, len, 5]);
        self
    }

    /// One of data only.
    pub fn segment_without_code(mut self, virtual_start: u64, physical_start: u64, len: u64) -> Self {
        self.segments.push([virtual_start, physical_start, len, 6]);
        self
    }

    /// The file: header, program headers, symbol table, string table, section headers.
    pub fn image(&self) -> Vec<u8> {
        let mut strings = vec![0];
        let mut table = vec![0; 24];
        for symbol in &self.symbols {
            let name = u32::try_from(strings.len()).expect("short");
            table.extend(name.to_le_bytes());
            table.extend([symbol.info, 0]);
            table.extend(symbol.section.to_le_bytes());
            table.extend(symbol.address.to_le_bytes());
            table.extend(symbol.size.to_le_bytes());
            strings.extend(symbol.name.as_bytes());
            strings.push(0);
        }
        let table_at = 64 + 56 * self.segments.len();
        let strings_at = table_at + table.len();
        let data_at = strings_at + strings.len();
        let sections_at = data_at + self.data.1.len();
        let mut out = self.header(sections_at);
        for [virtual_start, physical_start, len, flags] in &self.segments {
            out.extend(1_u32.to_le_bytes());
            out.extend(&flags.to_le_bytes()[..4]);
            put_words(&mut out, &[0, *virtual_start, *physical_start, 0, *len, 4096]);
        }
        out.extend(&table);
        out.extend(&strings);
        out.extend(&self.data.1);
        // Null section, symbol table (strings in section 2), string table, data.
        out.extend([0; 64]);
        put_section(&mut out, 2, 0, [table_at, table.len()], [2, 1], 24);
        put_section(&mut out, 3, 0, [strings_at, strings.len()], [0, 0], 0);
        put_section(&mut out, 1, self.data.0, [data_at, self.data.1.len()], [0, 0], 0);
        out
    }

    fn header(&self, sections_at: usize) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        put_words(&mut out, &[0x20_0000, 64, sections_at as u64]);
        let segments = u8::try_from(self.segments.len()).expect("few segments");
        out.extend([0, 0, 0, 0, 64, 0, 56, 0, segments, 0, 64, 0, 4, 0, 2, 0]);
        out
    }
}

fn put_section(
    out: &mut Vec<u8>,
    kind: u32,
    address: u64,
    place: [usize; 2],
    link_and_info: [u32; 2],
    entry: u64,
) {
    out.extend(0_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    put_words(out, &[0, address, place[0] as u64, place[1] as u64]);
    out.extend(link_and_info.iter().flat_map(|word| word.to_le_bytes()));
    put_words(out, &[8, entry]);
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}
