//! The kernel and its modules, found as the loader finds them (freebsd-src `stand/lua/config.lua`,
//! `stand/common/module.c`): along `module_path`, by `linker.hints` or by name, each also as `.gz`.

use std::io::Read;
use std::path::Path;

use super::loader_conf::LoaderConf;
use super::metadata::{self, Needed};
use super::{Setting, linker_hints};
use crate::boot::Module;
use crate::image::boot::{BootFile, BootModule, MOST_FILE};
use crate::image::fs::{FileSystem, FsError};

/// Where modules are unless `module_path` says otherwise (`default_searchpath`).
const MODULE_PATH: &str = "/boot/kernel;/boot/modules";
const SUFFIXES: [&str; 2] = [".ko", ""];
/// Largest file, unpacked: kernel and modules have to fit below 1 GiB together. Real kernels have 30 MiB.
const MOST_UNPACKED: u64 = 512 << 20;
/// Most bytes and modules altogether.
const MOST_BYTES: u64 = MOST_FILE;
const MOST_MODULES: usize = 256;
/// Most folders of a path.
const MOST_FOLDERS: usize = 16;

/// The kernel, and where it was found.
pub(super) struct Kernel {
    pub(super) file: BootFile,
    /// `module_path` as the loader leaves it.
    pub(super) module_path: String,
}

/// What is looked for where. `Ok(None)` means that it is not there.
pub(super) struct Files<'a> {
    fs: &'a dyn FileSystem,
    /// Bytes that may still be read.
    left: u64,
}

impl<'a> Files<'a> {
    pub(super) fn new(fs: &'a dyn FileSystem) -> Self {
        Self { fs, left: MOST_BYTES }
    }

    /// The kernel that the settings name, or the one at `wish`.
    pub(super) fn kernel(
        &mut self,
        conf: &LoaderConf,
        wish: Option<&str>,
    ) -> Result<Option<Kernel>, FsError> {
        let module_path = conf.value("module_path").unwrap_or_else(|| MODULE_PATH.to_owned());
        let behind = |folder: &str| format!("{folder};{module_path}");
        if let Some(wish) = wish {
            let folder = wish.rsplit_once('/').map_or("", |(folder, _)| folder);
            let module_path =
                if folders(&module_path).any(|f| f == folder) { module_path } else { behind(folder) };
            return Ok(self.read(wish)?.map(|bytes| kernel(wish, bytes, module_path)));
        }
        let bootfile = conf.value("bootfile").map_or_else(|| "kernel".into(), |names| names + ";kernel");
        let Some(wanted) = conf.value("kernel") else {
            return Ok(self
                .along(&module_path, &bootfile)?
                .map(|(path, bytes)| kernel(&path, bytes, module_path)));
        };
        for folder in [format!("/boot/{wanted}"), wanted.clone()] {
            if let Some((path, bytes)) = self.along(&folder, &bootfile)? {
                return Ok(Some(kernel(&path, bytes, behind(&folder))));
            }
        }
        Ok(self.along(&module_path, &wanted)?.map(|(path, bytes)| kernel(&path, bytes, module_path)))
    }

    /// The first of some names, each in every folder of a path; a name with a slash is a path of its own.
    fn along(&mut self, path: &str, names: &str) -> Result<Option<(String, Vec<u8>)>, FsError> {
        for name in folders(names).map(str::trim) {
            let places: Vec<_> = if name.contains('/') {
                vec![name.to_owned()]
            } else {
                folders(path).map(|folder| format!("{folder}/{name}")).collect()
            };
            for place in places {
                if let Some(bytes) = self.read(&place)? {
                    return Ok(Some((place, bytes)));
                }
            }
        }
        Ok(None)
    }

    /// A file, or the one that `.gz` is appended to, unpacked; `None` when neither is there.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, FsError> {
        let most = self.left.min(MOST_UNPACKED);
        let bytes = match self.fs.read(path, most) {
            Ok(bytes) => bytes,
            Err(FsError::NotFound { .. } | FsError::Kind { .. }) => {
                let packed = format!("{path}.gz");
                match self.fs.read(&packed, most) {
                    Ok(bytes) => unpack(&packed, &bytes, most)?,
                    Err(FsError::NotFound { .. } | FsError::Kind { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        self.left -= bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// The modules that the settings ask for, each followed by those that it needs. What is missing is remarked upon,
    /// as the loader does, which boots all the same.
    pub(super) fn modules(mut self, conf: &mut LoaderConf, kernel: &Kernel) -> Vec<BootModule> {
        let provided = metadata::read(&kernel.file.bytes).has;
        let path = kernel.module_path.clone();
        let mut loaded = Loaded { modules: Vec::new(), provided, path };
        for (name, settings) in conf.modules.clone() {
            let of = |setting| settings.get(&setting).map(String::as_str);
            if of(Setting::Load) != Some("YES") {
                continue;
            }
            if let Some(command) = of(Setting::Before) {
                conf.command(command);
            }
            if let Some(flags) = of(Setting::Flags).filter(|flags| !flags.trim().is_empty()) {
                conf.remark(format!("{name}_flags is not handed over: {}", flags.escape_debug()));
            }
            let (kept, provided) = (loaded.modules.len(), loaded.provided.len());
            let result = match of(Setting::Type) {
                Some(kind) => self.load_data(of(Setting::Name).unwrap_or(&name), kind, &mut loaded),
                None => self.load(of(Setting::Name).unwrap_or(&name), None, &mut loaded),
            };
            let then = match result {
                Ok(()) => Setting::After,
                Err(problem) => {
                    loaded.modules.truncate(kept);
                    loaded.provided.truncate(provided);
                    conf.remark(format!("{name}_load=\"YES\" is left out: {problem}"));
                    Setting::Error
                }
            };
            if let Some(command) = of(then) {
                conf.command(command);
            }
        }
        loaded.modules
    }

    /// A file of a type that the settings say.
    fn load_data(&mut self, name: &str, kind: &str, loaded: &mut Loaded) -> Result<(), String> {
        let found = self.along(&loaded.path, name).map_err(|error| error.to_string())?;
        let (path, bytes) = found.ok_or_else(|| format!("there is no {}", name.escape_debug()))?;
        loaded.modules.push(BootModule { path, kind: Some(kind.to_owned()), bytes });
        Ok(())
    }

    /// A kernel module and those that it needs, unless it is loaded.
    fn load(&mut self, name: &str, needed: Option<Needed>, loaded: &mut Loaded) -> Result<(), String> {
        if loaded.modules.len() == MOST_MODULES {
            return Err(format!("there are more than {MOST_MODULES} modules"));
        }
        let found = self.module(name, needed, &loaded.path).map_err(|error| error.to_string())?;
        let (path, bytes) = found.ok_or_else(|| format!("there is no module {}", name.escape_debug()))?;
        if loaded.modules.iter().any(|module| module.path == path) {
            return Ok(());
        }
        if !is_module(&bytes) {
            return Err(format!("{path} is no kernel module"));
        }
        let metadata = metadata::read(&bytes);
        loaded.provided.extend(metadata.has);
        loaded.modules.push(BootModule { path, kind: None, bytes });
        for (name, needed) in metadata.needs {
            if !loaded.provides(&name, needed) {
                self.load(&name, Some(needed), loaded)?;
            }
        }
        Ok(())
    }

    /// The file of a module: what `linker.hints` says in each folder, else the file of its name there.
    fn module(
        &mut self,
        name: &str,
        needed: Option<Needed>,
        path: &str,
    ) -> Result<Option<(String, Vec<u8>)>, FsError> {
        if name.contains('/') {
            return Ok(self.read(name)?.map(|bytes| (name.to_owned(), bytes)));
        }
        for folder in folders(path) {
            let hints =
                self.fs.read(&format!("{folder}/linker.hints"), linker_hints::MOST).unwrap_or_default();
            let hinted = linker_hints::file_of(&hints, name, needed);
            let names = match hinted {
                Some(file) => vec![file],
                None => SUFFIXES.iter().map(|suffix| format!("{name}{suffix}")).collect(),
            };
            for name in names {
                let place = format!("{folder}/{name}");
                if let Some(bytes) = self.read(&place)? {
                    return Ok(Some((place, bytes)));
                }
            }
        }
        Ok(None)
    }
}

/// What was loaded so far.
struct Loaded {
    modules: Vec<BootModule>,
    /// Modules that the kernel and the modules have.
    provided: Vec<(String, i32)>,
    path: String,
}

impl Loaded {
    /// Whether a module need not be loaded. The kernel is one itself, and its version is its own matter.
    fn provides(&self, name: &str, needed: Needed) -> bool {
        name == "kernel" || self.provided.iter().any(|(n, version)| n == name && needed.takes(*version))
    }
}

fn kernel(path: &str, bytes: Vec<u8>, module_path: String) -> Kernel {
    Kernel { file: BootFile { path: path.to_owned(), bytes }, module_path }
}

/// Whether a file's header is a kernel module's.
fn is_module(bytes: &[u8]) -> bool {
    let header = bytes.get(..64).unwrap_or(bytes).to_vec();
    Module::from_bytes(Path::new(""), None, header).is_ok()
}

/// The parts of a list with semicolons.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    let parts = path.split(';').map(|part| if part.len() > 1 { part.trim_end_matches('/') } else { part });
    parts.filter(|part| !part.is_empty()).take(MOST_FOLDERS)
}

fn unpack(path: &str, packed: &[u8], most: u64) -> Result<Vec<u8>, FsError> {
    let mut bytes = Vec::new();
    let mut decoder = flate2::bufread::GzDecoder::new(packed).take(most + 1);
    if let Err(error) = decoder.read_to_end(&mut bytes) {
        let (place, problem) = (path.to_owned(), error.to_string());
        return Err(FsError::Damaged { kind: "gzip", place, problem });
    }
    match bytes.len() as u64 {
        len if len > most => Err(FsError::Large { path: path.to_owned(), len, most }),
        _ => Ok(bytes),
    }
}
