//! The message buffer (`sys/sys/msgbuf.h`): the last pages of RAM, text first, `struct msgbuf` behind it. It has
//! wrapped long before the guest panics.

use crate::freebsd::{MESSAGE_BUFFER, MESSAGE_LINES, message_line};
use crate::global::Global;
use crate::pages::{self, DMAP, PAGE};
use crate::variables::msgbufp;

const MAGIC: u32 = 0x06_3062;
const SIZE: u32 = MESSAGE_BUFFER as u32;
/// Where sequence numbers wrap.
const SEQUENCE_MODULUS: u32 = SIZE * 16;

/// Physical address of the text; 0 as long as there is no buffer.
static TEXT: Global<u64> = Global::new(0);

/// Does nothing: what is printed before memory is known is lost, as in any kernel.
pub fn init() {}

/// Makes the buffer and fills it.
pub fn init_buffer() {
    let text = pages::from_top((MESSAGE_BUFFER as u64 + 72).div_ceil(PAGE));
    TEXT.write(text);
    set_word(0, DMAP + text);
    set_word(8, u64::from(SIZE) << 32 | u64::from(MAGIC));
    set_word(24, u64::from(SEQUENCE_MODULUS) << 32);
    msgbufp.write(DMAP + text + u64::from(SIZE));
    (0..MESSAGE_LINES).flat_map(message_line).for_each(push);
}

/// Adds a byte; the oldest makes room.
pub fn push(byte: u8) {
    if TEXT.read() == 0 {
        return;
    }
    let sequence = word(16) as u32;
    // SAFETY: inside the text.
    let place = unsafe { pages::at(TEXT.read()).cast::<u8>().add((sequence % SIZE) as usize) };
    // SAFETY: as above.
    let old = unsafe { place.replace(byte) };
    set_word(16, word(16) & !0xffff_ffff | u64::from((sequence + 1) % SEQUENCE_MODULUS));
    let sum = (word(24) as u32).wrapping_add(u32::from(byte)).wrapping_sub(u32::from(old));
    set_word(24, word(24) & !0xffff_ffff | u64::from(sum));
}

fn word(offset: u64) -> u64 {
    // SAFETY: inside the structure behind the text.
    unsafe { pages::at(TEXT.read() + u64::from(SIZE) + offset).read() }
}

fn set_word(offset: u64, value: u64) {
    // SAFETY: as for `word`.
    unsafe { pages::at(TEXT.read() + u64::from(SIZE) + offset).write(value) }
}
