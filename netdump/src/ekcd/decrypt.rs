//! From an encrypted core, its key block and a private key to the core in the clear.
//!
//! The core is written aside and gets its name when it is whole, on stable storage, and looks like a core: until then
//! nothing is seen of it, and nothing is left when it fails. Parts of the encrypted core that never came become zeros:
//! decrypted they would be noise that looks like memory.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::key_block::{KeyBlock, KeyBlockError, MAX_KEY_FILE};
use super::rsa_key::{Padding, PrivateKey, RsaKeyError};
use super::stream::{CIPHER_BLOCK, Direction, StreamCipher};
use super::{Cipher, head, lost, names};
use crate::sparse::SparseWriter;
use crate::vmcore::CoreFile;
use crate::vmcore::info::{self, InfoFile};

/// Bytes decrypted at a time.
const CHUNK: usize = 1 << 20;

/// What to decrypt, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Decryption<'a> {
    /// The encrypted core.
    pub core: &'a Path,
    /// The key block; else it is found beside the core by name.
    pub key_file: Option<&'a Path>,
    /// Unwraps the dump's key.
    pub private: &'a PrivateKey,
    /// Where to write; else beside the core, named `vmcore.*`.
    pub output: Option<&'a Path>,
    /// Whether a file of that name is replaced.
    pub replace: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decrypted {
    /// The core in the clear.
    pub output: PathBuf,
    /// What it was encrypted with.
    pub cipher: Cipher,
    /// How its key was padded.
    pub padding: Padding,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of it that never came, or cannot be decrypted without such; they are zeros.
    pub missing: u64,
    /// Bytes at the end that are no whole cipher block and could not be decrypted.
    pub left_out: u64,
    /// Why the encrypted core lacks more than that, as far as its server tells.
    pub lack: Option<Lack>,
}

/// How it is known that the encrypted core is not all of the dump.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// It is named `*.incomplete` or `*.partial`.
    #[error("its name says so")]
    Name,
    /// The info file beside it says so.
    #[error("its server says: {0}")]
    Info(String),
    /// The info file beside it tells another length.
    #[error("its header announced {announced} bytes, and it has {found}")]
    Cut {
        /// By the info file.
        announced: u64,
        /// In the file.
        found: u64,
    },
}

impl Lack {
    /// Of the core of this name and length.
    fn of(core: &Path, found: u64) -> Option<Self> {
        let info = info::beside(core).and_then(|path| InfoFile::read(&path).ok());
        match info {
            Some(InfoFile { ending: Some(ending), .. }) if ending != info::COMPLETE => {
                Some(Self::Info(ending))
            }
            _ if names::is_incomplete(core) => Some(Self::Name),
            Some(InfoFile { dump_length: Some(announced), .. }) if announced > found => {
                Some(Self::Cut { announced, found })
            }
            _ => None,
        }
    }
}

/// Why a core cannot be decrypted.
#[derive(Debug, thiserror::Error)]
pub enum DecryptError {
    /// The core's name does not tell.
    #[error("{} is not named vmcore_encrypted.*, so {} must be given", core.display(), missing)]
    Unnamed {
        /// The core.
        core: PathBuf,
        /// Which option.
        missing: &'static str,
    },
    /// A file cannot be read.
    #[error("reading {what} {}", path.display())]
    Read {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The key file holds no key block.
    #[error("the key file {} cannot be used", path.display())]
    KeyBlock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyBlockError,
    },
    /// The private key does not unwrap it.
    #[error("unwrapping the key in {}", path.display())]
    Unwrap {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: RsaKeyError,
    },
    /// What comes out is noise.
    #[error(
        "this key does not fit: decrypted with it, {} does not begin like {expected}; \
         the private key or the key file is another dump's, or the file is damaged",
        core.display()
    )]
    Noise {
        /// The core.
        core: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The output is there already.
    #[error("{} exists and is left as it is (--force replaces it)", .0.display())]
    Exists(PathBuf),
    /// The output would replace the input.
    #[error("{} is the encrypted core itself", .0.display())]
    Itself(PathBuf),
    /// The output cannot be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It was told to stop.
    #[error("interrupted; nothing was kept")]
    Interrupted,
}

impl Decryption<'_> {
    /// Does it. `progress` is told the bytes done and in all, and may break it off.
    pub fn run(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Decrypted, DecryptError> {
        let core = names::followed(self.core);
        let output = self.output_of(&core)?;
        let (cipher, padding, mut stream) = self.unwrap_key(&core)?;
        let input = CoreFile::open(&core).map_err(read_failed("the encrypted core", &core))?;
        let write_failed = |source| DecryptError::Write { path: output.clone(), source };
        let aside = aside(&output).map_err(write_failed)?;
        let mut pieces = Pieces { input: &input, path: &core, cipher, missing: 0 };
        let handle = aside.as_file().try_clone().map_err(write_failed)?;
        let mut writer = SparseWriter::new(handle);
        let end = pieces.decryptable();
        if end == 0 {
            head::judge(&core, &[])?;
        }
        let mut buf = vec![0; CHUNK + 2 * lost::MARGIN];
        while writer.position() < end {
            let at = writer.position();
            let chunk = pieces.next(at, end, &mut stream, &mut buf)?;
            if at == 0 {
                head::judge(&core, chunk)?;
            }
            writer.write(chunk).map_err(write_failed)?;
            if progress(writer.position(), end).is_break() {
                return Err(DecryptError::Interrupted);
            }
        }
        let length = writer.position();
        writer.finish().and_then(|file| file.sync_all()).map_err(write_failed)?;
        self.put(aside, &output)?;
        let left_out = input.length() - length;
        let lack = Lack::of(&core, input.length());
        Ok(Decrypted { output, cipher, padding, length, missing: pieces.missing, left_out, lack })
    }

    /// Where the plain core goes. That it exists is found out now: not after hours of work.
    fn output_of(&self, core: &Path) -> Result<PathBuf, DecryptError> {
        let named = self.output.map(Path::to_owned).or_else(|| names::plain_of(core));
        let output =
            named.ok_or_else(|| DecryptError::Unnamed { core: core.to_owned(), missing: "-o OUT" })?;
        if output
            .canonicalize()
            .ok()
            .is_some_and(|output| core.canonicalize().is_ok_and(|core| core == output))
        {
            return Err(DecryptError::Itself(output));
        }
        if !self.replace && output.symlink_metadata().is_ok() {
            return Err(DecryptError::Exists(output));
        }
        Ok(output)
    }

    fn unwrap_key(&self, core: &Path) -> Result<(Cipher, Padding, StreamCipher), DecryptError> {
        let named = self.key_file.map(Path::to_owned).or_else(|| names::key_of(core));
        let path =
            named.ok_or_else(|| DecryptError::Unnamed { core: core.to_owned(), missing: "--key-file" })?;
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes))
            .map_err(read_failed("the key file", &path))?;
        let block = KeyBlock::parse(&bytes)
            .map_err(|source| DecryptError::KeyBlock { path: path.clone(), source })?;
        let (material, padding) = self
            .private
            .unwrap(&block.encrypted_key)
            .map_err(|source| DecryptError::Unwrap { path: path.clone(), source })?;
        let stream = StreamCipher::new(block.cipher, &material, &block.iv, Direction::Decrypt);
        Ok((block.cipher, padding, stream))
    }

    fn put(&self, aside: NamedTempFile, output: &Path) -> Result<(), DecryptError> {
        let put = if self.replace { aside.persist(output) } else { aside.persist_noclobber(output) };
        put.map(drop).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => DecryptError::Exists(output.to_owned()),
            _ => DecryptError::Write { path: output.to_owned(), source: error.error },
        })
    }
}

/// The encrypted core, piece by piece.
struct Pieces<'a> {
    input: &'a CoreFile,
    path: &'a Path,
    cipher: Cipher,
    missing: u64,
}

impl Pieces<'_> {
    /// How far the core can be decrypted: CBC takes whole blocks only.
    fn decryptable(&self) -> u64 {
        let partial = match self.cipher {
            Cipher::Aes256Cbc => self.input.length() % CIPHER_BLOCK as u64,
            Cipher::ChaCha20 => 0,
        };
        self.input.length() - partial
    }

    /// The plain bytes from `at` on, [`CHUNK`] of them or what there is before `end`.
    fn next<'b>(
        &mut self,
        at: u64,
        end: u64,
        stream: &mut StreamCipher,
        buf: &'b mut [u8],
    ) -> Result<&'b [u8], DecryptError> {
        let len = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
        let before = if at == 0 { 0 } else { lost::MARGIN };
        let behind = usize::try_from(self.input.length() - at)
            .map_or(lost::MARGIN, |left| (left - len).min(lost::MARGIN));
        let seen = &mut buf[..before + len + behind];
        self.input.read(at - before as u64, seen).map_err(read_failed("the encrypted core", self.path))?;
        let piece = before..before + len;
        let lost = lost::parts(self.cipher, seen, &piece);
        stream.apply(&mut seen[piece.clone()]).expect("the length is whole blocks up to the end");
        for part in lost {
            self.missing += part.len() as u64;
            seen[part].fill(0);
        }
        Ok(&seen[piece])
    }
}

/// A file for the owner only, in the directory of `output`, that goes unless it is given its name.
fn aside(output: &Path) -> io::Result<NamedTempFile> {
    let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(output.file_name().unwrap_or_default());
    prefix.push(".");
    tempfile::Builder::new().prefix(&prefix).tempfile_in(directory.unwrap_or_else(|| Path::new(".")))
}

fn read_failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DecryptError + 'a {
    move |source| DecryptError::Read { what, path: path.to_owned(), source }
}
