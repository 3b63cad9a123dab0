//! The kernel environment, as `sys/kern/kern_environment.c` keeps it: static blocks at first, `md_envp` (the loader's)
//! before `kern_envp` (compiled in), then the array `kenvp`; the blocks are zeroed when that is made.

use core::ffi::CStr;
use core::fmt::{self, Write as _};

use crate::freebsd::COMPILED_IN;
use crate::global::Global;
use crate::handover::{Environment, Handover, KERNBASE};
use crate::pages::{self, DMAP, PAGE};
use crate::variables::{dynamic_kenv, kenvp, kern_envp, md_env_len, md_env_pos, md_envp};

/// FreeBSD's KENV_SIZE: most strings.
const MAX_STRINGS: u64 = 512;
/// Longest name and longest value with their NUL: KENV_MNAMELEN, KENV_MVALLEN.
const MAX_PART: usize = 128;
/// A token of a command line is cut after so many bytes.
const MAX_TOKEN: usize = 127;
/// Room for one string of any length, twice.
const STRING: usize = 2 * MAX_PART + 8;

static CONFIG: Global<[u8; 64]> = Global::new([0; 64]);
/// Where the next string goes, and how many bytes its page still has.
static HEAP: Global<[u64; 2]> = Global::new([0; 2]);

/// Makes the static environment.
pub fn init(handover: &Handover) {
    let config = COMPILED_IN.0.bytes().chain(*b"=").chain(COMPILED_IN.1.bytes());
    config.enumerate().for_each(|(i, byte)| CONFIG.set(i, byte));
    kern_envp.write(CONFIG.address());
    match handover.environment {
        Environment::Block(0) => {}
        Environment::Block(address) => md_envp.write(KERNBASE + address),
        Environment::CommandLine(line) => from_command_line(line),
    }
}

/// A page of `name=value\0` strings, as the PVH entry makes it of the command line.
fn from_command_line(line: &[u8]) {
    let block = pages::early();
    let mut end = 0;
    for token in line.split(|byte: &u8| matches!(byte, b',' | b' ' | b'\t' | b'\n')) {
        // Tokens with a dash are boot flags, which there are none of here.
        if token.is_empty() || token[0] == b'-' {
            continue;
        }
        let token = &token[..token.len().min(MAX_TOKEN)];
        let implied: &[u8] = if token.contains(&b'=') { b"" } else { b"=1" };
        if end + token.len() + implied.len() + 2 > PAGE as usize {
            break;
        }
        for &byte in token.iter().chain(implied).chain(b"\0") {
            // SAFETY: inside the page, which is this block's.
            unsafe { pages::at(block).cast::<u8>().wrapping_add(end).write(byte) };
            end += 1;
        }
    }
    md_envp.write(KERNBASE + block);
    md_env_len.write(PAGE as i32);
    md_env_pos.write(end as i32);
}

/// How many strings there are.
pub fn count() -> usize {
    strings().count()
}

/// Value of a variable.
pub fn value(name: &str) -> Option<&'static str> {
    strings().find_map(|string| string.strip_prefix(name)?.strip_prefix('='))
}

/// Value of a variable as a number; `default` when it is absent.
pub fn number(name: &str, default: u64) -> u64 {
    let Some(text) = value(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// Whether a variable is `yes`; `default` when it is absent. Anything but `yes` and `no` is a bug of the caller.
pub fn is_yes(name: &str, default: bool) -> bool {
    choice(name, &[(if default { "yes" } else { "no" }, default), ("yes", true), ("no", false)])
}

/// What a variable chooses; the first choice when it is absent. Any other value is a bug of the caller, and reported.
pub fn choice<T: Copy>(name: &str, choices: &[(&str, T)]) -> T {
    let Some(chosen) = value(name) else { return choices[0].1 };
    match choices.iter().find(|(choice, _)| *choice == chosen) {
        Some(&(_, meaning)) => meaning,
        None => panic!("{name}={chosen} is not among the choices"),
    }
}

/// FreeBSD's `init_dynamic_kenv`: copies the static environment, with `_1`, `_2` and so on behind a name that comes
/// again, and zeroes each string that was copied.
pub fn make_dynamic() {
    let array = pages::direct_run((MAX_STRINGS * 8 + 8).div_ceil(PAGE));
    kenvp.write(DMAP + array);
    for block in [md_envp.read(), kern_envp.read()] {
        for string in block_strings(block) {
            copy(string);
            // SAFETY: the string is part of a block that nobody refers to any more once it is copied.
            unsafe { string.as_ptr().cast_mut().write_bytes(0, string.len()) };
        }
    }
    dynamic_kenv.write(1);
}

/// Copies one string of a block, unless it is nothing that FreeBSD keeps.
fn copy(string: &str) {
    let Some((name, value)) = string.split_once('=') else { return };
    if name.len() >= MAX_PART || value.len() >= MAX_PART {
        return;
    }
    let place = (0..MAX_STRINGS).find(|&i| slot(i) == 0).expect("the environment is full");
    let text = match (0..).find(|&number| find(name, number).is_none()) {
        None | Some(0) => allocate(format_args!("{name}={value}")),
        Some(number) => allocate(format_args!("{name}_{number}={value}")),
    };
    set_slot(place, text);
}

/// Changes that the environment itself asks for: `abi.kenv.set` and `abi.kenv.unset`, as often as they come.
pub fn change_as_told() {
    for number in 0.. {
        let Some(place) = find("abi.kenv.set", number) else { break };
        let string = string_at(slot(place));
        let change = string.split_once('=').map_or("", |(_, change)| change);
        let (name, value) = change.split_once('=').unwrap_or((change, ""));
        set(name, value);
    }
    for number in 0.. {
        let Some(place) = find("abi.kenv.unset", number) else { break };
        unset(string_at(slot(place)).split_once('=').map_or("", |(_, name)| name));
    }
}

/// FreeBSD's `kern_setenv`.
fn set(name: &str, value: &str) {
    let place = find(name, 0).or_else(|| (0..MAX_STRINGS).find(|&i| slot(i) == 0));
    set_slot(place.expect("the environment is full"), allocate(format_args!("{name}={value}")));
}

/// FreeBSD's `kern_unsetenv`: the strings behind it move up.
fn unset(name: &str) {
    let Some(place) = find(name, 0) else { return };
    for i in place..MAX_STRINGS {
        set_slot(i, slot(i + 1));
    }
}

/// Where in the array `name` is, or with a number other than 0 `name_NUMBER`.
fn find(name: &str, number: u32) -> Option<u64> {
    (0..MAX_STRINGS).take_while(|&i| slot(i) != 0).find(|&i| {
        let full = string_at(slot(i)).split_once('=').map_or("", |(full, _)| full);
        let Some(rest) = full.strip_prefix(name) else { return false };
        match number {
            0 => rest.is_empty(),
            _ => rest.strip_prefix('_').and_then(|digits| digits.parse().ok()) == Some(number),
        }
    })
}

fn slot(index: u64) -> u64 {
    // SAFETY: the array has one slot more than strings.
    unsafe { pages::at_direct(kenvp.read() + index * 8).read() }
}

fn set_slot(index: u64, string: u64) {
    // SAFETY: as for `slot`.
    unsafe { pages::at_direct(kenvp.read() + index * 8).write(string) }
}

/// The strings in force.
fn strings() -> impl Iterator<Item = &'static str> {
    let is_dynamic = dynamic_kenv.read() != 0;
    let dynamic =
        (0..MAX_STRINGS).filter(move |_| is_dynamic).map(slot).take_while(|&s| s != 0).map(string_at);
    let blocks = [md_envp.read(), kern_envp.read()].into_iter().filter(move |_| !is_dynamic);
    dynamic.chain(blocks.flat_map(block_strings))
}

/// The strings of a block; none when it is not there.
fn block_strings(mut address: u64) -> impl Iterator<Item = &'static str> {
    core::iter::from_fn(move || {
        let string = if address == 0 { "" } else { text_at(address as *const u8) };
        address += string.len() as u64 + 1;
        (!string.is_empty()).then_some(string)
    })
}

/// Writes a string to kernel memory; its address in the direct map. Nothing is ever freed.
fn allocate(text: fmt::Arguments<'_>) -> u64 {
    let [mut next, mut room] = HEAP.read();
    if room < STRING as u64 {
        (next, room) = (pages::direct(), PAGE);
    }
    let mut writer = Writer { at: pages::at(next).cast(), left: STRING - 1 };
    writer.write_fmt(text).expect("no string is longer than FreeBSD keeps");
    let used = (STRING - writer.left) as u64;
    HEAP.write([next + used, room - used]);
    DMAP + next
}

struct Writer {
    at: *mut u8,
    left: usize,
}

impl fmt::Write for Writer {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.left = self.left.checked_sub(part.len()).ok_or(fmt::Error)?;
        // SAFETY: the allocator left room for so many bytes and a NUL, all zero.
        unsafe { self.at.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
        self.at = self.at.wrapping_add(part.len());
        Ok(())
    }
}

fn string_at(address: u64) -> &'static str {
    text_at(pages::at_direct(address).cast())
}

/// The NUL-terminated text at an address, up to what is not UTF-8.
fn text_at(pointer: *const u8) -> &'static str {
    // SAFETY: every address here is that of a NUL-terminated string of the environment.
    let bytes = unsafe { CStr::from_ptr(pointer.cast()) }.to_bytes();
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}
