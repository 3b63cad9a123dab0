//! Running the programs of this workspace as their users do: built binaries, arguments, pipes, exit codes.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No run of a program in a test takes longer; one that does is killed and fails the test.
const LONGEST: Duration = Duration::from_secs(90);

/// The built binary of that name, of the profile that this test was built with, as new as its source.
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build).join(name)
}

/// Where cargo puts what it builds with the profile of a program of its: programs lie there, tests in `deps` below.
pub fn profile_folder(program: &Path) -> PathBuf {
    let folder = program.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") { folder.parent().expect("deps lies in target/PROFILE") } else { folder }
        .to_owned()
}

/// Builds all binaries and tells where they are.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = profile_folder(&test);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet"]);
    // The whole workspace, as the check builds it: other packages would mean other features, and all anew.
    cargo.args(["--workspace", "--bins"]);
    cargo.arg("--target-dir").arg(folder.parent().expect("a profile lies in a target folder"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs: it runs this test");
    assert!(status.success(), "the programs do not build");
    folder
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

/// A program that runs, its output collected beside it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
    stdout: Collector,
    stderr: Collector,
}

/// Runs a program to its end.
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> Ended {
    start(program, arguments).wait()
}

/// Starts a program, without standard input.
pub fn start(program: impl AsRef<OsStr>, arguments: &[&str]) -> Running {
    start_command(Command::new(program).args(arguments))
}

/// Starts a command, without standard input.
pub fn start_command(command: &mut Command) -> Running {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    let stdout = Collector::new(child.stdout.take().expect("stdout is piped"));
    let stderr = Collector::new(child.stderr.take().expect("stderr is piped"));
    Running { child, started: Instant::now(), stdout, stderr }
}

impl Running {
    /// Waits for the end.
    pub fn wait(mut self) -> Ended {
        let status = self.wait_status();
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            took: self.started.elapsed(),
        }
    }

    fn wait_status(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            if self.started.elapsed() > LONGEST {
                let _ = self.child.kill();
                panic!("still running after {LONGEST:?}\n{}\n{}", self.stdout.text(), self.stderr.text());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until standard output holds `text` so many times.
    pub fn wait_for_stdout(&self, text: &str, times: usize) {
        self.wait_until(text, || self.stdout.text().matches(text).count() >= times);
    }

    /// Waits until standard error holds `text`.
    pub fn wait_for_stderr(&self, text: &str) {
        self.wait_until(text, || self.stderr.text().contains(text));
    }

    /// Waits until a condition holds.
    pub fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let until = Instant::now() + LONGEST;
        while !holds() {
            assert!(
                Instant::now() < until,
                "waited for {what:?} in vain\n{}\n{}",
                self.stdout.text(),
                self.stderr.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("the program runs");
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Its process.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("pids are small"))
    }
}

impl Drop for Running {
    /// A failed test leaves nothing running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what a pipe gives.
#[derive(Debug)]
struct Collector {
    text: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let mine = text.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(len @ 1..) => {
                        mine.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..len]);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => return,
                }
            }
        });
        Self { text, thread: Some(thread) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn finish(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.text()
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("test folders have plain names")
}
