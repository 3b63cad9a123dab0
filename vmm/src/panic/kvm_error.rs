//! KVM cannot run the guest on: an internal error (such as an instruction that it cannot emulate) or a refused entry.
//! A guest that got there is lost, and what it did there is worth a dump.

use super::{ExitPanic, PanicSource, Places};
use crate::bus::BusError;
use crate::vcpu::Exit;

const NAME: &str = "kvm-error";

/// The source.
#[derive(Debug)]
pub(super) struct KvmError;

impl PanicSource for KvmError {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "KVM reports an internal error or a failed entry"
    }

    fn arm(&'static self, places: &mut Places<'_>) -> Result<(), BusError> {
        places.exits.push(recognise);
        Ok(())
    }
}

fn recognise(exit: &Exit) -> Option<ExitPanic> {
    let detail = match exit {
        Exit::InternalError { suberror: 1 } => "KVM could not emulate an instruction".into(),
        Exit::InternalError { suberror } => format!("KVM internal error, suberror {suberror}"),
        Exit::FailEntry { reason } => format!("the CPU refused to enter the guest, reason {reason:#x}"),
        Exit::Unexpected(what) => what.clone(),
        _ => return None,
    };
    Some(ExitPanic { source: NAME, detail, survivable: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_kvm_are_told_apart_from_other_exits() {
        let detail = |exit| recognise(&exit).map(|found| found.detail);
        assert_eq!(
            detail(Exit::InternalError { suberror: 1 }).unwrap(),
            "KVM could not emulate an instruction"
        );
        assert!(detail(Exit::InternalError { suberror: 3 }).unwrap().contains("suberror 3"));
        assert!(detail(Exit::FailEntry { reason: 0x8000_0021 }).unwrap().contains("0x80000021"));
        assert_eq!(detail(Exit::Shutdown), None);
        assert_eq!(detail(Exit::SystemEvent(1)), None);
    }
}
