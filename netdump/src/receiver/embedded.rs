//! A link whose other end is a receiver in this process: real frames, no network, no root. The receiver works inside
//! [`Link::send`] and [`Link::receive`]; nothing is queued but its acks.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::host::{Host, HostConfig};
use super::{DiskStore, Ending, HostNames, Receiver, ReceiverConfig, ReceiverEvent, StoreError, StoredDump};
use crate::link::{Frame, Link, LinkError, Sent};
use crate::wire::MacAddr;

/// The two ends of the link; locally administered, as of no real network card.
const CLIENT_MAC: MacAddr = MacAddr([0x02, 0x6e, 0x64, 0, 0, 1]);
const SERVER_MAC: MacAddr = MacAddr([0x02, 0x6e, 0x64, 0, 0, 2]);

/// An in-memory link to a receiver that stores on disk. When it is dropped, a dump that is still open is kept as
/// incomplete.
#[derive(Debug)]
pub struct EmbeddedLink {
    host: Host<DiskStore>,
    mtu: u32,
    stored: Option<StoredDump>,
    ending: Option<Ending>,
}

impl EmbeddedLink {
    /// A link of this IP MTU in bytes to a receiver at `server` that stores in `directory`, which is made where it is
    /// missing.
    pub fn open(directory: &Path, server: Ipv4Addr, mtu: u32) -> Result<Self, StoreError> {
        let store = DiskStore::create(directory, HostNames::numeric())?;
        let receiver = Receiver::new(ReceiverConfig::default(), store);
        let config = HostConfig { mac: SERVER_MAC, address: server };
        Ok(Self { host: Host::new(config, receiver), mtu, stored: None, ending: None })
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
                    self.ending = Some(ending);
                    match stored {
                        Ok(stored) => self.stored = Some(stored),
                        Err(error) => tracing::warn!(%error, "the dump could not be kept"),
                    }
                }
                ReceiverEvent::Refused { error, .. } => {
                    tracing::warn!(error = &*error as &dyn std::error::Error, "the dump cannot be stored");
                }
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

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        debug_assert!(frame.guest.is_none(), "this link does not gather");
        // What the receiver ignores it counts; on a wire it would be lost.
        let _ = self.host.handle_frame(Instant::now(), frame.bytes);
        Ok(Sent::Yes)
    }

    fn receive(&mut self, frame: &mut Vec<u8>, wait: Duration) -> Result<bool, LinkError> {
        // What was sent since is stored here, many messages in one write.
        if self.host.poll_transmit(frame) {
            return Ok(true);
        }
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            if self.host.poll_timeout().is_some_and(|due| due <= now) {
                self.host.handle_timeout(now);
            }
            if self.host.poll_transmit(frame) {
                return Ok(true);
            }
            self.take_events();
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
