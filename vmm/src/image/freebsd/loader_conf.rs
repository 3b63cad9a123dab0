//! loader.conf and its kin: which files the loader reads, and what they leave in its environment (freebsd-src
//! `stand/lua/config.lua`, `stand/defaults/loader.conf`).
//!
//! Files come from the disk and are hostile: what is read, remembered and said about it is bounded.

use std::collections::{BTreeMap, BTreeSet};

use super::line::{self, Line, Setting};
use crate::image::boot::MOST_CONFIG;
use crate::image::fs::{FileKind, FileSystem, FsError};

const DEFAULTS: &str = "/boot/defaults/loader.conf";
/// What the defaults name, for systems that lack them.
const FILES: &str = "/boot/device.hints /boot/loader.conf /boot/loader.conf.local";
const FOLDERS: &str = "/boot/loader.conf.d";
const NEXTBOOT: &str = "/boot/nextboot.conf";
/// Most files, variables and remarks; a stock system has four files and some hundred variables.
const MOST_FILES: usize = 64;
const MOST_VARIABLES: usize = 4096;
const MOST_REMARKS: usize = 50;

/// What the files leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LoaderConf {
    /// The loader's environment, sorted by name as the loader keeps it (`stand/libsa/environment.c`).
    pub(super) environment: BTreeMap<String, String>,
    /// What is said of each module.
    pub(super) modules: BTreeMap<String, BTreeMap<Setting, String>>,
    /// The files that were read.
    pub(super) files: Vec<String>,
    /// What was dropped, and why.
    pub(super) remarks: Vec<String>,
}

impl LoaderConf {
    /// Reads them from a disk.
    pub(super) fn read(fs: &dyn FileSystem) -> Self {
        let mut reader = Reader { fs, conf: Self::default(), more: None, seen: BTreeSet::new() };
        if !reader.file(DEFAULTS) {
            reader.files(FILES);
            reader.conf.environment.entry("loader_conf_dirs".into()).or_insert_with(|| FOLDERS.into());
            reader.conf.environment.entry("nextboot_conf".into()).or_insert_with(|| NEXTBOOT.into());
        }
        if let Some(folders) = reader.conf.value("loader_conf_dirs") {
            folders.split_ascii_whitespace().for_each(|folder| reader.folder(folder));
        }
        if let Some(files) = reader.conf.value("local_loader_conf_files") {
            reader.files(&files);
        }
        reader.nextboot();
        reader.conf
    }

    /// The value of a variable.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        self.environment.get(name).cloned()
    }

    /// Runs a command of the loader, as far as it is one that changes the environment.
    pub(super) fn command(&mut self, command: &str) {
        let command = command.trim();
        let (word, argument) = command.split_once(' ').unwrap_or((command, ""));
        let argument = argument.trim();
        match (word, argument.split_once('=')) {
            ("set", Some((name, value))) if !name.is_empty() => self.set(name, value.trim_matches('"')),
            ("set", None) if !argument.is_empty() => self.set(argument, ""),
            ("unset", _) => {
                self.environment.remove(argument);
            }
            ("" | "echo", _) => {}
            _ => self.remark(format!("the loader command '{}' is not run", shown(command))),
        }
    }

    /// Says something, unless too much was said.
    pub(super) fn remark(&mut self, remark: String) {
        match self.remarks.len() {
            said if said < MOST_REMARKS => self.remarks.push(remark),
            MOST_REMARKS => self.remarks.push("there is more that is wrong".into()),
            _ => {}
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        if self.environment.len() < MOST_VARIABLES || self.environment.contains_key(name) {
            self.environment.insert(name.to_owned(), value.to_owned());
        } else {
            self.remark(format!("there are more than {MOST_VARIABLES} variables"));
        }
    }

    fn set_module(&mut self, module: &str, setting: Setting, value: &str) {
        let is_load = setting == Setting::Load;
        let value = if is_load { value.to_ascii_uppercase() } else { value.to_owned() };
        self.set(&format!("{module}{}", setting.suffix()), &value);
        if self.modules.len() < MOST_VARIABLES || self.modules.contains_key(module) {
            self.modules.entry(module.to_owned()).or_default().insert(setting, value);
        }
    }
}

/// The reading of them.
struct Reader<'a> {
    fs: &'a dyn FileSystem,
    conf: LoaderConf,
    /// `loader_conf_files`, which never gets into the environment: what the file being read says of it.
    more: Option<String>,
    /// Files that were tried.
    seen: BTreeSet<String>,
}

impl Reader<'_> {
    /// Each of a list of files.
    fn files(&mut self, names: &str) {
        names.split_ascii_whitespace().for_each(|name| {
            self.file(name);
        });
    }

    /// A file and the files that it names; whether it was there.
    fn file(&mut self, path: &str) -> bool {
        if self.seen.contains(path) {
            return true;
        }
        if self.seen.len() == MOST_FILES {
            self.conf.remark(format!("{} is not read: there are {MOST_FILES} files already", shown(path)));
            return false;
        }
        self.seen.insert(path.to_owned());
        let Some(text) = self.text(path) else { return false };
        self.more = None;
        self.lines(path, &text);
        if let Some(more) = self.more.take() {
            self.files(&more);
        }
        true
    }

    /// The files of a folder whose names end in `.conf`, by name.
    fn folder(&mut self, path: &str) {
        let entries = match self.fs.list(path) {
            Ok(entries) => entries,
            Err(FsError::NotFound { .. } | FsError::Kind { .. }) => return,
            Err(error) => return self.conf.remark(told(path, &error)),
        };
        let is_conf = |name: &String| name.ends_with(".conf");
        let files = entries.into_iter().filter(|entry| entry.kind != FileKind::Directory);
        let names: BTreeSet<_> = files.map(|entry| entry.name).filter(is_conf).collect();
        for name in names.iter().take(MOST_FILES) {
            self.file(&format!("{path}/{name}"));
        }
    }

    /// What is to count for the next boot only. The loader then writes NO into its first line; nothing is written here.
    fn nextboot(&mut self) {
        let Some(path) = self.conf.value("nextboot_conf") else { return };
        let Some(text) = self.text(&path) else { return };
        if !text.starts_with("nextboot_enable=\"NO\"") {
            self.lines(&path, &text);
            let remark = "counted, and is left as it is: it counts for the boots after this one, too";
            self.conf.remark(format!("{path} {remark}"));
        }
    }

    /// The content of a file that is there.
    fn text(&mut self, path: &str) -> Option<String> {
        match self.fs.read(path, MOST_CONFIG) {
            Ok(bytes) => {
                self.conf.files.push(path.to_owned());
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            Err(FsError::NotFound { .. } | FsError::Kind { .. }) => None,
            Err(error) => {
                self.conf.remark(told(path, &error));
                None
            }
        }
    }

    fn lines(&mut self, path: &str, text: &str) {
        for (number, line) in (1..).zip(text.split('\n')) {
            if let Err(problem) = self.line(line) {
                let line = shown(line);
                self.conf.remark(format!("{path}, line {number} is dropped for {problem}: {line}"));
            }
        }
    }

    fn line(&mut self, text: &str) -> Result<(), &'static str> {
        match line::parse(text).ok_or("its form")? {
            Line::Nothing => {}
            Line::Module { module, setting, value } => self.conf.set_module(module, setting, value),
            Line::Exec { command } => self.conf.command(command),
            Line::Variable { name, value } => {
                let value = line::expand(value, |name| self.conf.value(name))?;
                if name == "loader_conf_files" {
                    self.more = Some(value);
                } else {
                    self.conf.set(name, &value);
                }
            }
        }
        Ok(())
    }
}

fn told(path: &str, error: &FsError) -> String {
    format!("{} is not read: {error}", shown(path))
}

/// As much of a text as is good to show.
fn shown(text: &str) -> String {
    text.trim().chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fs::test_fs::TestFs;

    fn read(files: &[(&str, &str)]) -> LoaderConf {
        LoaderConf::read(&TestFs::new(files))
    }

    #[test]
    fn files_are_read_in_the_loaders_order_and_the_last_word_counts() {
        let conf = read(&[
            (
                DEFAULTS,
                "loader_conf_files=\"/boot/device.hints /boot/loader.conf\"\nlast=\"defaults\"\n\
                        loader_conf_dirs=\"/boot/loader.conf.d\"\nnextboot_conf=\"/boot/nextboot.conf\"\n\
                        local_loader_conf_files=\"/boot/loader.conf.local\"\n",
            ),
            ("/boot/device.hints", "hint.uart.0.at=\"isa\"\nlast=hints\n"),
            (
                "/boot/loader.conf",
                "loader_conf_files=\"/boot/more.conf /boot/loader.conf\"\nlast=conf\nseen=\"$last\"",
            ),
            ("/boot/more.conf", "last=more\nnet.dump.server=\"10.0.0.9\"\n"),
            ("/boot/loader.conf.d/b.conf", "last=b\nb=\"$a\"\n"),
            ("/boot/loader.conf.d/a.conf", "last=a\na=1\n"),
            ("/boot/loader.conf.d/c.txt", "last=c\n"),
            ("/boot/loader.conf.local", "local=\"$last\"\n"),
            (NEXTBOOT, "nextboot_enable=\"NO\"\nlast=nextboot\n"),
        ]);
        let of = |name: &str| conf.environment.get(name).map(String::as_str);
        assert_eq!(
            (of("last"), of("seen"), of("b"), of("local")),
            (Some("b"), Some("conf"), Some("1"), Some("b"))
        );
        assert_eq!((of("hint.uart.0.at"), of("net.dump.server")), (Some("isa"), Some("10.0.0.9")));
        assert_eq!(of("loader_conf_files"), None);
        assert_eq!(conf.remarks, [""; 0]);
        assert_eq!(conf.files.len(), 8);
    }

    #[test]
    fn a_system_without_defaults_has_the_usual_files() {
        let conf = read(&[
            ("/boot/loader.conf", "a=1\n"),
            ("/boot/loader.conf.local", "b=\"$a\"\n"),
            (NEXTBOOT, "nextboot_enable=\"YES\"\nkernel=\"test\"\n"),
        ]);
        let of = |name: &str| conf.environment.get(name).map(String::as_str);
        assert_eq!((of("a"), of("b"), of("kernel")), (Some("1"), Some("1"), Some("test")));
        assert!(conf.remarks[0].contains("nextboot.conf counted"), "{:?}", conf.remarks);
    }

    #[test]
    fn an_error_drops_its_line_only() {
        let conf = read(&[(
            "/boot/loader.conf",
            "a=1\nb=\"x\" y\nc=\"$a\\\"\nvirtio_load=\"yes\"\nexec=\"boot\"\nd=2",
        )]);
        assert_eq!(conf.value("a").as_deref(), Some("1"));
        assert_eq!((conf.value("b"), conf.value("c")), (None, None));
        assert_eq!(conf.value("d").as_deref(), Some("2"));
        assert_eq!(conf.value("virtio_load").as_deref(), Some("YES"));
        assert_eq!(conf.modules["virtio"][&Setting::Load], "YES");
        assert_eq!(
            conf.remarks,
            [
                "/boot/loader.conf, line 2 is dropped for its form: b=\\\"x\\\" y",
                "/boot/loader.conf, line 3 is dropped for a backslash at its end: c=\\\"$a\\\\\\\"",
                "the loader command 'boot' is not run",
            ]
        );
    }

    #[test]
    fn commands_change_the_environment() {
        let conf = read(&[("/boot/loader.conf", "a=1\nb=2\nexec=\"set c=3\"\nexec=\"unset a\"\n")]);
        assert_eq!(
            (conf.value("a"), conf.value("b"), conf.value("c")),
            (None, Some("2".into()), Some("3".into()))
        );
    }

    #[test]
    fn a_variable_without_a_name_is_none() {
        let conf = read(&[("/boot/loader.conf", "a=1\nexec=\"set =cd\"\nexec=\"set \"\n")]);
        assert_eq!(conf.value(""), None);
        assert_eq!(
            conf.remarks,
            ["the loader command 'set =cd' is not run", "the loader command 'set' is not run"]
        );
    }

    #[test]
    fn files_that_name_each_other_and_doubling_values_end() {
        let doubling: String = (0..100).map(|_| "a=\"x$a$a\"\n").collect();
        let names: String = (0..200).map(|n| format!("/boot/{n}.conf ")).collect();
        let conf = read(&[
            ("/boot/loader.conf", &format!("loader_conf_files=\"/boot/x.conf {names}\"\n{doubling}")),
            ("/boot/x.conf", "loader_conf_files=\"/boot/loader.conf /boot/x.conf\"\n"),
        ]);
        assert!(conf.value("a").unwrap().len() <= 1024);
        assert_eq!(conf.remarks.len(), MOST_REMARKS + 1);
    }
}
