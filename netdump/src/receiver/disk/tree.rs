//! What lies in a store's directory and in those below it that clients may name.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstatat};

use super::directory::Directory;

/// How deep directories are looked into, and how many of them: a store is not the root of a file system.
const MAX_DEPTH: usize = 16;
const MAX_DIRECTORIES: usize = 4096;
/// Beginnings of the names of a store's files.
const KINDS: [&str; 6] = ["vmcore", "vmcore_encrypted", "key", "info", "manifest", "journal"];

/// Bytes that a store's files take on the file system, holes not counted.
pub(super) fn used(root: &Directory) -> u64 {
    let mut used: u64 = 0;
    each_file(root, &mut |directory, name| {
        if name.split_once('.').is_some_and(|(kind, _)| KINDS.contains(&kind)) {
            used = used.saturating_add(blocks(directory, name));
        }
    });
    used
}

/// The journals there are: the directory of each, and its name.
pub(super) fn journals(root: &Directory) -> Vec<(Directory, String)> {
    let mut journals = Vec::new();
    each_file(root, &mut |directory, name| {
        if name.starts_with("journal.")
            && let Ok(directory) = directory.again()
        {
            journals.push((directory, name.to_owned()));
        }
    });
    journals
}

/// Calls `visit` with each regular file in `root` and below, links not followed. What cannot be read is left out.
fn each_file(root: &Directory, visit: &mut dyn FnMut(&Directory, &str)) {
    let mut waiting: Vec<(PathBuf, usize)> = vec![(PathBuf::new(), 0)];
    let mut looked_into = 0;
    while let Some((path, depth)) = waiting.pop() {
        looked_into += 1;
        let opened = if path.as_os_str().is_empty() { root.again() } else { root.open_inside(&path) };
        let listed = opened.and_then(|directory| list(&directory).map(|entries| (directory, entries)));
        let Ok((directory, entries)) = listed else { continue };
        for (name, kind) in entries {
            match kind {
                Type::File => visit(&directory, &name),
                Type::Directory if depth < MAX_DEPTH && looked_into + waiting.len() < MAX_DIRECTORIES => {
                    waiting.push((path.join(&name), depth + 1));
                }
                _ => {}
            }
        }
    }
}

/// The names in a directory that are text, as all of a store's are.
fn list(directory: &Directory) -> io::Result<Vec<(String, Type)>> {
    // Another open of the directory: its handles share the place where reading goes on.
    let mut dir =
        Dir::openat(directory.as_fd(), ".", super::directory::DIRECTORY, nix::sys::stat::Mode::empty())?;
    let mut entries = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        if let Some(kind) = entry.file_type().or_else(|| kind_of(directory, name)) {
            entries.push((name.to_owned(), kind));
        }
    }
    Ok(entries)
}

/// For file systems whose directories do not tell what an entry is.
fn kind_of(directory: &Directory, name: &str) -> Option<Type> {
    let stat = fstatat(directory.as_fd(), Path::new(name), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Some(Type::File),
        SFlag::S_IFDIR => Some(Type::Directory),
        _ => None,
    }
}

fn blocks(directory: &Directory, name: &str) -> u64 {
    let stat = fstatat(directory.as_fd(), Path::new(name), AtFlags::AT_SYMLINK_NOFOLLOW);
    // Of 512 bytes each, whatever the file system's own blocks are.
    stat.ok().and_then(|stat| u64::try_from(stat.st_blocks).ok()).unwrap_or(0).saturating_mul(512)
}
