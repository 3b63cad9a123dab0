//! The `vmm` command: arguments, tracing, exit codes. The only place that prints an error with its causes.

mod bench;
mod cli;
mod demo;
mod inspect_image;
mod show;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The VMM failed.
const FAILED: u8 = 1;

/// What is told unless `VMM_LOG` says otherwise: not what the reader of FAT thinks of sound disks.
const LOG: &str = "info,fatfs=error";

fn main() -> ExitCode {
    // clap prints usage errors itself and exits with 2.
    let arguments = cli::Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(EnvFilter::try_from_env("VMM_LOG").unwrap_or_else(|_| EnvFilter::new(LOG)))
        .with_target(false)
        .init();
    let done = match arguments.command {
        cli::Command::Run(options) => cli::run(*options),
        cli::Command::InspectImage(options) => inspect_image::run(&options),
        cli::Command::Bench(bench) => bench::run(&bench),
        cli::Command::Demo(options) => demo::run(&options),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vmm: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
