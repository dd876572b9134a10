//! The flat form of a region's description as it crosses the network (in a snapshot's header). Local
//! disks keep it as protobuf; no network bytes are ever parsed as protobuf.
//!
//! Little-endian: region id `u64`, conf_ver `u64`, version `u64`, compacted index `u64`, compacted term
//! `u64`, start length `u32`, start, end length `u32`, end, number of peers `u32`, then for each: id `u64`,
//! store `u64`, role `u8` (0 voter, 1 learner, 2 incoming, 3 demoting).

use crate::error::{Error, Result};
use crate::types::*;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// More replicas than this do not occur.
const PEERS_MAX: usize = 1 << 10;
/// Removed peers that a region remembers, at most: no more are removed before some are known to be gone.
pub const REMOVED_MAX: usize = 1 << 10;

/// Writes a region and its replicated compaction point.
pub fn encode(region: &Region, compacted: LogPosition) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + region.peers.len() * 17);
    out.put_u64_le(region.id.0);
    out.put_u64_le(region.epoch.conf_ver);
    out.put_u64_le(region.epoch.version);
    out.put_u64_le(compacted.index);
    out.put_u64_le(compacted.term);
    for key in [&region.range.start, &region.range.end] {
        out.put_u32_le(key.len() as u32);
        out.put_slice(key);
    }
    out.put_u32_le(region.peers.len() as u32);
    for peer in &region.peers {
        out.put_u64_le(peer.id.0);
        out.put_u64_le(peer.store.0);
        out.put_u8(match peer.role {
            Role::Voter => 0,
            Role::Learner => 1,
            Role::Incoming => 2,
            Role::Demoting => 3,
            Role::Passing => 4,
        });
    }
    out.freeze()
}

/// What goes before a snapshot's data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The region at the snapshot's index.
    pub region: Region,
    /// Its replicated compaction point.
    pub compacted: LogPosition,
    /// The cluster's id counter, if the region keeps it.
    pub next_id: u64,
    /// Former replicas that are not yet known to be gone.
    pub removed: Vec<Departed>,
    /// Set while the region is frozen, to be merged into another.
    pub merging: Option<Merging>,
    /// The record of the cluster's stores, if the region keeps it.
    pub directory: Bytes,
}

impl Head {
    /// The state of the replica `peer` that holds the snapshot, which was taken at `applied`.
    pub fn state(self, peer: PeerId, applied: LogPosition) -> RegionState {
        let Head { region, compacted, next_id, removed, merging, directory } = self;
        RegionState { region, peer, applied, compacted, next_id, removed, merging, directory }
    }
}

/// Writes the head of a snapshot: the id counter `u64`, number of former replicas `u32`, then for each: region `u64`,
/// id `u64`, store `u64`; whether it is merging `u8` (0 or 1), and if so: target `u64`, the target's conf_ver and
/// version `u64`, first index `u64`, index and term of the freezing entry `u64`, the target's start length `u32` and
/// start; the record of the stores (length `u32`, then its bytes); then the region.
pub fn encode_head(state: &RegionState) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(state.next_id);
    out.put_u32_le(state.removed.len() as u32);
    for peer in &state.removed {
        out.put_u64_le(peer.region.0);
        out.put_u64_le(peer.id.0);
        out.put_u64_le(peer.store.0);
    }
    out.put_u8(u8::from(state.merging.is_some()));
    if let Some(merging) = &state.merging {
        let Epoch { conf_ver, version } = merging.epoch;
        let LogPosition { index, term } = merging.at;
        for value in [merging.target.0, conf_ver, version, merging.first, index, term] {
            out.put_u64_le(value);
        }
        out.put_u32_le(merging.start.len() as u32);
        out.put_slice(&merging.start);
    }
    out.put_u32_le(state.directory.len() as u32);
    out.put_slice(&state.directory);
    out.put_slice(&encode(&state.region, state.compacted));
    out.freeze()
}

/// Reads what [`encode_head`] wrote.
pub fn decode_head(bytes: &Bytes) -> Result<Head> {
    let mut bytes = bytes.clone();
    need(&bytes, 12)?;
    let next_id = bytes.get_u64_le();
    let count = bytes.get_u32_le() as usize;
    if count > REMOVED_MAX {
        return Err(Error::malformed("region", "number of removed peers"));
    }
    need(&bytes, count * 24 + 1)?;
    let gone = |bytes: &mut Bytes| Departed {
        region: RegionId(bytes.get_u64_le()),
        id: PeerId(bytes.get_u64_le()),
        store: StoreId(bytes.get_u64_le()),
    };
    let removed = (0..count).map(|_| gone(&mut bytes)).collect();
    let merging = match bytes.get_u8() {
        0 => None,
        1 => Some(decode_merging(&mut bytes)?),
        _ => return Err(Error::malformed("region", "neither merging nor not")),
    };
    let directory = key(&mut bytes)?;
    let (region, compacted) = decode(&bytes)?;
    Ok(Head { region, compacted, next_id, removed, merging, directory })
}

fn decode_merging(bytes: &mut Bytes) -> Result<Merging> {
    need(bytes, 6 * 8 + 4)?;
    let mut next = || bytes.get_u64_le();
    let target = RegionId(next());
    let epoch = Epoch { conf_ver: next(), version: next() };
    let first = next();
    let at = LogPosition { index: next(), term: next() };
    Ok(Merging { target, start: key(bytes)?, epoch, first, at })
}

fn need(bytes: &Bytes, n: usize) -> Result<()> {
    if bytes.remaining() < n {
        return Err(Error::malformed("region", "cut short"));
    }
    Ok(())
}

fn key(bytes: &mut Bytes) -> Result<Bytes> {
    need(bytes, 4)?;
    let len = bytes.get_u32_le() as usize;
    need(bytes, len)?;
    Ok(bytes.split_to(len))
}

/// Reads what [`encode`] wrote.
pub fn decode(bytes: &Bytes) -> Result<(Region, LogPosition)> {
    let mut bytes = bytes.clone();
    need(&bytes, 40)?;
    let id = RegionId(bytes.get_u64_le());
    let epoch = Epoch { conf_ver: bytes.get_u64_le(), version: bytes.get_u64_le() };
    let compacted = LogPosition { index: bytes.get_u64_le(), term: bytes.get_u64_le() };
    let range = KeyRange { start: key(&mut bytes)?, end: key(&mut bytes)? };
    need(&bytes, 4)?;
    let count = bytes.get_u32_le() as usize;
    if count > PEERS_MAX || bytes.remaining() != count * 17 {
        return Err(Error::malformed("region", "number of peers"));
    }
    let mut peers = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, store) = (PeerId(bytes.get_u64_le()), StoreId(bytes.get_u64_le()));
        let role = match bytes.get_u8() {
            0 => Role::Voter,
            1 => Role::Learner,
            2 => Role::Incoming,
            3 => Role::Demoting,
            4 => Role::Passing,
            _ => return Err(Error::malformed("region", "role")),
        };
        peers.push(Peer { id, store, role });
    }
    Ok((Region { id, range, epoch, peers }, compacted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses_every_cut() {
        let region = Region {
            id: RegionId(7),
            range: KeyRange::new("a", "m"),
            epoch: Epoch { conf_ver: 2, version: 3 },
            peers: [Role::Voter, Role::Learner, Role::Incoming, Role::Demoting, Role::Passing]
                .map(|role| Peer { id: PeerId(9), store: StoreId(1), role })
                .to_vec(),
        };
        let at = LogPosition { index: 11, term: 4 };
        let bytes = encode(&region, at);
        assert_eq!(decode(&bytes).unwrap(), (region, at));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes.slice(..cut)).is_err());
        }
        let mut bad = bytes.to_vec();
        *bad.last_mut().unwrap() = 5;
        assert!(decode(&bad.into()).is_err(), "a role that is not");
    }

    #[test]
    fn a_head_remembers_who_was_removed() {
        let gone = Departed { region: RegionId(7), id: PeerId(4), store: StoreId(2) };
        let merging = Merging {
            target: RegionId(3),
            start: "m".into(),
            epoch: Epoch { conf_ver: 1, version: 2 },
            first: 7,
            at: LogPosition { index: 8, term: 6 },
        };
        let state = RegionState {
            removed: vec![gone],
            next_id: 9,
            merging: Some(merging),
            directory: Bytes::from_static(b"stores"),
            ..Default::default()
        };
        let bytes = encode_head(&state);
        let head = decode_head(&bytes).unwrap();
        assert_eq!(head.state(PeerId(0), LogPosition::default()), state);
        for cut in 0..bytes.len() {
            assert!(decode_head(&bytes.slice(..cut)).is_err());
        }
    }
}
