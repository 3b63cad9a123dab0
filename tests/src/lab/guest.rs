//! What guests of the lab do: their first program.

use super::scenario::Scenario;

/// A first program that loads the modules of its initramfs, does `what`, and switches the guest off.
pub fn init(what: &str) -> String {
    format!("{PRELUDE}{what}\npoweroff -f\n")
}

/// The first program of a scenario's guest.
pub fn init_of(scenario: &Scenario) -> String {
    // What third-party readers are held against.
    let truth = if scenario.expect.readers.is_some() { "tell_truth\n" } else { "" };
    init(&format!("echo init is up\n{truth}{}", scenario.init))
}

/// `reboot=` and the like are the kernel's, so that nothing here stands between a scenario and what the kernel does.
const PRELUDE: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in /modules/*; do [ ! -e $module ] || insmod $module || echo "not loaded: $module"; done
echo 1 > /proc/sys/kernel/sysrq
# where the kernel is and what it calls itself, as it says itself
tell_truth() {
    echo "banner is $(cat /proc/version)"
    echo "linux_banner is at $(grep -m1 ' linux_banner$' /proc/kallsyms | cut -d' ' -f1)"
}
# net_up [ADDRESS [GATEWAY]]
net_up() {
    ip link set eth0 up && ip address add ${1:-10.0.0.5}/24 dev eth0
    [ -z "$2" ] || ip route add default via $2
}
# fetches a file from the collector and gives it back
move_file() {
    nc 10.0.0.9 9000 > /tmp/file < /dev/null && nc 10.0.0.9 9001 < /tmp/file && echo "moved $(wc -c < /tmp/file) bytes"
}
"#;
