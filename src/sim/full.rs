//! Full disks, in the workload `regions`: now and then a node's log, its state store or both find no place for up to two
//! seconds, and then there is room again.
//!
//! What production does then is done here: new writes are refused, what the log was turned away with is tried again and again
//! while it is purged, a cut that could not be written is offered again, and writes are taken once nothing lacks room
//! (`driver::upkeep`). A node that needs room to start or to restore a snapshot stops, and is started again.

use super::cluster::{Cluster, Happening, Step};
use crate::store::{DiskSpace, Event};
use crate::types::{StoreId, Time};
use std::time::Duration;

/// How many of 1,000 faults fill a disk.
const FULL_PERMILLE: u32 = 60;
/// Between two attempts of a log that found no place.
const AGAIN: Duration = Duration::from_millis(200);

/// Who needs room on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    Log = 1,
    State = 2,
}

impl Cluster {
    /// Perhaps a disk fills up. Whether it did.
    pub(super) fn fill_disk(&mut self, now: Time, id: StoreId) -> bool {
        if !self.has_staff() || !self.rng.chance("full", FULL_PERMILLE) {
            return false;
        }
        let who = self.rng.range("full.who", 1..4);
        let left = self.rng.range("full.left", 0..8192);
        let ends = self.pause("full.ends", 2_000_000) + Duration::from_millis(5);
        let Some(node) = self.nodes.get(&id) else { return false };
        if who & Room::Log as u64 != 0 {
            let capacity = node.disk.used() + left;
            node.disk.alter_faults(|faults| faults.capacity = Some(capacity));
        }
        node.tables.set_full(who & Room::State as u64 != 0);
        self.counts.full += 1;
        self.trace.line(now, format_args!("{id} has a full disk: {who}"));
        self.world.after(ends, Happening::Room(id));
        true
    }

    /// There is room again.
    pub(super) fn empty_disk(&mut self, now: Time, id: StoreId) {
        let Some(node) = self.nodes.get(&id) else { return };
        node.disk.alter_faults(|faults| faults.capacity = None);
        node.tables.set_full(false);
        self.trace.line(now, format_args!("{id} has room on its disk"));
    }

    /// Somebody found no place to write: new writes are refused from now on.
    pub(super) fn lacks(&mut self, now: Time, id: StoreId, life: u64, room: Room) -> Step {
        let Some(running) = self.running(id) else { return Ok(()) };
        let before = running.full;
        running.full |= room as u8;
        if room == Room::Log {
            running.scheduled.write = true;
            self.world.after(AGAIN, Happening::Write(id, life));
        }
        match before {
            0 => self.tell_of_space(now, id, life, DiskSpace::Full),
            _ => Ok(()),
        }
    }

    /// Somebody could write: writes are taken again once nobody lacks room.
    pub(super) fn has_room(&mut self, now: Time, id: StoreId, life: u64, room: Room) -> Step {
        let Some(running) = self.running(id) else { return Ok(()) };
        let before = running.full;
        running.full &= !(room as u8);
        match before == room as u8 {
            true => self.tell_of_space(now, id, life, DiskSpace::Enough),
            false => Ok(()),
        }
    }

    fn tell_of_space(&mut self, now: Time, id: StoreId, life: u64, space: DiskSpace) -> Step {
        self.trace.line(now, format_args!("{id} finds its disk: {space:?}"));
        for at in 0..self.running(id).map_or(0, |running| running.stores.len()) {
            self.post(now, id, life, at, Event::DiskSpace(space))?;
        }
        Ok(())
    }
}
