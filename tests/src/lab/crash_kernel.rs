//! A program for guests that loads a crash kernel. Debian's `kexec` does that too, but wants a dozen libraries.

use std::fs;
use std::process::Command;

use super::succeed;

/// It is put together on the spot: a C linker is there wherever Rust is.
const SOURCE: &str = include_str!("crash_kernel.s");

/// The program. The kernel is open as 3, its initramfs as 4; the exit code is the error.
pub fn loader() -> anyhow::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let (source, program) = (folder.path().join("crash_kernel.s"), folder.path().join("load_crash_kernel"));
    fs::write(&source, SOURCE)?;
    succeed(Command::new("cc").args(["-nostdlib", "-static", "-o"]).arg(&program).arg(&source))?;
    Ok(fs::read(program)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_loader_is_a_program() {
        assert!(super::loader().unwrap().starts_with(b"\x7fELF"));
    }
}
