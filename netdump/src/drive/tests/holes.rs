//! Cores with zeros, and how their digest is made.

use super::*;
use crate::vmcore::cpu::CpuState;
use crate::vmcore::{
    CoreNotes, DumpFormat, MemoryError, MemoryRange, PhysicalMemory, StoppedGuest, raw::Raw,
};

/// Pages that the guest touched, each full of a byte; the others must not be read.
#[derive(Default)]
struct Guest {
    ranges: Vec<MemoryRange>,
    touched: BTreeMap<u64, u8>,
    unreadable: Option<u64>,
}

const PAGE: u64 = 4096;

impl Guest {
    fn new(pages: u64) -> Self {
        Self { ranges: vec![MemoryRange { start: 0, len: pages * PAGE }], ..Self::default() }
    }

    fn touch(mut self, pages: Range<u64>, byte: u8) -> Self {
        self.touched.extend(pages.map(|page| (page, byte)));
        self
    }

    /// What the core must be.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.ranges[0].len).unwrap()];
        for (number, page) in bytes.chunks_mut(4096).enumerate() {
            let number = number as u64;
            page.fill(
                self.touched.get(&number).copied().filter(|_| self.unreadable != Some(number)).unwrap_or(0),
            );
        }
        bytes
    }

    fn dump(&self, zeros: Zeros) -> (DumpReport, Stored, u64) {
        let notes = CoreNotes::default();
        let guest = StoppedGuest { memory: self, symbols: None, notes: &notes };
        let image = Raw.plan(&guest).unwrap().image;
        let dense = Dense::new(&image);
        let core: &(dyn ReadAt + Sync) = if zeros == Zeros::Send { &dense } else { &image };
        let [mut near, far] = pipe::pair(MACS, 1500, 256);
        let server = serve(far);
        let report = send(config(), core, &mut near, &mut go_on);
        assert_eq!((report.outcome, report.reason.as_deref()), (Outcome::Complete, None));
        assert_eq!(report.digest, Some(Digest::of(&self.bytes())));
        assert_eq!(report.bytes_sent + report.bytes_untouched + report.bytes_zero, report.length);
        (report, server.join().unwrap(), image.bad_pages())
    }
}

impl PhysicalMemory for Guest {
    fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        for (byte, at) in buf.iter_mut().zip(address..) {
            let page = at / PAGE;
            if self.unreadable == Some(page) {
                let source = std::io::ErrorKind::Other.into();
                return Err(MemoryError::Unreadable { address, len: 1, source });
            }
            *byte = *self.touched.get(&page).unwrap_or_else(|| panic!("page {page} was not touched"));
        }
        Ok(())
    }

    fn next_touched(&self, address: u64) -> Option<Range<u64>> {
        let (&page, _) = self.touched.range(address / PAGE..).next()?;
        Some(address.max(page * PAGE)..(page + 1) * PAGE)
    }

    fn cpus(&self) -> &[CpuState] {
        &[]
    }
}

/// The file of a server that was given these messages, where nothing was written zeros.
fn file(stored: &Stored, length: u64) -> Vec<u8> {
    let mut file = vec![0; usize::try_from(length).unwrap()];
    for (offset, bytes) in &stored.pieces {
        let start = usize::try_from(*offset).unwrap();
        file[start..start + bytes.len()].copy_from_slice(bytes);
    }
    file
}

#[test]
fn zeros_are_left_out_whether_the_guest_touched_them_or_not() {
    let guest = Guest::new(1000).touch(0..300, 1).touch(300..500, 0).touch(500..550, 2).touch(900..1000, 3);
    let (report, stored, _) = guest.dump(Zeros::Skip);
    assert_eq!((report.bytes_untouched, report.bytes_zero), (350 * PAGE, 200 * PAGE));
    assert!(file(&stored, report.length) == guest.bytes());
    let sent: usize = stored.pieces.values().map(Vec::len).sum();
    assert_eq!(sent as u64, 450 * PAGE);
}

#[test]
fn all_zeros_are_sent_if_asked_for_and_untouched_memory_is_still_not_read() {
    let guest = Guest::new(1000).touch(0..300, 1).touch(300..500, 0).touch(500..551, 2);
    let (report, stored, _) = guest.dump(Zeros::Send);
    assert_eq!((report.bytes_untouched, report.bytes_zero, report.bytes_sent), (0, 0, 1000 * PAGE));
    assert!(file(&stored, report.length) == guest.bytes());
}

#[test]
fn an_unreadable_page_is_zeros_in_the_core_and_in_its_digest() {
    let guest = Guest { unreadable: Some(77), ..Guest::new(300).touch(0..300, 9) };
    let (report, stored, bad_pages) = guest.dump(Zeros::Skip);
    assert!(file(&stored, report.length) == guest.bytes());
    assert_eq!(bad_pages, 1);
}

#[test]
fn a_hole_of_a_tebibyte_takes_no_time() {
    /// A byte, a TiB of nothing, a byte.
    struct Hole;
    impl ReadAt for Hole {
        fn length(&self) -> u64 {
            1 << 40
        }
        fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            buf.fill(1);
            Ok(())
        }
        fn next_data(&self, offset: u64) -> Option<Range<u64>> {
            (offset == 0).then_some(0..1)
        }
    }
    let [mut near, far] = pipe::pair(MACS, 1500, 256);
    let server = serve(far);
    let config = ClientConfig { deadline: Some(SERVER_PATIENCE), ..config() };
    let report = send(config, &Hole, &mut near, &mut go_on);
    assert_eq!((report.outcome, report.reason), (Outcome::Complete, None));
    assert_eq!(report.bytes_sent, 4097);
    assert!(report.digest.is_some());
    server.join().unwrap();
}

/// A GiB that is quickly sent, as it is said to be zeros, and takes minutes to hash.
struct Slow;

impl ReadAt for Slow {
    fn length(&self) -> u64 {
        1 << 30
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if buf.len() > 4096 {
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn is_zeros(&self, _offset: u64, _len: usize) -> bool {
        true
    }
}

#[test]
fn a_digest_that_takes_too_long_costs_neither_deadline_nor_dump() {
    let [mut near, far] = pipe::pair(MACS, 1500, 256);
    let server = serve(far);
    let config = ClientConfig { deadline: Some(Duration::from_secs(2)), ..config() };
    let report = send(config, &Slow, &mut near, &mut go_on);
    assert_eq!((report.outcome, report.reason, report.digest), (Outcome::Complete, None, None));
    assert!(report.seconds + report.digest_seconds >= 2.0);
    server.join().unwrap();
}

#[test]
fn the_caller_can_stop_the_wait_for_the_digest() {
    let [mut near, far] = pipe::pair(MACS, 1500, 256);
    let server = serve(far);
    let mut control = |progress: &Progress| match progress.phase {
        Phase::Closed => ControlFlow::Break("interrupted".to_owned()),
        _ => ControlFlow::Continue(()),
    };
    let report = send(config(), &Slow, &mut near, &mut control);
    assert_eq!((report.outcome, report.reason, report.digest), (Outcome::Complete, None, None));
    server.join().unwrap();
}
