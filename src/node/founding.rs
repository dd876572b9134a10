//! Founding: how the stores that a configuration names as a new cluster become one, and why a store that has lost
//! its directory does not become one of them a second time.
//!
//! All founders compute the same first layout, and each may vote in it as soon as it holds its replicas. A founder whose
//! directory was wiped looks exactly like one that has never run. If two of three were wiped at once, these two would be a
//! majority: they would elect each other and serve an empty cluster beside the third, which has everything. So an
//! empty founder gets no replicas before it has **met** every other founder:
//!
//! 1. *Identity.* It draws its incarnation and keeps it: in the file `members` that it is founding, then in the log who it
//!    is. The state store stays empty. There is no replica: nothing votes, leads, confirms, or serves. Messages of
//!    raft are not taken in (but requests for votes, which wait for their replica to be born), snapshots are refused.
//! 2. *Meeting.* It asks every other founder: "I am this store with this incarnation, do you found with me?" Who is itself
//!    founding says yes to the first incarnation of a store that it hears of in its run, and to no other. Who has founded
//!    says yes only to the incarnation that it founded with, which it keeps on disk. Everybody else says no. The answer
//!    carries the incarnation of who answers, and of one store only one is ever counted in one run.
//! 3. *Founding.* With the yes of all others it keeps the list of incarnations, durably; then the state store is set up with
//!    the first layout, and the replicas are born. A crash between the two is made good by the next opening, which finds
//!    the list and an empty state store.
//!
//! **Why this is enough.** Call `d` and `d'` two directories of one store, `d` lost before `d'` was made. Say that `d'`
//! founds. Then the present directory of every other founder said yes to `d'`. None of them had founded with `d`: it would
//! keep `d` in its list, and say no. Nor does any found with `d` later: in the run in which it said yes to `d'` it counts
//! `d'` alone, and in later runs `d` is not there to answer. So every directory that founded with `d`, and all that may ever
//! have voted together with `d` or stored what `d` acknowledged, is lost as well: there is no third that has everything. As
//! soon as one directory that founded with `d` is left, `d'` waits for its yes for ever, and whoever else was
//! wiped waits, too. The answers may be old when they are counted; the argument needs only when they were given.
//!
//! What it costs: a new cluster serves when all its founders have been up at once and can reach each other, not when a majority
//! has; in whatever order they start, and however long it takes. Afterwards a majority is enough, as always. A
//! founder that dies for good before everybody has met it (within moments, while the cluster is new) holds up those that
//! have not: then all directories are emptied and the founding begins again. A founder that was wiped later is
//! replaced like any store: a new one joins under a new id, and the old one is drained and removed.
//!
//! A cluster of one founds by itself. A directory that ran before this was kept has founded, with nobody on its list: it says
//! no to everybody, for whoever asks has an empty directory.

use super::directory::{Clerk, Outcome};
use crate::client::Office;
use crate::client::ask::{Answer, Ask};
use crate::client::request::Response;
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::store::Birth;
use crate::types::StoreId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// More founders than anybody configures.
const FOUNDERS_MAX: usize = 1 << 10;
/// How long another founder has to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often one is asked who did not answer, or said nothing yet.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the log says who is missing.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// How far a directory has come with founding the cluster.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) enum Founders {
    /// It joined, or ran before founders were kept: nothing is known of them.
    #[default]
    Unknown,
    /// It is to found, and has not met all others.
    Gathering,
    /// It has founded, with these incarnations; its own among them.
    Met(BTreeMap<StoreId, u64>),
}

impl Founders {
    /// Appends its bytes: see [`members`](super::members).
    pub fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Founders::Unknown => out.u8(0),
            Founders::Gathering => out.u8(1),
            Founders::Met(all) => {
                out.u8(2);
                out.varint(all.len() as u64);
                for (store, incarnation) in all {
                    out.varint(store.0);
                    out.u64(*incarnation);
                }
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<Founders> {
        Ok(match from.u8()? {
            0 => Founders::Unknown,
            1 => Founders::Gathering,
            2 => {
                let count = from.count(9, FOUNDERS_MAX)?;
                let one = |_| Ok((StoreId(from.varint()?), from.u64()?));
                Founders::Met((0..count).map(one).collect::<Result<_>>()?)
            }
            other => return Err(from.malformed(format_args!("founders {other}"))),
        })
    }
}

/// What a node knows of the founding of its cluster. Shared by those who ask, answer, and wait for it.
pub(super) struct Founding {
    own: (StoreId, u64),
    /// The other founders, as configured.
    others: BTreeSet<StoreId>,
    under_way: AtomicBool,
    inner: Mutex<Meeting>,
}

#[derive(Default)]
struct Meeting {
    founders: Founders,
    /// The incarnation of each founder that was heard of in this run.
    heard: BTreeMap<StoreId, u64>,
    /// Those that have said yes.
    agreed: BTreeSet<StoreId>,
    /// Those that have asked since they were looked at: they are there.
    asked: BTreeSet<StoreId>,
}

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::Identity(why))
}

impl Meeting {
    /// Only one directory of a store counts in one run.
    fn hear(&mut self, store: StoreId, incarnation: u64) -> Result<()> {
        let first = *self.heard.entry(store).or_insert(incarnation);
        if first != incarnation {
            return refuse(format!(
                "{store} came with another directory (incarnation {incarnation:x}, at first it was {first:x}) while \
                 the cluster was being founded"
            ));
        }
        Ok(())
    }
}

impl Founding {
    /// Where the directory of `own` (and its incarnation) stands; `others` are the other founders.
    pub fn new(own: (StoreId, u64), others: BTreeSet<StoreId>, founders: Founders) -> Founding {
        let under_way = AtomicBool::new(founders == Founders::Gathering);
        let inner = Mutex::new(Meeting { founders, ..Meeting::default() });
        Founding { own, others, under_way, inner }
    }

    /// Whether the node waits for other founders, and has no replicas yet.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// Answers another founder: with this node's incarnation, if it founds with that directory or has done so.
    pub fn answer(&self, store: StoreId, incarnation: u64) -> Result<u64> {
        let mut meeting = self.inner.lock();
        match &meeting.founders {
            Founders::Unknown => refuse(format!(
                "the cluster was founded before {store} came with an empty directory: let it join as a new store, under \
                 a new id"
            )),
            Founders::Met(all) => match all.get(&store) {
                Some(known) if *known == incarnation => Ok(self.own.1),
                Some(known) => refuse(format!(
                    "{store} came with an empty directory (incarnation {incarnation:x}, the cluster was founded with \
                     {known:x}): what it forgot it may not vote about; let it join as a new store, under a new id"
                )),
                None => refuse(format!("the cluster was founded without {store}: let it join")),
            },
            Founders::Gathering if !self.others.contains(&store) => {
                refuse(format!("{store} is not among the founders, as {} knows them", self.own.0))
            }
            Founders::Gathering => {
                meeting.hear(store, incarnation)?;
                meeting.asked.insert(store);
                Ok(self.own.1)
            }
        }
    }

    /// Another founder has said yes, with this incarnation.
    fn agreed(&self, store: StoreId, incarnation: u64) -> Result<()> {
        let mut meeting = self.inner.lock();
        meeting.hear(store, incarnation)?;
        meeting.agreed.insert(store);
        Ok(())
    }

    /// Those that have not said yes, and whether they have asked since the last call.
    fn missing(&self) -> Vec<(StoreId, bool)> {
        let mut meeting = self.inner.lock();
        let asked = std::mem::take(&mut meeting.asked);
        let missing = self.others.iter().filter(|store| !meeting.agreed.contains(store));
        missing.map(|store| (*store, asked.contains(store))).collect()
    }

    /// All founders, once every other one has said yes.
    fn complete(&self) -> Option<BTreeMap<StoreId, u64>> {
        let meeting = self.inner.lock();
        let with = |store: &StoreId| {
            meeting.agreed.contains(store).then(|| Some((*store, *meeting.heard.get(store)?)))?
        };
        let others: Option<BTreeMap<StoreId, u64>> = self.others.iter().map(with).collect();
        others.map(|mut all| {
            all.insert(self.own.0, self.own.1);
            all
        })
    }

    /// From now on the answer is this list.
    fn keep(&self, all: BTreeMap<StoreId, u64>) {
        self.inner.lock().founders = Founders::Met(all);
    }

    fn end(&self) {
        self.under_way.store(false, Ordering::Release);
    }
}

/// Sets the state store up, and gives the replicas that are to be born.
pub(super) type SetUp = Box<dyn FnOnce() -> Result<Vec<Birth>> + Send>;

/// The clerk's notes while it founds.
#[derive(Default)]
pub(super) struct Errands {
    /// Who is being asked.
    asked: BTreeSet<StoreId>,
    /// When each may be asked again.
    again: BTreeMap<StoreId, Instant>,
    said: Option<Instant>,
}

impl Clerk {
    /// One look at the founding: asks who has not said yes, and founds when all have. How long to wait then.
    pub(super) fn found(&mut self) -> Duration {
        if let Some(all) = self.parts.founding.complete() {
            self.establish(all);
            return Duration::ZERO;
        }
        let now = Instant::now();
        let missing = self.parts.founding.missing();
        for (store, there) in &missing {
            let waits = !there && self.errands.again.get(store).is_some_and(|again| now < *again);
            if waits || !self.errands.asked.insert(*store) {
                continue;
            }
            let store = *store;
            let own = &self.parts.record;
            let ask = Ask::Found { store: own.store, incarnation: own.incarnation };
            let done = self.done(move |result| Outcome::Found { store, result });
            self.parts.local.ask_store(store, ask, PATIENCE, done);
        }
        if self.errands.said.is_none_or(|said| now - said >= SAY_EVERY) {
            let first = self.errands.said.replace(now).is_none();
            let missing: Vec<String> = missing.iter().map(|(store, _)| store.to_string()).collect();
            let missing = missing.join(", ");
            match first {
                true => tracing::info!(missing, "founding the cluster: meeting the other founders"),
                false => tracing::warn!(missing, "founding the cluster: not all founders have met"),
            }
        }
        AGAIN
    }

    /// What another founder has said.
    pub(super) fn found_answered(&mut self, store: StoreId, result: Result<Response>) {
        self.errands.asked.remove(&store);
        self.errands.again.insert(store, Instant::now() + AGAIN);
        let agreed = match result {
            Ok(Response::Directory(Answer::Founds { incarnation })) => {
                self.parts.founding.agreed(store, incarnation)
            }
            Err(refused @ Error::Identity(_)) => Err(refused),
            other => return tracing::debug!(%store, ?other, "a founder is not there yet"),
        };
        if let Err(error) = agreed {
            tracing::error!(%store, %error, "a founder does not know this directory: the node stops");
            self.parts.driver.stop(&format!("kept out of the cluster: {error}"));
        }
    }

    /// All founders have met: the replicas are made.
    fn establish(&mut self, all: BTreeMap<StoreId, u64>) {
        if let Err(error) = self.parts.members.founding(Founders::Met(all.clone())) {
            // Tried again at the next look.
            tracing::warn!(%error, "the founders could not be kept");
            return std::thread::sleep(AGAIN);
        }
        self.parts.roster.founded_by(&all);
        self.parts.founding.keep(all);
        let Some(set_up) = self.parts.set_up.take() else { return };
        match set_up() {
            Ok(births) => {
                self.parts.driver.found(births);
                self.parts.founding.end();
                tracing::info!("the cluster is founded");
            }
            Err(error) => {
                tracing::error!(%error, "the directory could not be set up: the node stops");
                self.parts.driver.stop(&format!("founding: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn founding(own: u64, incarnation: u64, founders: Founders) -> Founding {
        let others = (1..=3).filter(|id| *id != own).map(StoreId).collect();
        Founding::new((StoreId(own), incarnation), others, founders)
    }

    fn met(all: [(u64, u64); 3]) -> Founders {
        Founders::Met(all.into_iter().map(|(id, incarnation)| (StoreId(id), incarnation)).collect())
    }

    #[test]
    fn founders_read_back() {
        for founders in [Founders::Unknown, Founders::Gathering, met([(1, 5), (2, 6), (300, 7)])] {
            let mut out = Vec::new();
            founders.encode(&mut Writer::new(&mut out));
            let mut from = Reader::new("test", Bytes::from(out.clone()));
            assert_eq!(Founders::decode(&mut from).unwrap(), founders);
            from.finish().unwrap();
            for cut in 0..out.len() {
                let cut = Bytes::copy_from_slice(&out[..cut]);
                assert!(Founders::decode(&mut Reader::new("test", cut)).is_err());
            }
        }
    }

    #[test]
    fn all_others_must_agree_and_each_counts_with_one_directory() {
        let first = founding(1, 10, Founders::Gathering);
        assert!(first.is_under_way() && first.complete().is_none());
        assert_eq!(first.answer(StoreId(2), 20).unwrap(), 10);
        assert_eq!(first.missing(), [(StoreId(2), true), (StoreId(3), false)]);
        assert_eq!(first.missing(), [(StoreId(2), false), (StoreId(3), false)], "it asked once");
        first.agreed(StoreId(3), 30).unwrap();
        assert!(first.complete().is_none(), "who asks has not agreed yet");
        assert!(first.answer(StoreId(3), 31).is_err(), "wiped while the cluster is being founded");
        assert!(first.agreed(StoreId(2), 21).is_err());
        assert!(first.answer(StoreId(4), 40).is_err(), "nobody has named it");
        first.agreed(StoreId(2), 20).unwrap();
        let all = first.complete().unwrap();
        assert_eq!(Founders::Met(all.clone()), met([(1, 10), (2, 20), (3, 30)]));
        first.keep(all);
        first.end();
        assert_eq!(first.answer(StoreId(3), 30).unwrap(), 10, "it may not have met all yet");
        assert!(!first.is_under_way());
    }

    #[test]
    fn who_has_founded_knows_only_those_it_founded_with() {
        let first = founding(1, 10, met([(1, 10), (2, 20), (3, 30)]));
        assert!(!first.is_under_way());
        assert_eq!(first.answer(StoreId(2), 20).unwrap(), 10);
        let error = first.answer(StoreId(2), 21).unwrap_err();
        assert!(error.to_string().contains("may not vote"), "{error}");
        assert!(first.answer(StoreId(4), 40).unwrap_err().to_string().contains("let it join"));
        let older = founding(1, 10, Founders::Unknown);
        assert!(older.answer(StoreId(2), 20).is_err(), "whoever asks has an empty directory");
    }
}
