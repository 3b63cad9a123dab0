//! What several fuzz targets use: inputs read as scripts, checksums put right, and the harness's reader of frames, which
//! shares no code with what is tested.

pub mod image;
pub mod sent;
pub mod store;

#[allow(dead_code, missing_docs, unfulfilled_lint_expectations)]
#[path = "../../../tests/src/pcap.rs"]
pub mod pcap;

use std::sync::LazyLock;

use netdump::wire::checksum::Checksum;

/// Tells what happens, for who repeats a find with `FUZZ_TRACE` set.
pub fn trace(what: impl FnOnce() -> String) {
    static IS_ON: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_TRACE").is_some());
    if *IS_ON {
        eprintln!("{}", what());
    }
}

/// Reads an input as a script: numbers and bytes, one behind the other, zeros behind its end.
#[derive(Debug)]
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next two bytes, big-endian.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// The next four bytes, big-endian.
    pub fn long(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    /// The next eight bytes, big-endian.
    pub fn quad(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The next `len` bytes, or what is left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One of several, as the next byte says.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes(N);
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }
}

/// Puts the checksums of an Ethernet frame with IPv4 and UDP right, where there are such headers: mutations of a frame
/// would seldom get behind them else.
pub fn repair(frame: &mut [u8]) {
    let is_udp = frame.len() >= 42 && frame[12..15] == [8, 0, 0x45] && frame[23] == 17;
    if !is_udp {
        return;
    }
    put_checksum(&mut frame[14..34], 10, Checksum::default());
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let length = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
    if length >= 8 && length + 20 <= total && 34 + length <= frame.len() {
        let mut pseudo_header = Checksum::of(&frame[26..34]);
        pseudo_header.add(&[0, 17]);
        pseudo_header.add(&frame[38..40]);
        put_checksum(&mut frame[34..34 + length], 6, pseudo_header);
    }
}

fn put_checksum(bytes: &mut [u8], at: usize, mut sum: Checksum) {
    bytes[at..at + 2].fill(0);
    sum.add(bytes);
    bytes[at..at + 2].copy_from_slice(&sum.complete());
}
