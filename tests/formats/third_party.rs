//! Cores in other people's tools: gdb and binutils' readelf.

use std::process::Command;

use harness::fake_guest::FakeGuest;
use netdump::vmcore::{PhysicalMemory, Registers};

use super::{guest, notes, plan, store, stored};

/// What a tool prints; `None` when it is not installed, which is said.
fn output(tool: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(tool).args(arguments).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some(String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) => {
            assert!(
                !std::env::var("REQUIRE").is_ok_and(|levels| levels.split(',').any(|level| level == "tools")),
                "{tool}: {error}"
            );
            println!("SKIPPED: {tool} cannot be run: {error}");
            None
        }
    }
}

fn gdb(core: &str, commands: &[&str]) -> Option<String> {
    let mut arguments = vec!["-nx", "-batch", "-c", core];
    arguments.extend(commands.iter().flat_map(|command| ["-ex", command]));
    output("gdb", &arguments)
}

#[test]
fn gdb_shows_the_registers_of_every_cpu() {
    let (path, _directory) = stored();
    let show =
        "thread apply all -ascending printf \"is %lx %lx %lx %lx %x\\n\", $rip, $rsp, $rax, $gs_base, $cs";
    let Some(text) = gdb(path.to_str().unwrap(), &[show]) else { return };
    assert!(!text.contains("warning"), "{text}");
    let shown: Vec<&str> = text.lines().filter(|line| line.starts_with("is ")).collect();
    let none = Registers::default();
    let expected: Vec<String> = guest()
        .cpus()
        .iter()
        .map(|cpu| cpu.registers.as_deref().unwrap_or(&none))
        .map(|r| format!("is {:x} {:x} {:x} {:x} {:x}", r.rip, r.rsp, r.rax, r.gs.base, r.cs.selector))
        .collect();
    assert_eq!(shown, expected, "{text}");
}

#[test]
fn gdb_shows_vector_registers_of_the_right_cpu() {
    let (path, _directory) = stored();
    let show = "printf \"is %lx\\n\", $xmm3.v2_int64[0]";
    let Some(text) = gdb(path.to_str().unwrap(), &["thread 1", show, "thread 2", show]) else { return };
    // XMM3 lies at byte 160 + 3 * 16 of the XSAVE area.
    let expected: Vec<String> = guest().cpus()[..2]
        .iter()
        .map(|cpu| cpu.registers.as_ref().unwrap().xsave[208..216].try_into().unwrap())
        .map(|bytes| format!("is {:x}", u64::from_le_bytes(bytes)))
        .collect();
    let shown: Vec<&str> = text.lines().filter(|line| line.starts_with("is ")).collect();
    assert_eq!(shown, expected, "{text}");
}

/// What gdb says of AVX's part of an XSAVE area that KVM could have given: 4096 bytes.
fn shown_ymm0(xcr0: u8, in_use: u8) -> Option<String> {
    let mut registers = *guest().cpus()[0].registers.clone().unwrap();
    registers.xsave.resize(4096, 0);
    registers.xsave[464] = xcr0;
    registers.xsave[512] = in_use;
    let guest = FakeGuest::new(7).ram(0, 0x1000).cpu_with(registers);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    store(&plan(&guest, &notes()), &path);
    let text = gdb(path.to_str().unwrap(), &["printf \"is %x\\n\", $ymm0.v8_int32[7]"])?;
    assert!(!text.contains("warning"), "{text}");
    Some(text.lines().find_map(|line| line.strip_prefix("is ")).unwrap_or(&text).to_owned())
}

#[test]
fn gdb_takes_kvms_xsave_areas_without_complaint() {
    // The upper half of YMM0 begins at byte 576.
    let area = guest().cpus()[0].registers.clone().unwrap().xsave;
    let word = u32::from_le_bytes(area[588..592].try_into().unwrap());
    for (xcr0, in_use) in [(7, 7), (0xe7, 7), (0, 7)] {
        let Some(shown) = shown_ymm0(xcr0, in_use) else { return };
        assert_eq!(shown, format!("{word:x}"), "XCR0 {xcr0:#x}");
    }
}

#[test]
fn gdb_reads_guest_memory_at_its_physical_address() {
    let (path, _directory) = stored();
    let Some(text) = gdb(path.to_str().unwrap(), &["x/2xg 0x9eff0", "x/1xg 0x100002000"]) else { return };
    let guest = guest();
    let word = |address: u64| u64::from_le_bytes(std::array::from_fn(|i| guest.byte(address + i as u64)));
    for address in [0x9_eff0, 0x9_eff8, 0x1_0000_2000] {
        assert!(text.contains(&format!("{:016x}", word(address))), "{address:#x}: {text}");
    }
}

#[test]
fn readelf_lists_segments_and_notes_without_complaint() {
    let (path, _directory) = stored();
    let Some(text) = output("readelf", &["-lnW", path.to_str().unwrap()]) else { return };
    assert!(!text.contains("Warning") && !text.contains("Error"), "{text}");
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("LOAD ")).count(), 3, "{text}");
    for (owner, count) in [("CORE", 3), ("LINUX", 2), ("QEMU", 3), ("NETDUMP", 1)] {
        let notes = text.lines().filter(|line| line.split_whitespace().next() == Some(owner));
        assert_eq!(notes.count(), count, "{owner}: {text}");
    }
}
