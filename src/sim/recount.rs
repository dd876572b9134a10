//! The recount: another fault that is aimed. It builds what a vote must survive and what blind faults hardly ever bring about: a
//! voter that restarts as soon as its vote has left, and is asked once more, for the same term, by somebody who has not heard of it.
//!
//! 1. **Deposed**: the leader of a region is cut off from everybody. The two others elect a new one in the next term.
//! 2. **Elected**: as soon as the *voter* grants its vote it restarts, and the *elected* one is cut off, once the vote is there: before it
//!    can tell anybody. The deposed one is back in touch with the voter, has missed the term, and campaigns for the same.
//! 3. **Over**: the network heals.
//!
//! No other fault strikes meanwhile; those that were armed before still do.

use super::cluster::{Cluster, Happening, Step};
use super::disk::Mercy;
use super::net::Partition;
use crate::raft::Envelope;
use crate::types::{RegionId, Role, StoreId, Time};
use ::raft::eraftpb::MessageType;
use std::time::Duration;

/// Who plays which part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Recount {
    region: RegionId,
    deposed: StoreId,
    /// Who was elected, once a vote was granted, and by whose.
    elected: Option<(StoreId, StoreId)>,
    ends: Time,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The voter restarts.
    Restart,
    /// The elected one is cut off, and the deposed one is back.
    Part,
    /// It is over, if its time has come.
    Lift,
}

/// How long an election may take.
const ELECTION: Duration = Duration::from_secs(3);
/// After so long a vote has arrived.
const ARRIVES: Duration = Duration::from_millis(6);
/// The voter is down for so long at least: what the elected one says at once does not reach it.
const DOWN: Duration = Duration::from_millis(12);

impl Cluster {
    /// Cuts off the leader of a region with three voters that are up, if there is one.
    pub(super) fn begin_recount(&mut self, now: Time) {
        let nodes =
            self.nodes.keys().flat_map(|id| self.statuses(*id).into_iter().map(|s| (*id, s)));
        let newest = |region| self.led.get(&region).copied().unwrap_or(0);
        let up = |id: &StoreId| self.nodes.get(id).is_some_and(|node| node.running.is_some());
        let led = nodes.filter(|(_, status)| {
            let peers = &status.region.peers;
            let fit = peers.iter().all(|peer| peer.role == Role::Voter && up(&peer.store));
            status.leads && status.term == newest(status.region.id) && peers.len() == 3 && fit
        });
        let led: Vec<_> = led.map(|(leader, status)| (leader, status.region.id)).collect();
        let Some((deposed, region)) = self.rng.pick("recount.region", &led).copied() else {
            return;
        };
        self.net.heal();
        self.net.cut(&Partition::Full([deposed].into()));
        let ends = now.after(ELECTION);
        self.recount = Some(Recount { region, deposed, elected: None, ends });
        self.trace.line(now, format_args!("recount of {region}: {deposed} is deposed"));
        self.world.at(ends, Happening::Recount(Turn::Lift));
    }

    /// A message leaves: perhaps the vote that was waited for.
    pub(super) fn see_vote(
        &mut self,
        now: Time,
        voter: StoreId,
        elected: StoreId,
        vote: &Envelope,
    ) {
        let Some(recount) = &mut self.recount else { return };
        let message = &vote.message;
        let grants =
            message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject;
        let waited = recount.elected.is_none() && recount.region == vote.region;
        if !grants || !waited || [voter, elected].contains(&recount.deposed) {
            return;
        }
        recount.elected = Some((elected, voter));
        self.trace.line(now, format_args!("{voter} votes for {elected}"));
        self.world.at(now, Happening::Recount(Turn::Restart));
        self.world.after(ARRIVES, Happening::Recount(Turn::Part));
    }

    /// The next turn.
    pub(super) fn recount(&mut self, now: Time, turn: Turn) -> Step {
        let Some(Recount { elected, ends, .. }) = self.recount else { return Ok(()) };
        match (turn, elected) {
            (Turn::Restart, Some((_, voter))) if self.running(voter).is_some() => {
                let down = self.pause("recount.down", 10_000) + DOWN;
                return self.crash_for(now, voter, Mercy::Drawn, down);
            }
            (Turn::Part, Some((elected, _))) => {
                self.net.heal();
                self.net.cut(&Partition::Full([elected].into()));
                let ends = now.after(ELECTION);
                self.recount = self.recount.map(|recount| Recount { ends, ..recount });
                self.world.at(ends, Happening::Recount(Turn::Lift));
            }
            (Turn::Lift, _) if now >= ends => {
                self.net.heal();
                self.recount = None;
                self.trace.line(now, format_args!("recount over"));
            }
            _ => {}
        }
        Ok(())
    }
}
