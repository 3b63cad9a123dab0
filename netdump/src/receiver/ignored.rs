//! Why the receiver does nothing with a datagram.

use crate::wire::message::MessageError;

/// Why a datagram changed nothing and was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// Not a message.
    #[error(transparent)]
    Malformed(#[from] MessageError),
    /// See [`super::ReceiverConfig::allow`].
    #[error("from an address that is not allowed")]
    NotAllowed,
    /// Something else than a HERALD at the well-known port.
    #[error("a message other than a HERALD at the herald port")]
    NotAHerald,
    /// The session is forgotten.
    #[error("no such session")]
    NoSession,
    /// The session belongs to another client.
    #[error("from another address or port than the session's client")]
    Stranger,
    /// A HERALD in the middle of a dump, or soon after one: perhaps a late duplicate. A client that has begun anew
    /// repeats it, and gets a new session when the old one has been silent for 2 seconds.
    #[error("a HERALD for a dump that is running")]
    LateHerald,
    /// A KDH of less than 512 bytes, or not from its beginning.
    #[error("a dump header that is not whole")]
    HeaderInParts,
    /// An offset beyond what a file, or the key block, can have.
    #[error("an offset beyond the limit")]
    OffsetTooLarge,
    /// See [`super::ReceiverConfig::max_ranges`].
    #[error("too many separate ranges")]
    TooManyRanges,
    /// See [`super::ReceiverConfig::max_sessions`].
    #[error("too many sessions")]
    TooManySessions,
    /// The store refused the dump.
    #[error("the dump cannot be stored")]
    NotStored,
    /// The receiver is being stopped.
    #[error("the receiver is being stopped")]
    Stopping,
    /// Something new after the dump's end.
    #[error("something new after the end of the dump")]
    AfterTheEnd,
}

impl Ignored {
    /// A short name for counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NotAllowed => "not_allowed",
            Self::NotAHerald => "not_a_herald",
            Self::NoSession => "no_session",
            Self::Stranger => "stranger",
            Self::LateHerald => "late_herald",
            Self::HeaderInParts => "header_in_parts",
            Self::OffsetTooLarge => "offset_too_large",
            Self::TooManyRanges => "too_many_ranges",
            Self::TooManySessions => "too_many_sessions",
            Self::NotStored => "not_stored",
            Self::Stopping => "stopping",
            Self::AfterTheEnd => "after_the_end",
        }
    }
}
