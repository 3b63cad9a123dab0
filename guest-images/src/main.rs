//! Writes the guest images to a folder, or lists them.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgGroup, Parser};

/// Writes the built-in guest kernels as ELF files that `vmm run` boots.
#[derive(Debug, Parser)]
#[command(version, group = ArgGroup::new("what").required(true))]
struct Arguments {
    /// Folder to write the images to; made when it is not there.
    #[arg(group = "what")]
    folder: Option<PathBuf>,
    /// Only list the guests and what they do.
    #[arg(long, group = "what")]
    list: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let names = match &arguments.folder {
        Some(folder) => {
            guest_images::write_all(folder)?.iter().map(|file| file.display().to_string()).collect()
        }
        None => guest_images::every().map(|guest| guest.name.to_owned()).collect::<Vec<_>>(),
    };
    let width = names.iter().map(String::len).max().unwrap_or(0);
    for (name, guest) in names.iter().zip(guest_images::every()) {
        println!("{name:width$}  {}", guest.about);
    }
    Ok(())
}
