//! The `netdump` command: a receiver of dumps, a sender of files, and tools that look at cores.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    cli::log_to_stderr(&arguments);
    match cli::run(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("netdump: {error:#}");
            cli::Exit::Failed.into()
        }
    }
}
