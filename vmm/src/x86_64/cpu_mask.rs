//! CPU features that are hidden from the guest. Names are those of Linux's `/proc/cpuinfo`; KVM's own features are
//! named as in Linux `arch/x86/include/uapi/asm/kvm_para.h`.

use std::str::FromStr;

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;

/// A register of a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Where a feature is told: leaf, subleaf, register, bits.
#[derive(Debug, PartialEq, Eq)]
struct Feature {
    name: &'static str,
    leaf: u32,
    index: u32,
    register: Register,
    bits: u32,
}

const fn feature(name: &'static str, (leaf, index): (u32, u32), register: Register, bit: u32) -> Feature {
    Feature { name, leaf, index, register, bits: 1 << bit }
}

const BASIC: (u32, u32) = (1, 0);
const STRUCTURED: (u32, u32) = (7, 0);
const STRUCTURED_1: (u32, u32) = (7, 1);
const XSAVE: (u32, u32) = (0xd, 1);
const EXTENDED: (u32, u32) = (0x8000_0001, 0);
const POWER: (u32, u32) = (0x8000_0007, 0);
const SPECULATION: (u32, u32) = (0x8000_0008, 0);
const KVM: (u32, u32) = (0x4000_0001, 0);

/// Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; KVM's `cpuid.rst`.
static FEATURES: &[Feature] = &[
    feature("pcid", BASIC, Ecx, 17),
    feature("pclmulqdq", BASIC, Ecx, 1),
    feature("ssse3", BASIC, Ecx, 9),
    feature("fma", BASIC, Ecx, 12),
    feature("sse4_1", BASIC, Ecx, 19),
    feature("sse4_2", BASIC, Ecx, 20),
    feature("x2apic", BASIC, Ecx, 21),
    feature("movbe", BASIC, Ecx, 22),
    feature("popcnt", BASIC, Ecx, 23),
    feature("tsc_deadline_timer", BASIC, Ecx, 24),
    feature("aes", BASIC, Ecx, 25),
    feature("xsave", BASIC, Ecx, 26),
    feature("avx", BASIC, Ecx, 28),
    feature("f16c", BASIC, Ecx, 29),
    feature("rdrand", BASIC, Ecx, 30),
    feature("vmx", BASIC, Ecx, 5),
    feature("fsgsbase", STRUCTURED, Ebx, 0),
    feature("tsc_adjust", STRUCTURED, Ebx, 1),
    feature("bmi1", STRUCTURED, Ebx, 3),
    feature("avx2", STRUCTURED, Ebx, 5),
    feature("smep", STRUCTURED, Ebx, 7),
    feature("bmi2", STRUCTURED, Ebx, 8),
    feature("erms", STRUCTURED, Ebx, 9),
    feature("invpcid", STRUCTURED, Ebx, 10),
    feature("avx512f", STRUCTURED, Ebx, 16),
    feature("avx512dq", STRUCTURED, Ebx, 17),
    feature("rdseed", STRUCTURED, Ebx, 18),
    feature("smap", STRUCTURED, Ebx, 20),
    feature("clflushopt", STRUCTURED, Ebx, 23),
    feature("clwb", STRUCTURED, Ebx, 24),
    feature("sha_ni", STRUCTURED, Ebx, 29),
    feature("avx512bw", STRUCTURED, Ebx, 30),
    feature("avx512vl", STRUCTURED, Ebx, 31),
    feature("umip", STRUCTURED, Ecx, 2),
    feature("pku", STRUCTURED, Ecx, 3),
    feature("gfni", STRUCTURED, Ecx, 8),
    feature("vaes", STRUCTURED, Ecx, 9),
    feature("vpclmulqdq", STRUCTURED, Ecx, 10),
    feature("la57", STRUCTURED, Ecx, 16),
    feature("rdpid", STRUCTURED, Ecx, 22),
    feature("fsrm", STRUCTURED, Edx, 4),
    feature("amx_tile", STRUCTURED, Edx, 24),
    feature("spec_ctrl", STRUCTURED, Edx, 26),
    feature("arch_capabilities", STRUCTURED, Edx, 29),
    feature("ssbd", STRUCTURED, Edx, 31),
    feature("avx_vnni", STRUCTURED_1, Eax, 4),
    feature("avx512_bf16", STRUCTURED_1, Eax, 5),
    feature("xsaveopt", XSAVE, Eax, 0),
    feature("xsavec", XSAVE, Eax, 1),
    feature("xsaves", XSAVE, Eax, 3),
    feature("svm", EXTENDED, Ecx, 2),
    feature("sse4a", EXTENDED, Ecx, 6),
    feature("nx", EXTENDED, Edx, 20),
    feature("pdpe1gb", EXTENDED, Edx, 26),
    feature("rdtscp", EXTENDED, Edx, 27),
    feature("constant_tsc", POWER, Edx, 8),
    feature("ibpb", SPECULATION, Ebx, 12),
    feature("ibrs", SPECULATION, Ebx, 14),
    // Two interfaces, the old and the new one.
    Feature { name: "kvmclock", leaf: KVM.0, index: KVM.1, register: Eax, bits: 1 << 0 | 1 << 3 | 1 << 24 },
    feature("kvm_async_pf", KVM, Eax, 4),
    feature("kvm_steal_time", KVM, Eax, 5),
    feature("kvm_pv_eoi", KVM, Eax, 6),
    feature("kvm_pv_unhalt", KVM, Eax, 7),
    feature("kvm_pv_tlb_flush", KVM, Eax, 9),
    feature("kvm_async_pf_vmexit", KVM, Eax, 10),
    feature("kvm_pv_send_ipi", KVM, Eax, 11),
    feature("kvm_poll_control", KVM, Eax, 12),
    feature("kvm_pv_sched_yield", KVM, Eax, 13),
    feature("kvm_async_pf_int", KVM, Eax, 14),
];

/// Hidden unless it is asked for. Five-level paging makes every page walk longer, and not every reader of cores knows it.
const HIDDEN: &str = "la57";

/// One word of `--cpu-mask`: a feature to hide or, with a plus sign, to show although it is hidden by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskWord {
    feature: &'static Feature,
    shows: bool,
}

/// The text names no feature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no CPU feature '{name}' that can be hidden; there are {}", names())]
pub struct ParseMaskError {
    name: String,
}

fn names() -> String {
    FEATURES.iter().map(|feature| feature.name).collect::<Vec<_>>().join(", ")
}

impl FromStr for MaskWord {
    type Err = ParseMaskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, shows) = text.strip_prefix('+').map_or((text, false), |name| (name, true));
        let feature = FEATURES.iter().find(|feature| feature.name == name);
        feature.map(|feature| Self { feature, shows }).ok_or_else(|| ParseMaskError { name: name.to_owned() })
    }
}

/// The features that a guest does not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuMask(Vec<&'static Feature>);

impl Default for CpuMask {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl CpuMask {
    /// What is hidden by default, as these words change it; the last word on a feature counts.
    pub fn new(words: &[MaskWord]) -> Self {
        let is_hidden = |feature: &&Feature| {
            let word = words.iter().rfind(|word| word.feature.name == feature.name);
            word.map_or(feature.name == HIDDEN, |word| !word.shows)
        };
        Self(FEATURES.iter().filter(is_hidden).collect())
    }

    /// Takes them out of a CPUID table.
    pub(crate) fn apply(&self, table: &mut [kvm_cpuid_entry2]) {
        for entry in table {
            for feature in self.0.iter().filter(|f| (f.leaf, f.index) == (entry.function, entry.index)) {
                let register = match feature.register {
                    Eax => &mut entry.eax,
                    Ebx => &mut entry.ebx,
                    Ecx => &mut entry.ecx,
                    Edx => &mut entry.edx,
                };
                *register &= !feature.bits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Vec<kvm_cpuid_entry2> {
        let leaf = |(function, index)| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        [BASIC, STRUCTURED, STRUCTURED_1, XSAVE, EXTENDED, POWER, SPECULATION, KVM].map(leaf).to_vec()
    }

    /// The bits that are gone: leaf, subleaf, and each register's.
    fn hidden(words: &[&str]) -> Vec<(u32, u32, [u32; 4])> {
        let words: Vec<MaskWord> = words.iter().map(|word| word.parse().unwrap()).collect();
        let mut table = full();
        CpuMask::new(&words).apply(&mut table);
        let gone = |e: &kvm_cpuid_entry2| (e.function, e.index, [e.eax, e.ebx, e.ecx, e.edx].map(|r| !r));
        table.iter().map(gone).filter(|(_, _, bits)| *bits != [0; 4]).collect()
    }

    #[test]
    fn five_level_paging_is_hidden_unless_it_is_asked_for() {
        assert_eq!(hidden(&[]), [(7, 0, [0, 0, 1 << 16, 0])]);
        assert_eq!(hidden(&["+la57"]), []);
        assert_eq!(hidden(&["+la57", "la57"]), hidden(&[]));
    }

    #[test]
    fn features_are_hidden_by_their_names() {
        let found = hidden(&["avx2", "kvmclock", "nx", "+la57"]);
        assert_eq!(
            found,
            [
                (7, 0, [0, 1 << 5, 0, 0]),
                (0x8000_0001, 0, [0, 0, 0, 1 << 20]),
                (0x4000_0001, 0, [0x0100_0009, 0, 0, 0])
            ]
        );
    }

    #[test]
    fn each_name_is_one_feature_and_each_bit_has_one_name() {
        let mut seen = std::collections::HashSet::new();
        for feature in FEATURES {
            assert!(seen.insert((feature.leaf, feature.index, feature.register as u8, feature.bits)));
            let word: MaskWord = feature.name.parse().unwrap();
            assert_eq!(word.feature, feature, "{} is there twice", feature.name);
        }
    }

    #[test]
    fn unknown_features_are_refused_with_the_names_that_there_are() {
        let refused = "avx3".parse::<MaskWord>().unwrap_err().to_string();
        assert!(refused.starts_with("there is no CPU feature 'avx3' that can be hidden; there are pcid, "));
    }
}
