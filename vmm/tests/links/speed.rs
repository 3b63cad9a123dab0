//! How fast links are, beside the same writes without them, in bytes per second of the writer's processor time: other
//! programs on the machine count little. Prints a table:
//! `cargo test --release -p vmm --test links speed -- --ignored --nocapture`

use std::io::IoSlice;
use std::sync::atomic::AtomicBool;

use netdump::wire::datagram::HEADERS_LEN;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, UdpGroSegment};
use nix::sys::uio::writev;
use nix::time::ClockId;

use super::trains::Train;
use super::*;

/// Bytes that each way carries.
const AMOUNT: usize = 1 << 30;
const GUEST_RAM: usize = 256 << 20;

/// A train whose payload is elsewhere each time.
fn moved(train: &Train, pieces: &mut [GuestPiece], turn: usize) {
    let len: usize = train.frame().guest.iter().map(|piece| piece.len).sum();
    let base = (turn * len) % (GUEST_RAM - len);
    let mut address = base as u64;
    for piece in pieces {
        piece.address = address;
        address += piece.len as u64;
    }
}

/// Sends so much by `write` and returns the rate in GB/s, and the share that has arrived at `socket`.
fn rate(socket: &UdpSocket, len: usize, mut write: impl FnMut(usize)) -> (f64, f64) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut got, mut buffer) = (0_usize, vec![0; 66_000]);
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            loop {
                match socket.recv(&mut buffer) {
                    Ok(len) => got += len,
                    Err(_) if ended.load(Ordering::Acquire) => return got,
                    Err(_) => {}
                }
            }
        });
        let used = || Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap());
        let started = used();
        let turns = AMOUNT / len;
        (0..turns).for_each(&mut write);
        let seconds = (used() - started).as_secs_f64();
        ended.store(true, Ordering::Release);
        let sent = (turns * len) as f64;
        (sent / seconds / 1e9, reader.join().unwrap() as f64 / sent)
    })
}

#[test]
#[ignore = "measures"]
fn speed_of_trains() {
    in_namespace(|| {
        let mut guest = Guest::new("guest0");
        guest.memory = GuestMemory::from_ranges(&[(GuestAddress(0), GUEST_RAM)]).unwrap();
        let noise: Vec<u8> =
            (0..1_u32 << 18).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        for at in (0..GUEST_RAM).step_by(noise.len()) {
            guest.memory.write_slice(&noise, GuestAddress(at as u64)).unwrap();
        }
        let memory = noise.repeat(GUEST_RAM / noise.len());
        ip("address add 10.0.0.9/24 dev guest0");
        let socket = server();
        setsockopt(&socket, RcvBufForce, &(256 << 20)).unwrap();
        setsockopt(&socket, UdpGroSegment, &true).unwrap();
        for (mtu, payload) in [(1500, 1448), (9000, 4096)] {
            ip(&format!("link set guest0 mtu {mtu}"));
            let route = route_to(resolve(&mut *guest.link(&LinkSpec::GuestTap), SERVER));
            for count in [65_507 / (payload + 24), 1] {
                let train = Train::new(&guest, &route, 0, count, payload, payload, 0);
                let len = train.frame().len() - HEADERS_LEN;
                let mut pieces = train.frame().guest.to_vec();
                let segment = train.frame().segment.filter(|_| count > 1);
                for _ in 0..2 {
                    let raw = rate(&socket, len, |turn| {
                        moved(&train, &mut pieces, turn);
                        raw_write(&guest.tap, &memory, &Frame { guest: &pieces, segment, ..train.frame() });
                    });
                    println!(
                        "MTU {mtu} x{count:2}  raw writev {:5.2} GB/s, {:5.1} % arrived",
                        raw.0,
                        raw.1 * 100.0
                    );
                    for spec in OF_GUEST {
                        let mut link = guest.link(&spec);
                        if segment.is_some() && link.offloads().segments == 0 {
                            continue;
                        }
                        let got = rate(&socket, len, |turn| {
                            moved(&train, &mut pieces, turn);
                            let frame = Frame { guest: &pieces, segment, ..train.frame() };
                            while link.send(&frame).unwrap() == Sent::Busy {}
                        });
                        println!(
                            "MTU {mtu} x{count:2}  {spec:10} {:5.2} GB/s, {:5.1} % arrived, {:.0} % of raw",
                            got.0,
                            got.1 * 100.0,
                            100.0 * got.0 / raw.0
                        );
                    }
                }
            }
        }
    });
}

/// The same write by hand, from memory of ours.
fn raw_write(tap: &Tap, memory: &[u8], frame: &Frame<'_>) {
    let (headers, messages) = frame.bytes.split_at(HEADERS_LEN);
    let [s0, s1] = frame.segment.unwrap_or(0).to_le_bytes();
    let gso = if frame.segment.is_some() { 5 } else { 0 };
    let header = [1, gso, 42, 0, s0, s1, 34, 0, 6, 0, 0, 0];
    let mut pieces = vec![IoSlice::new(&header), IoSlice::new(headers)];
    for (piece, message) in frame.guest.iter().zip(messages.chunks(24)) {
        pieces.push(IoSlice::new(message));
        pieces.push(IoSlice::new(&memory[usize::try_from(piece.address).unwrap()..][..piece.len]));
    }
    assert_eq!(writev(tap, &pieces), Ok(12 + frame.len()));
}
