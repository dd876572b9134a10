//! Opening: the initial layout, the identity of a data directory, recovery of the replicas.

use crate::error::{Error, Result};
use crate::kv::StateStore;
use crate::log::{self, Log, LogBatch};
use crate::pb;
use crate::region::apply::FIRST_FREE_ID;
use crate::region::effects::{Birth, Campaign};
use crate::types::*;
use bytes::Bytes;
use std::collections::BTreeMap;

/// The log group whose state record holds the directory's identity. Regions start at 1.
pub const IDENT_GROUP: log::GroupId = 0;

/// One of several store loops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Its number, from 0.
    pub index: u64,
    /// How many there are.
    pub count: u64,
}

impl Shard {
    /// Whether the region belongs to this loop.
    pub fn owns(&self, region: RegionId) -> bool {
        region.0 % self.count == self.index
    }
}

/// The regions of a new cluster, the same on every node: `regions` equal slices of the key space by its
/// first eight bytes, each on `replicas` stores, rotating. The first peer of a region is the one that
/// campaigns first.
pub fn bootstrap_regions(stores: &[StoreId], regions: u64, replicas: usize) -> Result<Vec<Region>> {
    let mut stores = stores.to_vec();
    stores.sort_unstable();
    stores.dedup();
    let ids = regions.checked_mul(replicas as u64).filter(|ids| *ids < FIRST_FREE_ID);
    if ids.unwrap_or(0) == 0 || replicas > stores.len() {
        return Err(Error::InvalidArgument(format!(
            "{regions} regions with {replicas} replicas on {} stores",
            stores.len()
        )));
    }
    let boundary = |i: u64| -> Bytes {
        match i {
            0 => Bytes::new(),
            i if i == regions => Bytes::new(),
            i => Bytes::copy_from_slice(
                &(((u128::from(i) << 64) / u128::from(regions)) as u64).to_be_bytes(),
            ),
        }
    };
    Ok((0..regions)
        .map(|i| Region {
            id: RegionId(i + 1),
            range: KeyRange { start: boundary(i), end: boundary(i + 1) },
            epoch: Epoch { conf_ver: 1, version: 1 },
            peers: (0..replicas)
                .map(|r| Peer {
                    id: PeerId(i * replicas as u64 + r as u64 + 1),
                    store: stores[(i as usize + r) % stores.len()],
                    role: Role::Voter,
                })
                .collect(),
        })
        .collect())
}

/// What opening a data directory found.
#[derive(Clone, PartialEq, Debug)]
pub struct Recovery {
    /// Who the directory is.
    pub ident: StoreIdent,
    /// Whether it was empty and has been set up.
    pub created: bool,
    /// Replicas whose log is damaged: they are fenced, the others serve.
    pub quarantined: BTreeMap<RegionId, String>,
}

/// Makes sure that log and state store belong together and to whom the caller thinks, setting up a
/// directory in which both are empty. `incarnation` is drawn by the caller and used only then.
///
/// Safe to crash in at any point: the log's identity is written first ([`identify`]), and a state store without
/// one beside a log that holds nothing else is set up again.
pub fn prepare(
    log: &Log,
    found: &log::Recovery,
    kv: &dyn StateStore,
    cluster: u64,
    store: StoreId,
    layout: &[Region],
    incarnation: u64,
) -> Result<Recovery> {
    let recovery = identify(log, found, kv, cluster, store, incarnation)?;
    if recovery.created {
        kv.bootstrap(&recovery.ident, initial_states(store, layout).collect())?;
    }
    Ok(recovery)
}

/// The first half of [`prepare`]: a directory in which both are empty gets its identity, and no replicas yet. It may be
/// called again, and `prepare` after it.
pub fn identify(
    log: &Log,
    found: &log::Recovery,
    kv: &dyn StateStore,
    cluster: u64,
    store: StoreId,
    incarnation: u64,
) -> Result<Recovery> {
    // Bytes that rotted say nothing, even where they can still be parsed.
    if let Some(rotten) = found.quarantined.iter().find(|rotten| rotten.group == IDENT_GROUP) {
        let log::Damage { file, offset, detail } = rotten.damage.clone();
        let detail = format!("the store's identity: {detail}");
        return Err(Error::Corruption { path: file, offset, detail });
    }
    let in_kv = kv.ident()?;
    let in_log = log.state(IDENT_GROUP).map(|bytes| pb::decode_ident(&bytes)).transpose()?;
    let logs_regions = log.groups().iter().any(|group| *group != IDENT_GROUP);
    let (ident, created) = match (in_kv, in_log) {
        (Some(kv), Some(log)) if kv == log => (kv, false),
        (Some(kv), Some(log)) => {
            return Err(Error::Identity(format!("state store is {kv:?}, log is {log:?}")));
        }
        (Some(_), None) => {
            return Err(Error::Identity(
                "the log was wiped: this replica could vote twice; remove the whole data \
                 directory and let the store join as a new one"
                    .into(),
            ));
        }
        (None, _) if logs_regions => {
            return Err(Error::Identity("the state store was wiped; its log was not".into()));
        }
        (None, Some(ident)) => (ident, true),
        (None, None) => (StoreIdent { cluster, store, incarnation }, true),
    };
    if (ident.cluster, ident.store) != (cluster, store) {
        return Err(Error::Identity(format!(
            "the directory belongs to {} of cluster {}, not to {store} of cluster {cluster}",
            ident.store, ident.cluster
        )));
    }
    if created {
        let mut batch = LogBatch::new();
        batch.set_state(IDENT_GROUP, pb::encode_ident(&ident));
        let seq = log.submit(batch)?;
        log.wait(seq)?;
    }
    let quarantined =
        found.quarantined.iter().map(|q| (RegionId(q.group), format!("{q:?}"))).collect();
    Ok(Recovery { ident, created, quarantined })
}

/// The replicas of a directory that has just been prepared, for a store that was opened before it was.
pub fn first_births(store: StoreId, layout: &[Region]) -> impl Iterator<Item = Birth> {
    initial_states(store, layout).map(|state| {
        let campaign = match is_first(&state) {
            true => Campaign::Now,
            false => Campaign::Later,
        };
        Birth { state, campaign }
    })
}

/// Whether it is the first peer of its region: of a new cluster's, the one that is to lead.
pub(super) fn is_first(state: &RegionState) -> bool {
    state.region.peers.first().is_some_and(|peer| peer.id == state.peer)
}

/// The replicas that a store begins with in the first layout.
pub fn initial_states(store: StoreId, layout: &[Region]) -> impl Iterator<Item = RegionState> {
    layout.iter().filter_map(move |region| {
        let peer = region.peer_on(store)?;
        Some(RegionState {
            region: region.clone(),
            peer: peer.id,
            applied: INITIAL_POSITION,
            compacted: INITIAL_POSITION,
            ..RegionState::default()
        })
    })
}
