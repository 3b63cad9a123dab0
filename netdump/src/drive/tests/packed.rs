//! Cores that are packed on their way.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::ekcd::{Cipher, Direction, KeyBlock, PrivateKey, PublicKey};
use crate::stream::Encryption;
use crate::vmcore::kdh::Compression;

fn packing(compression: &str) -> Packing {
    Packing::new(Some(compression.parse().unwrap()), None).unwrap()
}

fn send_packed(
    image: &(dyn ReadAt + Sync),
    packing: &Packing,
    link: &mut dyn Link,
    control: &mut dyn FnMut(&Progress) -> ControlFlow<String>,
) -> DumpReport {
    let header = KernelDumpHeader { host_name: "vm1".into(), ..Default::default() };
    run(config(), &Dump { path: None, header: &header, image, packing }, link, control).unwrap()
}

impl Stored {
    /// The file as a server leaves it, cut where the header says, and the bytes behind that.
    fn file(&self) -> (Vec<u8>, Vec<u8>) {
        let mut file = Vec::new();
        for (offset, bytes) in &self.pieces {
            assert_eq!(*offset, file.len() as u64, "pieces follow one another");
            file.extend_from_slice(bytes);
        }
        let length = KernelDumpHeader::parse(&self.header).unwrap().dump_length;
        let padding = file.split_off(usize::try_from(length).unwrap());
        (file, padding)
    }
}

fn unpacked(file: &[u8], compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    match compression {
        Compression::None => bytes.extend_from_slice(file),
        Compression::Gzip => drop(flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap()),
        Compression::Zstd => drop(zstd::Decoder::new(file).unwrap().read_to_end(&mut bytes).unwrap()),
    }
    bytes
}

#[test]
fn a_compressed_core_arrives_whole_with_a_header_that_tells_its_lengths() {
    for (option, compression) in
        [("gzip", Compression::Gzip), ("gzip:1", Compression::Gzip), ("zstd:3", Compression::Zstd)]
    {
        let core = Core::new();
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let mut last = 0;
        let mut control = |progress: &Progress| {
            assert!((last..=progress.total).contains(&progress.done) && progress.total == 3_000_001);
            last = progress.done;
            ControlFlow::Continue(())
        };
        let report = send_packed(&core, &packing(option), &mut near, &mut control);
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Complete, None));
        assert_eq!(last, 3_000_001, "told when all was acknowledged");

        let stored = server.join().unwrap();
        let (file, padding) = stored.file();
        assert!(unpacked(&file, compression) == core.bytes);
        assert!(padding.len() < 4096 && (file.len() + padding.len()).is_multiple_of(4096));
        assert!(padding.iter().all(|&byte| byte == 0));
        let header = KernelDumpHeader::parse(&stored.header).unwrap();
        assert_eq!((header.compression, header.host_name.as_str()), (compression, "vm1"));
        assert_eq!((header.dump_length, header.dump_extent), (file.len() as u64, 3_000_001));

        assert_eq!(report.length, file.len() as u64);
        assert_eq!(report.digest, Some(Digest::of(&file)));
        assert_eq!((report.bytes_sent, report.bytes_untouched), ((file.len() + padding.len()) as u64, 0));
        let told = report.packing.unwrap();
        assert_eq!((told.unpacked, told.cipher), (3_000_001, None));
        assert!(told.compression.unwrap().starts_with(option));
        assert!(told.ratio.unwrap() > 10.0);
    }
}

#[test]
fn an_empty_core_is_a_stream_too() {
    for (option, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::Zstd)] {
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let report =
            send_packed(&Core { bytes: Vec::new(), hole: 0..0 }, &packing(option), &mut near, &mut go_on);
        assert_eq!(report.outcome, Outcome::Complete);
        let stored = server.join().unwrap();
        assert!(unpacked(&stored.file().0, compression).is_empty());
    }
}

#[test]
fn an_encrypted_core_is_read_with_the_private_key_and_the_key_block_that_came_first() {
    let public_key = PublicKey::from_pem(include_bytes!("../../ekcd/test_keys/public-2048.pem")).unwrap();
    let private = PrivateKey::from_pem(include_bytes!("../../ekcd/test_keys/private-2048.pem")).unwrap();
    let cases = [(None, Cipher::Aes256Cbc), (None, Cipher::ChaCha20), (Some("zstd"), Cipher::ChaCha20)];
    for (option, cipher) in cases {
        let core = Core::new();
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let compress = option.map(|option| option.parse().unwrap());
        let packing = Packing::new(compress, Some(Encryption { public_key: public_key.clone(), cipher }));
        let report = send_packed(&core, &packing.unwrap(), &mut near, &mut go_on);
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Complete, None));

        let stored = server.join().unwrap();
        let header = KernelDumpHeader::parse(&stored.header).unwrap();
        assert_eq!((header.key_size, stored.key.len(), header.dump_extent), (4096, 4096, 3_000_001));
        let block = KeyBlock::parse(&stored.key).unwrap();
        assert_eq!(block.cipher, cipher);
        let (material, _) = private.unwrap(&block.encrypted_key).unwrap();
        let (mut file, padding) = stored.file();
        assert_eq!(report.digest, Some(Digest::of(&file)));
        assert_eq!(report.packing.unwrap().cipher.as_deref(), Some(cipher.name()));
        let length = file.len();
        file.extend(padding);
        StreamCipher::new(cipher, &material, &block.iv, Direction::Decrypt).apply(&mut file).unwrap();
        match option {
            Some(_) => assert!(unpacked(&file[..length], Compression::Zstd) == core.bytes),
            None => assert!(length == 3_002_368 && file[..3_000_001] == core.bytes),
        }
    }
}

/// Noise, which no compressor makes smaller, and how far it was read.
struct Noise {
    length: u64,
    read_to: AtomicU64,
}

impl Noise {
    fn new(length: u64) -> Self {
        Self { length, read_to: AtomicU64::new(0) }
    }
}

impl ReadAt for Noise {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.read_to.fetch_max(offset + buf.len() as u64, Ordering::Relaxed);
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).wrapping_mul(at | 1).to_le_bytes()[2];
        }
        Ok(())
    }
}

#[test]
fn what_is_lost_is_sent_again_from_what_is_kept() {
    for option in ["gzip:1", "zstd:1"] {
        let core = Noise::new(9_000_000);
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let mut lost = std::collections::BTreeSet::new();
        let server = serve_some(far, move |message| {
            message.kind != MessageKind::Vmcore
                || message.sequence % 50 != 7
                || !lost.insert(message.sequence)
        });
        let packing = packing(option);
        let report = send_packed(&core, &packing, &mut near, &mut go_on);
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Complete, None));
        assert!(report.resends >= 100, "{} resends", report.resends);
        let (file, _) = server.join().unwrap().file();
        let mut whole = vec![0; 9_000_000];
        core.read_at(0, &mut whole).unwrap();
        assert!(unpacked(&file, packing.compressor().unwrap().method.into()) == whole);
        assert_eq!(report.digest, Some(Digest::of(&file)));
    }
}

#[test]
fn packing_waits_for_a_server_that_is_slow_and_ends_when_the_dump_is_stopped() {
    for option in ["gzip", "zstd"] {
        let core = Noise::new(1 << 40);
        let [mut near, _far] = pipe::pair(MACS, 1500, 256);
        let started = Instant::now();
        let mut control = |progress: &Progress| match progress.elapsed {
            elapsed if elapsed > Duration::from_millis(1500) => ControlFlow::Break("interrupted".to_owned()),
            _ => ControlFlow::Continue(()),
        };
        let report = send_packed(&core, &packing(option), &mut near, &mut control);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert_eq!(report.reason.as_deref(), Some("stopped while looking for the server: interrupted"));
        let read = core.read_to.load(Ordering::Relaxed);
        assert!(read < 64 << 20, "{read} bytes were read ahead");
        assert_eq!((report.digest, report.packing.unwrap().ratio), (None, None));
        assert_eq!(report.missing, [(0, report.length)]);
    }
}

#[test]
fn a_caller_that_panics_does_not_leave_the_packing_threads_waiting() {
    for option in ["gzip:1", "zstd:1"] {
        let core = Noise::new(1 << 40);
        let [mut near, _far] = pipe::pair(MACS, 1500, 256);
        let mut control = |progress: &Progress| match progress.elapsed {
            elapsed if elapsed > Duration::from_millis(300) => {
                panic!("a bug of a caller (this test wants it)")
            }
            _ => ControlFlow::Continue(()),
        };
        let sending =
            std::panic::AssertUnwindSafe(|| send_packed(&core, &packing(option), &mut near, &mut control));
        assert!(std::panic::catch_unwind(sending).is_err());
    }
}

#[test]
fn a_core_that_cannot_be_read_or_packed_ends_the_dump_with_its_reason() {
    type Fails = fn() -> ReadError;
    /// Goes wrong behind its first MiB.
    struct Bad(Fails);
    impl ReadAt for Bad {
        fn length(&self) -> u64 {
            10 << 20
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            buf.fill(1);
            if offset < 1 << 20 { Ok(()) } else { Err((self.0)()) }
        }
    }
    let unreadable = || ReadError::OutOfRange { offset: 1, len: 2, total: 3 };
    let panics = || panic!("a bug in a reader (this test wants it)");
    let wants: [(Fails, &str); 2] = [
        (unreadable, "the core cannot be read: reading 2 bytes at offset 0x1 of a core of 3 bytes"),
        (panics, "the core cannot be packed: a thread that packs the core has panicked"),
    ];
    for option in ["gzip", "zstd"] {
        for (fails, want) in wants {
            let [mut near, far] = pipe::pair(MACS, 1500, 256);
            serve(far);
            let report = send_packed(&Bad(fails), &packing(option), &mut near, &mut go_on);
            assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Failed, Some(want)));
            assert_eq!(report.digest, None);
        }
    }
}
