//! The links that a dump can travel over.

mod tap;
mod virtqueue;

pub use self::tap::TapLink;
pub use self::virtqueue::VirtqueueLink;
