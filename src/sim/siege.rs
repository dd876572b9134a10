//! The siege: the one fault that is aimed. It builds what a leader's lease must survive and what blind faults
//! hardly ever bring about: a follower that wants to lead and could, beside one that has forgotten, by a
//! restart, whom it promised to follow.
//!
//! 1. **Hush**: nobody writes to a region any more, so that no follower falls behind; some clients move to
//!    its leader and read there.
//! 2. **Renew**: the *rival*, one of the followers, does not hear the leader any more. In time it asks for
//!    votes. The other one follows the leader and confirms its lease.
//! 3. **Fall**: that other one, the *forgetful*, restarts within milliseconds, and the leader is cut off from
//!    everybody. Only the promise keeps rival and forgetful from electing a leader inside the old lease. After
//!    a moment comes the next renewal, a few times over: one fall will meet the rival's campaign.
//! 4. **Alone**: after the last fall clients write again, wherever they can, until the network heals.
//!
//! No other fault strikes meanwhile; those that were armed before still do.

use super::cluster::{Cluster, Happening, Step};
use super::disk::Mercy;
use super::net::Partition;
use crate::region::read::ReadLevel;
use crate::store::{Event, ReadRequest, Token};
use crate::types::{RegionId, StoreId, Time};
use std::time::Duration;

/// Who plays which part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Siege {
    region: RegionId,
    leader: StoreId,
    rival: StoreId,
    forgetful: StoreId,
    /// What comes next.
    next: Stage,
    /// Falls still to come.
    falls: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Renew,
    Fall,
    Lift,
}

/// From the last fall to the lift: longer than any lease that was confirmed before.
const ALONE: Duration = Duration::from_millis(500);

impl Cluster {
    /// Lays siege to the leader of a region whose two followers are up, if there is one.
    pub(super) fn besiege(&mut self, now: Time) {
        let nodes =
            self.nodes.keys().flat_map(|id| self.statuses(*id).into_iter().map(|s| (*id, s)));
        let newest = |region| self.led.get(&region).copied().unwrap_or(0);
        let led: Vec<_> = nodes.filter(|(_, s)| s.leads && s.term == newest(s.region.id)).collect();
        let Some((leader, status)) = self.rng.pick("siege.region", &led).cloned() else { return };
        let up = |id: &StoreId| self.nodes.get(id).is_some_and(|node| node.running.is_some());
        let peers = status.region.peers.iter().map(|peer| peer.store);
        let mut others: Vec<StoreId> = peers.filter(|id| *id != leader && up(id)).collect();
        self.rng.shuffle("siege.parts", &mut others);
        let [rival, forgetful] = others[..] else { return };
        let region = status.region.id;
        self.net.heal();
        for client in self.clients.iter_mut().step_by(2) {
            client.node = leader;
        }
        let falls = self.rng.range("siege.falls", 4..9);
        let next = Stage::Renew;
        self.siege = Some(Siege { region, leader, rival, forgetful, next, falls });
        let parts =
            format_args!("siege of {leader}, {region}: {rival} rivals, {forgetful} forgets");
        self.trace.line(now, parts);
        let hush = self.pause("siege.hush", 150_000) + Duration::from_millis(50);
        self.world.after(hush, Happening::Siege);
    }

    /// The region to which nobody writes now, as an index into the clients' keys.
    pub(super) fn hushed(&self) -> Option<usize> {
        let siege = self.siege.filter(|siege| siege.next != Stage::Lift)?;
        self.known_regions().position(|region| region.id == siege.region)
    }

    /// The next stage.
    pub(super) fn siege(&mut self, now: Time) -> Step {
        let Some(mut siege) = self.siege else { return Ok(()) };
        let wait = match siege.next {
            Stage::Renew => {
                siege.next = Stage::Fall;
                self.renew(now, siege)?;
                self.pause("siege.renew", 20_000) + Duration::from_millis(5)
            }
            Stage::Fall => {
                siege.falls = siege.falls.saturating_sub(1);
                siege.next = if siege.falls == 0 { Stage::Lift } else { Stage::Renew };
                self.fall(now, siege)?;
                let moment = self.pause("siege.fall", 150_000) + Duration::from_millis(50);
                if siege.falls == 0 { ALONE } else { moment }
            }
            Stage::Lift => {
                self.net.heal();
                self.siege = None;
                self.trace.line(now, format_args!("siege lifted"));
                return Ok(());
            }
        };
        self.siege = Some(siege);
        self.world.after(wait, Happening::Siege);
        Ok(())
    }

    /// Leader and forgetful hear each other, and somebody reads: the lease is renewed.
    fn renew(&mut self, now: Time, siege: Siege) -> Step {
        let Siege { region, leader, rival, .. } = siege;
        self.net.heal();
        self.net.cut(&Partition::Pair(leader, rival));
        let Some((life, at)) = self.place(leader, region) else { return Ok(()) };
        let version = self.known_regions().find(|r| r.id == region).map(|r| r.epoch.version);
        let read = ReadRequest {
            token: Token(0), // nobody waits under it
            region,
            version: version.unwrap_or(0),
            level: ReadLevel::Linearizable,
        };
        self.post(now, leader, life, at, Event::Read(vec![read]))
    }

    fn fall(&mut self, now: Time, siege: Siege) -> Step {
        self.net.cut(&Partition::Full([siege.leader].into()));
        match self.running(siege.forgetful).is_some() {
            true => {
                let down = self.pause("siege.down", 10_000);
                self.crash_for(now, siege.forgetful, Mercy::Drawn, down)
            }
            false => Ok(()),
        }
    }
}
