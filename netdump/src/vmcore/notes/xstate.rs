//! `NT_X86_XSTATE`: the XSAVE area in the standard format (Intel SDM volume 1, 13.4), as Linux puts it into the core of
//! a process and debuggers expect it: XCR0 in the first software-reserved word, and just as long as XCR0 asks for.

use std::ops::Range;

/// Where Linux puts XCR0 (`struct _fpx_sw_bytes`), and where gdb looks for it.
const XCR0: Range<usize> = 464..472;
/// XSTATE_BV: the state components in use.
const IN_USE: Range<usize> = 512..520;
const X87_AND_SSE: u64 = 3;
/// Legacy region and header.
const SMALLEST: usize = 576;
/// Where each state component ends, by its bit in XCR0, on Intel's processors: AVX, MPX (2), AVX-512 (3), PKRU, AMX (2).
/// Some of AMD's have PKRU in another place, which lies before this one.
const ENDS: [(u32, usize); 9] =
    [(2, 832), (3, 1024), (4, 1088), (5, 1152), (6, 1664), (7, 2688), (9, 2696), (17, 2816), (18, 11_008)];

/// The descriptor for an area; `None` when there is none.
///
/// KVM gives areas of 4096 bytes whatever the processor has; gdb warns of every byte too many. What is cut off is
/// zeros.
pub(super) fn emit(area: &[u8]) -> Option<Vec<u8>> {
    let mut area = area.to_vec();
    let in_use = u64::from_le_bytes(area.get(IN_USE)?.try_into().ok()?);
    let mut xcr0 = u64::from_le_bytes(area[XCR0].try_into().ok()?);
    if xcr0 == 0 {
        xcr0 = in_use | X87_AND_SSE;
        area[XCR0].copy_from_slice(&xcr0.to_le_bytes());
    }
    let len =
        ENDS.iter().filter(|(bit, _)| xcr0 >> bit & 1 == 1).map(|(_, end)| *end).fold(SMALLEST, usize::max);
    if area.get(len..).is_some_and(|rest| rest.iter().all(|&byte| byte == 0)) {
        area.truncate(len);
    }
    Some(area)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KVM's 4096 bytes with these features enabled and in use, and a mark in the last byte that AVX has.
    fn area(xcr0: u64, in_use: u64) -> Vec<u8> {
        let mut area = vec![0; 4096];
        area[XCR0].copy_from_slice(&xcr0.to_le_bytes());
        area[IN_USE].copy_from_slice(&in_use.to_le_bytes());
        area[831] = 9;
        area
    }

    #[test]
    fn area_is_as_long_as_its_features_ask_for() {
        for (xcr0, len) in [(7, 832), (0x1f, 1088), (0xe7, 2688), (0x2e7, 2696)] {
            assert_eq!(emit(&area(xcr0, 0)).map(|area| area.len()), Some(len), "{xcr0:#x}");
        }
    }

    #[test]
    fn unknown_features_are_kept() {
        assert_eq!(emit(&area(3, 3)).map(|area| area.len()), Some(4096), "AVX state without its feature");
        let mut unknown = area(1 << 40 | 7, 0);
        unknown[4000] = 1;
        assert_eq!(emit(&unknown), Some(unknown));
    }

    #[test]
    fn enabled_features_are_those_in_use_when_nothing_says_more() {
        let area = emit(&area(0, 4)).unwrap();
        assert_eq!((area.len(), &area[XCR0]), (832, &[7, 0, 0, 0, 0, 0, 0, 0][..]));
    }

    #[test]
    fn what_is_no_area_is_left_out() {
        assert_eq!(emit(&[]), None);
        assert_eq!(emit(&[0; 519]), None);
        assert_eq!(emit(&[0; 520]).map(|area| area.len()), Some(520));
    }
}
