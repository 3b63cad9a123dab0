//! From the panic to the report: pause, ask the guest, dump, tell.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use netdump::facts::GuestFacts;
use netdump::vmcore::inspect::debugger_commands;
use netdump::vmcore::unpack::Method;
use netdump::vmcore::{CoreNotes, PhysicalMemory};

use crate::account::Account;
use crate::config::{Target, Wishes};
use crate::devices::virtio::VirtioDevices;
use crate::dump::{self, Dumped, Job};
use crate::link::TapRoute;
use crate::machine::Host;
use crate::nic::Nic;
use crate::output_file;
use crate::panic::inquiry::{Finding, Sign};
use crate::report::{
    Event, ExitStatus, GuestReport, Observer, PanicReport, PanicSeen, PauseReport, SignReport, TargetReport,
    memory_of,
};
use crate::signals::Signals;
use crate::vm::{PausedGuest, Vm};

/// How long vCPUs get to stop. One that needs longer is blocked in this process, not in the guest.
const PAUSE_DEADLINE: Duration = Duration::from_secs(2);

/// Said of a core that could have been more.
const NO_SYMBOLS: &str = "this FreeBSD kernel has no symbols, so its core is no minidump and shows no threads: give its \
                          unstripped twin or its .debug file with --symbols";

/// What the way from panic to report needs.
pub(crate) struct Aftermath<'a> {
    pub(crate) host: &'a Host<'a>,
    pub(crate) signals: &'a Signals,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) nic: Option<&'a Nic>,
    pub(crate) route: Option<&'a TapRoute>,
}

impl Aftermath<'_> {
    /// Pauses the guest, dumps it and reports.
    pub(crate) fn dump(&mut self, vm: &mut Vm, devices: &VirtioDevices, panic: &Finding) -> ExitStatus {
        let time = SystemTime::now();
        let guest = vm.pause(PAUSE_DEADLINE);
        // After the vCPUs: a driver that runs could start the device again.
        devices.stop();
        let account = Account::take(&guest, self.host.image.symbols(), panic.event.vcpu);
        let seen = seen(panic, &account.facts, time);
        self.observer.event(&Event::Panic { seen: &seen });
        let pause = PauseReport {
            microseconds: micros(guest.stopped_at().saturating_duration_since(panic.event.at)),
            settling_microseconds: micros(panic.waited),
            not_stopped: guest.not_stopped(),
        };
        self.observer.event(&Event::Paused { pause: &pause });
        if let Some(card) = &account.card {
            self.observer.event(&Event::Card { card });
        }
        let sent = self.host.dump.enabled.then(|| self.send(&guest, &seen, &account));
        let status =
            sent.as_ref().map_or(ExitStatus::NotDumped, |sent| ExitStatus::of(sent.1.report.outcome));
        let report = self.report(&guest, seen, pause, account, sent, status);
        self.observer.event(&Event::Dumped { report: &report });
        self.write(&report);
        status
    }

    fn send(
        &mut self,
        guest: &PausedGuest<'_>,
        seen: &PanicSeen,
        account: &Account,
    ) -> (TargetReport, Dumped) {
        let facts = &account.facts;
        let config = self.host.dump;
        let target = config.target(&Wishes {
            environment: facts.environment.as_deref().unwrap_or(&self.host.handover().environment),
            seen: self.nic.and_then(Nic::last_ipv4),
            has_tap: self.nic.is_some(),
        });
        let target_report = report_target(&target);
        let notes = CoreNotes {
            panic_cpu: seen.vcpu,
            panic_source: Some(seen.source.to_owned()),
            panic_text: seen.text.clone(),
            panic_time: Some(seen.time),
            facts: facts.clone(),
        };
        let host_name = facts.host_name.clone().unwrap_or_else(|| config.name.clone());
        let route = self.route.filter(|_| target.link == config.link_for(config.server, self.nic.is_some()));
        let (signals, observer) = (self.signals, &mut *self.observer);
        let interrupted = &|| signals.stop_requested().is_some();
        let symbols = self.host.image.symbols();
        let job = Job {
            config,
            target: &target,
            symbols,
            notes,
            host_name,
            time: header_time(account.clock, seen.time),
            route,
            nic: self.nic,
            interrupted,
        };
        let mut announced = false;
        let dumped = dump::run(&job, guest, &mut |progress| {
            if !std::mem::replace(&mut announced, true) {
                observer.event(&Event::Dumping { target: &target_report, length: progress.total });
            }
            observer.progress(progress);
            match signals.stop_requested() {
                Some(signal) => ControlFlow::Break(format!("interrupted by {}", signal.as_str())),
                None => ControlFlow::Continue(()),
            }
        });
        self.observer.dump_ended(&dumped.report);
        (target_report, dumped)
    }

    fn report(
        &self,
        guest: &PausedGuest<'_>,
        panic: PanicSeen,
        pause: PauseReport,
        account: Account,
        sent: Option<(TargetReport, Dumped)>,
        status: ExitStatus,
    ) -> PanicReport {
        let (target, dumped) = sent.unzip();
        let core_format = dumped.as_ref().and_then(|dumped| dumped.format);
        let mut remarks = dumped.as_ref().map(|dumped| dumped.remarks.clone()).unwrap_or_default();
        if dumped.is_some() && self.host.image.is_stripped_freebsd() {
            remarks.push(NO_SYMBOLS.to_owned());
        }
        let (dump, core) = dumped.map(|dumped| (dumped.report, dumped.core)).unzip();
        let core = core.flatten();
        let debuggers = self.debuggers(core.as_deref(), core_format, account.linux_release());
        let facts = account.facts;
        PanicReport {
            image: self.host.image.path().display().to_string(),
            panic,
            pause,
            guest: GuestReport {
                os: facts.os,
                version: facts.version,
                host_name: facts.host_name.unwrap_or_else(|| self.host.dump.name.clone()),
                environment: facts.environment.unwrap_or_else(|| self.host.handover().environment.clone()),
            },
            card: account.card,
            memory: memory_of(guest.ranges()),
            cpus: guest.cpus().to_vec(),
            target,
            core_format,
            remarks,
            dump,
            core,
            debuggers,
            exit_code: status.code(),
        }
    }

    /// The commands that open the core; none for one that is elsewhere, or must be decrypted first.
    fn debuggers(&self, core: Option<&Path>, format: Option<&str>, linux: Option<&str>) -> Vec<String> {
        let is_encrypted = self.host.dump.packing.encryption().is_some();
        match (core, format) {
            (Some(core), Some(format)) if !is_encrypted => {
                // A Linux kernel as it is booted has no debug information.
                let kernel = linux.is_none().then(|| self.host.image.file_with_symbols());
                debugger_commands(format, core, Method::by_name(core), kernel, linux)
            }
            _ => Vec::new(),
        }
    }

    /// Writes the report. What follows the panic does not depend on it.
    fn write(&self, report: &PanicReport) {
        let Some(path) = &self.host.report else { return };
        let json = serde_json::to_vec_pretty(report).expect("a report is plain data");
        if let Err(error) = output_file::write_whole(path, &json) {
            tracing::error!(path = %path.display(), %error, "the report cannot be written");
        }
    }
}

fn seen(finding: &Finding, facts: &GuestFacts, time: SystemTime) -> PanicSeen {
    let panic = &finding.event;
    let first = finding.signs.first().map_or(panic.at, |sign| sign.at);
    let sign = |sign: &Sign| SignReport {
        source: sign.source,
        microseconds: micros(sign.at.saturating_duration_since(first)),
    };
    PanicSeen {
        source: panic.source,
        vcpu: panic.vcpu,
        // What the kernel formatted says more than its line on the console, which may be cut.
        text: facts.panic_text.clone().or_else(|| panic.text.clone()),
        detail: panic.detail.clone(),
        time: time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        signs: finding.signs.iter().map(sign).collect(),
    }
}

/// The time in the dump header is the guest's own, as its kernel would have written it, unless that cannot be: a clock
/// that nobody set, or one of the future. Both in seconds since 1970.
fn header_time(guest: Option<u64>, host: u64) -> u64 {
    const YEAR_2000: u64 = 946_684_800;
    const DAY: u64 = 86_400;
    guest.filter(|time| (YEAR_2000..=host.saturating_add(DAY)).contains(time)).unwrap_or(host)
}

fn report_target(target: &Target) -> TargetReport {
    TargetReport {
        link: target.link.to_string(),
        server: target.server.map(|server| server.to_string()),
        client: target.client.map(|client| client.to_string()),
        gateway: target.gateway.map(|gateway| gateway.to_string()),
        path: target.path.clone(),
        refused: target.refused.clone(),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plausible_clock_of_the_guest_goes_into_the_header() {
        const NOW: u64 = 1_800_000_000;
        for (guest, expected) in [
            (Some(1_700_000_000), 1_700_000_000),
            (Some(NOW + 3600), NOW + 3600),
            (Some(NOW + 90_000), NOW),
            (Some(300), NOW),
            (Some(u64::MAX), NOW),
            (None, NOW),
        ] {
            assert_eq!(header_time(guest, NOW), expected, "{guest:?}");
        }
    }
}
