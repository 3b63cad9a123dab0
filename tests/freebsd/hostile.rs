//! Guests whose variables and tables are damaged, or lie: the dump ends in time, its core opens, and what was wrong is
//! said.

use std::time::Duration;

use guest_images::PatternPage;
use guest_images::freebsd::{KERNBASE, PANIC_BACKTRACE, PANIC_TEXT, STOPPED_BACKTRACE};
use harness::programs::{arg, program, run};
use harness::readers::freebsd::VirtualMemory;
use harness::readers::full::FullCore;
use harness::readers::minidump::MiniCore;

use crate::needs;
use crate::specimen::{Specimen, assert_pattern};

/// A run of the guest takes one second, on a busy machine a few; a dump that follows damage wherever it leads, for ever.
const IN_TIME: Duration = Duration::from_secs(30);

/// A guest with this damage, dumped as a minidump that says so.
fn damaged(damage: &str, variables: &[&str], remark: &str) -> (Specimen, MiniCore) {
    let damage = format!("abi.hostile={damage}");
    let variables = [&[damage.as_str()], variables].concat();
    let specimen = Specimen::dumped_with_4_cpus("freebsd-abi", &variables, &[]);
    assert!(specimen.ended.took < IN_TIME, "{damage}: {:?}", specimen.ended.took);
    specimen.assert_remark(remark);
    let core = specimen.minidump();
    assert_inspected_in_time(&specimen);
    (specimen, core)
}

/// `netdump inspect` with the symbols goes through the same damage.
fn assert_inspected_in_time(specimen: &Specimen) {
    let (kernel, core) = (specimen.bench.image(), specimen.core_path());
    let ended = run(program("netdump"), &["inspect", "--all-threads", "--kernel", arg(&kernel), arg(&core)]);
    harness::guests::assert_code(&ended, 0);
    assert!(ended.took < IN_TIME, "{:?}", ended.took);
    assert!(ended.stdout.contains(PANIC_TEXT), "{}", ended.stdout);
}

fn assert_patterns(specimen: &Specimen, core: &MiniCore) {
    for page in specimen.pattern_pages(core).iter().filter(|page| page.reach.is_dumped()) {
        assert_pattern(page.physical_address, &core.read_pa(page.physical_address, 4096).unwrap());
    }
}

#[test]
fn a_message_buffer_of_absurd_size_is_left_out() {
    needs!(Kvm);
    let (specimen, core) = damaged("msgbuf", &[], "the kernel's message buffer cannot be found");
    assert_eq!(core.header().msgbufsize, 0);
    specimen.check_threads(&core);
    assert_patterns(&specimen, &core);
}

#[test]
fn a_dump_avail_that_makes_no_sense_is_replaced_by_what_the_host_knows() {
    needs!(Kvm);
    let (specimen, core) = damaged("dump_avail", &[], "the kernel's dump_avail is damaged");
    specimen.check_threads(&core);
    let ram: Vec<(u64, u64)> = serde_json::from_value(specimen.report["memory"].clone()).unwrap();
    assert_eq!(core.dump_avail(), ram);
    assert_patterns(&specimen, &core);
}

#[test]
fn a_bitmap_that_points_nowhere_is_not_followed() {
    needs!(Kvm);
    let (specimen, core) = damaged("bitmap", &[], "vm_page_dump at 0xfffffdffdeadb000 cannot be read");
    specimen.check_threads(&core);
    let all: u64 = core.dump_avail().iter().map(|(start, end)| (end - start) / 4096).sum();
    assert_eq!(core.pages().len() as u64, all);
    assert_patterns(&specimen, &core);
}

#[test]
fn stoppcbs_that_point_nowhere_cost_no_more_than_their_registers() {
    needs!(Kvm);
    let (specimen, core) =
        damaged("stoppcbs", &["abi.stop=no"], "will not find the registers of CPU 0, 1, 3");
    let dumppcb = specimen.symbols.address("dumppcb").unwrap();
    let chain = specimen.backtrace(&core, dumppcb);
    assert_eq!(specimen.stopped_cpus(&core), 0);
    assert!(crate::specimen::ends_with(&chain, PANIC_BACKTRACE), "{chain:?}");
    assert_patterns(&specimen, &core);
}

#[test]
fn tables_that_point_at_themselves_are_gone_through_once() {
    needs!(Kvm);
    let (specimen, core) = damaged("tables", &[], "of the kernel's page tables cannot be read");
    specimen.check_threads(&core);
    assert_patterns(&specimen, &core);
    let all: u64 = core.dump_avail().iter().map(|(start, end)| (end - start) / 4096).sum();
    assert!((core.pages().len() as u64) < all);
}

#[test]
fn limits_that_cannot_be_cut_nothing_off() {
    needs!(Kvm);
    let (specimen, core) = damaged("limits", &[], "dmaplimit of 0x1000 leaves out its own page tables");
    specimen.check_threads(&core);
    assert_patterns(&specimen, &core);
    // A page for each GiB from the first kernel address to the end of all.
    assert_eq!(core.header().pmapsize, 2048 * 4096);
}

#[test]
fn cpus_whose_data_cannot_be_found_are_named() {
    needs!(Kvm);
    let (specimen, core) = damaged("pcpu", &[], "the registers of virtual CPU 0, 1, 2, 3: ");
    let others = specimen.others(&core);
    // No thread is the one that dumped; what the guest itself saved is still there.
    assert_eq!((others.len(), specimen.stopped_cpus(&core)), (4, 0b1011));
    for thread in others.iter().filter(|thread| thread.oncpu != 2) {
        assert_eq!(specimen.backtrace(&core, thread.pcb), STOPPED_BACKTRACE, "{thread:?}");
    }
    assert_patterns(&specimen, &core);
}

#[test]
fn a_process_that_follows_itself_is_listed_once() {
    needs!(Kvm);
    let specimen = Specimen::dumped("freebsd-abi", &["abi.hostile=allproc"], &[]);
    assert!(specimen.ended.took < IN_TIME, "{:?}", specimen.ended.took);
    let core = specimen.minidump();
    assert_patterns(&specimen, &core);
    assert_inspected_in_time(&specimen);
}

#[test]
fn a_kernel_whose_tables_are_lost_gets_a_full_dump() {
    needs!(Kvm);
    let specimen = Specimen::dumped("freebsd-abi", &["abi.hostile=root"], &[]);
    assert!(specimen.ended.took < IN_TIME, "{:?}", specimen.ended.took);
    assert_eq!(specimen.report["core_format"], "full");
    specimen.assert_remark("no minidump core: the kernel's page tables cannot be found");
    specimen.verify();
    // Its readers need the tables too; the memory is there.
    let core = FullCore::open(&specimen.core_path(), &specimen.symbols).unwrap();
    assert!(core.translate(specimen.symbols.address("version").unwrap()).is_err());
    let list = specimen.symbols.address("pattern_pages").unwrap() - KERNBASE;
    let list = core.read_pa(list, PatternPage::LIST_SIZE).unwrap();
    for page in PatternPage::parse_list(&list).unwrap() {
        assert_pattern(page.physical_address, &core.read_pa(page.physical_address, 4096).unwrap());
    }
    assert_inspected_in_time(&specimen);
}
