//! The commands that open a core in a debugger that knows kernel cores.
//!
//! FreeBSD's: kgdb (of the port devel/gdb) takes the kernel and the core as its two arguments; lldb's FreeBSD-Kernel plugin takes
//! the core as it takes any, with `--core`, and needs the kernel as its target.
//!
//! Linux's: crash takes the kernel with its debug information and the core; drgn takes the core and finds the debug
//! information where distributions install it, unless `-s` names it. An `@` in an argument makes crash read what
//! follows it as the address of a RAM dump (its `ramdump.c`), so a file with one in its path is given to it opened.

use std::path::{Path, PathBuf};

use crate::vmcore::unpack::Method;

/// Where a FreeBSD machine has its kernel.
const USUAL_KERNEL: &str = "/boot/kernel/kernel";
/// Formats that FreeBSD's own readers (libkvm, libfbsdvmcore) know.
const KERNELS_OWN: [&str; 2] = ["minidump", "full"];
/// Where distributions install a Linux kernel with its debug information (Debian's package ends in "-dbg").
const USUAL_VMLINUX: &str = "/usr/lib/debug/boot/vmlinux-";
/// The format that Linux's readers do not know: they need registers and VMCOREINFO.
const RAW: &str = "raw";

/// One command a debugger, ready for a shell; none for a core that they do not read. A packed core they read unpacked
/// only, so the command for that comes first. `linux` is the release of the Linux kernel whose core it is, if it is one.
pub fn commands(
    format: &str,
    core: &Path,
    packed: Option<Method>,
    kernel: Option<&Path>,
    linux: Option<&str>,
) -> Vec<String> {
    let is_read = if linux.is_some() { format != RAW } else { KERNELS_OWN.contains(&format) };
    if !is_read {
        return Vec::new();
    }
    let plain = packed.map(|method| unpacked_name(core, method));
    let unpack = packed.zip(plain.as_deref()).map(|(method, plain)| {
        let program = match method {
            Method::Gzip => "gunzip",
            Method::Zstd => "zstd -d",
        };
        format!("{program} < {} > {}", quoted(core), quoted(plain))
    });
    let core = quoted(plain.as_deref().unwrap_or(core));
    let debuggers = match linux {
        Some(release) => linux_commands(&core, kernel, release),
        None => {
            let kernel = kernel.map_or_else(|| USUAL_KERNEL.to_owned(), quoted);
            [format!("kgdb {kernel} {core}"), format!("lldb --core {core} {kernel}")]
        }
    };
    unpack.into_iter().chain(debuggers).collect()
}

fn linux_commands(core: &str, kernel: Option<&Path>, release: &str) -> [String; 2] {
    let usual = || quoted(Path::new(&format!("{USUAL_VMLINUX}{release}")));
    let symbols = kernel.map(|kernel| format!(" -s {}", quoted(kernel))).unwrap_or_default();
    [crash_command(&kernel.map_or_else(usual, quoted), core), format!("drgn -c {core}{symbols}")]
}

/// Both paths are quoted.
fn crash_command(kernel: &str, core: &str) -> String {
    let mut opened = String::new();
    let mut argument = |path: &str, number: u8| {
        if !path.contains('@') {
            return path.to_owned();
        }
        opened.push_str(&format!(" {number}<{path}"));
        format!("/dev/fd/{number}")
    };
    let (kernel, core) = (argument(kernel, 3), argument(core, 4));
    format!("crash {kernel} {core}{opened}")
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
        let commands = |core: &str, kernel: Option<&str>| {
            commands("full", core.as_ref(), None, kernel.map(Path::new), None)
        };
        assert_eq!(
            commands("vmcore.0", None),
            ["kgdb /boot/kernel/kernel vmcore.0", "lldb --core vmcore.0 /boot/kernel/kernel"]
        );
        assert_eq!(commands("it's a core", Some("k"))[0], r"kgdb k 'it'\''s a core'");
        assert_eq!(commands("-x", Some("k"))[1], "lldb --core './-x' k");
    }

    #[test]
    fn packed_cores_are_unpacked_first() {
        let commands = |core: &str, method| {
            commands("minidump", core.as_ref(), Some(method), Some(Path::new("k")), None)
        };
        assert_eq!(
            commands("vmcore.h.0.gz", Method::Gzip)[..2],
            ["gunzip < vmcore.h.0.gz > vmcore.h.0", "kgdb k vmcore.h.0"]
        );
        assert_eq!(commands("a b", Method::Zstd)[0], "zstd -d < 'a b' > 'a b.unpacked'");
    }

    #[test]
    fn cores_that_debuggers_do_not_read_have_no_commands() {
        assert_eq!(commands("elf", Path::new("core"), None, None, None), [""; 0]);
        assert_eq!(commands("raw", Path::new("core"), None, None, Some("6.1")), [""; 0]);
    }

    #[test]
    fn linux_cores_are_opened_with_the_kernels_debug_information() {
        let commands = |kernel| commands("elf", Path::new("vmcore.0"), None, kernel, Some("6.1.0-1-amd64"));
        assert_eq!(
            commands(None),
            ["crash /usr/lib/debug/boot/vmlinux-6.1.0-1-amd64 vmcore.0", "drgn -c vmcore.0"]
        );
        assert_eq!(
            commands(Some(Path::new("vm linux"))),
            ["crash 'vm linux' vmcore.0", "drgn -c vmcore.0 -s 'vm linux'"]
        );
    }
    #[test]
    fn crash_is_given_no_path_with_an_at_sign() {
        let crash = |core: &str, kernel: &str| {
            let commands = commands("elf", core.as_ref(), None, Some(Path::new(kernel)), Some("6.1"));
            commands[0].clone()
        };
        assert_eq!(crash("panic@6.1/vmcore.0", "vmlinux"), "crash vmlinux /dev/fd/4 4<panic@6.1/vmcore.0");
        assert_eq!(crash("a @ b", "v@l"), "crash /dev/fd/3 /dev/fd/4 3<v@l 4<'a @ b'");
    }
}
