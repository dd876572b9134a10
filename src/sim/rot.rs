//! Damaged logs, in the workload `regions`: in some seeds bits rot in sealed segments of one store's log, some reads of it fail until
//! the calm, or both.
//!
//! What is hit is found when the node starts, or when it is read: the replicas that it was of are fenced off, and so is one that a
//! fenced one was to be merged into. They meet splits, merges and removals until whoever administers drains the store, as one does with
//! a bad disk; then all its replicas are made anew elsewhere. If the directory cannot be opened any more it is given up,
//! like one that was wiped (`stores`).
//!
//! Damage waits a few seconds for a moment at which a region is frozen on the store: at any other time no merge meets a fenced replica, for
//! a region is frozen only while all its replicas keep up. It still happens in few seeds.
//!
//! Only the damaged store has fenced replicas, and a fenced replica leads nothing and has no lease. A majority of every region lives
//! elsewhere, as for a directory that is lost, so nobody waits for what is fenced, and all is whole in the end.

use super::checker::Violation;
use super::cluster::{Cluster, Happening, Step, violation};
use super::disk::{Fires, Mercy, SimDisk};
use super::node::LOG_DIR;
use crate::env::Disk;
use crate::error::Error;
use crate::kv::mem::SimTablesDisk;
use crate::store::Store;
use crate::types::*;
use std::path::Path;
use std::time::Duration;

/// How segments in use are called.
const SEGMENT: &str = "seg";
/// Bytes that rot, at most; in half the seeds ten times as many.
const PLACES_MAX: u64 = 40;
/// Of 1,000 reads so many fail, at most.
const FAILING_MAX: u64 = 30;

impl Cluster {
    /// Damages the log of a store. `false`: it has no sealed segment yet.
    pub(super) fn damage_log(&mut self, now: Time, store: StoreId) -> Result<bool, Violation> {
        let more = if self.rng.chance("rot.more", 500) { 10 } else { 1 };
        let places = self.rng.range("rot.places", 0..PLACES_MAX + 1) * more;
        let failing = self.rng.range("rot.reads", 0..FAILING_MAX + 1) as u32;
        let down = self.pause("rot.down", 500_000) + Duration::from_millis(5);
        let Some(node) = self.nodes.get(&store) else { return Ok(false) };
        let Ok(mut names) = node.disk.list(Path::new(LOG_DIR)) else { return Ok(false) };
        names.retain(|name| name.extension().is_some_and(|suffix| suffix == SEGMENT));
        // The last one is being written: what is lost at its end is told from a torn write by nobody.
        names.pop();
        if names.is_empty() {
            return Ok(false);
        }
        let disk = node.disk.clone();
        self.crash_for(now, store, Mercy::All, down)?;
        let sealed = |path: &Path| names.iter().any(|name| path == Path::new(LOG_DIR).join(name));
        for _ in 0..places {
            let place = disk.rot_somewhere(sealed);
            self.trace.line(now, format_args!("{store} rots at {place:?}"));
        }
        disk.alter_faults(|faults| faults.read = Fires::Permille(failing));
        self.trace.line(now, format_args!("{store} fails {failing} of 1,000 reads"));
        self.counts.damaged += 1;
        Ok(true)
    }

    /// A directory cannot be opened. Whether damage explains it: then it is given up.
    pub(super) fn give_up_directory(&mut self, now: Time, id: StoreId, error: &Error) -> bool {
        if !matches!(error, Error::Corruption { .. } | Error::Identity(_)) || !self.is_damaged(id) {
            return false;
        }
        self.trace.line(now, format_args!("{id} cannot be opened: {error}"));
        self.lose_damaged();
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.disk, node.tables) = (SimDisk::new(!id.0), SimTablesDisk::new());
        }
        self.world.at(now, Happening::Restart(id));
        true
    }

    /// Replicas are fenced off on a damaged store only, and serve nothing then.
    pub(super) fn look_at_fenced(&mut self, now: Time, id: StoreId, at: usize) -> Step {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let stores = node.running.iter().flat_map(|running| running.stores.get(at));
        let mut found = Vec::new();
        for peer in stores.flat_map(Store::peers) {
            let Some(reason) = &peer.fence else { continue };
            let region = peer.region.id;
            let told = || format!("{id} {region} {}: {reason}", peer.id);
            if !self.is_damaged(id) {
                return Err(violation("no replica is fenced without damage", told()));
            }
            if peer.leads_term().is_some() || peer.share.lease_holds(node.now(now)) {
                return Err(violation("who is fenced serves nothing", told()));
            }
            if !self.fenced.contains(&(id, region, peer.id)) {
                found.push((region, peer.id, reason.clone()));
            }
        }
        for (region, peer, reason) in found {
            self.fenced.insert((id, region, peer));
            self.counts.fenced[0] += 1;
            self.counts.fenced[1] += u64::from(reason.contains("merge"));
            self.trace.line(now, format_args!("{id} {region} {peer} is fenced off: {reason}"));
        }
        Ok(())
    }
}
