//! Runs a configuration: statements, variables, functions and menus.

use std::collections::{HashMap, VecDeque};

use thiserror::Error;

use super::syntax::{Block, Joint, Part, Statement, SyntaxError, Word, parse};
use super::{Devices, MOST_VARIABLES};

/// Most commands that are run.
const MOST_STEPS: usize = 100_000;
/// Longest value of a variable and longest word, in bytes.
pub(super) const MOST_VALUE: usize = 16 << 10;
/// Most arguments of a command.
const MOST_ARGUMENTS: usize = 4096;
/// Deepest nesting of functions, files and menus.
const MOST_DEPTH: usize = 8;
/// Most entries of all menus together.
pub(super) const MOST_ENTRIES: usize = 512;

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
    pub(super) block: Block,
    pub(super) arguments: Vec<String>,
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
    pub(super) devices: &'a dyn Devices,
    /// The variables.
    pub variables: Environment,
    functions: HashMap<String, Block>,
    pub(super) menu: Vec<MenuEntry>,
    pub(super) loaded: Loaded,
    /// `blscfg` was run: the entries of `loader/entries` belong to the menu.
    pub wants_entries: bool,
    arguments: Vec<String>,
    pub(super) steps: usize,
    pub(super) entries: usize,
    pub(super) depth: usize,
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

    pub(super) fn enter(&mut self) -> Result<(), GrubError> {
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
    pub(super) fn block(&mut self, block: &Block) -> Result<bool, GrubError> {
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

    pub(super) fn bounded(&self, count: usize, what: &'static str) -> Result<(), GrubError> {
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

pub(super) fn parsed(text: &str, path: &str) -> Result<Block, GrubError> {
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
