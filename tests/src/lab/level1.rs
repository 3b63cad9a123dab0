//! The first level: a Debian kernel with KVM under QEMU's software CPU, up in a few seconds, off when its order is done.
//!
//! ```text
//! /lab        a folder of the host, which several first levels may share: results go to `out`
//! /kernels    the unpacked kernels, read-only
//! /bin        busybox, ip, tc, and the programs under test
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::initramfs::Initramfs;
use super::kernels::Kernel;
use super::modules::Modules;

/// The kernel of the first level: the only one of bookworm whose package has 9p, by which folders are shared.
pub const KERNEL: &str = "6.1-generic";

/// What it must have loaded: shared folders, KVM, and networks of its own.
const MODULES: [&str; 9] =
    ["virtio_pci", "9pnet_virtio", "9p", "kvm-amd", "tun", "veth", "bridge", "sch_netem", "sch_tbf"];

/// Programs of the host that busybox has only in part.
const TOOLS: [&str; 2] = ["ip", "tc"];

/// Printed when the order begins; before that the console has the firmware's and the kernel's own words.
const UP: &str = "== the first level is up";
/// Printed with the exit code of the order when it is done.
const DONE: &str = "== the first level is done: ";

/// 9p's `cache=none` is what makes files that one side wrote visible at once on the other.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin HOME=/ TERM=linux
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mkdir -p /dev/pts; mount -t devpts pts /dev/pts
echo 127.0.0.1 localhost > /etc/hosts
for module in /modules/*; do insmod $module || echo "not loaded: $module"; done
mkdir -p /lab /kernels
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none lab /lab
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro kernels /kernels
ip link set lo up
cd /lab
export ENV=/etc/shell
echo "== the first level is up"
if [ -e /etc/order ]; then stty -echo; sh -c '. /etc/shell; . /etc/order'; echo "== the first level is done: $?"
else setsid cttyhack sh; fi
sync
poweroff -f
"#;

/// A collector for people at the shell; scenarios make networks of their own.
const COLLECTOR: &str = r#"#!/bin/sh
# tap0 -- br0 -- up0 ==== eth0 :collector 10.0.0.9, which stores into /tmp/cores (9p is slow, and knows
# no holes: `cp` what is to come back to /lab/out); LOSS=5 loses 5 % both ways
set -e
. /etc/shell
ip netns add collector
ip link add up0 type veth peer name eth0 netns collector
ip link add br0 type bridge
ip tuntap add tap0 mode tap
for port in up0 tap0; do ip link set $port master br0 up; done
ip link set br0 up
ip -n collector address add 10.0.0.9/24 dev eth0
ip -n collector link set eth0 up
ip -n collector link set lo up
if [ -n "$LOSS" ]; then
    tc qdisc add dev up0 root netem loss $LOSS%
    ip netns exec collector /bin/tc qdisc add dev eth0 root netem loss $LOSS%
fi
mkdir -p /tmp/cores
ip netns exec collector netdump serve --dir /tmp/cores --listen 10.0.0.9 > /lab/out/serve.stdout 2> /lab/out/serve.stderr &
until grep -q listening /lab/out/serve.stderr; do sleep 0.1; done
"#;

/// busybox's shell takes its own applets for commands whatever the path says.
const SHELL: &str = "ip() { /bin/ip \"$@\"; }\ntc() { /bin/tc \"$@\"; }\n";

/// Who sits at the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// A person: the terminal is the first level's, Ctrl-C and all. Ctrl-A X ends it.
    Terminal,
    /// This program reads and types, and QEMU is ended after so many seconds.
    Pipe(u64),
}

/// How long a first level is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// All in all, in seconds.
    pub all: u64,
    /// From one line of its console to the next.
    pub silence: Duration,
}

/// A first level that is ready to boot.
#[derive(Debug)]
pub struct Level1 {
    share: PathBuf,
    kernels: PathBuf,
    image: PathBuf,
    /// Beside the share: `/lab` is only what its user put there.
    initramfs: tempfile::NamedTempFile,
    /// RAM in MiB.
    memory: u32,
}

impl Level1 {
    /// Prepares one that shares a folder, has these programs, and runs a shell script; without one it gives a shell to a
    /// person.
    pub fn new(lab: &Path, share: &Path, programs: &[PathBuf], order: Option<&str>) -> anyhow::Result<Self> {
        let kernel = Kernel::fetch(lab, KERNEL)?;
        let mut root = Initramfs::with_busybox(INIT)?;
        root.modules(&Modules::below(&kernel.modules()?)?, &MODULES)?;
        root.file("etc/shell", SHELL.as_bytes(), 0o644)?;
        root.file("bin/collector", COLLECTOR.as_bytes(), 0o755)?;
        for tool in TOOLS {
            root.program(&find(tool)?)?;
        }
        for program in programs {
            root.program(program)?;
        }
        if let Some(order) = order {
            root.file("etc/order", order.as_bytes(), 0o644)?;
        }
        let initramfs = tempfile::NamedTempFile::new()?;
        fs::write(initramfs.path(), root.finish()?)?;
        fs::create_dir_all(share.join("out"))?;
        Ok(Self {
            share: share.canonicalize()?,
            kernels: lab.join("kernels").canonicalize()?,
            image: kernel.image()?,
            initramfs,
            memory: 4096,
        })
    }

    /// Runs its script to the end; the script's exit code. `hear` gets the lines of the console from the script's first on, and
    /// answers with what is typed there, or ends it with a reason.
    pub fn run(
        &self,
        patience: Patience,
        mut hear: impl FnMut(&str) -> ControlFlow<String, String>,
    ) -> anyhow::Result<i32> {
        let mut qemu =
            self.command(Console::Pipe(patience.all)).spawn().context("starting qemu-system-x86_64")?;
        let console = qemu.stdout.take().context("the console is piped")?;
        let mut keyboard = qemu.stdin.take().context("the keyboard is piped")?;
        let mut qemu = Running(qemu);
        let (heard, lines) = mpsc::channel();
        // Ends with QEMU's output.
        thread::spawn(move || {
            BufReader::new(console).split(b'\n').map_while(Result::ok).all(|line| heard.send(line).is_ok())
        });
        let (mut before, mut is_up, mut code) = (String::new(), false, None);
        loop {
            let line = match lines.recv_timeout(patience.silence) {
                Ok(line) => String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned(),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the first level was silent for {} s\n{before}", patience.silence.as_secs())
                }
            };
            if !is_up {
                is_up = line.ends_with(UP);
                before = before + &line + "\n";
            } else if let Some(told) = line.strip_prefix(DONE) {
                code = Some(told.parse()?);
            } else {
                match hear(&line) {
                    // A first level that has just died is told of by the end of its console.
                    ControlFlow::Continue(typed) => drop(keyboard.write_all(typed.as_bytes())),
                    ControlFlow::Break(why) => bail!("the first level was ended: {why}"),
                }
            }
        }
        let status = qemu.0.wait()?;
        ensure!(is_up, "the first level did not come up: QEMU {status}\n{before}");
        code.with_context(|| format!("the first level died: QEMU {status}"))
    }

    /// Gives its shell to a person.
    pub fn shell(&self) -> anyhow::Result<()> {
        let status = self.command(Console::Terminal).status().context("starting qemu-system-x86_64")?;
        ensure!(status.success(), "QEMU: {status}");
        Ok(())
    }

    fn command(&self, console: Console) -> Command {
        const QEMU: &str = "qemu-system-x86_64";
        let mut qemu = match console {
            Console::Terminal => Command::new(QEMU),
            Console::Pipe(seconds) => {
                let mut timeout = Command::new("timeout");
                timeout.args([&seconds.to_string(), QEMU]);
                timeout
            }
        };
        // Without xsave: QEMU 7.2 emulates it for guests of its SVM in a way that their kernels do not survive. Without avx,
        // too, as it needs that: aesni_intel of 6.1 asks for no more, and its self-test then ends udev's worker. The clock
        // that QEMU emulates is steady, which L1 does not believe of an emulated one unless it is told; nor would it of its
        // timer on a busy host.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,-xsave,-avx,-avx2", "-smp", "1"]);
        qemu.args(["-m", &self.memory.to_string(), "-no-reboot", "-nic", "none", "-display", "none"]);
        qemu.arg("-kernel").arg(&self.image).arg("-initrd").arg(self.initramfs.path());
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check"]);
        let share = |folder: &Path, tag: &str, more: &str| {
            format!("local,path={},mount_tag={tag},security_model=none{more}", folder.display())
        };
        qemu.args(["-virtfs", &share(&self.share, "lab", "")]);
        qemu.args(["-virtfs", &share(&self.kernels, "kernels", ",readonly=on")]);
        match console {
            Console::Terminal => qemu.args(["-serial", "mon:stdio"]),
            Console::Pipe(_) => {
                qemu.args(["-serial", "stdio", "-monitor", "none"]);
                qemu.stdin(Stdio::piped()).stdout(Stdio::piped())
            }
        };
        qemu
    }
}

/// Where a program of the host is.
fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.find(|place| place.is_file()).with_context(|| format!("{program} is not installed"))
}

/// A QEMU that does not outlive this program's interest in it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Not SIGKILL: `timeout` hands this one on.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}
