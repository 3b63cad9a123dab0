//! The kernel environment, kept as FreeBSD keeps it (`sys/kern/kern_environment.c`) and under its symbols, so that a
//! host that reads the one reads the other.
//!
//! At first it is static: blocks of `name=value\0` that end with an empty string, `md_envp` from the command line and
//! `kern_envp` compiled in. [`make_dynamic`] copies both into `kenvp`, an array of string addresses that ends with a
//! null, sets `dynamic_kenv` and zeroes the blocks; from then on [`set`] changes it.

use core::ffi::CStr;
use core::fmt::Write as _;

use crate::global::Global;
use crate::symbols::{self, TextWriter};

/// Bytes of the block that the command line becomes.
const BLOCK: usize = 4096;
/// FreeBSD's KENV_SIZE: most strings of the dynamic environment.
const MAX_STRINGS: usize = 512;
/// A token of the command line is cut after so many bytes.
const MAX_TOKEN: usize = 127;
/// Room for the strings of the dynamic environment.
const HEAP: usize = 32 * 1024;

/// FreeBSD's `kern_envp`: address of the compiled-in block.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static kern_envp: Global<u64> = Global::new(0);

/// FreeBSD's `md_envp`: address of the block made from the command line.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static md_envp: Global<u64> = Global::new(0);

/// FreeBSD's `md_env_len`: bytes of that block.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static md_env_len: Global<i32> = Global::new(0);

/// FreeBSD's `md_env_pos`: bytes of it in use, without the last NUL.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static md_env_pos: Global<i32> = Global::new(0);

/// FreeBSD's `kenvp`: address of the array of string addresses.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static kenvp: Global<u64> = Global::new(0);

/// FreeBSD's `dynamic_kenv`: 1 once `kenvp` is in force.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static dynamic_kenv: Global<i32> = Global::new(0);

const COMPILED_IN_SIZE: usize = 64;
static COMPILED_IN: Global<[u8; COMPILED_IN_SIZE]> = Global::new([0; COMPILED_IN_SIZE]);
static COMMAND_LINE: Global<[u8; BLOCK]> = Global::new([0; BLOCK]);
static STRINGS: Global<[u64; MAX_STRINGS + 1]> = Global::new([0; MAX_STRINGS + 1]);
static HEAP_BYTES: Global<[u8; HEAP]> = Global::new([0; HEAP]);
static HEAP_USED: Global<usize> = Global::new(0);

/// Makes the static environment: what is compiled in, and the command line.
pub(crate) fn init(command_line: &[u8]) {
    for (i, &byte) in b"guest_images.compiled_in=yes\0".iter().enumerate() {
        COMPILED_IN.set(i, byte);
    }
    kern_envp.write(COMPILED_IN.address());
    md_envp.write(COMMAND_LINE.address());
    md_env_len.write(BLOCK as i32);
    let separator = |byte: &u8| matches!(byte, b',' | b' ' | b'\t' | b'\n');
    for token in command_line.split(separator) {
        // Tokens with a dash are boot flags, which there are none of here.
        if !token.is_empty() && token[0] != b'-' {
            append(&token[..token.len().min(MAX_TOKEN)]);
        }
    }
    symbols::set_host_name(value("hostname").unwrap_or("guest"));
}

/// Adds a string to the command line's block, with `=1` where it has no value; dropped when there is no room.
fn append(token: &[u8]) {
    let implied: &[u8] = if token.contains(&b'=') { b"" } else { b"=1" };
    let start = md_env_pos.read() as usize;
    if start + token.len() + implied.len() + 2 > BLOCK {
        return;
    }
    let mut end = start;
    for &byte in token.iter().chain(implied).chain(b"\0") {
        COMMAND_LINE.set(end, byte);
        end += 1;
    }
    md_env_pos.write(end as i32);
}

/// Value of a variable.
pub fn value(name: &str) -> Option<&'static str> {
    let matching = |string: &'static str| string.strip_prefix(name)?.strip_prefix('=');
    if dynamic_kenv.read() != 0 { strings().find_map(matching) } else { static_strings().find_map(matching) }
}

/// Value of a variable as a number, decimal or hexadecimal with `0x`; `default` when it is absent.
pub fn number(name: &str, default: u64) -> u64 {
    let Some(text) = value(name) else { return default };
    parse(text).unwrap_or_else(|| panic!("{name}={text} is no number"))
}

/// Value of a variable as a number of bytes, with `K`, `M` or `G` behind it, or `all`; `default` when it is absent.
pub fn size(name: &str, default: u64) -> u64 {
    let Some(text) = value(name) else { return default };
    if text == "all" {
        return u64::MAX;
    }
    let with_unit = |unit: char, shift: u32| Some(parse(text.strip_suffix(unit)?)? << shift);
    parse(text)
        .or_else(|| with_unit('K', 10))
        .or_else(|| with_unit('M', 20))
        .or_else(|| with_unit('G', 30))
        .unwrap_or_else(|| panic!("{name}={text} is no size"))
}

/// Value of a variable as a text, with a space for each `_`: a command line cannot hold one in a value.
pub fn text(name: &str, default: &'static str) -> &'static str {
    let Some(given) = value(name) else { return default };
    let mut writer = TextWriter::after(&HEAP_BYTES, HEAP_USED.read());
    let start = writer.end();
    for letter in given.chars() {
        writer.write_char(if letter == '_' { ' ' } else { letter }).expect("the environment's heap has room");
    }
    HEAP_USED.write(writer.end() + 1);
    string_at(HEAP_BYTES.address() + start as u64)
}

/// What a variable chooses; the first choice when it is absent. Any other value is a bug of the caller, and reported.
pub fn choice<T: Copy>(name: &str, choices: &[(&str, T)]) -> T {
    let Some(chosen) = value(name) else { return choices[0].1 };
    match choices.iter().find(|(choice, _)| *choice == chosen) {
        Some(&(_, meaning)) => meaning,
        None => panic!("{name}={chosen} is not among the choices"),
    }
}

/// Copies the static environment to `kenvp` and zeroes it. A name that comes again gets the first of `_1`, `_2` and so
/// on that makes it new.
pub fn make_dynamic() {
    let pairs = static_strings().filter_map(|string| string.split_once('='));
    for (place, (name, value)) in pairs.take(MAX_STRINGS).enumerate() {
        let is_new = |number: &u64| !strings().any(|other| is_named(other, name, *number));
        let number = (0..=MAX_STRINGS as u64).find(is_new).expect("fewer strings than numbers");
        let string = match number {
            0 => allocate(format_args!("{name}={value}")),
            _ => allocate(format_args!("{name}_{number}={value}")),
        };
        STRINGS.set(place, string);
    }
    for i in 0..BLOCK {
        COMMAND_LINE.set(i, 0);
    }
    for i in 0..COMPILED_IN_SIZE {
        COMPILED_IN.set(i, 0);
    }
    kenvp.write(STRINGS.address());
    dynamic_kenv.write(1);
}

/// Sets a variable of the dynamic environment.
pub fn set(name: &str, value: &str) {
    assert!(dynamic_kenv.read() != 0, "the environment is not dynamic yet");
    let place = strings().position(|string| is_named(string, name, 0)).unwrap_or_else(|| strings().count());
    assert!(place < MAX_STRINGS, "the environment is full");
    STRINGS.set(place, allocate(format_args!("{name}={value}")));
}

/// Whether a string is a value of `name`, or with a number other than 0 of `name_NUMBER`.
fn is_named(string: &str, name: &str, number: u64) -> bool {
    let rest = string.split_once('=').and_then(|(full, _)| full.strip_prefix(name));
    match number {
        0 => rest == Some(""),
        _ => rest.and_then(|rest| rest.strip_prefix('_')).and_then(parse) == Some(number),
    }
}

/// The strings of the dynamic environment.
fn strings() -> impl Iterator<Item = &'static str> {
    (0..MAX_STRINGS).map(|i| STRINGS.at(i)).take_while(|&address| address != 0).map(string_at)
}

/// The strings of the static one: the command line's first, as FreeBSD looks them up.
fn static_strings() -> impl Iterator<Item = &'static str> {
    [md_envp.read(), kern_envp.read()].into_iter().flat_map(|mut address| {
        core::iter::from_fn(move || {
            let bytes = bytes_at(address);
            address += bytes.len() as u64 + 1;
            (!bytes.is_empty()).then(|| as_text(bytes))
        })
    })
}

/// Writes a string to the heap. Nothing is ever freed.
fn allocate(text: core::fmt::Arguments<'_>) -> u64 {
    let mut writer = TextWriter::after(&HEAP_BYTES, HEAP_USED.read());
    let start = writer.end();
    writer.write_fmt(text).expect("the environment's heap has room");
    HEAP_USED.write(writer.end() + 1);
    HEAP_BYTES.address() + start as u64
}

/// The NUL-terminated string at an address.
fn string_at(address: u64) -> &'static str {
    as_text(bytes_at(address))
}

fn bytes_at(address: u64) -> &'static [u8] {
    // SAFETY: every address here is that of a NUL-terminated part of a static of this module.
    unsafe { CStr::from_ptr(address as *const _) }.to_bytes()
}

/// The text up to what is not UTF-8.
fn as_text(bytes: &[u8]) -> &str {
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

/// A number, decimal or hexadecimal with `0x`.
pub(crate) fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
