use super::*;

/// Encodes the tables as `scripts/kallsyms.c` does, but for the choice of tokens.
pub(crate) struct FakeTables {
    /// Address, type and name.
    pub(crate) symbols: Vec<(u64, char, String)>,
    pub(crate) base: u64,
    pub(crate) absolute_percpu: bool,
    pub(crate) order: Order,
}

/// Which tables come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    OffsetsFirst,
    OffsetsLast,
}

/// Pairs of letters that have a token, beside every character that has one.
const PAIRS: [&str; 4] = ["Tsys", "_of_", "dev_", "tmp"];

fn tokens() -> Vec<String> {
    let pair = |n: usize| PAIRS[n % PAIRS.len()].to_owned() + &"_".repeat(n / PAIRS.len());
    let mut pairs = 0;
    (0..=255_u8)
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"_.$".contains(&byte) {
                return char::from(byte).to_string();
            }
            pairs += 1;
            pair(pairs - 1)
        })
        .collect()
}

fn packed(text: &str, tokens: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let fits = |token: &&(usize, &String)| rest.starts_with(token.1.as_str());
        let all: Vec<_> = tokens.iter().enumerate().collect();
        let (number, token) = all.iter().filter(fits).max_by_key(|(_, token)| token.len()).unwrap();
        out.push(u8::try_from(*number).unwrap());
        rest = &rest[token.len()..];
    }
    out
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}

impl FakeTables {
    /// A kernel with its text at `base`, two per-CPU variables and `count` functions of 64 bytes.
    pub(crate) fn new(base: u64, count: usize) -> Self {
        let mut symbols = vec![
            (0, 'A', "fixed_percpu_data".to_owned()),
            (0x1_a000, 'A', "current_task".to_owned()),
            (base, 'T', "_stext".to_owned()),
            (base, 'T', "_text".to_owned()),
        ];
        let function = |n: usize| (base + 64 * n as u64, 't', format!("sys_number_of_{n}"));
        symbols.extend((1..count).map(function));
        let data = base + 0x80_0000;
        symbols.push((data, 'b', "panic_cpu".to_owned()));
        symbols.push((data + 8, 'D', "panic_cpu".to_owned()));
        symbols.push((data + 16, 'T', format!("long_{}", "n".repeat(200))));
        Self { symbols, base, absolute_percpu: true, order: Order::OffsetsFirst }
    }

    fn offsets(&self) -> Vec<u8> {
        let offset = |address: u64| match self.absolute_percpu {
            true if address < self.base => u32::try_from(address).unwrap(),
            true => !u32::try_from(address - self.base).unwrap(),
            false => u32::try_from(address.saturating_sub(self.base)).unwrap(),
        };
        self.symbols.iter().flat_map(|(address, ..)| offset(*address).to_le_bytes()).collect()
    }

    fn names(&self) -> (Vec<u8>, Vec<u8>) {
        let tokens = tokens();
        let (mut names, mut markers) = (Vec::new(), Vec::new());
        for (number, (_, kind, name)) in self.symbols.iter().enumerate() {
            if number % 256 == 0 {
                markers.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
            }
            let packed = packed(&format!("{kind}{name}"), &tokens);
            match u8::try_from(packed.len()).unwrap() {
                len @ ..0x80 => names.push(len),
                len => names.extend([len, 1]),
            }
            names.extend(packed);
        }
        (names, markers)
    }

    /// The bytes of all tables, from a multiple of 8 on.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let offsets = |out: &mut Vec<u8>| {
            align(out);
            out.extend(self.offsets());
            align(out);
            out.extend(self.base.to_le_bytes());
        };
        let mut out = Vec::new();
        if self.order == Order::OffsetsFirst {
            offsets(&mut out);
        }
        out.extend((self.symbols.len() as u64).to_le_bytes());
        let (names, markers) = self.names();
        for table in [names, markers] {
            out.extend(table);
            align(&mut out);
        }
        let mut index = Vec::new();
        let start = out.len();
        for token in tokens() {
            index.extend(u16::try_from(out.len() - start).unwrap().to_le_bytes());
            out.extend(token.bytes());
            out.push(0);
        }
        align(&mut out);
        out.extend(index);
        if self.order == Order::OffsetsLast {
            offsets(&mut out);
        }
        out
    }

    /// The same, and where in them the tables are that VMCOREINFO names.
    pub(crate) fn named(&self) -> (Vec<u8>, [(&'static str, u64); 6]) {
        let bytes = self.bytes();
        let found = search::search(&bytes).unwrap();
        let places = [
            ("num_syms", found.names.start - 8),
            ("names", found.names.start),
            ("token_table", found.tokens.start),
            ("token_index", found.token_index),
            ("offsets", found.offsets),
            ("relative_base", found.relative_base),
        ];
        (bytes, places.map(|(name, place)| (name, place as u64)))
    }

    /// The same with other things around it.
    fn image(&self) -> Vec<u8> {
        let mut image = vec![0xcc; 4096];
        image.extend(b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00 digits that are no tokens");
        image.resize(8192, 0);
        image.extend(self.bytes());
        image.extend([0xcc; 4096]);
        image
    }
}

const TEXT: u64 = 0xffff_ffff_8100_0000;

#[test]
fn tables_are_found_in_either_order_and_form() {
    for order in [Order::OffsetsFirst, Order::OffsetsLast] {
        for absolute_percpu in [true, false] {
            let fake = FakeTables { order, absolute_percpu, ..FakeTables::new(TEXT, 1000) };
            let found = Kallsyms::from_image(&fake.image()).unwrap();
            assert_eq!(found.len(), 1006, "{order:?}");
            assert_eq!(found.address("_stext"), Some(TEXT));
            assert_eq!(found.address("sys_number_of_999"), Some(TEXT + 999 * 64));
            assert_eq!(found.address(&format!("long_{}", "n".repeat(200))), Some(TEXT + 0x80_0010));
            assert_eq!(found.address("no_such"), None);
            if absolute_percpu {
                assert_eq!(found.address("current_task"), Some(0x1_a000));
            }
        }
    }
}

#[test]
fn global_symbol_is_preferred() {
    let found = Kallsyms::from_image(&FakeTables::new(TEXT, 1000).image()).unwrap();
    assert_eq!(found.addresses(["panic_cpu", "_text"]), [Some(TEXT + 0x80_0008), Some(TEXT)]);
}

#[test]
fn functions_end_where_the_next_begins() {
    let found = Kallsyms::from_image(&FakeTables::new(TEXT, 1000).image()).unwrap();
    let place = |address| found.function_at(address).map(|place| (place.function, place.offset, place.size));
    assert_eq!(place(TEXT + 64 * 700 + 63), Some(("sys_number_of_700".to_owned(), 63, 64)));
    assert_eq!(place(TEXT), Some(("_stext".to_owned(), 0, 64)), "the first of two names");
    assert_eq!(place(TEXT + 0x80_0004), None, "data");
    assert_eq!(place(0x1_a004), None, "a per-CPU variable");
    assert_eq!(place(u64::MAX), None);
}

#[test]
fn kernel_that_moved_keeps_its_per_cpu_offsets() {
    let found = Kallsyms::from_image(&FakeTables::new(TEXT, 1000).image()).unwrap().moved_by(0x560_0000);
    assert_eq!(found.address("_stext"), Some(TEXT + 0x560_0000));
    assert_eq!(found.address("current_task"), Some(0x1_a000));
    let place = found.function_at(TEXT + 0x560_0000 + 65).unwrap();
    assert_eq!((place.function.as_str(), place.offset), ("sys_number_of_1", 1));
}

#[test]
fn whole_table_becomes_kernel_symbols() {
    let found = Kallsyms::from_image(&FakeTables::new(TEXT, 1000).image()).unwrap();
    let symbols = found.symbols(KernelSymbols::default());
    assert_eq!(symbols.address("panic_cpu"), Some(TEXT + 0x80_0008));
    let place = symbols.function_at(TEXT + 64 * 5 + 1).unwrap();
    assert_eq!((place.function, place.offset), ("sys_number_of_5", 1));
    assert_eq!(symbols.function_at(TEXT + 0x80_0004), None);
}

#[test]
fn cut_and_damaged_tables_are_refused() {
    let image = FakeTables { order: Order::OffsetsLast, ..FakeTables::new(TEXT, 600) }.image();
    let end = image.len() - 4096;
    for cut in [0, 100, 8192, 8200, 9000, end - 2000, end - 700, end - 9, end - 1] {
        assert!(Kallsyms::from_image(&image[..cut]).is_none(), "cut at {cut}");
    }
    // Every byte of it may be anything: a wrong answer or none, but an answer.
    for at in (8192..end).step_by(97) {
        let mut damaged = image.clone();
        damaged[at] ^= 0xff;
        if let Some(found) = Kallsyms::from_image(&damaged) {
            found.function_at(TEXT + 64);
            found.symbols(KernelSymbols::default());
        }
    }
}

#[test]
fn addresses_out_of_order_do_not_hurt() {
    let mut fake = FakeTables { absolute_percpu: false, ..FakeTables::new(TEXT, 600) };
    fake.symbols[5..500].reverse();
    let found = Kallsyms::from_image(&fake.image()).unwrap();
    found.function_at(TEXT + 64 * 300);
    found.symbols(KernelSymbols::default());
}

#[test]
fn counts_without_names_cost_little() {
    // Every word before the tokens claims to be the count of a long list.
    let mut image: Vec<u8> =
        std::iter::repeat_n((MAX_SYMBOLS as u64).to_le_bytes(), 100_000).flatten().collect();
    let tables = FakeTables::new(TEXT, 300).bytes();
    image.extend(&tables[tables.len() - 2000..]);
    assert!(Kallsyms::from_image(&image).is_none());
}
