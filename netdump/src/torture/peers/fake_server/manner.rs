//! What can be odd about a server.

use std::time::Duration;

/// What is odd about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Nothing.
    ByTheBook,
    /// It has no netdump service: ARP is answered, nothing else.
    Deaf,
    /// It does not acknowledge FINISHED.
    NeverAcksFinished,
    /// The ack of FINISHED is lost, and the port closed by then.
    LosesLastAck,
    /// After so many data messages acks come from another port.
    MovesPort {
        /// Data messages before that.
        after: u64,
    },
    /// Acks of data come from another host.
    AcksFromAnotherHost,
    /// Some acks come late, when their message has been sent again and acknowledged long ago.
    LateAcks {
        /// Of so many acks, the last.
        every: u64,
        /// How late.
        by: Duration,
    },
    /// Acks come in the reverse order of their messages, so many at a time.
    ReversedAcks {
        /// How many.
        of: usize,
    },
    /// Each ack comes with that of a message that was not sent yet.
    AcksTheFuture,
    /// Each ack comes with some that are too short or too long.
    OddAcks,
    /// It neither listens nor speaks for a while.
    GoesSilent {
        /// Data messages before that.
        after: u64,
        /// How long.
        time: Duration,
    },
    /// It forgets its dump and closes its port, as when it is started again.
    Restarts {
        /// Data messages before that.
        after: u64,
    },
    /// It forgets the client's hardware address and sends nothing until it has asked for it.
    ForgetsNeighbor {
        /// After so many acks.
        every: u64,
    },
    /// It has netdumpd's socket buffer and speed: what does not fit is lost.
    StockBuffer,
}

impl Manner {
    /// One of each.
    pub const ALL: [Self; 14] = [
        Self::ByTheBook,
        Self::Deaf,
        Self::NeverAcksFinished,
        Self::LosesLastAck,
        Self::MovesPort { after: 50 },
        Self::AcksFromAnotherHost,
        Self::LateAcks { every: 5, by: Duration::from_millis(700) },
        Self::ReversedAcks { of: 8 },
        Self::AcksTheFuture,
        Self::OddAcks,
        Self::GoesSilent { after: 20, time: Duration::from_secs(3) },
        Self::Restarts { after: 30 },
        Self::ForgetsNeighbor { every: 40 },
        Self::StockBuffer,
    ];

    /// What options call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ByTheBook => "by-the-book",
            Self::Deaf => "deaf",
            Self::NeverAcksFinished => "never-acks-finished",
            Self::LosesLastAck => "loses-last-ack",
            Self::MovesPort { .. } => "moves-port",
            Self::AcksFromAnotherHost => "other-host",
            Self::LateAcks { .. } => "late-acks",
            Self::ReversedAcks { .. } => "reversed-acks",
            Self::AcksTheFuture => "future-acks",
            Self::OddAcks => "odd-acks",
            Self::GoesSilent { .. } => "silent",
            Self::Restarts { .. } => "restarts",
            Self::ForgetsNeighbor { .. } => "forgetful",
            Self::StockBuffer => "stock-buffer",
        }
    }

    /// In a few words.
    pub const fn about(self) -> &'static str {
        match self {
            Self::ByTheBook => "a server by the book",
            Self::Deaf => "no netdump service",
            Self::NeverAcksFinished => "never acknowledges FINISHED",
            Self::LosesLastAck => "its last ack is lost",
            Self::MovesPort { .. } => "moves to another port",
            Self::AcksFromAnotherHost => "acks from another host",
            Self::LateAcks { .. } => "late acks",
            Self::ReversedAcks { .. } => "acks in reverse order",
            Self::AcksTheFuture => "acks of what was not sent",
            Self::OddAcks => "acks of odd lengths",
            Self::GoesSilent { .. } => "goes silent for a while",
            Self::Restarts { .. } => "restarts",
            Self::ForgetsNeighbor { .. } => "forgets the client's hardware address",
            Self::StockBuffer => "netdumpd's socket buffer and speed",
        }
    }

    /// Whether a client hears that its dump is complete.
    pub fn acks_finished(self) -> bool {
        !matches!(self, Self::NeverAcksFinished | Self::LosesLastAck)
    }

    /// Whether a client can bring its dump to an end there, however often it tries.
    pub fn lets_finish(self) -> bool {
        !matches!(
            self,
            Self::Deaf
                | Self::NeverAcksFinished
                | Self::LosesLastAck
                | Self::MovesPort { .. }
                | Self::AcksFromAnotherHost
                | Self::Restarts { .. }
        )
    }
}
