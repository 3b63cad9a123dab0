//! What a stopped guest says of itself.
