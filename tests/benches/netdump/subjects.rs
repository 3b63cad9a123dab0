//! What is measured (subjects), and what is set against what (rows).

use netdump::client::WindowChoice;
use vmm::memory::MemorySize;

use super::child;
use super::dump::{self, How, Way};
use super::lab::{JUMBO_WIRE, Lab, Store, WIRE};
use super::outcome::Sample;
use super::raw::{self, Cut};
use super::stock::Stock;

/// Bytes of a full message at MTU 1500, and of one at any MTU that has room for the longest.
const PAYLOAD: usize = 1448;
const JUMBO_PAYLOAD: usize = 4096;
/// What small and sparse guests have used.
const SMALL: u64 = 256 << 20;
/// The memory of a large guest.
const LARGE: u64 = 16 << 30;
/// What is slow, or takes a receiver that is, sends this part of the memory.
const SLOW: u64 = 8;
/// Windows that a receiver with little room is tried with, in messages; it holds about 100.
const WINDOWS: [(u32, &str); 6] = [
    (16, "window 16"),
    (32, "window 32"),
    (48, "window 48"),
    (64, "window 64"),
    (80, "window 80"),
    (96, "window 96"),
];

type Measure = Box<dyn Fn(&mut Lab) -> anyhow::Result<Sample>>;

/// Something that can be measured.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) needs_taps: bool,
    pub(crate) measure: Measure,
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// For `--only`.
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) subject: &'static str,
    /// The best of these is what it is divided by; nothing: the figure counts itself.
    pub(crate) against: Vec<&'static str>,
    pub(crate) bound: Option<Bound>,
}

impl Row {
    /// Everything that has to be measured for it.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.subject).chain(self.against.iter().copied())
    }
}

/// What a ratio must show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// The table, from above.
pub(crate) fn rows() -> Vec<Row> {
    use Bound::{AtLeast, AtMost};
    let row = |name, what, subject, against: &[&'static str], bound| Row {
        name,
        what,
        subject,
        against: against.to_vec(),
        bound: Some(bound),
    };
    let told = |name, what, subject, against: &[&'static str]| Row {
        bound: None,
        ..row(name, what, subject, against, AtLeast(0.0))
    };
    let windows = WINDOWS.map(|(_, name)| name);
    vec![
        row("tap-raw", "tap, USO, MTU 1500", "tap", &["raw USO pair"], AtLeast(0.8)),
        told("tap-bound", "the same, beside a pair that hashes and stores", "tap", &["hashing USO pair"]),
        row("tap-classic", "tap, USO, MTU 1500", "tap", &["classic"], AtLeast(20.0)),
        row("plain-raw", "tap without USO, MTU 1500", "plain tap", &["raw frame pair"], AtLeast(0.9)),
        row("virtio", "virtio link", "virtio", &["tap"], AtLeast(0.8)),
        row("9000-raw", "tap, USO, MTU 9000", "tap 9000", &["raw USO pair 9000"], AtLeast(0.8)),
        row("9000-classic", "tap, USO, MTU 9000", "tap 9000", &["classic 9000"], AtLeast(20.0)),
        row(
            "9000-plain",
            "tap without USO, MTU 9000",
            "plain tap 9000",
            &["raw frame pair 9000"],
            AtLeast(0.9),
        ),
        row("udp", "udp link over loopback", "udp", &["raw GSO/GRO pair"], AtLeast(0.8)),
        row("loss-1", "1 % random loss, both ways", "loss 1 %", &["tap"], AtLeast(0.7)),
        row("loss-5", "5 % random loss, both ways", "loss 5 %", &["tap"], AtLeast(0.4)),
        row("stock", "receiver with 128 KiB of socket buffer", "stock", &windows, AtLeast(0.9)),
        row("sparse", "16 GiB of RAM, 256 MiB touched: time", "sparse", &["small"], AtMost(1.5)),
        row("memory-small", "dumper's memory beyond a 256 MiB guest's", "memory 256 MiB", &[], AtMost(8.0)),
        row("memory-large", "dumper's memory beyond a 16 GiB guest's", "memory 16 GiB", &[], AtMost(8.0)),
        row("many", "8 clients at once", "8 clients", &["1 client"], AtLeast(1.0)),
        told("raw-alone", "a raw pair", "raw USO pair", &[]),
        told("raw-hashing", "a raw pair that hashes and stores", "hashing USO pair", &["raw USO pair"]),
        told("shm", "as the first, stored on /dev/shm", "tap to shm", &["raw USO pair"]),
        told("disk", "as the first, stored on the disk, fsynced", "tap to disk", &["raw USO pair"]),
    ]
}

/// What rows speak of, in the order in which a run measures it: what is compared stands together.
pub(crate) fn subjects() -> Vec<Subject> {
    let jumbo = |how: How| How { wire: JUMBO_WIRE, ..how };
    let classic = How { window: WindowChoice::Classic, share: SLOW, ..How::new(Way::Tap) };
    let to = |store| How { store, ..How::new(Way::Tap) };
    let mut all = vec![
        raw_tap("raw USO pair", WIRE, Cut::trains(PAYLOAD)),
        dumped("tap", How::new(Way::Tap)),
        rate("hashing USO pair", |lab| {
            let guest = lab.guest(1)?;
            let folder = lab.folder()?;
            raw::with_duties(&*lab.wire(WIRE)?, &guest, Cut::trains(PAYLOAD), folder.path())
        }),
        dumped("classic", classic),
        dumped("loss 1 %", How::new(Way::LossyTap(10))),
        dumped("loss 5 %", How::new(Way::LossyTap(50))),
        dumped("virtio", How::new(Way::Virtio)),
        dumped("tap to shm", to(Store::Shm)),
        dumped("tap to disk", to(Store::Disk)),
        raw_tap("raw frame pair", WIRE, Cut::single(PAYLOAD)),
        dumped("plain tap", How::new(Way::PlainTap)),
        raw_tap("raw USO pair 9000", JUMBO_WIRE, Cut::trains(JUMBO_PAYLOAD)),
        dumped("tap 9000", jumbo(How::new(Way::Tap))),
        dumped("classic 9000", jumbo(classic)),
        raw_tap("raw frame pair 9000", JUMBO_WIRE, Cut::single(JUMBO_PAYLOAD)),
        dumped("plain tap 9000", jumbo(How::new(Way::PlainTap))),
        Subject { needs_taps: false, ..rate("raw GSO/GRO pair", raw_loopback) },
        Subject { needs_taps: false, ..dumped("udp", How::new(Way::Udp)) },
        rate("8 clients", |lab| dump::measure_many(lab, 8)),
        rate("1 client", |lab| dump::measure_many(lab, 1)),
        seconds("sparse", LARGE),
        seconds("small", SMALL),
        memory("memory 256 MiB", SMALL),
        memory("memory 16 GiB", LARGE),
        to_stock("stock", WindowChoice::default()),
    ];
    all.extend(WINDOWS.map(|(cap, name)| to_stock(name, WindowChoice::Adaptive { cap })));
    all
}

fn rate(name: &'static str, measure: impl Fn(&mut Lab) -> anyhow::Result<Sample> + 'static) -> Subject {
    Subject { name, unit: "GB/s", needs_taps: true, measure: Box::new(measure) }
}

fn dumped(name: &'static str, how: How) -> Subject {
    rate(name, move |lab| dump::measure(lab, how))
}

fn raw_tap(name: &'static str, wire: u8, cut: Cut) -> Subject {
    rate(name, move |lab| {
        let guest = lab.guest(1)?;
        raw::over_tap(&*lab.wire(wire)?, &guest, cut)
    })
}

/// The udp link's datagrams are as long as loopback's MTU lets them be.
fn raw_loopback(lab: &mut Lab) -> anyhow::Result<Sample> {
    raw::over_loopback(lab.size.bytes(), Cut::trains(JUMBO_PAYLOAD))
}

fn to_stock(name: &'static str, window: WindowChoice) -> Subject {
    let how = How { window, share: SLOW, ..How::new(Way::Tap) };
    rate(name, move |lab| {
        let folder = lab.folder()?;
        dump::measure_to(lab, how, |host| Stock::start(host, folder))
    })
}

/// How long the dump of a guest of this size takes that has used 256 MiB.
fn seconds(name: &'static str, size: u64) -> Subject {
    // Where a file has holes, a huge page costs 2 MiB of zeros for each little piece that is written.
    let how = How { store: Store::Shm, ..How::new(Way::Tap) };
    let measure = move |lab: &mut Lab| {
        let guest = lab.guest_of(MemorySize::new(size)?, SMALL);
        dump::measure_guest(lab, how, &guest).map(|sample| sample.seconds_for(SMALL))
    };
    Subject { unit: "s", ..rate(name, measure) }
}

/// What the dump of a guest of this size takes that has used 256 MiB.
fn memory(name: &'static str, size: u64) -> Subject {
    Subject { unit: "MiB", ..rate(name, move |lab| child::measure(lab, MemorySize::new(size)?, SMALL)) }
}
