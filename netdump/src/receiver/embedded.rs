//! A link whose other end is a receiver in this process: real frames, no network, no root. The receiver works inside
//! [`Link::send`] and [`Link::receive`]; nothing is queued but its acks.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::host::{Host, HostConfig};
use super::{
    Cause, DiskStore, Ending, HostNames, Receiver, ReceiverConfig, ReceiverEvent, StoreError, StoredDump,
};
use crate::link::{Frame, Link, LinkError, Offloads, Received, Sent};
use crate::wire::MacAddr;

/// The two ends of the link; locally administered, as of no real network card.
const CLIENT_MAC: MacAddr = MacAddr([0x02, 0x6e, 0x64, 0, 0, 1]);
const SERVER_MAC: MacAddr = MacAddr([0x02, 0x6e, 0x64, 0, 0, 2]);

/// Most messages in a train; of usual ones fewer fit into the 64 KiB of an IP packet.
const MAX_SEGMENTS: usize = 128;

/// An in-memory link to a receiver that stores on disk. When it is dropped, a dump that is still open is kept as
/// incomplete.
#[derive(Debug)]
pub struct EmbeddedLink {
    host: Host<DiskStore>,
    mtu: u32,
    stored: Option<StoredDump>,
    ending: Option<Ending>,
    /// Why the receiver cannot store. Over a wire it would fall silent; here its words can reach the sender.
    broken: Option<Arc<StoreError>>,
}

impl EmbeddedLink {
    /// A link of this IP MTU in bytes to a receiver at `server` that stores in `directory`, which is made where it is
    /// missing.
    pub fn open(directory: &Path, server: Ipv4Addr, mtu: u32) -> Result<Self, StoreError> {
        let store = DiskStore::create(directory, HostNames::numeric())?;
        let receiver = Receiver::new(ReceiverConfig::default(), store);
        let config = HostConfig { mac: SERVER_MAC, address: server };
        Ok(Self { host: Host::new(config, receiver), mtu, stored: None, ending: None, broken: None })
    }

    /// Where the last dump that ended is. A dump whose FINISHED was acknowledged has ended.
    pub fn stored(&self) -> Option<&StoredDump> {
        self.stored.as_ref()
    }

    /// How the last dump that ended did so.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Ends a dump that is still open, which keeps it as incomplete, and waits for one that is being committed.
    pub fn finish(&mut self) -> Option<&StoredDump> {
        self.host.shut_down(Instant::now());
        while !self.host.receiver().is_settled() {
            std::thread::sleep(Duration::from_millis(1));
            self.host.handle_timeout(Instant::now());
        }
        self.take_events();
        self.stored()
    }

    fn take_events(&mut self) {
        while let Some(event) = self.host.poll_event() {
            match event {
                ReceiverEvent::Ended { ending, stored, .. } => {
                    if let Ending::Incomplete(Cause::Store(error)) = &ending {
                        self.broken = Some(error.clone());
                    }
                    self.ending = Some(ending);
                    match stored {
                        Ok(stored) => self.stored = Some(stored),
                        Err(error) => tracing::warn!(%error, "the dump could not be kept"),
                    }
                }
                ReceiverEvent::Refused { error, .. } => self.broken = Some(error),
                _ => {}
            }
        }
    }
}

impl Link for EmbeddedLink {
    fn mtu(&self) -> Result<u32, LinkError> {
        Ok(self.mtu)
    }

    fn mac(&self) -> MacAddr {
        CLIENT_MAC
    }

    /// Trains, so that many messages are one write. Checksums protect nothing here.
    fn offloads(&self) -> Offloads {
        Offloads { gather: false, checksum: true, segments: MAX_SEGMENTS }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        debug_assert!(frame.guest.is_empty(), "this link does not gather");
        // What the receiver ignores it counts; on a wire it would be lost.
        let _ = self.host.handle_unchecked(Instant::now(), frame);
        Ok(Sent::Yes)
    }

    fn receive(&mut self, received: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        if self.host.poll_train(received) {
            return Ok(true);
        }
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            if self.host.poll_timeout().is_some_and(|due| due <= now) {
                self.host.handle_timeout(now);
            }
            if self.host.poll_train(received) {
                return Ok(true);
            }
            self.take_events();
            if let Some(error) = self.broken.take() {
                let doing = "the embedded receiver cannot store the dump".to_owned();
                return Err(LinkError::Io { doing, source: io::Error::other(error) });
            }
            if now >= until {
                return Ok(false);
            }
            let next = self.host.poll_timeout().map_or(until, |due| due.min(until));
            std::thread::sleep(next.saturating_duration_since(now));
        }
    }
}

impl Drop for EmbeddedLink {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::client::ClientConfig;
    use crate::drive::{self, Dump};
    use crate::report::{DumpReport, Outcome};
    use crate::stream::Packing;
    use crate::vmcore::{CoreFile, KernelDumpHeader};

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn run(
        link: &mut EmbeddedLink,
        core: &[u8],
        control: &mut dyn FnMut(&drive::Progress) -> ControlFlow<String>,
    ) -> DumpReport {
        let (header, packing) = (KernelDumpHeader::default(), Packing::default());
        let config = ClientConfig::new(SERVER, CLIENT, link.mac(), link.mtu().unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), core).unwrap();
        let image = CoreFile::open(file.path()).unwrap();
        let dump = Dump { path: None, header: &header, image: &image, packing: &packing };
        drive::run(config, &dump, link, control).unwrap()
    }

    fn core() -> Vec<u8> {
        (0..3_000_003_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
    }

    #[test]
    fn a_dump_is_on_disk_when_the_client_is_done() {
        for mtu in [564, 1500, 9000] {
            let dir = tempfile::tempdir().unwrap();
            let crash = dir.path().join("made/for/it");
            let mut link = EmbeddedLink::open(&crash, SERVER, mtu).unwrap();
            assert_eq!(link.stored(), None);
            let report = run(&mut link, &core(), &mut |_| ControlFlow::Continue(()));
            assert_eq!(report.outcome, Outcome::Complete, "{report:?}");
            let stored = link.stored().expect("it is stored").clone();
            assert!(stored.complete && link.ending().is_some_and(Ending::is_complete));
            assert_eq!(stored.core, crash.join("vmcore.10.0.0.2.0"));
            assert!(std::fs::read(stored.core).unwrap() == core());
            assert_eq!(link.finish().map(|stored| stored.complete), Some(true));
        }
    }

    #[test]
    fn dump_that_is_stopped_is_kept_as_incomplete() {
        let dir = tempfile::tempdir().unwrap();
        let mut link = EmbeddedLink::open(dir.path(), SERVER, 1500).unwrap();
        let report = run(&mut link, &core(), &mut |progress| match progress.phase {
            crate::client::Phase::Data => ControlFlow::Break("enough".into()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(report.outcome, Outcome::Failed);
        assert_eq!(link.stored(), None);
        let stored = link.finish().expect("it is kept").clone();
        assert_eq!((stored.complete, stored.core), (false, dir.path().join("vmcore.10.0.0.2.0.incomplete")));
    }

    #[test]
    fn receiver_that_cannot_store_ends_the_dump_at_once_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut link = EmbeddedLink::open(dir.path(), SERVER, 1500).unwrap();
        std::fs::remove_dir(dir.path()).unwrap();
        let report = run(&mut link, &core(), &mut |_| ControlFlow::Continue(()));
        assert_eq!(report.outcome, Outcome::Failed);
        assert!(report.seconds < 1.0, "{report:?}");
        let reason = report.reason.unwrap();
        let want =
            "the link failed while announcing the dump: the embedded receiver cannot store the dump: making ";
        assert!(
            reason.starts_with(want) && reason.ends_with("No such file or directory (os error 2)"),
            "{reason}"
        );
    }

    #[test]
    fn dropped_link_keeps_the_dump() {
        let dir = tempfile::tempdir().unwrap();
        let mut link = EmbeddedLink::open(dir.path(), SERVER, 1500).unwrap();
        run(&mut link, &core(), &mut |progress| match progress.phase {
            crate::client::Phase::Header => ControlFlow::Break("enough".into()),
            _ => ControlFlow::Continue(()),
        });
        drop(link);
        assert!(std::fs::read(dir.path().join("vmcore.10.0.0.2.0.incomplete")).unwrap() == core());
    }

    #[test]
    fn waiting_takes_the_time_given_when_nothing_comes() {
        let dir = tempfile::tempdir().unwrap();
        let mut link = EmbeddedLink::open(dir.path(), SERVER, 1500).unwrap();
        let start = Instant::now();
        assert!(!link.receive(&mut Received::default(), Duration::from_millis(20)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = EmbeddedLink::open(&file.path().join("below"), SERVER, 1500).unwrap_err();
        assert!(error.to_string().contains("below cannot be used"), "{error}");
    }
}
