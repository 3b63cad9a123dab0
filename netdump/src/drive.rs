//! The one loop that sleeps and reads a clock: joins a [`Client`], a [`Link`] and a core, and reports how it went.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::client::{
    Attempt, Client, ClientConfig, ClientEvent, ConfigError, DumpPlan, Ending, FailReason, Flow, PAYLOAD_AT,
    Phase, Sending, Transmit,
};
use crate::link::{Frame, Link, Sent};
use crate::report::DumpReport;
use crate::wire::MessageKind;
use crate::{ReadAt, ReadError};

/// How often the caller is told, and asked, at most.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait for room on a busy link before trying again.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// Frames received in a row before sending has its turn.
const RECEIVE_BATCH: usize = 64;
/// Missing ranges that a report lists.
const MAX_MISSING: usize = 1000;

/// How far a dump is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Core bytes that need no more care: acknowledged, or left out as untouched zeros.
    pub done: u64,
    /// Bytes of the core.
    pub total: u64,
    /// Messages sent again so far.
    pub resends: u64,
    /// Time since the start.
    pub elapsed: Duration,
}

/// Sends a dump over `link` and says how it ended; only what can be refused before the first frame is an error.
///
/// `control` is told of the progress ten times a second and at each new phase, and ends the dump by breaking with the
/// reason. Whether the core is gathered from guest memory is the link's to decide, whatever `config` says.
pub fn run(
    config: ClientConfig,
    plan: DumpPlan,
    image: &dyn ReadAt,
    link: &mut dyn Link,
    control: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
) -> Result<DumpReport, ConfigError> {
    let _span = tracing::info_span!("client", server = %config.server).entered();
    let started = Instant::now();
    let (total, path) = (plan.length, plan.path.clone());
    let client = Client::new(ClientConfig { gather: link.gathers(), ..config }, plan, started)?;
    let mut drive = Drive {
        client,
        image,
        link,
        control,
        started,
        total,
        told: None,
        outgoing: Vec::new(),
        pending: None,
        incoming: Vec::new(),
        hash: CoreHash::new(),
        ending: None,
    };
    let ending = drive.until_closed();
    Ok(drive.report(&ending, path))
}

struct Drive<'a> {
    client: Client,
    image: &'a dyn ReadAt,
    link: &'a mut dyn Link,
    control: &'a mut dyn FnMut(&Progress) -> ControlFlow<String>,
    started: Instant,
    total: u64,
    /// When the caller was told last.
    told: Option<Instant>,
    /// The frame to send, and to keep while the link is busy.
    outgoing: Vec<u8>,
    pending: Option<Pending>,
    incoming: Vec<u8>,
    hash: CoreHash,
    ending: Option<Ending>,
}

/// What belongs to a frame in `outgoing` that the link has not taken yet.
#[derive(Clone, Copy)]
struct Pending {
    guest: Option<(u64, usize)>,
}

impl Drive<'_> {
    fn until_closed(&mut self) -> Ending {
        loop {
            let now = Instant::now();
            self.client.handle_timeout(now);
            self.pay_hash();
            self.send_all(now);
            self.take_events(now);
            if self.told.is_none_or(|told| now - told >= TELL_EVERY) {
                self.tell(now);
                self.take_events(now);
            }
            if let Some(ending) = self.ending.take() {
                return ending;
            }
            self.receive_all(now);
        }
    }

    /// Goes on hashing what was left out; new messages wait for that, but the network does not.
    fn pay_hash(&mut self) {
        if self.hash.is_in_debt() {
            self.hash.pay();
            if !self.hash.is_in_debt() {
                self.client.set_flow(Flow::Open);
            }
        }
    }

    /// Sends until the client has nothing more or the link no room.
    fn send_all(&mut self, now: Instant) {
        loop {
            let guest = match self.pending {
                Some(pending) => pending.guest,
                None => match self.next_frame(now) {
                    Ok(Some(pending)) => pending.guest,
                    Ok(None) => return,
                    Err(error) => return self.client.abort(FailReason::Read(error)),
                },
            };
            match self.link.send(&Frame { bytes: &self.outgoing, guest }) {
                Ok(Sent::Yes) => self.pending = None,
                Ok(Sent::Busy) => {
                    self.pending = Some(Pending { guest });
                    return;
                }
                Err(source) => {
                    return self.client.abort(FailReason::Link { phase: self.client.phase(), source });
                }
            }
        }
    }

    /// The client's next frame in `outgoing`, with the place in guest memory of what follows it.
    fn next_frame(&mut self, now: Instant) -> Result<Option<Pending>, ReadError> {
        let Some(transmit) = self.client.poll_transmit(now, self.image, &mut self.outgoing)? else {
            return Ok(None);
        };
        tracing::trace!(?transmit, "send");
        let guest = match transmit.body {
            None => None,
            Some((offset, len)) => {
                let guest = self.image.locate(offset, len).map(|address| (address, len));
                if guest.is_none() {
                    self.outgoing.resize(PAYLOAD_AT + len, 0);
                    self.image.read_at(offset, &mut self.outgoing[PAYLOAD_AT..])?;
                }
                guest
            }
        };
        self.hash_first_attempt(&transmit)?;
        if self.hash.is_in_debt() {
            self.client.set_flow(Flow::Held);
        }
        Ok(Some(Pending { guest }))
    }

    fn hash_first_attempt(&mut self, transmit: &Transmit) -> Result<(), ReadError> {
        match transmit.sending {
            Sending::Message { kind: MessageKind::Vmcore, offset, len, attempt: Attempt::First, .. } => {
                match self.outgoing.get(PAYLOAD_AT..PAYLOAD_AT + len) {
                    Some(payload) => {
                        self.hash.room(offset, len).copy_from_slice(payload);
                        Ok(())
                    }
                    None => self.image.read_at(offset, self.hash.room(offset, len)),
                }
            }
            Sending::Message { .. } | Sending::Arp(_) => Ok(()),
        }
    }

    /// Waits for a frame until the client or the caller wants to act, then takes what else has come.
    fn receive_all(&mut self, now: Instant) {
        let client = self.client.poll_timeout().map_or(TELL_EVERY, |at| at.saturating_duration_since(now));
        let caller = self.told.map_or(TELL_EVERY, |told| (told + TELL_EVERY).saturating_duration_since(now));
        let link = if self.pending.is_some() { BUSY_WAIT } else { TELL_EVERY };
        let hash = if self.hash.is_in_debt() { Duration::ZERO } else { TELL_EVERY };
        let mut wait = client.min(caller).min(link).min(hash);
        for _ in 0..RECEIVE_BATCH {
            match self.link.receive(&mut self.incoming, wait) {
                Ok(true) => {
                    let taken = self.client.handle_frame(Instant::now(), &self.incoming);
                    tracing::trace!(len = self.incoming.len(), ?taken, "received");
                    wait = Duration::ZERO;
                }
                Ok(false) => return,
                Err(source) => {
                    return self.client.abort(FailReason::Link { phase: self.client.phase(), source });
                }
            }
        }
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Resolved { hop, mac } => tracing::debug!(?hop, %mac, "next hop"),
                ClientEvent::Accepted { port } => tracing::info!(port, bytes = self.total, "dump accepted"),
                ClientEvent::Reached(phase) => {
                    tracing::debug!(%phase);
                    self.tell(now);
                }
                ClientEvent::AddressConflict { mac } => {
                    tracing::warn!(%mac, "another host uses the guest's address");
                }
                ClientEvent::Closed(ending) => self.ending = Some(ending),
            }
        }
    }

    fn tell(&mut self, now: Instant) {
        self.told = Some(now);
        let progress = Progress {
            phase: self.client.phase(),
            done: self.client.bytes_settled(),
            total: self.total,
            resends: self.client.stats().resends,
            elapsed: now - self.started,
        };
        if let ControlFlow::Break(why) = (self.control)(&progress) {
            self.client.abort(FailReason::Stopped { phase: progress.phase, why });
        }
    }

    fn report(self, ending: &Ending, path: Option<String>) -> DumpReport {
        let stats = self.client.stats();
        let mut missing = self.client.missing();
        missing.truncate(MAX_MISSING);
        let report = DumpReport {
            outcome: ending.outcome(),
            reason: ending.reason().map(|reason| with_causes(reason)),
            server: self.client.server().to_string(),
            path,
            length: self.total,
            blake3: self.hash.finish(self.total),
            bytes_sent: stats.bytes_sent,
            bytes_untouched: stats.bytes_untouched,
            missing,
            messages: stats.messages,
            resends: stats.resends,
            ignored: stats.ignored.iter().map(|(reason, count)| (reason.to_string(), count)).collect(),
            bad_pages: 0,
            seconds: self.started.elapsed().as_secs_f64(),
        };
        let DumpReport { outcome, bytes_sent, resends, seconds, .. } = &report;
        let reason = report.reason.as_deref().unwrap_or("all acknowledged");
        tracing::info!(?outcome, reason, bytes_sent, resends, seconds, "dump ended");
        report
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn Error) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// BLAKE3 of the core in order, what is left out taken as zeros. Small pieces are collected, as the hash is fast only
/// over many KiB at once.
///
/// Many GiB of zeros take seconds, in which the network must not wait: they are owed, and paid slice by slice.
struct CoreHash {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    /// Zeros to hash behind `buffer`.
    owed: u64,
    /// What comes behind them.
    behind_owed: Vec<u8>,
    /// Offset behind all of these.
    position: u64,
}

const HASH_BLOCK: usize = 128 * 1024;
static ZEROS: [u8; HASH_BLOCK] = [0; HASH_BLOCK];
/// Zeros hashed in one go: some milliseconds.
const HASH_SLICE: u64 = 16 << 20;

impl CoreHash {
    fn new() -> Self {
        let buffer = Vec::with_capacity(HASH_BLOCK);
        Self { hasher: blake3::Hasher::new(), buffer, owed: 0, behind_owed: Vec::new(), position: 0 }
    }

    /// Room for the `len` bytes at `offset`, which is not before what was hashed already. There must be no debt.
    fn room(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let gap = offset - self.position;
        self.position = offset + len as u64;
        if gap > 0 {
            self.owed = gap;
            self.behind_owed.resize(len, 0);
            return &mut self.behind_owed;
        }
        if self.buffer.len() + len > HASH_BLOCK {
            self.flush();
        }
        let start = self.buffer.len();
        self.buffer.resize(start + len, 0);
        &mut self.buffer[start..]
    }

    /// Whether zeros are owed.
    fn is_in_debt(&self) -> bool {
        self.owed > 0
    }

    /// Hashes a slice of the zeros that are owed, and what comes behind the last of them.
    fn pay(&mut self) {
        self.flush();
        let mut slice = self.owed.min(HASH_SLICE);
        self.owed -= slice;
        while slice > 0 {
            let zeros = usize::try_from(slice).map_or(HASH_BLOCK, |left| left.min(HASH_BLOCK));
            self.hasher.update(&ZEROS[..zeros]);
            slice -= zeros as u64;
        }
        if self.owed == 0 {
            std::mem::swap(&mut self.buffer, &mut self.behind_owed);
            self.behind_owed.clear();
        }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.buffer);
        self.buffer.clear();
    }

    /// The hash in hexadecimal, if everything up to `total` was put in. Debts are not paid any more: a dump with debts
    /// was ended by its deadline or by hand, which must not take minutes.
    fn finish(mut self, total: u64) -> Option<String> {
        if self.position != total || self.is_in_debt() {
            return None;
        }
        self.flush();
        Some(self.hasher.finalize().to_hex().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::ops::Range;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::link::pipe::{self, Pipe};
    use crate::link::{LinkError, PcapWriter, pcap::PcapFile};
    use crate::report::Outcome;
    use crate::wire::arp::ArpPacket;
    use crate::wire::checksum::Checksum;
    use crate::wire::{Ack, MacAddr, Message, Route};

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 9])];

    /// What a server has got: the bytes of the core by offset.
    type Stored = BTreeMap<u64, Vec<u8>>;

    /// Answers ARP and acknowledges everything until FINISHED.
    fn serve(mut link: Pipe) -> JoinHandle<Stored> {
        thread::spawn(move || {
            let mut stored = Stored::new();
            let (mut frame, mut answer) = (Vec::new(), Vec::new());
            while link.receive(&mut frame, Duration::from_secs(10)).unwrap() {
                answer.clear();
                let mut last = false;
                if let Ok(question) = ArpPacket::parse(&frame[14..]) {
                    answer.extend_from_slice(&[&MACS[0].0[..], &MACS[1].0, &[8, 6]].concat());
                    question.reply_from(MACS[1]).emit(&mut answer);
                } else {
                    let (route, payload) = Route::parse(&frame).unwrap();
                    let message = Message::parse(payload).unwrap();
                    if message.kind == MessageKind::Vmcore {
                        stored.insert(message.offset, message.payload.to_vec());
                    }
                    last = message.kind == MessageKind::Finished;
                    route.reversed().emit(&Ack(message.sequence).to_bytes(), &mut answer);
                }
                while link.send(&Frame { bytes: &answer, guest: None }).unwrap() == Sent::Busy {
                    thread::yield_now();
                }
                if last {
                    break;
                }
            }
            stored
        })
    }

    /// A core with untouched zeros, of which the rest lies in guest memory 1 MiB higher (when it does not cross 64 KiB).
    struct Core {
        bytes: Vec<u8>,
        hole: Range<u64>,
    }

    impl Core {
        fn new() -> Self {
            let mut bytes: Vec<_> = (0..3_000_001_u32).map(|i| (i % 253).to_le_bytes()[0]).collect();
            bytes[1_000_000..2_000_000].fill(0);
            Self { bytes, hole: 1_000_000..2_000_000 }
        }

        fn plan(&self) -> DumpPlan {
            DumpPlan {
                path: Some("vm1".into()),
                length: self.bytes.len() as u64,
                header: [7; 512],
                key: None,
            }
        }

        fn holds(&self, stored: &Stored) -> bool {
            let mut file = vec![0; self.bytes.len()];
            for (offset, bytes) in stored {
                let start = usize::try_from(*offset).unwrap();
                file[start..start + bytes.len()].copy_from_slice(bytes);
            }
            file == self.bytes
        }
    }

    impl ReadAt for Core {
        fn length(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            self.bytes.as_slice().read_at(offset, buf)
        }

        fn next_data(&self, offset: u64) -> Option<Range<u64>> {
            if offset < self.hole.start {
                Some(offset..self.hole.start)
            } else {
                Some(self.hole.end.max(offset)..self.length())
            }
        }

        fn locate(&self, offset: u64, len: usize) -> Option<u64> {
            ((offset >> 16) == ((offset + len as u64 - 1) >> 16)).then_some(offset + (1 << 20))
        }
    }

    /// A link that takes the rest of a frame from guest memory and completes the checksums, as a card does.
    struct Card {
        pipe: Pipe,
        memory: Vec<u8>,
        gathered: u64,
    }

    impl Link for Card {
        fn mtu(&self) -> Result<u32, LinkError> {
            self.pipe.mtu()
        }

        fn mac(&self) -> MacAddr {
            self.pipe.mac()
        }

        fn gathers(&self) -> bool {
            true
        }

        fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
            let mut bytes = frame.bytes.to_vec();
            if let Some((address, len)) = frame.guest {
                let start = usize::try_from(address - (1 << 20)).unwrap();
                bytes.extend_from_slice(&self.memory[start..start + len]);
                self.gathered += 1;
            }
            if bytes[12..14] == [8, 0] {
                let sum = Checksum::of(&bytes[34..]).complete();
                bytes[40..42].copy_from_slice(&sum);
            }
            self.pipe.send(&Frame { bytes: &bytes, guest: None })
        }

        fn receive(&mut self, frame: &mut Vec<u8>, wait: Duration) -> Result<bool, LinkError> {
            self.pipe.receive(frame, wait)
        }
    }

    fn config() -> ClientConfig {
        ClientConfig::new(SERVER, CLIENT, MACS[0], 1500)
    }

    fn go_on(_: &Progress) -> ControlFlow<String> {
        ControlFlow::Continue(())
    }

    fn assert_complete(report: &DumpReport, core: &Core) {
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Complete, None));
        assert_eq!(report.blake3, Some(blake3::hash(&core.bytes).to_hex().to_string()));
        assert_eq!((report.length, report.bytes_untouched), (3_000_001, 1_000_000));
        assert_eq!(report.bytes_sent, 2_000_001);
        assert!(report.missing.is_empty());
    }

    #[test]
    fn a_core_arrives_whole_and_its_hash_is_that_of_its_bytes() {
        let core = Core::new();
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let mut phases = Vec::new();
        let mut control = |progress: &Progress| {
            phases.push(progress.phase);
            assert!(progress.done <= progress.total);
            ControlFlow::Continue(())
        };
        let report = run(config(), core.plan(), &core, &mut near, &mut control).unwrap();
        assert_complete(&report, &core);
        assert_eq!((report.path.as_deref(), report.server.as_str()), (Some("vm1"), "10.0.0.9:20023"));
        assert!(core.holds(&server.join().unwrap()));
        phases.dedup();
        assert_eq!(
            phases,
            [Phase::Resolve, Phase::Herald, Phase::Data, Phase::Header, Phase::Finish, Phase::Closed][..5]
        );
    }

    #[test]
    fn a_link_that_gathers_sends_from_guest_memory() {
        let core = Core::new();
        let [near, far] = pipe::pair(MACS, 9000, 256);
        let server = serve(far);
        let mut card = Card { pipe: near, memory: core.bytes.clone(), gathered: 0 };
        let config = ClientConfig { mtu: 9000, ..config() };
        let report = run(config, core.plan(), &core, &mut card, &mut go_on).unwrap();
        assert_complete(&report, &core);
        assert!(core.holds(&server.join().unwrap()));
        assert!((400..489).contains(&card.gathered), "{} of 489 messages", card.gathered);
    }

    #[test]
    fn a_recorded_link_does_not_gather() {
        let core = Core::new();
        let [near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let card = Card { pipe: near, memory: Vec::new(), gathered: 0 };
        let mut recorded = PcapWriter::new(card, PcapFile::new(Vec::new()).unwrap());
        let report = run(config(), core.plan(), &core, &mut recorded, &mut go_on).unwrap();
        assert_complete(&report, &core);
        assert!(core.holds(&server.join().unwrap()));
    }

    #[test]
    fn a_link_with_room_for_one_frame_is_enough() {
        let core = Core::new();
        let [mut near, far] = pipe::pair(MACS, 1500, 1);
        let server = serve(far);
        let report = run(config(), core.plan(), &core, &mut near, &mut go_on).unwrap();
        assert_complete(&report, &core);
        assert!(core.holds(&server.join().unwrap()));
    }

    #[test]
    fn the_caller_can_stop_a_dump() {
        let core = Core::new();
        let [mut near, _far] = pipe::pair(MACS, 1500, 256);
        let started = Instant::now();
        let mut control = |progress: &Progress| match progress.elapsed {
            elapsed if elapsed > Duration::from_millis(150) => ControlFlow::Break("interrupted".to_owned()),
            _ => ControlFlow::Continue(()),
        };
        let report = run(config(), core.plan(), &core, &mut near, &mut control).unwrap();
        assert!(started.elapsed() < Duration::from_millis(800));
        assert_eq!(report.outcome, Outcome::Failed);
        assert_eq!(report.reason.as_deref(), Some("stopped while looking for the server: interrupted"));
        assert_eq!((report.blake3, report.missing), (None, vec![(0, 3_000_001)]));
        assert_eq!(report.server, "10.0.0.9:0");
    }

    #[test]
    fn a_failing_link_ends_the_dump_with_its_reason() {
        struct Unplugged;
        impl Link for Unplugged {
            fn mtu(&self) -> Result<u32, LinkError> {
                Ok(1500)
            }
            fn mac(&self) -> MacAddr {
                MACS[0]
            }
            fn send(&mut self, _frame: &Frame<'_>) -> Result<Sent, LinkError> {
                Ok(Sent::Yes)
            }
            fn receive(&mut self, _frame: &mut Vec<u8>, _wait: Duration) -> Result<bool, LinkError> {
                let source = std::io::ErrorKind::BrokenPipe.into();
                Err(LinkError::Io { doing: "reading tap0".into(), source })
            }
        }
        let core = Core::new();
        let report = run(config(), core.plan(), &core, &mut Unplugged, &mut go_on).unwrap();
        let want = "the link failed while looking for the server: reading tap0: broken pipe";
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Failed, Some(want)));
    }

    #[test]
    fn an_unreadable_core_ends_the_dump_with_its_reason() {
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        serve(far);
        let plan = DumpPlan { length: 5000, ..Core::new().plan() };
        let core = Core { bytes: vec![1; 2000], hole: 0..0 };
        let report = run(config(), plan, &core, &mut near, &mut go_on).unwrap();
        let want = "the core cannot be read: reading 1448 bytes at offset 0x5a8 of a core of 2000 bytes";
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Failed, Some(want)));
        assert_eq!(report.missing, [(0, 5000)]);
    }

    #[test]
    fn bad_input_is_refused_before_the_first_frame() {
        let [mut near, mut far] = pipe::pair(MACS, 1500, 256);
        let plan = DumpPlan { path: Some("../x".into()), ..Core::new().plan() };
        assert!(run(config(), plan, &Core::new(), &mut near, &mut go_on).is_err());
        assert!(!far.receive(&mut Vec::new(), Duration::ZERO).unwrap());
    }

    #[test]
    fn zeros_are_hashed_as_if_sent() {
        let mut hash = CoreHash::new();
        let gap = HASH_SLICE + 300_000;
        hash.room(0, 3).copy_from_slice(b"abc");
        hash.room(3 + gap, 3).copy_from_slice(b"def");
        hash.pay();
        assert!(hash.is_in_debt());
        hash.pay();
        assert!(!hash.is_in_debt());
        hash.room(6 + gap, 1).copy_from_slice(b"g");
        hash.room(17 + gap, 1).copy_from_slice(b"h");
        hash.pay();
        let zeros = |len| vec![0; usize::try_from(len).unwrap()];
        let bytes = [b"abc".to_vec(), zeros(gap), b"defg".to_vec(), zeros(10), b"h".to_vec()].concat();
        assert_eq!(hash.finish(bytes.len() as u64), Some(blake3::hash(&bytes).to_hex().to_string()));
        assert_eq!(CoreHash::new().finish(1), None);
        let mut in_debt = CoreHash::new();
        in_debt.room(u64::MAX - 1, 1).copy_from_slice(b"z");
        assert_eq!(in_debt.finish(u64::MAX), None, "nobody waits for the hash of 16 EiB");
        assert_eq!(CoreHash::new().finish(0), Some(blake3::hash(b"").to_hex().to_string()));
    }

    #[test]
    fn a_hole_that_takes_long_to_hash_does_not_look_like_silence() {
        /// A byte, 4 GiB of nothing, a byte.
        struct Hole;
        impl ReadAt for Hole {
            fn length(&self) -> u64 {
                1 << 32
            }
            fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
                buf.fill(1);
                Ok(())
            }
            fn next_data(&self, offset: u64) -> Option<Range<u64>> {
                (offset == 0).then_some(0..1)
            }
        }
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let plan = DumpPlan { length: 1 << 32, ..Core::new().plan() };
        // A patience of half a second, which is less than the hash takes on most machines.
        let config = ClientConfig { polls: 500, retries: 0, ..config() };
        let report = run(config, plan, &Hole, &mut near, &mut go_on).unwrap();
        assert_eq!((report.outcome, report.reason), (Outcome::Complete, None));
        assert_eq!(report.bytes_sent, 2);
        assert!(report.blake3.is_some());
        server.join().unwrap();
    }
}
