//! FreeBSD/amd64 minidumps: the pages that the kernel uses, found by a bitmap, and the kernel's page directories.
//!
//! ```text
//! header               4096 bytes (`header.rs`)
//! message buffer       rounded up to a page
//! dump_avail           version 3: the ranges of RAM that the bitmap's bits stand for
//! bitmap               a bit for each page of them; versions 1 and 2: of all memory from 0 (`page_set.rs`)
//! page map             version 2 and 3: a page of page-directory entries for each GiB of kernel addresses;
//!                      version 1: page-table entries
//! pages                those whose bits are set, in the order of the bits
//! ```
//!
//! Reference: FreeBSD `sys/amd64/amd64/minidump_machdep.c`, `sys/amd64/include/minidump.h`, `sys/vm/vm_dumpset.h`;
//! readers: `lib/libkvm/kvm_minidump_amd64.c`, libfbsdvmcore.

pub mod header;
pub mod page_set;
pub mod read;
