//! How many messages may be on their way: as many as path and receiver carry, found out by trying.
//!
//! Receivers differ by a factor of a thousand. A stock netdumpd has 128 KiB of socket buffer, about 100 datagrams of 1448
//! bytes or 30 of 4096, and what does not fit is lost silently; ours takes thousands at a time and is the faster for it.
//! Losses also happen by chance, so a loss alone says little. The two signs that do:
//!
//! * **More brings nothing.** The window doubles as long as each doubling brings a tenth more messages a second. The last
//!   one, which only made a queue longer, is taken back.
//! * **Less loses less.** When more is lost than was usual, the window shrinks by what was lost, for a trial. Losses that
//!   go away were an overflow, and the window stays as it is. Losses that stay are the path's own; the window is restored
//!   and so much is usual from now on.
//!
//! Now and then it tries to grow again, the more seldom the more often this was in vain. All is judged by *rounds*: the
//! fate of the messages sent behind a certain one, for at least a round trip and [`MIN_ROUND`]. After a silence it starts
//! over. It never closes further than FreeBSD's own client, whose [`CHUNK`] at a time every server is made for.

use std::time::{Duration, Instant};

/// Messages on their way at first, and at most so many bytes: what a stock server's socket buffer holds with the
/// kernel's bookkeeping.
const INITIAL: usize = 64;
const INITIAL_BYTES: usize = 96 * 1024;
/// Bytes that FreeBSD's client sends before it waits for all their acks (`maxiosize` of its dumper).
const CHUNK: usize = 64 * 1024;
/// Shorter rounds say more of the scheduler of either host than of the path.
const MIN_ROUND: Duration = Duration::from_micros(500);
/// Messages on their way while nothing comes back.
const PROBES: usize = 4;
/// What growth must bring to go on.
const GAIN: f64 = 1.1;
/// What a doubling brings if the path bears much more. The next one is two in one.
const FULL_GAIN: f64 = 1.7;
/// Rounds without gain before growth ends: one may have been disturbed.
const PATIENCE: u32 = 3;
/// Rounds until growth is tried again, at first and at most.
const REST: [u32; 2] = [8, 64];
/// Chance losses beyond this share are an overflow too, whether they go away or not.
const MAX_CHANCE: f64 = 0.12;
/// Of what got through in an overflow, to be on the safe side.
const SAFE: f64 = 0.9;

/// The window's present limit, and what is known of the path.
#[derive(Debug)]
pub(super) struct Congestion {
    limit: usize,
    /// The limit at the start, at least, and at most.
    initial: usize,
    floor: usize,
    cap: usize,
    stage: Stage,
    round: Round,
    /// The share of messages that is lost whatever the window.
    chance: f64,
    /// Whether an overflow was seen: growth goes by quarters then.
    has_overflown: bool,
    /// Rounds until growth is tried again.
    rest: u32,
    /// During a silence the limit before it, as it may prove not to have been one.
    before_silence: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// The window grows. The best rate so far, the window before the last growth, and rounds since without gain.
    Growing { best: f64, before: usize, in_vain: u32 },
    /// It has shrunk, to see whether the losses go away.
    Trial { before: usize, loss: f64 },
    /// It is as it shall be.
    Resting { rate: f64, left: u32 },
}

/// The fate of the transmissions from a certain one on.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// The first.
    from: u64,
    /// When the first ack came, and the transmission that was next then.
    begun: Option<(Instant, u64)>,
    acked: u32,
    lost: u32,
    /// Whether the window was what held the sender back.
    is_full: bool,
}

impl Congestion {
    /// For messages of `payload_limit` bytes, at most `cap` of them on their way.
    pub(super) fn new(payload_limit: usize, cap: u32) -> Self {
        let cap = usize::try_from(cap).unwrap_or(usize::MAX).max(1);
        let initial = (INITIAL_BYTES / payload_limit.max(1)).clamp(1, INITIAL).min(cap);
        Self {
            limit: initial,
            initial,
            floor: (CHUNK / payload_limit.max(1)).clamp(1, initial),
            cap,
            stage: Stage::start(),
            round: Round::default(),
            chance: 0.0,
            has_overflown: false,
            rest: REST[0],
            before_silence: None,
        }
    }

    /// Always `limit`.
    #[cfg(test)]
    pub(super) fn fixed(limit: usize) -> Self {
        Self { limit, initial: limit, floor: limit, cap: limit, ..Self::new(1, 1) }
    }

    /// Most messages on their way.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A message was sent; now `out` are on their way.
    pub(super) fn sent(&mut self, out: usize) {
        self.round.is_full |= out > self.limit / 2;
    }

    /// Transmission number `number` has arrived; the next one will be number `next`.
    pub(super) fn acknowledged(&mut self, now: Instant, number: u64, next: u64) {
        if self.before_silence.take().is_some() {
            self.limit = self.initial;
        }
        if number < self.round.from {
            return;
        }
        let (begun, until) = *self.round.begun.get_or_insert((now, next));
        self.round.acked += 1;
        let lasted = now.saturating_duration_since(begun);
        if number >= until && lasted >= MIN_ROUND {
            self.judge(lasted);
            self.round = Round { from: next, ..Round::default() };
        }
    }

    /// Transmission number `number` was lost.
    pub(super) fn lost(&mut self, number: u64) {
        if number >= self.round.from {
            self.round.lost += 1;
        }
    }

    /// Nothing comes back any more: a few messages are enough to find out when that changes, and whatever was known of
    /// the path may be out of date then. The next transmission will be number `next`.
    pub(super) fn silence(&mut self, next: u64) {
        self.before_silence.get_or_insert(self.limit);
        self.limit = self.limit.min(PROBES);
        self.stage = Stage::start();
        self.round = Round { from: next, ..Round::default() };
    }

    /// Whatever was known of path and server is out of date, and nothing is on its way. The next transmission will be number
    /// `next`.
    pub(super) fn start_over(&mut self, next: u64) {
        self.before_silence = None;
        self.limit = self.initial;
        self.stage = Stage::start();
        self.round = Round { from: next, ..Round::default() };
        self.has_overflown = false;
        self.rest = REST[0];
    }

    /// What seemed to be a silence was only a pause of the server. Whether it was news.
    pub(super) fn silence_was_spurious(&mut self) -> bool {
        let before = self.before_silence.take();
        self.limit = before.unwrap_or(self.limit);
        before.is_some()
    }

    /// Draws the conclusions of a round that lasted so long.
    fn judge(&mut self, lasted: Duration) {
        let Round { acked, lost, is_full, .. } = self.round;
        let loss = f64::from(lost) / f64::from(acked + lost);
        let rate = f64::from(acked) / lasted.as_secs_f64();
        if let Stage::Trial { before, loss: at_first } = self.stage {
            self.judge_trial(before, at_first, loss, rate);
        } else if self.is_unusual(acked + lost, lost) {
            self.stage = Stage::Trial { before: self.limit, loss };
            self.shrink(loss);
        } else {
            self.chance = self.chance.min(self.chance * 0.875 + loss * 0.125);
            if is_full {
                self.judge_rate(rate);
            }
        }
    }

    /// Whether so many losses are more than usual, chance being given its due: three standard deviations, and a few
    /// where there are few.
    fn is_unusual(&self, sent: u32, lost: u32) -> bool {
        let usual = f64::from(sent) * (self.chance + 0.01);
        f64::from(lost) > usual + 3.0 * usual.sqrt() + 2.0
    }

    /// The window was `before` and lost a share of `at_first`; smaller, it loses `loss`.
    fn judge_trial(&mut self, before: usize, at_first: f64, loss: f64, rate: f64) {
        if loss >= at_first / 2.0 && loss <= MAX_CHANCE {
            self.chance = loss.max(at_first.min(MAX_CHANCE));
            self.limit = self.limit.max(before);
            self.stage = Stage::Growing { best: 0.0, before: self.limit, in_vain: 0 };
        } else {
            self.has_overflown = true;
            self.settle(rate);
        }
    }

    fn judge_rate(&mut self, rate: f64) {
        match &mut self.stage {
            Stage::Growing { best, before, in_vain } => {
                if rate > *best * GAIN {
                    let is_known = *best > 0.0;
                    let is_full = is_known && rate > *best * FULL_GAIN;
                    (*best, *before, *in_vain) = (rate, self.limit, 0);
                    self.grow();
                    if is_full {
                        self.grow();
                    }
                    if is_known {
                        self.rest = REST[0];
                    }
                } else {
                    *in_vain += 1;
                    if *in_vain >= PATIENCE {
                        self.limit = *before;
                        self.settle(rate);
                    }
                }
            }
            Stage::Resting { rate: usual, left } => {
                *usual += (rate - *usual) / 4.0;
                *left -= 1;
                if *left == 0 {
                    self.stage = Stage::Growing { best: *usual, before: self.limit, in_vain: 0 };
                    self.grow();
                }
            }
            Stage::Trial { .. } => {}
        }
    }

    fn grow(&mut self) {
        let more = if self.has_overflown { self.limit / 4 } else { self.limit };
        self.limit = (self.limit + more.max(1)).min(self.cap);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of it"
    )]
    fn shrink(&mut self, loss: f64) {
        let through = self.limit as f64 * (1.0 - loss) * SAFE;
        self.limit = (through as usize).max(self.floor);
    }

    fn settle(&mut self, rate: f64) {
        self.stage = Stage::Resting { rate, left: self.rest };
        self.rest = REST[1].min(self.rest * 2);
    }
}

impl Stage {
    fn start() -> Self {
        Self::Growing { best: 0.0, before: 0, in_vain: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path whose rate (messages a second) and losses (the share) depend on the window.
    struct Path<R, L> {
        rate: R,
        loss: L,
        now: Instant,
        number: u64,
        lost: f64,
    }

    impl<R: Fn(f64) -> f64, L: Fn(f64) -> f64> Path<R, L> {
        fn new(rate: R, loss: L) -> Self {
            Self { rate, loss, now: Instant::now(), number: 0, lost: 0.0 }
        }

        /// Sends so many messages; gives the least and the greatest window meanwhile.
        fn send(&mut self, congestion: &mut Congestion, messages: u32) -> (usize, usize) {
            let mut seen = (usize::MAX, 0);
            for _ in 0..messages {
                let limit = congestion.limit();
                seen = (seen.0.min(limit), seen.1.max(limit));
                let window = f64::from(u32::try_from(limit).unwrap());
                self.now += Duration::from_secs_f64(1.0 / (self.rate)(window));
                self.lost += (self.loss)(window);
                congestion.sent(limit);
                if self.lost >= 1.0 {
                    self.lost -= 1.0;
                    congestion.lost(self.number);
                } else {
                    congestion.acknowledged(self.now, self.number, self.number + limit as u64);
                }
                self.number += 1;
            }
            seen
        }
    }

    fn congestion() -> Congestion {
        Congestion::new(1448, 16_384)
    }

    /// A server whose time for a message, and whose round trip, are these; what is more than it holds is lost.
    fn overflowing(holds: f64) -> impl Fn(f64) -> f64 {
        move |window| (1.0 - holds / window).max(0.0)
    }

    #[test]
    fn the_window_grows_as_long_as_that_brings_something() {
        for knee in [100.0, 1000.0, 5000.0] {
            let mut congestion = congestion();
            let mut path = Path::new(|window: f64| window.min(knee) * 1e4, |_| 0.0);
            path.send(&mut congestion, 400_000);
            let (least, most) = path.send(&mut congestion, 400_000);
            let least_wanted = knee * 0.9;
            assert!(least as f64 >= least_wanted && most as f64 <= 4.2 * knee, "{knee}: {least} to {most}");
        }
    }

    #[test]
    fn the_window_grows_quickly() {
        let mut congestion = congestion();
        let mut path = Path::new(|window: f64| window * 1e4, |_| 0.0);
        path.send(&mut congestion, 60_000);
        assert_eq!(congestion.limit(), 16_384);
    }

    #[test]
    fn a_small_buffer_is_found_out_and_hardly_tried_again() {
        for holds in [80.0, 130.0, 1000.0] {
            let mut congestion = congestion();
            // The server is busy all the time, whatever the window.
            let mut path = Path::new(|window: f64| window.min(holds) * 1e4, overflowing(holds));
            path.send(&mut congestion, 100_000);
            let mut lost = 0.0;
            for _ in 0..100 {
                path.send(&mut congestion, 10_000);
                lost += overflowing(holds)(congestion.limit() as f64);
            }
            assert!(lost < 5.0, "{holds}: {lost} %");
            assert!(congestion.limit() as f64 > 0.6 * holds, "{holds}: {}", congestion.limit());
        }
    }

    #[test]
    fn losses_that_stay_are_chance_and_do_not_matter() {
        for loss in [0.01, 0.05, 0.1] {
            let mut congestion = congestion();
            let mut path = Path::new(|window: f64| window.min(4000.0) * 1e4, |_| loss);
            path.send(&mut congestion, 400_000);
            let (least, _) = path.send(&mut congestion, 1_000_000);
            assert!(least > 3000, "{loss}: {least}");
        }
    }

    #[test]
    fn an_overflow_is_told_from_chance() {
        let mut congestion = congestion();
        let loss = |window| 0.04 + overflowing(500.0)(window);
        let mut path = Path::new(|window: f64| window.min(500.0) * 1e4, loss);
        path.send(&mut congestion, 400_000);
        let (least, most) = path.send(&mut congestion, 1_000_000);
        assert!(least > 250 && most < 1200, "{least} to {most}");
    }

    #[test]
    fn heavy_losses_close_the_window_to_the_originals_chunk() {
        for (payload, floor) in [(512, 64), (1448, 45), (4096, 16)] {
            let mut congestion = Congestion::new(payload, 16_384);
            let mut path = Path::new(|_| 1e5, |_| 0.4);
            path.send(&mut congestion, 100_000);
            assert_eq!(congestion.limit(), floor, "{payload}");
        }
    }

    #[test]
    fn the_first_window_fits_a_stock_servers_buffer() {
        for (payload, initial) in [(512, 64), (1448, 64), (4096, 24)] {
            assert_eq!(Congestion::new(payload, 16_384).limit(), initial);
            assert_eq!(Congestion::new(payload, 7).limit(), 7);
        }
    }

    #[test]
    fn a_cap_is_kept() {
        let mut congestion = Congestion::new(1448, 100);
        let mut path = Path::new(|window: f64| window * 1e4, |_| 0.0);
        assert_eq!(path.send(&mut congestion, 100_000), (64, 100));
    }

    #[test]
    fn a_window_that_is_not_used_does_not_grow() {
        let mut congestion = congestion();
        let start = Instant::now();
        for number in 0..100_000 {
            congestion.sent(10);
            congestion.acknowledged(start + Duration::from_micros(number * 10), number, number + 10);
        }
        assert_eq!(congestion.limit(), 64);
    }

    #[test]
    fn silence_is_probed_with_a_few_and_then_all_begins_again() {
        let mut congestion = congestion();
        let mut path = Path::new(|window: f64| window * 1e4, |_| 0.0);
        path.send(&mut congestion, 50_000);
        let before = congestion.limit();
        assert!(before > 1000);
        congestion.silence(path.number);
        congestion.silence(path.number);
        assert_eq!(congestion.limit(), 4);
        let mut other = Congestion { stage: congestion.stage, round: congestion.round, ..self::congestion() };
        (other.limit, other.before_silence) = (congestion.limit, congestion.before_silence);
        congestion.acknowledged(path.now, path.number, path.number + 1);
        assert_eq!(congestion.limit(), 64);
        assert!(!congestion.silence_was_spurious());
        assert!(other.silence_was_spurious());
        assert_eq!(other.limit(), before);
    }
}
