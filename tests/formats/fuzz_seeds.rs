//! The seeds of the fuzz targets: made here from what the tests use, so that they stay what the targets know. (Those of
//! kernels and their modules are made beside the loader's tests.)
//! `UPDATE_SEEDS=1 cargo test -p harness --test formats fuzz_seeds` writes them.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use harness::fake_guest::FakeGuest;
use harness::fake_kernel::FakeKernel;
use harness::fake_linux;
use netdump::link::pcap::PcapFile;
use netdump::vmcore::kdh::Compression;
use netdump::vmcore::{Activity, KernelDumpHeader, StoppedGuest};
use netdump::wire::arp::{ArpOperation, ArpPacket};
use netdump::wire::ethernet::{EtherType, EthernetHeader};
use netdump::wire::{Ack, CLIENT_PORT, MacAddr, Message, MessageKind, Route, SERVER_PORT};

use super::freebsd_guest::{FreeBsd, kernel_behind};
use super::{all_bytes, facts, guest, notes, plan};

type Seed = (&'static str, Vec<u8>);

#[test]
fn seeds_are_what_the_tests_use() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, bytes) in [cores(), headers(), wire(), scripts(), environments()].concat() {
        let path = root.join(path);
        if std::env::var_os("UPDATE_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).is_ok_and(|there| there == bytes), "{} is another", path.display());
    }
}

fn cores() -> Vec<Seed> {
    let mut freebsd =
        FreeBsd::new(&[(7, "sh", &[(100_007, "sh", 0, 1)]), (1, "init", &[(100_001, "init", -1, 2)])]);
    freebsd.dumped_by(100_007, 3);
    let mut minidump = freebsd.minidump();
    minidump.pages.retain(|_, page| page.iter().any(|&byte| byte != 0));
    minidump.messages = b"FreeBSD 14.1-RELEASE #0\npanic: here\n".to_vec();
    let old = harness::fake_minidump::FakeMinidump { version: 2, ..minidump.clone() };
    let mut elf = all_bytes(&plan(&guest(), &notes()));
    elf.truncate(0x4000);
    let mut full = freebsd.full_dump();
    full.truncate(0x2000);
    let small = FakeGuest::new(5).untouched_ram(0, 0x2_0000).touched(0x4000..0x6000).cpu(Activity::Running);
    vec![
        ("netdump/fuzz/kernel.elf", kernel_behind(FakeKernel::default()).image()),
        ("netdump/fuzz/corpus/core_open/minidump", minidump.image()),
        ("netdump/fuzz/corpus/core_open/minidump-2", old.image()),
        ("netdump/fuzz/corpus/core_open/gzip", gzip(&elf)),
        ("netdump/fuzz/corpus/core_open/zstd", zstd(&elf)),
        ("netdump/fuzz/corpus/core_open/elf", elf),
        ("netdump/fuzz/corpus/core_open/kdump", kdump(&small, "kdump")),
        ("netdump/fuzz/corpus/core_open/kdump-zstd", kdump(&small, "kdump-zstd")),
        ("netdump/fuzz/corpus/core_open/kdump-linux", kdump(&fake_linux::bare_guest(), "kdump")),
        ("netdump/fuzz/corpus/core_open/full", full),
        ("netdump/fuzz/corpus/minidump_header/header", minidump.image()[..72].to_vec()),
    ]
}

/// The few pages that are compressed are what the locked versions of zlib and zstd make of them.
fn kdump(guest: &FakeGuest, format: &str) -> Vec<u8> {
    let (notes, format) = (notes(), netdump::vmcore::format(format).unwrap());
    all_bytes(&format.plan(&StoppedGuest { memory: guest, symbols: None, notes: &notes }).unwrap().image)
}

/// A member that is not compressed, as what a compressor makes is of its version.
fn gzip(core: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(core).unwrap();
    encoder.finish().unwrap()
}

/// The same, a frame of one raw block (RFC 8878): one segment, its length in four bytes.
fn zstd(core: &[u8]) -> Vec<u8> {
    let len = u32::try_from(core.len()).unwrap();
    let block = (len << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &len.to_le_bytes(), &block[..3], core].concat()
}

fn headers() -> Vec<Seed> {
    let plain = KernelDumpHeader { architecture: "amd64".into(), dump_length: 4096, ..Default::default() };
    let packed = KernelDumpHeader {
        compression: Compression::Zstd,
        key_size: 512,
        block_size: 4096,
        host_name: "guest".into(),
        version_string: "FreeBSD 14.1-RELEASE\n".into(),
        panic_string: "panic: here".into(),
        ..plain.clone()
    };
    vec![
        ("netdump/fuzz/corpus/kdh/header", plain.to_bytes().to_vec()),
        ("netdump/fuzz/corpus/kdh/packed", packed.to_bytes().to_vec()),
    ]
}

/// Messages, frames, and captures of them.
fn wire() -> Vec<Seed> {
    let message = |kind, payload| {
        let mut bytes = Vec::new();
        Message { kind, sequence: 1, offset: 0, payload, aux: 0 }.emit(&mut bytes);
        bytes
    };
    let herald = message(MessageKind::Herald, b"vm/1\0");
    let there = Route {
        source_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), CLIENT_PORT),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), SERVER_PORT),
    };
    let mut frames = vec![arp_request(&there), Vec::new(), Vec::new()];
    there.emit(&herald, &mut frames[1]);
    there.reversed().emit(&Ack(1).to_bytes(), &mut frames[2]);
    let mut capture = Vec::new();
    let mut file = PcapFile::new(&mut capture).unwrap();
    for frame in &frames {
        file.record(Duration::from_millis(1), frame).unwrap();
    }
    let mut big_endian = capture[..24 + 16 + frames[0].len()].to_vec();
    for word in [0, 20, 24, 28, 32, 36] {
        big_endian[word..word + 4].reverse();
    }
    vec![
        ("netdump/fuzz/corpus/message/herald", herald),
        ("netdump/fuzz/corpus/message/data", message(MessageKind::Vmcore, &[0xa5; 64])),
        ("netdump/fuzz/corpus/message/ack", Ack(1).to_bytes().to_vec()),
        ("netdump/fuzz/corpus/message/arp", frames[0].clone()),
        ("netdump/fuzz/corpus/message/datagram", frames[2].clone()),
        ("netdump/fuzz/corpus/message/path", b"vm/./1".to_vec()),
        ("netdump/fuzz/corpus/pcap/capture", capture),
        ("netdump/fuzz/corpus/pcap/big-endian", big_endian),
    ]
}

fn arp_request(route: &Route) -> Vec<u8> {
    let ethernet = EthernetHeader {
        destination: MacAddr::BROADCAST,
        source: route.source_mac,
        ethertype: EtherType::ARP,
    };
    let mut frame = ethernet.to_bytes().to_vec();
    ArpPacket {
        operation: ArpOperation::Request,
        sender_mac: route.source_mac,
        sender_ip: *route.source.ip(),
        target_mac: MacAddr::ZERO,
        target_ip: *route.destination.ip(),
    }
    .emit(&mut frame);
    frame
}

/// What the targets `client` and `receiver` read: their files say what each byte means.
fn scripts() -> Vec<Seed> {
    const SETTLE: &[u8] = &[7];
    let herald = |peer: u8, number: u8| [0, 0, peer, 1, number, 0, 1, 0].to_vec();
    let data = |session: u8, peer: u8, number: u8, page: u8| {
        [0, 2 * session + 1, peer, 0, number, 0, 4, 0, number, page].to_vec()
    };
    let header = |session: u8, peer: u8, number: u8, kib: u8| {
        [0, 2 * session + 1, peer, 2, number, 0, 0, kib * 64, 0, 0, 0, 0, 0, 0, 0].to_vec()
    };
    let finished = |session: u8, peer: u8, number: u8| [0, 2 * session + 1, peer, 4, number, 0, 0].to_vec();
    let dump = |session: u8, peer: u8| {
        [
            herald(peer, 1),
            SETTLE.to_vec(),
            data(session, peer, 2, 0),
            data(session, peer, 3, 1),
            SETTLE.to_vec(),
            header(session, peer, 4, 2),
            SETTLE.to_vec(),
            finished(session, peer, 5),
        ]
        .concat()
    };
    let two = [dump(0, 0), SETTLE.to_vec(), dump(1, 2)].concat();

    const ARP_ANSWER: &[u8] = &[0, 0, 0];
    const ACK_ALL: &[u8] = &[2, 255];
    const TRAIN: &[u8] = &[4, 255, 0, 0];
    // Ends with an honest server; no hole, MTU 1500, 3000 and 2000 bytes.
    let plain = |flags: u8, offloads: u8, segments: u8| {
        [&[0, flags, 0, offloads, segments, 0, 0, 0, 11, 184, 7, 208], ARP_ANSWER, ACK_ALL].concat()
    };
    let growing = [plain(2, 0, 0), [11, 8, 0].to_vec(), ACK_ALL.to_vec(), [12].to_vec()].concat();
    let mut silent = plain(0, 1, 0);
    silent[0] = 1;
    vec![
        ("netdump/fuzz/corpus/receiver/dump", dump(0, 0)),
        ("netdump/fuzz/corpus/receiver/two", two),
        ("netdump/fuzz/corpus/client/plain", plain(0, 0, 0)),
        ("netdump/fuzz/corpus/client/trains", [&plain(12, 6, 44), TRAIN, TRAIN].concat()),
        ("netdump/fuzz/corpus/client/hole", plain(1, 0, 0)),
        ("netdump/fuzz/corpus/client/growing", growing),
        ("netdump/fuzz/corpus/client/silent", silent),
    ]
}

/// Flags, no mask, and strings.
fn environments() -> Vec<Seed> {
    let seed = |flags: u8, strings: &[u8]| [&[flags][..], &[0; 40], strings].concat();
    let wishes = b"net.dump.server=10.0.0.9\0net.dump.client=10.0.0.5\0net.dump.gateway=10.0.0.1\0\
        net.dump.path=tenants/a\0net.dump.iface=vtnet0\0kern.kerneldump_gzlevel=6\0";
    vec![
        ("vmm/fuzz/environment.elf", facts::kernel().image()),
        ("vmm/fuzz/corpus/environment/dynamic", seed(1, wishes)),
        (
            "vmm/fuzz/corpus/environment/static",
            seed(0, b"net.netdump.path=../up\0no equals sign\0a=b\0\0c=d\0"),
        ),
    ]
}
