//! GRUB's commands, as far as they decide what is loaded.

use super::condition::Condition;
use super::evaluate::{GrubError, MOST_ENTRIES, MOST_VALUE, MenuEntry, Run, parsed};
use super::syntax::Block;
use super::{SearchBy, environment_block};

impl Run<'_> {
    /// Runs the command of that name; whether it succeeded.
    pub(super) fn named(&mut self, words: &[String], block: Option<&Block>) -> Result<bool, GrubError> {
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        match name.as_str() {
            "set" => arguments.first().map_or(Ok(true), |pair| self.assign(pair)),
            "unset" => {
                arguments.iter().for_each(|name| drop(self.variables.remove(name)));
                Ok(true)
            }
            "[" | "test" => {
                let end = arguments.len() - usize::from(arguments.last().is_some_and(|last| last == "]"));
                Ok(Condition { run: self, words: &arguments[..end], at: 0 }.any())
            }
            "menuentry" | "submenu" => self.entry(name == "submenu", arguments, block),
            "linux" | "linuxefi" | "linux16" => Ok(self.linux(arguments)),
            "initrd" | "initrdefi" | "initrd16" => {
                let files = arguments.iter().filter(|word| !word.starts_with("--"));
                self.loaded.initrds = files.map(|path| self.place(path)).collect();
                Ok(true)
            }
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                Ok(self.search(name, arguments))
            }
            "load_env" => self.load_env(arguments),
            "source" | "configfile" | "." => self.source(arguments),
            "blscfg" => {
                self.wants_entries = true;
                Ok(true)
            }
            // What changes nothing of what is loaded.
            "true" | ":" | "export" | "insmod" | "echo" | "save_env" | "terminal_output"
            | "terminal_input" | "serial" | "play" | "clear" | "cpuid" => Ok(true),
            _ if name.contains('=') => self.assign(name),
            // `false`, and what is unknown here: fonts, pictures, hypervisors.
            _ => Ok(false),
        }
    }

    fn assign(&mut self, pair: &str) -> Result<bool, GrubError> {
        let Some((name, value)) = pair.split_once('=') else { return Ok(true) };
        self.bounded(self.variables.len(), "variables")?;
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(true)
    }

    fn entry(
        &mut self,
        is_menu: bool,
        arguments: &[String],
        block: Option<&Block>,
    ) -> Result<bool, GrubError> {
        let Some(block) = block else { return Ok(false) };
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(GrubError::Many { what: "menu entries", most: MOST_ENTRIES });
        }
        let mut id = None;
        let mut rest = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned(),
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                "--unrestricted" => {}
                option if option.starts_with("--id=") => id = option.strip_prefix("--id=").map(str::to_owned),
                option if option.starts_with("--") => {}
                _ => rest.push(word.clone()),
            }
        }
        let title = rest.first().cloned().unwrap_or_default();
        let submenu = is_menu.then(Vec::new);
        self.menu.push(MenuEntry { title, id, submenu, block: block.clone(), arguments: rest });
        Ok(true)
    }

    fn linux(&mut self, arguments: &[String]) -> bool {
        let Some((path, words)) = arguments.split_first() else { return false };
        self.loaded.linux = Some(self.place(path));
        self.loaded.cmdline = words.join(" ");
        true
    }

    /// Device and path of `(device)/path` or `/path`.
    pub(super) fn place(&self, path: &str) -> (String, String) {
        let named = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let root = || self.variables.get("root").cloned().unwrap_or_default();
        named.map_or_else(|| (root(), path.to_owned()), |(device, path)| (device.to_owned(), path.to_owned()))
    }

    fn search(&mut self, name: &str, arguments: &[String]) -> bool {
        let mut by = name.strip_prefix("search.").unwrap_or_default();
        let mut variable = (!by.is_empty()).then_some("root");
        let mut value = None;
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--fs-uuid" | "-u" => by = "fs_uuid",
                "--label" | "-l" | "--fs-label" => by = "fs_label",
                "--file" | "-f" => by = "file",
                "--set" | "-s" => variable = Some("root"),
                "--hint" => drop(words.next()),
                _ if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                _ if word.starts_with("--") => {}
                // `search.fs_uuid UUID VARIABLE HINT ...`
                _ if value.is_none() => value = Some(word),
                _ if name != "search" => {
                    variable = Some(word);
                    break;
                }
                // `--set NAME UUID` is written, too.
                _ => value = Some(word),
            }
        }
        let Some(value) = value else { return false };
        let by = match by {
            "fs_label" => SearchBy::Label(value),
            "file" => SearchBy::File(value),
            _ => SearchBy::Uuid(value),
        };
        let Some(device) = self.devices.search(by) else { return false };
        if let Some(variable) = variable {
            self.variables.insert(variable.to_owned(), device);
        }
        true
    }

    fn load_env(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let mut words = arguments.iter().filter(|word| !word.starts_with("--skip"));
        let (mut file, mut names) = (None, Vec::new());
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => file = words.next().cloned(),
                _ => names.push(word.clone()),
            }
        }
        let prefix = self.variables.get("prefix").cloned().unwrap_or_default();
        let (device, path) = self.place(&file.unwrap_or_else(|| format!("{prefix}/grubenv")));
        let Some(text) = self.devices.read(&device, &path) else { return Ok(false) };
        for (name, value) in environment_block(&String::from_utf8_lossy(&text)) {
            if value.len() <= MOST_VALUE && (names.is_empty() || names.contains(&name)) {
                self.bounded(self.variables.len(), "variables")?;
                self.variables.insert(name, value);
            }
        }
        Ok(true)
    }

    fn source(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let Some(path) = arguments.first() else { return Ok(false) };
        let (device, path) = self.place(path);
        let Some(text) = self.devices.read(&device, &path) else { return Ok(false) };
        // Reading a file again and again is work, too.
        self.steps += text.len() / 64;
        let block = parsed(&String::from_utf8_lossy(&text), &path)?;
        self.enter()?;
        let good = self.block(&block)?;
        self.depth -= 1;
        Ok(good)
    }
}
