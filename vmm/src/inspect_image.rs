//! `vmm inspect-image`: what is on a disk image, and what `vmm run` would boot from it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use vmm::image::boot::{BootPlan, BootPlanError, Wishes, plan};
use vmm::image::partitions::Partition;
use vmm::image::{Content, DiskImage, Volume};

/// Options of `vmm inspect-image`.
#[derive(Debug, Args)]
pub(crate) struct InspectImageOptions {
    /// Disk image (raw or qcow2) or block device; it is only read.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Nothing on the disk can be booted.
const NOTHING_TO_BOOT: u8 = 3;

/// Shows an image; the exit code.
pub(crate) fn run(options: &InspectImageOptions) -> anyhow::Result<u8> {
    let disk = DiskImage::open(&options.file)?;
    let plan = plan(&disk, &Wishes { look_only: true, ..Wishes::default() });
    if options.json {
        let value = json!({ "disk": disk_json(&disk), "boot": plan_json(&plan) });
        println!("{}", serde_json::to_string_pretty(&value).context("writing JSON")?);
    } else {
        print!("{}", text(&disk, &plan));
    }
    Ok(if plan.is_ok() { 0 } else { NOTHING_TO_BOOT })
}

fn text(disk: &DiskImage, plan: &Result<BootPlan, BootPlanError>) -> String {
    let mut out = String::new();
    let table = if disk.scheme == "none" { "no partition table" } else { disk.scheme };
    let _ = writeln!(
        out,
        "{}: {}, {}, {table}{}",
        clean(&disk.path.display().to_string()),
        disk.container,
        size(disk.len),
        disk.uuid.as_ref().map_or_else(String::new, |uuid| format!(" {uuid}"))
    );
    for volume in &disk.volumes {
        let _ = writeln!(out, "  {}", volume_text(volume));
    }
    for remark in &disk.remarks {
        let _ = writeln!(out, "  note: {}", clean(remark));
    }
    match plan {
        Ok(plan) => plan_text(&mut out, disk, plan),
        Err(error) => {
            let _ = writeln!(out, "nothing to boot: {}", clean(&causes(error)));
        }
    }
    out
}

fn volume_text(volume: &Volume) -> String {
    let kind = volume.partition.as_ref().map_or_else(String::new, partition_text);
    let content = match &volume.content {
        Content::FileSystem(fs) => {
            let label = fs.label().map(|label| format!(" '{}'", clean(&label))).unwrap_or_default();
            let uuid = fs.uuid().map(|uuid| format!(" {uuid}")).unwrap_or_default();
            format!("{}{label}{uuid}", fs.kind())
        }
        Content::Unreadable { kind, reason } => format!("{kind}: {}", clean(&causes(reason))),
        Content::Unknown => "nothing known".to_owned(),
    };
    format!("{:<13} {:>10}  {kind}{content}", volume.name(), size(volume.blocks.length()))
}

fn partition_text(partition: &Partition) -> String {
    let name =
        if partition.name.is_empty() { String::new() } else { format!(" '{}'", clean(&partition.name)) };
    format!("{}{name}: ", partition.kind)
}

fn plan_text(out: &mut String, disk: &DiskImage, plan: &BootPlan) {
    let volume = disk.volumes.get(plan.volume).map_or_else(String::new, Volume::name);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<12} {}", clean(value));
    };
    line("boots", &format!("{} from {volume}, as {} says", plan.system, plan.source));
    line("kernel", &plan.kernel.path);
    if let Some(initrd) = &plan.initrd {
        line("initrd", &initrd.path);
    }
    if let Some(root) = &plan.root {
        line("root", root);
    }
    if !plan.cmdline.is_empty() {
        line("command line", &plan.cmdline);
    }
    for module in &plan.modules {
        line("module", &module.path);
    }
    for (name, value) in &plan.environment {
        line("variable", &format!("{name}={value}"));
    }
    for candidate in plan.candidates.iter().filter(|candidate| !candidate.chosen) {
        line("also there", &format!("{} ({})", candidate.title, candidate.kernel));
    }
    for remark in &plan.remarks {
        line("note", remark);
    }
}

fn disk_json(disk: &DiskImage) -> Value {
    let volume = |volume: &Volume| {
        let partition = volume.partition.as_ref().map(|partition| {
            json!({
                "place": partition.place.to_string(), "start": partition.start, "type": partition.kind.to_string(),
                "name": partition.name, "uuid": partition.uuid, "attributes": partition.attributes,
            })
        });
        let (kind, label, uuid, problem) = match &volume.content {
            Content::FileSystem(fs) => (Some(fs.kind()), fs.label(), fs.uuid(), None),
            Content::Unreadable { kind, reason } => (Some(*kind), None, None, Some(causes(reason))),
            Content::Unknown => (None, None, None, None),
        };
        json!({
            "partition": partition, "bytes": volume.blocks.length(), "holds": kind, "label": label, "uuid": uuid,
            "problem": problem,
        })
    };
    json!({
        "file": disk.path, "format": disk.container, "bytes": disk.len, "table": disk.scheme, "uuid": disk.uuid,
        "volumes": disk.volumes.iter().map(volume).collect::<Vec<_>>(), "notes": disk.remarks,
    })
}

fn plan_json(plan: &Result<BootPlan, BootPlanError>) -> Value {
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return json!({ "problem": causes(error) }),
    };
    let candidates = plan.candidates.iter();
    let candidates = candidates.map(|candidate| {
        json!({ "title": candidate.title, "kernel": candidate.kernel, "chosen": candidate.chosen })
    });
    json!({
        "system": plan.system, "volume": plan.volume, "source": plan.source, "kernel": plan.kernel.path,
        "initrd": plan.initrd.as_ref().map(|file| &file.path), "root": plan.root, "cmdline": plan.cmdline,
        "modules": plan.modules.iter().map(|module| &module.path).collect::<Vec<_>>(),
        "environment": plan.environment.iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
        "candidates": candidates.collect::<Vec<_>>(), "notes": plan.remarks,
    })
}

/// An error with its causes, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Text of an image, without what could steer a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A length in the largest unit in which it is whole to a tenth.
fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fit = units.iter().find(|(_, shift)| bytes >> shift > 0);
    fit.map_or_else(
        || format!("{bytes} B"),
        |(unit, shift)| {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        },
    )
}
