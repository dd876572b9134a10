//! Who sleeps beside what, on one store, by hand.

use super::super::merges::tests::{Bench, region};
use crate::codec::beat::Beat;
use crate::raft::Envelope;
use crate::region::peer::Peer;
use crate::store::Event;
use crate::types::{Departed, PeerId, RegionId, Role, StoreId};
use ::raft::eraftpb::{Message, MessageType};
use std::time::Duration;

/// A node that may be lost for good.
const LOST: StoreId = StoreId(2);

/// A region that has lost a replica to a node that is silent.
fn bereaved() -> Bench {
    let mut bench = Bench::tired(vec![region(1, "", "", &[1])], Duration::from_millis(500));
    bench.settle();
    let gone = Departed { region: RegionId(1), id: PeerId(12), store: LOST };
    peer(&mut bench).set_removed(vec![gone]);
    bench
}

fn peer(bench: &mut Bench) -> &mut Peer {
    bench.store().peers.values_mut().next().unwrap()
}

fn beat(number: u64) -> Event {
    let beat = Beat {
        number,
        life: 77,
        hears: 0,
        support_ms: 0,
        epoch: 0,
        rouse: 0,
        shares: true,
        sums: None,
    };
    Event::Beat { from: LOST, beat }
}

/// A node dies, its replicas are made anew elsewhere, and nobody can say that the old ones are gone. Their regions sleep all
/// the same, for as long as it is silent; should it come back, they wake and ask.
#[test]
fn a_former_replica_on_a_silent_node_keeps_nobody_awake() {
    let mut bench = bereaved();
    bench.ticks(200);
    assert!(peer(&mut bench).asleep());
    // It is not forgotten, though no region has a replica there any more.
    bench.handle(beat(1));
    bench.ticks(1);
    assert!(!peer(&mut bench).asleep(), "there is somebody to be asked");
    for number in 2..40 {
        bench.handle(beat(number));
        bench.ticks(2);
        assert!(!peer(&mut bench).asleep(), "as long as it is there");
    }
    bench.ticks(200);
    assert!(peer(&mut bench).asleep(), "it is silent again");
    bench.handle(beat(41));
    bench.ticks(1);
    assert!(!peer(&mut bench).asleep(), "it was only silent, and is to be asked all the same");
}

/// A beat of a node that hears us, and has given us up so often.
fn kind_beat(bench: &mut Bench, number: u64, epoch: u64) {
    let Event::Beat { from, beat } = beat(number) else { panic!("{LOST}") };
    let hears = bench.store().config.nonce | 1;
    bench.handle(Event::Beat { from, beat: Beat { hears, support_ms: 60_000, epoch, ..beat } });
}

/// A leader here sleeps beside its learner on another node, which is told to sleep, too, if it `answers`.
fn asleep_beside_a_learner(answers: impl Fn(&mut Bench)) -> Bench {
    let mut group = region(1, "", "", &[1, 2]);
    group.peers[1].role = Role::Learner;
    let mut bench = Bench::tired(vec![group], Duration::from_millis(500));
    bench.settle();
    for _ in 0..400 {
        answers(&mut bench);
        bench.ticks(1);
        if peer(&mut bench).asleep() {
            return bench;
        }
    }
    panic!("it stays awake");
}

/// What the learner of a region says that has everything.
fn answer(bench: &mut Bench, region: RegionId) {
    say(bench, region, MessageType::MsgAppendResponse, b"");
}

/// What the other replica of a region says that has everything.
fn say(bench: &mut Bench, region: RegionId, kind: MessageType, context: &'static [u8]) {
    let group = bench.store().peers.get(&region).unwrap();
    let (to, status) = (group.id, group.group.status());
    let from = group.region.peer_on(LOST).unwrap().id;
    let (term, index, commit) = (status.term.max(1), status.last_index, status.committed);
    let mut message = Message { from: from.0, to: to.0, term, index, commit, ..Message::default() };
    message.set_msg_type(kind);
    message.context = context.into();
    let from_store = LOST;
    bench.handle(Event::Messages(vec![Envelope {
        region,
        from,
        to,
        from_store,
        message,
        note: None,
    }]));
}

/// A node stalls for a while and goes on. It heard us meanwhile, so nobody who slept there has woken: their leaders, who
/// know that they are even, sleep on. A leader that slept without its follower there looks after it.
#[test]
fn a_node_that_was_only_silent_wakes_those_who_slept_without_it() {
    let numbers = std::cell::Cell::new(0);
    let beats = |bench: &mut Bench, epoch| {
        numbers.set(numbers.get() + 1);
        kind_beat(bench, numbers.get(), epoch);
        bench.ticks(1);
    };
    let mut bench = asleep_beside_a_learner(|bench| {
        beats(bench, 0);
        answer(bench, RegionId(1));
    });
    let supports = |bench: &mut Bench| bench.running().registry.neighbours().get(LOST).support;
    bench.ticks(60);
    assert!(!supports(&mut bench));
    beats(&mut bench, 0);
    assert!(supports(&mut bench) && peer(&mut bench).asleep(), "the learner sleeps, too");
    bench.ticks(60);
    beats(&mut bench, 1);
    assert!(!peer(&mut bench).asleep(), "it may have woken: its node had given us up");

    // Its node is heard once, and silent when the leader lies down.
    let mut bench = asleep_beside_a_learner(|bench| {
        if numbers.get() > 0 {
            numbers.set(0);
            kind_beat(bench, 1, 0);
        }
    });
    assert!(!supports(&mut bench));
    numbers.set(1);
    beats(&mut bench, 0);
    assert!(!peer(&mut bench).asleep(), "it lags");
}

/// A store that was struck off is never heard of again: what it held is gone. Otherwise its regions would keep it on their
/// lists for ever, and none of them could be merged any more.
#[test]
fn former_replicas_on_a_store_that_has_left_are_forgotten() {
    let mut bench = bereaved();
    bench.ticks(2);
    assert_eq!(peer(&mut bench).removed.len(), 1);
    bench.running().registry.neighbours().has_left(LOST);
    bench.ticks(200);
    assert!(peer(&mut bench).removed.is_empty());
}

/// Nine regions are awake where a tick may look at three: each has its turn every third tick and lives through all three then. None
/// comes off badly when there are more turns for a while, and fewer again.
#[test]
fn groups_that_take_turns_live_as_long_as_others() {
    let bounds = ["", "b", "c", "d", "e", "f", "g", "h", "i", ""];
    let row = (1..=9).map(|id| region(id, bounds[id as usize - 1], bounds[id as usize], &[1]));
    let mut bench = Bench::tired(row.collect(), Duration::ZERO);
    bench.settle();
    let ages = |bench: &mut Bench| -> Vec<u64> {
        bench.store().peers.values().map(|peer| peer.ticks).collect()
    };
    bench.ticks(10);
    let before = ages(&mut bench);
    assert!(before.iter().all(|age| *age == 10), "{before:?}");
    for (ticks, at_once) in [(30, 3), (1, 5), (1, 3), (1, 9), (1, 3), (20, 4), (6, 3)] {
        bench.store().config.ticked_at_once = at_once;
        bench.ticks(ticks);
    }
    let during = ages(&mut bench);
    assert!(during.iter().all(|age| (67..=70).contains(age)), "{during:?}");
    assert!(during.iter().any(|age| *age < 70), "they take turns: {during:?}");
    bench.store().config.ticked_at_once = 9;
    bench.ticks(3);
    let after = ages(&mut bench);
    assert!(after.iter().all(|age| (71..=73).contains(age)), "{after:?}");
}

/// Groups have their turn as often as their heartbeats are due. Of some the heartbeat falls on the first tick of each turn,
/// and waits to leave during all the others of it: they are idle all the same, and sleep. (Seeds 1639, 4255 and 6535 of the
/// simulator's regions: whether a group ever slept depended on the tick at which it had its first turn.)
#[test]
fn groups_whose_turns_come_with_their_heartbeats_sleep() {
    let bounds = ["", "b", "c", "d", "e", "f", "g", "h", "i", ""];
    let row = (1..=9).map(|id| {
        let mut group = region(id, bounds[id as usize - 1], bounds[id as usize], &[1, 2]);
        group.peers[1].role = Role::Learner;
        group
    });
    let mut bench = Bench::tired(row.collect(), Duration::from_millis(500));
    let config = &mut bench.store().config;
    config.ticked_at_once = 1;
    assert_eq!(config.turns(9), config.group.heartbeat_ticks as u64);
    bench.settle();
    for number in 1..=200 {
        kind_beat(&mut bench, number, 0);
        let awake: Vec<RegionId> = bench.store().watch.awake.iter().copied().collect();
        awake.into_iter().for_each(|region| answer(&mut bench, region));
        bench.settle();
        bench.ticks(1);
    }
    let awake: Vec<RegionId> = bench.store().watch.awake.iter().copied().collect();
    assert!(awake.is_empty(), "{awake:?}");
}

/// Regions seed 13534: a node was met, forgotten, and met again. It came back as often as it had before, so nothing was new, and the
/// leader slept without a replica that had no leader.
#[test]
fn who_was_forgotten_and_is_met_again_wakes_those_who_wait_for_it() {
    let mut bench = Bench::tired(vec![region(1, "", "", &[1])], Duration::from_millis(500));
    bench.settle();
    bench.handle(beat(1));
    bench.ticks(1);
    let knows = |bench: &mut Bench| bench.running().registry.neighbours().knows(LOST);
    assert!(knows(&mut bench));
    bench.ticks(400);
    assert!(!knows(&mut bench), "nothing is shared with it");
    let gone = Departed { region: RegionId(1), id: PeerId(12), store: LOST };
    bench.store().rouse(RegionId(1));
    peer(&mut bench).set_removed(vec![gone]);
    bench.ticks(400);
    assert!(peer(&mut bench).asleep() && knows(&mut bench));
    bench.handle(beat(2));
    bench.ticks(1);
    assert!(!peer(&mut bench).asleep(), "there is somebody to be asked");
}

/// The leader wakes for it alone, and does not sleep on before it has gone. (Regions seed 8075, where two nodes came back at once: the
/// leader found it even before it had noticed it, and slept on; it stayed for ever, and the region could not be merged.)
#[test]
fn who_is_in_passing_goes_though_its_node_was_away() {
    let mut group = region(1, "", "", &[1, 2]);
    group.peers[1].role = Role::Passing;
    let mut bench = Bench::tired(vec![group], Duration::from_millis(500));
    bench.settle();
    bench.ticks(400);
    assert!(peer(&mut bench).asleep(), "it is away");
    for number in 1..2_000 {
        kind_beat(&mut bench, number, 0);
        bench.ticks(1);
        if peer(&mut bench).region.peer_on(LOST).is_none() {
            return;
        }
        answer(&mut bench, RegionId(1));
    }
    panic!("it stays: asleep {}", peer(&mut bench).asleep());
}

/// Answers take longer than a group takes to fall asleep: those to what was said before are nothing new. Whoever does not agree
/// to sleep says so, and that wakes.
#[test]
fn an_answer_that_took_long_wakes_nobody() {
    let numbers = std::cell::Cell::new(0);
    let mut bench = asleep_beside_a_learner(|bench| {
        numbers.set(numbers.get() + 1);
        kind_beat(bench, numbers.get(), 0);
        answer(bench, RegionId(1));
    });
    use MessageType::{MsgAppendResponse, MsgHeartbeatResponse, MsgRequestPreVoteResponse};
    for kind in [MsgAppendResponse, MsgHeartbeatResponse, MsgRequestPreVoteResponse] {
        say(&mut bench, RegionId(1), kind, b"");
        assert!(peer(&mut bench).asleep(), "{kind:?}");
    }
    say(&mut bench, RegionId(1), MsgHeartbeatResponse, b"sleep");
    assert!(!peer(&mut bench).asleep());
}

/// A learner that woke alone, and is no candidate ever, says so to its leader, which sleeps: it was awake for ever (seeds 5955
/// and 72 others of the simulator's regions, where the watchdog had asked three times for it to be roused).
#[test]
fn who_finds_itself_awake_alone_calls_its_leader() {
    let mut group = region(1, "", "", &[1, 2]);
    group.peers[0].role = Role::Learner;
    let mut bench = Bench::tired(vec![group], Duration::from_millis(500));
    bench.settle();
    say(&mut bench, RegionId(1), MessageType::MsgHeartbeat, b"");
    bench.settle();
    bench.sent.clear();
    let calls = |bench: &mut Bench| {
        let call = |message: &Message| {
            let kind = message.get_msg_type();
            kind == MessageType::MsgHeartbeatResponse && &message.context[..] == b"sleep"
        };
        bench.sent.drain(..).filter(|sent| sent.from_store != LOST && call(&sent.message)).count()
    };
    let heartbeat = bench.store().config.group.heartbeat_ticks as u32;
    bench.ticks(2 * heartbeat - 1);
    assert_eq!(calls(&mut bench), 0, "it may be late");
    bench.ticks(4 * heartbeat);
    assert_eq!(calls(&mut bench), 4, "again and again, for one may be lost");
    say(&mut bench, RegionId(1), MessageType::MsgHeartbeat, b"");
    bench.ticks(heartbeat);
    assert_eq!(calls(&mut bench), 0, "it speaks");
}

/// A loop whose groups all sleep is not ticked until its next beats are due, unless there is something to be heeded: of the loops that
/// have no beats, nobody would know that a leader's node is lost.
#[test]
fn nobody_is_still_who_has_a_neighbour_to_heed() {
    let mut bench = bereaved();
    bench.ticks(200);
    assert!(peer(&mut bench).asleep());
    let still = |bench: &mut Bench| {
        let now = bench.now;
        bench.store().still_until(now)
    };
    assert!(still(&mut bench).is_some());
    bench.store().registry.neighbours().alter(LOST, |known| known.losses += 1);
    assert_eq!(still(&mut bench), None);
    bench.ticks(1);
    assert!(peer(&mut bench).asleep() && still(&mut bench).is_some(), "heeded");
}
