//! Compressed cores: a gzip or zstd stream is unpacked into a temporary file, which is then read as any core is.
//!
//! The streams are those of compressed dumps (`kern_shutdown.c`, `subr_compressor.c`), and what gzip(1) and zstd(1)
//! make: several members or frames one behind the other are one core. Cores are read at random, which neither stream
//! allows, hence the file. It is sparse, has no name, and goes with the last handle. It lies in `$TMPDIR` if that is
//! set, else beside the core, where there is room for cores (`/tmp` is often memory), else in the system's own place
//! for temporary files.
//!
//! What can be unpacked of a damaged stream is kept, and [`Packed::damage`] says where it ends. Output is limited: a
//! stream of a few megabytes can unpack to many terabytes.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::core_file::CoreFile;
use super::info::{self, InfoFile};
use crate::sparse::SparseWriter;

/// Most bytes that a core unpacks to when nobody says otherwise.
const DEFAULT_LIMIT: u64 = 256 << 30;
/// Bytes of input, and of output, at a time.
const CHUNK: usize = 256 << 10;
/// log2 of the largest zstd window: memory that unpacking takes. That of `zstd -d` without `--long`.
const MAX_WINDOW_LOG: u32 = 27;
/// Zeros behind a stream that are its last block's padding, which a server could not cut off.
const MAX_PADDING: u64 = 4095;

/// More members or frames than this must not be shorter than [`SHORT`] bytes on average: each costs time, and a file
/// made to harm has nothing else in it.
const MANY: u64 = 10_000;
/// See [`MANY`].
const SHORT: u64 = 256;

/// How a core is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Method {
    /// How a file with these first bytes is packed.
    pub fn recognise(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"\x1f\x8b\x08") {
            return Some(Self::Gzip);
        }
        head.starts_with(b"\x28\xb5\x2f\xfd").then_some(Self::Zstd)
    }

    /// How a file of this name is packed, as a receiver names its cores.
    pub fn by_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Whether these bytes begin another member or frame.
    fn continues(self, head: &[u8]) -> bool {
        let is_skippable = |head: &[u8]| {
            head.first_chunk().is_some_and(|magic| u32::from_le_bytes(*magic) & !0xf == 0x184d_2a50)
        };
        Self::recognise(head) == Some(self) || (self == Self::Zstd && is_skippable(head))
    }
}

/// What was found when a core was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Packed {
    /// How it was packed.
    pub method: Method,
    /// Length of the file in bytes.
    pub stored: u64,
    /// Length of what was unpacked.
    pub unpacked: u64,
    /// What is wrong with the stream.
    #[serde(serialize_with = "as_text")]
    pub damage: Option<Damage>,
}

/// What is wrong with a stream of which something could be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file ends before the stream does.
    #[error("the stream is cut: the file ends at byte {at}, before the stream does")]
    Cut {
        /// Length of the file.
        at: u64,
    },
    /// Something follows that is no part of it.
    #[error("the stream ends at byte {at}; the {len} bytes behind it are no part of it")]
    Trailing {
        /// Where the stream ends.
        at: u64,
        /// How many follow.
        len: u64,
    },
    /// The stream makes no sense from there on.
    #[error("the stream is damaged near byte {at} ({reason})")]
    Corrupt {
        /// How far it was read.
        at: u64,
        /// What the library said.
        reason: String,
    },
}

/// Why a core cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The operating system refused to read.
    #[error("reading the packed core")]
    Read(#[source] io::Error),
    /// Nothing at all came out.
    #[error("nothing can be unpacked of this {}: {damage}", method.name())]
    Nothing {
        /// How it seems to be packed.
        method: Method,
        /// What is wrong with it.
        damage: Damage,
    },
    /// No file can be made.
    #[error("no temporary file to unpack the core into can be made in {}", directory.display())]
    NoPlace {
        /// Where.
        directory: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file cannot grow.
    #[error(
        "unpacking the core: {unpacked} bytes fit into {}, and no more; TMPDIR can name a directory with room",
        directory.display()
    )]
    NoRoom {
        /// Where.
        directory: PathBuf,
        /// How much was written.
        unpacked: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// More comes out than should.
    #[error("the core unpacks to more than {limit} bytes{}; --unpack-limit allows more", origin.why())]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
        /// Whose limit it is.
        origin: LimitOrigin,
    },
}

/// Who set a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitOrigin {
    /// This program, or its user.
    Configured,
    /// The info file beside the core.
    InfoFile,
}

impl LimitOrigin {
    fn why(self) -> &'static str {
        match self {
            Self::Configured => "",
            Self::InfoFile => ", its length by the info file beside it, so it is damaged or made to harm",
        }
    }
}

/// The core as it is to be read: the file itself, or what is packed in it. `limit` replaces the usual one.
pub(super) fn unpacked(path: &Path, file: CoreFile, limit: Option<u64>) -> Result<CoreFile, UnpackError> {
    let head = file.read_up_to(0, 4).map_err(UnpackError::Read)?;
    let Some(method) = Method::recognise(&head) else { return Ok(file) };
    let (directory, temporary) = temporary_file(path)?;
    let (limit, origin) = limit.map_or_else(|| usual_limit(path), |limit| (limit, LimitOrigin::Configured));
    let mut output = Output { writer: SparseWriter::new(temporary), directory, limit, origin };
    let damage = unpack(method, &file, &mut output)?;
    let unpacked = output.writer.position();
    match damage {
        Some(damage) if unpacked == 0 => return Err(UnpackError::Nothing { method, damage }),
        _ => {}
    }
    let Output { writer, directory, .. } = output;
    let finished = writer.finish().map_err(|source| UnpackError::NoRoom { directory, unpacked, source })?;
    let packed = Packed { method, stored: file.length(), unpacked, damage };
    Ok(CoreFile::of_packed(finished, packed))
}

/// What the info file of our own receiver announces, within reason: it repeats what the guest said.
fn usual_limit(path: &Path) -> (u64, LimitOrigin) {
    let extent = info::beside(path).and_then(|info| InfoFile::read(&info).ok()?.dump_extent);
    match extent {
        Some(extent) if extent < DEFAULT_LIMIT => (extent, LimitOrigin::InfoFile),
        _ => (DEFAULT_LIMIT, LimitOrigin::Configured),
    }
}

/// A file without a name, and where it is.
fn temporary_file(core: &Path) -> Result<(PathBuf, File), UnpackError> {
    let beside =
        core.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let chosen = std::env::var_os("TMPDIR").filter(|name| !name.is_empty()).map(PathBuf::from);
    let first = chosen.clone().unwrap_or_else(|| beside.to_owned());
    let made = match tempfile::tempfile_in(&first) {
        Ok(file) => return Ok((first, file)),
        // Cores are often looked at where one may only read.
        Err(_) if chosen.is_none() => {
            let system = std::env::temp_dir();
            tempfile::tempfile_in(&system).map(|file| (system, file))
        }
        Err(error) => Err(error),
    };
    made.map_err(|source| UnpackError::NoPlace { directory: first, source })
}

/// Where unpacked bytes go.
struct Output {
    writer: SparseWriter,
    directory: PathBuf,
    limit: u64,
    origin: LimitOrigin,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        if self.writer.position() + bytes.len() as u64 > self.limit {
            return Err(UnpackError::TooLarge { limit: self.limit, origin: self.origin });
        }
        let unpacked = self.writer.position();
        self.writer.write(bytes).map_err(|source| UnpackError::NoRoom {
            directory: self.directory.clone(),
            unpacked,
            source,
        })
    }
}

/// Unpacks member after member, frame after frame. Says what is wrong with the stream.
fn unpack(method: Method, file: &CoreFile, output: &mut Output) -> Result<Option<Damage>, UnpackError> {
    let mut input = Input::new(file);
    let mut buf = vec![0; CHUNK];
    let mut count = 0;
    loop {
        if count > MANY && input.at / count < SHORT {
            let reason = format!("{count} members or frames of hardly any bytes each");
            return Ok(Some(Damage::Corrupt { at: input.at, reason }));
        }
        let ended = match method {
            Method::Gzip => drain(&mut flate2::bufread::GzDecoder::new(&mut input), &mut buf, output)?,
            Method::Zstd => drain(&mut zstd_decoder(&mut input)?, &mut buf, output)?,
        };
        if let Err(error) = ended {
            return input.blame(error).map(Some);
        }
        let at = input.at;
        let left = file.length() - at;
        let head = file.read_up_to(at, 4).map_err(UnpackError::Read)?;
        if !method.continues(&head) {
            return Ok((!is_padding(file, at, left)?).then_some(Damage::Trailing { at, len: left }));
        }
        count += 1;
    }
}

fn zstd_decoder<'i, 'f>(
    input: &'i mut Input<'f>,
) -> Result<zstd::stream::read::Decoder<'static, &'i mut Input<'f>>, UnpackError> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(UnpackError::Read)?;
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(UnpackError::Read)?;
    Ok(decoder.single_frame())
}

/// Takes all that comes out; the inner error is the stream's own.
fn drain(
    decoder: &mut impl Read,
    buf: &mut [u8],
    output: &mut Output,
) -> Result<Result<(), io::Error>, UnpackError> {
    loop {
        match decoder.read(buf) {
            Ok(0) => return Ok(Ok(())),
            Ok(len) => output.write(&buf[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Whether what follows a stream is nothing, or the zeros that fill its last block.
fn is_padding(file: &CoreFile, at: u64, left: u64) -> Result<bool, UnpackError> {
    if left > MAX_PADDING {
        return Ok(false);
    }
    let rest = file.read_up_to(at, CHUNK).map_err(UnpackError::Read)?;
    Ok(rest.iter().all(|&byte| byte == 0))
}

/// The file as a stream that knows how far it was taken.
struct Input<'f> {
    file: &'f CoreFile,
    /// Offset of the next byte to be taken.
    at: u64,
    chunk: Vec<u8>,
    /// How much of the chunk was taken.
    taken: usize,
    /// The operating system refused to read.
    failed: bool,
}

impl<'f> Input<'f> {
    fn new(file: &'f CoreFile) -> Self {
        Self { file, at: 0, chunk: Vec::new(), taken: 0, failed: false }
    }

    /// Tells a file that cannot be read from one with a bad stream in it.
    fn blame(&self, error: io::Error) -> Result<Damage, UnpackError> {
        if self.failed {
            return Err(UnpackError::Read(error));
        }
        let at_the_end = self.at == self.file.length();
        Ok(match error.kind() {
            io::ErrorKind::UnexpectedEof if at_the_end => Damage::Cut { at: self.at },
            _ => Damage::Corrupt { at: self.at, reason: error.to_string() },
        })
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.chunk.len() {
            let read = self.file.read_up_to(self.at, CHUNK);
            self.failed = read.is_err();
            self.chunk = read?;
            self.taken = 0;
        }
        Ok(self.chunk.get(self.taken..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount;
        self.at += amount as u64;
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let len = available.read(buf)?;
        self.consume(len);
        Ok(len)
    }
}

/// A damage in the words of its message.
fn as_text<S: Serializer>(damage: &Option<Damage>, serializer: S) -> Result<S::Ok, S::Error> {
    damage.as_ref().map(ToString::to_string).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_nothing_but_empty_frames_is_left_early() {
        const EMPTY_ZSTD: &[u8] = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00";
        const EMPTY_GZIP: &[u8] =
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00";
        for (method, frame) in [(Method::Zstd, EMPTY_ZSTD), (Method::Gzip, EMPTY_GZIP)] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let unpack = |count| {
                std::fs::write(file.path(), frame.repeat(count)).unwrap();
                let writer = SparseWriter::new(tempfile::tempfile().unwrap());
                let directory = PathBuf::new();
                let mut output = Output { writer, directory, limit: 1, origin: LimitOrigin::Configured };
                unpack(method, &CoreFile::open(file.path()).unwrap(), &mut output).unwrap()
            };
            assert_eq!(unpack(1000), None);
            let said = unpack(30_000).unwrap().to_string();
            assert!(said.contains("10001 members or frames of hardly any bytes each"), "{said}");
        }
    }
}
