//! Runs of scenarios from beginning to end: guests are prepared, run where KVM runs real kernels, and judged here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, ensure};

use super::guest;
use super::here::{Order, Run};
use super::initramfs::Initramfs;
use super::judge::Verdict;
use super::kernels::Kernel;
use super::level1::Level1;
use super::modules::{self, Modules};
use super::probe;
use super::scenario::Named;
use super::under_test;
use super::{broken, crash_kernel};

/// Guests at a time. With two the first level dies: interrupts between its CPUs get through to it where QEMU 7.2 has just left a
/// guest and the clear interrupt flag (GIF) should hold them off.
const WORKERS: usize = 1;
/// Said by the program in the first level before a run's name, when its results are there.
const ENDED: &str = "ended: ";

/// Runs scenarios; `tell` hears each verdict as it is there. Whether all are good.
pub fn run(lab: &Path, runs: &[Named], mut tell: impl FnMut(&Verdict)) -> anyhow::Result<bool> {
    let share = lab.join("runs");
    let out = share.join("out");
    if share.exists() {
        fs::remove_dir_all(&share).context("clearing away earlier runs")?;
    }
    fs::create_dir_all(&out)?;
    let share = share.canonicalize()?;
    let out = share.join("out");
    let mut good = true;
    let (ended, news) = mpsc::channel::<String>();
    thread::scope(|scope| {
        let place = scope.spawn(|| perform(lab, &share, runs, ended));
        let netdump = under_test("netdump");
        let mut judged = Vec::new();
        let mut judge = |run: &Named| {
            let verdict = Verdict::of(run, &out.join(&run.name), lab, &netdump);
            good &= verdict.is_good();
            tell(&verdict);
        };
        for name in news {
            if let Some(run) = runs.iter().find(|run| run.name == name) {
                judge(run);
                judged.push(name);
            }
        }
        let performed = place.join().map_err(|_| anyhow::anyhow!("the lab panicked"))?;
        // Those that the end of the first level cut short.
        runs.iter().filter(|run| !judged.contains(&run.name)).for_each(judge);
        performed
    })?;
    Ok(good)
}

/// Runs them here if this machine's KVM can, or else in a first level.
fn perform(lab: &Path, share: &Path, runs: &[Named], ended: mpsc::Sender<String>) -> anyhow::Result<()> {
    let programs = ["vmm", "netdump"].map(under_test);
    if probe::runs_real_kernels(lab, &programs[0])? {
        let order = order(lab, share, share, &programs, runs)?;
        let ended = std::sync::Mutex::new(ended);
        order.perform(|name| {
            let _ = ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(name.to_owned());
        });
        return Ok(());
    }
    let inside = ["vmm", "netdump"].map(|name| Path::new("/bin").join(name));
    let order = order(lab, share, Path::new("/lab"), &inside, runs)?;
    fs::write(share.join("order.json"), serde_json::to_vec_pretty(&order)?)?;
    let level1 = Level1::new(lab, share, &[&programs[..], &[under_test("lab")]].concat())?;
    let seconds = runs.iter().map(|run| run.scenario.limit).sum::<u64>() + 60;
    let mut talk = String::new();
    let code = level1.run("lab here /lab/order.json", seconds, |line| match line.split_once(ENDED) {
        Some((_, name)) => drop(ended.send(name.to_owned())),
        None => talk = std::mem::take(&mut talk) + line + "\n",
    });
    fs::write(share.join("out/level1.log"), &talk)?;
    let code = code.with_context(|| talk.clone())?;
    ensure!(code == 0, "the first level ended with {code}\n{talk}");
    Ok(())
}

/// Does what an order file says, in the first level.
pub fn obey(order: &Path) -> anyhow::Result<()> {
    let order: Order = serde_json::from_slice(&fs::read(order)?)?;
    order.perform(|name| println!("{ENDED}{name}"));
    Ok(())
}

/// Puts guests into the shared folder, which the runs know as `known_as`.
fn order(
    lab: &Path,
    share: &Path,
    known_as: &Path,
    programs: &[PathBuf; 2],
    runs: &[Named],
) -> anyhow::Result<Order> {
    let guests = share.join("guests");
    fs::create_dir_all(&guests)?;
    let mut all = Vec::new();
    for run in runs {
        let prepared = prepare(lab, &guests, run).with_context(|| format!("preparing {}", run.name))?;
        let known = |file: String| known_as.join("guests").join(file);
        all.push(Run {
            name: run.name.clone(),
            image: known(prepared.0),
            initramfs: prepared.1.map(known),
            scenario: run.scenario.clone(),
        });
    }
    let [vmm, netdump] = programs.clone();
    Ok(Order { workers: WORKERS, vmm, netdump, out: known_as.join("out"), runs: all })
}

/// Writes a run's guest; the names of its image and its initramfs.
fn prepare(lab: &Path, guests: &Path, run: &Named) -> anyhow::Result<(String, Option<String>)> {
    let Some(kernel) = &run.kernel else {
        let name = run.scenario.guest.as_deref().unwrap_or_default();
        let guest = guest_images::find(name).with_context(|| format!("there is no guest '{name}'"))?;
        fs::write(guests.join(guest.file_name()), guest.elf)?;
        return Ok((guest.file_name(), None));
    };
    let image = kernel.clone();
    let kernel = Kernel::fetch(lab, kernel)?;
    if !guests.join(&image).exists() {
        fs::copy(kernel.image()?, guests.join(&image))?;
    }
    let mut root = Initramfs::with_busybox(&guest::init_of(&run.scenario))?;
    let modules = Modules::below(&kernel.modules()?)?;
    root.modules(&modules, &run.scenario.modules)?;
    for (fault, module) in &run.scenario.broken {
        let module = modules::read(modules.file(module)?)?;
        root.file(&fault.file(), &broken::break_module(module, *fault)?, 0o644)?;
    }
    if run.scenario.crash_kernel {
        root.copy("image", &kernel.image()?)?;
        root.file("bin/load_crash_kernel", &crash_kernel::loader()?, 0o755)?;
    }
    let initramfs = format!("{}.cpio", run.name);
    fs::write(guests.join(&initramfs), root.finish()?)?;
    Ok((image, Some(initramfs)))
}
