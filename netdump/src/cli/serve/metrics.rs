//! `--metrics ADDR`: the receiver's counters for Prometheus, as text (exposition format 0.0.4) over HTTP.
//!
//! The receiver only counts, with atomics. Who asks is answered by threads of their own: a few at a time, each for so many
//! bytes and seconds at most, so that nobody who asks slowly, or for ever, holds up anything but others who ask.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netdump::receiver::{
    Cause, DumpStore, DumpSummary, Ending, Receiver, ReceiverEvent, StoreError, StoredDump,
};
use nix::sys::statvfs::fstatvfs;

use super::hook::Outcomes;

/// Longest request that is read; Prometheus sends some 300 bytes.
const MAX_REQUEST: usize = 8192;
/// Longest time that a client has for its request, and again for reading the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients that are served at a time; others are turned away.
const AT_ONCE: usize = 8;

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    sessions_opened: AtomicU64,
    sessions_open: AtomicU64,
    refused: AtomicU64,
    resumed: AtomicU64,
    complete: AtomicU64,
    bytes: AtomicU64,
    messages: AtomicU64,
    repeated: AtomicU64,
    /// By reason.
    incomplete: Mutex<BTreeMap<&'static str, u64>>,
    ignored: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Counts what has happened, ends excepted.
    pub(super) fn count(&self, event: &ReceiverEvent<StoredDump>) {
        let counter = match event {
            ReceiverEvent::Opened { .. } => &self.sessions_opened,
            ReceiverEvent::Resumed { .. } => &self.resumed,
            ReceiverEvent::Refused { .. } => &self.refused,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes over what the receiver counts itself. Dumps that have ended have brought `bytes`.
    pub(super) fn observe<S: DumpStore>(&self, receiver: &Receiver<S>, mut bytes: u64) {
        let mut open = 0;
        for (_, _, received) in receiver.progress() {
            open += 1;
            bytes = bytes.saturating_add(received);
        }
        self.sessions_open.store(open, Ordering::Relaxed);
        self.bytes.fetch_max(bytes, Ordering::Relaxed);
        // Whoever reads them now reads them again.
        if let Ok(mut ignored) = self.ignored.try_lock() {
            ignored.extend(receiver.ignored());
        }
    }

    /// Counts a dump that has ended.
    pub(super) fn ended(&self, ending: &Ending, summary: &DumpSummary) {
        match ending {
            Ending::Complete => {
                self.complete.fetch_add(1, Ordering::Relaxed);
            }
            Ending::Incomplete(cause) => {
                let mut incomplete = self.incomplete.lock().unwrap_or_else(PoisonError::into_inner);
                *incomplete.entry(reason(cause)).or_default() += 1;
            }
        }
        for (counter, count) in [(&self.messages, summary.messages), (&self.repeated, summary.repeated)] {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Why a dump is incomplete, as a label.
fn reason(cause: &Cause) -> &'static str {
    match cause {
        Cause::TimedOut => "timed_out",
        Cause::Restarted => "restarted",
        Cause::Stopped => "stopped",
        Cause::ReceiverDied => "receiver_died",
        Cause::Gap { .. } => "gap",
        Cause::Key { .. } => "key",
        Cause::Store(error) => match &**error {
            StoreError::DumpTooLarge { .. }
            | StoreError::TooMuchStored { .. }
            | StoreError::TooLittleFree { .. } => "limit",
            StoreError::Socket { .. } => "no_socket",
            _ => "storage",
        },
    }
}

/// What is told.
#[derive(Debug)]
pub(super) struct Metrics {
    counters: Arc<Counters>,
    hooks: Option<Arc<Outcomes>>,
    /// Where dumps are stored, for what is free there.
    directory: File,
}

impl Metrics {
    /// Answers at `address` from now on; where that is.
    pub(super) fn serve(
        address: SocketAddr,
        directory: &Path,
        counters: Arc<Counters>,
        hooks: Option<Arc<Outcomes>>,
    ) -> io::Result<SocketAddr> {
        let metrics = Arc::new(Self { counters, hooks, directory: File::open(directory)? });
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let thread = thread::Builder::new().name("netdump-metrics".into());
        thread.spawn(move || metrics.accept(&listener))?;
        Ok(address)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let busy = Arc::new(AtomicUsize::new(0));
        loop {
            let Ok((client, _)) = listener.accept() else {
                // Such as too many open files: a busy loop would not help.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            if busy.fetch_add(1, Ordering::SeqCst) >= AT_ONCE {
                busy.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (metrics, done) = (Arc::clone(&self), Arc::clone(&busy));
            let thread = thread::Builder::new().name("netdump-metrics".into());
            let answering = thread.spawn(move || {
                if let Err(error) = metrics.answer(client) {
                    tracing::trace!(%error, "metrics not delivered");
                }
                done.fetch_sub(1, Ordering::SeqCst);
            });
            if answering.is_err() {
                busy.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        let request = request(&mut client)?;
        let mut words = request.split(|&byte| byte == b' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
        let (status, body) = match (method, path) {
            (b"GET" | b"HEAD", b"/metrics" | b"/") => ("200 OK", self.text()),
            (b"GET" | b"HEAD", _) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
            _ => ("405 Method Not Allowed", "GET only\n".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let body = if method == b"HEAD" { "" } else { &body };
        client.set_write_timeout(Some(PATIENCE))?;
        client.write_all(&[head.as_bytes(), body.as_bytes()].concat())
    }

    fn text(&self) -> String {
        let Counters { complete, incomplete, ignored, .. } = &*self.counters;
        let counter = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = |reasons: &Mutex<BTreeMap<&'static str, u64>>| -> Vec<(String, u64)> {
            let reasons = reasons.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.iter().map(|(reason, &count)| (format!("{{reason=\"{reason}\"}}"), count)).collect()
        };
        let one = |value: u64| vec![(String::new(), value)];
        let counters = &*self.counters;
        let mut text = String::new();
        let mut add = |name: &str, kind: &str, help: &str, values: Vec<(String, u64)>| {
            let _ = writeln!(text, "# HELP netdump_{name} {help}\n# TYPE netdump_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "netdump_{name}{labels} {value}");
            }
        };
        add(
            "sessions_open",
            "gauge",
            "Dumps that are being received.",
            one(counter(&counters.sessions_open)),
        );
        add(
            "sessions_opened_total",
            "counter",
            "Dumps that have begun.",
            one(counter(&counters.sessions_opened)),
        );
        add("refused_total", "counter", "Dumps that could not be begun.", one(counter(&counters.refused)));
        add(
            "resumed_total",
            "counter",
            "Dumps that went on after a receiver was lost.",
            one(counter(&counters.resumed)),
        );
        add("dumps_complete_total", "counter", "Dumps that are whole and stored.", one(counter(complete)));
        add("dumps_incomplete_total", "counter", "Dumps that stopped early.", of(incomplete));
        add(
            "bytes_received_total",
            "counter",
            "Bytes of cores, each counted once.",
            one(counter(&counters.bytes)),
        );
        add(
            "messages_total",
            "counter",
            "Messages of dumps that have ended.",
            one(counter(&counters.messages)),
        );
        let help = "Data messages of dumps that have ended that brought nothing new.";
        add("resends_seen_total", "counter", help, one(counter(&counters.repeated)));
        add("datagrams_ignored_total", "counter", "Datagrams that changed nothing.", of(ignored));
        if let Some(hooks) = &self.hooks {
            let outcome = |name: &str, count| (format!("{{outcome=\"{name}\"}}"), counter(count));
            let values = vec![outcome("success", &hooks.succeeded), outcome("failure", &hooks.failed)];
            add("hooks_total", "counter", "Runs of the hook that have ended.", values);
        }
        if let Ok(stat) = fstatvfs(&self.directory) {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            add("free_bytes", "gauge", "Bytes free where dumps are stored.", one(free));
        }
        text
    }
}

/// The first line of a request, when all of its head has come.
fn request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > MAX_REQUEST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => request.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    Ok(line.to_vec())
}
