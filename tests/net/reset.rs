//! After a dump the guest boots again and finds its network as it was.

use harness::guests::Bench;
use harness::netns::until;
use harness::programs::{arg, program, run};
use nix::sys::signal::Signal;

use crate::lab::{Lab, SMALL, TO_COLLECTOR};
use crate::needs_network;
use crate::wedge::{USES_NETWORK, seen};

fn reset_twice(link: &str, wedge: &str) {
    let lab = Lab::bridged();
    let receiver = lab.serve();
    let capture = lab.collector.capture();
    let bench = Bench::new("net-wedge");
    let wedge = format!("--kenv=wedge={wedge}");
    // Each panic waits a little, so that a report can be read before the next one replaces it.
    let more =
        ["--on-panic", "reset", "--netdump-link", link, &wedge, "--kenv=ip=10.0.0.5", "--kenv=after=700"];
    let mut vmm = lab.start(&bench, &[&SMALL[..], &TO_COLLECTOR, &USES_NETWORK, &more].concat());
    for dump in 1..=3 {
        let core = receiver.wait_for_cores(dump).remove(dump - 1);
        let report = bench.report_path();
        until("the report of the dump", || {
            run(program("netdump"), &["verify", arg(&core), "--report", arg(&report)]).code == Some(0)
        });
        bench.check_memory(&core);
        assert!(seen(&capture, 0) >= dump, "the guest was heard after each boot");
    }
    vmm.wait_for_stdout("received", 3);
    assert!(!vmm.stdout().contains("received nothing"), "{}", vmm.stdout());
    assert!(vmm.is_running());
    vmm.signal(Signal::SIGTERM);
    vmm.wait();
}

#[test]
fn a_guest_that_boots_again_has_its_network_again_after_a_dump_over_its_tap() {
    needs_network!();
    reset_twice("tap", "loop");
}

#[test]
fn a_guest_that_boots_again_has_its_network_again_after_a_dump_over_its_card() {
    needs_network!();
    reset_twice("virtio", "rings");
}
