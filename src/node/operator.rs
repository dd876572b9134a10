//! The operator: carries out what the replicas of this node wish for and cannot do alone, and, on the node that leads
//! region 1, what placement plans; one thing at a time, but the steps of a plan together.
//!
//! A region that has grown too large is to be cut; a frozen one is to be merged into its neighbour. The ids for the
//! parts come from region 1, the neighbour may be led elsewhere, so a thread of its own does it, as any client would. A
//! wish that fails or finds no place in the queue is forgotten: it is wished again. A frozen region whose neighbour is
//! nowhere is looked after rarely ([`fates`](super::fates)).
//!
//! A plan's steps are carried out as far as they go now; what is refused (a learner that has not caught up, a shape that has
//! changed) comes again with the next plan. Nothing is remembered between plans but for how long a region has been
//! short of voters (an operator who is just replacing one by hand is not to be helped), and a store has led too few regions
//! ([`leaders`](super::leaders)). Merges go to the [`merger`](super::merger), a few at a time.
//!
//! What it does waits for nothing but answers, so it may as well be carried out step by step, as the simulator does.

use super::fates::Fates;
use super::leaders::{FEW_FOR, Leaders, TRANSFERS};
use super::merger::Merger;
use crate::client::merge::Merged;
use crate::client::{Basis, Client, Office, together, wait};
use crate::codec::admin::Change;
use crate::error::{Error, Result};
use crate::placement::{Action, Goal, Limits, Plan, Step};
use crate::store::{MergeWish, SplitWish};
use crate::types::{PeerId, Region, RegionId, StoreId, Time};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Wishes that wait, at most.
const WISHES_MAX: usize = 64;
/// How long a cut may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the steps of a plan may take, or a frozen region whose neighbour does not answer: other wishes wait meanwhile.
const STEP_PATIENCE: Duration = Duration::from_secs(2);
/// How often there is looked whether something is to be planned.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// The pause after a plan of which something came off.
const BREATH: Duration = Duration::from_millis(20);
/// Regions with a learner on its way.
const MOVES: usize = 8;
const STEPS: usize = 32;
/// A region is short of voters for so long before anybody does something about it.
const SHORT_FOR: Duration = Duration::from_secs(5);

/// Something to be carried out.
#[derive(Debug)]
pub(crate) enum Wish {
    Split(SplitWish),
    Merge(MergeWish),
}

impl Wish {
    /// Of which region, and of which kind.
    fn key(&self) -> Key {
        match self {
            Wish::Split(wish) => (wish.region, false),
            Wish::Merge(wish) => (wish.source, true),
        }
    }
}

/// Of which region, and whether it is to be merged.
type Key = (RegionId, bool);

/// Where wishes go.
///
/// * Of one region one of a kind waits at most: one that cannot be cut wishes it far more often than it can be tried, and is
///   not to keep the others waiting, among them perhaps its own to be merged.
/// * That one is the latest: a region that goes on growing has other keys to be cut at, and the last to wish may be the last to
///   be written to.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    queue: Sender<Key>,
    waiting: Arc<Mutex<BTreeMap<Key, Wish>>>,
}

/// Where they come out.
#[derive(Debug)]
pub(crate) struct Wished {
    queue: Receiver<Key>,
    waiting: Arc<Mutex<BTreeMap<Key, Wish>>>,
}

impl Wishes {
    /// A queue, and its other end for [`start`].
    pub fn new() -> (Wishes, Wished) {
        let (queue, wishes) = bounded(WISHES_MAX);
        let waiting = Arc::default();
        (Wishes { queue, waiting: Arc::clone(&waiting) }, Wished { queue: wishes, waiting })
    }

    /// Never blocks.
    pub fn split(&self, wish: SplitWish) {
        self.put(Wish::Split(wish));
    }

    /// Never blocks.
    pub fn merge(&self, wish: MergeWish) {
        self.put(Wish::Merge(wish));
    }

    fn put(&self, wish: Wish) {
        let key = wish.key();
        let mut waiting = self.waiting.lock();
        // Full, or the node is closing: it is wished again.
        if waiting.contains_key(&key) || self.queue.try_send(key).is_ok() {
            waiting.insert(key, wish);
        }
    }
}

impl Wished {
    /// The next one, within so much time.
    fn wait(&self, patience: Duration) -> std::result::Result<Wish, RecvTimeoutError> {
        let end = Instant::now() + patience;
        loop {
            let key = self.queue.recv_deadline(end)?;
            if let Some(wish) = self.waiting.lock().remove(&key) {
                return Ok(wish);
            }
        }
    }

    /// The next one, if there is one.
    #[cfg(any(test, feature = "sim"))]
    pub fn take(&self) -> Option<Wish> {
        let key = self.queue.try_recv().ok()?;
        self.waiting.lock().remove(&key)
    }

    /// Whether nothing is wished for.
    #[cfg(any(test, feature = "sim"))]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// How the operator gets at the node: it must not keep it alive.
pub(crate) struct Desk<O> {
    pub client: Client,
    /// `None` once the node is closed.
    pub office: Box<dyn Fn() -> Option<O> + Send>,
}

/// What it does, one thing at a time.
pub(crate) struct Operator<O> {
    desk: Desk<O>,
    basis: Basis,
    short: BTreeMap<RegionId, Time>,
    leaders: Leaders,
    merger: Merger,
    fates: Fates,
    /// Regions of so many bytes at most are merged; 0: none.
    merge_bytes: u64,
}

/// Starts the thread. It ends when the node stops, or its driver is gone: a moment later, nobody waits for it.
pub(super) fn start<O: Office + 'static>(
    wishes: Wished,
    desk: Desk<O>,
    merge_bytes: u64,
) -> Result<()> {
    let merger = Merger::start(&desk.client)?;
    let mut operator = Operator::new(desk, merger, merge_bytes, FEW_FOR);
    let body = move || {
        let (mut pause, mut looked) = (LOOK, Instant::now());
        loop {
            match wishes.wait(pause) {
                Ok(Wish::Split(wish)) => wait(operator.split(wish)),
                Ok(Wish::Merge(wish)) => wait(operator.merge(wish)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Wishes that take their time must not keep placement waiting for good.
            if looked.elapsed() >= pause {
                match wait(operator.look()) {
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

impl<O: Office> Operator<O> {
    /// One that has planned nothing yet. A store leads too few regions for `few_for` before it is given any.
    pub fn new(desk: Desk<O>, merger: Merger, merge_bytes: u64, few_for: Duration) -> Operator<O> {
        let (basis, short, fates) = (Basis::default(), BTreeMap::new(), Fates::default());
        let leaders = Leaders::new(few_for);
        Operator { desk, basis, short, leaders, merger, fates, merge_bytes }
    }

    /// How many leaderships it moved so that stores lead equally many regions.
    #[cfg(any(test, feature = "sim"))]
    pub fn spread(&self) -> u64 {
        self.leaders.count
    }

    /// Cuts a region that has grown too large.
    pub async fn split(&self, SplitWish { region, keys, why }: SplitWish) {
        match self.desk.client.with_timeout(PATIENCE).split(keys).await {
            Ok(cut) => {
                tracing::info!(%region, parts = cut.len(), excess = ?why, "a region was cut")
            }
            Err(error) => {
                tracing::warn!(%region, %error, excess = ?why, "a region could not be cut")
            }
        }
    }

    /// Has a frozen region taken in, or thawed.
    pub async fn merge(&mut self, wish: MergeWish) {
        let (region, target) = (wish.source, wish.merging.target);
        let Desk { client, office } = &self.desk;
        let client = client.with_timeout(STEP_PATIENCE);
        let fates = &mut self.fates;
        let was_merged = async |region| {
            let Some(here) = office() else { return false };
            let record = here.bureau().own_record();
            // The proof is good where the source's leader is on a store that has not left: see `region::merge`.
            match record {
                Some(record) if fates.was_merged(here, region).await => {
                    client.still_belongs(record).await.is_ok()
                }
                _ => false,
            }
        };
        match client.carry_out(wish, was_merged).await {
            Ok(Merged::Yes) => tracing::info!(%region, %target, "a region was merged"),
            Ok(Merged::Never) => {
                tracing::info!(%region, %target, "a region could not be merged, and was thawed");
            }
            Err(error) => tracing::warn!(%region, %target, %error, "a frozen region waits"),
        }
    }

    /// Plans, and carries out; gives the time until the next look, `None` when the node has gone.
    pub async fn look(&mut self) -> Option<Duration> {
        let office = (self.desk.office)()?;
        if office.stopped() {
            return None;
        }
        let now = office.now();
        let mut done = false;
        if let Some(shapes) = self.merger.collect(now) {
            done = office.bureau().learn(&shapes);
            self.basis = Basis::default();
        }
        let (merge_bytes, merges) = (self.merge_bytes, self.merger.room());
        let limits = |wanted| Limits {
            wanted,
            moves: MOVES,
            steps: STEPS,
            merge_bytes,
            merges,
            transfers: TRANSFERS,
        };
        let busy = |region| self.merger.waits(region);
        let mut led = Vec::new();
        let kept = |region, leader: Option<StoreId>| {
            if self.leaders.has_given(region) {
                led.push((region, leader));
            }
            self.leaders.keeps(region, now)
        };
        let Some(plan) = office.bureau().plan(&mut self.basis, limits, busy, kept) else {
            return Some(LOOK);
        };
        self.leaders.saw(&led);
        self.leaders.planned(&plan.steps, now);
        if plan.unsettled > 0 || self.leaders.wait() {
            // It is looked at again, whether or not anything changes meanwhile.
            self.basis = Basis::default();
        }
        let steps = self.ripe(plan, now);
        // Not held over the calls: a node that is closed meanwhile lets go of its directory.
        drop(office);
        for (step, result) in self.carry_out(steps).await {
            self.leaders.moved(&step, result.is_ok(), now);
            let Step { region, ref action, ref why, .. } = step;
            match result {
                Ok(shapes) => {
                    tracing::info!(%region, ?action, why, "placement");
                    done |= (self.desk.office)()?.bureau().learn(&shapes);
                }
                Err(Error::Stopped { .. }) if (self.desk.office)().is_none_or(|o| o.stopped()) => {
                    return None;
                }
                Err(error) => tracing::debug!(%region, ?action, why, %error, "not yet"),
            }
        }
        Some(if done { BREATH } else { LOOK })
    }

    /// The steps whose time has come.
    fn ripe(&mut self, plan: Plan, now: Time) -> Vec<Step> {
        let repairs: BTreeMap<RegionId, Time> = plan
            .steps
            .iter()
            .filter(|step| step.goal == Goal::Repair)
            .map(|step| (step.region, *self.short.get(&step.region).unwrap_or(&now)))
            .collect();
        self.short = repairs;
        let since = |step: &Step| self.short.get(&step.region).map(|since| now.since(*since));
        let mended = |step: &Step| since(step).is_none_or(|since| since >= SHORT_FOR);
        let ripe = |step: &Step| mended(step) && self.leaders.is_ripe(step, now);
        plan.steps.into_iter().filter(ripe).collect()
    }

    /// The steps of a plan beside each other, for each concerns another region; gives the shapes that they have brought to light.
    async fn carry_out(&mut self, steps: Vec<Step>) -> Vec<(Step, Result<Vec<Region>>)> {
        let client = self.desk.client.with_timeout(STEP_PATIENCE);
        let (merges, others): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|step| matches!(step.action, Action::Merge { .. }));
        merges.iter().for_each(|step| self.merger.order(step));
        let done = together(others.iter().map(|step| carry_out(&client, step))).await;
        let ordered = merges.into_iter().map(|step| (step, Ok(Vec::new())));
        ordered.chain(others.into_iter().zip(done)).collect()
    }
}

/// One step that is not a merge.
async fn carry_out(client: &Client, step: &Step) -> Result<Vec<Region>> {
    let changes = match &step.action {
        Action::Transfer { to } => {
            client.hand_over(step.region, Some(*to)).await?;
            return Ok(Vec::new());
        }
        Action::AddLearner { on } => vec![newcomer(client, *on).await?],
        Action::Change(changes) => changes.clone(),
        Action::Merge { .. } => return Ok(Vec::new()),
    };
    match client.change_peers(step.region, step.epoch, changes).await {
        // It leads after all: the next plan knows.
        Err(Error::LeaderStays { region }) => {
            client.hand_over(region, None).await?;
            Ok(Vec::new())
        }
        // Somebody was faster.
        Err(Error::EpochNotMatch { current }) => Ok(current),
        result => result,
    }
}

async fn newcomer(client: &Client, store: StoreId) -> Result<Change> {
    let peer = PeerId(client.allocate_ids(1).await?);
    Ok(Change::AddLearner { peer, store, passing: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Excess;

    /// Regions seed 165 of the simulator: a region far above its size could not be cut while a replica was behind; each write
    /// that was refused for it made it wish again, each wish was tried for ten seconds, and when the region was frozen its wish to be
    /// merged found no place.
    #[test]
    fn a_region_that_wishes_often_waits_once() {
        let (wishes, wished) = Wishes::new();
        let split = |region| SplitWish { region, keys: vec!["k".into()], why: Excess::Size };
        for _ in 0..WISHES_MAX * 2 {
            wishes.split(split(RegionId(7)));
        }
        wishes.split(split(RegionId(8)));
        let regions = || wished.take().map(|wish| wish.key().0.0);
        assert_eq!([regions(), regions(), regions()], [Some(7), Some(8), None]);
        wishes.split(split(RegionId(7)));
        assert_eq!(regions(), Some(7), "it may wish again");
        assert!(wished.is_empty());
    }

    /// A region went on growing while its wish waited behind another; what it wished last was dropped, it was cut where it had been
    /// full before, and nobody wrote to the far too large rest any more (`cluster_auto`, once in twenty runs).
    #[test]
    fn the_latest_wish_is_the_one_that_waits() {
        let (wishes, wished) = Wishes::new();
        for keys in [vec!["c"], vec!["c", "e"], vec!["c", "e", "g"]] {
            let keys = keys.into_iter().map(Into::into).collect();
            wishes.split(SplitWish { region: RegionId(7), keys, why: Excess::Size });
        }
        let Some(Wish::Split(wish)) = wished.take() else { panic!("nothing waits") };
        assert_eq!(wish.keys.len(), 3);
        assert!(wished.take().is_none());
    }
}
