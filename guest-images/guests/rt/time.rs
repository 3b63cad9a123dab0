//! Waiting, by the interval timer: its channel 0 counts down at 1.193182 MHz and is read without interrupts.

use crate::{kenv, port};

const CHANNEL_0: u16 = 0x40;
const COMMAND: u16 = 0x43;
/// Channel 0, both bytes, rate generator.
const RATE_GENERATOR: u8 = 0x34;
const LATCH_CHANNEL_0: u8 = 0x00;
const TICKS_PER_SECOND: u64 = 1_193_182;

/// Waits at least `milliseconds`. Longer when the CPU is off for more than 54 ms at a time, since the counter wraps.
pub fn wait(milliseconds: u64) {
    within(milliseconds, || false);
}

/// Asks `done` again and again until it says so, or `milliseconds` are over; returns its last answer.
pub fn within(milliseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    port::write_u8(COMMAND, RATE_GENERATOR);
    port::write_u8(CHANNEL_0, 0);
    port::write_u8(CHANNEL_0, 0);
    let mut left = (milliseconds * TICKS_PER_SECOND).div_ceil(1000);
    let mut last = count();
    while !done() {
        let now = count();
        left = left.saturating_sub(u64::from(last.wrapping_sub(now)));
        last = now;
        if left == 0 {
            return done();
        }
    }
    true
}

/// Waits for the environment's `after` milliseconds, if it has that.
pub fn wait_as_told() {
    match kenv::number("after", 0) {
        0 => {}
        milliseconds => wait(milliseconds),
    }
}

fn count() -> u16 {
    port::write_u8(COMMAND, LATCH_CHANNEL_0);
    u16::from_le_bytes([port::read_u8(CHANNEL_0), port::read_u8(CHANNEL_0)])
}
