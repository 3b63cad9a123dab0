//! What a kernel that has panicked says of it, whichever kernel it is: as its variables stood at one moment.

use std::time::Duration;

/// What the words of a kernel that has panicked said at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// Which words say so, for a person.
    pub evidence: &'static str,
    /// The message; the raw format of it while [`formatted`](Self::formatted) is false.
    pub text: Option<String>,
    /// The CPU that panicked, where that is known.
    pub cpu: Option<u32>,
    /// The kernel's own dump.
    pub own_dump: OwnDump,
    /// Whether the message is as it will stay.
    pub formatted: bool,
    /// Whether no CPU but one runs.
    pub others_stopped: bool,
    /// Where the kernel goes on writing in its message buffer, a number that moves with every word; if that is known.
    pub written: Option<u64>,
    /// Whether it has said its last word, which Linux marks; `None` where nothing would tell.
    pub finished: Option<bool>,
    /// How long such a kernel may take to settle, unless the user says otherwise.
    pub patience: Duration,
}

/// How a kernel stands to a dump of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnDump {
    /// It has nowhere to dump to.
    None,
    /// It has a dumper, which it has not used.
    Configured,
    /// It has a crash kernel in memory, which it has not started.
    CrashKernel,
    /// It is dumping.
    Running,
    /// It has dumped, or tried to.
    Over,
}

impl Panicked {
    /// Whether nothing more is to be expected that a dump wants: the message stands, no other CPU runs, and what will
    /// say that it is through has said so.
    pub fn looks_settled(&self) -> bool {
        self.formatted && self.others_stopped && self.finished != Some(false)
    }

    /// Whether the kernel itself says that nothing more will come.
    pub fn is_through(&self) -> bool {
        self.finished == Some(true)
    }
}
