use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::wire::MessageKind;

const SECOND: Duration = Duration::from_secs(1);

fn chunk(number: u64) -> Chunk {
    Chunk { kind: MessageKind::Vmcore, offset: number * 1000, len: 1000 }
}

/// A streaming window with `count` messages sent, numbered from 1 on.
fn window(count: u64) -> (AckWindow, Instant) {
    let now = Instant::now();
    let mut window = AckWindow::new(1448, WindowChoice::default(), SECOND);
    window.set_pace(Pace::Stream);
    for number in 1..=count {
        assert!(window.has_room());
        window.push(now, chunk(number));
    }
    (window, now)
}

fn open(window: &AckWindow) -> Vec<u64> {
    window.unacknowledged().map(|chunk| chunk.offset / 1000).collect()
}

#[test]
fn window_begins_with_64_messages() {
    let (mut window, now) = window(64);
    assert!(!window.has_room());
    assert_eq!(window.acknowledge(now, Sequence(2)), Ok(chunk(2)));
    assert!(window.has_room());
    assert_eq!(window.next_sequence(), Sequence(65));
}

#[test]
fn acks_at_the_edges_of_32_and_64_bits_settle_one_message_each() {
    for acked in [1, 2, 31, 32, 33, 63, 64] {
        let (mut window, now) = window(64);
        let number = u32::try_from(acked).unwrap();
        assert_eq!(window.acknowledge(now, Sequence(number)), Ok(chunk(acked)));
        let want: Vec<_> = (1..=64).filter(|number| *number != acked).collect();
        assert_eq!(open(&window), want);
        assert_eq!(window.acknowledge(now, Sequence(number)), Err(AckError::Repeated));
    }
}

#[test]
fn ack_beyond_window_is_ignored() {
    let (mut window, now) = window(64);
    for unsent in [65, 66, 96, 97, 128, 129, 0, u32::MAX, 0x8000_0001] {
        assert_eq!(window.acknowledge(now, Sequence(unsent)), Err(AckError::Unknown), "{unsent}");
    }
    assert_eq!(open(&window).len(), 64);
}

#[test]
fn nothing_is_acknowledged_before_it_is_sent() {
    let (mut window, now) = window(0);
    assert_eq!(window.acknowledge(now, Sequence::FIRST), Err(AckError::Unknown));
}

#[test]
fn window_slides_over_everything_at_once() {
    let (mut window, now) = window(64);
    for number in (1..=64).rev() {
        assert_eq!(window.acknowledge(now, Sequence(number)), Ok(chunk(number.into())));
    }
    assert!(window.is_empty());
    assert_eq!((window.base, window.out, window.air.len()), (Sequence(65), 0, 0));
    assert_eq!(window.acknowledge(now, Sequence(64)), Err(AckError::Repeated));
    assert_eq!(window.acknowledge(now, Sequence(1)), Err(AckError::Repeated));
}

#[test]
fn numbers_wrap_around() {
    let (mut window, now) = window(0);
    window.base = Sequence(u32::MAX - 1);
    window.settled = u64::from(u32::MAX);
    for number in 0..4 {
        window.push(now, chunk(number));
    }
    for (number, sequence) in [(3, 1), (0, u32::MAX - 1), (2, 0), (1, u32::MAX)] {
        assert_eq!(window.acknowledge(now, Sequence(sequence)), Ok(chunk(number)));
    }
    assert_eq!(window.next_sequence(), Sequence(2));
}

#[test]
fn overtaken_messages_are_sent_again_at_once() {
    let (mut window, now) = window(6);
    for number in [2, 3] {
        window.acknowledge(now, Sequence(number)).unwrap();
        assert_eq!(window.peek_resend(), None);
    }
    window.acknowledge(now, Sequence(4)).unwrap();
    assert_eq!(window.peek_resend(), Some((Sequence(1), chunk(1))));
    window.resent(now);
    window.acknowledge(now, Sequence(5)).unwrap();
    window.acknowledge(now, Sequence(6)).unwrap();
    assert_eq!(window.peek_resend(), None, "what was sent before the resend tells nothing of it");
    for number in 7..=9 {
        window.push(now, chunk(number));
    }
    window.acknowledge(now, Sequence(9)).unwrap();
    assert_eq!(window.peek_resend(), Some((Sequence(1), chunk(1))), "what was sent after it does");
}

#[test]
fn acks_of_resends_tell_nothing_as_long_as_no_round_trip_is_known() {
    let (mut window, now) = window(5);
    window.expire(now + SECOND);
    while window.peek_resend().is_some() {
        window.resent(now + SECOND);
    }
    window.acknowledge(now + SECOND, Sequence(5)).unwrap();
    assert_eq!(window.peek_resend(), None);
    assert_eq!(window.round_trip.shortest_and_usual(), None);
}

#[test]
fn acks_of_resends_count_when_they_take_a_round_trip() {
    let ms = Duration::from_millis;
    let (mut window, mut now) = window(1);
    now += ms(4);
    window.acknowledge(now, Sequence(1)).unwrap();
    for number in 2..=6 {
        window.push(now, chunk(number));
    }
    now += SECOND;
    window.expire(now);
    while window.peek_resend().is_some() {
        window.resent(now);
    }
    window.acknowledge(now + ms(3), Sequence(6)).unwrap();
    assert_eq!(window.peek_resend(), None, "this was the answer to the first attempt");
    window.acknowledge(now + ms(4), Sequence(5)).unwrap();
    assert_eq!(window.peek_resend(), Some((Sequence(2), chunk(2))));
}

#[test]
fn a_path_that_reorders_is_given_time() {
    let us = Duration::from_micros;
    let (mut window, start) = window(0);
    let mut resends = 0;
    // Each tenth message takes 200 us longer than the others, which take 1 ms.
    let mut acks = BTreeMap::new();
    for number in 1..=1000_u32 {
        let now = start + us(20) * number;
        let late = if number % 10 == 0 { us(200) } else { us(0) };
        acks.entry(now + us(1000) + late).or_insert_with(Vec::new).push(number);
        let due: Vec<_> = acks.range(..=now).map(|(at, _)| *at).collect();
        for at in due {
            for number in acks.remove(&at).unwrap() {
                window.acknowledge(at, Sequence(number)).unwrap();
            }
        }
        while window.peek_resend().is_some() {
            window.resent(now);
            resends += 1;
        }
        window.push(now, chunk(number.into()));
    }
    assert!((1..40).contains(&resends), "{resends} of 100");
}

#[test]
fn silence_brings_the_messages_back_and_backs_off() {
    let (mut window, start) = window(2);
    let first = window.next_expiry().unwrap();
    window.expire(first);
    assert_eq!(window.next_expiry(), None);
    assert_eq!(window.peek_resend(), Some((Sequence(1), chunk(1))));
    window.resent(first);
    assert_eq!(window.peek_resend(), Some((Sequence(2), chunk(2))));
    window.resent(first);
    assert_eq!(window.peek_resend(), None);
    assert_eq!(window.next_expiry().unwrap() - first, 2 * (first - start));
    assert_eq!(window.silent_since(), Some(start));
}

#[test]
fn a_path_slower_than_expected_is_learned_after_few_resends() {
    let (mut window, mut now) = window(0);
    let mut resends = 0;
    for number in 1..=20_u32 {
        let sent = now;
        window.push(now, chunk(number.into()));
        while let Some(at) = window.next_expiry().filter(|at| *at < sent + 2 * Duration::from_millis(200)) {
            now = at;
            window.expire(now);
            window.resent(now);
            resends += 1;
        }
        now = sent + Duration::from_millis(400);
        window.acknowledge(now, Sequence(number)).unwrap();
    }
    assert!(resends <= 2, "{resends}");
}

#[test]
fn a_late_ack_calls_off_the_resends() {
    let (mut window, now) = window(40);
    window.expire(now + SECOND);
    let mut resends = 0;
    while window.peek_resend().is_some() {
        window.resent(now + SECOND);
        resends += 1;
    }
    assert_eq!(resends, 4, "more would be in vain if the server is away");
    window.acknowledge(now + SECOND, Sequence(10)).unwrap();
    assert_eq!(window.peek_resend(), None, "it was only late, and so the others may be");
    assert_eq!((open(&window).len(), window.out), (39, 39));
}

#[test]
fn after_a_silence_everything_is_sent_again() {
    let (mut window, now) = window(64);
    window.acknowledge(now + Duration::from_millis(1), Sequence(1)).unwrap();
    let later = now + SECOND;
    window.expire(later);
    for _ in 0..4 {
        window.resent(later);
    }
    window.acknowledge(later + Duration::from_millis(1), Sequence(2)).unwrap();
    let mut resends = 0;
    while window.peek_resend().is_some() {
        window.resent(later);
        resends += 1;
    }
    assert_eq!(resends, 64 - 5);
}

#[test]
fn single_pace_sends_one_message() {
    let (mut window, now) = window(0);
    window.set_pace(Pace::Single);
    window.push(now, chunk(1));
    assert!(!window.has_room());
    assert_eq!(window.next_expiry(), Some(now + Duration::from_secs(1)));
}

#[test]
fn trains_wait_for_room_while_acks_are_expected() {
    let (mut window, now) = window(64);
    let later = now + Duration::from_millis(1);
    for acked in 1..=15 {
        window.acknowledge(later, Sequence(acked)).unwrap();
    }
    assert!(!window.is_worth_a_train(44) && window.is_worth_a_train(15));
    window.acknowledge(later, Sequence(16)).unwrap();
    assert!(window.is_worth_a_train(44), "a quarter of the window");
    for acked in 17..=64 {
        window.acknowledge(later, Sequence(acked)).unwrap();
    }
    assert!(window.is_worth_a_train(1000), "no ack is expected");
}

fn thread_time() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// What a message costs in a full window that slides, with a loss now and then.
#[test]
#[ignore = "prints figures"]
fn cost_of_a_message() {
    for (limit, loss) in [(64, 0), (1024, 0), (8192, 0), (8192, 100), (8192, 20), (16_384, 0)] {
        let (mut window, mut now) = window(0);
        window.fix_limit(limit);
        let (mut pushed, mut acked) = (0_u64, 0_u64);
        const COUNT: u64 = 4_000_000;
        let started = thread_time();
        while acked < COUNT {
            while window.peek_resend().is_some() {
                window.resent(now);
                acked += 1;
            }
            while window.has_room() {
                window.push(now, chunk(pushed));
                pushed += 1;
            }
            now += Duration::from_micros(50);
            let first = window.base;
            for step in 0..window.flights.len().min(44) {
                let sequence = first.plus(step);
                if loss == 0
                    || sequence.0 % loss != 0
                    || window.flight(sequence).is_some_and(|it| it.loss != Loss::None)
                {
                    acked += u64::from(window.acknowledge(now, sequence).is_ok());
                }
            }
        }
        let each = (thread_time() - started).as_nanos() / u128::from(COUNT);
        println!("window {limit:5}, 1 in {loss:3} lost: {each} ns for push and ack");
    }
}

/// Every message's number, and how often it was sent; those acknowledged are not there.
type Model = BTreeMap<u64, u32>;

proptest! {
    /// The window against a plain map, from any first number on.
    #[test]
    fn window_agrees_with_a_map(
        start in any::<u32>(),
        cap in prop::sample::select(vec![1, 2, 64, 500, MAX_WINDOW]),
        steps in prop::collection::vec((0..4_u8, 0..200_u32), 1..400),
    ) {
        let mut now = Instant::now();
        let mut window = AckWindow::new(1448, WindowChoice::Adaptive { cap }, SECOND);
        window.set_pace(Pace::Stream);
        window.base = Sequence(start);
        let (mut model, mut pushed) = (Model::new(), 0_u64);
        for (what, value) in steps {
            let base = model.first_key_value().map_or(pushed, |(first, _)| *first);
            match what {
                0 => for _ in 0..value {
                    if window.has_room() {
                        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
                        let sequence = Sequence(start.wrapping_add(pushed as u32));
                        prop_assert_eq!(window.next_sequence(), sequence);
                        window.push(now, chunk(pushed));
                        model.insert(pushed, 1);
                        pushed += 1;
                    }
                },
                1 => {
                    let number = base + u64::from(value);
                    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
                    let ack = Sequence(start.wrapping_add(number as u32));
                    let want = match number {
                        n if model.remove(&n).is_some() => Ok(chunk(n)),
                        n if n < pushed => Err(AckError::Repeated),
                        _ => Err(AckError::Unknown),
                    };
                    prop_assert_eq!(window.acknowledge(now, ack), want);
                }
                2 => now += Duration::from_micros(value.into()),
                _ => {
                    now += Duration::from_millis(value.into());
                    window.expire(now);
                    while let Some((_, again)) = window.peek_resend() {
                        let sent = model.get_mut(&(again.offset / 1000));
                        prop_assert!(sent.is_some());
                        *sent.unwrap() += 1;
                        window.resent(now);
                    }
                }
            }
            let open = open(&window);
            prop_assert_eq!(&open, &model.keys().copied().collect::<Vec<_>>());
            let lost = window.flights.iter().filter(|flight| flight.state == State::Lost).count();
            prop_assert_eq!(window.out + lost, open.len());
            prop_assert!(window.out <= cap as usize);
            prop_assert!(window.lost.len() >= lost);
            prop_assert_eq!(window.is_empty(), open.is_empty());
            prop_assert!(window.is_empty() || window.flights[0].state != State::Acked);
            // Nothing is forgotten: what is out expires, what is lost goes as soon as there is room.
            prop_assert_eq!(window.next_expiry().is_some(), window.out > 0);
            prop_assert!(lost == 0 || window.peek_resend().is_some() || window.room() == 0);
        }
    }
}
