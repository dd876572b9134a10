//! Handing leadership over.
//!
//! **Life.** Somebody asks the leader for it (`Peer::transfer`). It asks whoever may take over whether he could lead at once: the
//! one store that was named, or another voter, drawn by the region's id so that the regions of a node that goes are spread over
//! those that stay; and, if that one has not said yes after some ticks, all of them. A replica that is asked wakes, and says yes once it knows
//! of nearly all that is committed and has applied nearly all of it: the rest it has to apply before it serves its first read. The first
//! to say so whose log has nearly everything is told to campaign, by raft's own transfer (Raft thesis, 3.10): from then
//! on the old leader takes no writes, and it has no lease for the rest of its term. Until then nothing changes, and if nobody
//! says yes within an election timeout nothing will have.
//!
//! Questions and answers are notes beside raft and may get lost; the leader asks again. An old yes does no harm: whoever has
//! applied something does not lose it, and what he holds of the log is looked at again.
//!
//! **Whoever asked** is told once raft's transfer has begun, or that it will not. He learns by looking whether it succeeded.
//!
//! **A full disk.** Whoever leads and refuses a write for want of space hands the region over, to anybody (`Peer::step_aside`):
//! a majority with room is all that a write needs. A store without room says yes to nobody; if all are full, all stay.
//!
//! **Source.** TiKV asks its heirs in the same way before it hands a region over, mainly to have their entry caches warmed; here
//! what was appended last is in the log's memory on every replica, so waking and applying is all there is to warm.

use super::config::StoreConfig;
use super::effects::{Effects, Reply, Token};
use super::peer::Peer;
use super::sparse::Empty;
use crate::error::Error;
use crate::raft::Note;
use crate::types::{PeerId, RegionId, Role, StoreId, Time};

/// Committed entries that an heir may lack in its log, or not know to be committed: they are under way.
const GAP_MAX: u64 = 64;
/// Ticks until the heirs are asked again.
const ASK_AGAIN: u64 = 2;
/// Ticks for which only one heir is asked if none was named.
const ASK_ONE: u64 = 4;

/// A leadership that is to go.
#[derive(Debug)]
pub(crate) struct Handing {
    /// Nobody: to whoever can take it first.
    to: Option<StoreId>,
    waiting: Vec<Token>,
    /// The ticks at which the heirs are asked again, from which on all of them are, and at which it is given up.
    asks_at: u64,
    asks_all_at: u64,
    ends_at: u64,
}

/// Which of `count` heirs a region takes: the regions of one node take different ones. (Their ids may have a factor in common,
/// for they are given together with those of peers.)
pub(crate) fn drawn(region: RegionId, count: usize) -> usize {
    let drawn = region.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from(drawn).unwrap_or(0).checked_rem(count).unwrap_or(0)
}

fn behind() -> Error {
    Error::Busy { what: "a replica that is behind, or out of reach" }
}

impl Peer {
    /// Hands leadership over as soon as an heir is ready for it; tells `token` when that begins, or that it does not.
    pub(crate) fn transfer(
        &mut self,
        config: &StoreConfig,
        token: Token,
        to: Option<StoreId>,
        effects: &mut Effects,
    ) {
        let result = match self.may_hand_over(to) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.begin_handing(config, to).waiting.push(token);
                return self.ask_heirs(effects);
            }
            Err(error) => Err(error),
        };
        effects.replies.push((token, Reply::Transfer(result)));
    }

    /// Hands leadership to whoever can take it, if it leads: here nothing can be written for want of space.
    pub(crate) fn step_aside(&mut self, config: &StoreConfig, effects: &mut Effects) {
        if matches!(self.may_hand_over(None), Ok(false)) {
            self.begin_handing(config, None);
            self.ask_heirs(effects);
        }
    }

    fn begin_handing(&mut self, config: &StoreConfig, to: Option<StoreId>) -> &mut Handing {
        let election = config.group.election_ticks as u64;
        let (asks_at, ends_at) = (self.ticks, self.ticks + election);
        let asks_all_at = asks_at + ASK_ONE.min(election / 2);
        self.handing.get_or_insert_with(|| {
            Box::new(Handing { to, waiting: Vec::new(), asks_at, asks_all_at, ends_at })
        })
    }

    /// Whether there is somebody to ask; `true`: it is done already.
    fn may_hand_over(&self, to: Option<StoreId>) -> Result<bool, Error> {
        if !self.runs() {
            return Err(self.fenced());
        }
        if !self.group.leads() {
            return Err(self.not_leader());
        }
        if to == Some(self.store) {
            return Ok(true);
        }
        if self.handing.as_ref().is_some_and(|handing| handing.to != to) {
            return Err(Error::Busy { what: "leadership is to go to another store" });
        }
        match (to, self.heirs(to).is_empty()) {
            (_, false) => Ok(false),
            (Some(store), true) => {
                let what = format!("{} has no voter on {store} to hand over to", self.region.id);
                Err(Error::InvalidArgument(what))
            }
            (None, true) => Err(Error::InvalidArgument("no other voter to hand over to".into())),
        }
    }

    /// Who may take over: the voter on that store, or all others.
    fn heirs(&self, to: Option<StoreId>) -> Vec<(PeerId, StoreId)> {
        let votes = |role| matches!(role, Role::Voter | Role::Incoming);
        let others = self.region.peers.iter().filter(|peer| peer.id != self.id && votes(peer.role));
        let wanted = others.filter(|peer| to.is_none_or(|store| peer.store == store));
        wanted.map(|peer| (peer.id, peer.store)).collect()
    }

    /// Whom to ask first: one of those who seem to be able to, if anybody does (of a group that has slept nobody knows).
    fn first_heir(&self, mut heirs: Vec<(PeerId, StoreId)>) -> Option<(PeerId, StoreId)> {
        let able = |(heir, _): &(PeerId, StoreId)| self.group.has_caught_up(*heir, GAP_MAX);
        if heirs.iter().any(able) {
            heirs.retain(able);
        }
        heirs.get(drawn(self.region.id, heirs.len())).copied()
    }

    fn ask_heirs(&mut self, effects: &mut Effects) {
        let committed = self.group.status().committed;
        let Some(handing) = &mut self.handing else { return };
        if self.ticks < handing.asks_at {
            return;
        }
        handing.asks_at = self.ticks + ASK_AGAIN;
        let (to, all) = (handing.to, self.ticks >= handing.asks_all_at);
        let mut heirs = self.heirs(to);
        if !all {
            heirs = self.first_heir(heirs).into_iter().collect();
        }
        for (heir, store) in heirs {
            let question = self.note(self.region.id, heir, Note::CanYouLead { committed });
            effects.send_now.push(store, question);
        }
    }

    /// The leader asks whether this replica could lead at once. Silence is no.
    pub(crate) fn may_be_heir(
        &mut self,
        config: &StoreConfig,
        leader: PeerId,
        on: StoreId,
        committed: u64,
        effects: &mut Effects,
    ) {
        let near = self.group.status().committed.saturating_add(GAP_MAX) >= committed;
        // A quarter of what makes a leader stop taking writes.
        let applied = self.progress.applying_bytes <= config.apply_lag_bytes_max / 4;
        if self.runs() && near && applied && self.held.is_empty() {
            effects.send_now.push(on, self.note(self.region.id, leader, Note::CanLead));
        }
    }

    /// A replica says that it could lead at once.
    pub(crate) fn can_lead(&mut self, heir: PeerId, effects: &mut Effects) {
        let Some(handing) = &self.handing else { return };
        let asked = self.heirs(handing.to).iter().any(|(id, _)| *id == heir);
        if !self.may_go_on(effects) || !asked || !self.group.has_caught_up(heir, GAP_MAX) {
            return;
        }
        // Before any message: the new leader may be elected inside the old lease.
        self.share.set_lease(Time(0));
        self.handed_over_in = self.group.status().term;
        self.group.transfer_leader(heir);
        self.end_handing(Ok(()), effects);
    }

    /// What a tick does about it.
    pub(crate) fn tick_handing(&mut self, effects: &mut Effects) {
        let Some(ends_at) = self.handing.as_ref().map(|handing| handing.ends_at) else { return };
        if !self.may_go_on(effects) {
            return;
        }
        match self.ticks >= ends_at {
            true => self.end_handing(Err(behind()), effects),
            false => self.ask_heirs(effects),
        }
    }

    /// Whether it is still its own to hand over; if not, whoever asked is told.
    fn may_go_on(&mut self, effects: &mut Effects) -> bool {
        let error = match (self.runs(), self.group.leads()) {
            (true, true) => return true,
            (true, false) => self.not_leader(),
            (false, _) => self.fenced(),
        };
        self.end_handing(Err(error), effects);
        false
    }

    /// Tells whoever asked, if anybody did.
    pub(crate) fn end_handing(&mut self, result: Result<(), Error>, effects: &mut Effects) {
        for token in self.handing.take().into_iter().flat_map(|handing| handing.waiting) {
            effects.replies.push((token, Reply::Transfer(result.clone())));
        }
    }
}
