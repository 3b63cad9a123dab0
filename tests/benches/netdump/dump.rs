//! A dump of ours, over one link or another, to `netdump serve`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::ControlFlow;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netdump::client::{ClientConfig, WindowChoice};
use netdump::drive::{self, Dump};
use netdump::link::{Link, UdpLink};
use netdump::report::{DumpReport, Outcome};
use netdump::stream::Packing;
use netdump::vmcore::KernelDumpHeader;
use netdump::wire::CLIENT_PORT;
use vmm::devices::virtio::net::Net;
use vmm::link::{TapLink, VirtqueueLink};

use super::guest::Guest;
use super::lab::{FIRST_OF_MANY, Lab, Store, WIRE, Wire};
use super::outcome::Sample;
use super::wrappers::{Lossy, NoTrains};

/// No dump of a bench takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// What is between client and receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A tap, with all that the kernel offers.
    Tap,
    /// A tap whose kernel cuts no trains.
    PlainTap,
    /// A tap behind a network that loses so many frames in a thousand, both ways.
    LossyTap(u32),
    /// The guest's network card, with a tap behind it.
    Virtio,
    /// Sockets over loopback.
    Udp,
}

/// One way to dump.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    pub(crate) way: Way,
    /// The wire of ways that have one.
    pub(crate) wire: u8,
    pub(crate) window: WindowChoice,
    pub(crate) store: Store,
    /// The guest has this part of the bench's memory: one half for 2.
    pub(crate) share: u64,
}

impl How {
    /// Over a tap of MTU 1500, to memory, all of it, as the window bears.
    pub(crate) fn new(way: Way) -> Self {
        Self { way, wire: WIRE, window: WindowChoice::default(), store: Store::Memory, share: 1 }
    }
}

/// Dumps the bench's guest.
pub(crate) fn measure(lab: &mut Lab, how: How) -> anyhow::Result<Sample> {
    let guest = lab.guest(how.share)?;
    measure_guest(lab, how, &guest)
}

/// Dumps this guest.
pub(crate) fn measure_guest(lab: &mut Lab, how: How, guest: &Guest) -> anyhow::Result<Sample> {
    let receiver = lab.receiver(how.store)?;
    let ended = receiver.ended();
    let (report, took) = if how.way == Way::Udp {
        let server = receiver.at(Ipv4Addr::LOCALHOST);
        let mut link = UdpLink::open(server, Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))?;
        let (client, port) = (link.local_ip(), link.local_port());
        send(guest, &mut link, SendTo { server, client, port, window: how.window })?
    } else {
        let wire = lab.wire(how.wire)?;
        let mut link = link(how.way, &wire, guest)?;
        send(guest, &mut *link, SendTo::over(&wire, receiver.at(wire.server), how.window))?
    };
    receiver.check(ended + 1, guest, 1)?;
    Ok(Sample::rate(guest.touched(), took).with_note(resends(&report)))
}

/// So many guests with wires of their own dump to one receiver at once.
pub(crate) fn measure_many(lab: &mut Lab, clients: u8) -> anyhow::Result<Sample> {
    let guest = lab.guest(clients.into())?;
    let receiver = lab.receiver(Store::Memory)?;
    let ended = receiver.ended();
    let wires: Vec<_> =
        (0..clients).map(|number| lab.wire(FIRST_OF_MANY + number)).collect::<Result<_, _>>()?;
    let start = Arc::new(Barrier::new(wires.len() + 1));
    let threads: Vec<_> = wires
        .into_iter()
        .map(|wire| {
            let (guest, start) = (Arc::clone(&guest), Arc::clone(&start));
            let to = SendTo::over(&wire, receiver.at(wire.server), WindowChoice::default());
            thread::spawn(move || {
                let link = link(Way::Tap, &wire, &guest);
                start.wait();
                send(&guest, &mut *link?, to)
            })
        })
        .collect();
    start.wait();
    let started = Instant::now();
    let mut resent = 0;
    for thread in threads {
        resent += thread.join().expect("senders do not panic")?.0.resends;
    }
    let took = started.elapsed();
    receiver.check(ended + usize::from(clients), &guest, clients.into())?;
    Ok(Sample::rate(guest.touched() * u64::from(clients), took).with_note(format!("{resent} resends")))
}

/// A way over a wire.
pub(crate) fn link(way: Way, wire: &Wire, guest: &Guest) -> anyhow::Result<Box<dyn Link>> {
    let tap = || TapLink::new(Arc::clone(&wire.tap), guest.memory.clone(), wire.mac);
    Ok(match way {
        Way::Tap => Box::new(tap()),
        Way::PlainTap => Box::new(NoTrains(tap())),
        Way::LossyTap(per_mille) => Box::new(Lossy::new(tap(), per_mille, 1)),
        Way::Virtio => {
            let mut net = Net::new(Arc::clone(&wire.tap), wire.mac);
            Box::new(VirtqueueLink::new(&mut net, &guest.memory)?)
        }
        Way::Udp => anyhow::bail!("it has no wire"),
    })
}

/// Who sends to whom, and how much at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendTo {
    pub(crate) server: SocketAddrV4,
    pub(crate) client: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) window: WindowChoice,
}

impl SendTo {
    /// From the guest of this wire.
    pub(crate) fn over(wire: &Wire, server: SocketAddrV4, window: WindowChoice) -> Self {
        Self { server, client: wire.client, port: CLIENT_PORT, window }
    }
}

/// Sends a guest's memory; how it went and how long it took. A dump that is not complete is an error.
pub(crate) fn send(guest: &Guest, link: &mut dyn Link, to: SendTo) -> anyhow::Result<(DumpReport, Duration)> {
    let image = guest.image();
    let header = KernelDumpHeader { architecture: "amd64".into(), ..KernelDumpHeader::default() };
    let config = ClientConfig {
        server_port: to.server.port(),
        client_port: to.port,
        deadline: Some(DEADLINE),
        window: to.window,
        ..ClientConfig::new(*to.server.ip(), to.client, link.mac(), link.mtu()?)
    };
    let packing = Packing::default();
    let dump = Dump { path: None, header: &header, image: &image, packing: &packing };
    let report = drive::run(config, &dump, link, &mut |_| ControlFlow::Continue(()))?;
    let took = Duration::from_secs_f64(report.seconds);
    ensure!(report.outcome == Outcome::Complete, "{:?}: {:?}", report.outcome, report.reason);
    Ok((report, took))
}

/// What is worth knowing of a dump beside its rate.
pub(crate) fn resends(report: &DumpReport) -> String {
    format!("{} messages, {} resends", report.messages, report.resends)
}

/// Dumps to a receiver that is no program of ours.
pub(crate) fn measure_to(
    lab: &mut Lab,
    how: How,
    receiver: impl FnOnce(Ipv4Addr) -> anyhow::Result<super::stock::Stock>,
) -> anyhow::Result<Sample> {
    let guest = lab.guest(how.share)?;
    let wire = lab.wire(how.wire)?;
    let receiver = receiver(wire.server)?;
    let mut link = link(how.way, &wire, &guest)?;
    let sent = send(&guest, &mut *link, SendTo::over(&wire, receiver.address(), how.window));
    let core = receiver.finish()?;
    let (report, took) = sent.context("dumping to the stock-like receiver")?;
    super::lab::compare(core.path(), &guest)?;
    Ok(Sample::rate(guest.touched(), took).with_note(resends(&report)))
}
