//! Which of two versions is the newer one, as the Boot Loader Specification wants it compared (UAPI group, "Version
//! Format Specification"): runs of digits by their value, runs of letters by their order, `~` before everything.

use std::cmp::Ordering;

/// Compares two versions, or names that have them.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    let is_version = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    loop {
        left = skip(left, |byte| !is_version(byte));
        right = skip(right, |byte| !is_version(byte));
        for separator in *b"~-^." {
            match (left.first() == Some(&separator), right.first() == Some(&separator)) {
                // `~` is older than an end, the others are newer than one.
                (true, false) if separator == b'~' => return Ordering::Less,
                (false, true) if separator == b'~' => return Ordering::Greater,
                (true, true) => {
                    left = &left[1..];
                    right = &right[1..];
                }
                (true, false) if right.is_empty() => return Ordering::Greater,
                (false, true) if left.is_empty() => return Ordering::Less,
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        if left.is_empty() || right.is_empty() {
            return left.len().cmp(&right.len());
        }
        let is_number = left[0].is_ascii_digit() || right[0].is_ascii_digit();
        let kind = |byte: &u8| if is_number { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
        let (mine, behind_mine) = run(left, kind);
        let (yours, behind_yours) = run(right, kind);
        let order = if is_number { number(mine).cmp(&number(yours)) } else { mine.cmp(yours) };
        if order != Ordering::Equal {
            return order;
        }
        if (mine.len(), yours.len()) == (0, 0) {
            // Two separators that differ.
            return left.cmp(right);
        }
        (left, right) = (behind_mine, behind_yours);
    }
}

fn skip(text: &[u8], what: impl Fn(&u8) -> bool) -> &[u8] {
    &text[text.iter().take_while(|byte| what(byte)).count()..]
}

fn run(text: &[u8], what: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|byte| what(byte)).count())
}

/// A number in an order of its value: its length without leading zeros, then its digits. No digits come first.
fn number(digits: &[u8]) -> (bool, usize, &[u8]) {
    let digits_only = skip(digits, |byte| *byte == b'0');
    (!digits.is_empty(), digits_only.len(), digits_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of the specification, and kernels of Debian and Fedora.
    #[test]
    fn versions_come_in_their_order() {
        for (older, newer) in [
            ("11", "11a"),
            ("systemd-123", "systemd-123.1"),
            ("122.1", "123~rc1-1"),
            ("123~rc1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-3", "123.1-1"),
            ("vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-50-amd64"),
            ("vmlinuz-6.1.0-50-amd64", "vmlinuz-6.12.117+deb13-amd64"),
            ("6.8.5-301.fc40.x86_64", "6.11.4-201.fc40.x86_64"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
            assert_eq!(compare(older, older), Ordering::Equal);
        }
        assert_eq!(compare("1.002", "1.2"), Ordering::Equal);
    }
}
