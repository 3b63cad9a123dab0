//! Guest RAM.

/// Guest RAM as regions; all access is bounds-checked and volatile.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
