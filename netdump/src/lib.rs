//! FreeBSD's netdump: the protocol, both ends of it, and the kernel cores that it carries.
//!
//! A dump in one screen (client on the left; every message is one UDP datagram and is acknowledged alone):
//!
//! ```text
//! ARP who-has server?            ->           broadcast; the gateway is asked when the server stays silent
//! HERALD  seq 1, path            -> :20023    from port 20024
//!                                <-           ack 1, from the port that this dump will use
//! EKCD_KEY                       -> :port     encrypted dumps only
//! VMCORE  offset, bytes          -> :port     at most MTU - 52 and 4096 bytes each, any number in flight
//! KDH     512-byte dump header   -> :port     once, in one datagram, when all data is acknowledged
//! FINISHED                       -> :port     its ack means that the core is on stable storage
//! ```
//!
//! A message is a 24-byte big-endian header ([`wire::message`]) and its payload; an ack is the 4-byte sequence
//! number. Reference: FreeBSD `sys/netinet/netdump/netdump.h`, `netdump(4)`, and netdumpd.
//!
//! The crate holds no KVM and no unsafe code. [`client`] and [`receiver`] are sans-IO: bytes and time go in, bytes
//! and events come out. [`drive`] is the one loop here that sleeps or reads a clock.
#![forbid(unsafe_code)]

mod calendar;
pub mod client;
pub mod digest;
mod digest_file;
pub mod drive;
pub mod ekcd;
pub mod facts;
pub mod freebsd;
pub mod link;
pub mod linux;
pub mod manifest;
pub mod panicked;
pub mod progress;
mod read_at;
mod reader;
pub mod receiver;
pub mod report;
mod sparse;
pub mod stream;
pub mod torture;
pub mod vmcore;
pub mod wire;
mod zeros;

pub use read_at::{ReadAt, ReadError};
