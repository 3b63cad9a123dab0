//! How a dump ended, for machines: written by the sender, read by `netdump verify`.

use serde::{Deserialize, Serialize};

/// The three ways a dump ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The receiver acknowledged everything, FINISHED included: the core is on its stable storage.
    Complete,
    /// Everything but FINISHED was acknowledged: the receiver very likely has the core.
    Unconfirmed,
    /// The dump stopped early; what arrived before stays at the receiver.
    Failed,
}

/// One dump as its sender saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in one sentence, unless it is complete.
    pub reason: Option<String>,
    /// The receiver's address and the port it gave this dump (0 when it never answered).
    pub server: String,
    /// The directory asked for, below the receiver's.
    pub path: Option<String>,
    /// Bytes of the core.
    pub length: u64,
    /// BLAKE3 of the core's bytes as sent, in hexadecimal; absent when not all of it was sent.
    pub blake3: Option<String>,
    /// Core bytes sent at least once.
    pub bytes_sent: u64,
    /// Core bytes not sent because the guest never touched them and they read as zeros anyway.
    pub bytes_untouched: u64,
    /// Ranges of the core that were not acknowledged, as `[start, end)`; at most 1,000 are listed.
    pub missing: Vec<(u64, u64)>,
    /// Messages sent for the first time.
    pub messages: u64,
    /// Messages sent again.
    pub resends: u64,
    /// Frames received and ignored, by reason.
    pub ignored: Vec<(String, u64)>,
    /// Guest pages that could not be read and were sent as zeros.
    pub bad_pages: u64,
    /// From the first ARP request to the end, in seconds.
    pub seconds: f64,
}
