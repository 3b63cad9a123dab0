//! The call chain of a CPU or a task, as the kernel itself would print it (`arch/x86/kernel/unwind_orc.c`), across the
//! registers that an interrupt, a fault or the stopping of a CPU saved on the stack.
//!
//! Where the tables say nothing the frame pointer is tried, then the rest of the stack is searched for addresses that calls
//! could have left; both are marked as unsure. A stack is hostile: a chain has at most [`MAX_FRAMES`].

use super::kernel::Kernel;
use super::modules::{Module, Modules};
use super::orc::{Base, Entry, Form, Kind, Tables};
use crate::facts::Frame;
use crate::vmcore::Registers;
use crate::vmcore::VirtualMemory;

/// Deeper chains are cut. Real ones have some 20 frames, overflowing stacks a few hundred.
const MAX_FRAMES: usize = 96;
/// Frames that a search of the stack may add.
const MAX_FOUND: usize = 24;
/// `THREAD_SIZE`: stacks of tasks and interrupts have this length and lie on multiples of it.
const STACK_LEN: u64 = 16 << 10;
/// Length of `struct pt_regs`.
const REGISTERS_LEN: usize = 168;
/// Privilege level in a code segment selector.
const USER_MODE: u64 = 3;
/// A call's instruction, at least: what a return address is behind of.
const CALL_LEN: u64 = 2;
/// Where the kernel half begins.
const KERNEL_HALF: u64 = 1 << 63;

/// What is needed to unwind a kernel's stacks.
#[derive(Debug)]
pub(super) struct Unwinder<'k, 'm> {
    kernel: &'k Kernel<'m>,
    modules: &'k Modules,
    tables: Option<Tables>,
    form: Form,
}

/// Registers that tables refer to.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    bp: Option<u64>,
    dx: Option<u64>,
    di: Option<u64>,
    r10: Option<u64>,
    r13: Option<u64>,
}

/// Where the unwinding is.
#[derive(Debug, Clone, Copy)]
struct State {
    ip: u64,
    sp: u64,
    bp: u64,
    /// Whether `ip` is of the next instruction, not of one behind a call.
    is_exact: bool,
    /// What else is known of the registers at this place.
    known: Known,
    /// The registers before an interrupt in an entry of which only a part of them is saved.
    before: Known,
    in_user_mode: bool,
    is_unsure: bool,
}

impl<'k, 'm> Unwinder<'k, 'm> {
    pub(super) fn new(kernel: &'k Kernel<'m>, modules: &'k Modules) -> Self {
        Self { kernel, modules, tables: Tables::of_image(kernel), form: Form::of(kernel) }
    }

    /// Whether the kernel has the tables.
    pub(super) fn has_tables(&self) -> bool {
        self.tables.is_some()
    }

    /// The chain of a CPU that stopped with these registers.
    pub(super) fn of_cpu(&self, registers: &Registers) -> Vec<Frame> {
        let known = Known {
            bp: Some(registers.rbp),
            dx: Some(registers.rdx),
            di: Some(registers.rdi),
            r10: Some(registers.r10),
            r13: Some(registers.r13),
        };
        self.chain(State {
            ip: registers.rip,
            sp: registers.rsp,
            bp: registers.rbp,
            is_exact: true,
            known,
            before: Known::default(),
            in_user_mode: u64::from(registers.cs.selector) & USER_MODE == USER_MODE,
            is_unsure: false,
        })
    }

    /// The chain of a task that was switched away from, at these registers.
    pub(super) fn of_switched(&self, ip: u64, sp: u64, bp: u64) -> Vec<Frame> {
        let is_exact = self.kernel.variable("ret_from_fork_asm") == Some(ip);
        let known = Known::default();
        self.chain(State {
            ip,
            sp,
            bp,
            is_exact,
            known,
            before: known,
            in_user_mode: false,
            is_unsure: false,
        })
    }

    fn chain(&self, start: State) -> Vec<Frame> {
        let mut state = start;
        let mut frames = vec![self.frame(&state, false)];
        while frames.len() < MAX_FRAMES && !state.in_user_mode {
            match self.step(&state) {
                Step::To(next) => {
                    frames.push(self.frame(&next, next.is_exact));
                    state = next;
                }
                Step::End => break,
                Step::Lost => {
                    self.search(state.sp, &mut frames);
                    break;
                }
            }
        }
        frames
    }

    fn step(&self, state: &State) -> Step {
        let inside = if state.is_exact { state.ip } else { state.ip.wrapping_sub(1) };
        if !self.is_code(inside) {
            return self.behind_bad_jump(state);
        }
        match self.entry(inside) {
            Some(entry) => self.by_entry(state, &entry),
            None => self.by_frame_pointer(state),
        }
    }

    /// A jump to where no code is: what called it is on top of the stack, as nothing was pushed since.
    fn behind_bad_jump(&self, state: &State) -> Step {
        let Some(ip) = self.word(state.sp).filter(|&ip| state.is_exact && self.is_return(ip)) else {
            return Step::Lost;
        };
        let (sp, known) = (state.sp.wrapping_add(8), Known::default());
        // A null pointer was called, not jumped through: the kernel itself trusts in that.
        let is_unsure = state.is_unsure || state.ip != 0;
        Step::To(State { ip, sp, is_exact: false, known, is_unsure, ..*state })
    }

    fn by_entry(&self, state: &State, entry: &Entry) -> Step {
        let sp_offset = i64::from(entry.sp_offset);
        let known = |value: Option<u64>| value.map(|value| value.wrapping_add_signed(sp_offset));
        let sp = match (entry.kind, entry.sp) {
            (Kind::End, _) => return Step::End,
            (Kind::Undefined, _) | (_, Base::Undefined | Base::PreviousSp) => return Step::Lost,
            (_, Base::Sp) => Some(state.sp.wrapping_add_signed(sp_offset)),
            (_, Base::Bp) => Some(state.bp.wrapping_add_signed(sp_offset)),
            (_, Base::SpIndirect) => known(self.word(state.sp)),
            (_, Base::BpIndirect) => self.word(state.bp.wrapping_add_signed(sp_offset)),
            (_, Base::R10) => known(state.known.r10.or(state.before.r10)),
            (_, Base::R13) => known(state.known.r13.or(state.before.r13)),
            (_, Base::Di) => known(state.known.di.or(state.before.di)),
            (_, Base::Dx) => known(state.known.dx.or(state.before.dx)),
        };
        let Some(sp) = sp.filter(|&sp| sp >= KERNEL_HALF) else { return Step::Lost };
        let next = match entry.kind {
            Kind::Call => self.called_from(state, sp),
            Kind::Registers => self.registers_at(state, sp),
            Kind::PartialRegisters => self.partial_registers_at(state, sp),
            Kind::Undefined | Kind::End => None,
        };
        let Some(mut next) = next else { return Step::Lost };
        let bp_offset = i64::from(entry.bp_offset);
        let bp = match entry.bp {
            Base::PreviousSp => self.word(sp.wrapping_add_signed(bp_offset)),
            Base::Bp => self.word(state.bp.wrapping_add_signed(bp_offset)),
            _ => next.known.bp.filter(|_| entry.kind != Kind::Call).or(Some(state.bp)),
        };
        next.bp = bp.unwrap_or_default();
        next.is_exact = entry.signal.unwrap_or(entry.kind != Kind::Call);
        if is_stuck(state, &next) { Step::Lost } else { Step::To(next) }
    }

    fn called_from(&self, state: &State, sp: u64) -> Option<State> {
        let ip = self.word(sp.wrapping_sub(8)).filter(|&ip| self.is_return(ip) || self.is_trampoline(ip))?;
        Some(State { ip, sp, is_exact: false, known: Known::default(), before: Known::default(), ..*state })
    }

    fn registers_at(&self, state: &State, address: u64) -> Option<State> {
        let mut bytes = [0; REGISTERS_LEN];
        self.kernel.memory().read(address, &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        let word = |index: usize| u64::from_le_bytes(words[index]);
        let known = Known {
            bp: Some(word(4)),
            dx: Some(word(12)),
            di: Some(word(14)),
            r10: Some(word(7)),
            r13: Some(word(2)),
        };
        let (ip, cs, sp) = (word(16), word(17), word(19));
        let in_user_mode = cs & USER_MODE == USER_MODE;
        Some(State { ip, sp, is_exact: true, known, before: Known::default(), in_user_mode, ..*state })
    }

    fn partial_registers_at(&self, state: &State, address: u64) -> Option<State> {
        let word = |index: u64| self.word(address.wrapping_add(8 * index));
        let in_user_mode = word(1)? & USER_MODE == USER_MODE;
        // What was saved in full before still stands, unless this entry has saved it too.
        let before = if state.known.bp.is_some() { state.known } else { state.before };
        let known = Known::default();
        Some(State { ip: word(0)?, sp: word(3)?, is_exact: true, known, before, in_user_mode, ..*state })
    }

    fn by_frame_pointer(&self, state: &State) -> Step {
        let is_on_stack = (state.sp..=state.sp.saturating_add(STACK_LEN)).contains(&state.bp);
        let pair = || Some((self.word(state.bp)?, self.word(state.bp.checked_add(8)?)?));
        match pair().filter(|&(_, ip)| is_on_stack && self.is_return(ip)) {
            Some((bp, ip)) => {
                let sp = state.bp.wrapping_add(16);
                let known = Known::default();
                Step::To(State { ip, sp, bp, is_exact: false, known, is_unsure: true, ..*state })
            }
            None => Step::Lost,
        }
    }

    /// What calls could have left on the rest of the stack.
    fn search(&self, from: u64, frames: &mut Vec<Frame>) {
        let end = (from | (STACK_LEN - 1)).saturating_sub(7);
        let mut at = from.next_multiple_of(8);
        let mut found = 0;
        while at <= end && found < MAX_FOUND && frames.len() < MAX_FRAMES {
            let Some(ip) = self.word(at) else { break };
            if self.is_return(ip) {
                frames.push(self.named(ip, ip.wrapping_sub(1), Frame { unsure: true, ..Frame::default() }));
                found += 1;
            }
            at += 8;
        }
    }

    fn entry(&self, code: u64) -> Option<Entry> {
        let tables = match self.modules.at(code) {
            Some(module) => module.orc?,
            None => self.tables?,
        };
        tables.entry(self.kernel.memory(), self.form, code)
    }

    fn is_code(&self, address: u64) -> bool {
        self.kernel.is_code(address) || self.modules.at(address).is_some()
    }

    /// Whether a call could have left this address: it is in code, and not the first byte of a function.
    fn is_return(&self, address: u64) -> bool {
        let inside = address.wrapping_sub(1);
        self.is_code(inside) && self.function(inside).is_none_or(|(_, offset)| offset + 1 >= CALL_LEN)
    }

    /// Where the return address was exchanged by the kernel's tracing, the chain goes on behind.
    fn is_trampoline(&self, address: u64) -> bool {
        ["arch_rethook_trampoline", "return_to_handler"]
            .iter()
            .any(|name| self.kernel.variable(name) == Some(address))
    }

    fn frame(&self, state: &State, interrupted: bool) -> Frame {
        let flags = Frame {
            interrupted: interrupted && !state.in_user_mode,
            unsure: state.is_unsure,
            user_mode: state.in_user_mode,
            ..Frame::default()
        };
        let inside = if state.is_exact { state.ip } else { state.ip.wrapping_sub(1) };
        if state.in_user_mode {
            Frame { address: state.ip, ..flags }
        } else {
            self.named(state.ip, inside, flags)
        }
    }

    /// The frame with the name of the function that holds `inside`.
    fn named(&self, address: u64, inside: u64, frame: Frame) -> Frame {
        let place = self.function(inside);
        Frame {
            address,
            module: self.modules.at(inside).map(|module: &Module| module.name.clone()),
            offset: place.as_ref().map(|(_, offset)| offset + (address - inside)),
            function: place.map(|(name, _)| name),
            ..frame
        }
    }

    fn function(&self, address: u64) -> Option<(String, u64)> {
        match self.modules.at(address) {
            Some(module) => self.modules.function_at(self.kernel, module, address),
            None => self.kernel.function_at(address).map(|place| (place.function, place.offset)),
        }
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.kernel.memory().read_u64(address)
    }
}

/// Where a step leads.
enum Step {
    To(State),
    /// There is nothing before.
    End,
    /// What is before cannot be told.
    Lost,
}

/// Stacks grow down, so that on one stack every frame lies above the one before.
fn is_stuck(state: &State, next: &State) -> bool {
    !next.in_user_mode && next.sp / STACK_LEN == state.sp / STACK_LEN && next.sp <= state.sp
}
