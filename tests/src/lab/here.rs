//! Runs scenarios on the KVM of the machine that this runs on: the first level's, or that of a host that runs real kernels.
//!
//! What comes of a run lies in a folder of its name: `console`, `vmm.log`, `serve.log`, `report.json`, `cores/` and
//! `outcome.json`. Judging that is left to the machine that has the readers.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Whence, lseek};
use serde::{Deserialize, Serialize};

use crate::netns::Namespace;
use crate::pcap;

use super::network::{Networks, SERVER};
use super::scenario::Scenario;

/// How often files and programs are looked at.
const POLL: Duration = Duration::from_millis(50);
/// A receiver that has been told to stop, or that has the whole core, needs no longer.
const RECEIVER_ENDS: Duration = Duration::from_secs(60);

/// What is kept of a frame that a dump sent, in bytes: a message's headers, and no guest memory. A whole capture is larger
/// than the core.
const HEADERS: u32 = 96;

/// What is to be run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The program under test.
    pub vmm: PathBuf,
    /// The receiver.
    pub netdump: PathBuf,
    /// Where results go.
    pub out: PathBuf,
    /// The runs.
    pub runs: Vec<Run>,
}

/// One run of a scenario.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// What `vmm` boots.
    pub image: PathBuf,
    /// The guest's root file system.
    pub initramfs: Option<PathBuf>,
    /// What to do.
    pub scenario: Scenario,
}

/// What came of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit code of `vmm`.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How long the run took, with its networks and its receiver.
    pub seconds: f64,
    /// Why the run could not be made, if that is so.
    pub trouble: Option<String>,
}

impl Order {
    /// Makes the run of that name. What comes of it is in its folder.
    pub fn perform(&self, name: &str) {
        if let Some(run) = self.runs.iter().find(|run| run.name == name) {
            self.perform_one(run);
        }
    }

    fn perform_one(&self, run: &Run) {
        let started = Instant::now();
        let folder = self.out.join(&run.name);
        // Namespaces report what they cannot do by panicking, as tests do.
        let done = catch_unwind(AssertUnwindSafe(|| self.act(run, &folder)));
        let done = done.unwrap_or_else(|_| bail!("a panic, told on the console"));
        let seconds = started.elapsed().as_secs_f64();
        let outcome = match done {
            Ok(status) => Outcome { exit: status.code(), signal: status.signal(), seconds, trouble: None },
            Err(error) => Outcome { exit: None, signal: None, seconds, trouble: Some(format!("{error:#}")) },
        };
        let text = serde_json::to_vec_pretty(&outcome).expect("an outcome can be JSON");
        if let Err(error) = fs::write(folder.join("outcome.json"), text) {
            eprintln!("{}: {error}", folder.display());
        }
    }

    fn act(&self, run: &Run, folder: &Path) -> anyhow::Result<ExitStatus> {
        fs::create_dir_all(folder)?;
        let work = tempfile::tempdir()?;
        let cores = work.path().join("cores");
        fs::create_dir(&cores)?;
        let networks = Networks::of(&run.scenario);
        let receiver =
            networks.as_ref().map(|there| self.serve(&there.collector, &cores, folder)).transpose()?;
        if let Some(networks) = &networks {
            networks.move_files(folder.join("file"))?;
        }
        let mut vmm = self.vmm(run, networks.as_ref(), &cores, folder)?;
        let capture = work.path().join("capture");
        if run.scenario.pcap {
            vmm.arg("--pcap").arg(&capture);
        }
        let mut vmm = match &networks {
            Some(networks) => Program(networks.host.inside(move || vmm.spawn())?),
            None => Program(vmm.spawn()?),
        };
        let status = watch(&mut vmm, run, folder)?;
        if let Some(receiver) = receiver {
            receiver.finish(folder, status.code() == Some(10))?;
        }
        bring(&cores, &folder.join("cores"))?;
        if run.scenario.pcap {
            let cut = pcap::cut(&fs::read(&capture).context("reading the capture")?, HEADERS)?;
            fs::write(folder.join("dump.pcap"), cut)?;
        }
        Ok(status)
    }

    fn serve(&self, collector: &Namespace, cores: &Path, folder: &Path) -> anyhow::Result<Receiver> {
        let mut command = Command::new(&self.netdump);
        command.args(["serve", "--listen", &SERVER.to_string(), "--dir"]).arg(cores);
        log_to(&mut command, &folder.join("serve.out"), &folder.join("serve.log"))?;
        let program = Program(collector.inside(move || command.spawn())?);
        wait_for("the receiver to listen", RECEIVER_ENDS, || {
            Ok(says(&folder.join("serve.log"), "listening"))
        })?;
        Ok(Receiver { program })
    }

    fn vmm(
        &self,
        run: &Run,
        networks: Option<&Networks>,
        cores: &Path,
        folder: &Path,
    ) -> anyhow::Result<Command> {
        let scenario = &run.scenario;
        let mut vmm = Command::new(&self.vmm);
        vmm.args(["run", "--memory", &scenario.memory, "--cpus", &scenario.cpus.to_string()]);
        vmm.arg("--report").arg(folder.join("report.json"));
        match networks {
            Some(networks) => {
                vmm.args(["--tap", "tap0"]);
                // A disk's own command line has them.
                if scenario.disk_image.is_none() {
                    vmm.args(["--netdump-server", &SERVER.to_string()]);
                    vmm.args(["--netdump-client", &networks.client().to_string()]);
                }
                if let Some(gateway) = networks.gateway() {
                    vmm.args(["--netdump-gateway", &gateway.to_string()]);
                }
            }
            None => drop(vmm.arg("--crash-dir").arg(cores)),
        }
        if !scenario.cmdline.is_empty() {
            vmm.args(["--cmdline", &scenario.cmdline]);
        }
        if let Some(initramfs) = &run.initramfs {
            vmm.arg("--initrd").arg(initramfs);
        }
        vmm.args(&scenario.vmm).arg(&run.image);
        log_to(&mut vmm, &folder.join("console"), &folder.join("vmm.log"))?;
        Ok(vmm)
    }
}

/// Waits for the end of `vmm`, and signals it when the scenario says so.
fn watch(vmm: &mut Program, run: &Run, folder: &Path) -> anyhow::Result<ExitStatus> {
    let limit = Duration::from_secs(run.scenario.limit);
    let mut signal = run.scenario.signal.as_ref();
    let mut status = None;
    wait_for("vmm to end", limit, || {
        if let Some(wanted) = signal.filter(|wanted| says(&folder.join("console"), &wanted.console)) {
            signal = None;
            vmm.signal(wanted.name.parse()?)?;
        }
        status = vmm.0.try_wait()?;
        Ok(status.is_some())
    })?;
    status.context("it has ended")
}

/// `netdump serve`.
struct Receiver {
    program: Program,
}

impl Receiver {
    /// Lets it store what it has, and ends it as Ctrl-C does.
    fn finish(mut self, folder: &Path, has_core: bool) -> anyhow::Result<()> {
        if has_core {
            wait_for("the core to be stored", RECEIVER_ENDS, || {
                Ok(says(&folder.join("serve.out"), "vmcore"))
            })?;
        }
        self.program.signal(Signal::SIGINT)?;
        wait_for("the receiver to end", RECEIVER_ENDS, || Ok(self.program.0.try_wait()?.is_some()))
    }
}

/// A program that does not outlive the run.
struct Program(Child);

impl Program {
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log_to(command: &mut Command, out: &Path, error: &Path) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).stdout(File::create(out)?).stderr(File::create(error)?);
    Ok(())
}

fn says(file: &Path, text: &str) -> bool {
    fs::read(file).is_ok_and(|words| String::from_utf8_lossy(&words).contains(text))
}

fn wait_for(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < limit, "waited {} s in vain for {what}", limit.as_secs());
        thread::sleep(POLL);
    }
    Ok(())
}

/// Copies the files of a folder, and no holes: the network file system between the first level and the host has none.
fn bring(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let to = to.join(entry.file_name());
            copy_data(&entry.path(), &to).with_context(|| format!("copying to {}", to.display()))?;
        }
    }
    Ok(())
}

fn copy_data(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    to.set_len(from.metadata()?.len())?;
    let mut buffer = vec![0; 1 << 20];
    let mut end = 0;
    loop {
        let start = match lseek(&from, end, Whence::SeekData) {
            // There is no more data.
            Err(Errno::ENXIO) => return Ok(()),
            start => start?,
        };
        end = lseek(&from, start, Whence::SeekHole)?;
        let (mut at, end) = (u64::try_from(start)?, u64::try_from(end)?);
        while at < end {
            let len = usize::try_from(end - at)?.min(buffer.len());
            from.read_exact_at(&mut buffer[..len], at)?;
            to.write_all_at(&buffer[..len], at)?;
            at += u64::try_from(len)?;
        }
    }
}
