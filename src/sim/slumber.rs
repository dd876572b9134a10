//! Slumber: seeds in which idle groups sleep. Clients fall silent together now and then, long enough for groups
//! to go to sleep, while faults and the operator's transfers go on; whatever then happens meets sleeping groups.
//!
//! In the end, when all is calm and judged, comes an exam:
//!
//! 1. With nobody asking, every replica falls asleep.
//! 2. A node is switched off, or none. Within a second no follower sleeps any more under a leader there.
//! 3. Every region's first keys take a write, soon, though the group slept.
//! 4. With the node still off, every replica falls asleep again.
//! 5. The node comes back; its replicas catch up; everybody sleeps; replicas are equal as before.

use super::checker::Violation;
use super::cluster::{Cluster, Happening, Step, violation};
use super::disk::Mercy;
use super::rng::Rng;
use crate::codec::command::BatchBuilder;
use crate::store::*;
use crate::types::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// When clients are silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lulls {
    period: Duration,
    length: Duration,
}

impl Lulls {
    /// Drawn for a seed in which groups sleep.
    pub fn draw(rng: &mut Rng) -> Lulls {
        let length = rng.range("shape.lull", 800..3000);
        let period = length + rng.range("shape.bustle", 500..3000);
        Lulls { period: Duration::from_millis(period), length: Duration::from_millis(length) }
    }

    /// The end of the lull at `now`, if there is one.
    fn end(&self, now: Time) -> Option<Time> {
        let period = self.period.as_nanos() as u64;
        let into = now.0 % period;
        let busy = period - self.length.as_nanos() as u64;
        (into >= busy).then(|| Time(now.0 - into + period))
    }
}

/// The exam's part of the cluster.
#[derive(Default, Debug)]
pub(super) struct Probes {
    sent: BTreeMap<Token, RegionId>,
    answered: Vec<RegionId>,
}

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Within this a quiet group sleeps, whatever happened just before.
const FALL_ASLEEP: Duration = Duration::from_secs(12);
/// So long nodes' operators may go on with what they were asked for: a cut that cannot be now is tried for ten seconds.
const WISHES: Duration = Duration::from_secs(60);
/// Within this, from the fall of a node on, nobody sleeps under a leader there.
const NOTICE: Duration = Duration::from_secs(1);
/// Within this, from then on, every region takes a write.
const ANSWER: Duration = Duration::from_secs(4);

impl Cluster {
    /// Whether clients are silent now, and until when.
    pub(super) fn lull(&self, now: Time) -> Option<Time> {
        if self.calm || self.siege.is_some() || self.recount.is_some() {
            return None;
        }
        self.lulls.and_then(|lulls| lulls.end(now))
    }

    /// Counts who sleeps while a fault strikes.
    pub(super) fn count_sleepers(&mut self) {
        if self.lulls.is_some() {
            let sleepers: usize = self.nodes.keys().map(|id| self.sleepers(*id)).sum();
            self.counts.asleep += sleepers as u64;
        }
    }

    fn sleepers(&self, id: StoreId) -> usize {
        self.statuses(id).iter().filter(|status| status.asleep).count()
    }

    /// The exam. Every replica on a node that runs can be reached.
    pub(super) fn sleep_and_wake(&mut self) -> Step {
        if self.lulls.is_none() {
            return Ok(());
        }
        self.all_fall_asleep("every quiet group sleeps")?;
        let regions = self.final_regions()?;
        // Whose loss every region survives: some have two voters only, for their replicas change.
        let can_go = |id: &StoreId| regions.iter().all(|region| survives(region, *id));
        let ids: Vec<StoreId> = self.nodes.keys().copied().filter(can_go).collect();
        let victim = self.rng.pick("slumber.victim", &ids).copied();
        let victim = victim.filter(|_| self.rng.chance("slumber.kill", 750));
        let now = self.world.now();
        if let Some(victim) = victim {
            self.crash_for(now, victim, Mercy::Drawn, Duration::from_secs(60))?;
            self.run_for(NOTICE)?;
            self.look_at_sleepers(victim)?;
        }
        self.probe(&regions)?;
        self.all_fall_asleep("one node down keeps nobody awake")?;
        if let Some(victim) = victim {
            self.restart(self.world.now(), victim)?;
            self.run_for(LOOK)?;
            self.all_fall_asleep("every group sleeps again")?;
        }
        self.look_at_agreement()?;
        self.look_at_replicas()
    }

    fn run_for(&mut self, time: Duration) -> Step {
        let end = self.world.now().after(time);
        while self.step(end)? {}
        Ok(())
    }

    fn all_fall_asleep(&mut self, what: &'static str) -> Step {
        let mut end = self.world.now().after(FALL_ASLEEP);
        let last = end.after(WISHES);
        loop {
            self.run_for(LOOK)?;
            if self.is_anybody_at_work() {
                // What is asked for, and cannot be while a node is down, wakes who is asked.
                end = self.world.now().after(FALL_ASLEEP).min(last);
            }
            let all =
                self.nodes.keys().flat_map(|id| self.statuses(*id).into_iter().map(|s| (*id, s)));
            let awake: Vec<_> = all.filter(|(_, status)| !status.asleep).collect();
            let Some((id, status)) = awake.first() else {
                match self.look_at_memory() {
                    Err(kept) if self.world.now() >= end => return Err(kept),
                    Err(_) => continue,
                    Ok(()) => break,
                }
            };
            if self.world.now() >= end {
                let detail = format!("{} awake, first at {id}: {status:?}", awake.len());
                return Err(violation(what, detail));
            }
        }
        self.trace.line(self.world.now(), format_args!("all asleep"));
        Ok(())
    }

    /// Whoever has slept for long has given its raft state back.
    fn look_at_memory(&self) -> Step {
        for (id, node) in &self.nodes {
            let stores = node.running.iter().flat_map(|running| &running.stores);
            for peer in stores.flat_map(Store::peers) {
                if !peer.group.rests() {
                    let detail = format!("{id} {} {}", peer.region.id, peer.id);
                    return Err(violation("who sleeps needs little memory", detail));
                }
            }
        }
        Ok(())
    }

    /// Nobody sleeps under a leader at a node that is gone.
    fn look_at_sleepers(&self, gone: StoreId) -> Step {
        for id in self.nodes.keys() {
            for status in self.statuses(*id) {
                let leader = status.leader.and_then(|peer| status.region.peer(peer));
                if status.asleep && !status.leads && leader.is_some_and(|peer| peer.store == gone) {
                    let detail = format!("{id} {}: its leader was at {gone}", status.region.id);
                    return Err(violation("who lost its leader wakes", detail));
                }
            }
        }
        Ok(())
    }

    /// Writes to every region, until all have answered.
    fn probe(&mut self, regions: &[Region]) -> Step {
        let end = self.world.now().after(ANSWER);
        self.probes = Probes::default();
        loop {
            let missing: Vec<&Region> =
                regions.iter().filter(|r| !self.probes.answered.contains(&r.id)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if self.world.now() >= end {
                let missing: Vec<RegionId> = missing.iter().map(|region| region.id).collect();
                return Err(violation(
                    "every region answers though it slept",
                    format!("{missing:?}"),
                ));
            }
            for region in missing {
                self.probe_one(region)?;
            }
            self.run_for(LOOK)?;
        }
    }

    fn probe_one(&mut self, region: &Region) -> Result<(), Violation> {
        // Whoever has its first key: it may have been cut since, or merged into its neighbour by an operator who had begun
        // (seeds 3641 and 13352).
        let start = &region.range.start;
        let leads = |id: &StoreId| {
            let mut all = self.statuses(*id).into_iter();
            let led = all.find(|s| s.leads && s.region.range.contains(start))?;
            Some((led.region.epoch.version, led.term, *id, led.region.id))
        };
        let newest = self.nodes.keys().filter_map(leads).max();
        let Some((version, _, node, owner)) = newest else { return Ok(()) };
        let Some((life, at)) = self.place(node, owner) else { return Ok(()) };
        let mut batch = BatchBuilder::new();
        let key = [&start[..], &[0]].concat();
        batch.put(&key, b"awake").map_err(|e| violation("a batch", e.to_string()))?;
        self.next_token += 1;
        let token = Token(self.next_token);
        self.probes.sent.insert(token, region.id);
        let command = batch.finish();
        let proposal = Proposal { token, region: owner, version, command };
        self.post(self.world.now(), node, life, at, Event::Propose(vec![proposal]))
    }

    /// An answer to the exam. `false`: it is somebody else's.
    pub(super) fn probed(&mut self, token: Token, reply: &Reply) -> bool {
        let Some(region) = self.probes.sent.remove(&token) else { return false };
        if matches!(reply, Reply::Written(Ok(_))) {
            self.probes.answered.push(region);
        }
        true
    }
}

/// Whether the voters that do not live there are a majority.
fn survives(region: &Region, gone: StoreId) -> bool {
    let voters = region.peers.iter().filter(|peer| peer.role == Role::Voter);
    let (mut all, mut left) = (0, 0);
    for peer in voters {
        all += 1;
        left += usize::from(peer.store != gone);
    }
    left > all / 2
}

/// Clients that are silent ask again when the lull is over, not all at once.
impl Cluster {
    pub(super) fn wait_out(&mut self, at: usize, until: Time) {
        let attempt = self.clients[at].attempt;
        let pause = self.pause("lull.end", 100_000);
        self.world.at(until.after(pause), Happening::Ask(at, attempt));
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::Stage;
    use super::*;

    /// The regions were listed, then a node was switched off, and meanwhile an operator who had begun to merge two of them went on.
    /// One of the two is nobody's any more, and its keys answer all the same: the exam had waited for it by its id (seeds
    /// 3641 and 13352).
    #[test]
    fn a_region_that_was_merged_since_answers_where_its_keys_are() {
        let mut stage = Stage::open(3, &["g", "m"]).unwrap();
        let regions = stage.cluster.final_regions().unwrap();
        assert_eq!(regions.len(), 3);
        ["h", "n"].into_iter().for_each(|key| stage.put(key, "1").unwrap());
        stage.merge(RegionId(3), RegionId(2)).unwrap();
        stage.commit(RegionId(3)).unwrap();
        stage.run(NOTICE).unwrap();
        assert_eq!(stage.cluster.final_regions().unwrap().len(), 2);
        stage.cluster.probe(&regions).unwrap();
        let (answered, _) = stage.get("m\0", None, ReadLevel::Linearizable).unwrap();
        assert_eq!(answered, RegionId(2));
    }
}
