//! The VMM's own terminal and output: an output that nobody reads must not keep it from its work, and the terminal gets
//! its mode back however the VMM ends.

use std::fs::File;
use std::io::{PipeReader, Write, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::guests::Bench;
use harness::programs::program;
use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::needs_kvm;

/// Longer than anything here takes.
const LONGEST: Duration = Duration::from_secs(60);

/// A child that is killed if its test fails.
struct Running(Child);

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().try_into().unwrap())
    }

    fn code(&mut self) -> Option<i32> {
        wait_until("its end", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(started.elapsed() < LONGEST, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `vmm run` with an output that takes `room` bytes and then blocks for as long as its other end exists.
fn start_blocked(bench: &Bench, room: usize, options: &[&str]) -> (Running, PipeReader) {
    let (reader, mut writer) = pipe().unwrap();
    let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer.write_all(&vec![b'.'; usize::try_from(size).unwrap() - room]).unwrap();
    let mut command = Command::new(program("vmm"));
    command.args(bench.arguments(options)).stdin(Stdio::null()).stdout(writer);
    let errors = File::create(bench.folder().join("stderr")).unwrap();
    (Running(command.stderr(errors).spawn().unwrap()), reader)
}

#[test]
fn a_panic_is_dumped_though_its_text_never_gets_out() {
    needs_kvm!();
    let bench = Bench::new("console-panic");
    // Room for the words, whatever is printed before them, and not for all of the text.
    let text = format!("text={}", "x".repeat(110));
    let (mut vmm, _reader) = start_blocked(&bench, 100, &["--kenv", "newline=no", "--kenv", &text]);
    assert_eq!(vmm.code(), Some(10));
    let report = bench.report();
    assert_eq!(report["panic"]["source"], "console");
    assert_eq!(report["pause"]["not_stopped"], serde_json::json!([0]), "it is blocked in the write");
}

#[test]
fn dump_after_comes_though_the_output_is_blocked() {
    needs_kvm!();
    let bench = Bench::new("hang");
    let (mut vmm, _reader) = start_blocked(&bench, 0, &["--dump-after", "1"]);
    assert_eq!(vmm.code(), Some(10));
    let report = bench.report();
    assert_eq!(report["panic"]["source"], "request");
    assert_eq!(report["pause"]["not_stopped"], serde_json::json!([0]), "it is blocked in the write");
}

#[test]
fn a_dump_comes_though_nobody_reads_the_events() {
    needs_kvm!();
    let bench = Bench::new("panic");
    let (mut vmm, _reader) = start_blocked(&bench, 0, &["--json"]);
    assert_eq!(vmm.code(), Some(10));
    assert_eq!(bench.report()["panic"]["source"], "pvpanic");
    let errors = std::fs::read_to_string(bench.folder().join("stderr")).unwrap();
    assert!(errors.contains("standard output is not read"), "{errors}");
}

#[test]
fn sigterm_ends_it_though_the_output_is_blocked() {
    needs_kvm!();
    let bench = Bench::new("hang");
    let (mut vmm, _reader) = start_blocked(&bench, 0, &["--panic-source", "triple-fault"]);
    std::thread::sleep(Duration::from_secs(1));
    // Nobody waits for this one: it only makes the event loop turn while the guest is blocked.
    kill(vmm.pid(), Signal::SIGUSR1).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    kill(vmm.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(vmm.code(), Some(0));
}

#[test]
fn the_terminal_gets_its_mode_back_whatever_signal_ends_the_vmm() {
    needs_kvm!();
    // The shell stays after the VMM: a terminal whose session ends is reset by the kernel, which would hide a failure.
    const SESSION: &str = r#"trap : HUP QUIT TERM; stty -g; "$@" >/dev/null 2>&1; echo $?; stty -g"#;
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let bench = Bench::new("hang");
        let terminal = openpty(None, None).unwrap();
        let output = bench.folder().join("stdout");
        // Whoever runs the tests under nohup has them, and all they start, ignore SIGHUP.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", "setsid", "--ctty", "sh", "-c", SESSION, "sh"])
            .arg(program("vmm"))
            .args(bench.arguments(&[]));
        command.stdin(terminal.slave.try_clone().unwrap()).stdout(File::create(&output).unwrap());
        let mut session = Running(command.spawn().unwrap());
        let by_line = || tcgetattr(terminal.master.as_fd()).unwrap().local_flags.contains(LocalFlags::ICANON);
        wait_until("the terminal to be taken", || (!by_line()).then_some(()));
        killpg(session.pid(), signal).unwrap();
        session.code();
        let output = std::fs::read_to_string(output).unwrap();
        let lines: Vec<_> = output.lines().collect();
        assert!(matches!(lines[..], [before, "0", after] if before == after), "{signal}: {lines:?}");
    }
}

#[test]
fn a_vmm_in_the_background_leaves_the_terminal_alone_and_is_not_stopped() {
    needs_kvm!();
    let bench = Bench::new("poweroff");
    let terminal = openpty(None, None).unwrap();
    // With job control a job in the background has a process group of its own.
    const SESSION: &str = r#"set -m; "$@" <&0 >/dev/null 2>&1 & wait $!"#;
    let mut command = Command::new("setsid");
    command.args(["--ctty", "sh", "-c", SESSION, "sh"]).arg(program("vmm")).args(bench.arguments(&[]));
    command.stdin(terminal.slave).stdout(Stdio::null());
    assert_eq!(Running(command.spawn().unwrap()).code(), Some(0));
}
