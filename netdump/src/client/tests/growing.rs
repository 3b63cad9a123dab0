//! Cores whose length and header are known only in the end.

use super::*;

const HEADER: [u8; KDH_LEN] = [0x47; KDH_LEN];

fn growing() -> Bench {
    growing_with(config())
}

fn growing_with(config: ClientConfig) -> Bench {
    Bench::accepted(config, DumpPlan { path: None, core: CorePlan::Growing, key: None })
}

fn offsets(messages: &[Seen]) -> Vec<(u64, usize)> {
    messages.iter().map(|seen| (seen.offset, seen.payload.len())).collect()
}

fn kinds(messages: &[Seen]) -> Vec<MessageKind> {
    messages.iter().map(|seen| seen.kind).collect()
}

#[test]
fn full_messages_go_as_the_core_grows_and_the_rest_with_its_end() {
    let mut bench = growing();
    assert!(bench.messages().is_empty());
    assert!(bench.client.is_starved() && bench.client.is_idle());
    bench.client.supply(3000);
    assert_eq!(offsets(&bench.messages()), [(0, 1448), (1448, 1448)]);
    assert!(bench.client.is_starved() && !bench.client.is_idle());
    bench.client.supply(4000);
    assert!(bench.messages().is_empty());
    bench.client.end_of_core(4096, HEADER);
    assert!(!bench.client.is_starved());
    assert_eq!(offsets(&bench.messages()), [(2896, 1200)]);
    for sequence in 2..=4 {
        bench.ack(sequence).unwrap();
    }
    let rest = bench.finish();
    assert_eq!(kinds(&rest), [MessageKind::Kdh, MessageKind::Finished]);
    assert_eq!(rest[0].payload, HEADER);
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
    assert_eq!(bench.client.stats().bytes_acked, 4096);
}

#[test]
fn the_end_may_come_when_everything_is_acknowledged() {
    let mut bench = growing();
    bench.client.supply(1448);
    assert_eq!(kinds(&bench.finish()), [MessageKind::Vmcore]);
    assert_eq!((bench.client.phase(), bench.client.acked_to()), (Phase::Data, 1448));
    bench.client.end_of_core(1448, HEADER);
    assert_eq!(bench.client.phase(), Phase::Header);
    assert_eq!(kinds(&bench.finish()), [MessageKind::Kdh, MessageKind::Finished]);
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

#[test]
fn the_end_may_come_before_the_server_has_answered() {
    let mut bench = Bench::new(config(), DumpPlan { path: None, core: CorePlan::Growing, key: None });
    bench.client.end_of_core(10, HEADER);
    bench.frames();
    bench.arp(ArpOperation::Reply, THEIR_MAC, SERVER).unwrap();
    let sent = bench.finish();
    let want = [MessageKind::Herald, MessageKind::Vmcore, MessageKind::Kdh, MessageKind::Finished];
    assert_eq!(kinds(&sent), want);
    assert_eq!(sent[1].payload, bench.image[..10]);
}

#[test]
fn a_core_that_ends_before_it_began_is_a_dump() {
    let mut bench = growing();
    bench.client.end_of_core(0, HEADER);
    assert_eq!(kinds(&bench.finish()), [MessageKind::Kdh, MessageKind::Finished]);
}

#[test]
fn the_header_waits_for_the_end_and_for_all_data() {
    let mut bench = growing();
    bench.client.supply(2896);
    bench.messages();
    bench.ack(3).unwrap();
    bench.client.end_of_core(2896, HEADER);
    assert!(bench.messages().is_empty());
    assert_eq!(bench.client.acked_to(), 0);
    bench.ack(2).unwrap();
    assert_eq!(kinds(&bench.messages()), [MessageKind::Kdh]);
}

#[test]
fn the_end_is_told_once() {
    let mut bench = growing();
    bench.client.end_of_core(100, HEADER);
    bench.client.end_of_core(200, [0; KDH_LEN]);
    bench.client.supply(300);
    let sent = bench.finish();
    assert_eq!((sent[0].payload.len(), sent[1].payload.as_slice()), (100, &HEADER[..]));
    let mut known = Bench::accepted(config(), plan(100));
    known.client.supply(300);
    known.client.end_of_core(300, HEADER);
    let sent = known.finish();
    assert_eq!((sent[0].payload.len(), sent[1].payload.as_slice()), (100, &[0x4b; KDH_LEN][..]));
}

#[test]
fn a_full_window_is_not_starved_and_slides_over_what_is_there() {
    let mut bench = growing();
    bench.client.supply(65 * 1448);
    assert_eq!(bench.messages().len(), 64);
    assert!(!bench.client.is_starved());
    assert_eq!(bench.client.acked_to(), 0);
    bench.ack(2).unwrap();
    assert_eq!(bench.client.acked_to(), 1448);
    assert_eq!(offsets(&bench.messages()), [(64 * 1448, 1448)]);
    assert!(!bench.client.is_starved(), "the window is full again");
    bench.ack(3).unwrap();
    assert!(bench.client.is_starved());
    // What was lost is sent again from what was kept, and nothing before it is asked for.
    for sequence in 5..=60 {
        bench.ack(sequence).unwrap();
    }
    assert_eq!(bench.client.acked_to(), 2 * 1448);
    assert_eq!(offsets(&bench.messages()), [(2 * 1448, 1448)]);
}

#[test]
fn a_core_that_grows_slowly_is_no_silence() {
    let mut bench = growing();
    bench.client.supply(1448);
    bench.finish();
    assert_eq!(bench.client.poll_timeout(), None);
    bench.now += 1000 * SECOND;
    bench.client.handle_timeout(bench.now);
    bench.client.end_of_core(2000, HEADER);
    bench.finish();
    assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
}

#[test]
fn the_deadline_holds_for_a_core_that_does_not_grow() {
    let mut bench = growing_with(ClientConfig { deadline: Some(3 * SECOND), ..config() });
    bench.client.supply(1448);
    bench.finish();
    bench.silence();
    let want = "the dump's deadline of 3s passed while sending memory; the core is missing from byte 1448 on";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
    assert!(bench.client.missing().is_empty(), "of what there was");
}

#[test]
fn a_silent_server_lacks_what_there_was_and_the_rest() {
    let mut bench = growing();
    bench.client.supply(5 * 1448 + 7);
    bench.messages();
    bench.ack(2).unwrap();
    bench.ack(4).unwrap();
    bench.silence();
    let want = "10.0.0.9:42260 stopped acknowledging while sending memory, 12s ago; \
                the core is missing from byte 1448 on";
    assert_eq!(bench.outcome_and_reason(), (Outcome::Failed, want.to_owned()));
    assert_eq!(bench.client.missing(), [(1448, 2 * 1448), (3 * 1448, 5 * 1448 + 7)]);
}

proptest! {
    /// However the core grows and whatever arrives, its bytes are sent once each, in order and in full messages.
    #[test]
    fn any_growth_sends_every_byte_once(
        steps in prop::collection::vec((0..9000_u64, any::<bool>()), 0..40),
        mtu in prop::sample::select(vec![564_u32, 1500, 9000]),
    ) {
        let mut bench = growing_with(ClientConfig { mtu, ..config() });
        let (mut available, mut sent, mut waiting) = (0, Vec::new(), Vec::new());
        for (more, acknowledge) in steps {
            available = (available + more).min(GROWN as u64);
            bench.client.supply(available);
            let messages = bench.messages();
            prop_assert!(messages.iter().all(|seen| seen.payload.len() == bench.client.payload_limit));
            waiting.extend(messages.iter().map(|seen| seen.sequence));
            sent.extend(messages);
            if acknowledge {
                for sequence in waiting.drain(..).rev() {
                    bench.ack(sequence).unwrap();
                }
            }
        }
        bench.client.end_of_core(available, HEADER);
        for sequence in waiting.drain(..) {
            bench.ack(sequence).unwrap();
        }
        sent.extend(bench.finish());
        sent.retain(|seen| seen.kind == MessageKind::Vmcore);
        sent.sort_by_key(|seen| seen.offset);
        sent.dedup_by_key(|seen| seen.offset);
        let bytes: Vec<u8> = sent.iter().flat_map(|seen| seen.payload.clone()).collect();
        prop_assert_eq!(bytes.as_slice(), &bench.image[..usize::try_from(available).unwrap()]);
        prop_assert_eq!(bench.outcome_and_reason().0, Outcome::Complete);
    }
}

/// A core in guest memory that minds where it is asked.
struct SoFar(usize);

impl ReadAt for SoFar {
    fn length(&self) -> u64 {
        GROWN as u64
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ReadError> {
        unreachable!("it lies in guest memory")
    }

    fn locate(&self, offset: u64, len: usize) -> Option<u64> {
        assert!(offset + len as u64 <= self.0 as u64, "{offset} + {len} of {}", self.0);
        Some(offset)
    }
}

#[test]
fn trains_of_a_growing_core_look_at_nothing_that_is_not_there() {
    let mut bench = growing();
    bench.client.config.offloads = Offloads { gather: true, checksum: true, segments: 8 };
    bench.client.supply(3000);
    let mut packet = Packet::default();
    let sent = bench.client.poll_transmit(bench.now, &SoFar(3000), &mut packet).unwrap().unwrap();
    assert_eq!((sent.messages, sent.fresh), (2, Some(0..2896)));
}
