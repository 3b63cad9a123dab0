//! What every format owes, whatever it is.

use netdump::ReadAt;
use netdump::vmcore::{ALL, PhysicalMemory};

use super::{guest, notes};

#[test]
fn every_format_is_found_by_its_name() {
    for format in ALL {
        assert_eq!(netdump::vmcore::format(format.name()).map(|found| found.name()), Some(format.name()));
    }
    assert!(netdump::vmcore::format("no such format").is_none());
}

#[test]
fn every_format_plans_without_reading_memory_and_reads_its_own_cores() {
    for format in ALL {
        let guest = guest().unreadable(0x2000..0x3000);
        let image = format.plan(&guest, &notes()).unwrap();
        assert_eq!(image.bad_pages(), 0, "{}", format.name());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        super::store(&image, &path);
        assert_eq!(image.bad_pages(), 1, "{}", format.name());

        let mut head = vec![0; 4096];
        image.read_at(0, &mut head).unwrap();
        assert!(format.recognise(&head), "{}", format.name());
        let core = netdump::vmcore::open(&path).unwrap();
        assert_eq!(core.format(), format.name());
        assert_eq!(core.notes(), &notes());
        assert_eq!(core.problems(), []);
        assert_eq!(core.expected_length(), image.length());
        let mut page = [0; 4096];
        for address in [0x1000, 0x2000, 0x10_0000, 0x12_0000, 1 << 32] {
            core.read(address, &mut page).unwrap();
            let expected: Vec<u8> = (address..address + 4096).map(|at| guest.byte_in_core(at)).collect();
            assert_eq!(page[..], expected, "{} {address:#x}", format.name());
        }
    }
}
