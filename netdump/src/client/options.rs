//! How options say how much may be on its way, and how fast.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use thiserror::Error;

use super::config::{MAX_WINDOW, WindowChoice};

/// [`WindowChoice::Classic`] in options.
const CLASSIC: &str = "classic";

/// The text is no window.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no window: give the most messages on their way, 1 to {MAX_WINDOW}, or '{CLASSIC}'")]
pub struct ParseWindowError(String);

impl FromStr for WindowChoice {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let cap = |text: &str| text.parse().ok().filter(|cap| (1..=MAX_WINDOW).contains(cap));
        match text {
            CLASSIC => Ok(Self::Classic),
            _ => cap(text).map(|cap| Self::Adaptive { cap }).ok_or_else(|| ParseWindowError(text.to_owned())),
        }
    }
}

impl fmt::Display for WindowChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive { cap } => write!(f, "{cap}"),
            Self::Classic => f.write_str(CLASSIC),
        }
    }
}

/// The text is no rate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no rate: give bytes in a second, such as 500M (K, M and G are 10^3, 10^6 and 10^9)")]
pub struct ParseRateError(String);

/// Reads bytes in a second, such as `500M`.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, ParseRateError> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 1_000),
        Some((at, 'M' | 'm')) => (&text[..at], 1_000_000),
        Some((at, 'G' | 'g')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    // Unlike u64's own parser, refuse a sign.
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok());
    let rate = number.flatten().and_then(|number| number.checked_mul(unit)).and_then(NonZeroU64::new);
    rate.ok_or_else(|| ParseRateError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_numbers_or_classic() {
        for text in ["classic", "1", "64", "16384"] {
            assert_eq!(text.parse::<WindowChoice>().unwrap().to_string(), text);
        }
        for text in ["", "0", "16385", "-1", "64k", "Classic", "99999999999"] {
            let said = text.parse::<WindowChoice>().unwrap_err().to_string();
            let want = format!(
                "'{text}' is no window: give the most messages on their way, 1 to 16384, or 'classic'"
            );
            assert_eq!(said, want);
        }
    }

    #[test]
    fn rates_have_decimal_units() {
        let rate = |text| parse_rate(text).map(NonZeroU64::get);
        assert_eq!([rate("1"), rate("7k"), rate("500M")], [Ok(1), Ok(7_000), Ok(500_000_000)]);
        assert_eq!(rate("100G"), Ok(100_000_000_000));
        for text in ["", "0", "0M", "M", "-5M", "+5M", "1.5G", "5MB", "99999999999999G", "ü"] {
            assert!(rate(text).unwrap_err().to_string().starts_with(&format!("'{text}' is no rate: ")));
        }
    }
}
