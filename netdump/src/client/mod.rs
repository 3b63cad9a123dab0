//! The sans-IO netdump client.
