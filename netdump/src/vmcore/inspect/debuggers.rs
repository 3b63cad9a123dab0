//! The commands that open a core in a debugger that knows FreeBSD's kernel cores.
//!
//! kgdb (of the port devel/gdb) takes the kernel and the core as its two arguments; lldb's FreeBSD-Kernel plugin takes
//! the core as it takes any, with `--core`, and needs the kernel as its target.

use std::path::{Path, PathBuf};

use crate::vmcore::unpack::Method;

/// Where a FreeBSD machine has its kernel.
const USUAL_KERNEL: &str = "/boot/kernel/kernel";
/// Formats that FreeBSD's own readers (libkvm, libfbsdvmcore) know.
const KERNELS_OWN: [&str; 2] = ["minidump", "full"];

/// One command a debugger, ready for a shell; none for a core that they do not read. A packed core they read unpacked
/// only, so the command for that comes first.
pub fn commands(format: &str, core: &Path, packed: Option<Method>, kernel: Option<&Path>) -> Vec<String> {
    if !KERNELS_OWN.contains(&format) {
        return Vec::new();
    }
    let kernel = kernel.map_or_else(|| USUAL_KERNEL.to_owned(), quoted);
    let plain = packed.map(|method| unpacked_name(core, method));
    let unpack = packed.zip(plain.as_deref()).map(|(method, plain)| {
        let program = match method {
            Method::Gzip => "gunzip",
            Method::Zstd => "zstd -d",
        };
        format!("{program} < {} > {}", quoted(core), quoted(plain))
    });
    let core = quoted(plain.as_deref().unwrap_or(core));
    let debuggers = [format!("kgdb {kernel} {core}"), format!("lldb --core {core} {kernel}")];
    unpack.into_iter().chain(debuggers).collect()
}

/// The core's name without the ending that its packing gave it.
fn unpacked_name(core: &Path, method: Method) -> PathBuf {
    if Method::by_name(core) == Some(method) {
        return core.with_extension("");
    }
    let mut name = core.as_os_str().to_owned();
    name.push(".unpacked");
    name.into()
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let is_word = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if path.starts_with('-') || path.is_empty() || !path.chars().all(is_word) {
        let inside = path.replace('\'', r"'\''");
        let before = if path.starts_with('-') { "./" } else { "" };
        return format!("'{before}{inside}'");
    }
    path.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let commands =
            |core: &str, kernel: Option<&str>| commands("full", core.as_ref(), None, kernel.map(Path::new));
        assert_eq!(
            commands("vmcore.0", None),
            ["kgdb /boot/kernel/kernel vmcore.0", "lldb --core vmcore.0 /boot/kernel/kernel"]
        );
        assert_eq!(commands("it's a core", Some("k"))[0], r"kgdb k 'it'\''s a core'");
        assert_eq!(commands("-x", Some("k"))[1], "lldb --core './-x' k");
    }

    #[test]
    fn packed_cores_are_unpacked_first() {
        let commands =
            |core: &str, method| commands("minidump", core.as_ref(), Some(method), Some(Path::new("k")));
        assert_eq!(
            commands("vmcore.h.0.gz", Method::Gzip)[..2],
            ["gunzip < vmcore.h.0.gz > vmcore.h.0", "kgdb k vmcore.h.0"]
        );
        assert_eq!(commands("a b", Method::Zstd)[0], "zstd -d < 'a b' > 'a b.unpacked'");
    }

    #[test]
    fn cores_that_debuggers_do_not_read_have_no_commands() {
        assert_eq!(commands("elf", Path::new("core"), None, None), [""; 0]);
    }
}
