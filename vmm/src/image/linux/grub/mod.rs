//! GRUB 2's configuration as distributions generate it (grub-mkconfig, GNU GRUB 2.06 and 2.12): run as GRUB runs it, up to
//! what its default entry would load.
//!
//! Everything has a bound: commands run, nesting, the length of values, files read.

mod commands;
mod condition;
mod evaluate;
mod syntax;

use std::fmt;

pub use evaluate::{Environment, GrubError, Loaded, MenuEntry, Run};
pub use syntax::SyntaxError;

/// What a configuration can ask of the disk.
pub trait Devices: fmt::Debug {
    /// A small file of a device; `None` if it is not there or cannot be read. Devices are named as [`Devices::search`]
    /// names them, or as GRUB does: `hd0,gpt2`.
    fn read(&self, device: &str, path: &str) -> Option<Vec<u8>>;

    /// Whether there is a file, without reading it.
    fn has(&self, device: &str, path: &str) -> bool;

    /// The device whose file system is this one.
    fn search(&self, by: SearchBy<'_>) -> Option<String>;
}

/// How a device is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchBy<'a> {
    /// By its file system's UUID.
    Uuid(&'a str),
    /// By its file system's name.
    Label(&'a str),
    /// By a file that it has.
    File(&'a str),
}

/// The variables of an environment block (`grubenv`): `name=value` lines behind a comment, filled up with `#`.
pub fn environment_block(text: &str) -> Vec<(String, String)> {
    // GNU GRUB `grub-core/lib/envblk.c`: a backslash escapes itself and a newline.
    let mut lines = vec![String::new()];
    let mut characters = text.chars();
    while let Some(next) = characters.next() {
        match next {
            '\\' => lines.last_mut().into_iter().for_each(|line| line.extend(characters.next())),
            '\n' => lines.push(String::new()),
            _ => lines.last_mut().into_iter().for_each(|line| line.push(next)),
        }
    }
    let pairs = lines.iter().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.take(MOST_VARIABLES).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Most variables at a time.
const MOST_VARIABLES: usize = 1024;

#[cfg(test)]
mod tests;
