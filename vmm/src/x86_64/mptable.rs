//! The MP table (Intel MultiProcessor Specification 1.4, section 4): processors, one ISA bus, the IOAPIC and who is
//! connected to which of its pins. For kernels without ACPI, such as FreeBSD's FIRECRACKER configuration; those panic on
//! entries of other types than the specification's, so there are none. Little-endian.

use super::layout;

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
/// Version 1.4.
const REVISION: u8 = 4;
/// Version of KVM's local APICs and of its IOAPIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;

/// Entry types.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Kinds of interrupt.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger as the bus has them; for ISA that is active high, edge.
const CONFORMING: u16 = 0;
/// Active high, level.
const LEVEL: u16 = 0b1101;

const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;
/// The timer comes by this pin, as KVM routes it (and most boards do); its own would be the 8259's.
const TIMER_PIN: u8 = 2;
const ISA_IRQS: u8 = 16;

const CPU_ENABLED: u8 = 1;
const CPU_BOOTSTRAP: u8 = 2;
/// Family 6; the same for every CPU. Systems ask CPUID instead.
const CPU_SIGNATURE: u32 = 0x600;
/// FPU and APIC on chip.
const CPU_FEATURES: u32 = 0x201;

/// The floating pointer, which says where the table is.
pub fn pointer() -> [u8; POINTER_LEN] {
    let mut bytes = [0; POINTER_LEN];
    bytes[..4].copy_from_slice(b"_MP_");
    let table = u32::try_from(layout::MP_TABLE).expect("below 1 MiB");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = 1; // length in units of 16 bytes
    bytes[9] = REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// The configuration table of a machine with so many processors.
pub fn table(cpus: u8) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    (0..cpus).for_each(|id| add(&processor(id)));
    add(&[BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    add(&ioapic(cpus));
    for irq in (0..ISA_IRQS).filter(|&irq| irq != TIMER_PIN) {
        let pin = if irq == 0 { TIMER_PIN } else { irq };
        let flags = if irq == layout::SCI_IRQ { LEVEL } else { CONFORMING };
        add(&interrupt(IO_INTERRUPT, VECTORED, flags, irq, cpus, pin));
    }
    add(&interrupt(LOCAL_INTERRUPT, EXT_INT, CONFORMING, 0, 0, 0));
    add(&interrupt(LOCAL_INTERRUPT, NMI, CONFORMING, 0, ALL_LOCAL_APICS, 1));
    fill_header(&mut bytes, count);
    bytes
}

fn fill_header(bytes: &mut [u8], count: u16) {
    let len = u16::try_from(bytes.len()).expect("254 CPUs take 5 KiB");
    bytes[..4].copy_from_slice(b"PCMP");
    bytes[4..6].copy_from_slice(&len.to_le_bytes());
    bytes[6] = REVISION;
    bytes[8..16].copy_from_slice(b"VMM     ");
    bytes[16..28].copy_from_slice(b"MICROVM     ");
    bytes[34..36].copy_from_slice(&count.to_le_bytes());
    bytes[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    bytes[7] = checksum(bytes);
}

fn processor(id: u8) -> [u8; 20] {
    let mut entry = [0; 20];
    let flags = if id == 0 { CPU_ENABLED | CPU_BOOTSTRAP } else { CPU_ENABLED };
    entry[..4].copy_from_slice(&[PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
    entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
    entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
    entry
}

/// Its number follows those of the processors: they share one space in this table. KVM's says that it is 0, as our MADT
/// does; FreeBSD remarks on that ("MADT APIC ID 2 != hw id 0", in this case too) and goes on.
fn ioapic(id: u8) -> [u8; 8] {
    let [a, b, c, d] = layout::IOAPIC.to_le_bytes();
    [IOAPIC, id, IOAPIC_VERSION, 1, a, b, c, d]
}

fn interrupt(entry: u8, kind: u8, flags: u16, irq: u8, apic: u8, pin: u8) -> [u8; 8] {
    let [low, high] = flags.to_le_bytes();
    [entry, kind, low, high, ISA_BUS, irq, apic, pin]
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().copied().fold(0, u8::wrapping_add)
    }

    /// The entries of a table, by the specification's lengths.
    fn entries(table: &[u8]) -> Vec<&[u8]> {
        let mut rest = &table[44..];
        let mut found = Vec::new();
        while let Some(&kind) = rest.first() {
            let (entry, behind) = rest.split_at(match kind {
                0 => 20,
                1..=4 => 8,
                other => panic!("no entry is of type {other}"),
            });
            found.push(entry);
            rest = behind;
        }
        found
    }

    #[test]
    fn checksums_lengths_and_counts_are_right() {
        assert_eq!(sum(&pointer()), 0);
        for cpus in [1, 2, 254] {
            let table = table(cpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), entries(&table).len());
        }
    }

    #[test]
    fn every_processor_is_listed_once_and_the_first_boots() {
        let table = table(254);
        let cpus: Vec<_> = entries(&table).into_iter().filter(|e| e[0] == 0).collect();
        assert!(cpus.iter().map(|e| e[1]).eq(0..254));
        assert!(cpus.iter().all(|e| e[3] & 1 == 1));
        assert_eq!(cpus.iter().filter(|e| e[3] & 2 == 2).map(|e| e[1]).collect::<Vec<_>>(), [0]);
        let ioapic = entries(&table).into_iter().find(|e| e[0] == 2).unwrap()[1];
        assert_eq!(ioapic, 254);
    }

    #[test]
    fn no_two_interrupts_share_a_pin_and_the_timer_has_pin_2() {
        let table = table(2);
        let io: Vec<_> = entries(&table).into_iter().filter(|e| e[0] == 3).collect();
        assert_eq!(io.iter().map(|e| e[7]).collect::<BTreeSet<_>>().len(), io.len());
        assert_eq!(io.iter().find(|e| e[5] == 0).unwrap()[7], 2);
        assert!(io.iter().any(|e| e[5] == 5 && e[7] == 5 && e[2..4] == [0, 0]));
        assert!(io.iter().all(|e| e[6] == 2), "the IOAPIC's number");
    }
}
