//! A server on another network, and a dump whose target only the guest knows.

use harness::guests::{Bench, assert_code};

use crate::lab::{FAR_CLIENT, GATEWAY, Lab, SERVER, SMALL, check};
use crate::needs_network;

#[test]
fn a_dump_goes_through_the_gateway_of_the_options() {
    needs_network!();
    let lab = Lab::routed();
    let receiver = lab.serve();
    for link in ["tap", "virtio"] {
        let bench = Bench::new("panic");
        let way = ["--tap", "tap0", "--netdump-link", link, "--netdump-server", SERVER];
        let far = ["--netdump-client", FAR_CLIENT, "--netdump-gateway", GATEWAY];
        // The server is asked first, in vain; that must not take seconds here.
        let quick = ["--netdump-polls", "100", "--netdump-retries", "100"];
        let dump = lab.dump(&receiver, &bench, &[&SMALL[..], &way, &far, &quick].concat());
        assert_eq!(dump.report["target"]["gateway"], GATEWAY);
        assert!(dump.core.to_str().unwrap().contains("vmcore.10.0.1.5."), "{}", dump.core.display());
    }
}

#[test]
fn the_guests_environment_alone_can_send_its_dump_through_a_gateway() {
    needs_network!();
    let lab = Lab::routed();
    let receiver = lab.serve();
    std::fs::create_dir(receiver.folder.path().join("tenants")).unwrap();
    let bench = Bench::new("panic");
    let wishes = [
        "--kenv=net.dump.server=10.0.0.9",
        "--kenv=net.dump.client=10.0.1.5",
        "--kenv=net.dump.gateway=10.0.1.1",
        "--kenv=net.dump.path=tenants",
        "--kenv=net.dump.iface=vtnet0",
    ];
    let dump = lab.dump(&receiver, &bench, &[&SMALL[..], &["--tap", "tap0"], &wishes].concat());
    assert!(dump.core.starts_with(receiver.folder.path().join("tenants")), "{}", dump.core.display());
    let target = &dump.report["target"];
    let said = ["link", "server", "client", "gateway", "path"].map(|name| target[name].as_str().unwrap());
    assert_eq!(said, ["tap", "10.0.0.9:20023", FAR_CLIENT, GATEWAY, "tenants"]);
    assert_eq!(target["refused"].as_array().unwrap().len(), 0);
}

#[test]
fn a_gateway_is_not_used_where_the_server_itself_answers() {
    needs_network!();
    let lab = Lab::bridged();
    let receiver = lab.serve();
    let bench = Bench::new("panic");
    let way = ["--tap", "tap0", "--netdump-server", SERVER, "--netdump-client", "10.0.0.5"];
    // Nobody has that address.
    lab.dump(&receiver, &bench, &[&SMALL[..], &way, &["--netdump-gateway", "10.0.0.66"]].concat());
}

#[test]
fn a_server_may_listen_on_another_port() {
    needs_network!();
    let lab = Lab::bridged();
    let folder = tempfile::tempdir().unwrap();
    let receiver = lab.serve_at("10.0.0.9:4711", folder.path());
    for (options, number) in
        [(["--netdump-server", "10.0.0.9:4711"], 6), (["--kenv", "net.dump.server=10.0.0.9:4711"], 7)]
    {
        let bench = Bench::new("panic");
        let client = format!("--netdump-client=10.0.0.{number}");
        let vmm = lab.start(&bench, &[&SMALL[..], &["--tap", "tap0", &client], &options].concat()).wait();
        assert_code(&vmm, 10);
        let core = folder.path().join(format!("vmcore.10.0.0.{number}.0"));
        check(&bench, &core);
        assert!(receiver.stdout().contains(core.to_str().unwrap()));
    }
}
