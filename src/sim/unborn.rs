//! Requests for the votes of replicas that are not born yet.
//!
//! The leader of a region that is cut campaigns for the parts as soon as it has applied the cut; its requests reach stores that have not.
//! They are kept until the replica is born, which then answers at once: so a part is led at once wherever a majority has applied
//! the cut, instead of an election timeout later. Nothing else tells whether they were kept: the candidate asks again in time.
//!
//! **The promise.** Who is born in the life of a store in which it was asked answers the last request in the round in which it is
//! born. Nothing is asked of one that is fenced off, that an earlier life has brought to a later term, or that helps nobody for an
//! election timeout because it has lived before (its log is older than its state).

use super::cluster::{Cluster, Step, violation};
use crate::store::{Effects, Event};
use crate::types::*;
use ::raft::eraftpb::MessageType;
use std::collections::BTreeMap;

/// A request that was made of a replica that was not there.
#[derive(Clone, Copy, Debug)]
struct Asked {
    from: PeerId,
    to: PeerId,
    term: u64,
    answer: MessageType,
}

/// The last request of each region, by the life of a store.
#[derive(Default, Debug)]
pub(super) struct Unborn {
    asked: BTreeMap<(StoreId, u64, RegionId), Asked>,
}

impl Cluster {
    /// An event is about to reach a loop: who is asked for his vote and is not there is noted.
    pub(super) fn note_requests(&mut self, id: StoreId, life: u64, at: usize, event: &Event) {
        let Event::Messages(envelopes) = event else { return };
        let running = self.nodes.get(&id).and_then(|node| node.running.as_ref());
        let Some(store) = running.and_then(|running| running.stores.get(at)) else { return };
        for envelope in envelopes {
            let answer = match envelope.message.get_msg_type() {
                MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
                MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
                _ => continue,
            };
            if store.peers().any(|peer| peer.region.id == envelope.region) {
                continue;
            }
            let (from, to, term) = (envelope.from, envelope.to, envelope.message.term);
            let asked = Asked { from, to, term, answer };
            self.unborn.asked.insert((id, life, envelope.region), asked);
        }
    }

    /// A loop has ended its round: who was born in it answers.
    pub(super) fn look_at_the_newborn(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        at: usize,
        effects: &Effects,
    ) -> Step {
        let of_life = (id, life, RegionId(0))..(id, life + 1, RegionId(0));
        if self.unborn.asked.range(of_life.clone()).next().is_none() {
            return Ok(());
        }
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let (local, running) = (node.now(now), node.running.as_ref());
        let Some(store) = running.and_then(|running| running.stores.get(at)) else { return Ok(()) };
        let here = |region: &RegionId| store.peers().find(|peer| peer.region.id == *region);
        let asked = self.unborn.asked.range(of_life);
        let born = asked.filter_map(|(key, asked)| Some((*key, *asked, here(&key.2)?)));
        let born: Vec<_> = born
            .map(|(key, asked, peer)| {
                let silent = peer.fence.is_some() || peer.restarted(local);
                let term = peer.status().term;
                (key, asked, peer.id != asked.to || silent || term > asked.term)
            })
            .collect();
        for (key, asked, excused) in born {
            self.unborn.asked.remove(&key);
            self.counts.asked_unborn += 1;
            if !excused && !answers(effects, key.2, asked) {
                let detail = format!("{id} {}: {asked:?}", key.2);
                return Err(violation(
                    "who was asked for a vote before it was born answers",
                    detail,
                ));
            }
        }
        Ok(())
    }
}

fn answers(effects: &Effects, region: RegionId, asked: Asked) -> bool {
    let later = effects.after_persist.iter().flat_map(|after| after.send.envelopes());
    let mut all = effects.send_now.envelopes().chain(later);
    all.any(|envelope| {
        let kind = envelope.message.get_msg_type();
        (envelope.region, envelope.to, kind) == (region, asked.from, asked.answer)
    })
}
