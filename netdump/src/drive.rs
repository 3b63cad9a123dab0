//! The loop that joins client, link and core.
