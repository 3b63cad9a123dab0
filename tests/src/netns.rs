//! Network namespaces that a test makes for itself. No frame of it leaves them, and each is gone with the last thread and
//! process in it, however the test ends: nothing has a name in the file system that would need cleaning up.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Pid, gettid};

use crate::programs::{self, Running};

/// Room for frames that a capture has not taken yet: more than any test sends.
const CAPTURE_BUFFER: usize = 256 << 20;
/// How long a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// A namespace, with a thread that does things in it.
#[derive(Debug)]
pub struct Namespace {
    jobs: Sender<Job>,
    thread_id: Pid,
}

impl Namespace {
    /// A new one: loopback is up, and IPv6 is off so that no frame is on its wires but those that a test knows of.
    pub fn new() -> Self {
        let (jobs, todo) = channel::<Job>();
        let (tell, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            for which in ["all", "default"] {
                // Not there where the kernel has no IPv6.
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
            }
            tool("ip", "link set lo up");
            tell.send(gettid()).expect("the test waits for it");
            todo.into_iter().for_each(|job| job());
        });
        let thread_id = told.recv().expect("a namespace can be made");
        Self { jobs, thread_id }
    }

    /// Does something in the namespace. Sockets opened and programs started there stay there.
    pub fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let job = move || {
            let _ = answer.send(catch_unwind(AssertUnwindSafe(job)));
        };
        self.jobs.send(Box::new(job)).expect("the namespace's thread lives as long as this");
        match answered.recv().expect("the job answers") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs `ip` with these words.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        self.tool("ip", words);
    }

    /// Runs a program of the system, which must succeed, with these words.
    #[track_caller]
    pub fn tool(&self, program: &'static str, words: &str) -> String {
        let words = words.to_owned();
        self.inside(move || tool(program, &words))
    }

    /// Starts a program in the namespace.
    pub fn start(&self, program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Running {
        let mut command = Command::new(program);
        command.args(arguments);
        self.inside(move || programs::start_command(&mut command))
    }

    /// Lays a cable: interface `near` here, `far` in the other namespace, both up.
    pub fn cable(&self, near: &str, other: &Self, far: &str) {
        // Numbers that differ: the kernel takes a veth whose peer has the same number for no veth, and lets a bridge wait
        // up to a second for the news that it is up.
        static NUMBER: AtomicU32 = AtomicU32::new(100);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let peer = format!("peer name {far} netns {}", other.thread_id);
        self.ip(&format!("link add {near} index {number} type veth {peer}"));
        self.ip(&format!("link set {near} up"));
        other.ip(&format!("link set {far} up"));
    }

    /// Lets the namespace's kernel forward packets.
    pub fn forward(&self) {
        self.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("root may forward"));
    }

    /// Begins to collect all frames on all interfaces of the namespace, in both directions.
    pub fn capture(&self) -> Capture {
        let socket = self.inside(|| {
            let every = SockProtocol::EthAll;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, every)
                .expect("root may capture");
            setsockopt(&socket, sockopt::RcvBufForce, &CAPTURE_BUFFER).expect("root may have large buffers");
            let wait = TimeVal::milliseconds(10);
            setsockopt(&socket, sockopt::ReceiveTimeout, &wait).expect("sockets have timeouts");
            socket
        });
        Capture::new(socket)
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a program in the caller's namespace; what it printed.
#[track_caller]
fn tool(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Frames collected in the background, as they are between the interface and the protocols behind it: those whose
/// sender left a checksum to the card that never was one have only its first part.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    fn new(socket: OwnedFd) -> Self {
        let (frames, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (theirs, told) = (frames.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(len) => lock(&theirs).push(buffer[..len].to_vec()),
                    // Nothing is left, so all that came before the order to stop has been taken.
                    Err(_) if told.load(Ordering::Acquire) => return,
                    Err(_) => {}
                }
            }
        });
        Self { frames, stop, thread: Some(thread) }
    }

    /// Waits for the first frame that `wanted` makes something of, which may have come already.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let mut seen = 0;
        let mut found = None;
        until(what, || {
            let frames = lock(&self.frames);
            found = frames[seen..].iter().find_map(|frame| wanted(frame));
            seen = frames.len();
            found.is_some()
        });
        found.expect("it was just found")
    }

    /// How many frames of a kind have come so far.
    pub fn count(&self, wanted: impl Fn(&[u8]) -> bool) -> usize {
        lock(&self.frames).iter().filter(|frame| wanted(frame)).count()
    }

    /// Ends the collection; all frames in the order in which they came.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.end();
        std::mem::take(&mut lock(&self.frames))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(frames: &Mutex<Vec<Vec<u8>>>) -> MutexGuard<'_, Vec<Vec<u8>>> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "waited for {what} in vain");
        thread::sleep(Duration::from_millis(2));
    }
}
