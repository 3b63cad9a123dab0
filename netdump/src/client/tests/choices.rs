//! What a user may ask of the window: FreeBSD's own algorithm, a cap, a rate.

use std::num::NonZeroU64;

use super::*;

const POLL: Duration = Duration::from_micros(500);

fn classic() -> ClientConfig {
    ClientConfig { window: WindowChoice::Classic, ..config() }
}

#[test]
fn classic_sends_64_kib_and_looks_for_acks_every_half_millisecond() {
    let mut bench = Bench::accepted(classic(), plan(150_000));
    let chunk = bench.messages();
    let lens: Vec<_> = chunk.iter().map(|seen| seen.payload.len()).collect();
    assert_eq!(lens, [vec![1448; 45], vec![376]].concat());
    bench.now += POLL / 4;
    for seen in &chunk[1..] {
        bench.ack(seen.sequence).unwrap();
    }
    assert!(bench.messages().is_empty());
    bench.now += POLL;
    bench.ack(chunk[0].sequence).unwrap();
    assert!(bench.messages().is_empty(), "nobody looks");
    assert_eq!(bench.client.poll_timeout(), Some(bench.now + POLL * 3 / 4), "the second look");
    bench.now += POLL * 3 / 4;
    bench.client.handle_timeout(bench.now);
    assert_eq!((bench.messages().len(), bench.client.stats().bytes_sent), (46, 131_072));
}

#[test]
fn classic_sends_what_is_missing_again_after_2000_looks() {
    let mut bench = Bench::accepted(classic(), plan(65_536));
    let chunk = bench.messages();
    for seen in chunk.iter().filter(|seen| ![2, 34, 40].contains(&seen.sequence)) {
        bench.ack(seen.sequence).unwrap();
    }
    let start = bench.now;
    bench.now = bench.client.poll_timeout().unwrap();
    assert_eq!(bench.now - start, SECOND);
    bench.client.handle_timeout(bench.now);
    let again: Vec<_> = bench.messages().iter().map(|seen| seen.sequence).collect();
    assert_eq!(again, [2, 34, 40], "two of them share a bit of FreeBSD's mask with others");
    for sequence in again {
        bench.ack(sequence).unwrap();
    }
    assert_eq!(bench.finish().len(), 2);
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

#[test]
fn classic_sends_frame_by_frame() {
    let offloads = Offloads { gather: false, checksum: false, segments: 44 };
    let mut bench = Bench::accepted(ClientConfig { offloads, ..classic() }, plan(65_536));
    assert_eq!(bench.messages().len(), 46);
}

#[test]
fn a_cap_is_kept_however_well_the_path_does() {
    for cap in [1, 5, 200] {
        let window = WindowChoice::Adaptive { cap };
        let mut bench = Bench::accepted(ClientConfig { window, ..config() }, plan(3_000_000));
        let mut most = 0;
        while bench.client.phase() == Phase::Data {
            let messages = bench.messages();
            most = most.max(messages.len());
            bench.now += Duration::from_millis(1);
            for seen in messages {
                bench.ack(seen.sequence).unwrap();
            }
        }
        assert_eq!(most, cap as usize);
    }
}

/// Sends a core of `len` bytes at a rate to a server that acknowledges at once. Gives the times and lengths of the frames.
fn frames_at(rate: u64, len: usize, segments: usize) -> Vec<(Duration, usize)> {
    let config = ClientConfig { rate: NonZeroU64::new(rate), ..config() };
    let mut bench = Bench::accepted(config, plan(len));
    bench.client.config.offloads = Offloads { segments, checksum: true, gather: false };
    let (start, mut packet, mut frames) = (bench.now, Packet::default(), Vec::new());
    while bench.client.phase() == Phase::Data {
        bench.client.handle_timeout(bench.now);
        let first = bench.client.window.next_sequence().0;
        while let Some(sent) =
            bench.client.poll_transmit(bench.now, bench.image.as_slice(), &mut packet).unwrap()
        {
            frames.push((bench.now - start, packet.wire_len(sent.messages)));
        }
        for number in first..bench.client.window.next_sequence().0 {
            bench.ack(number).unwrap();
        }
        if let Some(at) = bench.client.poll_timeout() {
            // Clocks are late.
            bench.now = at + Duration::from_micros(50);
        }
    }
    frames
}

#[test]
fn a_rate_is_kept_evenly() {
    for (rate, len, segments) in
        [(100_000, 200_000, 1), (10_000_000, 2_000_000, 44), (500_000_000, 60_000_000, 44)]
    {
        let frames = frames_at(rate, len, segments);
        let total: usize = frames.iter().map(|(_, len)| len).sum();
        let seconds = frames.last().unwrap().0.as_secs_f64();
        let kept = total as f64 / seconds / rate as f64;
        assert!((0.98..1.02).contains(&kept), "{rate}: {kept}");
        // In any 10 ms no more than is due, a burst, and a frame or the train that is as long as a burst.
        let window = Duration::from_millis(10);
        let burst = 0.002 * rate as f64;
        let most = 0.010 * rate as f64 + burst + burst.max(1514.0);
        let (mut from, mut sum) = (0, 0);
        for (at, len) in &frames {
            sum += len;
            while frames[from].0 + window < *at {
                sum -= frames[from].1;
                from += 1;
            }
            assert!(sum as f64 <= most, "{rate}: {sum} bytes in 10 ms until {at:?}");
        }
    }
}

#[test]
fn trains_are_short_where_the_rate_is_low() {
    let longest = |rate| frames_at(rate, 500_000, 44).iter().map(|(_, len)| len / 1514).max().unwrap();
    assert_eq!(longest(100_000_000), 44);
    assert_eq!(longest(10_000_000), 13);
    assert_eq!(longest(1_000_000), 1);
}
