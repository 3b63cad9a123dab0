//! The HOST in the names of stored files: the client's name up to the first dot, else its address in numbers.
//!
//! netdumpd asks the reverse DNS, in a process of its own. A question to a name server can take seconds, in which
//! no other client would be served, and anyone who may write the zone chooses file names; so only the hosts file is
//! asked here. It is read for every dump: an edit needs no restart.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Most bytes of a hosts file that are read.
const MAX_HOSTS_FILE: u64 = 1 << 20;
/// Longest HOST (a DNS label's limit).
const MAX_NAME: usize = 63;

/// Where clients' names come from.
#[derive(Debug, Clone, Default)]
pub struct HostNames {
    hosts_file: Option<PathBuf>,
}

impl HostNames {
    /// Addresses only.
    pub fn numeric() -> Self {
        Self::default()
    }

    /// Names from a file in the format of hosts(5), such as `/etc/hosts`; it need not exist.
    pub fn from_hosts_file(path: impl Into<PathBuf>) -> Self {
        Self { hosts_file: Some(path.into()) }
    }

    /// The HOST of a client: letters, digits, `-`, `_`, or dots of an address; never empty.
    pub fn name_of(&self, address: Ipv4Addr) -> String {
        let text = self.hosts_file.as_deref().and_then(read_bounded);
        text.and_then(|text| name_in(&text, address)).unwrap_or_else(|| address.to_string())
    }
}

fn read_bounded(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_HOSTS_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first usable name that a hosts file gives an address.
fn name_in(hosts: &str, address: Ipv4Addr) -> Option<String> {
    hosts.lines().find_map(|line| {
        let line = line.split('#').next()?;
        let mut words = line.split_whitespace();
        if words.next()?.parse() != Ok(IpAddr::V4(address)) {
            return None;
        }
        let label = words.next()?.split('.').next()?;
        let usable = !label.is_empty()
            && label.len() <= MAX_NAME
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        usable.then(|| label.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "127.0.0.1 localhost\n10.0.0.2\tvm2.example.org vm2 # the second\n\
                         #10.0.0.3 no\n::1 six\n10.0.0.4 ../../etc\n10.0.0.5\n10.0.0.6 .x\n";

    #[test]
    fn name_is_cut_at_its_first_dot() {
        assert_eq!(name_in(HOSTS, Ipv4Addr::new(10, 0, 0, 2)), Some("vm2".into()));
    }

    #[test]
    fn names_that_could_be_paths_are_not_used() {
        for last in [3, 4, 5, 6] {
            assert_eq!(name_in(HOSTS, Ipv4Addr::new(10, 0, 0, last)), None);
        }
    }

    #[test]
    fn without_a_name_the_address_is_used() {
        let names = HostNames::from_hosts_file("/nonexistent/hosts");
        assert_eq!(names.name_of(Ipv4Addr::new(10, 0, 0, 9)), "10.0.0.9");
    }
}
