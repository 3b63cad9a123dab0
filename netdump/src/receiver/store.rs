//! Where the bytes of dumps go: the seam between sessions and storage, and a store in memory.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::path::{DumpPath, PathRefusal};
use super::summary::{DumpSummary, Ending, HeaderSeen};

/// What a HERALD asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDump {
    /// The client.
    pub peer: SocketAddrV4,
    /// Which of our addresses it spoke to.
    pub local: Ipv4Addr,
    /// The directory it asks for. When it is refused, the dump goes to the default directory.
    pub path: Result<Option<DumpPath>, PathRefusal>,
    /// The client's own name for the dump (its HERALD's `aux` word), from clients that can go on with a dump after the
    /// receiver has died. Stock clients have none; they also leave nothing out of a core.
    pub dump_id: Option<NonZeroU32>,
}

/// What a store allows itself; nothing is limited by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreLimits {
    /// Most bytes of one dump.
    pub max_bytes_per_dump: Option<u64>,
    /// Most bytes of all dumps in the directory, those of earlier runs included.
    pub max_bytes_total: Option<u64>,
    /// Bytes that must stay free on the file system.
    pub min_free: Option<u64>,
}

/// An unfinished dump of an earlier life of the receiver, ready to take what is missing.
#[derive(Debug)]
pub struct Restored<D> {
    /// What its HERALD asked for, with its [`NewDump::dump_id`]: no other dump can go on. `peer` is where the client was
    /// heard of last.
    pub request: NewDump,
    /// The dump itself.
    pub dump: D,
    /// Core bytes that are stored, ascending, neither overlapping nor touching. Everything that was acknowledged must be
    /// here, and nothing that is not in the file: the client will not send it again.
    pub received: Vec<Range<u64>>,
    /// Bytes of the key block that are stored, in the same way.
    pub key: Vec<Range<u64>>,
    /// The header, if it has come.
    pub header: HeaderSeen,
    /// From the HERALD to the last that was stored.
    pub elapsed: Duration,
}

/// Keeps dumps.
pub trait DumpStore {
    /// One dump being written.
    type Dump: OpenDump<Stored = Self::Stored> + std::fmt::Debug;
    /// What there is to say of a dump that ended: where it is.
    type Stored: Clone + std::fmt::Debug;

    /// Makes room for a new dump. Where its path cannot be used, a default is, and the dump says so.
    fn create(&mut self, request: &NewDump) -> Result<Self::Dump, StoreError>;

    /// The dumps that were neither committed nor abandoned when the last receiver ended and that can go on: they have a
    /// dump id, and what was acknowledged of them is there. Asked once, at the start.
    fn unfinished(&mut self) -> Vec<Restored<Self::Dump>> {
        Vec::new()
    }
}

/// One dump being written. What a call has taken survives the death of this program, as far as the storage is capable
/// of that: the client is told so as soon as the call returns.
///
/// After [`Self::abandon`], [`Self::discard`], [`Self::suspend`], or [`Self::commit`] with [`Commit::Done`], nothing else
/// is called.
pub trait OpenDump {
    /// As in [`DumpStore`].
    type Stored;

    /// Puts core bytes at `offset`; offset and end fit into an `i64`. Bytes may come in any order and repeatedly.
    /// The pieces follow one another and none is empty; a call has at most 1024 of them (the kernel's `UIO_MAXIOV`).
    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError>;

    /// Puts bytes of the key block at `offset`.
    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;

    /// Takes the header, the last one if several come.
    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError>;

    /// Brings the dump to stable storage under its final name. May take its time: while the answer is
    /// [`Commit::Pending`] it is asked again. After an error [`Self::abandon`] follows.
    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<Self::Stored>, StoreError>;

    /// Keeps what came under a name that says that it is not whole.
    fn abandon(&mut self, summary: &DumpSummary, ending: &Ending) -> Result<Self::Stored, StoreError>;

    /// Leaves the dump as it is, for [`DumpStore::unfinished`] of the next life: the receiver ends in order.
    fn suspend(&mut self, _summary: &DumpSummary) {}

    /// Removes what was made for a dump of which nothing came.
    fn discard(&mut self) {}
}

/// How far a commit is.
#[derive(Debug)]
pub enum Commit<T> {
    /// All of it is on stable storage.
    Done(T),
    /// Ask again.
    Pending,
}

/// Why bytes cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's directory cannot be used at all.
    #[error("directory {} cannot be used", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The store's directory is there but new files cannot be made in it.
    #[error("directory {} is not writable", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Bytes could not be written.
    #[error("writing {len} bytes at offset {offset:#x} of {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// How many.
        len: usize,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Something else was refused.
    #[error("{doing} {}", path.display())]
    File {
        /// What was done to the file, such as "renaming".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// No socket could be had for the dump.
    #[error("no socket for the dump")]
    Socket {
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// All numbers that were tried are taken.
    #[error("no free number for a dump of {host} in {}", directory.display())]
    NoFreeIndex {
        /// The client's name.
        host: String,
        /// Where.
        directory: PathBuf,
    },
    /// See [`StoreLimits::max_bytes_per_dump`].
    #[error("the dump is larger than the {limit} bytes that one may have")]
    DumpTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// See [`StoreLimits::max_bytes_total`].
    #[error("dumps take {used} bytes of the {limit} that all together may have")]
    TooMuchStored {
        /// The limit in bytes.
        limit: u64,
        /// What is stored.
        used: u64,
    },
    /// See [`StoreLimits::min_free`].
    #[error("{free} bytes are free where {limit} must stay so")]
    TooLittleFree {
        /// The limit in bytes.
        limit: u64,
        /// What is free.
        free: u64,
    },
    /// The store in memory has reached its limit.
    #[error("{end} bytes exceed the store's limit of {limit}")]
    Full {
        /// Where the bytes would end.
        end: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// Keeps dumps in memory: for tests and simulations.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    /// Most bytes of one core; what goes beyond fails as a full disk does.
    limit: u64,
}

impl MemoryStore {
    /// A store that takes cores of at most `limit` bytes.
    pub fn with_limit(limit: u64) -> Self {
        Self { limit }
    }
}

/// A dump in memory.
#[derive(Debug, Clone)]
pub struct MemoryDump {
    /// What the HERALD asked for.
    pub request: NewDump,
    /// The core.
    pub core: Vec<u8>,
    /// The key block.
    pub key: Vec<u8>,
    /// The header.
    pub header: HeaderSeen,
    /// How the dump ended; `None` while it is being written.
    pub ending: Option<Ending>,
    limit: u64,
}

impl DumpStore for MemoryStore {
    type Dump = MemoryDump;
    type Stored = MemoryDump;

    fn create(&mut self, request: &NewDump) -> Result<MemoryDump, StoreError> {
        Ok(MemoryDump {
            request: request.clone(),
            core: Vec::new(),
            key: Vec::new(),
            header: HeaderSeen::Missing,
            ending: None,
            limit: self.limit,
        })
    }
}

impl MemoryDump {
    fn put(limit: u64, object: &mut Vec<u8>, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let end = offset.saturating_add(bytes.len() as u64);
        let full = || StoreError::Full { end, limit };
        let range = usize::try_from(offset).map_err(|_| full())?..usize::try_from(end).map_err(|_| full())?;
        if end > limit {
            return Err(full());
        }
        if object.len() < range.end {
            object.resize(range.end, 0);
        }
        object.get_mut(range).ok_or_else(full)?.copy_from_slice(bytes);
        Ok(())
    }
}

impl OpenDump for MemoryDump {
    type Stored = Self;

    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), StoreError> {
        let mut at = offset;
        for piece in pieces {
            Self::put(self.limit, &mut self.core, at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn key_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        Self::put(self.limit, &mut self.key, offset, bytes)
    }

    fn header(&mut self, header: &HeaderSeen) -> Result<(), StoreError> {
        self.header = header.clone();
        Ok(())
    }

    fn commit(&mut self, summary: &DumpSummary) -> Result<Commit<Self>, StoreError> {
        let full = || StoreError::Full { end: summary.length, limit: self.limit };
        let length = usize::try_from(summary.length.min(self.limit)).map_err(|_| full())?;
        self.core.resize(length, 0);
        self.abandon(summary, &Ending::Complete).map(Commit::Done)
    }

    fn abandon(&mut self, _summary: &DumpSummary, ending: &Ending) -> Result<Self, StoreError> {
        Ok(Self {
            request: self.request.clone(),
            core: std::mem::take(&mut self.core),
            key: std::mem::take(&mut self.key),
            header: self.header.clone(),
            ending: Some(ending.clone()),
            limit: self.limit,
        })
    }
}
