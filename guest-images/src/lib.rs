//! Tiny guest kernels.
