//! The terminal as the guest's keyboard: what is typed goes to the serial port, one key at a time and without local
//! echo. Signals stay with the host: Ctrl-C ends the VMM. Input that is no terminal is left alone.

use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::read;

/// Standard input, if it is a terminal; its mode is restored in the end.
#[derive(Debug)]
pub(crate) struct Input {
    terminal: Option<Terminal>,
}

#[derive(Debug)]
struct Terminal {
    stdin: std::io::Stdin,
    before: Termios,
}

impl Input {
    /// Takes the terminal.
    pub(crate) fn open() -> Self {
        let stdin = stdin();
        if !stdin.is_terminal() {
            return Self { terminal: None };
        }
        let terminal = tcgetattr(&stdin).ok().map(|before| {
            let mut keys = before.clone();
            keys.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            // A terminal that cannot be switched still works, line by line.
            let _ = tcsetattr(&stdin, SetArg::TCSANOW, &keys);
            Terminal { stdin, before }
        });
        Self { terminal }
    }

    /// What to poll.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(|terminal| terminal.stdin.as_fd())
    }

    /// What was typed, at most `room` bytes. A terminal that hung up is not asked again.
    pub(crate) fn read(&mut self, room: usize) -> Vec<u8> {
        let Some(terminal) = &self.terminal else { return Vec::new() };
        let mut bytes = vec![0; room];
        let len = read(&terminal.stdin, &mut bytes).unwrap_or(0);
        if len == 0 && room > 0 {
            self.terminal = None;
        }
        bytes.truncate(len);
        bytes
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.stdin, SetArg::TCSANOW, &self.before);
    }
}
