//! Runs of scenarios from beginning to end: guests are prepared, run where KVM runs real kernels, and judged here.
//!
//! ```text
//! queue of runs --> first level 1 --.
//!               --> first level 2 ---+--> news --> judge --> one line each
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, stdin};
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use super::disk_image::{self, DiskImage};
use super::guest;
use super::here::{Order, Run};
use super::initramfs::Initramfs;
use super::judge::Verdict;
use super::kernels::Kernel;
use super::level1::{Level1, Patience};
use super::modules::{self, Modules};
use super::probe;
use super::queue::{Lost, Queue};
use super::scenario::{Named, Scenario};
use super::under_test;
use super::{broken, crash_kernel};

/// First levels at a time, at most: each keeps one CPU busy, and up to 2 GiB.
const MOST_LEVELS: usize = 4;
/// Said by the program in the first level when it waits for a run's name.
const READY: &str = "ready for a run";
/// Said before a run's name, when its results are there.
const ENDED: &str = "ended: ";
/// Said now and then, by a first level that is alive.
const ALIVE: &str = "alive";
/// How often it says so.
const BEAT: Duration = Duration::from_secs(5);
/// What a run may take beyond its limit: its networks, its receiver, and copying the core.
const SLACK: Duration = Duration::from_secs(180);
/// A first level that says nothing for so long has died. A busy host needs a minute until the first beat.
const SILENCE: Duration = Duration::from_secs(180);

/// Runs scenarios; `tell` gets a line or more for each as soon as it is judged. Whether all are good.
pub fn run(lab: &Path, runs: &[Named], mut tell: impl FnMut(&str)) -> anyhow::Result<bool> {
    let share = lab.join("runs");
    if share.exists() {
        fs::remove_dir_all(&share).context("clearing away earlier runs")?;
    }
    fs::create_dir_all(share.join("out"))?;
    let share = share.canonicalize()?;
    let out = share.join("out");
    let netdump = under_test("netdump");
    let mut good = true;
    let (sender, news) = mpsc::channel();
    thread::scope(|scope| {
        let place = scope.spawn(|| perform(lab, &share, runs, sender));
        let mut judged = Vec::new();
        let mut judge = |run: &Named| {
            let verdict = Verdict::of(run, &out.join(&run.name), lab, &netdump);
            good &= verdict.is_good();
            tell(&verdict.text());
        };
        for name in news {
            match name {
                News::Ended(number) => {
                    judge(&runs[number]);
                    judged.push(number);
                }
                News::Again(number, why) => eprintln!("lab: {} again: {why}", runs[number].name),
            }
        }
        let performed = place.join().map_err(|_| anyhow!("the lab panicked"))?;
        // Those that never ended.
        (0..runs.len()).filter(|number| !judged.contains(number)).for_each(|number| judge(&runs[number]));
        performed
    })?;
    Ok(good)
}

/// What is heard of runs, by their number.
enum News {
    /// Its results are there.
    Ended(usize),
    /// The first level died under it, for which it cannot be blamed.
    Again(usize, String),
}

/// Runs them here if this machine's KVM can, or else in first levels.
fn perform(lab: &Path, share: &Path, runs: &[Named], news: Sender<News>) -> anyhow::Result<()> {
    let programs = ["vmm", "netdump"].map(under_test);
    let queue = Queue::new(runs.len());
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    if probe::runs_real_kernels(lab, &programs[0])? {
        let order = order(lab, share, share, &programs, runs)?;
        let here = || {
            let news = news.clone();
            while let Some(number) = queue.next() {
                order.perform(&runs[number].name);
                let _ = news.send(News::Ended(number));
            }
        };
        // A guest has two CPUs.
        thread::scope(|scope| (0..cpus.div_ceil(2)).for_each(|_| drop(scope.spawn(here))));
        return Ok(());
    }
    let inside = ["vmm", "netdump"].map(|name| Path::new("/bin").join(name));
    let order = order(lab, share, Path::new("/lab"), &inside, runs)?;
    fs::write(share.join("order.json"), serde_json::to_vec_pretty(&order)?)?;
    let programs = [&programs[..], &[under_test("lab")]].concat();
    let level = Arc::new(Level1::new(lab, share, &programs, Some("lab here /lab/order.json"))?);
    thread::scope(|scope| {
        let shift = |number: usize| {
            let (level, queue, news) = (level.clone(), &queue, news.clone());
            scope.spawn(move || Shift { level, queue, runs, news, share, number }.work())
        };
        let shifts = (0..cpus.min(MOST_LEVELS).min(runs.len())).map(shift).collect::<Vec<_>>();
        let ended = shifts
            .into_iter()
            .map(|shift| shift.join().map_err(|_| anyhow!("a first level's thread panicked"))?);
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

/// First levels, one after the other as long as they die.
struct Shift<'a> {
    level: Arc<Level1>,
    queue: &'a Queue,
    runs: &'a [Named],
    news: Sender<News>,
    share: &'a Path,
    number: usize,
}

impl Shift<'_> {
    fn work(&self) -> anyhow::Result<()> {
        for boot in 1.. {
            if self.queue.is_empty() {
                break;
            }
            let log = self.share.join(format!("out/level1-{}.{boot}.log", self.number));
            self.boot(&log)?;
        }
        Ok(())
    }

    /// Boots one and gives it runs until there are no more or it dies.
    fn boot(&self, log: &Path) -> anyhow::Result<()> {
        let mut talk = String::new();
        let mut running = None;
        let mut until = Instant::now() + SLACK;
        let all = self.runs.iter().map(|run| run.scenario.limit).sum::<u64>() + SLACK.as_secs();
        let ended = self.level.run(Patience { all, silence: SILENCE }, |line| {
            if line == READY {
                running = self.queue.next();
                let limit = running.map_or(0, |number| self.runs[number].scenario.limit);
                until = Instant::now() + Duration::from_secs(limit) + SLACK;
                return Continue(running.map_or("", |number| &self.runs[number].name).to_owned() + "\n");
            }
            if line.starts_with(ENDED) {
                running.take().into_iter().for_each(|number| drop(self.news.send(News::Ended(number))));
            } else if line != ALIVE {
                talk = std::mem::take(&mut talk) + line + "\n";
            }
            if Instant::now() > until {
                Break("its program does not go on".to_owned())
            } else {
                Continue(String::new())
            }
        });
        fs::write(log, &talk)?;
        let died = match ended {
            Ok(0) => return Ok(()),
            Ok(code) => anyhow!("the program in the first level ended with {code}; see {}", log.display()),
            Err(error) => error.context(format!("its console is in {}", log.display())),
        };
        self.lost(running, &died)
    }

    /// What becomes of the run that a first level took with it.
    fn lost(&self, running: Option<usize>, died: &anyhow::Error) -> anyhow::Result<()> {
        match (running, self.queue.lost(running)) {
            (_, Lost::GiveUp) => Err(anyhow!("first levels keep dying: {died:#}")),
            (None, _) => {
                eprintln!("lab: a first level again: {died:#}");
                Ok(())
            }
            (Some(number), Lost::Again(time)) => {
                let folder = self.share.join("out").join(&self.runs[number].name);
                if folder.exists() {
                    fs::rename(&folder, folder.with_added_extension(format!("died-{time}")))?;
                }
                let _ = self.news.send(News::Again(number, format!("{died:#}")));
                Ok(())
            }
        }
    }
}

/// Does what an order file says, in the first level: runs whose names are typed, until there is an empty one.
pub fn obey(order: &Path) -> anyhow::Result<()> {
    let order: Order = serde_json::from_slice(&fs::read(order)?)?;
    thread::spawn(|| {
        loop {
            println!("{ALIVE}");
            thread::sleep(BEAT);
        }
    });
    println!("{READY}");
    for name in stdin().lock().lines() {
        let name = name?;
        if name.is_empty() {
            break;
        }
        order.perform(&name);
        println!("{ENDED}{name}\n{READY}");
    }
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
    let mut kernels = HashMap::new();
    for run in runs {
        let prepared =
            prepare(lab, &guests, run, &mut kernels).with_context(|| format!("preparing {}", run.name))?;
        let known = |file: String| known_as.join("guests").join(file);
        all.push(Run {
            name: run.name.clone(),
            image: known(prepared.0),
            initramfs: prepared.1.map(known),
            scenario: run.scenario.clone(),
        });
    }
    let [vmm, netdump] = programs.clone();
    Ok(Order { vmm, netdump, out: known_as.join("out"), runs: all })
}

/// Writes a run's guest; the names of its image and its initramfs.
fn prepare(
    lab: &Path,
    guests: &Path,
    run: &Named,
    kernels: &mut HashMap<String, Kernel>,
) -> anyhow::Result<(String, Option<String>)> {
    if let Some(name) = &run.scenario.disk_image {
        let copy = disk_image::working_copy(guests, &run.name);
        DiskImage::fetch(lab, name)?.copy(&copy)?;
        return Ok((copy.file_name().unwrap_or_default().to_string_lossy().into_owned(), None));
    }
    let Some(name) = &run.kernel else {
        let name = run.scenario.guest.as_deref().unwrap_or_default();
        let guest = guest_images::find(name).with_context(|| format!("there is no guest '{name}'"))?;
        fs::write(guests.join(guest.file_name()), guest.elf)?;
        return Ok((guest.file_name(), None));
    };
    if !kernels.contains_key(name) {
        let kernel = Kernel::fetch(lab, name)?;
        fs::copy(kernel.image()?, guests.join(name))?;
        kernels.insert(name.clone(), kernel);
    }
    let initramfs = format!("{}.cpio", run.scenario_name());
    if !guests.join(&initramfs).exists() {
        fs::write(guests.join(&initramfs), root_of(&run.scenario, &kernels[name])?)?;
    }
    ensure!(guests.join(name).is_file(), "{name} was not copied");
    Ok((name.clone(), Some(initramfs)))
}

/// The first root of a scenario's guest.
fn root_of(scenario: &Scenario, kernel: &Kernel) -> anyhow::Result<Vec<u8>> {
    let mut root = Initramfs::with_busybox(&guest::init_of(scenario))?;
    let modules = Modules::below(&kernel.modules()?)?;
    root.modules(&modules, &scenario.modules)?;
    for (fault, module) in &scenario.broken {
        let module = modules::read(modules.file(module)?)?;
        root.file(&fault.file(), &broken::break_module(module, *fault)?, 0o644)?;
    }
    if scenario.crash_kernel {
        root.copy("image", &kernel.image()?)?;
        root.file("bin/load_crash_kernel", &crash_kernel::loader()?, 0o755)?;
    }
    root.finish()
}
