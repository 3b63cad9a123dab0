//! The kernel environment of a stopped guest, as the guest left it in its memory, and what it may ask for with it: the
//! host's options and limits hold whatever it says.
//!
//! An input is a byte of flags, a mask over the kernel's variables (all zeros leave them as a kernel sets them), and the
//! environment: strings, each with its NUL.

#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use netdump::facts;
use netdump::vmcore::cpu::CpuState;
use netdump::vmcore::{KernelSymbols, MemoryError, MemoryRange, PhysicalMemory};
use vmm::config::{DumpConfig, GuestEnvironment, Target, Wishes};
use vmm::link::LinkSpec;

/// Where the kernel's variables are, by the symbols of `kernel.elf`: the address of its tables, whether `kenvp[]` is in
/// force, and `kenvp`, `md_envp`, `kern_envp`, eight bytes each.
const DATA: u64 = 0x20_0000;
/// Page tables that map the kernel and the heap.
const TABLES: u64 = 0x40_0000;
/// The pointers and the strings.
const HEAP: u64 = 0x60_0000;
const HEAP_VA: u64 = 0xffff_f800_0000_0000 + HEAP;
const STRINGS: u64 = 0x1000;
/// Two pages and most of a third: a NUL always follows.
const STRINGS_MAX: usize = 0x2f00;
const HEAP_LEN: usize = 0x4000;

static KERNEL: LazyLock<KernelSymbols> = LazyLock::new(|| {
    KernelSymbols::parse(include_bytes!("../environment.elf")).expect("a whole symbol table")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&flags, rest)) = bytes.split_first() else { return };
    let Some((mask, strings)) = rest.split_first_chunk::<40>() else { return };
    let strings = &strings[..strings.len().min(STRINGS_MAX)];
    let guest = Guest::new(flags & 1 == 1, mask, strings);
    let facts = facts::gather(&guest, Some(&KERNEL));
    let environment = facts.environment.unwrap_or_default();
    assert!(environment.len() <= 2 * 4096);
    assert!(
        environment
            .iter()
            .all(|(name, value)| !name.is_empty() && !name.contains('=') && value.len() < 3 * 4096)
    );
    if mask == &[0; 40] {
        assert_eq!(environment, expected(flags & 1 == 1, strings));
    }
    for has_tap in [false, true] {
        judge(&environment, has_tap);
    }
});

struct Guest {
    ranges: [MemoryRange; 1],
    data: Vec<u8>,
    tables: Vec<u8>,
    heap: Vec<u8>,
}

impl Guest {
    fn new(is_dynamic: bool, mask: &[u8; 40], strings: &[u8]) -> Self {
        let block = HEAP_VA + STRINGS;
        let variables = [TABLES, u64::from(is_dynamic), HEAP_VA, block, 0];
        let mut data = words(&variables);
        data.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        data.resize(4096, 0);

        // Kernel: slot 511, 510, then 2 MiB pages from 0 on. Heap: slot 496, 0, then the same pages.
        let mut tables = vec![0; 4 * 4096];
        let pages: Vec<u64> = (0..8).map(|page| page << 21 | 0x83).collect();
        put(&mut tables, 8 * 511, &[TABLES + 0x1003]);
        put(&mut tables, 8 * 496, &[TABLES + 0x2003]);
        put(&mut tables, 0x1000 + 8 * 510, &[TABLES + 0x3003]);
        put(&mut tables, 0x2000, &[TABLES + 0x3003]);
        put(&mut tables, 0x3000, &pages);

        let mut heap = vec![0; STRINGS as usize];
        heap.extend_from_slice(strings);
        heap.resize(HEAP_LEN, 0);
        let pointers: Vec<u64> = starts(strings).take(400).map(|start| block + start as u64).collect();
        put(&mut heap, 0, &pointers);
        Self { ranges: [MemoryRange { start: 0, len: 0x100_0000 }], data, tables, heap }
    }
}

impl PhysicalMemory for Guest {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let end = address.checked_add(len as u64).filter(|end| *end <= self.ranges[0].len);
        let end = end.ok_or(MemoryError::NotInRam { address, len })?;
        buf.fill(0);
        for (start, bytes) in [(DATA, &self.data), (TABLES, &self.tables), (HEAP, &self.heap)] {
            let from = address.max(start);
            let to = end.min(start + bytes.len() as u64);
            if from < to {
                let source = &bytes[(from - start) as usize..(to - start) as usize];
                buf[(from - address) as usize..(to - address) as usize].copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn cpus(&self) -> &[CpuState] {
        &[]
    }
}

/// Where each string begins: at the front, and behind each NUL but the last.
fn starts(strings: &[u8]) -> impl Iterator<Item = usize> {
    let behind_nul = strings.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at + 1);
    std::iter::once(0).chain(behind_nul).take_while(|start| *start < strings.len())
}

/// What a reader makes of the strings that has all the time in the world.
fn expected(is_dynamic: bool, strings: &[u8]) -> Vec<(String, String)> {
    let all = starts(strings).map(|start| strings[start..].split(|byte| *byte == 0).next().expect("one"));
    let kept: Vec<&[u8]> = match is_dynamic {
        true => all.take(400).filter(|string| string.len() < 4096).collect(),
        false => all.take(4096).take_while(|string| !string.is_empty() && string.len() < 4096).collect(),
    };
    let variable = |string: &&[u8]| {
        let equals = string.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some((text(&string[..equals]), text(&string[equals + 1..])))
    };
    kept.iter().filter_map(variable).collect()
}

/// Whatever the guest wishes, under several hosts.
fn judge(environment: &[(String, String)], has_tap: bool) {
    let host = Some(Ipv4Addr::new(10, 9, 9, 9));
    let wishes = |environment| Wishes { environment, seen: host, has_tap };
    let open = config();
    let target = open.target(&wishes(environment));
    check(&target, environment);
    assert!(has_tap || target.server.is_none(), "a guest chose where the host sends to");

    let mut limited = config();
    limited.allowed_servers = vec!["10.0.0.0/8".parse().expect("a block")];
    let target = limited.target(&wishes(environment));
    check(&target, environment);
    assert!(target.server.is_none_or(|server| server.ip().octets()[0] == 10));

    let mut decided = config();
    decided.server = Some("192.0.2.1:20023".parse().expect("a server"));
    decided.client = Some(Ipv4Addr::new(192, 0, 2, 2));
    decided.path = Some("host".to_owned());
    decided.link = Some(LinkSpec::Virtio);
    let target = decided.target(&wishes(environment));
    check(&target, environment);
    assert_eq!((target.server, target.client), (decided.server, decided.client));
    assert_eq!((target.path, target.link), (decided.path, LinkSpec::Virtio));

    let mut deaf = config();
    deaf.guest_environment = GuestEnvironment::Ignore;
    assert_eq!(deaf.target(&wishes(environment)), open.target(&wishes(&[])));
}

fn config() -> DumpConfig {
    DumpConfig::new("crash".into(), "vm".into())
}

fn check(target: &Target, environment: &[(String, String)]) {
    let is_host = |ip: Ipv4Addr| !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast();
    assert!([target.client, target.gateway].into_iter().flatten().all(is_host));
    assert!(target.server.is_none_or(|server| is_host(*server.ip()) && server.port() != 0));
    if let Some(path) = &target.path {
        assert!(path.len() < 1024 && !path.starts_with('/') && !path.contains('\0'));
        assert!(path.split('/').all(|part| part != ".."));
    }
    for refused in &target.refused {
        assert!(refused.value.chars().count() <= 200 && !refused.reason.is_empty());
        let known = environment.iter().find(|(name, _)| name == refused.variable);
        assert!(known.is_some_and(|(_, value)| value.starts_with(&refused.value)));
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn put(bytes: &mut [u8], at: usize, values: &[u64]) {
    let values = words(values);
    bytes[at..at + values.len()].copy_from_slice(&values);
}
