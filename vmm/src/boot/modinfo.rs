//! The list of preloaded things that FreeBSD's loader hands to its kernel (freebsd-src `sys/sys/linker.h`, read by
//! `sys/kern/subr_module.c`): records of u32 type, u32 length and data, each padded to 8 bytes, little-endian. A thing's
//! records follow its name; type 0 ends the list.

/// Record types.
const END: u32 = 0;
const NAME: u32 = 1;
const TYPE: u32 = 2;
const ADDR: u32 = 3;
const SIZE: u32 = 4;
const METADATA: u32 = 0x8000;

const ALIGN: usize = 8;

/// What is told of a thing beside its name, type and place (`MODINFOMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Metadata {
    /// Its ELF header.
    ElfHeader = 0x02,
    /// Where its symbol tables begin.
    SymbolsStart = 0x03,
    /// And end.
    SymbolsEnd = 0x04,
    /// Virtual address of its dynamic section.
    Dynamic = 0x05,
    /// Where the environment is.
    Environment = 0x06,
    /// The boot flags.
    Howto = 0x07,
    /// The first page behind everything that was loaded.
    KernelEnd = 0x08,
    /// Its section headers.
    SectionHeaders = 0x09,
    /// The memory map.
    MemoryMap = 0x1001,
}

/// The list while it is being written.
#[derive(Debug, Clone, Default)]
pub(super) struct Modinfo {
    bytes: Vec<u8>,
}

impl Modinfo {
    /// Begins a thing. `address` is physical; the kernel makes it virtual.
    pub(super) fn thing(&mut self, name: &str, kind: &str, address: u64, size: u64) {
        self.record(NAME, &terminated(name));
        self.record(TYPE, &terminated(kind));
        self.record(ADDR, &address.to_le_bytes());
        self.record(SIZE, &size.to_le_bytes());
    }

    /// Tells more of the thing that was begun last.
    pub(super) fn metadata(&mut self, what: Metadata, data: &[u8]) {
        self.record(METADATA | what as u32, data);
    }

    /// A metadata record that holds one number.
    pub(super) fn number(&mut self, what: Metadata, value: u64) {
        self.metadata(what, &value.to_le_bytes());
    }

    /// Adds all things of another list.
    pub(super) fn append(&mut self, other: &Self) {
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// The list.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.record(END, &[]);
        self.bytes
    }

    /// # Panics
    /// If the data has 4 GiB: the largest is a section header table, which is in a file of at most 1 GiB.
    fn record(&mut self, kind: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).expect("no file that is handed over is so large");
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

#[cfg(test)]
pub(super) mod reader {
    //! Reads a list as the kernel does, with its own numbers.

    /// Type and data of each record, up to the end.
    pub(crate) fn records(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let (kind, len) = (word(0), word(4) as usize);
            if kind == 0 && len == 0 {
                return found;
            }
            found.push((kind, bytes[8..8 + len].to_vec()));
            bytes = &bytes[8 + len.next_multiple_of(8)..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_kernel_is_told_byte_by_byte() {
        let mut list = Modinfo::default();
        list.thing("/boot/kernel/kernel", "elf kernel", 0x20_0000, 0x1234);
        list.number(Metadata::KernelEnd, 0x40_0000);
        list.metadata(Metadata::Howto, &0x1000_u32.to_le_bytes());
        let expected: &[&[u8]] = &[
            &[1, 0, 0, 0, 20, 0, 0, 0],
            b"/boot/kernel/kernel\0\0\0\0\0",
            &[2, 0, 0, 0, 11, 0, 0, 0],
            b"elf kernel\0\0\0\0\0\0",
            &[3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0],
            &[4, 0, 0, 0, 8, 0, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0],
            &[8, 0x80, 0, 0, 8, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0],
            &[7, 0x80, 0, 0, 4, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0],
            &[0; 8],
        ];
        assert_eq!(list.finish(), expected.concat());
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(
            things in prop::collection::vec(("[ -~]{0,40}", "[ -~]{0,40}", any::<u64>(), any::<u64>()), 0..6),
            data in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut list = Modinfo::default();
            for (name, kind, address, size) in &things {
                list.thing(name, kind, *address, *size);
                list.metadata(Metadata::SectionHeaders, &data);
            }
            let bytes = list.finish();
            prop_assert_eq!(bytes.len() % 8, 0);
            let read = reader::records(&bytes);
            prop_assert_eq!(read.len(), things.len() * 5);
            for (records, (name, kind, address, size)) in read.chunks(5).zip(&things) {
                prop_assert_eq!(&records[0], &(1, format!("{name}\0").into_bytes()));
                prop_assert_eq!(&records[1], &(2, format!("{kind}\0").into_bytes()));
                prop_assert_eq!(&records[2], &(3, address.to_le_bytes().to_vec()));
                prop_assert_eq!(&records[3], &(4, size.to_le_bytes().to_vec()));
                prop_assert_eq!(&records[4], &(0x8009, data.clone()));
            }
        }
    }
}
