//! Where things are measured: taps, folders to store in, guests, and `netdump serve` as the process that it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use harness::programs::{self, Running, arg, program};
use netdump::ReadAt;
use netdump::wire::MacAddr;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use vmm::memory::MemorySize;
use vmm::sys::tap::Tap;

use super::guest::Guest;

/// The wire of MTU 1500, the one of MTU 9000, the first one of several guests, and the one of the process whose memory
/// is measured.
pub(crate) const WIRE: u8 = 0;
pub(crate) const JUMBO_WIRE: u8 = 1;
pub(crate) const FIRST_OF_MANY: u8 = 10;
pub(crate) const CHILD_WIRE: u8 = 9;
/// First port of receivers; there is one for each folder.
const FIRST_PORT: u16 = 21_000;
/// Compared at a time.
const CHUNK: usize = 1 << 20;

/// A tap with the host at its end.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) tap: Arc<Tap>,
    /// The host's address.
    pub(crate) server: Ipv4Addr,
    /// The guest's.
    pub(crate) client: Ipv4Addr,
    /// The guest's.
    pub(crate) mac: MacAddr,
}

impl Wire {
    /// Makes the tap, which is gone when this is dropped.
    pub(crate) fn open(number: u8) -> anyhow::Result<Self> {
        let name = format!("bench{number}");
        let tap = Arc::new(Tap::open(name.parse()?)?);
        let server = Ipv4Addr::new(10, 9, number, 1);
        let mtu = if number == JUMBO_WIRE { 9000 } else { 1500 };
        ip(&format!("link set {name} mtu {mtu}"))?;
        ip(&format!("address add {server}/24 dev {name}"))?;
        let mac = MacAddr([2, 0, 0, 9, number, 2]);
        Ok(Self { tap, server, client: Ipv4Addr::new(10, 9, number, 2), mac })
    }

    /// The host's hardware address.
    pub(crate) fn host_mac(&self) -> anyhow::Result<MacAddr> {
        Ok(self.tap.interface()?.context("the tap is gone")?.mac)
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split_whitespace()).output()?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Where a receiver stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Store {
    /// A tmpfs of the bench's own, with huge pages where the kernel has them: as near to no store at all as files come.
    Memory,
    /// `/dev/shm`, whose pages the kernel makes one by one.
    Shm,
    /// The disk that this was built on.
    Disk,
}

/// Everything that is there for long.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) size: MemorySize,
    wires: BTreeMap<u8, Arc<Wire>>,
    guests: BTreeMap<(u64, u64), Arc<Guest>>,
    // Receivers end before their folders go.
    receivers: BTreeMap<Store, Arc<Receiver>>,
    memory: Memory,
}

impl Lab {
    /// Without `namespace` there is loopback only.
    pub(crate) fn new(size: MemorySize, namespace: bool) -> anyhow::Result<Self> {
        let memory = Memory::new(namespace)?;
        Ok(Self { size, wires: BTreeMap::new(), guests: BTreeMap::new(), receivers: BTreeMap::new(), memory })
    }

    /// What [`Store::Memory`] is.
    pub(crate) fn memory_store(&self) -> &'static str {
        self.memory.what
    }

    /// A wire by its number.
    pub(crate) fn wire(&mut self, number: u8) -> anyhow::Result<Arc<Wire>> {
        if let Some(wire) = self.wires.get(&number) {
            return Ok(Arc::clone(wire));
        }
        let wire = Arc::new(Wire::open(number)?);
        self.wires.insert(number, Arc::clone(&wire));
        Ok(wire)
    }

    /// A guest that has used all of its memory: one `share`th of the bench's size.
    pub(crate) fn guest(&mut self, share: u64) -> anyhow::Result<Arc<Guest>> {
        let size = MemorySize::new((self.size.bytes() / share).next_multiple_of(1 << 20))?;
        Ok(self.guest_of(size, size.bytes()))
    }

    /// A guest that has used so many bytes of its memory.
    pub(crate) fn guest_of(&mut self, size: MemorySize, touched: u64) -> Arc<Guest> {
        let guest = self.guests.entry((size.bytes(), touched)).or_insert_with(|| {
            let dense = touched == size.bytes();
            Arc::new(if dense { Guest::dense(size) } else { Guest::sparse(size, touched) })
        });
        Arc::clone(guest)
    }

    /// The receiver that stores there.
    pub(crate) fn receiver(&mut self, store: Store) -> anyhow::Result<Arc<Receiver>> {
        if let Some(receiver) = self.receivers.get(&store) {
            return Ok(Arc::clone(receiver));
        }
        let folder = match store {
            Store::Memory => self.memory.folder()?,
            Store::Shm => tempfile::tempdir_in("/dev/shm")?,
            Store::Disk => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?,
        };
        let port = FIRST_PORT + u16::try_from(self.receivers.len())?;
        let receiver = Arc::new(Receiver::start(folder, port));
        self.receivers.insert(store, Arc::clone(&receiver));
        Ok(receiver)
    }

    /// Uses more memory than a measurement will (a core, and what waits for a reader that falls behind), and frees it. A virtual machine may give memory that is free for some
    /// seconds back to its host, and gets it again at a rate of 0.5 GB/s: a measurement of the host's, not of ours.
    pub(crate) fn warm(&self) -> anyhow::Result<()> {
        let mut file = tempfile::tempfile_in(self.memory.root.path())?;
        let chunk = vec![0xaa; CHUNK];
        for _ in 0..2 * self.size.bytes() / CHUNK as u64 {
            file.write_all(&chunk)?;
        }
        Ok(())
    }

    /// A new folder in memory.
    pub(crate) fn folder(&self) -> anyhow::Result<TempDir> {
        self.memory.folder()
    }
}

/// A tmpfs.
#[derive(Debug)]
struct Memory {
    root: TempDir,
    what: &'static str,
    mounted: bool,
}

impl Memory {
    /// Mounts one where only this thread and what it starts sees it; else `/dev/shm` has to do.
    fn new(own: bool) -> anyhow::Result<Self> {
        if own && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
            let none: Option<&str> = None;
            let root = tempfile::tempdir()?;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            for (data, what) in [("huge=always", "a tmpfs with huge pages"), ("", "a tmpfs")] {
                if mount(Some("tmpfs"), root.path(), Some("tmpfs"), MsFlags::empty(), Some(data)).is_ok() {
                    return Ok(Self { root, what, mounted: true });
                }
            }
        }
        Ok(Self { root: tempfile::tempdir_in("/dev/shm")?, what: "/dev/shm", mounted: false })
    }

    fn folder(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::tempdir_in(self.root.path())?)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(self.root.path(), MntFlags::MNT_DETACH);
        }
    }
}

/// `netdump serve`.
#[derive(Debug)]
pub(crate) struct Receiver {
    running: Running,
    folder: TempDir,
    port: u16,
}

impl Receiver {
    fn start(folder: TempDir, port: u16) -> Self {
        let listen = format!("0.0.0.0:{port}");
        let arguments = ["serve", "--dir", arg(folder.path()), "--listen", &listen, "--json"];
        let running = programs::start(program("netdump"), &arguments);
        running.wait_for_stdout("\"listening\"", 1);
        Self { running, folder, port }
    }

    /// Where it listens, for a client that knows the host by this address.
    pub(crate) fn at(&self, host: Ipv4Addr) -> SocketAddrV4 {
        SocketAddrV4::new(host, self.port)
    }

    /// How many dumps have ended.
    pub(crate) fn ended(&self) -> usize {
        self.running.stdout().matches("\"ended\"").count()
    }

    /// Waits until so many dumps in all have ended, compares each core that is there with the guest's memory, and
    /// removes everything.
    pub(crate) fn check(&self, ended: usize, guest: &Guest, cores: usize) -> anyhow::Result<()> {
        self.running.wait_for_stdout("\"ended\"", ended);
        let mut found = 0;
        for path in files(self.folder.path())? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // A link leads to the last core.
            if name.starts_with("vmcore.") && !path.is_symlink() {
                compare(&path, guest)?;
                found += 1;
            }
            // The receiver removes what it needs no more, too.
            let _ = fs::remove_file(&path);
        }
        ensure!(found == cores, "{found} cores were stored instead of {cores}");
        Ok(())
    }
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    entries.filter(|path| path.as_ref().map_or(true, |path| path.is_file())).collect()
}

/// Whether the core holds what the guest's memory does, all of what was touched.
pub(crate) fn compare(core: &Path, guest: &Guest) -> anyhow::Result<()> {
    let image = guest.image();
    let file = File::open(core)?;
    ensure!(file.metadata()?.len() == image.length(), "{} has another length", core.display());
    let (mut stored, mut memory) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    while let Some(data) = image.next_data(at) {
        for start in data.clone().step_by(CHUNK) {
            let len = usize::try_from(data.end - start).map_or(CHUNK, |rest| rest.min(CHUNK));
            file.read_exact_at(&mut stored[..len], start)?;
            image.read_at(start, &mut memory[..len])?;
            ensure!(stored[..len] == memory[..len], "{} differs near {start:#x}", core.display());
        }
        at = data.end;
    }
    Ok(())
}
