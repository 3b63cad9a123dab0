//! Everything on a disk that could be booted, and which of it is.

use super::devices::Disk;
use super::entries::{self, Entry};
use super::grub::{self, MenuEntry, Run};
use super::version::compare;

/// Most items that are listed.
const MOST_ITEMS: usize = 64;
/// Where boot files are: in a folder of the root file system, or in a file system of their own.
const FOLDERS: [&str; 2] = ["/boot", ""];
/// Where GRUB's configuration is below that; Fedora's and SUSE's is in `grub2`.
const GRUBS: [&str; 2] = ["/grub", "/grub2"];
/// Where Debian's and Ubuntu's EFI system partitions have one that leads to it.
const STUBS: &str = "/EFI";

/// A kernel with what it is handed. Files are volume and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) title: String,
    /// What names it.
    pub(super) source: String,
    pub(super) kernel: (usize, String),
    pub(super) cmdline: String,
    pub(super) initrds: Vec<(usize, String)>,
    /// No configuration says how it is booted.
    pub(super) guessed: bool,
}

/// What could be booted.
#[derive(Debug, Default)]
pub(super) struct Menu {
    pub(super) items: Vec<Item>,
    /// Index of the one that a configuration makes the default.
    default: Option<usize>,
    pub(super) remarks: Vec<String>,
}

impl Menu {
    /// That of a disk; `None` if it has nothing of the kind.
    pub(super) fn of(disk: Disk<'_>) -> Option<Self> {
        let mut menu = Self::default();
        let places = || (0..disk.0.volumes.len()).flat_map(|volume| FOLDERS.map(|folder| (volume, folder)));
        let configurations =
            places().flat_map(|(volume, folder)| GRUBS.map(|grub| (volume, format!("{folder}{grub}"))));
        let stubs = (0..disk.0.volumes.len()).flat_map(|volume| {
            let vendors = disk.fs(volume).and_then(|fs| fs.list(STUBS).ok()).unwrap_or_default();
            vendors.into_iter().take(16).map(move |vendor| (volume, format!("{STUBS}/{}", vendor.name)))
        });
        let configurations: Vec<_> = configurations
            .chain(stubs)
            .filter(|(volume, path)| disk.has(*volume, &format!("{path}/grub.cfg")))
            .collect();
        let variables =
            configurations.iter().find_map(|(volume, path)| disk.text(*volume, &format!("{path}/grubenv")));
        let variables = grub::environment_block(&variables.unwrap_or_default());
        for (volume, folder) in places() {
            menu.add_entries(disk, volume, folder, &variables);
        }
        for (volume, folder) in configurations {
            if menu.items.is_empty() {
                menu.add_grub(disk, volume, &folder);
            }
        }
        for (volume, folder) in places() {
            menu.add_kernels(disk, volume, folder);
        }
        (!menu.items.is_empty()).then_some(menu)
    }

    /// The kernel that is wanted, else the default.
    pub(super) fn choose(&self, disk: Disk<'_>, kernel: Option<&str>) -> Option<Item> {
        let default = self.default.and_then(|index| self.items.get(index)).or_else(|| self.newest());
        let Some(path) = kernel else { return default.cloned() };
        // A path may be one in the running system, whose /boot is a file system of its own.
        let short = path.strip_prefix("/boot").unwrap_or(path);
        let is_it = |item: &&Item| item.kernel.1 == path || item.kernel.1 == short;
        let known = default.filter(is_it).or_else(|| self.items.iter().find(is_it));
        if let Some(item) = known {
            return Some(item.clone());
        }
        let volume = (0..disk.0.volumes.len()).find(|&volume| disk.has(volume, path))?;
        let (folder, name) = path.rsplit_once('/')?;
        let initrds = Vec::from_iter(initrd_of(disk, volume, folder, name));
        let cmdline = default.map(|item| item.cmdline.clone()).unwrap_or_default();
        let guessed = default.is_none_or(|item| item.guessed);
        let source = "--kernel".to_owned();
        Some(Item {
            title: path.to_owned(),
            source,
            kernel: (volume, path.to_owned()),
            cmdline,
            initrds,
            guessed,
        })
    }

    fn newest(&self) -> Option<&Item> {
        let is_rescue = |item: &Item| item.kernel.1.contains("rescue");
        let order = |a: &&Item, b: &&Item| {
            is_rescue(b).cmp(&is_rescue(a)).then_with(|| compare(name_of(a), name_of(b)))
        };
        self.items.iter().max_by(order)
    }

    fn add(&mut self, item: Item) {
        if self.items.len() < MOST_ITEMS {
            self.items.push(item);
        }
    }

    fn add_entries(&mut self, disk: Disk<'_>, volume: usize, folder: &str, variables: &[(String, String)]) {
        let below = format!("{folder}/loader/entries");
        let Some(files) = disk.fs(volume).and_then(|fs| fs.list(&below).ok()) else { return };
        let mut names: Vec<_> =
            files.into_iter().map(|file| file.name).filter(|name| name.ends_with(".conf")).collect();
        names.sort();
        names.truncate(entries::MOST_ENTRIES);
        let read = |name: &String| Entry::parse(name, &disk.text(volume, &format!("{below}/{name}"))?);
        let mut found: Vec<_> = names.iter().filter_map(read).collect();
        entries::sort(&mut found);
        let variable = |name: &str| {
            let pair = variables.iter().find(|(other, _)| other == name);
            pair.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let conf = disk.text(volume, &format!("{folder}/loader/loader.conf"));
        let saved = Some(variable("saved_entry")).filter(|saved| !saved.is_empty());
        let wanted = conf.as_deref().and_then(entries::default_of).map(str::to_owned).or(saved);
        let default =
            entries::default(&found, wanted.as_deref()).map(|(entry, named)| (entry.clone(), named));
        if let (Some((entry, false)), Some(wanted)) = (&default, &wanted) {
            self.remarks.push(format!("no loader entry is '{wanted}', the default: {} is taken", entry.id));
        }
        for mut entry in found {
            if default.as_ref().is_some_and(|(chosen, _)| *chosen == entry) && self.default.is_none() {
                self.default = Some(self.items.len());
            }
            entry.expand(variable);
            let place = |path: &String| (volume, absolute(path));
            self.add(Item {
                title: entry.title.clone(),
                source: format!("{below}/{}.conf", entry.id),
                kernel: place(&entry.linux),
                cmdline: entry.options.clone(),
                initrds: entry.initrds.iter().map(place).collect(),
                guessed: false,
            });
        }
    }

    fn add_grub(&mut self, disk: Disk<'_>, volume: usize, folder: &str) {
        let path = format!("{folder}/grub.cfg");
        let Some(text) = disk.text(volume, &path) else { return };
        let mut run = match Run::new(&disk, &disk.name(volume), folder, &text) {
            Ok(run) => run,
            Err(error) => return self.remarks.push(format!("{path} is left out: {error}")),
        };
        let default = run.default_entry().map(|(entry, named)| (entry.clone(), named));
        if default.as_ref().is_some_and(|(_, named)| !named) {
            let wanted = run.variables.get("default").cloned().unwrap_or_default();
            self.remarks.push(format!("{path} has no entry '{wanted}', the default: the first is taken"));
        }
        let mut listed = Vec::new();
        flatten(run.menu(), &mut listed);
        let first = default.map(|(entry, _)| entry);
        for entry in first.iter().chain(&listed).take(MOST_ITEMS) {
            let loaded = match run.load(entry) {
                Ok(loaded) => loaded,
                Err(error) => return self.remarks.push(format!("{path}: {error}")),
            };
            // What loads no Linux kernel: the firmware's menu, another system's loader.
            let place = |(device, path): &(String, String)| Some((disk.volume(device)?, absolute(path)));
            let Some(kernel) = loaded.linux.as_ref().and_then(place) else { continue };
            let item = Item {
                title: entry.title.clone(),
                source: format!("{path}: {}", entry.title),
                kernel,
                cmdline: loaded.cmdline,
                initrds: loaded.initrds.iter().filter_map(place).collect(),
                guessed: false,
            };
            if !self.items.contains(&item) {
                self.default.get_or_insert(self.items.len());
                self.add(item);
            }
        }
    }

    /// Kernels that no configuration names.
    fn add_kernels(&mut self, disk: Disk<'_>, volume: usize, folder: &str) {
        let top = if folder.is_empty() { "/" } else { folder };
        let files = disk.fs(volume).and_then(|fs| fs.list(top).ok()).unwrap_or_default();
        let mut names: Vec<_> = files.into_iter().map(|file| file.name).collect();
        names.retain(|name| name.starts_with("vmlinuz-"));
        names.sort_by(|a, b| compare(b, a));
        for name in names.into_iter().take(MOST_ITEMS) {
            let path = format!("{folder}/{name}");
            if self.items.iter().any(|item| item.kernel == (volume, path.clone())) || !disk.has(volume, &path)
            {
                continue;
            }
            let initrds = Vec::from_iter(initrd_of(disk, volume, folder, &name));
            let (title, source) = (path.clone(), "its version, the newest".to_owned());
            self.add(Item {
                title,
                source,
                kernel: (volume, path),
                cmdline: String::new(),
                initrds,
                guessed: true,
            });
        }
    }
}

/// The initrd that belongs to a kernel by its name: Debian's, Fedora's, SUSE's and Arch's, Alpine's.
fn initrd_of(disk: Disk<'_>, volume: usize, folder: &str, kernel: &str) -> Option<(usize, String)> {
    let version = kernel.split_once('-').map(|(_, version)| version)?;
    let names = [
        format!("{folder}/initrd.img-{version}"),
        format!("{folder}/initramfs-{version}.img"),
        format!("{folder}/initrd-{version}"),
        format!("{folder}/initramfs-{version}"),
    ];
    names.into_iter().find(|path| disk.has(volume, path)).map(|path| (volume, path))
}

fn name_of(item: &Item) -> &str {
    item.kernel.1.rsplit('/').next().unwrap_or_default()
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

fn flatten(menu: &[MenuEntry], into: &mut Vec<MenuEntry>) {
    for entry in menu {
        match &entry.submenu {
            Some(below) => flatten(below, into),
            None => into.push(entry.clone()),
        }
    }
}
