//! Encrypted and compressed dumps, from a client's messages to a core that is read.

use std::io::Write;

use netdump::ekcd::{Cipher, DumpKey, PublicKey, SysRng};
use netdump::vmcore::kdh::Compression;

use super::*;

const PUBLIC: &[u8] = include_bytes!("../../src/ekcd/test_keys/public-2048.pem");
const PRIVATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ekcd/test_keys/private-2048.pem");
/// Payload of a message at an MTU of 1500.
const PAYLOAD: usize = 1448;

/// Sends an object in messages, one of them twice.
fn deliver_all(peer: &Peer, kind: MessageKind, first: u32, bytes: &[u8]) {
    for (sequence, (index, piece)) in (first..).zip(bytes.chunks(PAYLOAD).enumerate()) {
        peer.deliver(kind, sequence, (index * PAYLOAD) as u64, piece);
        if index == 1 {
            peer.deliver(kind, sequence, PAYLOAD as u64, piece);
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("room in memory")
}

/// The names of a server's files, by the index that the core's path tells.
fn beside(core: &Path, name: &str) -> PathBuf {
    let host = core.file_name().and_then(|core| core.to_str()?.split_once('.')).expect("KIND.HOST.N").1;
    core.with_file_name(format!("{name}.{}", host.trim_end_matches(".gz")))
}

#[test]
fn compressed_and_encrypted_dump_is_received_decrypted_and_read() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &["--once"]);
    let core = small_core();
    let packed = gzip(&core);
    let public = PublicKey::from_pem(PUBLIC).unwrap();
    let mut key = DumpKey::generate(&public, Cipher::ChaCha20, &mut SysRng).unwrap();
    let mut stream = packed.clone();
    stream.resize(packed.len().next_multiple_of(4096), 0);
    key.stream.apply(&mut stream).unwrap();
    let header = KernelDumpHeader {
        dump_length: packed.len() as u64,
        key_size: u32::try_from(key.block.len()).unwrap(),
        compression: Compression::Gzip,
        dump_extent: core.len() as u64,
        ..KernelDumpHeader::default()
    };

    let peer = Peer::herald(server.address, b"");
    deliver_all(&peer, MessageKind::EkcdKey, 2, &key.block);
    deliver_all(&peer, MessageKind::Vmcore, 100, &stream);
    peer.deliver(MessageKind::Kdh, 200, 0, &header.to_bytes());
    peer.deliver(MessageKind::Finished, 201, 0, &[]);
    let ended = server.event("ended");
    let (stored, key_file) = (path_of(&ended, "core"), path_of(&ended, "key"));
    assert_eq!(server.exit_code(), Some(0));

    let name = stored.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("vmcore_encrypted.") && name.ends_with(".0.gz"), "{name}");
    assert!(fs::read(&stored).unwrap() == stream[..packed.len()], "cut to its length");
    assert_eq!(key_file, beside(&stored, "key"));
    assert!(fs::read(&key_file).unwrap() == key.block);
    assert_eq!(fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o400);
    let info = text(beside(&stored, "info"));
    let dump_extent = format!("  Dump Extent: {}B, its length unpacked\n", core.len());
    assert!(info.contains("  Compression: gzip\n") && info.contains(&dump_extent), "{info}");

    refuses(netdump().arg("inspect").arg(&stored), 1, &["encrypted", "netdump decrypt --key"]);
    let link = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let link = link.into_iter().find(|path| path.ends_with(beside(&stored, "vmcore").with_extension("last")));
    let decrypted = netdump().args(["decrypt", "--key", PRIVATE]).arg(link.unwrap()).output().unwrap();
    assert_eq!(decrypted.status.code(), Some(0), "{}", String::from_utf8_lossy(&decrypted.stderr));
    let plain = PathBuf::from(String::from_utf8(decrypted.stdout).unwrap().trim_end());
    assert_eq!(plain.file_name(), beside(&stored, "vmcore").with_added_extension("gz").file_name());
    assert!(fs::read(&plain).unwrap() == packed);
    let verified = netdump().arg("verify").arg(&plain).output().unwrap();
    let verdict = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(0), "{verdict}");
    assert!(verdict.contains("gzip of") && verdict.contains("the server has the whole dump"), "{verdict}");
    let inspect = netdump().args(["inspect", "--json"]).arg(&plain).output().unwrap();
    let inspection: Value = serde_json::from_slice(&inspect.stdout).unwrap();
    assert_eq!(inspection["length"], core.len() as u64);
    assert_eq!(inspection["packed"]["method"], "gzip");
}

#[test]
fn finished_is_not_acknowledged_when_a_compressed_dump_has_a_gap() {
    let dir = directory();
    let mut server = Server::start(dir.path(), &["--once"]);
    let peer = Peer::herald(server.address, b"");
    peer.deliver(MessageKind::Vmcore, 2, 0, &[1; 1000]);
    peer.deliver(MessageKind::Vmcore, 3, 2000, &[1; 96]);
    let header =
        KernelDumpHeader { dump_length: 2090, compression: Compression::Zstd, ..KernelDumpHeader::default() };
    peer.deliver(MessageKind::Kdh, 4, 0, &header.to_bytes());
    peer.send(MessageKind::Finished, 5, 0, &[]);
    let ended = server.event("ended");
    assert!(peer.is_silent());
    assert_eq!(server.exit_code(), Some(1));
    let core = path_of(&ended, "core");
    assert!(core.to_str().unwrap().ends_with(".0.incomplete"), "{}", core.display());
    let info = text(
        core.with_file_name(core.file_name().unwrap().to_str().unwrap().replace("vmcore", "info"))
            .with_extension(""),
    );
    assert!(info.contains("  Missing: 1 ranges, 1000B\n    0x3e8-0x7d0\n"), "{info}");
    let last =
        "Dump incomplete: client finished, but 1000B of the core never came, the first at 0x3e8-0x7d0\n";
    assert!(info.ends_with(last), "{info}");
}
