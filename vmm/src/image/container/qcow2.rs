//! qcow2, versions 2 and 3, read only (QEMU `docs/interop/qcow2.txt`). Everything on disk is big-endian.
//!
//! The tables are read where they are, an entry at a time: memory does not go with the image's size. An image that needs
//! other files (a backing file, external data) is refused, as its content would name files of the host to read; so are
//! encrypted ones.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::image::blocks::Storage;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Length of the header of version 2, and of the fields of version 3 that are read.
const HEADER_2: usize = 72;
const HEADER_3: usize = 105;
/// Cluster sizes: 512 bytes to 2 MiB (`MIN_CLUSTER_BITS`, `MAX_CLUSTER_BITS` of QEMU's `block/qcow2.h`).
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest first-level table in bytes (`QCOW_MAX_L1_SIZE`).
const MOST_L1: u64 = 32 << 20;
/// Incompatible features: the image was not closed (which matters to reference counts only), the compression is told.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Bits of a table's entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// A cluster that reads as zeros (version 3).
const ZERO: u64 = 1;

/// Why a qcow2 image cannot be read.
#[derive(Debug, Error)]
pub enum Qcow2Error {
    /// The header cannot be read.
    #[error("reading its header")]
    Header(#[source] io::Error),
    /// A version that is not known.
    #[error("it is of version {0}, known are 2 and 3")]
    Version(u32),
    /// It is only the difference to another file.
    #[error(
        "it needs the backing file '{0}', which is not opened here: flatten it with `qemu-img convert -O qcow2`"
    )]
    Backing(String),
    /// Its contents are encrypted.
    #[error("it is encrypted: decrypt it with `qemu-img convert`")]
    Encrypted,
    /// It uses what is not known here.
    #[error("{0}")]
    Feature(&'static str),
    /// It contradicts itself.
    #[error("its header is damaged: {0}")]
    Damaged(&'static str),
}

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2 {
    file: Arc<dyn Storage>,
    len: u64,
    cluster_bits: u32,
    l1: u64,
    has_zero_clusters: bool,
    is_zstd: bool,
    /// The cluster that was unpacked last, and its entry.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

/// Where a cluster's bytes are.
enum Cluster {
    Zeros,
    At(u64),
    /// Its entry in the second table.
    Packed(u64),
}

impl Qcow2 {
    /// Whether a file is one.
    pub fn is_in(file: &dyn Storage) -> bool {
        let mut magic = [0; 4];
        file.length() >= HEADER_2 as u64 && file.read_at(0, &mut magic).is_ok() && magic == *MAGIC
    }

    /// Opens an image.
    pub fn open(file: Arc<dyn Storage>) -> Result<Self, Qcow2Error> {
        let mut header = [0; HEADER_3];
        let there = usize::try_from(file.length()).unwrap_or(HEADER_3).min(HEADER_3);
        file.read_at(0, header.get_mut(..there).unwrap_or_default()).map_err(Qcow2Error::Header)?;
        let version = u32_at(&header, 4);
        if there < HEADER_2 || !(2..=3).contains(&version) {
            return Err(Qcow2Error::Version(version));
        }
        refuse_other_files(&*file, &header)?;
        let is_zstd = version == 3 && check_features(&header)?;
        let cluster_bits = u32_at(&header, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Error::Damaged("its clusters have an odd size"));
        }
        let (len, entries, l1) = (u64_at(&header, 24), u64::from(u32_at(&header, 36)), u64_at(&header, 40));
        let end = l1.checked_add(entries * 8).filter(|&end| end <= file.length());
        if entries * 8 > MOST_L1 || end.is_none() {
            return Err(Qcow2Error::Damaged("its first table leaves the file"));
        }
        // Each entry is a table of one cluster, each of whose entries is a cluster.
        let reach = u128::from(entries) << (2 * cluster_bits - 3);
        if u128::from(len) > reach {
            return Err(Qcow2Error::Damaged("its first table is too short for its size"));
        }
        let unpacked = Mutex::new(None);
        Ok(Self { file, len, cluster_bits, l1, has_zero_clusters: version == 3, is_zstd, unpacked })
    }

    fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn find(&self, cluster: u64) -> io::Result<Cluster> {
        let per_table = self.cluster_bits - 3;
        let table = self.entry(self.l1, cluster >> per_table)? & OFFSET;
        if table == 0 {
            return Ok(Cluster::Zeros);
        }
        let entry = self.entry(table, cluster & ((1 << per_table) - 1))?;
        Ok(match entry {
            _ if entry & COMPRESSED != 0 => Cluster::Packed(entry),
            _ if self.has_zero_clusters && entry & ZERO != 0 || entry & OFFSET == 0 => Cluster::Zeros,
            _ => Cluster::At(entry & OFFSET),
        })
    }

    /// Entry `index` of the table at `table`.
    fn entry(&self, table: u64, index: u64) -> io::Result<u64> {
        let mut entry = [0; 8];
        let at = index.checked_mul(8).and_then(|inside| table.checked_add(inside));
        let at = at.filter(|at| at.checked_add(8).is_some_and(|end| end <= self.file.length()));
        self.file.read_at(at.ok_or_else(|| damaged("a table leaves the file"))?, &mut entry)?;
        Ok(u64::from_be_bytes(entry))
    }

    /// Reads of a cluster as it is. The last one of a file need not be whole.
    fn read_plain(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let left = self
            .file
            .length()
            .checked_sub(at)
            .ok_or_else(|| damaged("a cluster is behind the file's end"))?;
        let there = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let (bytes, rest) = buf.split_at_mut(there);
        rest.fill(0);
        self.file.read_at(at, bytes)
    }

    fn read_packed(&self, entry: u64, inside: usize, buf: &mut [u8]) -> io::Result<()> {
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(of, _)| *of != entry) {
            *kept = Some((entry, self.unpack(entry)?));
        }
        let bytes = kept.as_ref().and_then(|(_, cluster)| cluster.get(inside..)?.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or_else(|| damaged("a packed cluster is short"))?);
        Ok(())
    }

    /// Unpacks a cluster: its entry has where it is in the lower bits, above them how many more sectors it touches.
    fn unpack(&self, entry: u64) -> io::Result<Vec<u8>> {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !COMPRESSED & !(1 << 63)) >> offset_bits;
        let wanted = (sectors + 1) * 512 - at % 512;
        // What was compressed last ends where the file does, perhaps inside a sector.
        let left = self
            .file
            .length()
            .checked_sub(at)
            .ok_or_else(|| damaged("a packed cluster is behind the file's end"))?;
        let len = usize::try_from(wanted.min(left)).map_err(io::Error::other)?;
        let mut packed = vec![0; len];
        self.file.read_at(at, &mut packed)?;
        let mut cluster = vec![0; usize::try_from(self.cluster_len()).map_err(io::Error::other)?];
        if self.is_zstd {
            zstd::Decoder::with_buffer(packed.as_slice())?.single_frame().read_exact(&mut cluster)?;
        } else {
            flate2::bufread::DeflateDecoder::new(packed.as_slice()).read_exact(&mut cluster)?;
        }
        Ok(cluster)
    }
}

impl Storage for Qcow2 {
    fn length(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (mut at, mut left) = (offset, buf);
        while !left.is_empty() {
            let inside = at & (self.cluster_len() - 1);
            let room = usize::try_from(self.cluster_len() - inside).map_err(io::Error::other)?;
            let (now, later) = left.split_at_mut(room.min(left.len()));
            match self.find(at >> self.cluster_bits)? {
                Cluster::Zeros => now.fill(0),
                Cluster::At(start) => self.read_plain(start + inside, now)?,
                Cluster::Packed(entry) => {
                    self.read_packed(entry, usize::try_from(inside).map_err(io::Error::other)?, now)?;
                }
            }
            at += now.len() as u64;
            left = later;
        }
        Ok(())
    }
}

fn refuse_other_files(file: &dyn Storage, header: &[u8; HEADER_3]) -> Result<(), Qcow2Error> {
    let (at, len) = (u64_at(header, 8), u32_at(header, 16));
    if at != 0 {
        let mut name = vec![0; usize::try_from(len).unwrap_or(0).min(1023)];
        let inside = at.checked_add(name.len() as u64).is_some_and(|end| end <= file.length());
        if !inside || file.read_at(at, &mut name).is_err() {
            return Err(Qcow2Error::Damaged("the name of its backing file leaves the file"));
        }
        return Err(Qcow2Error::Backing(String::from_utf8_lossy(&name).escape_default().collect()));
    }
    if u32_at(header, 32) != 0 { Err(Qcow2Error::Encrypted) } else { Ok(()) }
}

/// Refuses what would be read wrongly; whether it is packed by zstd.
fn check_features(header: &[u8; HEADER_3]) -> Result<bool, Qcow2Error> {
    let features = u64_at(header, 72);
    let refused = [
        (CORRUPT, "it is marked as corrupt: repair it with `qemu-img check -r all`"),
        (
            EXTERNAL_DATA,
            "its data is in another file, which is not opened here: convert it with `qemu-img convert`",
        ),
        (
            EXTENDED_L2,
            "it has extended tables (subclusters), which are not read: convert it with `qemu-img convert`",
        ),
        (
            !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2),
            "it uses features that are not known here",
        ),
    ];
    if let Some((_, text)) = refused.iter().find(|(bits, _)| features & bits != 0) {
        return Err(Qcow2Error::Feature(text));
    }
    match header[HEADER_3 - 1] {
        0 => Ok(false),
        1 if features & COMPRESSION != 0 => Ok(true),
        _ => Err(Qcow2Error::Feature("it is packed in a way that is not known here")),
    }
}

fn damaged(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 image is damaged: {problem}"))
}

fn u32_at(header: &[u8; HEADER_3], at: usize) -> u32 {
    let field = header.get(at..).and_then(|behind| behind.first_chunk());
    u32::from_be_bytes(*field.expect("the field is in the header"))
}

fn u64_at(header: &[u8; HEADER_3], at: usize) -> u64 {
    let field = header.get(at..).and_then(|behind| behind.first_chunk());
    u64::from_be_bytes(*field.expect("the field is in the header"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by qemu-img 7.2 from [`expected`], with clusters of 4 KiB (`v2`, `v3`) and 64 KiB.
    const V2: &[u8] = include_bytes!("fixtures/v2.qcow2.gz");
    /// Its first 8 KiB were made zero by `qemu-io -c 'write -z 0 8k'`.
    const V3: &[u8] = include_bytes!("fixtures/v3.qcow2.gz");
    const DEFLATE: &[u8] = include_bytes!("fixtures/deflate.qcow2.gz");
    const ZSTD: &[u8] = include_bytes!("fixtures/zstd.qcow2.gz");

    fn file(packed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn open(bytes: Vec<u8>) -> Result<Qcow2, Qcow2Error> {
        Qcow2::open(Arc::new(bytes))
    }

    /// A disk of 1 MiB: some sectors begin with their number, and go on with a pattern.
    fn expected() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        for number in (0..300).chain([1500, 2047]) {
            let sector = &mut disk[number * 512..][..512];
            sector[..8].copy_from_slice(&(number as u64).to_le_bytes());
            for (i, byte) in sector[8..].iter_mut().enumerate() {
                *byte = ((number + i) % 256).try_into().unwrap();
            }
        }
        disk
    }

    #[test]
    fn what_qemu_wrote_is_read_whole_and_in_pieces() {
        for (packed, zeros) in [(V2, 0), (V3, 8192), (DEFLATE, 0), (ZSTD, 0)] {
            let mut expected = expected();
            expected[..zeros].fill(0);
            assert!(Qcow2::is_in(&file(packed)));
            let image = open(file(packed)).unwrap();
            assert_eq!(image.length(), 1 << 20);
            let mut whole = vec![1; 1 << 20];
            image.read_at(0, &mut whole).unwrap();
            assert!(whole == expected);
            for (at, len) in [(0, 512), (4095, 2), (65_530, 9000), (1500 * 512, 512), ((1 << 20) - 1, 1)] {
                let mut part = vec![1; len];
                image.read_at(at as u64, &mut part).unwrap();
                assert!(part == expected[at..at + len], "{at} {len}");
            }
        }
    }

    #[test]
    fn images_that_need_other_files_or_unknown_features_are_refused_in_a_sentence() {
        for (packed, told) in [
            (&include_bytes!("fixtures/backing.qcow2.gz")[..], "it needs the backing file '/etc/passwd'"),
            (include_bytes!("fixtures/data.qcow2.gz"), "its data is in another file"),
            (include_bytes!("fixtures/ext.qcow2.gz"), "it has extended tables"),
        ] {
            let error = open(file(packed)).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
        for (at, bytes, told) in [
            (4, 9_u32, "it is of version 9"),
            (32, 2, "it is encrypted"),
            (76, 2, "it is marked as corrupt"),
            (72, 1, "it uses features"),
            (20, 30, "its header is damaged: its clusters"),
            (20, 8, "its header is damaged: its clusters"),
            (36, u32::MAX, "its header is damaged: its first table leaves"),
            (24, 1, "its header is damaged: its first table is too short"),
            (40, 1, "its header is damaged: its first table leaves"),
        ] {
            let mut image = file(V3);
            image[at..at + 4].copy_from_slice(&bytes.to_be_bytes());
            let error = open(image).unwrap_err().to_string();
            assert!(error.starts_with(told), "{at}: {error}");
        }
    }

    #[test]
    fn tables_and_clusters_behind_the_end_of_the_file_are_errors() {
        let image = file(V2);
        let l1 = usize::try_from(u64_at(image.first_chunk().unwrap(), 40)).unwrap();
        let l2 = usize::try_from(u64::from_be_bytes(*image[l1..].first_chunk().unwrap()) & OFFSET).unwrap();
        for (at, entry) in
            [(l1, OFFSET), (l2, OFFSET), (l2, COMPRESSED | 0x00ff_0000_0000_0000 | 0xffff_ffff)]
        {
            let mut image = image.clone();
            image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            let error = open(image).unwrap().read_at(0, &mut [0; 512]).unwrap_err();
            assert!(error.to_string().starts_with("the qcow2 image is damaged"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_images_are_refused_or_read(
            damage in prop::collection::vec((0..1_usize << 16, any::<u8>()), 1..6), which in 0..4_usize
        ) {
            let mut image = file([V2, V3, DEFLATE, ZSTD][which]);
            for (at, byte) in damage {
                // Most damage where it is felt.
                let at = if at % 2 == 0 { at % 112 } else { at } % image.len();
                image[at] = byte;
            }
            if let Ok(image) = open(image) {
                let mut buf = vec![0; 70_000];
                for at in [0, 1 << 17, image.length().saturating_sub(70_000)] {
                    let _ = image.read_at(at, &mut buf);
                }
            }
        }
    }
}
