//! Whether this machine's own KVM runs real kernels.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::guest;
use super::initramfs::Initramfs;
use super::kernels::Kernel;
use crate::needs::Need;

/// A kernel that has not come so far by then is emulated, instruction by instruction.
const PATIENCE: Duration = Duration::from_secs(20);

/// Boots the smallest kernel and sees whether it gets to its first program and off again. A KVM on a processor without
/// virtualisation is not asked: it is made of software (PVM), and runs no unmodified kernel.
pub fn runs_real_kernels(lab: &Path, vmm: &Path) -> anyhow::Result<bool> {
    if !Need::Network.is_met() || !Need::Kvm.is_met() || !has_virtualisation() {
        return Ok(false);
    }
    let kernel = Kernel::fetch(lab, "6.1-cloud")?;
    let folder = tempfile::tempdir()?;
    let initramfs = folder.path().join("initramfs");
    fs::write(&initramfs, Initramfs::with_busybox(&guest::init(""))?.finish()?)?;
    let mut command = Command::new(vmm);
    command.args(["run", "--no-netdump", "--cmdline", "console=ttyS0 quiet", "--initrd"]);
    command.arg(&initramfs).arg(kernel.image()?);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if started.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn has_virtualisation() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| ["svm", "vmx"].contains(&flag)))
}
