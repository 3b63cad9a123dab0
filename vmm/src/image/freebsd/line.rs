//! A line of loader.conf, as the loader's `config.lua` reads it (freebsd-src `stand/lua/config.lua`): one entry at most.

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Nothing, or a comment.
    Nothing,
    /// `MODULE_load`, `_name`, ... = value.
    Module { module: &'a str, setting: Setting, value: &'a str },
    /// `exec="command"`.
    Exec { command: &'a str },
    /// `NAME = value`, before backslashes and variables of the value are looked at.
    Variable { name: &'a str, value: &'a str },
}

/// What can be said of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Setting {
    Load,
    Name,
    Type,
    Flags,
    Before,
    After,
    Error,
}

/// In the order in which they are tried.
const SETTINGS: [(&str, Setting); 7] = [
    ("_load", Setting::Load),
    ("_name", Setting::Name),
    ("_type", Setting::Type),
    ("_flags", Setting::Flags),
    ("_before", Setting::Before),
    ("_after", Setting::After),
    ("_error", Setting::Error),
];

impl Setting {
    /// What follows the module's name.
    pub(super) fn suffix(self) -> &'static str {
        SETTINGS.iter().find(|(_, setting)| *setting == self).map_or("", |(suffix, _)| suffix)
    }
}

/// Longest value that a variable may get by its own variables: eight times what the kernel keeps. Else lines that each
/// name the last one's variable twice would double it without end.
const MOST_VALUE: usize = 1024;

/// Reads a line; `None` when it is malformed.
pub(super) fn parse(line: &str) -> Option<Line<'_>> {
    // The loader's environment is made of C strings.
    if line.contains('\0') {
        return None;
    }
    let line = line.trim_matches(is_blank);
    if line.is_empty() || line.starts_with('#') {
        return Some(Line::Nothing);
    }
    let end = line.find(|c: char| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let value = rest.trim_start_matches(is_blank).strip_prefix('=')?.trim_start_matches(is_blank);
    for (suffix, setting) in SETTINGS {
        let module = name.strip_suffix(suffix).filter(|module| !module.is_empty() && !module.contains('.'));
        if let Some(module) = module {
            return Some(Line::Module { module, setting, value: any_value(value)? });
        }
    }
    if name == "exec"
        && let Some(command) = quoted(value)
    {
        return Some(Line::Exec { command: command? });
    }
    let is_variable = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    is_variable.then_some(())?;
    Some(Line::Variable { name, value: any_value(value)? })
}

/// The value of a variable: a backslash takes the next character as it is, `$NAME` and `${NAME}` stand for what `get`
/// says. `Err` is what is wrong with it.
pub(super) fn expand(value: &str, get: impl Fn(&str) -> Option<String>) -> Result<String, &'static str> {
    let mut expanded = String::new();
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => expanded.push(rest.next().ok_or("a backslash at its end")?),
            '"' => return Err("a quote inside it"),
            '$' => match variable(rest.as_str()) {
                Some((name, behind)) => {
                    expanded.push_str(&get(name).unwrap_or_default());
                    rest = behind.chars();
                }
                None => expanded.push('$'),
            },
            c => expanded.push(c),
        }
        if expanded.len() > MOST_VALUE {
            return Err("a value of more than 1024 bytes");
        }
    }
    Ok(expanded)
}

/// The name behind a `$`, and what is behind the name.
fn variable(text: &str) -> Option<(&str, &str)> {
    if let Some(braced) = text.strip_prefix('{') {
        return braced.split_once('}').filter(|(name, _)| !name.is_empty() && name.chars().all(is_name));
    }
    let end = text.find(|c: char| !is_name(c)).unwrap_or(text.len());
    let (name, behind) = text.split_at(end);
    name.starts_with(|c: char| c.is_ascii_alphanumeric()).then_some((name, behind))
}

/// A value in quotes or a bare word.
fn any_value(text: &str) -> Option<&str> {
    match quoted(text) {
        Some(value) => value,
        None => {
            let end = text.find(|c: char| !is_name(c)).unwrap_or(text.len());
            let (word, behind) = text.split_at(end);
            (!word.is_empty() && is_comment(behind)).then_some(word)
        }
    }
}

/// What lies between the first and the last quote, where the text begins with one and has another; `Some(None)` when
/// something else than a comment follows.
fn quoted(text: &str) -> Option<Option<&str>> {
    let (value, behind) = text.strip_prefix('"')?.rsplit_once('"')?;
    Some(is_comment(behind).then_some(value))
}

fn is_comment(text: &str) -> bool {
    let text = text.trim_start_matches(is_blank);
    text.is_empty() || text.starts_with('#')
}

/// Lua's `%s`.
fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        let module = |module, setting, value| Some(Line::Module { module, setting, value });
        let variable = |name, value| Some(Line::Variable { name, value });
        for (line, expected) in [
            ("", Some(Line::Nothing)),
            (" \t\r", Some(Line::Nothing)),
            ("  # a=b", Some(Line::Nothing)),
            ("if_vtnet_load=\"YES\"", module("if_vtnet", Setting::Load, "YES")),
            ("if_vtnet_load=yes # why", module("if_vtnet", Setting::Load, "yes")),
            ("\tmfsroot_name = \"/boot/mfsroot\"  ", module("mfsroot", Setting::Name, "/boot/mfsroot")),
            ("a_before=\"echo \\\"x\\\"\"", module("a", Setting::Before, "echo \\\"x\\\"")),
            ("hw.foo_load=1", variable("hw.foo_load", "1")),
            ("exec=\"set a=b\"", Some(Line::Exec { command: "set a=b" })),
            ("exec=word", variable("exec", "word")),
            ("net.dump.server=\"10.0.0.9\"\r", variable("net.dump.server", "10.0.0.9")),
            ("a=\"b\" # \"c\"", variable("a", "b\" # \"c")),
            ("a=\"\"", variable("a", "")),
            ("a=1.2-x_y", variable("a", "1.2-x_y")),
            ("a", None),
            ("a=", None),
            ("a=/dev/null", None),
            ("a=\"b\" c", None),
            ("a=b c", None),
            ("a=\"b", None),
            ("-a=b", None),
            ("=b", None),
            ("a b=c", None),
            ("ä=b", None),
            ("a=\"\0\"", None),
            ("exec=\"x\" y", None),
        ] {
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn values_expand() {
        let get = |name: &str| (name == "disk.0-x" || name == "a").then(|| format!("<{name}>"));
        for (value, expected) in [
            ("plain", Ok("plain")),
            ("$a/$disk.0-x/${a}b$ab", Ok("<a>/<disk.0-x>/<a>b")),
            ("\\$a \\\" \\\\", Ok("$a \" \\")),
            ("$ $/ ${} ${a $", Ok("$ $/ ${} ${a $")),
            ("a\"b", Err("a quote inside it")),
            ("a\\", Err("a backslash at its end")),
        ] {
            assert_eq!(expand(value, get), expected.map(str::to_owned), "{value:?}");
        }
        let long = |_: &str| Some("x".repeat(600));
        assert_eq!(expand("$a$a", long), Err("a value of more than 1024 bytes"));
    }
}
