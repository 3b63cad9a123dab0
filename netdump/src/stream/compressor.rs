//! Which compressor, and how hard it tries: from options such as `gzip` or `zstd:3`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::vmcore::kdh::Compression;

/// FreeBSD's for either compressor (`kern.kerneldump_gzlevel`).
pub const DEFAULT_LEVEL: u8 = 6;

/// A compressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One gzip member.
    Gzip,
    /// One zstd frame.
    Zstd,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Its levels. Those of zstd above 19 need gigabytes of memory.
    pub fn levels(self) -> RangeInclusive<u8> {
        match self {
            Self::Gzip => 1..=9,
            Self::Zstd => 1..=19,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Method> for Compression {
    fn from(method: Method) -> Self {
        match method {
            Method::Gzip => Self::Gzip,
            Method::Zstd => Self::Zstd,
        }
    }
}

/// A compressor at one of its levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressor {
    /// Which.
    pub method: Method,
    /// One of its [levels](Method::levels).
    pub level: u8,
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.method, self.level)
    }
}

/// A compressor as an option asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressOption {
    method: Method,
    level: Option<u8>,
}

/// The text is no compressor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCompressError {
    /// Another name.
    #[error("there is no compression '{0}'; there are gzip and zstd, with a level as in zstd:3")]
    Method(String),
    /// Another level.
    #[error("'{level}' is no level of {method}: they are {} to {}", method.levels().start(), method.levels().end())]
    Level {
        /// The compressor.
        method: Method,
        /// The text where its level should be.
        level: String,
    },
}

impl CompressOption {
    /// Whether the option leaves the level open.
    pub fn is_level_open(self) -> bool {
        self.level.is_none()
    }

    /// The same with this level where none was given.
    pub(super) fn with_level(self, level: u8) -> Self {
        Self { level: self.level.or(Some(level)), ..self }
    }

    /// Reads a level of this option's compressor.
    pub fn parse_level(self, text: &str) -> Result<u8, ParseCompressError> {
        let level = text.parse().ok().filter(|level| self.method.levels().contains(level));
        level.ok_or_else(|| ParseCompressError::Level { method: self.method, level: text.to_owned() })
    }

    /// The compressor, with this level where the option leaves it open.
    pub(super) fn or_level(self, level: u8) -> Compressor {
        Compressor { method: self.method, level: self.level.unwrap_or(level) }
    }
}

impl FromStr for CompressOption {
    type Err = ParseCompressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let method = Method::ALL.into_iter().find(|method| method.name() == name);
        let option =
            Self { method: method.ok_or_else(|| ParseCompressError::Method(name.to_owned()))?, level: None };
        Ok(Self { level: level.map(|level| option.parse_level(level)).transpose()?, ..option })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_a_compressor_and_may_name_its_level() {
        let compressor = |text: &str| text.parse::<CompressOption>().unwrap().or_level(DEFAULT_LEVEL);
        assert_eq!(compressor("gzip"), Compressor { method: Method::Gzip, level: 6 });
        assert_eq!(compressor("gzip:9"), Compressor { method: Method::Gzip, level: 9 });
        assert_eq!(compressor("zstd:19"), Compressor { method: Method::Zstd, level: 19 });
        let said = |text: &str| text.parse::<CompressOption>().unwrap_err().to_string();
        let want = "there is no compression 'xz'; there are gzip and zstd, with a level as in zstd:3";
        assert_eq!(said("xz:3"), want);
        for level in ["", "0", "10", "-1", "999", "6 "] {
            let want = format!("'{level}' is no level of gzip: they are 1 to 9");
            assert_eq!(said(&format!("gzip:{level}")), want);
        }
        assert_eq!(said("zstd:20"), "'20' is no level of zstd: they are 1 to 19");
    }
}
