//! A [`Digest`] as JSON: an object that proves itself, as its root follows from its pieces.

use serde::de::{Deserializer, Error};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use super::{Digest, Hash, MAX_LENGTH, PIECE_LEN, ZERO_PIECE, hex, piece_count};

#[derive(Serialize)]
struct Written<'a> {
    root: String,
    length: u64,
    pieces: Pieces<'a>,
}

#[derive(Deserialize)]
struct Read {
    root: String,
    length: u64,
    pieces: Vec<Item>,
}

/// A hash, or how many pieces of zeros come here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Zeros(u64),
    Hash(String),
}

/// Why an object is no digest.
#[derive(Debug, thiserror::Error)]
enum DigestError {
    #[error("a core of {0} bytes is longer than {MAX_LENGTH} and cannot have a digest")]
    TooLong(u64),
    #[error("'{0}' is no hash of 64 hexadecimal digits")]
    Hash(String),
    #[error("a core of {length} bytes has {} pieces of a MiB, not as many as the digest lists", length.div_ceil(PIECE_LEN))]
    Count { length: u64 },
    #[error("the digest's root does not follow from its pieces")]
    Root,
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written { root: self.root_hex(), length: self.length, pieces: Pieces(&self.pieces) }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(Read::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl TryFrom<Read> for Digest {
    type Error = DigestError;

    fn try_from(read: Read) -> Result<Self, DigestError> {
        let Read { root, length, pieces: items } = read;
        if length > MAX_LENGTH {
            return Err(DigestError::TooLong(length));
        }
        let count = piece_count(length);
        let mut pieces = Vec::new();
        for item in items {
            match item {
                Item::Hash(text) => pieces.push(parse(&text)?),
                Item::Zeros(zeros) => {
                    // Before there is memory for them.
                    let end = usize::try_from(zeros).ok().and_then(|zeros| pieces.len().checked_add(zeros));
                    let end = end.filter(|&end| end <= count).ok_or(DigestError::Count { length })?;
                    pieces.resize(end, *ZERO_PIECE);
                }
            }
        }
        if pieces.len() != count {
            return Err(DigestError::Count { length });
        }
        let digest = Self { length, pieces };
        if digest.root() != parse(&root)? {
            return Err(DigestError::Root);
        }
        Ok(digest)
    }
}

fn parse(text: &str) -> Result<Hash, DigestError> {
    let hash = blake3::Hash::from_hex(text).map_err(|_| DigestError::Hash(text.to_owned()))?;
    Ok(*hash.as_bytes())
}

struct Pieces<'a>(&'a [Hash]);

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for run in self.0.chunk_by(|one, other| one == other && *one == *ZERO_PIECE) {
            match run {
                [zeros, ..] if *zeros == *ZERO_PIECE => list.serialize_element(&run.len())?,
                pieces => pieces.iter().try_for_each(|piece| list.serialize_element(&hex(piece)))?,
            }
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digester;

    fn read(json: &serde_json::Value) -> Result<Digest, String> {
        serde_json::from_value(json.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn zeros_are_counted_and_other_pieces_are_listed() {
        let mut bytes = vec![0; 7 << 20];
        bytes[0] = 1;
        bytes.push(0);
        let digest = Digest::of(&bytes);
        let json = serde_json::to_value(&digest).unwrap();
        let pieces =
            [hex(&digest.pieces[0]).into(), 6.into(), serde_json::Value::from(hex(&digest.pieces[7]))];
        assert_eq!(json["pieces"].as_array().unwrap(), &pieces);
        assert_eq!(
            (json["length"].as_u64(), json["root"].as_str()),
            (Some((7 << 20) + 1), Some(&*digest.root_hex()))
        );
        assert_eq!(read(&json), Ok(digest));
    }

    #[test]
    fn large_guests_that_touched_little_have_small_digests() {
        let mut digester = Digester::new();
        digester.update(&[1; 5000]);
        digester.zeros(1 << 40);
        let digest = digester.finish().unwrap();
        let json = serde_json::to_string(&digest).unwrap();
        assert!(json.len() < 400, "{json}");
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_the_reason() {
        let good = serde_json::to_value(Digest::of(&[1; 3 << 20])).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut json = good.clone();
            json[key] = value;
            read(&json).unwrap_err()
        };
        let piece = good["pieces"][0].clone();
        assert_eq!(with("root", piece.clone()), "the digest's root does not follow from its pieces");
        assert_eq!(with("root", "ab".into()), "'ab' is no hash of 64 hexadecimal digits");
        let count = "a core of 3145728 bytes has 3 pieces of a MiB, not as many as the digest lists";
        assert_eq!(with("pieces", vec![piece.clone(); 4].into()), count);
        assert_eq!(with("pieces", vec![piece.clone(); 2].into()), count);
        assert_eq!(with("pieces", serde_json::json!([piece, u64::MAX])), count);
        let long = "a core of 4398046511105 bytes is longer than 4398046511104 and cannot have a digest";
        assert_eq!(with("length", (MAX_LENGTH + 1).into()), long);
        assert_eq!(with("pieces", serde_json::json!([-1])), with("pieces", serde_json::json!([true])));
    }

    proptest! {
        #[test]
        fn every_digest_is_read_as_it_is_written(
            runs in prop::collection::vec((any::<u8>(), 0..3_000_000_usize), 0..4),
        ) {
            let bytes: Vec<u8> = runs.iter().flat_map(|&(byte, len)| vec![byte / 128; len]).collect();
            let digest = Digest::of(&bytes);
            let json = serde_json::to_value(&digest).unwrap();
            prop_assert_eq!(read(&json), Ok(digest));
        }
    }
}
