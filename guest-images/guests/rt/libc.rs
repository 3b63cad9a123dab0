//! What the compiler expects of a C library.

use core::arch::asm;

/// C's `memcpy`.
///
/// # Safety
/// As in C: `length` bytes at both, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// C's `memmove`.
///
/// # Safety
/// As in C: `length` bytes at both.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: copying upwards never overwrites what is still to be read when `to` is not inside `from`.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY: the caller's promise; downwards from the last byte, and the direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") length => _,
            inout("rdi") to.wrapping_add(length).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(length).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// C's `memset`.
///
/// # Safety
/// As in C: `length` bytes at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// C's `memcmp`.
///
/// # Safety
/// As in C: `length` bytes at both.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for i in 0..length {
        // SAFETY: the caller's promise.
        let l = unsafe { left.wrapping_add(i).read() };
        // SAFETY: the caller's promise.
        let r = unsafe { right.wrapping_add(i).read() };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// BSD's `bcmp`.
///
/// # Safety
/// As in C: `length` bytes at both.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, length) }
}

/// C's `strlen`.
///
/// # Safety
/// As in C: a NUL-terminated string at `text`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let end: *const u8;
    // SAFETY: the caller's promise. In assembler, since the compiler would make a loop a call of `strlen`.
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => _, inout("rdi") text => end, in("al") 0_u8,
            options(nostack, readonly));
    }
    (end as usize) - (text as usize) - 1
}
