//! The message buffer, laid out as FreeBSD's `struct msgbuf` (`sys/sys/msgbuf.h`) so that what reads that reads this:
//! everything printed, in a ring of 16 KiB.

use crate::global::Global;

const SIZE: u32 = 16 * 1024;
const MAGIC: u32 = 0x06_3062;
/// Where sequence numbers wrap.
const SEQUENCE_MODULUS: u32 = SIZE * 16;

/// Head of the buffer; the fields that a reader uses. `wseq` counts the bytes written, modulo `seqmod`; the next one
/// goes to `wseq % size`.
#[derive(Clone, Copy)]
#[repr(C)]
struct MessageBuffer {
    text: u64,
    magic: u32,
    size: u32,
    wseq: u32,
    rseq: u32,
    checksum: u32,
    seqmod: u32,
    rest: [u32; 10],
}

impl MessageBuffer {
    const fn empty(text: u64) -> Self {
        let (magic, size, seqmod) = (MAGIC, SIZE, SEQUENCE_MODULUS);
        Self { text, magic, size, wseq: 0, rseq: 0, checksum: 0, seqmod, rest: [0; 10] }
    }
}

static HEAD: Global<MessageBuffer> = Global::new(MessageBuffer::empty(0));
static TEXT: Global<[u8; SIZE as usize]> = Global::new([0; SIZE as usize]);

/// FreeBSD's `msgbufp`: address of the head.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static msgbufp: Global<u64> = Global::new(0);

pub(crate) fn init() {
    HEAD.write(MessageBuffer::empty(TEXT.address()));
    msgbufp.write(HEAD.address());
}

/// Adds a byte; the oldest makes room.
pub(crate) fn push(byte: u8) {
    let mut head = HEAD.read();
    let place = (head.wseq % SIZE) as usize;
    head.checksum = head.checksum.wrapping_add(u32::from(byte)).wrapping_sub(u32::from(TEXT.at(place)));
    head.wseq = (head.wseq + 1) % SEQUENCE_MODULUS;
    TEXT.set(place, byte);
    HEAD.write(head);
}
