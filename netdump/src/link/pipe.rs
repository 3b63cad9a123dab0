//! Two links joined by an imaginary cable: frames sent into one end come out of the other, in order, none lost. For
//! tests, and for a receiver in the same program.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Frame, Link, LinkError, Received, Sent};
use crate::wire::MacAddr;

/// One end of a cable.
#[derive(Debug)]
pub struct Pipe {
    mac: MacAddr,
    mtu: u32,
    outgoing: Arc<Channel>,
    incoming: Arc<Channel>,
}

/// Frames on their way in one direction, and buffers to use again.
#[derive(Debug)]
struct Channel {
    queues: Mutex<Queues>,
    arrived: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Queues {
    frames: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    /// Whether the receiving end waits, and so must be woken.
    waiting: bool,
}

/// Both ends of a cable that holds `capacity` frames in each direction; a further one finds it [`Sent::Busy`].
pub fn pair(macs: [MacAddr; 2], mtu: u32, capacity: usize) -> [Pipe; 2] {
    let [there, back] = [Channel::new(capacity), Channel::new(capacity)];
    let [near, far] = macs;
    [
        Pipe { mac: near, mtu, outgoing: Arc::clone(&there), incoming: Arc::clone(&back) },
        Pipe { mac: far, mtu, outgoing: back, incoming: there },
    ]
}

impl Link for Pipe {
    fn mtu(&self) -> Result<u32, LinkError> {
        Ok(self.mtu)
    }

    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        if !frame.is_plain() {
            return Err(LinkError::Unfit { link: "pipe".into(), problem: "takes plain frames only" });
        }
        let mut queues = self.outgoing.lock();
        if queues.frames.len() >= self.outgoing.capacity {
            return Ok(Sent::Busy);
        }
        let mut buffer = queues.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(frame.bytes);
        queues.frames.push_back(buffer);
        let wake = std::mem::take(&mut queues.waiting);
        drop(queues);
        if wake {
            self.outgoing.arrived.notify_one();
        }
        Ok(Sent::Yes)
    }

    fn receive(&mut self, frame: &mut Received, wait: Duration) -> Result<bool, LinkError> {
        let until = Instant::now().checked_add(wait);
        let mut queues = self.incoming.lock();
        loop {
            if let Some(next) = queues.frames.pop_front() {
                queues.spare.push(std::mem::replace(frame.clear(), next));
                return Ok(true);
            }
            let left = until.map_or(wait, |until| until.saturating_duration_since(Instant::now()));
            if wait.is_zero() || left.is_zero() {
                return Ok(false);
            }
            queues.waiting = true;
            queues = match self.incoming.arrived.wait_timeout(queues, left) {
                Ok((queues, _)) => queues,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Channel {
    fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { queues: Mutex::default(), arrived: Condvar::new(), capacity })
    }

    /// The queues are whole between any two statements, so a panic of the other end's thread does not matter here.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(capacity: usize) -> [Pipe; 2] {
        pair([MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])], 1500, capacity)
    }

    fn send(pipe: &mut Pipe, bytes: &[u8]) -> Sent {
        pipe.send(&Frame::plain(bytes)).unwrap()
    }

    #[test]
    fn frames_come_out_at_the_other_end_in_order() {
        let [mut near, mut far] = ends(8);
        let mut frame = Received { bytes: vec![9; 100], ..Received::default() };
        assert!(!far.receive(&mut frame, Duration::ZERO).unwrap());
        for bytes in [&[1_u8][..], &[2, 2], &[]] {
            assert_eq!(send(&mut near, bytes), Sent::Yes);
        }
        for bytes in [&[1_u8][..], &[2, 2], &[]] {
            assert!(far.receive(&mut frame, Duration::ZERO).unwrap());
            assert_eq!(frame.bytes, bytes);
        }
        assert!(!near.receive(&mut frame, Duration::ZERO).unwrap());
    }

    #[test]
    fn a_full_cable_is_busy_until_a_frame_is_taken() {
        let [mut near, mut far] = ends(1);
        assert_eq!([send(&mut near, &[1]), send(&mut near, &[2])], [Sent::Yes, Sent::Busy]);
        far.receive(&mut Received::default(), Duration::ZERO).unwrap();
        assert_eq!(send(&mut near, &[2]), Sent::Yes);
    }

    #[test]
    fn a_waiting_end_is_woken_by_a_frame() {
        let [mut near, mut far] = ends(1);
        let waiter = std::thread::spawn(move || {
            let mut frame = Received::default();
            far.receive(&mut frame, Duration::from_secs(60)).unwrap().then_some(frame.bytes)
        });
        std::thread::sleep(Duration::from_millis(20));
        send(&mut near, &[7]);
        assert_eq!(waiter.join().unwrap(), Some(vec![7]));
    }

    #[test]
    fn waiting_ends_in_time() {
        let [mut near, _far] = ends(1);
        let start = Instant::now();
        assert!(!near.receive(&mut Received::default(), Duration::from_millis(20)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
