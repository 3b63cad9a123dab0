use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::devices::virtio::contract::{DATA, Driver, Registers as _};
use crate::devices::virtio::driver::Buffer;
use crate::devices::virtio::mmio::bench::Registers;

const LEN: usize = 1 << 20;
const SECTORS: u64 = 2048;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x20;
const BUFFER: u64 = DATA + 0x1000;

struct Guest {
    driver: Driver<Registers>,
    file: tempfile::NamedTempFile,
}

impl Guest {
    fn new(access: Access) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents()).unwrap();
        let disk = Disk::open(&DiskSpec { path: file.path().into(), access }).unwrap();
        let device = Arc::new(Mutex::new(Blk::new(Arc::new(disk), 3)));
        Self { driver: Driver::new(device), file }
    }

    /// A request with these buffers between header and status: the status, and bytes written by the device.
    fn request(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> (u32, u32) {
        self.header(kind, sector);
        self.driver.write(STATUS, &[0xee]);
        let ends = (Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1));
        let chain = [&[ends.0], buffers, &[ends.1]].concat();
        let written = self.driver.request(0, &chain);
        (self.driver.read(STATUS, 1)[0].into(), written)
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.write(HEADER, &[&kind.to_le_bytes()[..], &[0xee; 4], &sector.to_le_bytes()].concat());
    }

    /// A discard or write-zeroes request of these ranges: sector, count, flags.
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u32 {
        for (at, (sector, count, flags)) in (BUFFER..).step_by(16).zip(ranges) {
            let bytes = [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat();
            self.driver.write(at, &bytes);
        }
        let len = u32::try_from(16 * ranges.len()).unwrap();
        self.request(kind, 0, &[Buffer::Read(BUFFER, len)]).0
    }

    fn file(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }
}

fn contents() -> Vec<u8> {
    (0..=250).cycle().take(LEN).collect()
}

#[test]
fn sectors_are_read_and_written() {
    let mut guest = Guest::new(Access::Full);
    let room = [Buffer::Write(BUFFER, 1000), Buffer::Write(BUFFER + 2000, 536)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 5, &room), (VIRTIO_BLK_S_OK, 1537));
    let got = [guest.driver.read(BUFFER, 1000), guest.driver.read(BUFFER + 2000, 536)].concat();
    assert!(got == contents()[5 * 512..8 * 512]);
    guest.driver.write(BUFFER, &[9; 1024]);
    let data = [Buffer::Read(BUFFER, 1), Buffer::Read(BUFFER, 1023)];
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, SECTORS - 2, &data), (VIRTIO_BLK_S_OK, 1));
    let mut expected = contents();
    expected[LEN - 1024..].fill(9);
    assert!(guest.file() == expected);
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
}

#[test]
fn header_data_and_status_may_share_buffers_and_lie_in_pieces() {
    let mut guest = Guest::new(Access::Full);
    guest.header(VIRTIO_BLK_T_OUT, 1);
    guest.driver.write(HEADER + 16, &[5; 512]);
    let chain = [Buffer::Read(HEADER, 7), Buffer::Read(HEADER + 7, 521), Buffer::Write(BUFFER, 1)];
    assert_eq!(guest.driver.request(0, &chain), 1);
    assert_eq!(guest.driver.read(BUFFER, 1), [0]);
    assert_eq!(guest.file()[512..1024], [5; 512]);
    guest.header(VIRTIO_BLK_T_IN, 1);
    let chain = [Buffer::Read(HEADER, 16), Buffer::Write(BUFFER, 513)];
    guest.driver.write(BUFFER + 512, &[0xee]);
    assert_eq!(guest.driver.request(0, &chain), 513);
    assert_eq!(guest.driver.read(BUFFER, 513), [&[5; 512][..], &[0]].concat());
}

#[test]
fn requests_that_leave_the_disk_or_cut_sectors_fail_and_move_nothing() {
    let mut guest = Guest::new(Access::Full);
    for (sector, len) in [(SECTORS, 512), (SECTORS - 1, 1024), (0, 511), (u64::MAX, 512), (1 << 55, 512)] {
        guest.driver.write(BUFFER, &[0xee; 1024]);
        let read = guest.request(VIRTIO_BLK_T_IN, sector, &[Buffer::Write(BUFFER, len)]);
        assert_eq!(read, (VIRTIO_BLK_S_IOERR, 1), "{len} bytes at {sector}");
        assert_eq!(guest.driver.read(BUFFER, 1024), [0xee; 1024]);
        let written = guest.request(VIRTIO_BLK_T_OUT, sector, &[Buffer::Read(BUFFER, len)]);
        assert_eq!(written, (VIRTIO_BLK_S_IOERR, 1), "{len} bytes at {sector}");
    }
    assert!(guest.file() == contents());
}

#[test]
fn chains_without_header_or_status_are_given_back() {
    let mut guest = Guest::new(Access::Full);
    guest.header(VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(guest.driver.request(0, &[Buffer::Read(HEADER, 16)]), 0);
    assert_eq!(guest.driver.request(0, &[Buffer::Read(HEADER, 15), Buffer::Write(STATUS, 1)]), 1);
    assert_eq!(guest.driver.read(STATUS, 1), [1]);
    assert_eq!(guest.request(99, 0, &[]), (VIRTIO_BLK_S_UNSUPP, 1));
}

#[test]
fn a_disk_tells_its_number_in_as_many_bytes_as_there_is_room_for() {
    let mut guest = Guest::new(Access::Full);
    for len in [20, 30, 8] {
        guest.driver.write(BUFFER, &[0xee; 30]);
        let written = guest.request(VIRTIO_BLK_T_GET_ID, 0, &[Buffer::Write(BUFFER, len)]);
        assert_eq!(written, (VIRTIO_BLK_S_OK, len.min(20) + 1));
        let id = guest.driver.read(BUFFER, 20);
        let told = usize::try_from(len).unwrap().min(20);
        assert_eq!(id[..told], b"vmm-disk-3\0\0\0\0\0\0\0\0\0\0"[..told]);
    }
}

#[test]
fn discarded_ranges_become_holes_and_zeroed_ones_read_as_zeros() {
    let mut guest = Guest::new(Access::Full);
    let blocks = |guest: &Guest| guest.file.as_file().metadata().unwrap().blocks();
    let before = blocks(&guest);
    assert_eq!(guest.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 512, 0), (1024, 512, 0)]), VIRTIO_BLK_S_OK);
    assert!(blocks(&guest) <= before - 1024, "the space is given back");
    assert_eq!(guest.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(600, 3, 0), (700, 64, 1)]), VIRTIO_BLK_S_OK);
    let mut expected = contents();
    for (sector, count) in [(0, 512), (1024, 512), (600, 3), (700, 64)] {
        expected[sector * 512..(sector + count) * 512].fill(0);
    }
    assert!(guest.file() == expected);
}

#[test]
fn hostile_ranges_are_refused_before_any_is_touched() {
    let good = (0, 8, 0);
    for (bad, status) in [
        ((SECTORS, 1, 0), VIRTIO_BLK_S_IOERR),
        ((SECTORS - 1, 2, 0), VIRTIO_BLK_S_IOERR),
        ((u64::MAX, 8, 0), VIRTIO_BLK_S_IOERR),
        ((0, u32::MAX, 0), VIRTIO_BLK_S_IOERR),
        ((0, 0, 0), VIRTIO_BLK_S_IOERR),
        ((0, 8, 2), VIRTIO_BLK_S_UNSUPP),
    ] {
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            let mut guest = Guest::new(Access::Full);
            assert_eq!(guest.ranges(kind, &[good, bad]), status, "{bad:?}");
            assert_eq!(guest.ranges(kind, &[good; 17]), VIRTIO_BLK_S_IOERR);
            assert_eq!(guest.request(kind, 0, &[Buffer::Read(BUFFER, 15)]).0, VIRTIO_BLK_S_IOERR);
            assert_eq!(guest.request(kind, 0, &[]).0, VIRTIO_BLK_S_IOERR);
            assert!(guest.file() == contents());
        }
    }
    let mut guest = Guest::new(Access::Full);
    // Only zeros may be unmapped.
    assert_eq!(guest.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 1)]), VIRTIO_BLK_S_UNSUPP);
}

#[test]
fn a_disk_that_may_only_be_read_says_so_and_stays_as_it_is() {
    let mut guest = Guest::new(Access::ReadOnly);
    let offered = guest.driver.registers.offered();
    assert_eq!(offered & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    let data = [Buffer::Read(BUFFER, 512)];
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 0, &data), (VIRTIO_BLK_S_IOERR, 1));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(guest.ranges(kind, &[(0, 8, 0)]), VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, &[Buffer::Write(BUFFER, 512)]).0, VIRTIO_BLK_S_OK);
    assert!(guest.file() == contents());
}

#[test]
fn configuration_tells_size_and_limits() {
    let mut guest = Guest::new(Access::Full);
    let mut config = [0; 60];
    guest.driver.registers.read_config(0, &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(12), word(20)), (2048, 0, 254, 512));
    assert_eq!((word(24), word(36), word(40), word(44)), (0x0008_0003, 1 << 21, 16, 8));
    assert_eq!((word(48), word(52), config[56]), (1 << 21, 16, 1));
}

#[test]
fn a_request_under_way_ends_before_the_device_is_stopped() {
    let mut guest = Guest::new(Access::Full);
    for _ in 0..20 {
        guest.header(VIRTIO_BLK_T_IN, 0);
        let room = (0..14).map(|n| Buffer::Write(BUFFER + 0x2000 * n, 0x2000));
        let chain: Vec<_> = [Buffer::Read(HEADER, 16)].into_iter().chain(room).collect();
        guest.driver.publish(0, 0, &chain);
        guest.driver.device.lock().unwrap().reset();
        let after = guest.driver.read(0, 0x8_0000);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(guest.driver.read(0, 0x8_0000) == after);
        let offered = guest.driver.registers.offered();
        guest.driver.start(offered);
    }
}

#[test]
fn writes_to_an_overlay_are_read_back_and_the_file_stays_as_it_is() {
    let mut guest = Guest::new(Access::Overlay);
    let mut expected = contents();
    guest.driver.write(BUFFER, &[9; 1536]);
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 7, &[Buffer::Read(BUFFER, 1536)]).0, VIRTIO_BLK_S_OK);
    expected[7 * 512..10 * 512].fill(9);
    assert_eq!(guest.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(20, 3, 1), (9, 1, 0)]), VIRTIO_BLK_S_OK);
    expected[20 * 512..23 * 512].fill(0);
    expected[9 * 512..10 * 512].fill(0);
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
    // Across what was written, from and to what was not, in odd pieces.
    let room = [Buffer::Write(BUFFER, 1000), Buffer::Write(BUFFER + 2000, 40 * 512 - 1000)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, &room).0, VIRTIO_BLK_S_OK);
    let got = [guest.driver.read(BUFFER, 1000), guest.driver.read(BUFFER + 2000, 40 * 512 - 1000)].concat();
    assert!(got == expected[..40 * 512]);
    // What is discarded may be anything; sectors that were never written stay the file's.
    assert_eq!(guest.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 100, 0)]), VIRTIO_BLK_S_OK);
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 30, &[Buffer::Write(BUFFER, 512)]).0, VIRTIO_BLK_S_OK);
    assert!(guest.driver.read(BUFFER, 512) == contents()[30 * 512..31 * 512]);
    assert!(guest.file() == contents());
}
