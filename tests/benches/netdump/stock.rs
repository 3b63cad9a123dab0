//! A receiver that works as FreeBSD's netdumpd does: one datagram a call, an ack for each, and 128 KiB of socket buffer.
//! It takes one dump.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netdump::wire::MessageKind;
use netdump::wire::message::{Ack, Message};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBuf;
use tempfile::{NamedTempFile, TempDir};

/// `SO_RCVBUF` of netdumpd's sockets.
const RECEIVE_BUFFER: usize = 128 << 10;
/// How often the thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);

/// A running receiver.
#[derive(Debug)]
pub(crate) struct Stock {
    address: SocketAddrV4,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
    core: NamedTempFile,
    _folder: TempDir,
}

impl Stock {
    /// Listens on any port and stores in `folder`.
    pub(crate) fn start(host: Ipv4Addr, folder: TempDir) -> anyhow::Result<Self> {
        let herald = UdpSocket::bind((host, 0))?;
        herald.set_read_timeout(Some(LOOK))?;
        let address = SocketAddrV4::new(host, herald.local_addr()?.port());
        let stop = Arc::new(AtomicBool::new(false));
        let core = NamedTempFile::new_in(folder.path())?;
        let (told, file) = (Arc::clone(&stop), core.reopen()?);
        let thread = thread::spawn(move || serve(&herald, &file, &told));
        Ok(Self { address, stop, thread, core, _folder: folder })
    }

    /// Where it takes HERALDs.
    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Ends it; the core.
    pub(crate) fn finish(self) -> anyhow::Result<StoredCore> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the receiver does not panic")?;
        Ok(StoredCore { core: self.core, _folder: self._folder })
    }
}

/// What a stock-like receiver has stored.
#[derive(Debug)]
pub(crate) struct StoredCore {
    core: NamedTempFile,
    _folder: TempDir,
}

impl StoredCore {
    pub(crate) fn path(&self) -> &std::path::Path {
        self.core.path()
    }
}

fn serve(herald: &UdpSocket, file: &File, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut buffer = vec![0; 8192];
    let mut session: Option<(UdpSocket, SocketAddr)> = None;
    while !stop.load(Ordering::Acquire) {
        let socket = session.as_ref().map_or(herald, |(socket, _)| socket);
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let Ok(message) = Message::parse(&buffer[..len]) else { continue };
        if session.is_none() {
            if message.kind != MessageKind::Herald {
                continue;
            }
            let socket = UdpSocket::bind((herald.local_addr()?.ip(), 0))?;
            socket.set_read_timeout(Some(LOOK))?;
            setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
            socket.connect(from)?;
            session = Some((socket, from));
        }
        if message.kind == MessageKind::Vmcore {
            file.write_all_at(message.payload, message.offset)?;
        }
        if let Some((socket, _)) = &session {
            // One that is lost is asked for again.
            let _ = socket.send(&Ack(message.sequence).to_bytes());
        }
    }
    Ok(())
}
