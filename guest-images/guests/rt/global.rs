//! Statics that change. There are no locks: only the first CPU changes them, and the others read only what no longer
//! changes.

use core::cell::UnsafeCell;

/// A static that the first CPU alone changes, and that a host may read by its symbol.
#[repr(transparent)]
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: one CPU at a time changes a `Global`, without interrupts, and no reference to what is inside is ever made.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// A global that begins with `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where it lies.
    pub const fn pointer(&self) -> *mut T {
        self.0.get()
    }

    /// Its address, for a device or a table.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

impl<T: Copy> Global<T> {
    /// Its value.
    pub fn read(&self) -> T {
        // SAFETY: the pointer is that of a live static, and nobody changes it meanwhile (see above).
        unsafe { self.0.get().read_volatile() }
    }

    /// Sets it; the store is really made, since the host looks.
    pub fn write(&self, value: T) {
        // SAFETY: as for `read`.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl<T: Copy, const N: usize> Global<[T; N]> {
    /// Element `index`.
    pub fn at(&self, index: usize) -> T {
        // SAFETY: inside the array, and nobody changes it meanwhile (see above).
        unsafe { self.element(index).read_volatile() }
    }

    /// Sets element `index`.
    pub fn set(&self, index: usize, value: T) {
        // SAFETY: as for `at`.
        unsafe { self.element(index).write_volatile(value) }
    }

    fn element(&self, index: usize) -> *mut T {
        assert!(index < N, "element {index} of {N}");
        self.0.get().cast::<T>().wrapping_add(index)
    }
}
