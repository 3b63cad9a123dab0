//! The `netdump` command: a receiver of dumps, a sender of files, and tools that look at cores.

mod cli;

use std::io;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    cli::log_to_stderr(&arguments);
    match cli::run(arguments) {
        Ok(exit) => exit.into(),
        Err(error) if reader_is_gone(&error) => cli::Exit::Failed.into(),
        Err(error) => {
            eprintln!("netdump: {error:#}");
            cli::Exit::Failed.into()
        }
    }
}

/// Whether whoever reads our output has seen enough, as in `netdump inspect CORE | head`: nobody wants to hear of that.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    let text = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let json = || error.downcast_ref::<serde_json::Error>()?.io_error_kind();
    text.or_else(json) == Some(io::ErrorKind::BrokenPipe)
}
