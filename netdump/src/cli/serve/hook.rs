//! `--hook PROGRAM`: runs when a dump has ended, as netdumpd's script does (netdumpd(8), `-i`).
//!
//! ```text
//! PROGRAM success|timeout|error CLIENT-IP HOST INFO-FILE CORE-FILE      < description as JSON
//! ```
//!
//! The files are relative to the store's directory, which is the working directory; of the environment only `PATH` is
//! left. What it prints goes to standard error. A few run at a time, others wait, and none holds up the receiver.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use netdump::receiver::{Cause, Ending};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How many run at a time.
const AT_ONCE: usize = 4;
/// How many wait; those that come while so many do are left out, which is logged.
const MAX_WAITING: usize = 256;
/// How often a running one is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Where a program finds others when the receiver has no `PATH` itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) reason: &'static str,
    pub(super) client: Ipv4Addr,
    pub(super) host: String,
    /// Relative to the directory; empty when there is none.
    pub(super) info: PathBuf,
    pub(super) core: PathBuf,
    /// For its standard input.
    pub(super) description: String,
}

/// How hooks ended, for metrics.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) succeeded: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Runs that are waiting or running.
    pending: AtomicU64,
}

/// The program, and the threads that run it.
#[derive(Debug)]
pub(super) struct Hook {
    runs: SyncSender<Run>,
    outcomes: Arc<Outcomes>,
}

/// What every run has in common.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    directory: PathBuf,
    limit: Duration,
    outcomes: Arc<Outcomes>,
}

/// netdumpd's word for how a dump ended.
pub(super) fn reason(ending: &Ending) -> &'static str {
    match ending {
        Ending::Complete => "success",
        // netdumpd says so also of a client that begins anew, and when it is stopped itself.
        Ending::Incomplete(Cause::TimedOut | Cause::Restarted | Cause::Stopped | Cause::ReceiverDied) => {
            "timeout"
        }
        Ending::Incomplete(_) => "error",
    }
}

impl Hook {
    /// Prepares to run a program in `directory`, each time for at most `limit`.
    pub(super) fn start(program: &Path, directory: &Path, limit: Duration) -> anyhow::Result<Self> {
        let path = program.canonicalize().with_context(|| format!("the hook {}", program.display()))?;
        let directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
        let outcomes = Arc::<Outcomes>::default();
        let (runs, waiting) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        let program = Arc::new(Program { path, directory, limit, outcomes: Arc::clone(&outcomes) });
        for _ in 0..AT_ONCE {
            let (program, waiting) = (Arc::clone(&program), Arc::clone(&waiting));
            let thread = thread::Builder::new().name("netdump-hook".into());
            thread.spawn(move || program.serve(&waiting)).context("starting a thread for the hook")?;
        }
        Ok(Self { runs, outcomes })
    }

    /// Lets the program run as soon as its turn comes.
    pub(super) fn run(&self, run: Run) {
        self.outcomes.pending.fetch_add(1, Ordering::SeqCst);
        if let Err(TrySendError::Full(run) | TrySendError::Disconnected(run)) = self.runs.try_send(run) {
            tracing::error!(core = %run.core.display(), "the hook was not run: too many of its runs wait");
            self.outcomes.end(false);
        }
    }

    /// Whether no run is waiting or running.
    pub(super) fn is_idle(&self) -> bool {
        self.outcomes.pending.load(Ordering::SeqCst) == 0
    }

    pub(super) fn outcomes(&self) -> &Arc<Outcomes> {
        &self.outcomes
    }
}

impl Outcomes {
    fn end(&self, well: bool) {
        let counter = if well { &self.succeeded } else { &self.failed };
        counter.fetch_add(1, Ordering::SeqCst);
        self.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Program {
    fn serve(&self, waiting: &Mutex<Receiver<Run>>) {
        loop {
            // Held only while waiting: another thread takes the next run.
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(run) = next else { return };
            let well = self.run(&run);
            self.outcomes.end(well);
        }
    }

    /// One run from its start to its end; whether it ended well.
    fn run(&self, run: &Run) -> bool {
        let core = run.core.display();
        match self.spawn(run).and_then(|child| self.wait(child)) {
            Ok(Some(status)) if status.success() => {
                tracing::info!(%core, reason = run.reason, "the hook ended well");
                true
            }
            Ok(Some(status)) => {
                tracing::warn!(%core, reason = run.reason, %status, "the hook failed");
                false
            }
            Ok(None) => {
                let seconds = self.limit.as_secs();
                tracing::warn!(%core, reason = run.reason, seconds, "the hook took too long and was killed");
                false
            }
            Err(error) => {
                tracing::warn!(%core, reason = run.reason, %error, "the hook could not be run");
                false
            }
        }
    }

    fn spawn(&self, run: &Run) -> io::Result<Child> {
        // A file, not a pipe: nobody waits for a program that does not read it.
        let mut description = File::from(memfd_create("dump.json", MFdFlags::MFD_CLOEXEC)?);
        description.write_all(run.description.as_bytes())?;
        description.rewind()?;
        let output = io::stderr().as_fd().try_clone_to_owned()?;
        Command::new(&self.path)
            .arg(run.reason)
            .arg(run.client.to_string())
            .arg(&run.host)
            .arg(&run.info)
            .arg(&run.core)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()))
            .stdin(description)
            .stdout(Stdio::from(output))
            // With all that it starts, to be killed together. Ctrl-C at the terminal is not meant for it.
            .process_group(0)
            .spawn()
    }

    /// Its status, or `None` when it took too long.
    fn wait(&self, mut child: Child) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + self.limit;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                if let Ok(group) = i32::try_from(child.id()) {
                    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
                }
                child.wait()?;
                return Ok(None);
            }
            thread::sleep(LOOK);
        }
    }
}
