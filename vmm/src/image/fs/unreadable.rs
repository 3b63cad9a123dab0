//! What is recognised to be told by name, though nothing here reads it: its own on-disk magic numbers, and what to do.

use super::{FileSystem, FileSystemType, FsError};
use crate::image::blocks::Blocks;

/// They are asked when no type that can be read fits.
pub(super) static ALL: &[&dyn FileSystemType] = &[
    &Unreadable {
        name: "zfs",
        what: "a ZFS pool",
        advice: "give the kernel as a file, the image with --disk",
        is_in: is_zfs,
    },
    &Unreadable {
        name: "xfs",
        what: "an XFS file system",
        advice: "give kernel and initrd as files, the image with --disk",
        // `XFS_SB_MAGIC` (Linux `fs/xfs/libxfs/xfs_format.h`).
        is_in: |blocks| blocks.has(0, b"XFSB"),
    },
    &Unreadable {
        name: "btrfs",
        what: "a btrfs file system",
        advice: "give kernel and initrd as files, the image with --disk",
        // `BTRFS_MAGIC` in the super block at 64 KiB (Linux `include/uapi/linux/btrfs_tree.h`).
        is_in: |blocks| blocks.has(0x1_0040, b"_BHRfS_M"),
    },
    &Unreadable {
        name: "lvm2",
        what: "a physical volume of LVM",
        advice: "give kernel and initrd as files, the image with --disk",
        // The label is in one of the first four sectors (LVM2 `lib/label/label.h`).
        is_in: |blocks| (0..4).any(|sector| blocks.has(sector * 512, b"LABELONE")),
    },
    &Unreadable {
        name: "luks",
        what: "an encrypted volume (LUKS)",
        advice: "give kernel and initrd as files, the image with --disk",
        is_in: |blocks| blocks.has(0, b"LUKS\xba\xbe"),
    },
    &Unreadable {
        name: "swap",
        what: "swap space",
        advice: "it has no files",
        is_in: |blocks| blocks.has(4086, b"SWAPSPACE2"),
    },
];

/// A pool's first label has 128 KiB of uberblocks, of 1 KiB or more each, behind as much of other things (OpenZFS
/// `include/sys/vdev_impl.h`, `vdev_label_t`); each begins with this number in its writer's byte order.
const UBERBLOCKS: u64 = 128 << 10;
const UBERBLOCK: usize = 1 << 10;
const UBERBLOCK_MAGIC: u64 = 0x00ba_b10c;

#[derive(Debug)]
struct Unreadable {
    name: &'static str,
    what: &'static str,
    advice: &'static str,
    is_in: fn(&Blocks) -> bool,
}

impl FileSystemType for Unreadable {
    fn name(&self) -> &'static str {
        self.name
    }

    fn recognises(&self, blocks: &Blocks) -> bool {
        (self.is_in)(blocks)
    }

    fn open(&self, _blocks: Blocks) -> Result<Box<dyn FileSystem>, FsError> {
        Err(FsError::Unsupported { what: self.what, advice: self.advice })
    }
}

fn is_zfs(blocks: &Blocks) -> bool {
    let magics = [UBERBLOCK_MAGIC.to_le_bytes(), UBERBLOCK_MAGIC.to_be_bytes()];
    blocks.bytes(UBERBLOCKS, 128 * UBERBLOCK).is_ok_and(|ring| {
        ring.chunks_exact(UBERBLOCK).any(|uberblock| magics.iter().any(|magic| uberblock.starts_with(magic)))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use crate::image::DiskImage;
    use crate::image::blocks::Blocks;
    use crate::image::boot::{Wishes, plan};

    fn told(at: usize, magic: &[u8]) -> String {
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        let disk = DiskImage::new(Path::new("disk"), "raw", Blocks::new(Arc::new(bytes)));
        plan(&disk, &Wishes::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_read_is_told_by_name() {
        for (at, magic, expected) in [
            ((128 << 10) + 5 * 1024, &b"\x0c\xb1\xba\0\0\0\0\0"[..], "ZFS"),
            (0, b"XFSB", "an XFS file system cannot be read here"),
            (0x1_0040, b"_BHRfS_M", "a btrfs file system cannot be read here"),
            (512, b"LABELONE", "a physical volume of LVM cannot be read here"),
            (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS) cannot be read here"),
            (4086, b"SWAPSPACE2", "swap space cannot be read here"),
            (0, b"", "no known file system"),
        ] {
            let told = told(at, magic);
            assert!(told.contains(expected), "{told}");
        }
    }
}
