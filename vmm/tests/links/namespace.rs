//! Network namespaces that a test makes for itself: no frame of it leaves them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

/// Runs `test` on a thread in a new network namespace, or says why it cannot. `REQUIRE=net` makes that a failure.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if let Err(missing) = try_namespace() {
        assert!(!required().contains("net"), "network tests are required, but {missing}");
        println!("SKIPPED: {missing}");
        return;
    }
    let thread = thread::spawn(|| {
        enter();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with these words in the caller's namespace.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {error}");
}

/// Another namespace, with a thread that does things in it.
pub(crate) struct Namespace {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    thread_id: i32,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (jobs, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        thread::spawn(move || {
            enter();
            tell.send(gettid().as_raw()).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        Self { jobs, thread_id: told.recv().unwrap() }
    }

    /// Does something in that namespace. Sockets opened there stay there.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        self.jobs.send(Box::new(move || answer.send(job()).unwrap())).unwrap();
        answered.recv().unwrap()
    }

    /// Moves an interface of the caller's namespace there.
    pub(crate) fn take(&self, interface: &str) {
        ip(&format!("link set {interface} netns {}", self.thread_id));
    }
}

fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
}

fn try_namespace() -> Result<(), String> {
    thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET))
        .join()
        .unwrap()
        .map_err(|errno| format!("network namespaces cannot be made: {errno}"))?;
    if !Path::new("/dev/net/tun").exists() {
        return Err("there is no /dev/net/tun".to_owned());
    }
    Command::new("ip").arg("-V").output().map(drop).map_err(|error| format!("`ip` cannot be run: {error}"))
}

fn required() -> BTreeSet<String> {
    std::env::var("REQUIRE").unwrap_or_default().split(',').map(str::to_owned).collect()
}
