//! The protobuf messages of `proto/`, and their translation to and from the house's own words. Only
//! bytes from the local disk, already behind a checksum, are parsed here.

use crate::error::{Error, Result};
use crate::types::*;
use bytes::Bytes;

#[allow(warnings, clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[rustfmt::skip]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/meta.rs"));
}

use generated as meta;

fn bytes_of(message: &impl protobuf::Message) -> Bytes {
    // Writing to memory fails only on an uninitialised proto2 message; ours are proto3.
    Bytes::from(message.write_to_bytes().unwrap_or_default())
}

fn parse<M: protobuf::Message>(what: &'static str, bytes: &[u8]) -> Result<M> {
    M::parse_from_bytes(bytes).map_err(|e| Error::malformed(what, e.to_string()))
}

fn peer_to_pb(peer: &Peer) -> meta::Peer {
    let mut out = meta::Peer::new();
    out.set_id(peer.id.0);
    out.set_store_id(peer.store.0);
    out.set_role(match peer.role {
        Role::Voter => meta::Role::VOTER,
        Role::Learner => meta::Role::LEARNER,
        Role::Incoming => meta::Role::INCOMING,
        Role::Demoting => meta::Role::DEMOTING,
        Role::Passing => meta::Role::PASSING,
    });
    out
}

fn peer_from_pb(peer: &meta::Peer) -> Peer {
    let role = match peer.get_role() {
        meta::Role::VOTER => Role::Voter,
        meta::Role::LEARNER => Role::Learner,
        meta::Role::INCOMING => Role::Incoming,
        meta::Role::DEMOTING => Role::Demoting,
        meta::Role::PASSING => Role::Passing,
    };
    Peer { id: PeerId(peer.get_id()), store: StoreId(peer.get_store_id()), role }
}

fn region_to_pb(region: &Region) -> meta::Region {
    let mut out = meta::Region::new();
    out.set_id(region.id.0);
    out.set_start(region.range.start.to_vec());
    out.set_end(region.range.end.to_vec());
    out.mut_epoch().set_conf_ver(region.epoch.conf_ver);
    out.mut_epoch().set_version(region.epoch.version);
    out.set_peers(region.peers.iter().map(peer_to_pb).collect());
    out
}

fn region_from_pb(region: &meta::Region) -> Region {
    Region {
        id: RegionId(region.get_id()),
        range: KeyRange::new(region.get_start().to_vec(), region.get_end().to_vec()),
        epoch: Epoch {
            conf_ver: region.get_epoch().get_conf_ver(),
            version: region.get_epoch().get_version(),
        },
        peers: region.get_peers().iter().map(peer_from_pb).collect(),
    }
}

fn departed_to_pb(gone: &Departed) -> meta::Departed {
    let mut out = meta::Departed::new();
    out.set_id(gone.id.0);
    out.set_store_id(gone.store.0);
    out.set_region_id(gone.region.0);
    out
}

/// `own`: the region whose state it stands in; an older engine knew no others.
fn departed_from_pb(own: RegionId, gone: &meta::Departed) -> Departed {
    let region = match gone.get_region_id() {
        0 => own,
        id => RegionId(id),
    };
    Departed { region, id: PeerId(gone.get_id()), store: StoreId(gone.get_store_id()) }
}

fn merging_to_pb(merging: &Merging) -> meta::Merging {
    let mut out = meta::Merging::new();
    out.set_target(merging.target.0);
    out.set_start(merging.start.to_vec());
    out.mut_epoch().set_conf_ver(merging.epoch.conf_ver);
    out.mut_epoch().set_version(merging.epoch.version);
    out.set_first(merging.first);
    out.set_index(merging.at.index);
    out.set_term(merging.at.term);
    out
}

fn merging_from_pb(merging: &meta::Merging) -> Merging {
    Merging {
        target: RegionId(merging.get_target()),
        start: merging.get_start().to_vec().into(),
        epoch: Epoch {
            conf_ver: merging.get_epoch().get_conf_ver(),
            version: merging.get_epoch().get_version(),
        },
        first: merging.get_first(),
        at: LogPosition { index: merging.get_index(), term: merging.get_term() },
    }
}

/// The durable form of a region's state, with `applied` in the place of its own position.
pub fn encode_region_state(state: &RegionState, applied: LogPosition) -> Bytes {
    let mut out = meta::RegionState::new();
    out.set_region(region_to_pb(&state.region));
    out.set_peer_id(state.peer.0);
    out.set_applied_index(applied.index);
    out.set_applied_term(applied.term);
    out.set_compact_index(state.compacted.index);
    out.set_compact_term(state.compacted.term);
    out.set_next_id(state.next_id);
    out.set_removed(state.removed.iter().map(departed_to_pb).collect());
    if let Some(merging) = &state.merging {
        out.set_merging(merging_to_pb(merging));
    }
    out.set_directory(state.directory.to_vec());
    bytes_of(&out)
}

/// Reads what [`encode_region_state`] wrote.
pub fn decode_region_state(bytes: &[u8]) -> Result<RegionState> {
    let state: meta::RegionState = parse("region state", bytes)?;
    let region = region_from_pb(state.get_region());
    let departed = |gone: &meta::Departed| departed_from_pb(region.id, gone);
    Ok(RegionState {
        removed: state.get_removed().iter().map(departed).collect(),
        merging: state.has_merging().then(|| merging_from_pb(state.get_merging())),
        region,
        peer: PeerId(state.get_peer_id()),
        applied: LogPosition { index: state.get_applied_index(), term: state.get_applied_term() },
        compacted: LogPosition { index: state.get_compact_index(), term: state.get_compact_term() },
        next_id: state.get_next_id(),
        directory: Bytes::copy_from_slice(state.get_directory()),
    })
}

/// The durable form of a directory's identity.
pub fn encode_ident(ident: &StoreIdent) -> Bytes {
    let mut out = meta::StoreIdent::new();
    out.set_cluster_id(ident.cluster);
    out.set_store_id(ident.store.0);
    out.set_incarnation(ident.incarnation);
    bytes_of(&out)
}

/// Reads what [`encode_ident`] wrote.
pub fn decode_ident(bytes: &[u8]) -> Result<StoreIdent> {
    let ident: meta::StoreIdent = parse("store identity", bytes)?;
    Ok(StoreIdent {
        cluster: ident.get_cluster_id(),
        store: StoreId(ident.get_store_id()),
        incarnation: ident.get_incarnation(),
    })
}
