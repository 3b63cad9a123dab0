//! The lab: unmodified distribution kernels as guests of `vmm`, on real KVM semantics, wherever the tests run.
//!
//! A host whose KVM runs real kernels runs them itself. Elsewhere a Debian kernel under QEMU's software CPU (AMD's SVM is
//! emulated, so its KVM is a true one) is the *first level*, and runs them. Programs, kernels and guests go there in its
//! initramfs and in a folder that it shares with the host, where cores, reports and consoles come back.

pub mod bench;
pub mod broken;
pub mod crash_kernel;
pub mod disk_image;
pub mod guest;
pub mod here;
pub mod initramfs;
pub mod judge;
pub mod kernels;
pub mod level1;
pub mod modules;
pub mod network;
pub mod probe;
pub mod queue;
pub mod readers;
pub mod scenario;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

/// Where kernels are kept: `lab` in cargo's target folder, or where `LAB_DIR` says.
pub fn folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("LAB_DIR") {
        return Ok(folder.into());
    }
    let program = std::env::current_exe()?;
    let profile = crate::programs::profile_folder(&program);
    Ok(profile.parent().context("a profile lies in a target folder")?.join("lab"))
}

/// A program of this workspace: as built with this one, or from the folder `LAB_PROGRAMS`, if it has it.
pub fn under_test(name: &str) -> PathBuf {
    let given = std::env::var_os("LAB_PROGRAMS").map(|folder| PathBuf::from(folder).join(name));
    given.filter(|program| program.is_file()).unwrap_or_else(|| crate::programs::program(name))
}

/// Runs a command, which must succeed.
fn succeed(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// What a command printed, which must succeed.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {error}", command.get_program().display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
