//! The programs that are measured, as processes.

use std::fs;
use std::io::{ErrorKind, Read, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vmm::memory::MemorySize;

/// QEMU's program, as distributions name it.
const QEMU: &str = "qemu-system-x86_64";

/// A virtual machine monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    This,
    Qemu,
}

impl Program {
    /// This program, where it can be started again.
    pub(super) fn this() -> anyhow::Result<Self> {
        std::env::current_exe().context("finding this program's file")?;
        Ok(Self::This)
    }

    /// QEMU, where it is installed.
    pub(super) fn qemu() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).any(|folder| folder.join(QEMU).is_file()).then_some(Self::Qemu)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::This => "vmm",
            Self::Qemu => "qemu microvm",
        }
    }

    /// What hands a command line and an initrd to a kernel.
    pub(super) fn kernel(self, cmdline: &str, initrd: Option<&Path>) -> Vec<String> {
        let option = if self == Self::This { "--cmdline" } else { "-append" };
        let mut arguments = vec![option.to_owned(), cmdline.to_owned()];
        if let Some(initrd) = initrd {
            let option = if self == Self::This { "--initrd" } else { "-initrd" };
            arguments.extend([option.to_owned(), initrd.display().to_string()]);
        }
        arguments
    }

    /// Starts it; its output is watched from the moment before.
    pub(super) fn start(self, arguments: &[String]) -> anyhow::Result<Watched> {
        let path = match self {
            Self::This => std::env::current_exe().context("finding this program's file")?,
            Self::Qemu => QEMU.into(),
        };
        // Whatever comes out: what it says when it fails is to be told.
        let (output, input) = pipe().context("making a pipe")?;
        let mut command = Command::new(&path);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(input.try_clone().context("making a pipe")?).stderr(input);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("starting {}", path.display()))?;
        drop(command);
        let (sender, printed) = mpsc::channel();
        std::thread::spawn(move || pass_on(output, &sender));
        Ok(Watched { child, started, printed, text: Vec::new() })
    }
}

/// The arguments that boot an image with so much memory, and dump nothing. The first is followed by options.
pub(super) fn arguments(program: Program, memory: MemorySize, image: &Path) -> Vec<String> {
    let (mib, image) = (memory.bytes() >> 20, image.display());
    let text = match program {
        Program::This => format!("run|--no-netdump|--memory={mib}M|{image}"),
        // Its memory in a file as ours is, so that it can be told from QEMU's own.
        Program::Qemu => format!(
            "-no-reboot|-nodefaults|-no-user-config|-display|none|-serial|stdio|-M|\
             microvm,accel=kvm,memory-backend=ram|-object|memory-backend-memfd,id=ram,size={mib}M,share=on|-m|{mib}M|\
             -kernel|{image}"
        ),
    };
    text.split('|').map(str::to_owned).collect()
}

fn pass_on(mut output: impl Read, to: &mpsc::Sender<(Instant, Vec<u8>)>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = output.read(&mut buffer) {
        if to.send((Instant::now(), buffer[..len].to_vec())).is_err() {
            return;
        }
    }
}

/// A program that runs; it ends with this.
#[derive(Debug)]
pub(super) struct Watched {
    child: Child,
    started: Instant,
    printed: mpsc::Receiver<(Instant, Vec<u8>)>,
    text: Vec<u8>,
}

impl Watched {
    /// How long after its start it printed `text`.
    pub(super) fn until(&mut self, text: &[u8], limit: Duration) -> anyhow::Result<Duration> {
        loop {
            let left = limit.saturating_sub(self.started.elapsed());
            let Ok((at, part)) = self.printed.recv_timeout(left) else {
                bail!("'{}' was not printed:\n{}", text.escape_ascii(), self.last_words());
            };
            // What is looked for may be cut in two.
            let from = self.text.len().saturating_sub(text.len());
            self.text.extend(part);
            if self.text[from..].windows(text.len()).any(|window| window == text) {
                return Ok(at - self.started);
            }
        }
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, limit: Duration) -> anyhow::Result<()> {
        while let Ok((_, part)) = self.printed.recv_timeout(limit.saturating_sub(self.started.elapsed())) {
            self.text.extend(part);
        }
        ensure!(self.started.elapsed() < limit, "it did not end within {limit:?}:\n{}", self.last_words());
        self.child.wait().context("waiting for it")?;
        Ok(())
    }

    /// Memory that is its own, in KiB: all that is resident but the guest's.
    pub(super) fn own_memory(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            number.with_context(|| format!("there is no {name} in {path}"))
        };
        Ok(field("RssAnon")? + field("RssFile")?)
    }

    fn last_words(&self) -> String {
        let from = self.text.len().saturating_sub(2000);
        String::from_utf8_lossy(&self.text[from..]).into_owned()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long the pause of a report took.
pub(super) fn paused(report: &Path) -> anyhow::Result<Duration> {
    let bytes = fs::read(report).with_context(|| format!("reading {}", report.display()))?;
    let report: serde_json::Value = serde_json::from_slice(&bytes).context("reading a report of ours")?;
    let pause = &report["pause"];
    ensure!(pause["not_stopped"] == serde_json::json!([]), "vCPUs did not stop: {pause}");
    let time = |name: &str| pause[name].as_u64().with_context(|| format!("no {name} in {pause}"));
    // What the kernel was given to finish its message is no part of it.
    Ok(Duration::from_micros(time("microseconds")?.saturating_sub(time("settling_microseconds")?)))
}

/// A folder for the files of a benchmark; it goes with this.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("vmm-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making the folder {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A sparse disk of `len` bytes with FreeBSD's file system, in which `kernel` is; `None` without the program for it.
    pub(super) fn disk(&self, kernel: &[u8], len: u64) -> anyhow::Result<Option<PathBuf>> {
        let (root, disk) = (self.path("root"), self.path("disk.img"));
        fs::create_dir_all(root.join("boot/kernel")).context("making a folder")?;
        fs::write(root.join("boot/kernel/kernel"), kernel).context("writing the kernel")?;
        // Without a least size it makes some file systems too small for what it puts in.
        let options = ["-t", "ffs", "-o", "version=2", "-M", "4m"];
        let made = Command::new("makefs").args(options).arg(&disk).arg(&root).output();
        let made = match made {
            Ok(made) => made,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("starting makefs"),
        };
        let told = [made.stdout, made.stderr].concat();
        ensure!(made.status.success(), "makefs failed: {}", String::from_utf8_lossy(&told));
        let file = fs::File::options().write(true).open(&disk).context("opening the disk")?;
        file.set_len(len).context("making the disk as long as it is to be")?;
        Ok(Some(disk))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
