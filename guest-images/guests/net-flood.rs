//! Sends many frames over its virtio-net device as fast as it can, as a driver that keeps its queue full does, and panics
//! by pvpanic: to measure the card.
//!
//! Environment, besides what every guest takes:
//! - `frames` (default 1000) of `bytes` (default 1514, at most 2036): broadcasts of an EtherType for experiments.
//! - `bells` (default 0): notifications of the receive queue before that, with nothing new in it.
//!
//! It prints `ringing`, `flooding` and `flooded` when it begins with each and when the device has taken every frame.
#![no_std]
#![no_main]

use rt::virtio::{Descriptor, QUEUE_SIZE, buffer};
use rt::virtio_net::{HEADER, RECEIVE, TRANSMIT, VirtioNet};
use rt::{kenv, println, pvpanic, time};

rt::guest!("net-flood", run);

/// Local experimental EtherType (IEEE 802, 88b5).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

fn run() -> ! {
    let Some(net) = VirtioNet::start() else {
        pvpanic::signal(format_args!("no virtio-net device"));
    };
    println!("ringing");
    (0..kenv::number("bells", 0)).for_each(|_| net.device.notify(RECEIVE));
    println!("flooding");
    let (frames, bytes) = (kenv::number("frames", 1000), kenv::number("bytes", 1514));
    let sent = flood(&net, frames, bytes.clamp(60, 2036) as usize);
    if !sent {
        pvpanic::signal(format_args!("the device does not take the frames"));
    }
    println!("flooded");
    pvpanic::signal_from_kenv("the frames are sent")
}

/// Keeps the queue full until all frames are sent; whether the device took each within a second.
fn flood(net: &VirtioNet, frames: u64, bytes: usize) -> bool {
    let rings = net.rings(TRANSMIT);
    let length = HEADER + bytes;
    for index in 0..QUEUE_SIZE {
        // SAFETY: the driver's own buffer, which the device does not have yet.
        let frame = unsafe { core::slice::from_raw_parts_mut(buffer(TRANSMIT, index) as *mut u8, length) };
        frame.fill(0x5a);
        frame[..HEADER].fill(0);
        frame[HEADER..HEADER + 6].fill(0xff);
        frame[HEADER + 6..HEADER + 12].copy_from_slice(&net.mac());
        frame[HEADER + 12..HEADER + 14].copy_from_slice(&EXPERIMENT);
        let address = buffer(TRANSMIT, index);
        rings.describe(index, Descriptor { address, length: length as u32, flags: 0, next: 0 });
    }
    let full = || rings.offered().wrapping_sub(rings.returned()) >= rings.size();
    for _ in 0..frames {
        // The timer is slow to be asked: only when the queue stays full.
        if full() && !(0..1000).any(|_| !full()) && !time::within(1000, || !full()) {
            return false;
        }
        rings.offer(rings.offered() % rings.size());
        if rings.wants_notification() {
            net.device.notify(TRANSMIT);
        }
    }
    time::within(1000, || rings.returned() == rings.offered())
}
