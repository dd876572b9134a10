//! Administrative commands: what changes a region's shape, or the cluster's record, in a log entry of its own.
//!
//! All numbers are varints; a key is its length and its bytes.
//!
//! | payload | bytes |
//! |---|---|
//! | split | `3` (one byte), conf_ver, version, number of children, then for each: region, start key, number of peers, the peers |
//! | allocate | `4` (one byte), count |

use super::command::KEY_BYTES_MAX;
use super::{Reader, Writer};
use crate::error::Result;
use crate::types::{Epoch, KeyRange, PeerId, RegionId};
use bytes::Bytes;

pub(super) const SPLIT: u8 = 3;
pub(super) const ALLOCATE: u8 = 4;

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

impl Admin {
    /// The entry's data.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        let mut out = Writer::new(&mut bytes);
        match self {
            Admin::Split(split) => {
                out.u8(SPLIT);
                out.varint(split.epoch.conf_ver);
                out.varint(split.epoch.version);
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
            _ => return None,
        };
        Some(admin.and_then(|admin| from.finish().map(|()| admin)))
    }

    /// The shape it was made for, if it changes one.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Admin::Split(split) => Some(split.epoch),
            Admin::Allocate { .. } => None,
        }
    }
}

fn decode_split(from: &mut Reader) -> Result<Admin> {
    let epoch = Epoch { conf_ver: from.varint()?, version: from.varint()? };
    let count = from.count(3, CHILDREN_MAX)?;
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        let region = RegionId(from.varint()?);
        let start = from.bytes(KEY_BYTES_MAX)?;
        let peers = from.count(1, PEERS_MAX)?;
        let peers = (0..peers).map(|_| from.varint().map(PeerId)).collect::<Result<_>>()?;
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
        for admin in [Admin::Split(split()), Admin::Allocate { count: 9 }] {
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
