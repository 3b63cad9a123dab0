//! The kernel dump header, as the receiver writes it down, and where a dump goes that only the guest knows.

use guest_images::freebsd::{CRASHED, HOST_NAME, PANIC_TEXT};
use harness::guests::{Bench, verify};
use harness::readers::freebsd::VirtualMemory;
use harness::readers::minidump::MiniCore;
use nix::sys::signal::Signal;

use crate::lab::{CLIENT, Lab, SERVER};
use crate::specimen::{Specimen, info, settled, told};
use crate::{lab, needs};

#[test]
fn the_dump_header_is_the_kernels_own() {
    needs!(Kvm);
    for (flavour, release) in
        [("freebsd-abi", "14.0"), ("freebsd-abi-13", "13.2"), ("freebsd-abi-12", "12.4")]
    {
        let specimen = Specimen::dumped(flavour, &["abi.text=no_bufs:_0x10"], &[]);
        let info = specimen.info();
        let length = std::fs::metadata(specimen.core_path()).unwrap().len();
        let expected = [
            "Architecture: amd64".to_owned(),
            "Architecture Version: 2".into(),
            format!("Dump Length: {length}B"),
            "Blocksize: 4096".into(),
            "Compression: none".into(),
            "Dumptime: Tue Nov 14 22:13:20 2023".into(),
            format!("Hostname: {HOST_NAME}"),
            format!("Version String: FreeBSD {release}-ABI #0 micro-guest: Tue Nov 14 22:13:20 UTC 2023\n"),
            "Panic String: abi: no bufs: 0x10".into(),
            "Header Parity Check: Pass".into(),
            "Dump complete".into(),
        ];
        for line in &expected {
            assert!(info.contains(line), "{flavour}: no {line:?} in\n{info}");
        }
    }
}

#[test]
fn the_environment_that_the_guest_had_at_its_end_names_the_server() {
    needs!(Kvm, Network);
    let lab = Lab::bridged();
    let receiver = lab.serve();
    std::fs::create_dir(receiver.folder.path().join("abi")).unwrap();
    let bench = Bench::new("freebsd-abi");
    // What the boot loader said is not what counts any more.
    let set = [
        "net.dump.server=10.0.0.77",
        "abi.kenv.set=net.dump.server=10.0.0.9",
        "abi.kenv.set=net.dump.client=10.0.0.5",
        "abi.kenv.set=net.dump.path=abi",
    ];
    let vmm = lab.start(&bench, &settled(&set, &["--tap", "tap0"])).wait();
    harness::guests::assert_code(&vmm, 10);
    let core = receiver.wait_for_cores(1).remove(0);
    assert_eq!(core, receiver.folder.path().join("abi").join(format!("vmcore.{CLIENT}.0")));
    verify(&core, &bench.report_path());
    let specimen = Specimen::of("freebsd-abi", bench, vmm);
    specimen.check_minidump(&MiniCore::open(&core).unwrap());
    assert_eq!(specimen.report["target"]["server"], format!("{SERVER}:20023"));
    assert!(info(&core).contains(&format!("Panic String: {PANIC_TEXT}\n")), "{}", info(&core));
}

#[test]
fn a_dump_through_the_hosts_own_sockets_is_the_same() {
    needs!(Kvm, Network);
    let lab = Lab::bridged();
    lab.host.ip("address add 10.0.0.4/24 dev br0");
    let receiver = lab.serve();
    let bench = Bench::new("freebsd-abi-13");
    let vmm = lab.start(&bench, &told(&[], &["--netdump-server", SERVER]));
    let vmm = vmm.wait();
    harness::guests::assert_code(&vmm, 10);
    let core = receiver.wait_for_cores(1).remove(0);
    let specimen = Specimen::of("freebsd-abi-13", bench, vmm);
    assert_eq!(specimen.report["target"]["link"], "udp");
    verify(&core, &specimen.bench.report_path());
    let core = MiniCore::open(&core).unwrap();
    specimen.check_threads(&core);
    let tid = core.u32_va(specimen.symbols.address("dumptid").unwrap()).unwrap();
    assert_eq!(tid, CRASHED.tid.cast_unsigned());
    let lab::Receiver { running, .. } = receiver;
    running.signal(Signal::SIGTERM);
    harness::guests::assert_code(&running.wait(), 0);
}
