//! The sans-IO netdump receiver.
