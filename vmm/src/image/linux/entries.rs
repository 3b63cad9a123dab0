//! Loader entries: `loader/entries/*.conf` of the Boot Loader Specification (UAPI group), type 1, with which of them is
//! the default.

use std::cmp::Ordering;

use super::version::compare;

/// Most entries that are looked at.
pub(super) const MOST_ENTRIES: usize = 256;

/// An entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The file's name without `.conf` and without the count of tries.
    pub id: String,
    /// What a menu shows.
    pub title: String,
    /// The kernel's path.
    pub linux: String,
    /// First root file systems, to be joined.
    pub initrds: Vec<String>,
    /// The command line.
    pub options: String,
    version: String,
    sort_key: String,
    machine_id: String,
    /// Its tries are used up.
    bad: bool,
}

impl Entry {
    /// Reads an entry; `None` if it is for another architecture or starts no Linux kernel.
    pub fn parse(file_name: &str, text: &str) -> Option<Self> {
        let id = file_name.strip_suffix(".conf")?;
        // `NAME+LEFT` or `NAME+LEFT-DONE`: how often it is tried yet.
        let tries = id.rsplit_once('+').filter(|(_, tries)| tries.starts_with(|c: char| c.is_ascii_digit()));
        let mut entry = Self {
            id: tries.map_or(id, |(id, _)| id).to_owned(),
            bad: tries.is_some_and(|(_, tries)| tries.split('-').next() == Some("0")),
            ..Self::default()
        };
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once([' ', '\t']) else { continue };
            let value = value.trim();
            match key {
                "title" => value.clone_into(&mut entry.title),
                "version" => value.clone_into(&mut entry.version),
                "sort-key" => value.clone_into(&mut entry.sort_key),
                "machine-id" => value.clone_into(&mut entry.machine_id),
                "linux" => value.clone_into(&mut entry.linux),
                // Fedora's entries have several in a line, for GRUB's `blscfg`.
                "initrd" => entry.initrds.extend(value.split([' ', '\t']).map(str::to_owned)),
                "options" if entry.options.is_empty() => value.clone_into(&mut entry.options),
                "options" => entry.options = format!("{} {value}", entry.options),
                "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
                _ => {}
            }
        }
        entry.initrds.retain(|path| !path.is_empty());
        if entry.title.is_empty() {
            entry.title.clone_from(&entry.id);
        }
        (!entry.linux.is_empty()).then_some(entry)
    }

    /// `options` and initrds with GRUB's variables (`$kernelopts`, `$tuned_params`) replaced, as `blscfg` does it.
    pub fn expand(&mut self, variable: impl Fn(&str) -> String) {
        self.options = expanded(&self.options, &variable);
        let initrds = self.initrds.iter().map(|path| expanded(path, &variable));
        self.initrds = initrds.filter(|path| !path.is_empty()).collect();
    }
}

fn expanded(text: &str, variable: &impl Fn(&str) -> String) -> String {
    let words = text.split(' ').map(|word| match word.strip_prefix('$') {
        Some(name) => variable(name.trim_start_matches('{').trim_end_matches('}')),
        None => word.to_owned(),
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Puts entries in the order of a menu: those that failed last, then by sort key, machine and version, the newest first.
pub fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| {
        let by_key = match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
            (false, false) => (a.sort_key.cmp(&b.sort_key))
                .then_with(|| a.machine_id.cmp(&b.machine_id))
                .then_with(|| compare(&b.version, &a.version)),
            (true, true) => Ordering::Equal,
            // Those that have a key come first.
            (a, b) => a.cmp(&b),
        };
        a.bad.cmp(&b.bad).then(by_key).then_with(|| compare(&b.id, &a.id))
    });
}

/// The entry that is booted when nobody chooses another: the one that `wanted` names, by its id or a pattern; else the
/// first. With it, whether `wanted` named it.
pub fn default<'a>(entries: &'a [Entry], wanted: Option<&str>) -> Option<(&'a Entry, bool)> {
    let pattern = wanted.map(|wanted| wanted.strip_suffix(".conf").unwrap_or(wanted));
    let named = pattern.and_then(|pattern| entries.iter().find(|entry| matches(pattern, &entry.id)));
    let entry = named.or_else(|| entries.first())?;
    Some((entry, named.is_some() || wanted.is_none()))
}

/// `default` of `loader.conf`.
pub fn default_of(loader_conf: &str) -> Option<&str> {
    let lines = loader_conf.lines().filter_map(|line| line.trim().split_once([' ', '\t']));
    lines.filter(|(key, _)| *key == "default").map(|(_, value)| value.trim()).next_back()
}

/// A pattern with `*` and `?`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, text: &str) -> Entry {
        Entry::parse(name, text).unwrap()
    }

    #[test]
    fn an_entry_of_systemds_kernel_install_is_read() {
        let entry = entry(
            "4098b3f6+3-1.conf",
            "# Boot Loader Specification type#1 entry\ntitle      Debian GNU/Linux 12 (bookworm)\n\
             version    6.1.0-50-cloud-amd64\nmachine-id 4098b3f648d74c13b1f04ccfba7798e8\nsort-key   debian\n\
             options    root=UUID=6a1b ro\noptions    quiet\n\
             linux      /4098b3f6/6.1.0-50-cloud-amd64/linux\n\
             initrd     /ucode.img\ninitrd     /4098b3f6/6.1.0-50-cloud-amd64/initrd.img-6.1.0-50-cloud-amd64\n",
        );
        assert_eq!((entry.id.as_str(), entry.bad), ("4098b3f6", false));
        assert_eq!(entry.options, "root=UUID=6a1b ro quiet");
        assert_eq!(entry.linux, "/4098b3f6/6.1.0-50-cloud-amd64/linux");
        assert_eq!(entry.initrds.len(), 2);
        assert!(Entry::parse("x+0-3.conf", "linux /l").unwrap().bad);
        assert_eq!(Entry::parse("x.conf", "efi /EFI/x.efi"), None);
        assert_eq!(Entry::parse("x.conf", "linux /l\narchitecture aa64"), None);
    }

    #[test]
    fn an_entry_of_fedora_gets_its_options_from_grub() {
        let mut entry = entry(
            "1-6.8.conf",
            "title Fedora\nlinux /vmlinuz-6.8\ninitrd /initramfs-6.8.img $tuned_initrd\noptions $kernelopts $tuned_params a=b\n",
        );
        entry.expand(|name| if name == "kernelopts" { "root=UUID=1 ro".to_owned() } else { String::new() });
        assert_eq!(entry.options, "root=UUID=1 ro a=b");
        assert_eq!(entry.initrds, ["/initramfs-6.8.img"]);
    }

    #[test]
    fn the_default_is_the_one_named_or_the_newest() {
        let mut entries = ["m-6.8.9", "m-6.11.4", "m-0-rescue", "m-6.9.0+0-3", "m-6.10.1"]
            .map(|name| entry(&format!("{name}.conf"), "linux /l"))
            .to_vec();
        sort(&mut entries);
        let ids = entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>();
        assert_eq!(ids, ["m-6.11.4", "m-6.10.1", "m-6.8.9", "m-0-rescue", "m-6.9.0"]);
        let chosen = |wanted| default(&entries, wanted).map(|(entry, named)| (entry.id.as_str(), named));
        assert_eq!(chosen(None), Some(("m-6.11.4", true)));
        assert_eq!(chosen(Some("m-6.8*.conf")), Some(("m-6.8.9", true)));
        assert_eq!(chosen(Some("*rescue")), Some(("m-0-rescue", true)));
        assert_eq!(chosen(Some("@saved")), Some(("m-6.11.4", false)));
        assert_eq!(default_of("timeout 3\n#default x\ndefault  m-6.8*\n"), Some("m-6.8*"));
    }
}
