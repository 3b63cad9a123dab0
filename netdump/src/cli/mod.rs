//! The command line: what there is to say, and what the exit code means.

mod convert;
mod decrypt;
mod inspect;
mod send;
mod serve;
mod signals;
mod torture;
mod verify;

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use netdump::wire::SERVER_PORT;
use tracing_subscriber::EnvFilter;

/// Receives kernel dumps over FreeBSD's netdump protocol, sends them, and looks at them.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 done and whole, 1 failed or not whole, 2 wrong usage.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Send(send::Send),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Decrypt(decrypt::Decrypt),
    Torture(torture::Torture),
}

/// How the program ends. Wrong usage is code 2, by clap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, and what was to be received, sent or checked is whole.
    Done,
    /// Not so.
    Failed,
}

impl Exit {
    fn when(good: bool) -> Self {
        if good { Self::Done } else { Self::Failed }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    match arguments.command {
        Command::Serve(serve) => serve.run(),
        Command::Send(send) => send.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Verify(verify) => verify.run(),
        Command::Decrypt(decrypt) => decrypt.run(),
        Command::Torture(torture) => torture.run(),
    }
}

/// What the library tells goes to standard error; RUST_LOG says how much of it. `send` has a voice of its own.
pub(crate) fn log_to_stderr(arguments: &Arguments) {
    let usual = if matches!(arguments.command, Command::Serve(_)) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// `IP` or `IP:PORT`; without a port it is netdump's.
fn socket_address(text: &str) -> Result<SocketAddrV4, String> {
    let address = text.parse::<Ipv4Addr>().map(|ip| SocketAddrV4::new(ip, SERVER_PORT));
    address
        .or_else(|_| text.parse())
        .map_err(|_| "an IPv4 address is wanted, such as 10.0.0.9 or 10.0.0.9:20023".to_owned())
}

/// Bytes as a number, with K, M, G or T behind it for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(number.len()..).unwrap_or_default() {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => 0,
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|_| unit > 0);
    bytes.ok_or_else(|| "a number of bytes is wanted, or one with K, M, G or T behind it".to_owned())
}

/// Bytes as a person reads them, in MB or B.
fn megabytes(bytes: u64) -> String {
    if bytes < 1_000_000 { format!("{bytes} B") } else { format!("{:.1} MB", decimal(bytes) / 1e6) }
}

/// Megabytes per second; of an instant, 0.
fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { decimal(bytes) / 1e6 / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn decimal(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(["0", "7", "2K", "500G", "1T"].map(size), [0, 7, 2048, 500 << 30, 1 << 40].map(Ok));
        for text in ["", "G", "-1", "1X", "1GB", "17000000T", "1 G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_may_be_left_out() {
        assert_eq!(socket_address("10.0.0.9"), Ok("10.0.0.9:20023".parse().unwrap()));
        assert_eq!(socket_address("10.0.0.9:7"), Ok("10.0.0.9:7".parse().unwrap()));
        for text in ["", "localhost", "10.0.0", "10.0.0.9:", "[::1]:7", "10.0.0.9:99999"] {
            assert!(socket_address(text).is_err(), "{text}");
        }
    }
}
