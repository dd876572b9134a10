//! The checkers' side of a cluster: what they look at, and when.

use super::checker::state_hash;
use super::cluster::{Cluster, Step, violation};
use super::linear::{Effort, Verdict};
use crate::kv::{Direction, StateStore, View};
use crate::region::peer::Peer;
use crate::region::storage::last_index;
use crate::store::*;
use crate::types::*;
use bytes::Bytes;
use std::cell::Cell;
use std::time::Duration;

/// In the end replicas have applied the same within this.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks meanwhile.
const LOOK: Duration = Duration::from_millis(100);

fn crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// The same of what an entry in the log says: of a changed configuration that is what stands beside raft's form.
fn crc_of(entry: crate::log::Entry) -> u32 {
    match crate::log::raft_rs::from_log(entry) {
        Ok(entry) if !entry.context.is_empty() => crc(&entry.context),
        Ok(entry) => crc(&entry.data),
        Err(_) => 0,
    }
}

/// A leader's log is whole above every snapshot that is on its way.
fn look_at_pin(id: StoreId, peer: &Peer) -> Step {
    let Some(pin) = peer.pin() else { return Ok(()) };
    let truncated = peer.status().first_index - 1;
    if truncated > pin {
        let region = peer.region.id;
        let what = format!("{id} {region}: compacted to {truncated}, pinned at {pin}");
        return Err(violation("the log above a snapshot under way is kept", what));
    }
    Ok(())
}

impl Cluster {
    /// Where a node's replicas stand; nothing while it is down.
    pub fn statuses(&self, id: StoreId) -> Vec<RegionStatus> {
        let running = self.nodes.get(&id).and_then(|node| node.running.as_ref());
        running.map_or(Vec::new(), |r| r.stores.iter().flat_map(Store::status).collect())
    }

    /// After a drain: the log above snapshots is kept, one leader per term, a lease only with the newest of them, and a new leader's log holds
    /// everything committed.
    pub(super) fn look_at_leaders(&mut self, now: Time, id: StoreId, at: usize) -> Step {
        self.look_at_fenced(now, id, at)?;
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let Some(running) = node.running.as_ref() else { return Ok(()) };
        let local = node.now(now);
        let mut unsure = Vec::new();
        for peer in running.stores[at].peers() {
            let region = peer.region.id;
            look_at_pin(id, peer)?;
            let leads = peer.leads_term();
            let newest = self.led.get(&region).copied().unwrap_or(0);
            // A lease that is taken, or kept, after the newer leader has come: `look_at_leases` saw none then.
            if peer.share.lease_holds(local) {
                if leads.is_none_or(|term| term < newest) {
                    let detail =
                        format!("{region}: {id} holds a lease and leads {leads:?}, not {newest}");
                    return Err(violation("one lease at a time", detail));
                }
                if self.leases.is_unsure(id, region, &peer.share) {
                    unsure.push(region);
                }
            }
            let Some(term) = leads else { continue };
            self.leaders.observe(region, term, peer.id)?;
            // An old leader that was cut off may go on believing for a while.
            if self.led.get(&region).is_some_and(|newest| *newest >= term) {
                continue;
            }
            self.led.insert(region, term);
            self.look_at_leases(now, id, region, term)?;
            self.counts.elections += 1;
            self.trace.line(now, format_args!("{id} {} leads {region} in term {term}", peer.id));
            let first = running.log.truncated(region.0).index + 1;
            let unread = Cell::new(false);
            let held = |index| {
                let entries = running.log.entries(region.0, index, index + 1, u64::MAX);
                unread.set(unread.get() || entries.is_err());
                entries.ok()?.into_iter().next().map(|entry| (entry.term, crc_of(entry)))
            };
            let judged = self.matching.leader_is_complete(region, peer.id, term, first, held);
            // Damage that it has not met is no loss yet; once it does, it is fenced off.
            if !(unread.get() && self.is_damaged(id)) {
                judged?;
            }
        }
        unsure.into_iter().try_for_each(|region| self.look_at_lease(now, id, region))
    }

    /// When a replica has become leader in the newest term: no other one may still hold a lease, which is
    /// of an older term then. No client has to notice.
    fn look_at_leases(&self, now: Time, leader: StoreId, region: RegionId, term: u64) -> Step {
        for (id, node) in self.nodes.iter().filter(|(id, _)| **id != leader) {
            let Some(running) = &node.running else { continue };
            let Some(share) = running.registry.get(region) else { continue };
            if share.lease_holds(node.now(now)) {
                let detail = format!("{region}: {leader} leads term {term}, {id} holds a lease");
                return Err(violation("one lease at a time", detail));
            }
        }
        Ok(())
    }

    /// Before entries are applied: what is committed never changes.
    pub(super) fn look_at_commits(&mut self, task: &ApplyTask) -> Step {
        let ApplyTask::Entries { region, peer, entries } = task else { return Ok(()) };
        for entry in entries {
            let LogPosition { index, term } = entry.position;
            self.matching.commit(*region, *peer, index, term, crc(&entry.data))?;
        }
        Ok(())
    }

    /// After a write is durable: entries of one index and term are the same everywhere.
    pub(super) fn look_at_log(&mut self, id: StoreId, acks: &[Persisted]) -> Step {
        let Some(running) = self.nodes.get(&id).and_then(|n| n.running.as_ref()) else {
            return Ok(());
        };
        for ack in acks {
            let last = last_index(&running.log, ack.region);
            let first = running.log.truncated(ack.region.0).index + 1;
            let from = last.saturating_sub(8).max(first);
            let entries = running.log.entries(ack.region.0, from, last + 1, u64::MAX);
            if entries.is_err() && self.is_damaged(id) {
                continue;
            }
            let entries = entries.map_err(|e| violation("the log can be read", e.to_string()))?;
            for entry in entries {
                let (index, term) = (entry.index, entry.term);
                self.matching.observe(ack.region, ack.peer, index, term, crc_of(entry))?;
            }
        }
        Ok(())
    }

    /// After applying: equal applied index, equal state.
    pub(super) fn look_at_states(&mut self, id: StoreId, applied: &[Applied]) -> Step {
        let Some(running) = self.nodes.get(&id).and_then(|n| n.running.as_ref()) else {
            return Ok(());
        };
        let view = running.kv.view().map_err(|e| violation("a view", e.to_string()))?;
        let froze = |news: &News| matches!(news.merging, Some(Some(_)));
        let frozen = applied.iter().any(|applied| applied.news.as_deref().is_some_and(froze));
        for applied in applied {
            if let Some(news) = &applied.news {
                self.look_at_merged(news)?;
            }
            let record = view.record(applied.region);
            if record.as_ref().is_some_and(RegionState::is_tombstone) {
                continue;
            }
            let Some(state) = record else {
                return Err(violation("an applied region has a state", applied.region.to_string()));
            };
            let hash = self.hash_of(&*view, &state.region.range)?;
            let (region, peer, index) = (applied.region, applied.peer, state.applied.index);
            self.states.observe(region, peer, index, hash)?;
            self.look_at_what_is_shown(id, region, index)?;
        }
        if frozen {
            self.damage_merge(self.world.now(), id);
        }
        Ok(())
    }

    pub(super) fn hash_of(
        &self,
        view: &dyn View,
        range: &KeyRange,
    ) -> Result<u64, super::checker::Violation> {
        let scan = view.scan(range, Direction::Forward);
        let items: Vec<(Bytes, Bytes)> = scan
            .and_then(Iterator::collect)
            .map_err(|e| violation("a region can be scanned", e.to_string()))?;
        Ok(state_hash(items.iter().map(|(key, value)| (&key[..], &value[..]))))
    }

    /// At the end, after calm, and not at once: all replicas have applied everything. That those which have applied the same are
    /// equal is looked at all the time (`agreement`).
    pub(super) fn look_at_replicas(&self) -> Step {
        self.look_at_the_frozen()?;
        let regions = self.final_regions()?;
        self.look_at_members(&regions)?;
        for region in regions {
            let mut first: Option<(StoreId, u64)> = None;
            for peer in &region.peers {
                let store = peer.store;
                let Some(running) = self.nodes.get(&store).and_then(|n| n.running.as_ref()) else {
                    return Err(violation("every node is back", store.to_string()));
                };
                let view = running.kv.view().map_err(|e| violation("a view", e.to_string()))?;
                let applied = view.region(region.id).unwrap_or_default().applied.index;
                let (other, index) = *first.get_or_insert((store, applied));
                if index != applied {
                    let of = |status: &RegionStatus| status.region.id == region.id;
                    let all = self.nodes.keys().flat_map(|id| self.statuses(*id)).filter(of);
                    let all = all.collect::<Vec<_>>();
                    let detail = format!(
                        "{}: {other} applied {index}, {store} applied {applied}: {all:?}",
                        region.id,
                    );
                    return Err(violation("replicas have applied the same in the end", detail));
                }
            }
        }
        Ok(())
    }

    /// At the end: what must be true at any moment is, at every look, and within [`PATIENCE`] all replicas have applied
    /// everything. Leaders may still be proposing compactions: what is in flight at any instant arrives soon.
    pub(super) fn converge(&mut self) -> Step {
        let end = self.world.now().after(PATIENCE);
        loop {
            self.look_at_agreement()?;
            let now = self.world.now();
            match self.look_at_replicas() {
                Err(violation) if now >= end => return Err(violation),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
            let soon = now.after(LOOK);
            while self.step(soon)? {}
        }
    }

    /// At the end: whoever asked a node that still lives was answered.
    pub(super) fn look_at_the_answers(&self) -> Step {
        match self.callers.iter().next() {
            None => Ok(()),
            Some((token, caller)) => {
                Err(violation("every request is answered", format!("{token:?} at {}", caller.node)))
            }
        }
    }

    /// At the end: there is an order that explains everything that clients saw. A key whose search would
    /// be too long is counted as undecided.
    pub(super) fn look_at_the_history(&mut self) -> Step {
        match self.history.check(Effort::default()) {
            Verdict::Violation(explanation) => {
                Err(violation("linearizable", explanation.to_string()))
            }
            Verdict::Linearizable => Ok(()),
            Verdict::Undecided { .. } => {
                self.counts.undecided += 1;
                Ok(())
            }
        }
    }
}
