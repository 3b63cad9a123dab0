//! What is known of a dump when it ends, and how it ended: for the info file, the console and the program around.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::ranges::Gaps;
use super::store::StoreError;
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::{Compression, KDH_LEN, KdhError};

/// Largest block of a dump that is believed in: that of a netdump.
const MAX_BLOCK: u64 = 4096;

/// The KDH of a dump, as far as it came and makes sense.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HeaderSeen {
    /// None came.
    #[default]
    Missing,
    /// A whole and valid one.
    Valid(KernelDumpHeader),
    /// Its parity is wrong. The fields are shown, but nothing is done by them.
    BadParity(KernelDumpHeader),
    /// It cannot be taken apart.
    Unreadable {
        /// Why.
        error: KdhError,
        /// What came.
        bytes: Box<[u8; KDH_LEN]>,
    },
}

impl HeaderSeen {
    /// Judges the 512 bytes of a KDH message.
    pub fn judge(bytes: &[u8; KDH_LEN]) -> Self {
        let error = match KernelDumpHeader::parse(bytes) {
            Ok(header) => return Self::Valid(header),
            Err(error) => error,
        };
        let repaired = (error == KdhError::Parity).then(|| with_parity(bytes));
        match repaired.map(|bytes| KernelDumpHeader::parse(&bytes)) {
            Some(Ok(header)) => Self::BadParity(header),
            Some(Err(_)) | None => Self::Unreadable { error, bytes: Box::new(*bytes) },
        }
    }

    /// The header, if files may be named and cut by it.
    pub fn valid(&self) -> Option<&KernelDumpHeader> {
        match self {
            Self::Valid(header) => Some(header),
            Self::Missing | Self::BadParity(_) | Self::Unreadable { .. } => None,
        }
    }

    /// How the core is compressed, as far as the header can be trusted.
    pub fn compression(&self) -> Compression {
        self.valid().map_or(Compression::None, |header| header.compression)
    }

    /// Whether the core is encrypted, as far as the header can be trusted.
    pub fn is_encrypted(&self) -> bool {
        self.valid().is_some_and(|header| header.key_size > 0)
    }

    /// Whether the core is one stream from its first byte to its last, as compressed and encrypted ones are: then no
    /// part of it can be left out as zeros.
    pub fn is_stream(&self) -> bool {
        self.compression() != Compression::None || self.is_encrypted()
    }

    /// Length of the core's file when `received` is the end of the last byte received.
    ///
    /// A compressed core ends where its header says: what comes behind is padding to whole blocks. Any other is as
    /// long as the header says, or longer if more came: no byte that was acknowledged is cut off.
    pub fn file_length(&self, received: u64) -> u64 {
        match self.valid() {
            Some(header) if i64::try_from(header.dump_length).is_err() => received,
            Some(header) if header.compression != Compression::None => header.dump_length,
            Some(header) => received.max(header.dump_length),
            None => received,
        }
    }
}

/// The header with its last word replaced so that all words cancel out.
fn with_parity(bytes: &[u8; KDH_LEN]) -> [u8; KDH_LEN] {
    let sum = bytes.chunks_exact(4).fold([0; 4], |mut sum: [u8; 4], word| {
        sum.iter_mut().zip(word).for_each(|(sum, byte)| *sum ^= byte);
        sum
    });
    let mut repaired = *bytes;
    let parity = repaired.iter_mut().skip(KDH_LEN - 4);
    parity.zip(sum).for_each(|(byte, sum)| *byte ^= sum);
    repaired
}

/// One dump as its receiver saw it.
#[derive(Debug, Clone)]
pub struct DumpSummary {
    /// Where it came from.
    pub peer: SocketAddrV4,
    /// Which of our addresses it was sent to.
    pub local: Ipv4Addr,
    /// As in [`NewDump`](super::store::NewDump).
    pub dump_id: Option<NonZeroU32>,
    /// How often the client took the dump up again after it had lost the receiver.
    pub resumed: u64,
    /// Its KDH.
    pub header: HeaderSeen,
    /// Core bytes received, each counted once.
    pub bytes: u64,
    /// End of the last core byte received.
    pub end: u64,
    /// Length of the core's file; for an incomplete dump what is known of it.
    pub length: u64,
    /// What did not arrive of `0..length`: in a complete dump the parts that the client declared to be zeros by not
    /// sending them.
    pub gaps: Gaps,
    /// Messages taken, repeated ones included, HERALD and FINISHED not.
    pub messages: u64,
    /// Data messages that brought nothing new.
    pub repeated: u64,
    /// Datagrams from this client that were ignored.
    pub ignored: u64,
    /// From the HERALD to the end.
    pub elapsed: Duration,
}

impl DumpSummary {
    /// Whether what came behind the announced end can be the padding of a compressed core's last block.
    pub(super) fn is_padding_behind(&self) -> bool {
        let header = self.header.valid().filter(|header| header.compression != Compression::None);
        header.is_some_and(|header| {
            let block = u64::from(header.block_size).clamp(1, MAX_BLOCK);
            self.end <= header.dump_length.checked_next_multiple_of(block).unwrap_or(u64::MAX)
        })
    }
}

/// How a dump ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// The client said FINISHED and all is on stable storage.
    Complete,
    /// It stopped early; what arrived is kept under a name that says so.
    Incomplete(Cause),
}

impl Ending {
    /// Whether the dump is whole.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Complete)
    }
}

/// Why a dump stopped early.
#[derive(Debug, Clone)]
pub enum Cause {
    /// Nothing came from the client for the time that the configuration allows.
    TimedOut,
    /// The client began another dump.
    Restarted,
    /// The receiver was told to stop.
    Stopped,
    /// The receiver died; the next one found what was left.
    ReceiverDied,
    /// The client said FINISHED, but parts of the core never came. A compressed or encrypted core cannot be read behind a
    /// gap. Of any other core a gap means zeros if the client names its dumps ([`DumpSummary::dump_id`]); a stock client
    /// sends everything, so what did not come was lost.
    Gap {
        /// The first part that is missing.
        first: Range<u64>,
        /// Bytes missing in all.
        bytes: u64,
    },
    /// The client said FINISHED, but not all of the key block came that the header announces.
    Key {
        /// Bytes of it that came.
        came: u64,
        /// Its length by the header.
        announced: u64,
    },
    /// The bytes could not be stored.
    Store(Arc<StoreError>),
}

impl std::fmt::Display for Ending {
    /// The last line of netdumpd's info file, and in the same manner what netdumpd does not tell apart.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Complete => f.write_str("Dump complete"),
            Self::Incomplete(Cause::TimedOut) => f.write_str("Dump incomplete: client timed out"),
            Self::Incomplete(Cause::Restarted) => f.write_str("Dump incomplete: client began another dump"),
            Self::Incomplete(Cause::Stopped) => f.write_str("Dump incomplete: receiver was stopped"),
            Self::Incomplete(Cause::ReceiverDied) => f.write_str("Dump incomplete: the receiver died"),
            Self::Incomplete(Cause::Gap { first, bytes }) => write!(
                f,
                "Dump incomplete: client finished, but {bytes}B of the core never came, the first at {:#x}-{:#x}",
                first.start, first.end
            ),
            Self::Incomplete(Cause::Key { came, announced }) => {
                write!(
                    f,
                    "Dump incomplete: client finished, but of its key only {came}B of {announced}B came"
                )
            }
            Self::Incomplete(Cause::Store(error)) => {
                write!(f, "Dump unsuccessful: {error}")?;
                let mut cause = std::error::Error::source(&**error);
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(dump_length: u64, compression: Compression) -> KernelDumpHeader {
        KernelDumpHeader { dump_length, compression, panic_string: "boom".into(), ..Default::default() }
    }

    #[test]
    fn whole_header_is_valid() {
        let header = header(4096, Compression::None);
        assert_eq!(HeaderSeen::judge(&header.to_bytes()), HeaderSeen::Valid(header));
    }

    #[test]
    fn fields_are_read_in_spite_of_bad_parity() {
        let good = header(4096, Compression::Zstd);
        let mut bytes = good.to_bytes();
        bytes[0x1fd] ^= 0x40;
        let seen = HeaderSeen::judge(&bytes);
        assert_eq!(seen, HeaderSeen::BadParity(good));
        assert_eq!((seen.compression(), seen.file_length(9000)), (Compression::None, 9000));
    }

    #[test]
    fn unreadable_header_is_kept() {
        let mut bytes = header(1, Compression::None).to_bytes();
        bytes[0] = b'f';
        let error = KdhError::Magic;
        assert_eq!(HeaderSeen::judge(&bytes), HeaderSeen::Unreadable { error, bytes: Box::new(bytes) });
    }

    #[test]
    fn compression_out_of_range_is_unreadable_even_with_bad_parity() {
        let mut bytes = header(1, Compression::None).to_bytes();
        bytes[0x1ef] = 3;
        assert!(matches!(HeaderSeen::judge(&bytes), HeaderSeen::Unreadable { .. }));
    }

    #[test]
    fn only_compressed_cores_are_cut() {
        assert_eq!(HeaderSeen::Missing.file_length(70), 70);
        assert_eq!(HeaderSeen::Valid(header(50, Compression::None)).file_length(70), 70);
        assert_eq!(HeaderSeen::Valid(header(90, Compression::None)).file_length(70), 90);
        assert_eq!(HeaderSeen::Valid(header(50, Compression::Gzip)).file_length(70), 50);
        assert_eq!(HeaderSeen::Valid(header(u64::MAX, Compression::Gzip)).file_length(70), 70);
    }
}
