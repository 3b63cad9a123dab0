//! How fast dumps are; for a quiet machine: `cargo test --release -p harness --test net -- --ignored --nocapture rates`.

use harness::guests::Bench;

use crate::lab::{Lab, SERVER, TO_COLLECTOR};
use crate::needs_network;

/// 240 MiB of it are filled, nothing of which can be left out.
const FILLED: [&str; 3] = ["--memory=256M", "--kenv", "fill=all"];

fn print_rate(what: &str, mtu: &str, report: &serde_json::Value) {
    let dump = &report["dump"];
    let (bytes, seconds) = (dump["bytes_sent"].as_f64().unwrap(), dump["seconds"].as_f64().unwrap());
    let (rate, resends) = (bytes / seconds / 1e6, &dump["resends"]);
    println!(
        "{what:<9} MTU {mtu:<5} {:>5.0} MB in {seconds:.2} s: {rate:>5.0} MB/s, {resends} resends",
        bytes / 1e6
    );
    assert!(rate > 5.0, "{what}: {rate} MB/s");
}

#[test]
#[ignore = "measures, and wants the machine for itself"]
fn rates_of_every_link() {
    needs_network!();
    let bench = Bench::new("panic");
    harness::guests::assert_code(&bench.run(&FILLED), 10);
    print_rate("embedded", "9000", &bench.report());
    for mtu in [1500, 9000] {
        for link in ["tap", "virtio", "udp"] {
            let lab = Lab::bridged_with_mtu(mtu);
            lab.host.ip("address add 10.0.0.4/24 dev br0");
            let receiver = lab.serve();
            let bench = Bench::new("panic");
            let to_collector = if link == "udp" { &["--netdump-server", SERVER][..] } else { &TO_COLLECTOR };
            let options = [&FILLED[..], to_collector, &["--netdump-link", link]].concat();
            let dump = lab.dump(&receiver, &bench, &options);
            print_rate(link, &mtu.to_string(), &dump.report);
        }
    }
}
