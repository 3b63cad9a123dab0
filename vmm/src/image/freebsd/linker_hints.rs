//! `linker.hints`: which file of a folder has which module (freebsd-src `usr.sbin/kldxref`, read by
//! `stand/common/module.c`). Little-endian: u32 format version, then records: u32 length of what follows, u32 type, data.
//! Strings have a byte with their length before them, numbers are aligned to 4 bytes from the record's own start.

use super::metadata::Needed;

/// The format (`LINKER_HINTS_VERSION`), and the largest file that the loader takes (`LINKER_HINTS_MAX`).
const VERSION: u32 = 1;
pub(super) const MOST: u64 = 1 << 20;
/// A version of a module (`MDT_VERSION`): name, version, file.
const MODULE_VERSION: u32 = 3;

/// The file that has a module: of the preferred version, else the newest that will do.
pub(super) fn file_of(hints: &[u8], module: &str, needed: Option<Needed>) -> Option<String> {
    let mut rest = hints.get(4..).filter(|_| number(hints) == Some(VERSION))?;
    let mut best: Option<(i32, &[u8])> = None;
    while let Some(len) = number(rest).and_then(|len| usize::try_from(len).ok()) {
        let (record, behind) = rest.get(4..)?.split_at_checked(len)?;
        rest = behind;
        if number(record) != Some(MODULE_VERSION) {
            continue;
        }
        let Some((name, version, file)) = version_of(record) else { continue };
        if name != module.as_bytes() {
            continue;
        }
        if needed.is_none_or(|needed| needed.preferred == version) {
            return text(file);
        }
        let will_do = needed.is_some_and(|needed| needed.range().contains(&version));
        if will_do && best.is_none_or(|(other, _)| version > other) {
            best = Some((version, file));
        }
    }
    best.and_then(|(_, file)| text(file))
}

/// Name, version and file of a record.
fn version_of(record: &[u8]) -> Option<(&[u8], i32, &[u8])> {
    let (name, at) = string(record, 4)?;
    let at = at.next_multiple_of(4);
    let version = number(record.get(at..)?)?.cast_signed();
    let (file, _) = string(record, at + 4)?;
    Some((name, version, file))
}

/// A string, and where it ends.
fn string(record: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let len = usize::from(*record.get(at)?);
    let string = record.get(at + 1..)?.get(..len)?;
    Some((string, at + 1 + len))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// A file's name: one name, not a path to somewhere else.
fn text(name: &[u8]) -> Option<String> {
    let name = str::from_utf8(name).ok()?;
    (!name.is_empty() && !name.contains(['/', '\0'])).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as kldxref writes it: a module has a record for its version and one for itself.
    fn hints(modules: &[(&str, i32, &str)]) -> Vec<u8> {
        let mut hints = VERSION.to_le_bytes().to_vec();
        let string = |record: &mut Vec<u8>, text: &str| {
            record.push(u8::try_from(text.len()).unwrap());
            record.extend_from_slice(text.as_bytes());
        };
        for (name, version, file) in modules {
            let mut record = MODULE_VERSION.to_le_bytes().to_vec();
            string(&mut record, name);
            record.resize(record.len().next_multiple_of(4), 0);
            record.extend_from_slice(&version.to_le_bytes());
            string(&mut record, file);
            let mut other = 2_u32.to_le_bytes().to_vec();
            string(&mut other, name);
            string(&mut other, file);
            for mut record in [record, other] {
                record.resize(record.len().next_multiple_of(4), 0);
                hints.extend_from_slice(&u32::try_from(record.len()).unwrap().to_le_bytes());
                hints.extend_from_slice(&record);
            }
        }
        hints
    }

    #[test]
    fn a_module_is_found_by_its_version() {
        let hints =
            hints(&[("virtio", 1, "virtio.ko"), ("x", 1, "x1.ko"), ("x", 3, "x3.ko"), ("x", 2, "x2.ko")]);
        let find = |name, minimum, preferred, maximum| {
            file_of(&hints, name, Some(Needed { minimum, preferred, maximum }))
        };
        assert_eq!(file_of(&hints, "virtio", None).as_deref(), Some("virtio.ko"));
        assert_eq!(find("x", 1, 2, 9).as_deref(), Some("x2.ko"));
        assert_eq!(find("x", 1, 7, 9).as_deref(), Some("x3.ko"));
        assert_eq!(find("x", 1, 7, 2).as_deref(), Some("x2.ko"));
        assert_eq!(find("x", 4, 4, 9), None);
        assert_eq!(file_of(&hints, "y", None), None);
    }

    #[test]
    fn damaged_hints_name_nothing_or_a_plain_name() {
        let whole = hints(&[("virtio", 1, "virtio.ko"), ("x", 1, "../x.ko"), ("z", 1, "z.ko")]);
        assert_eq!(file_of(&whole, "x", None), None);
        for len in 0..whole.len() {
            assert!(matches!(file_of(&whole[..len], "z", None).as_deref(), None | Some("z.ko")));
        }
        for at in 0..whole.len() {
            let mut hints = whole.clone();
            hints[at] = 0xff;
            file_of(&hints, "z", None);
        }
    }
}
