//! Clients that ask for trouble, one thing each. None of them may get an ack for what no server can store, none may hurt
//! another client, and after none the server may be dead.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::Dumps;
use super::core::header;
use super::talker::{Ports, Talker, Wired};
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::{Compression, KDH_LEN};
use crate::wire::{Ack, CLIENT_PORT, Message, MessageKind, SERVER_PORT};

/// A port that is not the client's.
const STRANGERS_PORT: u16 = 20_025;
/// How long an ack that must come is waited for before its message is sent again, and how often it is.
const WAIT: Duration = Duration::from_millis(200);
const TRIES: u32 = 40;
/// How long to listen for acks that may come or must not.
const LISTEN: Duration = Duration::from_millis(20);

/// What of a core a prankster sends in earnest, all of it or the first half.
const CORE: &[u8] = b"datamore";

/// One thing to do to a server.
#[derive(Debug, Clone, Copy)]
pub struct Prank {
    /// What it is called.
    pub name: &'static str,
    /// Where to get out to, and which of its variants.
    script: fn(&Paths, usize) -> Vec<Step>,
}

/// Where pranks try to get out of the server's directory to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// As seen from inside.
    pub relative: String,
    /// From the root.
    pub absolute: String,
}

impl Default for Paths {
    fn default() -> Self {
        Self { relative: "../netdump-torture".into(), absolute: "/tmp/netdump-torture".into() }
    }
}

/// A datagram, and what is to come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    datagram: Vec<u8>,
    to: To,
    from: u16,
    answer: Answer,
}

/// Which port it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Herald,
    Session,
}

/// Whether there is to be an ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// There is: what comes next needs it.
    Due,
    /// There may be one; the judge knows whether there may.
    Open,
}

/// Every prank.
pub const ALL: [Prank; 14] = [
    Prank { name: "garbage", script: garbage },
    Prank { name: "lengths that do not fit", script: odd_lengths },
    Prank { name: "messages of unknown types", script: unknown_types },
    Prank { name: "data at offsets beyond any file", script: far_data },
    Prank { name: "parts of a key at offsets of 4 GiB and more", script: far_key },
    Prank { name: "a dump header that is too short, or in two parts", script: short_header },
    Prank { name: "a dump header with compression 255", script: odd_compression },
    Prank { name: "FINISHED of a packed core without its end", script: short_stream },
    Prank { name: "FINISHED of an encrypted core without its key", script: no_key },
    Prank { name: "paths that lead out of the directory", script: escaping_paths },
    Prank { name: "paths that are none", script: odd_paths },
    Prank { name: "data and FINISHED from another port", script: strangers },
    Prank { name: "HERALDs in the middle of a dump", script: heralds_between },
    Prank { name: "messages behind the end", script: behind_the_end },
];

fn garbage(_: &Paths, _: usize) -> Vec<Step> {
    let noise = |len: usize| (0..len).map(|at| at.to_le_bytes()[0].wrapping_mul(151) ^ 0x5a).collect();
    let mut steps = vec![herald(b"")];
    for len in [0, 1, 3, 4, 23, 24, 25, 512, 1472, 4120, 8000] {
        steps.extend([open(noise(len)).to(To::Herald), open(noise(len))]);
    }
    steps
}

fn odd_lengths(_: &Paths, _: usize) -> Vec<Step> {
    let mut steps = vec![herald(b"")];
    for (number, announced) in (10..).zip([0_u32, 99, 101, 4097, u32::MAX]) {
        let mut datagram = message(MessageKind::Vmcore, number, 0, &[1; 100]);
        datagram[16..20].copy_from_slice(&announced.to_be_bytes());
        steps.push(open(datagram));
    }
    steps.push(open(message(MessageKind::Vmcore, 20, 0, &[1; 4097])));
    let mut cut = message(MessageKind::Herald, 21, 0, b"path\0");
    cut.truncate(26);
    steps.push(open(cut).to(To::Herald));
    steps
}

fn unknown_types(_: &Paths, _: usize) -> Vec<Step> {
    let kinds = (10..).zip([0_u32, 6, 255, u32::MAX]);
    let odd = kinds.map(|(number, kind)| {
        let mut datagram = message(MessageKind::Vmcore, number, 0, b"data");
        datagram[..4].copy_from_slice(&kind.to_be_bytes());
        datagram
    });
    [herald(b"")]
        .into_iter()
        .chain(odd.flat_map(|odd| [open(odd.clone()).to(To::Herald), open(odd)]))
        .collect()
}

fn far_data(_: &Paths, _: usize) -> Vec<Step> {
    let offsets = [1 << 63, (1 << 63) - 1, u64::MAX, u64::MAX - 3, i64::MAX.cast_unsigned() - 2];
    let far = (10..).zip(offsets).map(|(number, at)| open(message(MessageKind::Vmcore, number, at, b"data")));
    let mut steps: Vec<_> = [herald(b""), due(message(MessageKind::Vmcore, 2, 0, b"data"))].into();
    steps.extend(far);
    steps.push(due(message(MessageKind::Vmcore, 3, 4, b"more")));
    steps
}

fn far_key(_: &Paths, _: usize) -> Vec<Step> {
    let offsets = [1 << 32, (1 << 32) + 4, 1 << 63, u64::MAX];
    let far =
        (10..).zip(offsets).map(|(number, at)| open(message(MessageKind::EkcdKey, number, at, b"key!")));
    [herald(b"")].into_iter().chain(far).collect()
}

fn short_header(_: &Paths, _: usize) -> Vec<Step> {
    let header = header(4);
    vec![
        herald(b""),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        open(message(MessageKind::Kdh, 10, 0, &[])),
        open(message(MessageKind::Kdh, 11, 0, &header[..KDH_LEN - 1])),
        open(message(MessageKind::Kdh, 12, 256, &header[256..])),
        open(message(MessageKind::Kdh, 13, u64::MAX, &header)),
    ]
}

fn odd_compression(_: &Paths, _: usize) -> Vec<Step> {
    let mut odd = header(4);
    // The byte and the parity that makes up for it.
    odd[0x1ef] ^= 0xff;
    odd[0x1ff] ^= 0xff;
    vec![
        herald(b""),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        open(message(MessageKind::Kdh, 3, 0, &odd)),
        open(message(MessageKind::Finished, 4, 0, &[])),
    ]
}

fn short_stream(_: &Paths, _: usize) -> Vec<Step> {
    let header = KernelDumpHeader {
        dump_length: 8000,
        dump_extent: 16_384,
        block_size: 4096,
        compression: Compression::Gzip,
        ..Default::default()
    };
    vec![
        herald(b""),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        due(message(MessageKind::Vmcore, 3, 4, b"more")),
        open(message(MessageKind::Kdh, 4, 0, &header.to_bytes())),
        open(message(MessageKind::Finished, 5, 0, &[])),
    ]
}

fn no_key(_: &Paths, _: usize) -> Vec<Step> {
    let header = KernelDumpHeader { dump_length: 4, dump_extent: 4, key_size: 512, ..Default::default() };
    vec![
        herald(b""),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        open(message(MessageKind::Kdh, 3, 0, &header.to_bytes())),
        open(message(MessageKind::Finished, 4, 0, &[])),
    ]
}

fn escaping_paths(paths: &Paths, variant: usize) -> Vec<Step> {
    // Whatever it does with the path, a server must not store elsewhere; that it takes the dump is its own choice.
    let Paths { relative, absolute } = paths;
    let paths = [relative, absolute, &format!("x/../{relative}"), &format!("./{relative}")];
    whole_dump(&[paths[variant % paths.len()].as_bytes(), b"\0"].concat())
}

fn odd_paths(_: &Paths, variant: usize) -> Vec<Step> {
    let long = [[b'p'; 300].as_slice(), b"\0"].concat();
    let paths = [
        &b"\0"[..],
        b"unterminated",
        b"in\0side\0",
        b"\x1b[2J\n\0",
        b"\xff\xfe\0",
        b"//\0",
        &[b'a'; 1024],
        &long,
    ];
    whole_dump(paths[variant % paths.len()])
}

fn strangers(_: &Paths, _: usize) -> Vec<Step> {
    vec![
        herald(b""),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        open(message(MessageKind::Vmcore, 10, 0, b"evil")).from(STRANGERS_PORT),
        open(message(MessageKind::Kdh, 11, 0, &header(1))).from(STRANGERS_PORT),
        open(message(MessageKind::Finished, 12, 0, &[])).from(STRANGERS_PORT),
        // The dump goes on.
        due(message(MessageKind::Vmcore, 3, 4, b"more")),
        due(message(MessageKind::Kdh, 4, 0, &header(8))),
        due(message(MessageKind::Finished, 5, 0, &[])),
    ]
}

/// A late duplicate of the HERALD, as a network may deliver it, is no new dump.
fn heralds_between(_: &Paths, _: usize) -> Vec<Step> {
    let late = || open(message(MessageKind::Herald, 1, 0, &[])).to(To::Herald);
    vec![
        herald(b""),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        late(),
        due(message(MessageKind::Vmcore, 3, 4, b"more")),
        late(),
        open(message(MessageKind::Herald, 1, 0, &[])),
        due(message(MessageKind::Kdh, 4, 0, &header(8))),
        due(message(MessageKind::Finished, 5, 0, &[])),
    ]
}

fn behind_the_end(_: &Paths, _: usize) -> Vec<Step> {
    let mut steps = whole_dump(b"");
    steps.extend([
        open(message(MessageKind::Finished, 4, 0, &[])),
        open(message(MessageKind::Herald, 1, 0, &[])).to(To::Herald),
    ]);
    steps
}

/// A small dump that any server takes.
fn whole_dump(path: &[u8]) -> Vec<Step> {
    vec![
        herald(path),
        due(message(MessageKind::Vmcore, 2, 0, b"data")),
        due(message(MessageKind::Kdh, 3, 0, &header(4))),
        due(message(MessageKind::Finished, 4, 0, &[])),
    ]
}

fn herald(path: &[u8]) -> Step {
    due(message(MessageKind::Herald, 1, 0, path)).to(To::Herald)
}

fn message(kind: MessageKind, sequence: u32, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    Message { kind, sequence, offset, payload, aux: 0 }.emit(&mut datagram);
    datagram
}

fn due(datagram: Vec<u8>) -> Step {
    Step { datagram, to: To::Session, from: CLIENT_PORT, answer: Answer::Due }
}

fn open(datagram: Vec<u8>) -> Step {
    Step { answer: Answer::Open, ..due(datagram) }
}

impl Step {
    fn to(self, to: To) -> Self {
        Self { to, ..self }
    }

    fn from(self, from: u16) -> Self {
        Self { from, ..self }
    }

    fn number(&self) -> Option<u32> {
        self.datagram.get(4..8).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// How a prank ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrankEnding {
    /// It was played to its end.
    Played,
    /// The server did not acknowledge what it must: this message.
    Unanswered(u32),
    /// The server was not found.
    NoServer,
}

/// Plays a prank.
#[derive(Debug)]
pub struct Prankster {
    steps: std::vec::IntoIter<Step>,
    step: Option<Step>,
    tries: u32,
    /// When the step is over, or tried again.
    until: Option<Instant>,
    session: u16,
    ending: Option<PrankEnding>,
}

impl Prankster {
    /// Ready to begin.
    pub fn new(prank: Prank, variant: usize, paths: &Paths) -> Self {
        let mut steps = (prank.script)(paths, variant).into_iter();
        let step = steps.next();
        Self { steps, step, tries: 0, until: None, session: SERVER_PORT, ending: None }
    }

    fn next(&mut self) {
        self.step = self.steps.next();
        self.tries = 0;
        self.until = None;
        if self.step.is_none() {
            self.ending = Some(PrankEnding::Played);
        }
    }
}

impl Talker for Prankster {
    type Ending = PrankEnding;

    fn handle(&mut self, _now: Instant, source: SocketAddrV4, payload: &[u8]) {
        let Ok(Ack(number)) = Ack::parse(payload) else { return };
        let Some(step) = self.step.as_ref().filter(|step| step.answer == Answer::Due) else { return };
        if step.number() == Some(number) {
            if step.to == To::Herald {
                self.session = source.port();
            }
            self.next();
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.until.is_none_or(|until| until > now) {
            return;
        }
        match &self.step {
            Some(step) if step.answer == Answer::Due && self.tries < TRIES => self.until = None,
            Some(step) if step.answer == Answer::Due => {
                self.ending = Some(PrankEnding::Unanswered(step.number().unwrap_or(0)));
            }
            _ => self.next(),
        }
    }

    fn no_route(&mut self) {
        self.ending = Some(PrankEnding::NoServer);
    }

    fn poll_transmit(&mut self, now: Instant, payload: &mut Vec<u8>) -> Option<Ports> {
        let step = self.step.as_ref().filter(|_| self.until.is_none() && self.ending.is_none())?;
        self.tries += 1;
        self.until = Some(now + if step.answer == Answer::Due { WAIT } else { LISTEN });
        payload.extend_from_slice(&step.datagram);
        let to = if step.to == To::Herald { SERVER_PORT } else { self.session };
        Some(Ports { from: step.from, to })
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.until
    }

    fn ending(&self) -> Option<&PrankEnding> {
        self.ending.as_ref()
    }
}

impl Dumps for Wired<Prankster> {
    fn cores(&self) -> Vec<(SocketAddrV4, &[u8])> {
        vec![(SocketAddrV4::new(self.address(), CLIENT_PORT), CORE)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_one_datagram_of_a_prank() {
        for prank in ALL {
            let steps = (prank.script)(&Paths::default(), 0);
            for (at, step) in steps.iter().enumerate() {
                let alike =
                    |other: &&Step| other.number() == step.number() && other.datagram != step.datagram;
                let is_message = step.datagram.len() > 25 && Message::parse(&step.datagram).is_ok();
                assert!(!is_message || !steps[at..].iter().any(|other| alike(&other)), "{}", prank.name);
            }
        }
    }
}
