//! The 512-byte kernel dump header (FreeBSD `sys/sys/kerneldump.h`, version 4). All integers are big-endian on every
//! architecture; strings are NUL-padded.

use thiserror::Error;

/// Bytes in a header; also the block that it fills on the wire.
pub const KDH_LEN: usize = 512;
/// The version that is written here.
pub const KDH_VERSION: u32 = 4;
const MAGIC: &[u8] = b"FreeBSD Kernel Dump";
/// Header version of an amd64 core (`KERNELDUMP_AMD64_VERSION`).
pub const AMD64_ARCHITECTURE_VERSION: u32 = 2;

/// How the core is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// A gzip stream.
    Gzip = 1,
    /// A zstd frame.
    Zstd = 2,
}

/// What the header says of the dump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelDumpHeader {
    /// `MACHINE_ARCH`, such as "amd64"; at most 11 bytes are kept.
    pub architecture: String,
    /// Version of that architecture's core layout.
    pub architecture_version: u32,
    /// Bytes of the core as stored.
    pub dump_length: u64,
    /// When the guest panicked, in seconds since 1970.
    pub dump_time: u64,
    /// Bytes of the key block; 0 when the dump is not encrypted.
    pub key_size: u32,
    /// Block size of the dump device; 4096 for netdump.
    pub block_size: u32,
    /// The guest's name; at most 63 bytes are kept.
    pub host_name: String,
    /// The kernel's version text; at most 191 bytes are kept.
    pub version_string: String,
    /// The panic message; at most 174 bytes are kept.
    pub panic_string: String,
    /// How the core is compressed.
    pub compression: Compression,
    /// Bytes reserved for the dump: its uncompressed length.
    pub dump_extent: u64,
}

/// Why 512 bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KdhError {
    /// Too few bytes.
    #[error("a kernel dump header has 512 bytes, not {0}")]
    Short(usize),
    /// Another magic.
    #[error("the kernel dump header does not begin with \"FreeBSD Kernel Dump\"")]
    Magic,
    /// A version that has another layout.
    #[error("kernel dump header version {0} is not supported (4 is)")]
    Version(u32),
    /// The words of the header do not cancel out.
    #[error("the parity of the kernel dump header is wrong")]
    Parity,
    /// A compression that does not exist.
    #[error("compression {0} in the kernel dump header is unknown")]
    Compression(u8),
}

/// Where the fields lie: offset and size, from `struct kerneldumpheader`.
mod field {
    use std::ops::Range;
    pub(super) const MAGIC: Range<usize> = 0x000..0x014;
    pub(super) const ARCHITECTURE: Range<usize> = 0x014..0x020;
    pub(super) const VERSION: Range<usize> = 0x020..0x024;
    pub(super) const ARCHITECTURE_VERSION: Range<usize> = 0x024..0x028;
    pub(super) const DUMP_LENGTH: Range<usize> = 0x028..0x030;
    pub(super) const DUMP_TIME: Range<usize> = 0x030..0x038;
    pub(super) const KEY_SIZE: Range<usize> = 0x038..0x03c;
    pub(super) const BLOCK_SIZE: Range<usize> = 0x03c..0x040;
    pub(super) const HOST_NAME: Range<usize> = 0x040..0x080;
    pub(super) const VERSION_STRING: Range<usize> = 0x080..0x140;
    pub(super) const PANIC_STRING: Range<usize> = 0x140..0x1ef;
    pub(super) const COMPRESSION: usize = 0x1ef;
    pub(super) const DUMP_EXTENT: Range<usize> = 0x1f0..0x1f8;
    pub(super) const PARITY: Range<usize> = 0x1fc..0x200;
}

impl KernelDumpHeader {
    /// The header as bytes, its parity in place.
    pub fn to_bytes(&self) -> [u8; KDH_LEN] {
        let mut out = [0; KDH_LEN];
        out[field::MAGIC][..MAGIC.len()].copy_from_slice(MAGIC);
        put_text(&mut out[field::ARCHITECTURE], &self.architecture);
        out[field::VERSION].copy_from_slice(&KDH_VERSION.to_be_bytes());
        out[field::ARCHITECTURE_VERSION].copy_from_slice(&self.architecture_version.to_be_bytes());
        out[field::DUMP_LENGTH].copy_from_slice(&self.dump_length.to_be_bytes());
        out[field::DUMP_TIME].copy_from_slice(&self.dump_time.to_be_bytes());
        out[field::KEY_SIZE].copy_from_slice(&self.key_size.to_be_bytes());
        out[field::BLOCK_SIZE].copy_from_slice(&self.block_size.to_be_bytes());
        put_text(&mut out[field::HOST_NAME], &self.host_name);
        put_version_string(&mut out[field::VERSION_STRING], &self.version_string);
        put_text(&mut out[field::PANIC_STRING], &self.panic_string);
        out[field::COMPRESSION] = self.compression as u8;
        out[field::DUMP_EXTENT].copy_from_slice(&self.dump_extent.to_be_bytes());
        let parity = parity(&out);
        out[field::PARITY].copy_from_slice(&parity.to_be_bytes());
        out
    }

    /// Takes a header apart. Bytes behind the 512 are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, KdhError> {
        let bytes = bytes.first_chunk::<KDH_LEN>().ok_or(KdhError::Short(bytes.len()))?;
        if text(&bytes[field::MAGIC]).as_bytes() != MAGIC {
            return Err(KdhError::Magic);
        }
        let version = u32_at(bytes, field::VERSION);
        if version != KDH_VERSION {
            return Err(KdhError::Version(version));
        }
        if parity(bytes) != 0 {
            return Err(KdhError::Parity);
        }
        Ok(Self {
            architecture: text(&bytes[field::ARCHITECTURE]),
            architecture_version: u32_at(bytes, field::ARCHITECTURE_VERSION),
            dump_length: u64_at(bytes, field::DUMP_LENGTH),
            dump_time: u64_at(bytes, field::DUMP_TIME),
            key_size: u32_at(bytes, field::KEY_SIZE),
            block_size: u32_at(bytes, field::BLOCK_SIZE),
            host_name: text(&bytes[field::HOST_NAME]),
            version_string: text(&bytes[field::VERSION_STRING]),
            panic_string: text(&bytes[field::PANIC_STRING]),
            compression: match bytes[field::COMPRESSION] {
                0 => Compression::None,
                1 => Compression::Gzip,
                2 => Compression::Zstd,
                other => return Err(KdhError::Compression(other)),
            },
            dump_extent: u64_at(bytes, field::DUMP_EXTENT),
        })
    }
}

/// XOR of the 128 big-endian words; 0 for a whole header with its parity in place.
fn parity(bytes: &[u8; KDH_LEN]) -> u32 {
    bytes.chunks_exact(4).fold(0, |sum, word| sum ^ u32_at(word, 0..4))
}

/// Copies as much of `value` as leaves room for a NUL, cut between characters.
fn put_text(field: &mut [u8], value: &str) {
    let room = field.len() - 1;
    let len = value.floor_char_boundary(room);
    field[..len].copy_from_slice(&value.as_bytes()[..len]);
}

/// As [`put_text`], but a cut text ends with a newline, as FreeBSD's `dump_init_header` makes it.
fn put_version_string(field: &mut [u8], value: &str) {
    if value.len() < field.len() {
        return put_text(field, value);
    }
    let len = value.floor_char_boundary(field.len() - 2);
    field[..len].copy_from_slice(&value.as_bytes()[..len]);
    field[len] = b'\n';
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn u32_at(bytes: &[u8], at: std::ops::Range<usize>) -> u32 {
    bytes[at].iter().fold(0, |value, &byte| (value << 8) | u32::from(byte))
}

fn u64_at(bytes: &[u8], at: std::ops::Range<usize>) -> u64 {
    bytes[at].iter().fold(0, |value, &byte| (value << 8) | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> KernelDumpHeader {
        KernelDumpHeader {
            architecture: "amd64".into(),
            architecture_version: AMD64_ARCHITECTURE_VERSION,
            dump_length: 0x1_0203_0405,
            dump_time: 1_700_000_000,
            key_size: 0,
            block_size: 4096,
            host_name: "vm1".into(),
            version_string: "FreeBSD 14.0".into(),
            panic_string: "bad trap".into(),
            compression: Compression::None,
            dump_extent: 0x1_0203_0405,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(KernelDumpHeader::parse(&header().to_bytes()), Ok(header()));
    }

    #[test]
    fn fields_lie_where_freebsd_has_them() {
        let bytes = header().to_bytes();
        assert_eq!(&bytes[..20], b"FreeBSD Kernel Dump\0");
        assert_eq!(&bytes[0x14..0x1a], b"amd64\0");
        assert_eq!(bytes[0x20..0x30], [0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 1, 2, 3, 4, 5]);
        assert_eq!(bytes[0x3c..0x40], [0, 0, 0x10, 0]);
        assert_eq!(&bytes[0x40..0x44], b"vm1\0");
        assert_eq!(&bytes[0x140..0x149], b"bad trap\0");
        let xor = bytes.chunks(4).fold([0; 4], |s: [u8; 4], w| std::array::from_fn(|i| s[i] ^ w[i]));
        assert_eq!(xor, [0; 4]);
    }

    #[test]
    fn long_texts_are_cut_and_stay_terminated() {
        let long = KernelDumpHeader {
            host_name: "h".repeat(100),
            version_string: "v".repeat(300),
            panic_string: "ü".repeat(200),
            ..header()
        };
        let bytes = long.to_bytes();
        assert_eq!((bytes[0x7e], bytes[0x7f]), (b'h', 0));
        assert_eq!((bytes[0x13d], bytes[0x13e], bytes[0x13f]), (b'v', b'\n', 0));
        assert_eq!(bytes[0x1ee], 0);
        assert_eq!(KernelDumpHeader::parse(&bytes).unwrap().panic_string, "ü".repeat(87));
    }

    #[test]
    fn every_field_of_version_4_has_its_place() {
        let full = KernelDumpHeader {
            dump_time: 0x0102_0304_0506_0708,
            key_size: 0x1122_3344,
            version_string: "version".into(),
            compression: Compression::Zstd,
            dump_extent: 0x1112_1314_1516_1718,
            ..header()
        };
        let bytes = full.to_bytes();
        assert_eq!(bytes[0x30..0x38], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[0x38..0x3c], [0x11, 0x22, 0x33, 0x44]);
        assert_eq!(&bytes[0x80..0x88], b"version\0");
        assert_eq!(bytes[0x1ef], 2);
        assert_eq!(bytes[0x1f0..0x1f8], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        assert_eq!(bytes[0x1f8..0x1fc], [0; 4]);
    }

    #[test]
    fn a_version_is_cut_only_when_it_does_not_fit_and_then_ends_its_line() {
        let bytes = |version: String| KernelDumpHeader { version_string: version, ..header() }.to_bytes();
        let fits = bytes("v".repeat(191));
        assert_eq!((fits[0x80 + 190], fits[0x80 + 191]), (b'v', 0));
        let cut = bytes("v".repeat(192));
        assert_eq!((cut[0x80 + 189], cut[0x80 + 190], cut[0x80 + 191]), (b'v', b'\n', 0));
        // Cut between characters, with no gap that would end the text before its newline.
        let wide = bytes(format!("{}ü", "v".repeat(190)));
        assert_eq!(wide[0x80 + 190..0x80 + 192], [b'\n', 0]);
        let wider = bytes(format!("{}üü", "v".repeat(189)));
        assert_eq!(text(&wider[0x80..0x140]), format!("{}\n", "v".repeat(189)));
    }

    #[test]
    fn damage_is_named() {
        let good = header().to_bytes();
        assert_eq!(KernelDumpHeader::parse(&good[..511]), Err(KdhError::Short(511)));
        let change = |at: usize, xor: u8| {
            let mut bad = good;
            bad[at] ^= xor;
            KernelDumpHeader::parse(&bad)
        };
        assert_eq!(change(0, 1), Err(KdhError::Magic));
        assert_eq!(change(0x23, 1), Err(KdhError::Version(5)));
        assert_eq!(change(0x150, 1), Err(KdhError::Parity));
        let mut odd = good;
        odd[0x1ef] ^= 7;
        odd[0x1ff] ^= 7;
        assert_eq!(KernelDumpHeader::parse(&odd), Err(KdhError::Compression(7)));
    }
}
