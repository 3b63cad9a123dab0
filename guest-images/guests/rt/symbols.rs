//! The variables that a host looks for by FreeBSD's names, besides the environment (`kenv`) and the message buffer.

use core::ffi::CStr;
use core::fmt::{self, Write as _};

use crate::global::Global;

/// FreeBSD's `ostype`; an honest one.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static ostype: [u8; 13] = *b"guest-images\0";

/// FreeBSD's `osrelease`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static osrelease: [u8; 6] = *b"0.1.0\0";

/// Name of the machine: the environment's `hostname`, else `guest`. NUL-terminated.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static hostname: Global<[u8; 256]> = Global::new([0; 256]);

/// FreeBSD's `panicstr`: null, or the address of the panic text (NUL-terminated).
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static panicstr: Global<u64> = Global::new(0);

static PANIC_TEXT: Global<[u8; 256]> = Global::new([0; 256]);

/// The text of `version` for a guest of that name.
#[macro_export]
macro_rules! version_text {
    ($name:literal) => {
        concat!("guest-images 0.1.0 #0: ", $name, "\n\0")
    };
}

/// The bytes of a text, as an array.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(text.as_bytes());
    array
}

/// Sets the panic text and points `panicstr` at it.
pub fn set_panic_text(text: fmt::Arguments<'_>) {
    let mut writer = TextWriter::new(&PANIC_TEXT);
    // An overlong text is cut, as in any kernel.
    let _ = writer.write_fmt(text);
    panicstr.write(PANIC_TEXT.address());
}

/// Sets the host name.
pub(crate) fn set_host_name(name: &str) {
    let mut writer = TextWriter::new(&hostname);
    let _ = writer.write_str(name);
}

/// The host name.
pub fn host_name() -> &'static str {
    // SAFETY: always NUL-terminated, see `TextWriter`.
    unsafe { CStr::from_ptr(hostname.pointer().cast()) }.to_str().unwrap_or("guest")
}

/// Writes NUL-terminated text into an array, as much as fits.
pub(crate) struct TextWriter<const N: usize> {
    text: &'static Global<[u8; N]>,
    end: usize,
}

impl<const N: usize> TextWriter<N> {
    /// A writer that begins with the array's first byte.
    pub(crate) fn new(text: &'static Global<[u8; N]>) -> Self {
        Self::after(text, 0)
    }

    /// A writer that begins `start` bytes into the array.
    pub(crate) fn after(text: &'static Global<[u8; N]>, start: usize) -> Self {
        text.set(start, 0);
        Self { text, end: start }
    }

    /// Where the NUL is.
    pub(crate) fn end(&self) -> usize {
        self.end
    }
}

impl<const N: usize> fmt::Write for TextWriter<N> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for byte in part.bytes() {
            if self.end + 1 == N {
                return Err(fmt::Error);
            }
            self.text.set(self.end, byte);
            self.end += 1;
            self.text.set(self.end, 0);
        }
        Ok(())
    }
}
