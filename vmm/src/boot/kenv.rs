//! The kernel environment as FreeBSD's loader would leave it: what the user gave, and what a machine without a loader
//! has to add so that the kernel finds its console and its devices (freebsd-src `sys/kern/subr_boot.c`,
//! `sys/amd64/conf/GENERIC.hints`).
//!
//! A name that is given twice stays twice, in order: the kernel numbers repeats (`name_1`), and its virtio-mmio driver
//! counts on that.

use super::{BootError, Handover, KernelImage};
use crate::x86_64::firmware::Hardware;
use crate::x86_64::layout;

/// Longest `name=value` that the kernel keeps: 128 bytes each (`sys/sys/kenv.h`).
const VARIABLE_MAX: usize = 128 + 1 + 128;
/// Most variables that the kernel keeps (`KENV_SIZE`).
const COUNT_MAX: usize = 512;
/// How much of a kernel's compiled-in environment is looked at; real ones have some hundred bytes.
const COMPILED_IN_MAX: usize = 0x1_0000;

/// Boot flags: the letter on the command line, the variable of the same meaning, and the bit (`sys/sys/reboot.h`).
const FLAGS: [(char, &str, u32); 11] = [
    ('a', "boot_askname", 0x1),
    ('C', "boot_cdrom", 0x2000),
    ('d', "boot_ddb", 0x40),
    ('D', "boot_multicons", 0x2000_0000),
    ('g', "boot_gdb", 0x8000),
    ('h', "boot_serial", 0x1000),
    ('m', "boot_mute", 0x1_0000),
    ('p', "boot_pause", 0x10_0000),
    ('r', "boot_dfltroot", 0x20),
    ('s', "boot_single", 0x2),
    ('v', "boot_verbose", 0x800),
];

/// Variables, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kenv(Vec<(String, String)>);

impl Kenv {
    /// What the user gave, then what is added: the command line's flags and variables, `--kernel-env`, defaults.
    pub(super) fn new(image: &KernelImage, with: &Handover, hardware: &Hardware) -> Result<Self, BootError> {
        let mut kenv = Self::default();
        for token in with.cmdline.split_ascii_whitespace() {
            kenv.token(token)?;
        }
        kenv.0.extend(with.environment.iter().cloned());
        kenv.add_console();
        kenv.add_default("kernelname", &Self::default_kernel_name(image));
        if !has_acpi(image, &kenv) {
            kenv.add_virtio_mmio(hardware);
        }
        Ok(kenv)
    }

    /// What the kernel calls itself (`kern.bootfile`): what the variables say, which know a disk's own path.
    pub(super) fn kernel_name(&self) -> String {
        self.value("kernelname").unwrap_or("/boot/kernel/kernel").to_owned()
    }

    /// The name of a kernel of which nothing but its file is known.
    fn default_kernel_name(image: &KernelImage) -> String {
        let name = image.path().file_name().map(|name| name.to_string_lossy().into_owned());
        format!("/boot/kernel/{}", name.as_deref().unwrap_or("kernel"))
    }

    /// The variables.
    pub(super) fn variables(&self) -> &[(String, String)] {
        &self.0
    }

    /// Sets a variable unless it is set.
    pub(super) fn add_default(&mut self, name: &str, value: &str) {
        if self.value(name).is_none() {
            self.0.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The boot flags that the variables mean.
    pub(super) fn howto(&self) -> u32 {
        let on = |name| self.value(name).is_some_and(|value| !value.eq_ignore_ascii_case("no"));
        FLAGS.iter().filter(|(_, name, _)| on(name)).fold(0, |howto, (_, _, bit)| howto | bit)
    }

    /// The block that the kernel reads: `name=value` each with a NUL, and one NUL more.
    pub(super) fn block(&self) -> Result<Vec<u8>, BootError> {
        if self.0.len() > COUNT_MAX {
            return Err(BootError::TooManyVariables { count: self.0.len(), max: COUNT_MAX });
        }
        let mut block = Vec::new();
        for (name, value) in &self.0 {
            check(name, value)?;
            block.extend_from_slice(format!("{name}={value}\0").as_bytes());
        }
        block.push(0);
        Ok(block)
    }

    /// A word of the command line: flags, `name=value`, or a name alone.
    fn token(&mut self, token: &str) -> Result<(), BootError> {
        let mut set = |name: &str, value: &str| self.0.push((name.to_owned(), value.to_owned()));
        let Some(flags) = token.strip_prefix('-') else {
            let (name, value) = token.split_once('=').unwrap_or((token, "1"));
            set(name, value);
            return Ok(());
        };
        // -S takes the rest of the word: the console's speed.
        let (flags, speed) =
            flags.split_once('S').map_or((flags, None), |(flags, speed)| (flags, Some(speed)));
        for flag in flags.chars() {
            match FLAGS.iter().find(|(letter, ..)| *letter == flag) {
                Some((_, name, _)) => set(name, "YES"),
                None => return Err(BootError::Flag { flag }),
            }
        }
        if let Some(speed) = speed {
            set("comconsole_speed", speed);
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The serial port is the console: a direct boot reads no device.hints. Whoever names another console does not want
    /// the serial one to be preferred.
    fn add_console(&mut self) {
        if self.value("console").is_none() {
            self.add_default("console", "comconsole");
            self.add_default("boot_serial", "YES");
        }
        self.add_default("hint.uart.0.at", "isa");
        self.add_default("hint.uart.0.port", &format!("{:#X}", layout::COM1));
        self.add_default("hint.uart.0.irq", &layout::COM1_IRQ.to_string());
        // May be the console.
        self.add_default("hint.uart.0.flags", "0x10");
    }

    fn add_virtio_mmio(&mut self, hardware: &Hardware) {
        const NAME: &str = "virtio_mmio.device";
        if self.value(NAME).is_some() {
            return;
        }
        for device in &hardware.virtio_mmio {
            let value = format!("{:#x}@{:#x}:{}", layout::VIRTIO_MMIO_LEN, device.base, device.irq);
            self.0.push((NAME.to_owned(), value));
        }
    }
}

fn check(name: &str, value: &str) -> Result<(), BootError> {
    let problem = if name.is_empty() {
        "it has no name"
    } else if name.contains('\0') || value.contains('\0') {
        "it contains a NUL byte"
    } else if name.len() + 1 + value.len() > VARIABLE_MAX {
        "name and value are longer than the 256 bytes that the kernel keeps"
    } else {
        return Ok(());
    };
    Err(BootError::Variable { name: name.to_owned(), problem })
}

/// Whether the kernel finds virtio-mmio devices by itself, in ACPI's DSDT.
///
/// Its driver attaches by ACPI's LNRO0005 and, late in 2022 and after, by the variable `virtio_mmio.device`. It looks
/// for both, so that with both a device would be found twice and its second attachment fail for want of its registers.
/// The variable is for kernels that leave ACPI alone, as the FIRECRACKER configuration does with its compiled-in
/// `hint.acpi.0.disabled`, and for those that have no ACPI attachment.
fn has_acpi(image: &KernelImage, kenv: &Kenv) -> bool {
    const DISABLED: &str = "hint.acpi.0.disabled";
    let symbols = image.symbols();
    let attaches_by_variable_only = symbols.address("vtmmio_cmdline_identify").is_some()
        && symbols.address("vtmmio_acpi_probe").is_none();
    // The loader's block is looked at before the compiled-in one.
    let disabled = match kenv.value(DISABLED) {
        Some(value) => value != "0",
        None => ["static_env", "static_hints"]
            .iter()
            .filter_map(|symbol| image.bytes_at_symbol(symbol, COMPILED_IN_MAX))
            .any(|block| compiled_in(block, DISABLED).is_some_and(|value| value != b"0")),
    };
    !disabled && !attaches_by_variable_only
}

/// A variable of an environment block.
fn compiled_in<'a>(block: &'a [u8], name: &str) -> Option<&'a [u8]> {
    block
        .split(|&byte| byte == 0)
        .take_while(|variable| !variable.is_empty())
        .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::test_kernel::Kernel;
    use crate::x86_64::firmware::VirtioMmio;

    fn kenv(kernel: &Kernel, cmdline: &str) -> Result<Kenv, BootError> {
        let virtio_mmio =
            [5, 6].map(|irq| VirtioMmio { base: layout::VIRTIO_MMIO + u32::from(irq - 5) * 0x1000, irq });
        let hardware = Hardware { cpus: 1, virtio_mmio: virtio_mmio.to_vec(), ..Default::default() };
        let with = Handover { cmdline: cmdline.into(), ..Default::default() };
        Kenv::new(&kernel.image(), &with, &hardware)
    }

    fn virtio(kernel: &Kernel, cmdline: &str) -> Vec<String> {
        let kenv = kenv(kernel, cmdline).unwrap();
        let of = kenv.variables().iter().filter(|(name, _)| name == "virtio_mmio.device");
        of.map(|(_, value)| value.clone()).collect()
    }

    #[test]
    fn virtio_devices_are_variables_only_for_kernels_without_acpi() {
        let devices = ["0x1000@0xd0000000:5", "0x1000@0xd0001000:6"];
        let plain = Kernel::default();
        assert_eq!(virtio(&plain, ""), [""; 0]);
        assert_eq!(virtio(&plain, "hint.acpi.0.disabled=1"), devices);
        let compiled = |env: &[u8]| Kernel { static_env: env.to_vec(), ..Kernel::default() };
        let firecracker = compiled(b"a=b\0hint.acpi.0.disabled=1\0\0");
        assert_eq!(virtio(&firecracker, ""), devices);
        assert_eq!(virtio(&firecracker, "hint.acpi.0.disabled=0"), [""; 0], "the user's word counts");
        assert_eq!(virtio(&firecracker, "virtio_mmio.device=mine"), ["mine"]);
        assert_eq!(virtio(&compiled(b"a=b\0\0hint.acpi.0.disabled=1\0"), ""), [""; 0], "behind its end");
        let without_acpi = Kernel { symbol: "vtmmio_cmdline_identify", ..Kernel::default() };
        assert_eq!(virtio(&without_acpi, ""), devices);
    }

    #[test]
    fn flags_are_variables_and_bits() {
        let kernel = Kernel::default();
        for (letter, _, bit) in FLAGS {
            let howto = kenv(&kernel, &format!("-{letter} console=vidconsole")).unwrap().howto();
            assert_eq!(howto, bit, "-{letter}");
        }
        let speed = kenv(&kernel, "-vS115200").unwrap();
        assert_eq!((speed.value("comconsole_speed"), speed.howto()), (Some("115200"), 0x1800));
        assert_eq!(kenv(&kernel, "boot_serial=no").unwrap().howto(), 0);
        assert!(matches!(kenv(&kernel, "-z"), Err(BootError::Flag { flag: 'z' })));
    }

    #[test]
    fn what_the_kernel_would_drop_is_refused() {
        let block = |name: &str, value: &str| Kenv(vec![(name.into(), value.into())]).block();
        assert_eq!(block("a", "b c,d").unwrap(), b"a=b c,d\0\0");
        for (name, value) in [("", "x"), ("a", "x\0"), ("a", &*"x".repeat(256))] {
            assert!(matches!(block(name, value), Err(BootError::Variable { .. })), "{name}={value}");
        }
        assert!(block("a", &"x".repeat(255)).is_ok());
        let many = Kenv(vec![("a".into(), "b".into()); 513]);
        assert!(matches!(many.block(), Err(BootError::TooManyVariables { count: 513, max: 512 })));
    }
}
