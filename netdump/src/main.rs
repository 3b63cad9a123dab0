//! The `netdump` command.
fn main() {}
