//! The text of the info file: netdumpd's keys in netdumpd's order, then what else the receiver knows, then netdumpd's
//! last line. Whatever a client sent is made harmless: it cannot forge a line.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::ops::Range;

use super::summary::{Cause, DumpSummary, Ending, HeaderSeen};
use crate::calendar::CalendarTime;
use crate::vmcore::KernelDumpHeader;
use crate::vmcore::kdh::{Compression, KdhError};

/// Most bytes that [`InfoText::ended`] makes: room for a full list of ranges.
pub(super) const MAX_LEN: usize = 64 * 1024;

/// The parts of the text that do not change while a dump goes on.
#[derive(Debug, Clone)]
pub(super) struct InfoText {
    /// The client's name, fit for a file name.
    pub(super) host: String,
    /// Its address.
    pub(super) address: Ipv4Addr,
    /// What else there is to say, a line each.
    pub(super) notes: Vec<String>,
}

impl InfoText {
    /// The text before the end is known: what remains if the receiver dies.
    pub(super) fn receiving(&self, header: &HeaderSeen) -> String {
        let mut text = self.beginning(header);
        text.push_str("Dump incomplete: the receiver was still receiving it\n");
        text
    }

    /// The text of a dump that has ended.
    pub(super) fn ended(&self, summary: &DumpSummary, ending: &Ending) -> String {
        let mut text = self.beginning(&summary.header);
        line(&mut text, "Client", &summary.peer.to_string());
        let seconds = summary.elapsed.as_secs_f64();
        let received = match ending {
            Ending::Incomplete(Cause::ReceiverDied) => {
                format!("{}B, {seconds:.3} s, by the journal of the receiver that died", summary.bytes)
            }
            _ => counts(summary, seconds),
        };
        line(&mut text, "Received", &received);
        if let Some(header) = summary.header.valid().filter(|header| header.compression != Compression::None)
        {
            line(&mut text, "Dump Extent", &format!("{}B, its length unpacked", header.dump_extent));
        }
        let announced = summary.header.valid().map(|header| header.dump_length);
        if announced.is_some_and(|length| length < summary.end) && !summary.is_padding_behind() {
            line(
                &mut text,
                "Surplus",
                &format!("data up to {}B, more than the header announces", summary.end),
            );
        }
        if announced.is_some_and(|length| length > summary.end) {
            line(&mut text, "Short", &format!("data up to {}B, less than the header announces", summary.end));
        }
        let key = if ending.is_complete() { "Holes" } else { "Missing" };
        line(&mut text, key, &format!("{} ranges, {}B", summary.gaps.count, summary.gaps.bytes));
        for Range { start, end } in &summary.gaps.listed {
            let _ = writeln!(text, "    {start:#x}-{end:#x}");
        }
        let listed = summary.gaps.listed.len() as u64;
        if summary.gaps.count > listed {
            let _ = writeln!(text, "    and {} more", summary.gaps.count - listed);
        }
        if !ending.is_complete() && announced.is_none() {
            let _ =
                writeln!(text, "    and all from {:#x} on, as far as the dump would have gone", summary.end);
        }
        let ending = printable(&ending.to_string());
        text.push_str(ending.trim_end());
        text.push('\n');
        text
    }

    fn beginning(&self, header: &HeaderSeen) -> String {
        let mut text = format!("Dump from {} [{}]\n", self.host, self.address);
        match header {
            HeaderSeen::Missing => {}
            HeaderSeen::Valid(header) => header_lines(&mut text, header, "Pass"),
            HeaderSeen::BadParity(header) => header_lines(&mut text, header, "Fail"),
            HeaderSeen::Unreadable { error, bytes } => {
                // The parity is looked at before the compression and after everything else.
                let parity = if matches!(error, KdhError::Compression(_)) { "Pass" } else { "Fail" };
                line(&mut text, "Header Parity Check", parity);
                line(&mut text, "Header", &format!("not usable: {error}"));
                let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
                    let _ = write!(hex, "{byte:02x}");
                    hex
                });
                line(&mut text, "Header Bytes", &hex);
            }
        }
        if *header == HeaderSeen::Missing {
            line(&mut text, "Header", "none received");
        }
        for note in &self.notes {
            line(&mut text, "Note", note);
        }
        text
    }
}

fn counts(summary: &DumpSummary, seconds: f64) -> String {
    format!(
        "{}B in {} messages, {seconds:.3} s; {} messages repeated, {} datagrams ignored",
        summary.bytes, summary.messages, summary.repeated, summary.ignored
    )
}

/// The lines that savecore and netdumpd write.
fn header_lines(text: &mut String, header: &KernelDumpHeader, parity: &str) {
    let length = header.dump_length;
    line(text, "Architecture", &header.architecture);
    line(text, "Architecture Version", &header.architecture_version.to_string());
    line(text, "Dump Length", &format!("{length}B ({} MB)", length >> 20));
    line(text, "Blocksize", &header.block_size.to_string());
    let compression = match header.compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    };
    line(text, "Compression", compression);
    line(text, "Dumptime", &date(header.dump_time));
    line(text, "Hostname", &header.host_name);
    // FreeBSD's version text ends with a newline and has another one inside; crashinfo(8) wants both.
    line(text, "Version String", header.version_string.trim_end_matches('\n'));
    line(text, "Panic String", &header.panic_string);
    line(text, "Header Parity Check", parity);
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "  {key}: {}", printable(value));
}

/// The text with control characters replaced, and further lines indented so that they cannot pass for keys.
fn printable(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (number, line) in value.split('\n').enumerate() {
        if number > 0 {
            out.push_str("\n    ");
        }
        let line = if number > 0 { line.trim_start() } else { line };
        out.extend(line.chars().map(|c| if c.is_control() { '?' } else { c }));
    }
    out
}

/// Seconds since 1970 as ctime(3) has them, in UTC: "Tue Jul 12 10:11:12 2022".
fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let CalendarTime { year, month, day, weekday, hour, minute, second } = CalendarTime::from_unix(seconds);
    let name = |names: &[&'static str], index: u8| names.get(usize::from(index)).copied().unwrap_or("?");
    format!(
        "{} {} {day:2} {hour:02}:{minute:02}:{second:02} {year}",
        name(&DAYS, weekday),
        name(&MONTHS, month - 1)
    )
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::time::Duration;

    use super::super::ranges::RangeSet;
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn info() -> InfoText {
        InfoText { host: "vm2".into(), address: ADDRESS, notes: vec![] }
    }

    fn header() -> KernelDumpHeader {
        KernelDumpHeader {
            architecture: "amd64".into(),
            architecture_version: 2,
            dump_length: 58_765_312,
            dump_time: 1_657_620_672,
            block_size: 4096,
            host_name: "vm2.example".into(),
            version_string: "FreeBSD 14.0-CURRENT #0: x\n    root@host:/obj/GENERIC\n".into(),
            panic_string: "boom".into(),
            ..Default::default()
        }
    }

    fn summary(header: HeaderSeen, received: &[(u64, u64)]) -> DumpSummary {
        let mut ranges = RangeSet::with_cap(10_000);
        received.iter().for_each(|&(start, end)| {
            ranges.insert(start..end);
        });
        let length = header.file_length(ranges.end());
        DumpSummary {
            peer: SocketAddrV4::new(ADDRESS, 20024),
            local: Ipv4Addr::LOCALHOST,
            dump_id: None,
            resumed: 0,
            header,
            bytes: ranges.bytes(),
            end: ranges.end(),
            length,
            gaps: ranges.gaps(length),
            messages: 12,
            repeated: 1,
            ignored: 2,
            elapsed: Duration::from_millis(1500),
        }
    }

    #[test]
    fn keys_and_order_are_netdumpds() {
        let text = info().ended(&summary(HeaderSeen::Valid(header()), &[(0, 58_765_312)]), &Ending::Complete);
        let expected = "\
Dump from vm2 [10.0.0.2]
  Architecture: amd64
  Architecture Version: 2
  Dump Length: 58765312B (56 MB)
  Blocksize: 4096
  Compression: none
  Dumptime: Tue Jul 12 10:11:12 2022
  Hostname: vm2.example
  Version String: FreeBSD 14.0-CURRENT #0: x
    root@host:/obj/GENERIC
  Panic String: boom
  Header Parity Check: Pass
  Client: 10.0.0.2:20024
  Received: 58765312B in 12 messages, 1.500 s; 1 messages repeated, 2 datagrams ignored
  Holes: 0 ranges, 0B
Dump complete
";
        assert_eq!(text, expected);
    }

    #[test]
    fn missing_ranges_of_an_abandoned_dump_are_listed() {
        let ending = Ending::Incomplete(Cause::TimedOut);
        let text = info().ended(&summary(HeaderSeen::Missing, &[(0, 0x1000), (0x2000, 0x3000)]), &ending);
        let tail = "  Missing: 1 ranges, 4096B\n    0x1000-0x2000\n    and all from 0x3000 on, \
                    as far as the dump would have gone\nDump incomplete: client timed out\n";
        assert!(text.ends_with(tail), "{text}");
        assert!(text.contains("  Header: none received\n"), "{text}");
    }

    #[test]
    fn a_client_cannot_forge_lines() {
        let forged = KernelDumpHeader {
            panic_string: "x\nDump complete\n  Hostname: evil\r\x1b[2J".into(),
            ..header()
        };
        let text = info().receiving(&HeaderSeen::Valid(forged));
        assert!(text.contains("  Panic String: x\n    Dump complete\n    Hostname: evil??[2J\n"), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn bad_headers_are_reported() {
        let mut bytes = header().to_bytes();
        bytes[0x1ff] ^= 1;
        let text = info().receiving(&HeaderSeen::judge(&bytes));
        assert!(text.contains("Header Parity Check: Fail") && text.contains("Panic String: boom"), "{text}");
        bytes[0] = b'X';
        let text = info().receiving(&HeaderSeen::judge(&bytes));
        assert!(text.contains("Header: not usable") && text.contains("Header Bytes: 58726565"), "{text}");
    }

    #[test]
    fn length_that_differs_from_the_header_is_told() {
        let longer = summary(HeaderSeen::Valid(header()), &[(0, 58_765_313)]);
        assert!(info().ended(&longer, &Ending::Complete).contains("  Surplus: data up to 58765313B"));
        let shorter = summary(HeaderSeen::Valid(header()), &[(0, 58_765_311)]);
        let text = info().ended(&shorter, &Ending::Complete);
        assert!(text.contains("  Short: ") && text.contains("    0x380afff-0x380b000\n"), "{text}");
    }

    #[test]
    fn longest_list_fits() {
        let ranges: Vec<_> = (0..5000).map(|i| (u64::MAX / 2 - 2 * i, u64::MAX / 2 - 2 * i + 1)).collect();
        let text = info().ended(&summary(HeaderSeen::Missing, &ranges), &Ending::Complete);
        assert!(text.contains("    and 4000 more\n"));
        assert!(text.len() < MAX_LEN, "{}", text.len());
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(date(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(date(951_782_399), "Mon Feb 28 23:59:59 2000");
        assert_eq!(date(951_782_400), "Tue Feb 29 00:00:00 2000");
        assert_eq!(date(4_107_542_400), "Mon Mar  1 00:00:00 2100");
        date(u64::MAX);
    }
}
