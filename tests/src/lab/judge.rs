//! Whether what came of a run is what its scenario expects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::pcap;

use super::disk_image::{self, DiskImage};
use super::here::Outcome;
use super::network;
use super::output;
use super::readers::{self, Specimen};
use super::scenario::{Expect, Named, Scenario};

/// Where netdump servers take heralds.
const HERALDS: u16 = 20023;

/// A run that has been judged.
#[derive(Debug)]
pub struct Verdict {
    /// Its name.
    pub name: String,
    /// What the scenario shows.
    pub about: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What is wrong; nothing for a run as expected.
    pub complaints: Vec<String>,
}

impl Verdict {
    /// Judges a run by what it left in its folder.
    pub fn of(run: &Named, folder: &Path, lab: &Path, netdump: &Path) -> Self {
        let mut verdict = Self {
            name: run.name.clone(),
            about: run.scenario.about.clone(),
            seconds: 0.0,
            complaints: Vec::new(),
        };
        if let Err(error) = verdict.judge(&run.scenario, folder, lab, netdump) {
            verdict.complaints.push(format!("{error:#}"));
        }
        verdict
    }

    /// Whether all was as expected.
    pub fn is_good(&self) -> bool {
        self.complaints.is_empty()
    }

    /// The line that tells of it, and lines of what is wrong.
    pub fn text(&self) -> String {
        let mark = if self.is_good() { "ok  " } else { "FAIL" };
        let line = format!("{mark} {:34} {:6.1} s  {}", self.name, self.seconds, self.about);
        let complaints = self.complaints.iter().map(|complaint| format!("\n       {complaint}"));
        complaints.fold(line, |text, complaint| text + &complaint)
    }

    fn judge(&mut self, run: &Scenario, folder: &Path, lab: &Path, netdump: &Path) -> anyhow::Result<()> {
        let expect = &run.expect;
        let outcome = fs::read(folder.join("outcome.json")).context("nothing came of it")?;
        let outcome: Outcome = serde_json::from_slice(&outcome)?;
        self.seconds = outcome.seconds;
        self.complaints.extend(outcome.trouble);
        if outcome.exit != Some(expect.exit) && self.complaints.is_empty() {
            let Outcome { exit, signal, .. } = outcome;
            self.complaints
                .push(format!("vmm ended with {exit:?} (signal {signal:?}) instead of {}", expect.exit));
        }
        let read = |name| fs::read(folder.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
        let (console, log) = (read("console").unwrap_or_default(), read("vmm.log").unwrap_or_default());
        self.words(expect, &console, &log);
        if !self.is_good() {
            self.complaints.push(format!("see {}", folder.display()));
            return Ok(());
        }
        if expect.file_moved && fs::read(folder.join("file")).ok() != Some(network::file()) {
            self.complaints.push("the file that the guest fetched did not come back as it was".to_owned());
        }
        if let (Some(state), Some(name)) = (expect.disk, &run.disk_image) {
            let copy = disk_image::working_copy(&lab.join("runs/guests"), &self.name);
            let judged = DiskImage::fetch(lab, name)?.judge(&copy, state);
            self.complaints.extend(judged.err().map(|error| format!("the disk: {error:#}")));
        }
        if run.pcap {
            let capture = fs::read(folder.join("dump.pcap")).context("no capture came back")?;
            ensure!(pcap::shows_port(&capture, HERALDS)?, "the capture has no herald");
        }
        let report = read("report.json").ok().map(|text| serde_json::from_str(&text)).transpose()?;
        self.report(expect, report.as_ref());
        if expect.core() {
            let report = report.context("there is no report")?;
            let core = core(&folder.join("cores"))?;
            self.verify(&core, folder, netdump)?;
            self.stack(expect, &report["card"], "the report");
            if !expect.stack.is_empty() {
                let shown = output(Command::new(netdump).args(["inspect", "--json"]).arg(&core))?;
                self.stack(expect, &serde_json::from_str::<Value>(&shown)?["card"], "netdump inspect");
            }
            if let Some(panic) = &expect.readers {
                let specimen = Specimen { core: &core, panic, console: &console, report: &report };
                self.complaints.extend(readers::complaints(&specimen, lab));
            }
        }
        Ok(())
    }

    fn words(&mut self, expect: &Expect, console: &str, log: &str) {
        for text in expect.console.iter().filter(|text| !console.contains(text.as_str())) {
            self.complaints.push(format!("the console has no '{text}'"));
        }
        for text in
            expect.absent.iter().filter(|text| console.contains(text.as_str()) || log.contains(text.as_str()))
        {
            self.complaints.push(format!("the console or the log has '{text}'"));
        }
    }

    fn report(&mut self, expect: &Expect, report: Option<&Value>) {
        let null = Value::Null;
        let report = report.unwrap_or(&null);
        for (pointer, wanted) in &expect.report {
            let found = report.pointer(pointer).unwrap_or(&null);
            if found != wanted {
                self.complaints.push(format!("{pointer} in the report is {found} instead of {wanted}"));
            }
        }
        let signs = report.pointer("/panic/signs").and_then(Value::as_array);
        let saw =
            |name: &&String| signs.is_some_and(|signs| signs.iter().any(|sign| sign["source"] == **name));
        for name in expect.seen_by.iter().filter(|name| !saw(name)) {
            self.complaints.push(format!("'{name}' did not see the panic"));
        }
    }

    /// The stack of the CPU that panicked, as a crash card has it.
    fn stack(&mut self, expect: &Expect, card: &Value, whose: &str) {
        if expect.stack.is_empty() {
            return;
        }
        let cpus = card["cpus"].as_array().map(Vec::as_slice).unwrap_or_default();
        let cpu = cpus.iter().find(|cpu| !cpu["number"].is_null() && cpu["number"] == card["panic_cpu"]);
        let frames = cpu.and_then(|cpu| cpu["backtrace"].as_array()).map(Vec::as_slice).unwrap_or_default();
        let functions = frames.iter().filter_map(|frame| frame["function"].as_str()).collect::<Vec<_>>();
        if !in_order(&expect.stack, &functions) {
            self.complaints.push(format!("the stack in {whose} is {functions:?}"));
        }
    }

    /// `netdump verify` by the report: also that the core has what `vmm` sent.
    fn verify(&mut self, core: &Path, folder: &Path, netdump: &Path) -> anyhow::Result<()> {
        let mut verify = Command::new(netdump);
        let verified =
            verify.arg("verify").arg(core).arg("--report").arg(folder.join("report.json")).output()?;
        if !verified.status.success() {
            self.complaints.push(format!("netdump verify: {}", String::from_utf8_lossy(&verified.stdout)));
        }
        Ok(())
    }
}

/// Whether the words come in this order, with others between.
fn in_order(words: &[String], among: &[&str]) -> bool {
    let mut among = among.iter();
    words.iter().all(|word| among.any(|other| other == word))
}

/// The one core that a run stored. Beside it are its manifest, its info file and links' targets.
fn core(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut cores = Vec::new();
    for entry in fs::read_dir(folder).context("no cores came back")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("vmcore") && entry.file_type()?.is_file() && !name.ends_with(".incomplete") {
            cores.push(entry.path());
        }
    }
    match cores.as_slice() {
        [core] => Ok(core.clone()),
        _ => bail!("{} cores instead of one in {}", cores.len(), folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn functions_of_a_stack_come_in_order_with_others_between() {
        let words = ["panic", "write"].map(str::to_owned);
        assert!(in_order(&words, &["delay", "panic", "handle", "write", "main"]));
        assert!(!in_order(&words, &["write", "panic"]));
        assert!(!in_order(&words, &["panic"]));
    }
}
