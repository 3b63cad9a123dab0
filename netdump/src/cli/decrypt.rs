//! `netdump decrypt`.

use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use netdump::ekcd::{Decrypted, Decryption, PrivateKey};
use zeroize::Zeroizing;

use super::Exit;
use super::signals::Signals;

/// The largest RSA key takes 13 KiB of PEM.
const MAX_PEM: u64 = 64 << 10;

/// Decrypt an encrypted core with the private key of the pair whose public key it was made with.
///
/// A compressed core stays compressed, as `netdump inspect` reads it so.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 decrypted and whole; 1 nothing was decrypted, or parts are missing; \
                        2 wrong usage.")]
pub(super) struct Decrypt {
    /// The encrypted core, such as `vmcore_encrypted.HOST.N`.
    file: PathBuf,
    /// The private key: RSA in PEM, PKCS#8 or PKCS#1.
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// The dump's key file [default: `key.HOST.N` beside the core].
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Where to write [default: `vmcore.HOST.N` beside the core, with its `.gz` or `.zst`].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
}

impl Decrypt {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let private = private_key(&self.key)
            .with_context(|| format!("using the private key {}", self.key.display()))?;
        let signals = Signals::take().context("taking over SIGINT and SIGTERM")?;
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let mut progress = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            if signals.received().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let decryption = Decryption {
            core: &self.file,
            key_file: self.key_file.as_deref(),
            private: &private,
            output: self.output.as_deref(),
            replace: self.force,
        };
        let decrypted = decryption.run(&mut progress);
        bar.finish_and_clear();
        let decrypted = decrypted.with_context(|| format!("decrypting {}", self.file.display()))?;
        Ok(tell(&decrypted))
    }
}

/// Prints the core's path, for a program that goes on with it, and to standard error what a person should know.
fn tell(decrypted: &Decrypted) -> Exit {
    println!("{}", decrypted.output.display());
    if decrypted.missing > 0 {
        eprintln!(
            "{} bytes of the encrypted core never arrived, or cannot be decrypted without such; they are zeros",
            decrypted.missing
        );
    }
    if decrypted.left_out > 0 {
        eprintln!(
            "the last {} bytes are no whole block of {} and were left out: the encrypted core was cut",
            decrypted.left_out, decrypted.cipher
        );
    }
    if let Some(lack) = &decrypted.lack {
        eprintln!("the encrypted core is not all of the dump: {lack}");
    }
    Exit::when(decrypted.missing == 0 && decrypted.left_out == 0 && decrypted.lack.is_none())
}

fn private_key(path: &Path) -> anyhow::Result<PrivateKey> {
    // Room for all of it at once: a buffer that grows would leave copies of the key behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(64 << 10));
    std::fs::File::open(path)?.take(MAX_PEM).read_to_end(&mut pem)?;
    Ok(PrivateKey::from_pem(&pem)?)
}
