//! The operator: carries out what the replicas of this node wish for and cannot do alone, and, on the node that leads
//! region 1, what placement plans; one thing at a time.
//!
//! A region that has grown too large is to be cut; a frozen one is to be merged into its neighbour. The ids for the
//! parts come from region 1, the neighbour may be led elsewhere, so a thread of its own does it, as any client would. A
//! wish that fails or finds no place in the queue is forgotten: it is wished again. A frozen region whose neighbour is
//! nowhere is looked after rarely ([`fates`](super::fates)).
//!
//! A plan's steps are carried out as far as they go now; what is refused (a learner that has not caught up, a shape that has
//! changed) comes again with the next plan. Nothing is remembered between plans but for how long a region has been
//! short of voters: an operator who is just replacing one by hand is not to be helped. Merges go to the
//! [`merger`](super::merger), a few at a time.

use super::fates::Fates;
use super::merger::Merger;
use crate::client::local::Local;
use crate::client::merge::Merged;
use crate::client::{Basis, Client, wait};
use crate::codec::admin::Change;
use crate::error::{Error, Result};
use crate::placement::{Action, Goal, Limits, Plan, Step};
use crate::store::{MergeWish, SplitWish};
use crate::types::{PeerId, Region, RegionId, StoreId};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Wishes that wait, at most.
const WISHES_MAX: usize = 64;
/// How long a cut may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a step of a plan may take, or a frozen region whose neighbour does not answer: other wishes wait meanwhile.
const STEP_PATIENCE: Duration = Duration::from_secs(2);
/// How often there is looked whether something is to be planned.
const LOOK: Duration = Duration::from_millis(500);
/// The pause after a plan of which something came off.
const BREATH: Duration = Duration::from_millis(20);
/// Regions with a learner on its way.
const MOVES: usize = 8;
const STEPS: usize = 32;
/// A region is short of voters for so long before anybody does something about it.
const SHORT_FOR: Duration = Duration::from_secs(5);

/// Something to be carried out.
#[derive(Debug)]
pub(super) enum Wish {
    Split(SplitWish),
    Merge(MergeWish),
}

/// Where wishes go.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    queue: Sender<Wish>,
}

impl Wishes {
    /// A queue, and its other end for [`start`].
    pub fn new() -> (Wishes, Receiver<Wish>) {
        let (queue, wishes) = bounded(WISHES_MAX);
        (Wishes { queue }, wishes)
    }

    /// Never blocks.
    pub fn split(&self, wish: SplitWish) {
        // Full, or the node is closing: it is wished again.
        let _ = self.queue.try_send(Wish::Split(wish));
    }

    /// Never blocks.
    pub fn merge(&self, wish: MergeWish) {
        let _ = self.queue.try_send(Wish::Merge(wish));
    }
}

/// How the operator gets at the node: it must not keep it alive.
pub(super) struct Desk {
    pub client: Client,
    /// `None` once the node is closed.
    pub local: Box<dyn Fn() -> Option<Local> + Send>,
}

struct Operator {
    desk: Desk,
    basis: Basis,
    short: BTreeMap<RegionId, Instant>,
    merger: Merger,
    fates: Fates,
    /// Regions of so many bytes at most are merged; 0: none.
    merge_bytes: u64,
}

/// Starts the thread. It ends when the node stops, or its driver is gone: a moment later, nobody waits for it.
pub(super) fn start(wishes: Receiver<Wish>, desk: Desk, merge_bytes: u64) -> Result<()> {
    let merger = Merger::start(&desk.client)?;
    let (basis, short) = (Basis::default(), BTreeMap::new());
    let fates = Fates::default();
    let mut operator = Operator { desk, basis, short, merger, fates, merge_bytes };
    let body = move || {
        let (mut pause, mut looked) = (LOOK, Instant::now());
        loop {
            match wishes.recv_timeout(pause) {
                Ok(Wish::Split(wish)) => operator.split(wish),
                Ok(Wish::Merge(wish)) => operator.merge(wish),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Wishes that take their time must not keep placement waiting for good.
            if looked.elapsed() >= pause {
                match operator.look() {
                    Some(next) => (pause, looked) = (next, Instant::now()),
                    // Whether this node has gone, only this node says: others stop, too.
                    None => return,
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("operator".into());
    thread.spawn(body).map(drop).map_err(|e| Error::io("spawn thread", "operator", e))
}

impl Operator {
    fn split(&self, SplitWish { region, keys, why }: SplitWish) {
        match wait(self.desk.client.with_timeout(PATIENCE).split(keys)) {
            Ok(cut) => {
                tracing::info!(%region, parts = cut.len(), excess = ?why, "a region was cut")
            }
            Err(error) => {
                tracing::warn!(%region, %error, excess = ?why, "a region could not be cut")
            }
        }
    }

    fn merge(&mut self, wish: MergeWish) {
        let (region, target) = (wish.source, wish.merging.target);
        let Desk { client, local } = &self.desk;
        let fates = &mut self.fates;
        let was_merged = |region| {
            let Some(here) = local() else { return false };
            let record = here.own_record();
            // The proof is good where the source's leader is on a store that has not left: see `region::merge`.
            fates.was_merged(here, region)
                && record.is_some_and(|record| {
                    wait(client.with_timeout(STEP_PATIENCE).still_belongs(record)).is_ok()
                })
        };
        match wait(client.with_timeout(STEP_PATIENCE).carry_out(wish, was_merged)) {
            Ok(Merged::Yes) => tracing::info!(%region, %target, "a region was merged"),
            Ok(Merged::Never) => {
                tracing::info!(%region, %target, "a region could not be merged, and was thawed");
            }
            Err(error) => tracing::warn!(%region, %target, %error, "a frozen region waits"),
        }
    }

    /// Plans, and carries out; gives the time until the next look, `None` when the node has gone.
    fn look(&mut self) -> Option<Duration> {
        let local = (self.desk.local)()?;
        if local.stopped() {
            return None;
        }
        let mut done = false;
        if let Some(shapes) = self.merger.collect(Instant::now()) {
            done = local.learn(&shapes);
            self.basis = Basis::default();
        }
        let (merge_bytes, merges) = (self.merge_bytes, self.merger.room());
        let limits = |wanted| Limits { wanted, moves: MOVES, steps: STEPS, merge_bytes, merges };
        let busy = |region| self.merger.waits(region);
        let Some(plan) = local.plan(&mut self.basis, limits, busy) else { return Some(LOOK) };
        if plan.unsettled > 0 {
            // It is looked at again, whether or not anything changes meanwhile.
            self.basis = Basis::default();
        }
        let steps = self.ripe(plan);
        // Not held over the calls: a node that is closed meanwhile lets go of its directory.
        drop(local);
        for step in steps {
            let Step { region, ref action, ref why, .. } = step;
            match self.carry_out(&step) {
                Ok(shapes) => {
                    tracing::info!(%region, ?action, why, "placement");
                    let local = (self.desk.local)()?;
                    done |= local.learn(&shapes);
                }
                Err(Error::Stopped { .. }) if (self.desk.local)().is_none_or(|l| l.stopped()) => {
                    return None;
                }
                Err(error) => tracing::debug!(%region, ?action, why, %error, "not yet"),
            }
        }
        Some(if done { BREATH } else { LOOK })
    }

    /// The steps whose time has come.
    fn ripe(&mut self, plan: Plan) -> Vec<Step> {
        let now = Instant::now();
        let repairs: BTreeMap<RegionId, Instant> = plan
            .steps
            .iter()
            .filter(|step| step.goal == Goal::Repair)
            .map(|step| (step.region, *self.short.get(&step.region).unwrap_or(&now)))
            .collect();
        self.short = repairs;
        let since = |step: &Step| self.short.get(&step.region).map(|since| now - *since);
        let ripe = |step: &Step| since(step).is_none_or(|since| since >= SHORT_FOR);
        plan.steps.into_iter().filter(ripe).collect()
    }

    /// One step; gives the shapes that it has brought to light.
    fn carry_out(&mut self, step: &Step) -> Result<Vec<Region>> {
        let client = self.desk.client.with_timeout(STEP_PATIENCE);
        let changes = match &step.action {
            Action::Transfer { to } => {
                wait(client.transfer_leader(step.region, Some(*to)))?;
                return Ok(Vec::new());
            }
            Action::AddLearner { on } => vec![self.newcomer(&client, *on)?],
            Action::Change(changes) => changes.clone(),
            Action::Merge { .. } => {
                self.merger.order(step);
                return Ok(Vec::new());
            }
        };
        match wait(client.change_peers(step.region, step.epoch, changes)) {
            // It leads after all: the next plan knows.
            Err(Error::LeaderStays { region }) => {
                wait(client.transfer_leader(region, None))?;
                Ok(Vec::new())
            }
            // Somebody was faster.
            Err(Error::EpochNotMatch { current }) => Ok(current),
            result => result,
        }
    }

    fn newcomer(&self, client: &Client, store: StoreId) -> Result<Change> {
        let peer = PeerId(wait(client.allocate_ids(1))?);
        Ok(Change::AddLearner { peer, store })
    }
}
