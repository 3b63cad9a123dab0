//! A server that falls silent, is started anew with or without what it had, or was only out of reach.

use super::*;

const ID: u32 = 0x1234_5678;
const ABLE: u32 = 0x8000_0000;
const NEW_PORT: u16 = 50_000;

fn named() -> ClientConfig {
    ClientConfig { dump_id: ID, ..config() }
}

/// With an able server that has acknowledged the HERALD.
fn able(plan: DumpPlan) -> Bench {
    let mut bench = Bench::accepted(named(), plan);
    bench.ack(1 ^ ABLE).unwrap();
    bench
}

impl Bench {
    /// Lets time pass with a silent peer. Gives what was sent meanwhile, with the time since the start.
    fn wait(&mut self, span: Duration) -> Vec<(Duration, Seen)> {
        let (start, end) = (self.now, self.now + span);
        let mut sent = Vec::new();
        while let Some(at) = self.client.poll_timeout().filter(|at| *at <= end) {
            assert!(at > self.now, "a drained client has nothing to do now");
            self.now = at;
            self.client.handle_timeout(at);
            sent.extend(self.messages().into_iter().map(|seen| (at - start, seen)));
        }
        self.now = end;
        sent
    }

    /// Waits until the server is asked; gives the number of that HERALD.
    fn question(&mut self) -> u32 {
        let wait = if self.client.phase() == Phase::Finish { 13 * SECOND } else { 2 * SECOND };
        heralds(&self.wait(wait))[0].1.sequence
    }

    fn answer(&mut self, port: u16, number: u32) -> Result<(), Ignored> {
        self.ack_from(SocketAddrV4::new(SERVER, port), number)
    }

    /// The server's host says that a datagram to `port` found nobody.
    fn closed(&mut self, port: u16) -> Result<(), Ignored> {
        let quoted = Route {
            source_mac: OUR_MAC,
            destination_mac: THEIR_MAC,
            source: SocketAddrV4::new(CLIENT, 20024),
            destination: SocketAddrV4::new(SERVER, port),
        };
        let mut datagram = Vec::new();
        quoted.emit(&[0; 40], &mut datagram);
        let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
        icmp.extend_from_slice(&datagram[14..42]);
        let sum = Checksum::of(&icmp).complete();
        icmp[2..4].copy_from_slice(&sum);
        let mut frame = Vec::new();
        quoted.reversed().emit(&[0; 28], &mut frame);
        frame[23] = 1;
        frame[24..26].fill(0);
        let sum = Checksum::of(&frame[14..34]).complete();
        frame[24..26].copy_from_slice(&sum);
        frame[34..].copy_from_slice(&icmp);
        self.client.handle_frame(self.now, &frame)
    }

    fn told(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.client.poll_event()).map(|event| format!("{event:?}")).collect()
    }
}

fn heralds(sent: &[(Duration, Seen)]) -> Vec<(Duration, Seen)> {
    sent.iter().filter(|(_, seen)| seen.kind == MessageKind::Herald).cloned().collect()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn an_able_server_that_falls_silent_is_asked_each_second_while_resends_go_on() {
    let mut bench = able(plan(5 * 1448));
    bench.messages();
    let sent = bench.wait(ms(3500));
    let asked = heralds(&sent);
    assert_eq!(asked.iter().map(|(at, _)| at.as_millis()).collect::<Vec<_>>(), [1000, 2000, 3000]);
    for (_, herald) in &asked {
        assert_eq!((herald.to, herald.payload.as_slice()), (20023, &b"vm1\0"[..]));
        assert_eq!(herald.sequence, asked[0].1.sequence, "one question has one number");
    }
    let last = sent.iter().rfind(|(_, seen)| seen.kind == MessageKind::Vmcore && seen.to == PORT);
    assert!(last.is_some_and(|(at, _)| *at > ms(2500)), "{last:?}");
}

#[test]
fn a_server_that_goes_on_gets_what_it_has_not_acknowledged() {
    let mut bench = able(plan(20 * 1448));
    let sent = bench.messages();
    for sequence in [2, 3, 4, 7] {
        bench.ack(sequence).unwrap();
    }
    let question = bench.question();
    bench.told();
    bench.answer(NEW_PORT, !question).unwrap();
    assert_eq!(bench.told(), ["Resumed { port: 50000 }"]);
    let again = bench.finish_at(NEW_PORT);
    let data: Vec<_> =
        again.iter().filter(|seen| seen.kind == MessageKind::Vmcore).map(|seen| seen.offset).collect();
    let want: Vec<_> =
        sent.iter().filter(|seen| ![2, 3, 4, 7].contains(&seen.sequence)).map(|seen| seen.offset).collect();
    assert_eq!(data, want);
    assert!(again.iter().all(|seen| seen.to == NEW_PORT));
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
    let stats = bench.client.stats();
    assert_eq!((stats.resumes, stats.restarts, stats.bytes_acked), (1, 0, 20 * 1448));
}

#[test]
fn a_server_that_has_nothing_gets_everything_again() {
    let key = image(100);
    let mut bench = Bench::accepted(named(), DumpPlan { key: Some(key.clone()), ..plan(300 * 1448) });
    bench.ack(1 ^ ABLE).unwrap();
    bench.messages();
    bench.ack(2).unwrap();
    bench.messages();
    for sequence in 3..30 {
        bench.ack(sequence).unwrap();
    }
    let fresh_to = bench.client.sent_to;
    let question = bench.question();
    bench.told();
    bench.answer(NEW_PORT, question).unwrap();
    assert_eq!(bench.told(), ["Restarted { port: 50000 }", "Reached(Key)"]);
    assert_eq!(bench.client.missing(), [(0, 300 * 1448)]);
    assert_eq!(bench.ack(40), Err(Ignored::OtherServerPort), "what the old server says does not count");
    assert_eq!(bench.answer(NEW_PORT, 40), Err(Ignored::RepeatedAck));
    let again = bench.finish_at(NEW_PORT);
    assert_eq!((again[0].kind, again[0].payload.as_slice()), (MessageKind::EkcdKey, key.as_slice()));
    let data: Vec<_> = again.iter().filter(|seen| seen.kind == MessageKind::Vmcore).collect();
    assert_eq!(
        data.iter().map(|seen| seen.offset).collect::<Vec<_>>(),
        (0..300).map(|n| n * 1448).collect::<Vec<_>>()
    );
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
    let stats = bench.client.stats();
    assert_eq!((stats.resumes, stats.restarts), (0, 1));
    assert_eq!((stats.bytes_sent, stats.bytes_acked), (300 * 1448, 300 * 1448));
    assert!(stats.resends >= fresh_to / 1448);
}

#[test]
fn bytes_are_fresh_once_whatever_the_server_forgets() {
    let mut bench = able(plan(100 * 1448));
    let (mut packet, mut fresh) = (Packet::default(), Vec::new());
    let mut restarts = 0;
    loop {
        while let Some(sent) =
            bench.client.poll_transmit(bench.now, bench.image.as_slice(), &mut packet).unwrap()
        {
            fresh.extend(sent.fresh);
        }
        if restarts == 2 {
            break;
        }
        let question = bench.question();
        bench.answer(NEW_PORT, question ^ ABLE).unwrap();
        restarts += 1;
    }
    assert!(fresh.windows(2).all(|pair| pair[0].end == pair[1].start), "{fresh:?}");
    assert_eq!((fresh[0].start, fresh.last().unwrap().end), (0, 64 * 1448));
}

#[test]
fn a_stock_server_is_asked_when_nothing_else_is_left_to_try() {
    let mut bench = Bench::accepted(named(), plan(5 * 1448));
    bench.messages();
    let start = bench.now;
    let sent = bench.silence();
    let asked: Vec<_> = heralds(&sent).iter().map(|(at, _)| at.as_secs()).collect();
    assert_eq!(asked, (12..24).collect::<Vec<_>>());
    assert_eq!(bench.now - start, 24 * SECOND);
    let want = "10.0.0.9:42260 stopped acknowledging while sending memory, 24s ago; 7240 bytes of the core are missing; \
                no packet of 1500 bytes was acknowledged (is the MTU smaller on the way?)";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
}

#[test]
fn a_stock_server_that_was_started_anew_gets_everything_again() {
    let mut bench = Bench::accepted(named(), plan(5 * 1448));
    bench.messages();
    bench.ack(2).unwrap();
    let question = heralds(&bench.wait(13 * SECOND))[0].1.sequence;
    bench.answer(NEW_PORT, question).unwrap();
    assert_eq!(bench.finish_at(NEW_PORT).len(), 7);
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

#[test]
fn a_dump_without_a_name_is_not_asked_for() {
    let mut bench = Bench::accepted(config(), plan(5 * 1448));
    bench.messages();
    bench.closed(PORT).unwrap();
    let start = bench.now;
    assert_eq!(heralds(&bench.silence()), []);
    assert_eq!(bench.now - start, 12 * SECOND);
    let (_, reason) = bench.outcome_and_reason();
    assert!(reason.ends_with("; its host says that the port is closed (does the server run?)"), "{reason}");
}

#[test]
fn a_closed_port_is_believed_at_once_unless_an_ack_contradicts() {
    for is_able in [false, true] {
        let mut bench = Bench::accepted(named(), plan(100 * 1448));
        if is_able {
            bench.ack(1 ^ ABLE).unwrap();
        }
        bench.messages();
        bench.now += ms(1);
        bench.ack(2).unwrap();
        bench.messages();
        bench.closed(PORT).unwrap();
        bench.now += ms(1);
        bench.ack(3).unwrap();
        bench.messages();
        assert_eq!(heralds(&bench.wait(ms(900))), [], "it is alive");
        assert_eq!(bench.closed(PORT + 1), Err(Ignored::OtherServerPort));
        assert_eq!(heralds(&bench.wait(ms(50))), []);
        bench.closed(PORT).unwrap();
        bench.closed(PORT).unwrap();
        let mut asked: Vec<_> = bench.messages().into_iter().map(|seen| (ms(0), seen)).collect();
        asked.extend(bench.wait(ms(1900)));
        assert_eq!(heralds(&asked).len(), 2, "at once, and after a second");
    }
}

#[test]
fn answers_that_nobody_asked_for_are_ignored() {
    let mut bench = Bench::accepted(named(), plan(100 * 1448));
    bench.messages();
    assert_eq!(bench.answer(NEW_PORT, 1 ^ ABLE), Err(Ignored::OtherServerPort));
    assert_eq!(bench.ack_from(SocketAddrV4::new(STRANGER, PORT), 1 ^ ABLE), Err(Ignored::OtherSource));
    assert!(!bench.client.resume.is_able);
    bench.ack(1 ^ ABLE).unwrap();
    assert!(bench.client.resume.is_able);
    assert_eq!(bench.ack(1 ^ ABLE), Err(Ignored::UnknownAck), "once is enough");
    assert_eq!(bench.ack(!1), Err(Ignored::UnknownAck));
    let question = bench.question();
    assert_eq!(bench.ack_from(SocketAddrV4::new(STRANGER, PORT), !question), Err(Ignored::OtherSource));
    assert_eq!(bench.answer(NEW_PORT, !question ^ 1), Err(Ignored::OtherServerPort));
    assert_eq!(bench.answer(NEW_PORT, !1), Err(Ignored::OtherServerPort));
    assert_eq!(bench.client.server().port(), PORT);
    bench.answer(NEW_PORT, !question).unwrap();
    assert_eq!(bench.answer(PORT, !question), Err(Ignored::OtherServerPort), "it was answered");
    assert_eq!(bench.answer(NEW_PORT, question), Err(Ignored::UnknownAck));
    assert_eq!(bench.client.server().port(), NEW_PORT);
}

#[test]
fn a_herald_that_is_acknowledged_twice_or_out_of_order_opens_one_dump() {
    for numbers in [[1, 1 ^ ABLE], [1 ^ ABLE, 1], [!1, 1], [!1, 1 ^ ABLE]] {
        let mut bench = Bench::new(named(), plan(10));
        bench.frames();
        assert_eq!(bench.ack(numbers[0]), Err(Ignored::UnknownAck), "nothing was sent");
        bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
        bench.messages();
        bench.told();
        bench.ack(numbers[0]).unwrap();
        let _ = bench.ack(numbers[1]);
        assert_eq!(bench.told(), ["Accepted { port: 42260 }", "Reached(Data)"], "{numbers:x?}");
        assert!(bench.client.resume.is_able);
        assert_eq!(bench.finish().len(), 3);
    }
}

#[test]
fn a_packed_core_goes_on_but_cannot_begin_anew() {
    let growing = || {
        let mut bench = able(DumpPlan { path: None, core: CorePlan::Growing, key: None });
        bench.client.supply(20 * 1448);
        bench.messages();
        bench
    };
    let mut bench = growing();
    bench.ack(2).unwrap();
    let question = bench.question();
    bench.answer(NEW_PORT, !question).unwrap();
    assert_eq!(bench.messages()[0].offset, 1448);

    let mut bench = growing();
    bench.ack(2).unwrap();
    let question = bench.question();
    bench.answer(NEW_PORT, question).unwrap();
    let want = "10.0.0.9:50000 was started anew while sending memory and has nothing of the dump, and what it had \
                acknowledged of a packed core is not kept; all of the core is missing";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
    assert_eq!(bench.client.missing(), [(0, 20 * 1448)]);

    let mut bench = growing();
    bench.ack(3).unwrap();
    let question = bench.question();
    bench.answer(NEW_PORT, question ^ ABLE).unwrap();
    let offsets: Vec<_> = bench.messages().iter().map(|seen| seen.offset).collect();
    assert_eq!(offsets, (0..20).map(|n| n * 1448).collect::<Vec<_>>(), "all of it is still there");
    bench.client.end_of_core(20 * 1448 + 5, [0; KDH_LEN]);
    for number in 22..=41 {
        bench.answer(NEW_PORT, number).unwrap();
    }
    assert_eq!(bench.finish_at(NEW_PORT).len(), 3);
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

/// Everything but FINISHED is acknowledged.
fn finishing(mut bench: Bench) -> Bench {
    while bench.client.phase() != Phase::Finish {
        for seen in bench.messages() {
            bench.ack(seen.sequence).unwrap();
        }
    }
    assert_eq!(bench.messages()[0].kind, MessageKind::Finished);
    bench
}

#[test]
fn a_stock_server_that_closes_its_port_in_the_end_has_very_likely_finished() {
    let mut bench = finishing(Bench::accepted(named(), plan(10)));
    let start = bench.now;
    bench.closed(PORT).unwrap();
    assert_eq!(heralds(&bench.silence()), [], "it would begin another dump");
    assert_eq!(bench.now - start, 60 * SECOND);
    let want = "10.0.0.9:42260 has acknowledged the whole core but not within 60s that it is stored; \
                its port is closed, as a stock server's is when the core is stored";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Unconfirmed, want.to_owned()));
}

#[test]
fn finished_counts_only_of_a_server_that_is_known_to_have_the_dump() {
    let mut bench = finishing(able(plan(10)));
    let question = bench.question();
    // A new session at the old port by chance: it stores nothing and is done with it.
    assert_eq!(bench.ack(4), Err(Ignored::DoubtfulAck));
    assert!(heralds(&bench.wait(3 * SECOND)).len() == 3, "the question stays");
    bench.answer(NEW_PORT, question).unwrap();
    assert_eq!(bench.client.missing(), [(0, 10)]);
    assert_eq!(bench.finish_at(NEW_PORT).len(), 3);
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);

    let mut bench = finishing(able(plan(10)));
    let question = bench.question();
    bench.answer(PORT, !question).unwrap();
    assert_eq!(bench.messages()[0].kind, MessageKind::Finished);
    bench.ack(4).unwrap();
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

#[test]
fn a_question_that_is_not_answered_ends_the_dump() {
    let mut bench = able(plan(10));
    bench.messages();
    bench.question();
    // The old session goes on acknowledging, but it is not known whose it is.
    bench.ack(2).unwrap();
    let kdh = bench.messages();
    bench.ack(kdh[0].sequence).unwrap();
    assert!(bench.messages().is_empty(), "no FINISHED");
    bench.silence();
    let (outcome, reason) = bench.outcome_and_reason();
    assert_eq!(outcome, Outcome::Failed);
    assert!(reason.contains("not within 120s that it is stored"), "{reason}");
}

#[test]
fn a_link_that_is_away_for_seconds_costs_little_more_than_that() {
    let mut bench = able(plan(100 * 1448));
    bench.messages();
    let away = bench.wait(5 * SECOND);
    assert!(away.len() < 100, "{} frames into the void", away.len());
    let question = heralds(&away)[0].1.sequence;
    // It is back: the next question is answered, as is the next resend.
    let back = bench.wait(SECOND);
    assert_eq!(heralds(&back).len(), 1);
    bench.answer(PORT, !question).unwrap();
    bench.now += ms(1);
    bench.client.handle_timeout(bench.now);
    assert!(!bench.finish().is_empty());
    let rest = bench.wait(ms(500));
    for (_, seen) in rest {
        let _ = bench.ack(seen.sequence);
    }
    bench.finish();
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
    assert_eq!(bench.client.stats().resumes, 1);
}

#[test]
fn a_server_that_forgets_again_and_again_is_left() {
    let mut bench = able(plan(10));
    for _ in 0..12 {
        bench.messages();
        let question = bench.question();
        bench.answer(NEW_PORT, question ^ ABLE).unwrap();
    }
    let want = "10.0.0.9:50000 has begun the dump anew 12 times; 10 bytes of the core are missing";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
}

#[test]
fn numbers_of_questions_are_far_from_those_of_messages() {
    for id in [1, ID, u32::MAX] {
        for sequence in (0..64).map(|n| n << 26) {
            let mut bench = able(plan(10));
            bench.client.config.dump_id = id;
            bench.client.window.restart_at(Sequence(sequence));
            bench.messages();
            let question = bench.question();
            for number in [question, question ^ ABLE, !question] {
                let distance = number.wrapping_sub(sequence).min(sequence.wrapping_sub(number));
                assert!(distance > 1 << 26, "{id:x} {sequence:x} {number:x}");
            }
        }
    }
}
