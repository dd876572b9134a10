//! Administrative commands: what changes a region's shape, or the cluster's record, in a log entry of its own.
//!
//! All numbers are varints; a key is its length and its bytes.
//!
//! | payload | bytes |
//! |---|---|
//! | split | `3` (one byte), conf_ver, version, number of children, then for each: region, start key, number of peers, the peers |
//! | allocate | `4` (one byte), count |
//! | change peers | `5` (one byte), conf_ver, version, number of changes, then for each: kind (one byte: `1` add learner, `2` promote, `3` demote, `4` remove, `5` add a learner that is to vote), peer, and of a learner its store |
//! | leave joint | `6` (one byte), conf_ver, version |
//! | forget | `7` (one byte), number of peers, the peers |
//! | stores | `16` (one byte), then the [change](super::directory) |
//!
//! Those of a merge stand in [`merge`].
//!
//! *Change peers* and *leave joint* stand in the context of an entry of raft's kind for changed configurations; the
//! entry's data is raft's own form of the same.

use super::command::KEY_BYTES_MAX;
use super::directory::StoreChange;
use super::merge::{self, Commit, Prepare};
use super::{Reader, Writer};
use crate::error::Result;
use crate::types::{Epoch, KeyRange, PeerId, RegionId, StoreId};
use bytes::Bytes;

pub(super) const SPLIT: u8 = 3;
pub(super) const ALLOCATE: u8 = 4;
const CHANGE_PEERS: u8 = 5;
const LEAVE_JOINT: u8 = 6;
const FORGET: u8 = 7;
const PREPARE_MERGE: u8 = 8;
const COMMIT_MERGE: u8 = 9;
const ROLL_BACK_MERGE: u8 = 10;
const STORES: u8 = 16;

const ADD_LEARNER: u8 = 1;
const PROMOTE: u8 = 2;
const DEMOTE: u8 = 3;
const REMOVE: u8 = 4;
const ADD_PASSING: u8 = 5;

/// Children of one split, at most.
pub const CHILDREN_MAX: usize = 1 << 12;
const PEERS_MAX: usize = 1 << 10;

/// An administrative command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admin {
    /// Cut a region into several.
    Split(Split),
    /// Take ids out of the cluster's counter; region 1 keeps it.
    Allocate {
        /// How many, at least one.
        count: u64,
    },
    /// Change who the replicas are.
    ChangePeers {
        /// The shape that it was made for; another set of replicas refuses it.
        epoch: Epoch,
        /// One change, or several promotions and demotions that take effect together.
        changes: Vec<Change>,
    },
    /// End a joint configuration.
    LeaveJoint {
        /// The shape that it was made for.
        epoch: Epoch,
    },
    /// These former replicas are gone for good: they need not be remembered.
    Forget {
        /// Which. None: nothing is changed, and the answer is the region as it is at that place of its log, unless it is
        /// frozen.
        peers: Vec<PeerId>,
    },
    /// Freeze a region, to be merged into its neighbour.
    PrepareMerge(Prepare),
    /// Take a frozen region in. Boxed: it may carry many entries.
    CommitMerge(Box<Commit>),
    /// Thaw a region whose neighbour has refused it.
    RollBackMerge {
        /// The entry that froze it: not another, later one.
        at: u64,
    },
    /// Change the record of the cluster's stores; region 1 keeps it.
    Stores(StoreChange),
}

/// A change of one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new replica, which receives the log and does not vote.
    AddLearner {
        /// Never used before.
        peer: PeerId,
        /// A store without a replica of the region.
        store: StoreId,
        /// It is there to be promoted soon.
        passing: bool,
    },
    /// A learner becomes a voter.
    Promote(PeerId),
    /// A voter becomes a learner: one that stays, or where others change with it one that is to go.
    Demote(PeerId),
    /// A replica goes, with its data.
    Remove(PeerId),
}

impl Change {
    /// The replica that is changed.
    pub fn peer(self) -> PeerId {
        match self {
            Change::AddLearner { peer, .. } => peer,
            Change::Promote(peer) | Change::Demote(peer) | Change::Remove(peer) => peer,
        }
    }
}

/// Cuts a region at the start keys of `children`; the region itself keeps what lies before the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Split {
    /// The shape that was cut; another one refuses the split.
    pub epoch: Epoch,
    /// In order of their start keys.
    pub children: Vec<Child>,
}

/// A region to be made by a split.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    /// Its id, never used before.
    pub region: RegionId,
    /// Where it begins; it ends where the next one begins, the last where the parent ended.
    pub start: Bytes,
    /// Its replicas, in the order of the parent's and on the same stores. Never used before.
    pub peers: Vec<PeerId>,
}

/// The merge that an entry commits, if that is what its data says.
pub fn commit_in(data: &Bytes) -> Option<Box<Commit>> {
    if data.first() != Some(&COMMIT_MERGE) {
        return None;
    }
    match Admin::decode(data)? {
        Ok(Admin::CommitMerge(commit)) => Some(commit),
        _ => None,
    }
}

impl Admin {
    /// The entry's data.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        let mut out = Writer::new(&mut bytes);
        match self {
            Admin::Split(split) => {
                out.u8(SPLIT);
                encode_epoch(&split.epoch, &mut out);
                out.varint(split.children.len() as u64);
                for child in &split.children {
                    out.varint(child.region.0);
                    out.bytes(&child.start);
                    out.varint(child.peers.len() as u64);
                    child.peers.iter().for_each(|peer| out.varint(peer.0));
                }
            }
            Admin::Allocate { count } => {
                out.u8(ALLOCATE);
                out.varint(*count);
            }
            Admin::ChangePeers { epoch, changes } => {
                out.u8(CHANGE_PEERS);
                encode_epoch(epoch, &mut out);
                out.varint(changes.len() as u64);
                for change in changes {
                    out.u8(match change {
                        Change::AddLearner { passing: false, .. } => ADD_LEARNER,
                        Change::AddLearner { passing: true, .. } => ADD_PASSING,
                        Change::Promote(_) => PROMOTE,
                        Change::Demote(_) => DEMOTE,
                        Change::Remove(_) => REMOVE,
                    });
                    out.varint(change.peer().0);
                    if let Change::AddLearner { store, .. } = change {
                        out.varint(store.0);
                    }
                }
            }
            Admin::LeaveJoint { epoch } => {
                out.u8(LEAVE_JOINT);
                encode_epoch(epoch, &mut out);
            }
            Admin::Forget { peers } => {
                out.u8(FORGET);
                out.varint(peers.len() as u64);
                peers.iter().for_each(|peer| out.varint(peer.0));
            }
            Admin::PrepareMerge(prepare) => {
                out.u8(PREPARE_MERGE);
                merge::encode_prepare(prepare, &mut out);
            }
            Admin::CommitMerge(commit) => {
                out.u8(COMMIT_MERGE);
                merge::encode_commit(commit, &mut out);
            }
            Admin::RollBackMerge { at } => {
                out.u8(ROLL_BACK_MERGE);
                out.varint(*at);
            }
            Admin::Stores(change) => {
                out.u8(STORES);
                change.encode(&mut out);
            }
        }
        Bytes::from(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` when it is another kind of payload.
    pub fn decode(data: &Bytes) -> Option<Result<Admin>> {
        let kind = *data.first()?;
        let mut from = Reader::new("admin command", data.slice(1..));
        let admin = match kind {
            SPLIT => decode_split(&mut from),
            ALLOCATE => from.varint().map(|count| Admin::Allocate { count }),
            CHANGE_PEERS => decode_change(&mut from),
            LEAVE_JOINT => decode_epoch(&mut from).map(|epoch| Admin::LeaveJoint { epoch }),
            FORGET => decode_peers(&mut from).map(|peers| Admin::Forget { peers }),
            PREPARE_MERGE => merge::decode_prepare(&mut from).map(Admin::PrepareMerge),
            COMMIT_MERGE => merge::decode_commit(&mut from).map(Box::new).map(Admin::CommitMerge),
            ROLL_BACK_MERGE => from.varint().map(|at| Admin::RollBackMerge { at }),
            STORES => StoreChange::decode(&mut from).map(Admin::Stores),
            _ => return None,
        };
        Some(admin.and_then(|admin| from.finish().map(|()| admin)))
    }

    /// Makes it as if made for another shape.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn set_epoch(&mut self, to: Epoch) {
        match self {
            Admin::Split(split) => split.epoch = to,
            Admin::ChangePeers { epoch, .. } | Admin::LeaveJoint { epoch } => *epoch = to,
            Admin::PrepareMerge(prepare) => prepare.epoch = to,
            Admin::CommitMerge(commit) => commit.epoch = to,
            Admin::Allocate { .. }
            | Admin::Forget { .. }
            | Admin::Stores(_)
            | Admin::RollBackMerge { .. } => {}
        }
    }

    /// The shape it was made for, if it changes one.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Admin::Split(split) => Some(split.epoch),
            Admin::ChangePeers { epoch, .. } | Admin::LeaveJoint { epoch } => Some(*epoch),
            Admin::PrepareMerge(prepare) => Some(prepare.epoch),
            Admin::CommitMerge(commit) => Some(commit.epoch),
            Admin::Allocate { .. }
            | Admin::Forget { .. }
            | Admin::Stores(_)
            | Admin::RollBackMerge { .. } => None,
        }
    }
}

pub(super) fn encode_epoch(epoch: &Epoch, out: &mut Writer<'_>) {
    out.varint(epoch.conf_ver);
    out.varint(epoch.version);
}

pub(super) fn decode_epoch(from: &mut Reader) -> Result<Epoch> {
    Ok(Epoch { conf_ver: from.varint()?, version: from.varint()? })
}

fn decode_peers(from: &mut Reader) -> Result<Vec<PeerId>> {
    let count = from.count(1, PEERS_MAX)?;
    (0..count).map(|_| from.varint().map(PeerId)).collect()
}

fn decode_change(from: &mut Reader) -> Result<Admin> {
    let epoch = decode_epoch(from)?;
    let count = from.count(2, PEERS_MAX)?;
    let mut changes = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = from.u8()?;
        let peer = PeerId(from.varint()?);
        changes.push(match kind {
            ADD_LEARNER | ADD_PASSING => {
                let store = StoreId(from.varint()?);
                Change::AddLearner { peer, store, passing: kind == ADD_PASSING }
            }
            PROMOTE => Change::Promote(peer),
            DEMOTE => Change::Demote(peer),
            REMOVE => Change::Remove(peer),
            other => return Err(from.malformed(format_args!("change {other}"))),
        });
    }
    Ok(Admin::ChangePeers { epoch, changes })
}

fn decode_split(from: &mut Reader) -> Result<Admin> {
    let epoch = decode_epoch(from)?;
    let count = from.count(3, CHILDREN_MAX)?;
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        let region = RegionId(from.varint()?);
        let start = from.bytes(KEY_BYTES_MAX)?;
        let peers = decode_peers(from)?;
        children.push(Child { region, start, peers });
    }
    Ok(Admin::Split(Split { epoch, children }))
}

impl Split {
    /// The ranges that the region's own is cut into, its own first; `None` if the keys are not ascending or do
    /// not lie inside it.
    pub fn ranges(&self, whole: &KeyRange) -> Option<Vec<KeyRange>> {
        let mut out = Vec::with_capacity(self.children.len() + 1);
        let mut start = whole.start.clone();
        for child in &self.children {
            if child.start <= start || !whole.contains(&child.start) {
                return None;
            }
            out.push(KeyRange { start, end: child.start.clone() });
            start = child.start.clone();
        }
        out.push(KeyRange { start, end: whole.end.clone() });
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogPosition, Region};

    fn split() -> Split {
        let child = |id: u64, start: &'static str| Child {
            region: RegionId(id),
            start: start.into(),
            peers: vec![PeerId(id + 1), PeerId(id + 2)],
        };
        let epoch = Epoch { conf_ver: 2, version: 7 };
        Split { epoch, children: vec![child(10, "d"), child(20, "k")] }
    }

    #[test]
    fn reads_back_and_refuses_every_cut() {
        let epoch = Epoch { conf_ver: 3, version: 1 };
        let region = Region { id: RegionId(5), epoch, ..Region::default() };
        let changes = vec![
            Change::AddLearner { peer: PeerId(300), store: StoreId(4), passing: false },
            Change::AddLearner { peer: PeerId(301), store: StoreId(5), passing: true },
            Change::Promote(PeerId(8)),
            Change::Demote(PeerId(9)),
            Change::Remove(PeerId(1 << 40)),
        ];
        for admin in [
            Admin::Split(split()),
            Admin::Allocate { count: 9 },
            Admin::ChangePeers { epoch, changes },
            Admin::LeaveJoint { epoch },
            Admin::Forget { peers: vec![PeerId(1), PeerId(400)] },
            Admin::PrepareMerge(Prepare { epoch, target: region.clone(), first: 7 }),
            Admin::CommitMerge(Box::new(Commit {
                target: RegionId(6),
                epoch,
                source: region,
                at: LogPosition { index: 8, term: 6 },
                first: 7,
                entries: vec![(5, "data".into()), (6, Bytes::new())],
            })),
            Admin::RollBackMerge { at: 300 },
        ] {
            let bytes = admin.encode();
            assert_eq!(Admin::decode(&bytes).unwrap().unwrap(), admin);
            for cut in 1..bytes.len() {
                assert!(Admin::decode(&bytes.slice(..cut)).unwrap().is_err(), "{cut}");
            }
        }
        assert!(Admin::decode(&Bytes::new()).is_none());
        let mut lying = split();
        lying.children.clear();
        let mut bytes = Admin::Split(lying).encode().to_vec();
        bytes[3] = 100;
        assert!(Admin::decode(&bytes.into()).unwrap().is_err(), "a count that is not there");
    }

    #[test]
    fn keys_must_cut_the_range_in_order() {
        let ranges = split().ranges(&KeyRange::new("a", "z")).unwrap();
        let wanted = [KeyRange::new("a", "d"), KeyRange::new("d", "k"), KeyRange::new("k", "z")];
        assert_eq!(ranges, wanted);
        assert!(split().ranges(&KeyRange::new("d", "z")).is_none(), "nothing left to the parent");
        assert!(split().ranges(&KeyRange::new("a", "k")).is_none(), "nothing left to the last");
        let mut wrong = split();
        wrong.children.swap(0, 1);
        assert!(wrong.ranges(&KeyRange::all()).is_none(), "not in order");
    }
}
