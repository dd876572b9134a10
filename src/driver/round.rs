//! A store loop: one pass over everything that arrived, one drain, effects handed on.

use super::Shared;
use super::inbox::Mail;
use super::stages::{Followed, Stage};
use crate::raft::Envelope;
use crate::region::size::{self, Measured};
use crate::store::{Effects, Event, SizeCheck, SnapshotErrand, SnapshotWord, Store};
use crate::types::Time;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Ticks made up for after a stall, at most: a loop that slept must hear its mail before it decides
/// that nobody wrote.
const CATCH_UP_TICKS: u32 = 2;

/// Runs until the inbox is closed.
pub fn run(shared: &Shared, at: usize, mut store: Store) {
    let inbox = &shared.inboxes[at];
    let mut mail = Mail::default();
    let mut effects = Effects::default();
    let mut followed = Followed::default();
    let mut next_tick = shared.clock.now().after(shared.config.tick);
    let mut until = next_tick;
    let mut told = store.neighbour_changes();
    while inbox.take(&mut mail, shared.clock.instant(until)) {
        let now = shared.clock.now();
        for event in mail.events.drain(..) {
            store.handle(now, event);
        }
        if !mail.proposals.is_empty() {
            taken(shared, now, &mail, &mut followed);
            store.handle(now, Event::Propose(std::mem::take(&mut mail.proposals)));
        }
        if !mail.reads.is_empty() {
            store.handle(now, Event::Read(std::mem::take(&mut mail.reads)));
        }
        next_tick = tick(shared, &mut store, now, next_tick);
        tell_of_neighbours(shared, at, &store, &mut told);
        store.drain(now, &mut effects);
        shared.counters.rounds.fetch_add(1, Ordering::Relaxed);
        if !effects.is_empty() && !perform(shared, at, now, &mut effects, &mut followed) {
            return;
        }
        // Where every core is busy, whoever is about to send something here sends it before the next round, which is
        // the larger for it: a round costs by regions and wake-ups, hardly by what is in it. An idle core returns at once.
        std::thread::yield_now();
        until = match store.has_work() {
            true => rest(shared, now, next_tick),
            // Who has nobody to tick ticks for the beats alone. (What has arrived is heard at once all the same.)
            false => store.still_until(now).map_or(next_tick, |still| still.max(next_tick)),
        };
    }
}

/// How long a loop may sleep whose drain left work: not at all if the drain only took its share (a group
/// had more to hand out than the passes of one round); if the log has no room, until the writer has made
/// some and nudges. To look again and again would take the core that the writer needs.
fn rest(shared: &Shared, now: Time, next_tick: Time) -> Time {
    if shared.log.has_room() {
        return now;
    }
    shared.held.store(true, Ordering::SeqCst);
    // Again, after the flag is up: either the writer sees it, or we see the room that it made. (Should both
    // miss, the next tick looks.)
    match shared.log.has_room() {
        true => now,
        false => next_tick,
    }
}

/// Ticks that are due by the clock; gives the time of the next one.
fn tick(shared: &Shared, store: &mut Store, now: Time, due: Time) -> Time {
    let tick = shared.config.tick;
    let mut next = due;
    let mut done = 0;
    while next <= now && done < CATCH_UP_TICKS {
        store.handle(now, Event::Tick);
        next = next.after(tick);
        done += 1;
    }
    if next <= now { now.after(tick) } else { next }
}

/// The first loop, which has the beats, ends the sleep of the others if they are to look at a neighbour.
fn tell_of_neighbours(shared: &Shared, at: usize, store: &Store, told: &mut u64) {
    let changes = store.neighbour_changes();
    if at == 0 && *told != changes {
        *told = changes;
        shared.inboxes[1..].iter().for_each(|inbox| inbox.nudge());
    }
}

/// Client batches left the inbox.
fn taken(shared: &Shared, now: Time, mail: &Mail, followed: &mut Followed) {
    for (handed, batches) in &mail.handed {
        shared.stages.record(Stage::Queue, *handed, now, *batches);
    }
    for proposal in &mail.proposals {
        followed.put(proposal.token, now);
    }
}

/// Hands on the effects of a round that `began` then. `false` if the store cannot go on.
fn perform(
    shared: &Shared,
    at: usize,
    began: Time,
    effects: &mut Effects,
    followed: &mut Followed,
) -> bool {
    let now = shared.clock.now();
    followed.proposed(&shared.stages, began, now, &effects.proposed);
    effects.proposed.clear();
    followed.committed(&shared.stages, now, &effects.apply);
    for (to, lane, envelopes) in effects.send_now.take() {
        // Replicas of one node have notes for one another, too, and no connection leads here.
        match envelopes.first().is_some_and(|first| first.from_store == to) {
            true => hand_over(shared, envelopes),
            false => shared.outward.send(to, lane, envelopes),
        }
    }
    for (to, beat) in effects.beats.drain(..) {
        shared.outward.beat(to, beat);
    }
    if !effects.after_persist.is_empty() {
        super::writer::queue(shared, at, now, effects.after_persist.drain(..));
    }
    super::writer::write_at_once(shared);
    if !effects.apply.is_empty() {
        super::apply::queue(shared, now, std::mem::take(&mut effects.apply));
    }
    if !effects.replies.is_empty() {
        shared.desks.complete(std::mem::take(&mut effects.replies));
    }
    for birth in effects.births.drain(..) {
        shared.inboxes[shared.loop_of(birth.state.region.id)].post(Event::Born(birth));
    }
    for check in effects.size_checks.drain(..) {
        measure(shared, at, check);
    }
    for wish in effects.split_wishes.drain(..) {
        shared.outward.split(wish);
    }
    for wish in effects.merge_wishes.drain(..) {
        shared.outward.merge(wish);
    }
    for aside in effects.asides.drain(..) {
        shared.inboxes[shared.loop_of(aside.region)].post(Event::Aside(aside));
    }
    for snapshot in effects.snapshots.drain(..) {
        send_snapshot(shared, at, snapshot);
    }
    for word in effects.snapshot_words.drain(..) {
        say(shared, at, word);
    }
    if std::mem::take(&mut effects.flush_soon) {
        shared.upkeep.flush_before_long();
    }
    for file in effects.discard.drain(..) {
        remove(shared, &file.path);
    }
    match effects.fatal.take() {
        Some(error) => {
            shared.fail("store", error);
            false
        }
        None => true,
    }
}

fn hand_over(shared: &Shared, envelopes: Vec<Envelope>) {
    for envelope in envelopes {
        shared.inboxes[shared.loop_of(envelope.region)].messages(vec![envelope]);
    }
}

fn say(shared: &Shared, at: usize, word: SnapshotWord) {
    match word {
        SnapshotWord::Wanted { errand, store, claim } => {
            let inbox = Arc::clone(&shared.inboxes[at]);
            let SnapshotErrand { region, from, to } = errand;
            let granted = move || inbox.post(Event::SnapshotGranted { region, from, to });
            shared.outward.snapshot_wanted(errand, store, claim, Box::new(granted));
        }
        SnapshotWord::Declined(errand) => shared.outward.snapshot_declined(errand),
        SnapshotWord::CalledOff(errand) => shared.outward.snapshot_called_off(errand),
    }
}

fn send_snapshot(shared: &Shared, at: usize, snapshot: crate::store::SnapshotSend) {
    let (region, from, to) =
        (snapshot.envelope.region, snapshot.envelope.from, snapshot.envelope.to);
    let inbox = Arc::clone(&shared.inboxes[at]);
    shared.outward.send_snapshot(
        snapshot,
        Box::new(move |delivered| {
            inbox.post(Event::SnapshotSent { region, from, to, delivered });
        }),
    );
}

/// Measures a region on a read thread.
fn measure(shared: &Shared, at: usize, check: SizeCheck) {
    let (inbox, kv) = (Arc::clone(&shared.inboxes[at]), Arc::clone(&shared.kv));
    let SizeCheck { region, peer, epoch, range, split_bytes } = check;
    let job = Box::new(move || {
        let measured = kv.view().and_then(|view| size::measure(&*view, &range, split_bytes));
        inbox.post(match measured {
            Ok((bytes, keys)) => Event::Measured(Measured { region, peer, epoch, bytes, keys }),
            // Damage, most likely: whoever reads the keys hears of it.
            Err(_) => Event::NotMeasured(region),
        });
    });
    if shared.readers.submit(job).is_err() {
        shared.inboxes[at].post(Event::NotMeasured(region));
    }
}

/// Removes a received snapshot that nobody needs. A file that stays costs room until the next start.
pub fn remove(shared: &Shared, path: &std::path::Path) {
    if let Err(error) = shared.disk.remove(path) {
        tracing::warn!(%error, "a received snapshot could not be removed");
    }
    shared.outward.snapshot_gone(path);
}
