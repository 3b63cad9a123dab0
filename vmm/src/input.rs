//! The terminal as the guest's keyboard: what is typed goes to the serial port, one key at a time and without local
//! echo. Signals stay with the host: Ctrl-C ends the VMM. Input that is no terminal is left alone, and so is a terminal
//! that belongs to another job: touching it would stop this process.

use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, read, tcgetpgrp};

use crate::devices::serial::SerialPort;

/// How long input waits that the guest cannot take. Its serial port tells nobody when there is room again, so it is
/// looked at: often enough for a paste to flow, seldom enough to cost nothing.
const HOLD_BACK: Duration = Duration::from_millis(10);

/// Standard input, if it is a terminal; its mode is restored in the end.
#[derive(Debug)]
pub(crate) struct Input {
    terminal: Option<Terminal>,
    held_back_until: Option<Instant>,
}

#[derive(Debug)]
struct Terminal {
    fd: OwnedFd,
    before: Termios,
}

impl Input {
    /// Takes the terminal.
    pub(crate) fn open() -> Self {
        let stdin = stdin();
        if !stdin.is_terminal() || !in_foreground(&stdin) {
            return Self { terminal: None, held_back_until: None };
        }
        let terminal = stdin.as_fd().try_clone_to_owned().ok().and_then(Terminal::switch);
        Self { terminal, held_back_until: None }
    }

    /// What to poll; nothing while input is held back.
    pub(crate) fn fd(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        let terminal = self.terminal.as_ref().filter(|_| self.held_back_until(now).is_none());
        terminal.map(|terminal| terminal.fd.as_fd())
    }

    /// Until when input is held back, if it is.
    pub(crate) fn held_back_until(&self, now: Instant) -> Option<Instant> {
        self.held_back_until.filter(|&until| until > now)
    }

    /// Passes on what was typed, or holds it back for a while: when there is no room, when a vCPU is using the port
    /// (perhaps for long, because nobody reads the console's output), or when another job has the terminal. A terminal
    /// that hung up is not asked again.
    pub(crate) fn pass_on(&mut self, serial: &Mutex<SerialPort>) {
        if self.terminal.as_ref().is_some_and(|terminal| in_foreground(&terminal.fd)) {
            self.read_into(serial);
        } else {
            self.hold_back();
        }
    }

    fn read_into(&mut self, serial: &Mutex<SerialPort>) {
        let mut serial = match serial.try_lock() {
            Ok(serial) => serial,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return self.hold_back(),
        };
        let (Some(terminal), room @ 1..) = (&self.terminal, serial.input_room()) else {
            return self.hold_back();
        };
        let mut bytes = vec![0; room];
        match read(&terminal.fd, &mut bytes) {
            Ok(len @ 1..) => serial.input(&bytes[..len]),
            _ => self.terminal = None,
        }
    }

    fn hold_back(&mut self) {
        self.held_back_until = Some(Instant::now() + HOLD_BACK);
    }
}

/// Whether the terminal is this job's. A job that uses the terminal of another is stopped by SIGTTIN or SIGTTOU.
fn in_foreground(terminal: impl AsFd) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

impl Terminal {
    /// Switches a terminal to single keys; `None` if it is none.
    fn switch(fd: OwnedFd) -> Option<Self> {
        let before = tcgetattr(&fd).ok()?;
        let mut keys = before.clone();
        keys.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        // A terminal that cannot be switched still works, line by line.
        let _ = tcsetattr(&fd, SetArg::TCSANOW, &keys);
        Some(Self { fd, before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that was sent to the background since then has its mode from the shell.
        if in_foreground(&self.fd) {
            let _ = tcsetattr(&self.fd, SetArg::TCSANOW, &self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use nix::pty::openpty;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::bus::BusDevice;
    use crate::console::Console;
    use crate::devices::serial::Line;

    fn port() -> Mutex<SerialPort> {
        let line = Line(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        Mutex::new(SerialPort::new(line, Console::new(Box::new(std::io::sink()), Vec::new())))
    }

    fn typing() -> (Input, std::fs::File) {
        let pty = openpty(None, None).unwrap();
        let input = Input { terminal: Terminal::switch(pty.slave), held_back_until: None };
        assert!(input.terminal.is_some());
        (input, pty.master.into())
    }

    /// What the guest reads until its FIFO is empty.
    fn drain(serial: &Mutex<SerialPort>) -> Vec<u8> {
        let mut serial = serial.lock().unwrap();
        let (mut status, mut byte, mut bytes) = ([0], [0], Vec::new());
        loop {
            serial.read(5, &mut status);
            if status[0] & 1 == 0 {
                return bytes;
            }
            serial.read(0, &mut byte);
            bytes.push(byte[0]);
        }
    }

    #[test]
    fn a_paste_beyond_the_fifo_waits_for_the_guest_and_arrives_whole() {
        let (mut input, mut keyboard) = typing();
        let serial = port();
        let pasted: Vec<u8> = (0..200).map(|n| b'a' + n % 26).collect();
        keyboard.write_all(&pasted).unwrap();
        let mut arrived = Vec::new();
        while arrived.len() < pasted.len() {
            let left = pasted.len() - arrived.len();
            input.read_into(&serial);
            assert!(input.fd(Instant::now()).is_some(), "there was room");
            if serial.lock().unwrap().input_room() == 0 && left > 64 {
                input.read_into(&serial);
                let now = Instant::now();
                assert!(input.fd(now).is_none(), "a full FIFO must not keep the event loop turning");
                let again = input.held_back_until(now).unwrap();
                assert!(input.fd(again).is_some() && input.held_back_until(again).is_none());
                input.held_back_until = None;
            }
            arrived.extend(drain(&serial));
        }
        assert_eq!(arrived, pasted);
    }

    #[test]
    fn a_port_that_is_in_use_is_not_waited_for() {
        let (mut input, mut keyboard) = typing();
        let serial = port();
        keyboard.write_all(b"x").unwrap();
        let used = serial.lock().unwrap();
        input.read_into(&serial);
        assert!(input.held_back_until(Instant::now()).is_some());
        drop(used);
        input.read_into(&serial);
        assert_eq!(drain(&serial), b"x");
    }
}
