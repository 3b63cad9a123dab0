//! Encrypted dumps against openssl's command, which shares nothing with the product: what is encrypted here is
//! decrypted there, and the reverse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::needs::Need;
use harness::programs::{Ended, program, run};
use netdump::ekcd::{Cipher, DumpKey, PublicKey, SysRng};

use super::stored;

/// A folder with a key pair, and what is made with it.
struct Bench {
    folder: tempfile::TempDir,
}

/// How openssl names the paddings.
const PADDINGS: [&str; 2] = ["oaep", "pkcs1"];

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.make_keys("");
        bench
    }

    /// A pair of keys of its own.
    fn make_keys(&self, name: &str) {
        let [private, public] = ["private", "public"].map(|kind| self.text(&format!("{name}{kind}.pem")));
        openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &private], &[]);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public], &[]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn decrypt(&self, arguments: &[&str]) -> Ended {
        let key = self.text("private.pem");
        run(program("netdump"), &[&["decrypt", "--key", &key], arguments].concat())
    }

    /// The names of all files, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Encrypts `plain` as FreeBSD would, with nothing but openssl, into the files of a server.
    fn encrypt_by_openssl(&self, cipher: &str, padding: &str, plain: &[u8], core: &str, key: &str) {
        let material: Vec<u8> = openssl(&["rand", "64"], &[]);
        let iv = openssl(&["rand", "32"], &[]);
        let public = self.text("public.pem");
        let padding = format!("rsa_padding_mode:{padding}");
        let wrapped =
            openssl(&["pkeyutl", "-encrypt", "-pubin", "-inkey", &public, "-pkeyopt", &padding], &material);
        let mut block = vec![if cipher == "aes-cbc" { 1 } else { 2 }];
        block.extend_from_slice(&iv);
        block.extend_from_slice(&[0, 0, 1, 0]);
        block.extend_from_slice(&wrapped);
        block.resize(4096, 0);
        self.write(core, &openssl_stream("-e", cipher, &material, &iv, plain));
        self.write(key, &block);
    }
}

/// openssl's output for this input.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // One that wants no input has gone.
            let _ = std::io::Write::write_all(&mut stdin, input);
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn openssl_stream(direction: &str, cipher: &str, material: &[u8], iv: &[u8], input: &[u8]) -> Vec<u8> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (name, iv) = match cipher {
        "aes-cbc" => ("-aes-256-cbc", hex(&iv[..16])),
        // A counter of 64 bits, from 0, then the nonce.
        _ => ("-chacha20", format!("{}{}", "00".repeat(8), hex(&iv[..8]))),
    };
    openssl(&["enc", direction, name, "-nopad", "-K", &hex(&material[..32]), "-iv", &iv], input)
}

/// An ELF core of whole 4096-byte blocks, as every core is that is encrypted.
fn core_bytes() -> Vec<u8> {
    let (path, _directory) = stored();
    let mut bytes = fs::read(path).unwrap();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}

#[test]
fn openssl_decrypts_what_is_encrypted_here() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    let public = PublicKey::from_pem(&fs::read(bench.path("public.pem")).unwrap()).unwrap();
    for cipher in Cipher::ALL {
        let plain = core_bytes();
        let DumpKey { block, mut stream } = DumpKey::generate(&public, cipher, &mut SysRng).unwrap();
        let mut encrypted = plain.clone();
        for piece in encrypted.chunks_mut(4096) {
            stream.apply(piece).unwrap();
        }
        let (iv, wrapped) = (&block[1..33], &block[37..37 + 256]);
        assert_eq!(block[33..37], [0, 0, 1, 0]);
        let private = bench.text("private.pem");
        let unwrap = ["pkeyutl", "-decrypt", "-inkey", &private, "-pkeyopt", "rsa_padding_mode:oaep"];
        let material = openssl(&unwrap, wrapped);
        assert_eq!(material.len(), 64);
        assert!(openssl_stream("-d", cipher.name(), &material, iv, &encrypted) == plain, "{cipher}");
    }
}

#[test]
fn what_openssl_encrypted_is_decrypted() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let plain = core_bytes();
    for cipher in ["aes-cbc", "chacha20"] {
        for padding in PADDINGS {
            let bench = Bench::new();
            let core = bench.text("vmcore_encrypted.vm1.3");
            bench.encrypt_by_openssl(cipher, padding, &plain, "vmcore_encrypted.vm1.3", "key.vm1.3");
            let ended = bench.decrypt(&[&core]);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{cipher} {padding}");
            let output = bench.path("vmcore.vm1.3");
            assert_eq!(ended.stdout, format!("{}\n", output.display()));
            assert!(fs::read(&output).unwrap() == plain, "{cipher} {padding}");
            assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}

#[test]
fn both_forms_of_a_private_key_are_taken_and_one_with_a_pass_phrase_is_not() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    bench.encrypt_by_openssl("chacha20", "oaep", &core_bytes(), "core", "its.key");
    let (core, key_file, out) = (bench.text("core"), bench.text("its.key"), bench.text("plain"));
    let (private, other) = (bench.text("private.pem"), bench.text("other.pem"));
    let decrypt = || {
        let options = ["--key", &other, "--key-file", &key_file, "-o", &out, "--force", &core];
        run(program("netdump"), &[&["decrypt"], &options[..]].concat())
    };
    openssl(&["rsa", "-in", &private, "-traditional", "-out", &other], &[]);
    assert!(fs::read_to_string(&other).unwrap().contains("BEGIN RSA PRIVATE KEY"));
    assert_eq!(decrypt().code, Some(0));
    openssl(&["pkey", "-in", &private, "-aes256", "-passout", "pass:x", "-out", &other], &[]);
    let refused = decrypt();
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("pass phrase") && refused.stderr.contains("openssl pkey"), "{refused:?}");
}

#[test]
fn compressed_cores_keep_their_ending() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    let mut gzip = b"\x1f\x8b\x08\0".to_vec();
    gzip.extend_from_slice(&core_bytes()[..5001]);
    let core = bench.text("vmcore_encrypted.10.0.0.2.0.gz");
    bench.encrypt_by_openssl("chacha20", "oaep", &gzip, "vmcore_encrypted.10.0.0.2.0.gz", "key.10.0.0.2.0");
    assert_eq!(bench.decrypt(&[&core]).code, Some(0));
    assert!(fs::read(bench.path("vmcore.10.0.0.2.0.gz")).unwrap() == gzip);
}

#[test]
fn a_wrong_key_leaves_nothing_behind() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    let name = "vmcore_encrypted.vm1.0";
    for padding in PADDINGS {
        bench.encrypt_by_openssl("chacha20", padding, &core_bytes(), name, "key.vm1.0");
        // Another private key.
        bench.make_keys("other-");
        let before = bench.names();
        let (core, other) = (bench.text(name), bench.text("other-private.pem"));
        let ended = run(program("netdump"), &["decrypt", "--key", &other, &core]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.contains("does not fit"), "{ended:?}");
        // The right private key, another dump's key file.
        bench.encrypt_by_openssl("chacha20", padding, b"", "unused", "key.vm1.0");
        let ended = bench.decrypt(&[&core]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("this key does not fit"), "{ended:?}");
        fs::remove_file(bench.path("unused")).unwrap();
        assert_eq!(bench.names(), before);
    }
}

#[test]
fn nothing_is_overwritten_without_force() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    let (name, plain) = ("vmcore_encrypted.vm1.0", core_bytes());
    bench.encrypt_by_openssl("aes-cbc", "oaep", &plain, name, "key.vm1.0");
    bench.write("vmcore.vm1.0", b"precious");
    let core = bench.text(name);
    let refused = bench.decrypt(&[&core]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("exists") && refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(fs::read(bench.path("vmcore.vm1.0")).unwrap(), b"precious");
    assert_eq!(bench.decrypt(&["--force", &core]).code, Some(0));
    assert!(fs::read(bench.path("vmcore.vm1.0")).unwrap() == plain);
    let refused = bench.decrypt(&["--force", "-o", &core, &core]);
    assert!(refused.stderr.contains("is the encrypted core itself"), "{refused:?}");
}

#[test]
fn damaged_key_files_are_named() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    bench.encrypt_by_openssl("chacha20", "oaep", &core_bytes(), "vmcore_encrypted.vm1.0", "key.vm1.0");
    let (core, good) = (bench.text("vmcore_encrypted.vm1.0"), fs::read(bench.path("key.vm1.0")).unwrap());
    let mut flipped = good.clone();
    flipped[100] ^= 1;
    let mut other_cipher = good.clone();
    other_cipher[0] = 9;
    let cases: [(&[u8], &str); 6] = [
        (&good[..100], "truncated"),
        (&[], "truncated"),
        (&[&good[..], &[0; 70_000]].concat(), "too many"),
        (&flipped, "does not fit"),
        (&other_cipher, "cipher 9"),
        (&[&good[..33], &[0, 0, 2, 0], &[7; 512]].concat(), "4096"),
    ];
    for (key, words) in cases {
        bench.write("key.vm1.0", key);
        let ended = bench.decrypt(&[&core]);
        assert_eq!(ended.code, Some(1), "{words}: {ended:?}");
        assert!(ended.stderr.contains(words) && ended.stderr.contains("key.vm1.0"), "{words}: {ended:?}");
        assert!(!bench.path("vmcore.vm1.0").exists());
    }
    fs::remove_file(bench.path("key.vm1.0")).unwrap();
    assert!(bench.decrypt(&[&core]).stderr.contains("reading the key file"));
}

#[test]
fn cut_and_incomplete_cores_give_what_they_hold() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    let (name, plain) = ("vmcore_encrypted.vm1.0.incomplete", core_bytes());
    let core = bench.text(name);
    bench.encrypt_by_openssl("aes-cbc", "oaep", &plain, name, "key.vm1.0.incomplete");
    let encrypted = fs::read(&core).unwrap();
    bench.write(name, &encrypted[..20_005]);
    let ended = bench.decrypt(&[&core]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("the last 5 bytes are no whole block"), "{ended:?}");
    assert!(ended.stderr.contains("not all of the dump: its name says so"), "{ended:?}");
    assert!(fs::read(bench.path("vmcore.vm1.0.incomplete")).unwrap() == plain[..20_000]);
    bench.write("info.vm1.0", b"  Panic String: x\nDump incomplete: client timed out\n");
    let ended = bench.decrypt(&["--force", &core]);
    assert!(ended.stderr.contains("its server says: Dump incomplete: client timed out"), "{ended:?}");
}

#[test]
fn a_core_that_is_shorter_than_its_header_said_is_told() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    let (name, plain) = ("vmcore_encrypted.vm1.0", core_bytes());
    bench.encrypt_by_openssl("chacha20", "oaep", &plain, name, "key.vm1.0");
    let info = |length: usize| format!("  Dump Length: {length}B (0 MB)\nDump complete\n");
    bench.write("info.vm1.0", info(plain.len()).as_bytes());
    assert_eq!(bench.decrypt(&[&bench.text(name)]).code, Some(0));
    bench.write("info.vm1.0", info(plain.len() + 4096).as_bytes());
    let ended = bench.decrypt(&["--force", &bench.text(name)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let want = format!("its header announced {} bytes, and it has {}\n", plain.len() + 4096, plain.len());
    assert!(ended.stderr.ends_with(&want), "{ended:?}");
}

/// Messages of 1448 bytes begin and end anywhere, not with blocks of files.
#[test]
fn lost_messages_are_zeros_in_the_decrypted_core_and_no_noise() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    // Over the edge of what is decrypted at a time, too.
    let plain = core_bytes().repeat(30);
    assert!(plain.len() > 3 << 20);
    let name = "vmcore_encrypted.vm1.0.incomplete";
    let core = bench.text(name);
    let edge = (1 << 20) / 1448;
    let lost: Vec<_> =
        [5, 6, 9, edge, 2 * edge + 1].map(|message| message * 1448..(message + 1) * 1448).into();
    for cipher in ["chacha20", "aes-cbc"] {
        bench.encrypt_by_openssl(cipher, "oaep", &plain, name, "key.vm1.0.incomplete");
        let mut encrypted = fs::read(&core).unwrap();
        lost.iter().for_each(|lost| encrypted[lost.clone()].fill(0));
        bench.write(name, &encrypted);
        let ended = bench.decrypt(&["--force", &core]);
        assert_eq!(ended.code, Some(1));
        let decrypted = fs::read(bench.path("vmcore.vm1.0.incomplete")).unwrap();
        // Each byte is the core's, or zero where it or a neighbour of its block was lost.
        let margin = if cipher == "aes-cbc" { 32 } else { 1 };
        let is_near = |at: usize| lost.iter().any(|lost| lost.start < at + margin && at < lost.end + margin);
        let wrong =
            (0..plain.len()).find(|&at| decrypted[at] != plain[at] && !(decrypted[at] == 0 && is_near(at)));
        assert_eq!(wrong, None, "{cipher}");
        assert!(lost.iter().all(|lost| decrypted[lost.clone()].iter().all(|&byte| byte == 0)), "{cipher}");
        assert!(ended.stderr.contains(" bytes of the encrypted core never arrived"), "{ended:?}");
    }
}

#[test]
fn a_core_that_is_not_named_as_a_server_would_needs_its_names_told() {
    if !Need::Openssl.or_skip() {
        return;
    }
    let bench = Bench::new();
    bench.encrypt_by_openssl("chacha20", "oaep", &core_bytes(), "core", "its.key");
    let core = bench.text("core");
    assert!(bench.decrypt(&[&core]).stderr.contains("-o OUT must be given"));
    let out = bench.text("plain");
    assert!(bench.decrypt(&["-o", &out, &core]).stderr.contains("--key-file must be given"));
    assert_eq!(bench.decrypt(&["-o", &out, "--key-file", &bench.text("its.key"), &core]).code, Some(0));
    assert!(Path::new(&out).exists());
}
