//! What guests of the lab do: their first program.

/// A first program that loads the modules of its initramfs, does `what`, and switches the guest off.
pub fn init(what: &str) -> String {
    INIT.replace("WHAT", what)
}

/// `reboot=` and the like are the kernel's, so that nothing here stands between a scenario and what the kernel does.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in /modules/*; do [ ! -e $module ] || insmod $module || echo "not loaded: $module"; done
echo 1 > /proc/sys/kernel/sysrq
WHAT
poweroff -f
"#;
