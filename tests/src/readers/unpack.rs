//! Opens packed and encrypted cores with the programs that everybody has for it: gzip, zstd and openssl. The key block is
//! FreeBSD's `struct kerneldumpkey` (`sys/sys/kerneldump.h`): u8 cipher, 32 bytes of IV, u32 big-endian length of the
//! encrypted key, the key, zeros.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Unpacks a core that ends with `.gz` or `.zst` beside itself. Anything behind the compressed stream is an error.
pub fn unpack(core: &Path) -> Result<PathBuf> {
    let (program, options): (_, &[&str]) = match core.extension().and_then(OsStr::to_str) {
        // --quiet would hide the warning of bytes behind the stream.
        Some("gz") => ("gzip", &["-dc"]),
        Some("zst") => ("zstd", &["-dcq"]),
        other => bail!("{other:?} is the ending of no packed core"),
    };
    let plain = core.with_extension("plain");
    let output = Command::new(program)
        .args(options)
        .stdin(File::open(core)?)
        .stdout(File::create(&plain)?)
        .stderr(Stdio::piped())
        .spawn()?
        .wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && error.is_empty(), "{program}: {error}");
    Ok(plain)
}

/// Decrypts a core with the private key in a PEM file, into a file whose name ends as the core's does.
pub fn decrypt(core: &Path, key_file: &Path, private: &Path) -> Result<PathBuf> {
    let block = std::fs::read(key_file)?;
    ensure!(block.len().is_multiple_of(4096) && !block.is_empty(), "a key block of {} bytes", block.len());
    let wrapped_len = u32::from_be_bytes(block[33..37].try_into().expect("four bytes"));
    let (wrapped, padding) = block[37..].split_at(usize::try_from(wrapped_len)?);
    ensure!(padding.iter().all(|&byte| byte == 0), "something is behind the key");
    let private = private.to_str().context("the key's path is no text")?;
    let unwrap = ["pkeyutl", "-decrypt", "-inkey", private, "-pkeyopt", "rsa_padding_mode:oaep"];
    let material = openssl(&unwrap, wrapped)?;
    ensure!(material.len() == 64, "a key of {} bytes", material.len());

    let (cipher, iv) = match block[0] {
        1 => ("-aes-256-cbc", hex(&block[1..17])),
        // The original ChaCha20: a counter of 64 bits, which begins at 0, then the nonce.
        2 => ("-chacha20", format!("{}{}", "00".repeat(8), hex(&block[1..9]))),
        other => bail!("cipher {other}"),
    };
    let plain = core.with_file_name(match core.extension().and_then(OsStr::to_str) {
        Some(ending @ ("gz" | "zst")) => format!("decrypted.{ending}"),
        _ => "decrypted".to_owned(),
    });
    let key = hex(&material[..32]);
    std::fs::write(
        &plain,
        openssl(&["enc", "-d", cipher, "-nopad", "-K", &key, "-iv", &iv], &std::fs::read(core)?)?,
    )?;
    Ok(plain)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// openssl's output for this input.
fn openssl(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new("openssl");
    let piped = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let output = std::thread::scope(|scope| {
        // One that fails reads no further, and says why.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
