//! Damage on order: what a dumper from outside must survive. kernel.s writes the words when the guest needs them no more,
//! so that the guest itself never trips over them.

use crate::flavour;
use crate::freebsd::offsets;
use crate::kenv;
use crate::pages::DMAP;
use crate::paging::{self, TABLE};
use crate::variables::{
    KPML4phys, allproc, cpuid_to_pcpu, dmaplimit, dump_avail, kernel_vm_end, mp_maxid, msgbufp, order_damage,
    stoppcbs, vm_page_dump,
};

/// A kernel address that nothing is mapped at.
const WILD: u64 = 0xffff_fdff_dead_b000;
/// A physical address that no guest has RAM at.
const FAR: u64 = 0x000f_ffff_dead_b000;
const MESSAGE_MAGIC: u64 = 0x06_3062;
/// Slots of the PML4 that no CPU uses while it panics.
const SPARE_SLOTS: [u64; 2] = [509, 510];

/// What `abi.hostile` says is damaged.
#[derive(Clone, Copy)]
enum Damage {
    None,
    /// `struct msgbuf` claims nearly 4 GiB of text.
    Messages,
    /// A range of `dump_avail` ends before it begins.
    Available,
    /// `vm_page_dump` points at nothing.
    Bitmap,
    /// `stoppcbs` points at nothing; only where it is a pointer.
    Stops,
    /// Tables that are their own entries, the root among them, and one that is not in RAM.
    Tables,
    /// `KPML4phys` is no address of RAM.
    Root,
    /// Kernel addresses have no end, and the direct map shows one page.
    Limits,
    /// `cpuid_to_pcpu` points at nothing for four CPUs.
    Cpus,
    /// The first process is its own successor.
    Processes,
}

const CHOICES: [(&str, Damage); 10] = [
    ("no", Damage::None),
    ("msgbuf", Damage::Messages),
    ("dump_avail", Damage::Available),
    ("bitmap", Damage::Bitmap),
    ("stoppcbs", Damage::Stops),
    ("tables", Damage::Tables),
    ("root", Damage::Root),
    ("limits", Damage::Limits),
    ("pcpu", Damage::Cpus),
    ("allproc", Damage::Processes),
];

/// Gives the orders.
pub fn order() {
    match kenv::choice("abi.hostile", &CHOICES) {
        Damage::None => {}
        Damage::Messages => set(&[[msgbufp.read() + 8, 0xffff_fff0 << 32 | MESSAGE_MAGIC]]),
        Damage::Available => {
            set(&[[dump_avail.address() + 16, 0x7fff_f000], [dump_avail.address() + 24, 0x1000]])
        }
        Damage::Bitmap => set(&[[vm_page_dump.address(), WILD]]),
        Damage::Stops => {
            assert!(flavour::STOPPCBS_SIZE == 8, "stoppcbs is no pointer in this flavour");
            set(&[[stoppcbs.address(), WILD]]);
        }
        Damage::Tables => {
            let root = KPML4phys.read();
            let directory = paging::empty_directory();
            let [first, second] = SPARE_SLOTS.map(|slot| [DMAP + root + 8 * slot, root | TABLE]);
            let to_itself = [directory.va, directory.pa | TABLE];
            set(&[first, second, to_itself, [directory.va + 8, FAR | TABLE]]);
        }
        Damage::Root => set(&[[KPML4phys.address(), FAR]]),
        Damage::Limits => set(&[[kernel_vm_end.address(), u64::MAX], [dmaplimit.address(), 0x1000]]),
        Damage::Cpus => {
            let entries = [0, 1, 2, 3].map(|cpu| [cpuid_to_pcpu.address() + 8 * cpu, WILD]);
            set(&entries[..=mp_maxid.read().min(3) as usize]);
        }
        Damage::Processes => set(&[[allproc.read() + offsets::P_LIST as u64, allproc.read()]]),
    }
}

fn set(damage: &[[u64; 2]]) {
    damage.iter().enumerate().for_each(|(place, &word)| order_damage.set(place, word));
}
