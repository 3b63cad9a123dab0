//! Booting from a disk: the kernel that is on it, and what its system's own loader would hand over, together with what the
//! user's options say. A guest that boots again gets what is on its disk by then.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::boot::{
    Handover, ImageError, Initrd, InitrdError, KernelImage, Module, ModuleError, SymbolFileError,
};
use crate::devices::virtio::blk::{Disk, DiskError, DiskSpec};
use crate::image::DiskImage;
use crate::image::boot::{self, BootPlan, BootPlanError, Wishes};

/// How much of a file tells whether it is a kernel: the magic of a bzImage is the farthest.
const HEAD_LEN: u64 = 4096;

/// Why a disk cannot be booted from.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant is the error of the module it names")]
pub enum BootDiskError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Plan(#[from] BootPlanError),
    #[error("the kernel on the disk")]
    Kernel(#[source] ImageError),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    #[error(transparent)]
    Symbols(#[from] SymbolFileError),
}

/// A disk that a guest boots from.
#[derive(Debug)]
pub struct BootDisk {
    disk: Arc<Disk>,
    options: Options,
    handover: Handover,
    /// Whether kernel and handover are as a boot needs them.
    is_ready: bool,
}

/// What the user wants, whatever is on the disk.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Kernel and command line.
    pub wishes: Wishes,
    /// More variables, modules and an initrd; its command line is not used.
    pub given: Handover,
    /// The kernel's symbols, when the one on the disk is stripped.
    pub symbols: Option<PathBuf>,
}

/// Whether a file is to be booted as a disk: it does not begin like a kernel, and is as long as disks are. What cannot be
/// read is no disk.
pub fn is_disk(path: &Path) -> bool {
    let head = || -> io::Result<_> {
        let kind = std::fs::metadata(path)?;
        let mut head = Vec::new();
        if kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind.file_type()) {
            File::open(path)?.take(HEAD_LEN).read_to_end(&mut head)?;
        }
        Ok(head)
    };
    let Ok(head) = head() else { return false };
    let looks_odd = head.len() as u64 == HEAD_LEN && !KernelImage::is_kernel(&head);
    looks_odd && DiskImage::open(path).is_ok_and(|disk| disk.is_something()) || head.starts_with(b"QFI\xfb")
}

impl BootDisk {
    /// Opens the disk as the guest is to use it, and reads its kernel.
    pub fn open(spec: &DiskSpec, options: Options) -> Result<(Self, KernelImage), BootDiskError> {
        let disk = Arc::new(Disk::open(spec)?);
        let mut this = Self { disk, options, handover: Handover::default(), is_ready: false };
        let image = this.read()?;
        Ok((this, image))
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// What the kernel is handed.
    pub fn handover(&self) -> &Handover {
        &self.handover
    }

    /// Gives back the memory that modules and initrd take.
    pub(crate) fn release(&mut self) {
        self.handover.modules = Vec::new();
        self.handover.initrd = None;
        self.is_ready = false;
    }

    /// The kernel that is on the disk by now, where it has been given back.
    pub(crate) fn restore(&mut self) -> Result<Option<KernelImage>, BootDiskError> {
        if self.is_ready { Ok(None) } else { self.read().map(Some) }
    }

    fn read(&mut self) -> Result<KernelImage, BootDiskError> {
        let image = DiskImage::new(self.disk.path(), self.disk.container(), self.disk.blocks());
        let mut plan = boot::plan(&image, &self.options.wishes)?;
        tracing::info!(
            system = plan.system,
            kernel = plan.kernel.path,
            by = plan.source,
            root = plan.root.as_deref(),
            "found on {} of {}",
            image.volumes.get(plan.volume).map_or_else(String::new, |volume| volume.name()),
            image.path.display()
        );
        for remark in image.remarks.iter().chain(&plan.remarks) {
            tracing::warn!("{remark}");
        }
        let name = |path: &str| PathBuf::from(format!("{}:{path}", image.path.display()));
        let bytes = std::mem::take(&mut plan.kernel.bytes);
        let mut kernel =
            KernelImage::from_bytes(&name(&plan.kernel.path), bytes).map_err(BootDiskError::Kernel)?;
        if let Some(path) = &self.options.symbols {
            kernel.take_symbols_from(path)?;
        }
        self.handover = handover(plan, &self.options.given, name)?;
        self.is_ready = true;
        Ok(kernel.held_elsewhere())
    }
}

/// What the plan hands over, with the user's own: a variable of the user's replaces the disk's, modules are added, an
/// initrd replaces the disk's.
fn handover(
    plan: BootPlan,
    given: &Handover,
    name: impl Fn(&str) -> PathBuf,
) -> Result<Handover, BootDiskError> {
    let is_given = |variable: &str| given.environment.iter().any(|(name, _)| name == variable);
    let mut environment = plan.environment;
    environment.retain(|(name, _)| !is_given(name));
    environment.extend(given.environment.iter().cloned());
    let modules = plan.modules.into_iter();
    let modules = modules.map(|module| Module::from_bytes(&name(&module.path), module.kind, module.bytes));
    let mut modules = modules.collect::<Result<Vec<_>, _>>()?;
    modules.extend(given.modules.iter().cloned());
    let initrd = match (&given.initrd, plan.initrd) {
        (Some(given), _) => Some(given.clone()),
        (None, Some(file)) => Some(Initrd::from_bytes(&name(&file.path), file.bytes)?),
        (None, None) => None,
    };
    Ok(Handover { cmdline: plan.cmdline, environment, modules, initrd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::boot::BootFile;

    fn plan() -> BootPlan {
        BootPlan {
            system: "Test".into(),
            volume: 0,
            source: "a test".into(),
            kernel: BootFile { path: "/kernel".into(), bytes: Vec::new() },
            cmdline: "-v".into(),
            environment: [("a", "disk"), ("b", "disk")].map(|(n, v)| (n.into(), v.into())).to_vec(),
            modules: Vec::new(),
            initrd: Some(BootFile { path: "/initrd".into(), bytes: vec![1] }),
            root: None,
            candidates: Vec::new(),
            remarks: Vec::new(),
        }
    }

    #[test]
    fn what_the_user_gives_wins_over_what_is_on_the_disk() {
        let name = |path: &str| PathBuf::from(format!("disk:{path}"));
        let alone = handover(plan(), &Handover::default(), name).unwrap();
        assert_eq!(alone.initrd, Some(Initrd::from_bytes(Path::new("disk:/initrd"), vec![1]).unwrap()));
        let mine = Initrd::from_bytes(Path::new("mine"), vec![2]).unwrap();
        let given = Handover {
            environment: vec![("a".into(), "given".into())],
            initrd: Some(mine.clone()),
            ..Handover::default()
        };
        let both = handover(plan(), &given, name).unwrap();
        assert_eq!(both.initrd, Some(mine));
        let environment: Vec<_> = both.environment.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!((both.cmdline.as_str(), environment.join(" ").as_str()), ("-v", "b=disk a=given"));
    }

    #[test]
    fn kernels_and_oddities_are_no_disks() {
        let folder = tempfile::tempdir().unwrap();
        let is = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            is_disk(&path)
        };
        let guest = guest_images::find("panic").unwrap().elf;
        let mut mbr = vec![0; 1 << 20];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        let no_table = mbr.clone();
        mbr[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0]);
        assert!(is("mbr", &mbr) && is("damaged qcow2", b"QFI\xfb"));
        assert!(!is("guest", guest) && !is("empty", b"") && !is("zeros", &[0; 8192]) && !is("text", b"a\n"));
        assert!(!is("boot sector", &no_table) && !is_disk(folder.path()) && !is_disk(Path::new("/dev/null")));
    }
}
