use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::image::fs::recognise;

const BLOCK: usize = 4096;
const FRAGMENT: usize = 512;
const INODES: u32 = 32;
const TWO: Disk = Disk { superblock: 65_536, inode: 256, at: 112, address: 8 };
const ONE: Disk = Disk { superblock: 8_192, inode: 128, at: 40, address: 4 };

/// Where things are on a disk of one cylinder group; freebsd.md has the offsets.
#[derive(Clone, Copy)]
struct Disk {
    superblock: usize,
    inode: usize,
    /// Addresses in an inode.
    at: usize,
    address: usize,
}

impl Disk {
    fn inodes(self) -> usize {
        self.superblock + 8192
    }

    fn empty(self) -> Vec<u8> {
        let mut image = vec![0; self.inodes() + 32 * 256];
        let mut field = |at: usize, bytes: &[u8]| {
            image[self.superblock + at..][..bytes.len()].copy_from_slice(bytes);
        };
        let magic: u32 = if self.address == 8 { 0x1954_0119 } else { 0x0001_1954 };
        let inodes_at = u32::try_from(self.inodes() / FRAGMENT).unwrap();
        let numbers =
            [(16, inodes_at), (28, u32::MAX), (44, 1), (48, 4096), (52, 512), (56, 8), (144, 0xabc)];
        for (at, value) in
            [(184, INODES), (188, 1 << 20), (1320, 120), (1372, magic)].into_iter().chain(numbers)
        {
            field(at, &value.to_le_bytes());
        }
        field(1000, &(self.superblock as u64).to_le_bytes());
        field(680, b"rootfs");
        image
    }

    fn number(self, at: usize, value: usize, image: &mut [u8]) {
        image[at..at + self.address].copy_from_slice(&(value as u64).to_le_bytes()[..self.address]);
    }

    /// A file at the image's end, its block 2 a hole.
    fn file(self, image: &mut Vec<u8>, number: usize, mode: u16, content: &[u8]) {
        let inode = self.inodes() + number * self.inode;
        let (size_at, indirect) = if self.address == 8 { (16, image.len()) } else { (8, image.len()) };
        image[inode..inode + 2].copy_from_slice(&mode.to_le_bytes());
        image[inode + size_at..][..8].copy_from_slice(&(content.len() as u64).to_le_bytes());
        image.resize(image.len() + BLOCK, 0);
        self.number(inode + self.at + 12 * self.address, indirect / FRAGMENT, image);
        for (block, bytes) in content.chunks(BLOCK).enumerate() {
            if bytes.iter().all(|&byte| byte == 0) {
                continue;
            }
            let at = match block {
                0..12 => inode + self.at + block * self.address,
                _ => indirect + (block - 12) * self.address,
            };
            self.number(at, image.len() / FRAGMENT, image);
            image.extend_from_slice(bytes);
            image.resize(image.len().next_multiple_of(FRAGMENT), 0);
        }
    }

    fn folder(self, image: &mut Vec<u8>, number: usize, entries: &[(u32, u8, &str)]) {
        let mut chunk = Vec::new();
        for (index, (inode, kind, name)) in entries.iter().enumerate() {
            let start = chunk.len();
            let len = if index + 1 == entries.len() {
                512 - start
            } else {
                (8 + name.len() + 1).next_multiple_of(4)
            };
            chunk.extend_from_slice(&inode.to_le_bytes());
            chunk.extend_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
            chunk.extend_from_slice(&[*kind, u8::try_from(name.len()).unwrap()]);
            chunk.extend_from_slice(name.as_bytes());
            chunk.resize(start + len, 0);
        }
        self.file(image, number, 0x41ed, &chunk);
    }

    fn link(self, image: &mut Vec<u8>, number: usize, target: &str) {
        if target.len() < 60 {
            self.file(image, number, 0xa1ed, &[]);
            let inode = self.inodes() + number * self.inode;
            let size_at = if self.address == 8 { 16 } else { 8 };
            image[inode + size_at] = u8::try_from(target.len()).unwrap();
            image[inode + self.at..][..target.len()].copy_from_slice(target.as_bytes());
        } else {
            self.file(image, number, 0xa1ed, target.as_bytes());
        }
    }

    /// A disk with a little of everything.
    fn sample(self) -> Vec<u8> {
        let mut image = self.empty();
        let root = [
            (2, 4, "."),
            (2, 4, ".."),
            (3, 4, "boot"),
            (0, 8, "gone"),
            (7, 10, "loop"),
            (8, 10, "long"),
            (9, 2, "tty"),
        ];
        self.folder(&mut image, 2, &root);
        let boot = [(3, 4, "."), (2, 4, ".."), (4, 8, "kernel"), (5, 10, "k"), (6, 10, "up")];
        self.folder(&mut image, 3, &boot);
        self.file(&mut image, 4, 0x81ed, &kernel());
        self.link(&mut image, 5, "kernel");
        self.link(&mut image, 6, "/boot/../boot/./../../boot/k");
        self.link(&mut image, 7, "loop");
        self.link(&mut image, 8, &format!("{}boot/kernel", "./".repeat(200)));
        self.file(&mut image, 9, 0x21ed, &[]);
        image
    }
}

/// More than the direct blocks hold, with a hole and a last block that is not whole.
fn kernel() -> Vec<u8> {
    let mut kernel: Vec<u8> = (0..70_000_u32).map(|n| u8::try_from(n % 251).unwrap() + 1).collect();
    kernel[2 * BLOCK..3 * BLOCK].fill(0);
    kernel
}

fn open(image: Vec<u8>) -> Result<Box<dyn FileSystem>, FsError> {
    let blocks = Blocks::new(Arc::new(image));
    assert_eq!(recognise(&blocks).map(FileSystemType::name), Some("ufs"));
    Type.open(blocks)
}

#[test]
fn files_are_found_by_paths_and_links() {
    for disk in [ONE, TWO] {
        let fs = open(disk.sample()).unwrap();
        assert_eq!((fs.kind(), fs.label().as_deref()), ("ufs", Some("rootfs")));
        assert_eq!(fs.uuid().as_deref(), Some("00000abc00000000"));
        for path in ["/boot/kernel", "boot//k", "/boot/up", "/long", "/../boot/../boot/kernel"] {
            assert!(fs.read(path, 70_000).unwrap() == kernel(), "{path}");
        }
        let found = fs.metadata("/boot/k").unwrap();
        assert_eq!((found.kind, found.len), (FileKind::File, 70_000));
        assert_eq!(fs.metadata("/").unwrap().kind, FileKind::Directory);
        let names: Vec<_> = fs.list("/").unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
        let expected = [
            ("boot", FileKind::Directory),
            ("loop", FileKind::Link),
            ("long", FileKind::Link),
            ("tty", FileKind::Other),
        ];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }
}

#[test]
fn what_is_not_there_or_something_else_is_told() {
    let fs = open(TWO.sample()).unwrap();
    let told = |path| fs.read(path, 100).unwrap_err().to_string();
    assert_eq!(told("/boot/none"), "there is no /boot/none");
    assert_eq!(told("/gone"), "there is no /gone");
    assert_eq!(told("/boot"), "/boot is no regular file");
    assert_eq!(told("/tty"), "/tty is no regular file");
    assert_eq!(told("/boot/kernel/x"), "/boot/kernel/x is no directory");
    assert_eq!(told("/boot/kernel"), "/boot/kernel has 70000 bytes, at most 100 are read");
    assert_eq!(told("/loop"), "/loop leads through more than 32 symbolic links");
    assert_eq!(fs.list("/boot/k").unwrap_err().to_string(), "/boot/k is no directory");
    assert!(matches!(fs.metadata(&"/boot/..".repeat(200)), Err(FsError::TooMany { .. })));
}

#[test]
fn damage_is_told_with_its_place() {
    let told = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = TWO.sample();
        change(&mut image);
        open(image).and_then(|fs| fs.read("/boot/kernel", 1 << 40)).unwrap_err().to_string()
    };
    let (superblock, inodes) = (TWO.superblock, TWO.inodes());
    let put = |at: usize, bytes: &'static [u8]| {
        move |image: &mut Vec<u8>| image[at..][..bytes.len()].copy_from_slice(bytes)
    };
    let kernel = inodes + 4 * 256;
    for (change, expected) in [
        (&put(superblock + 48, &[0; 4]) as &dyn Fn(&mut Vec<u8>), "the superblock: blocks of 0 bytes"),
        (&put(superblock + 52, &[0, 1, 0, 0]), "the superblock: blocks of 4096 bytes with fragments of 256"),
        (&put(superblock + 184, &[0; 4]), "the superblock: 1 groups of 0 inodes and 1048576 fragments"),
        (&put(superblock + 184, &[4, 0, 0, 0]), "inode 4: there are inodes 2 to 3"),
        (&put(superblock + 1372, &[8, 4, 0x96, 0x19]), "the superblock: newfs did not finish"),
        (&put(inodes + 2 * 256, &[0; 2]), "inode 2: a name leads to it, but it is free"),
        (
            &put(inodes + 3 * 256 + 23, &[1]),
            "inode 3: a directory of 72057594037928448 bytes, at most 4194304 are read",
        ),
        (&put(kernel + 112, &[0xff; 8]), "block 0 of inode 4: fragment 0xffffffffffffffff"),
    ] {
        let told = told(change);
        assert_eq!(told, format!("the ufs file system is damaged: {expected}"));
    }
    assert_eq!(told(&put(kernel + 112 + 12 * 8 + 3, &[1])), "reading an indirect block of inode 4");
    assert_eq!(told(&|image| image.truncate(inodes)), "reading inode 2");
}

#[test]
fn directories_with_broken_entries_end() {
    let mut image = TWO.sample();
    // The root's content is the first block behind the inodes and its indirect block.
    let root = TWO.inodes() + 32 * 256 + BLOCK;
    for len in [0_u16, 4, 7, 513, 0xffff] {
        image[root + 4..root + 6].copy_from_slice(&len.to_le_bytes());
        let fs = open(image.clone()).unwrap();
        let told = fs.list("/").unwrap_err().to_string();
        assert_eq!(told, "the ufs file system is damaged: inode 2: its entry at byte 0 leaves its 512 bytes");
    }
}

#[test]
fn another_file_system_is_not_taken_for_one() {
    for image in [Vec::new(), vec![0; 1 << 20], vec![0xff; 1 << 20]] {
        assert!(!Type.recognises(&Blocks::new(Arc::new(image))));
    }
    // A copy of a superblock in another place is not the superblock.
    let mut image = vec![0; 8192];
    image.extend_from_slice(&TWO.sample()[65_536..]);
    assert!(!Type.recognises(&Blocks::new(Arc::new(image))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_disks_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        version in any::<bool>(),
    ) {
        let disk = if version { ONE } else { TWO };
        let mut image = disk.sample();
        let structures = image.len() - disk.superblock;
        for (at, value) in changes {
            image[disk.superblock + at.index(structures)] = value;
        }
        if let Some(kind) = recognise(&Blocks::new(Arc::new(image.clone())))
            && let Ok(fs) = kind.open(Blocks::new(Arc::new(image)))
        {
            for path in ["/boot/up", "/long", "/loop", "/tty"] {
                let _ = fs.read(path, 1 << 20);
                let _ = fs.list(path);
            }
            let _ = fs.list("/");
        }
    }
}
