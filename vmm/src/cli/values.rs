//! Options' values: what clap's own parsers do not know, and the texts that are made of our tables.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use netdump::client::{ConfigError, check_path};
use netdump::ekcd::Cipher;
use netdump::vmcore::FormatChoice;
use netdump::wire::MacAddr;
use netdump::wire::message::MAX_PATH;
use vmm::boot::{self, BootProtocol};
use vmm::panic;

/// A boot protocol by its name; none is auto.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot(pub(super) Option<&'static dyn BootProtocol>);

pub(super) fn cipher() -> impl TypedValueParser<Value = Cipher> {
    let names = PossibleValuesParser::new(Cipher::ALL.map(Cipher::name));
    names.map(|name| Cipher::by_name(&name).expect("it is one of their names"))
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && name.chars().all(is_name) => {
            Ok((name.into(), value.into()))
        }
        _ => Err("a variable is given as NAME=VALUE, such as net.dump.server=10.0.0.9".into()),
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_graphic() && !matches!(c, ',' | '=' | '"')
}

pub(super) fn unicast(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error: netdump::wire::mac::ParseMacError| error.to_string())?;
    if mac.is_group() || mac == MacAddr::ZERO {
        Err(format!("{mac} is no single host's address"))
    } else {
        Ok(mac)
    }
}

pub(super) fn path(text: &str) -> Result<String, ConfigError> {
    check_path(text, MAX_PATH).map(|()| text.to_owned())
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.001..=1e9).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("'{text}' is not a number of seconds"))
}

pub(super) fn dump_format(name: &str) -> Result<FormatChoice, String> {
    FormatChoice::by_name(name).ok_or_else(|| {
        let names: Vec<_> = FormatChoice::names().collect();
        format!("there is no core format '{name}'; there are {}", names.join(", "))
    })
}

pub(super) fn boot_protocol(name: &str) -> Result<Boot, String> {
    if name == "auto" {
        return Ok(Boot(None));
    }
    boot::protocol(name).map(|protocol| Boot(Some(protocol))).ok_or_else(|| {
        let names: Vec<_> = boot::ALL.iter().map(|protocol| protocol.name()).collect();
        format!("there is no boot protocol '{name}'; there are auto, {}", names.join(", "))
    })
}

pub(super) fn boot_help() -> String {
    let lines: Vec<_> =
        boot::ALL.iter().map(|protocol| format!("  {:<7} {}", protocol.name(), protocol.takes())).collect();
    format!("How to start it; auto takes the first that fits.\n\n{}", lines.join("\n"))
}

pub(super) fn sources_help() -> String {
    let lines: Vec<_> =
        panic::ALL.iter().map(|source| format!("  {:<13} {}", source.name(), source.about())).collect();
    format!("Panic sources to use, separated by commas; all by default.\n\n{}", lines.join("\n"))
}
