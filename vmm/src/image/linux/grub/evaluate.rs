//! Runs a configuration: GRUB's commands as far as they decide what is loaded.

use std::collections::{HashMap, VecDeque};

use thiserror::Error;

use super::syntax::{Block, Joint, Part, Statement, SyntaxError, Word, parse};
use super::{Devices, MOST_VARIABLES, SearchBy, environment_block};

/// Most commands that are run.
const MOST_STEPS: usize = 100_000;
/// Longest value of a variable and longest word, in bytes.
const MOST_VALUE: usize = 16 << 10;
/// Most arguments of a command.
const MOST_ARGUMENTS: usize = 4096;
/// Deepest nesting of functions, files and menus.
const MOST_DEPTH: usize = 8;
/// Most entries of all menus together.
const MOST_ENTRIES: usize = 512;

/// Why a configuration leads nowhere.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GrubError {
    /// It is not understood.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: SyntaxError,
    },
    /// It does not come to an end, or very late.
    #[error("it runs more than the {MOST_STEPS} commands that are looked at")]
    Steps,
    /// Calls in calls.
    #[error("functions, files or menus are nested deeper than {MOST_DEPTH}")]
    Deep,
    /// Something became absurdly long.
    #[error("it has more {what} than {most}")]
    Many {
        /// Of what there is too much.
        what: &'static str,
        /// The limit.
        most: usize,
    },
}

/// Variables by name.
pub type Environment = HashMap<String, String>;

/// An entry of a menu.
#[derive(Debug, Clone)]
pub struct MenuEntry {
    /// What the menu shows.
    pub title: String,
    /// `--id`, if it has one.
    pub id: Option<String>,
    /// The entries of a submenu; `None` for an entry that boots.
    pub submenu: Option<Vec<Self>>,
    /// What it does, with its arguments, which its commands see as `$1`, ...
    block: Block,
    arguments: Vec<String>,
}

/// What an entry loads. Files are named by device and path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The kernel.
    pub linux: Option<(String, String)>,
    /// Its command line.
    pub cmdline: String,
    /// First root file systems, to be joined.
    pub initrds: Vec<(String, String)>,
}

/// A configuration while it runs.
#[derive(Debug)]
pub struct Run<'a> {
    devices: &'a dyn Devices,
    /// The variables.
    pub variables: Environment,
    functions: HashMap<String, Block>,
    menu: Vec<MenuEntry>,
    loaded: Loaded,
    /// `blscfg` was run: the entries of `loader/entries` belong to the menu.
    pub wants_entries: bool,
    arguments: Vec<String>,
    steps: usize,
    entries: usize,
    depth: usize,
}

impl<'a> Run<'a> {
    /// Runs `text`, which is the file `prefix`/grub.cfg of `device`.
    pub fn new(devices: &'a dyn Devices, device: &str, prefix: &str, text: &str) -> Result<Self, GrubError> {
        let given = [
            ("root", device.to_owned()),
            ("prefix", format!("({device}){prefix}")),
            ("config_directory", format!("({device}){prefix}")),
            ("config_file", format!("({device}){prefix}/grub.cfg")),
            ("grub_platform", "pc".to_owned()),
            ("grub_cpu", "i386".to_owned()),
            ("feature_menuentry_id", "y".to_owned()),
            ("feature_default_font_path", "y".to_owned()),
            ("feature_timeout_style", "y".to_owned()),
            ("feature_all_video_module", "y".to_owned()),
            ("feature_platform_search_hint", "y".to_owned()),
            ("feature_chainloader_bpb", "y".to_owned()),
            ("feature_ntldr", "y".to_owned()),
        ];
        let mut run = Self {
            devices,
            variables: given.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            functions: HashMap::new(),
            menu: Vec::new(),
            loaded: Loaded::default(),
            wants_entries: false,
            arguments: Vec::new(),
            steps: 0,
            entries: 0,
            depth: 0,
        };
        let block = parsed(text, &format!("{prefix}/grub.cfg"))?;
        run.block(&block)?;
        let menu = std::mem::take(&mut run.menu);
        run.menu = run.opened(menu)?;
        Ok(run)
    }

    /// The menu.
    pub fn menu(&self) -> &[MenuEntry] {
        &self.menu
    }

    /// The entry that is booted when nobody chooses another; the first one when `default` names none. With it, whether
    /// `default` named it.
    pub fn default_entry(&self) -> Option<(&MenuEntry, bool)> {
        let default = self.variables.get("default").map(String::as_str).unwrap_or_default();
        // `1>2`, or titles or ids; a title may hold a `>`, and the whole is tried first.
        let mut found = None;
        let mut menu = self.menu.as_slice();
        let mut parts = VecDeque::from_iter(default.split('>'));
        while let Some(part) = parts.pop_front() {
            found = named(menu, part);
            match found.and_then(|entry| entry.submenu.as_deref()) {
                Some(below) => menu = below,
                None => break,
            }
        }
        let found = named(&self.menu, default).or(found);
        let entry = found.or_else(|| self.menu.first())?;
        Some((first(entry)?, found.is_some() || default.is_empty()))
    }

    /// What an entry of the menu loads.
    pub fn load(&mut self, entry: &MenuEntry) -> Result<Loaded, GrubError> {
        let before = (self.variables.clone(), std::mem::take(&mut self.loaded));
        self.variables.insert("chosen".to_owned(), entry.title.clone());
        let done = self.call(&entry.block, &entry.arguments);
        let loaded = std::mem::replace(&mut self.loaded, before.1);
        self.variables = before.0;
        done.map(|_| loaded)
    }

    /// The menu with the entries of its submenus.
    fn opened(&mut self, menu: Vec<MenuEntry>) -> Result<Vec<MenuEntry>, GrubError> {
        let mut opened = Vec::new();
        for mut entry in menu {
            if entry.submenu.is_some() {
                let before = self.variables.clone();
                self.menu.clear();
                self.enter()?;
                self.call(&entry.block.clone(), &entry.arguments.clone())?;
                let below = std::mem::take(&mut self.menu);
                entry.submenu = Some(self.opened(below)?);
                self.depth -= 1;
                self.variables = before;
            }
            opened.push(entry);
        }
        Ok(opened)
    }

    fn enter(&mut self) -> Result<(), GrubError> {
        self.depth += 1;
        if self.depth > MOST_DEPTH { Err(GrubError::Deep) } else { Ok(()) }
    }

    fn call(&mut self, block: &Block, arguments: &[String]) -> Result<bool, GrubError> {
        self.enter()?;
        let before = std::mem::replace(&mut self.arguments, arguments.to_vec());
        let done = self.block(block);
        self.arguments = before;
        self.depth -= 1;
        done
    }

    /// Whether its last command succeeded.
    fn block(&mut self, block: &Block) -> Result<bool, GrubError> {
        let mut good = true;
        let mut skipped = false;
        for statement in block.iter() {
            let Statement::Command(words, inner, joint) = statement else {
                if !skipped {
                    good = self.statement(statement)?;
                }
                skipped = false;
                continue;
            };
            if !skipped {
                good = self.command(words, inner.as_ref())?;
                self.variables.insert("?".to_owned(), u8::from(!good).to_string());
            }
            skipped = match joint {
                Joint::Always => false,
                Joint::And => !good,
                Joint::Or => good,
            };
        }
        Ok(good)
    }

    fn statement(&mut self, statement: &Statement) -> Result<bool, GrubError> {
        match statement {
            Statement::Command(words, block, _) => self.command(words, block.as_ref()),
            Statement::Function(name, block) => {
                self.bounded(self.functions.len(), "functions")?;
                self.functions.insert(name.clone(), block.clone());
                Ok(true)
            }
            Statement::If(branches, otherwise) => {
                for (condition, then) in branches {
                    if self.block(condition)? {
                        return self.block(then);
                    }
                }
                self.block(otherwise)
            }
        }
    }

    fn bounded(&self, count: usize, what: &'static str) -> Result<(), GrubError> {
        if count < MOST_VARIABLES { Ok(()) } else { Err(GrubError::Many { what, most: MOST_VARIABLES }) }
    }

    fn command(&mut self, words: &[Word], block: Option<&Block>) -> Result<bool, GrubError> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(GrubError::Steps);
        }
        let words = self.expanded(words)?;
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        if let Some(function) = self.functions.get(name).cloned() {
            return self.call(&function, arguments);
        }
        match name.as_str() {
            "!" => Ok(!self.named(arguments, block)?),
            _ => self.named(&words, block),
        }
    }

    fn named(&mut self, words: &[String], block: Option<&Block>) -> Result<bool, GrubError> {
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        match name.as_str() {
            "set" => arguments.first().map_or(Ok(true), |pair| self.assign(pair)),
            "unset" => {
                arguments.iter().for_each(|name| drop(self.variables.remove(name)));
                Ok(true)
            }
            "[" | "test" => {
                let end = arguments.len() - usize::from(arguments.last().is_some_and(|last| last == "]"));
                Ok(Test { run: self, words: &arguments[..end], at: 0 }.any())
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
    fn place(&self, path: &str) -> (String, String) {
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

    /// Words with their variables replaced; what was not in quotes is split at blanks.
    fn expanded(&self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut expanded = Vec::new();
        for word in words {
            let mut text = String::new();
            let mut is_word = word.quoted;
            for part in &word.parts {
                match part {
                    Part::Text(more) => {
                        text.push_str(more);
                        is_word = true;
                    }
                    Part::Variable { name, quoted: true } => text.push_str(&self.value(name)),
                    Part::Variable { name, quoted: false } => {
                        let value = self.value(name);
                        let mut pieces = value.split([' ', '\t', '\n']).filter(|piece| !piece.is_empty());
                        let Some(first) = pieces.next() else { continue };
                        text.push_str(first);
                        is_word = true;
                        for piece in pieces {
                            expanded.push(std::mem::replace(&mut text, piece.to_owned()));
                        }
                    }
                }
                if text.len() > MOST_VALUE || expanded.len() > MOST_ARGUMENTS {
                    return Err(GrubError::Many { what: "characters in a value", most: MOST_VALUE });
                }
            }
            if is_word {
                expanded.push(text);
            }
        }
        Ok(expanded)
    }

    fn value(&self, name: &str) -> String {
        let number = name.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        match (name, number) {
            (_, Some(number)) => self.arguments.get(number).cloned().unwrap_or_default(),
            ("@" | "*", _) => self.arguments.join(" "),
            ("#", _) => self.arguments.len().to_string(),
            _ => self.variables.get(name).cloned().unwrap_or_default(),
        }
    }
}

fn parsed(text: &str, path: &str) -> Result<Block, GrubError> {
    parse(text).map_err(|source| GrubError::Syntax { path: path.to_owned(), source })
}

/// The entry of that number, title or id.
fn named<'a>(menu: &'a [MenuEntry], name: &str) -> Option<&'a MenuEntry> {
    let by_number = name.parse::<usize>().ok().and_then(|number| menu.get(number));
    by_number.or_else(|| menu.iter().find(|entry| entry.id.as_deref() == Some(name) || entry.title == name))
}

/// The first entry of a submenu that boots, or the entry itself.
fn first(entry: &MenuEntry) -> Option<&MenuEntry> {
    match &entry.submenu {
        Some(below) => below.iter().find_map(first),
        None => Some(entry),
    }
}

/// The arguments of `[`: `-o` binds weaker than `-a`, and that weaker than `!`.
struct Test<'a, 'b> {
    run: &'a Run<'b>,
    words: &'a [String],
    at: usize,
}

impl Test<'_, '_> {
    fn any(&mut self) -> bool {
        let mut good = self.all();
        while self.take("-o") {
            good |= self.all();
        }
        good
    }

    fn all(&mut self) -> bool {
        let mut good = self.one();
        while self.take("-a") {
            good &= self.one();
        }
        good
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at).is_some_and(|next| next == word);
        self.at += usize::from(is_next);
        is_next
    }

    fn one(&mut self) -> bool {
        let mut negated = false;
        while self.words.len() > self.at + 1 && self.take("!") {
            negated = !negated;
        }
        self.plain() != negated
    }

    fn plain(&mut self) -> bool {
        let rest = self.words.get(self.at..).unwrap_or_default();
        if let [left, operator, right, ..] = rest
            && let Some(holds) = compared(left, operator, right)
        {
            self.at += 3;
            return holds;
        }
        if let [operator, what, ..] = rest
            && let Some(holds) = self.about(operator, what)
        {
            self.at += 2;
            return holds;
        }
        self.at += 1;
        rest.first().is_some_and(|word| !word.is_empty())
    }

    fn about(&self, operator: &str, what: &str) -> Option<bool> {
        let (device, path) = self.run.place(what);
        match operator {
            "-z" => Some(what.is_empty()),
            "-n" => Some(!what.is_empty()),
            "-e" | "-f" => Some(self.run.devices.has(&device, &path)),
            "-s" => Some(self.run.devices.read(&device, &path).is_some_and(|file| !file.is_empty())),
            "-d" => Some(false),
            _ => None,
        }
    }
}

fn compared(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.parse::<i64>().unwrap_or_default();
    match operator {
        "=" | "==" => Some(left == right),
        "!=" => Some(left != right),
        "<" => Some(left < right),
        ">" => Some(left > right),
        "-eq" => Some(number(left) == number(right)),
        "-ne" => Some(number(left) != number(right)),
        "-lt" => Some(number(left) < number(right)),
        "-le" => Some(number(left) <= number(right)),
        "-gt" => Some(number(left) > number(right)),
        "-ge" => Some(number(left) >= number(right)),
        _ => None,
    }
}
