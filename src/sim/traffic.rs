//! What travels between the nodes of a cluster: messages through the seeded network, each encoded and decoded
//! as on a real wire, and snapshots, whose data arrives later than everything else.

use super::cluster::{Cluster, Happening, Step, violation};
use super::node::SNAP_DIR;
use crate::codec::Reader;
use crate::codec::beat::{self, Beat};
use crate::env::Disk;
use crate::raft::{Envelope, wire};
use crate::region::snapshot::{SnapshotFile, SnapshotWriter};
use crate::store::*;
use crate::types::*;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Cluster {
    pub(super) fn send(&mut self, now: Time, from: StoreId, outbox: &mut Outbox) {
        for (to, _, envelopes) in outbox.take() {
            for envelope in envelopes {
                let mut bytes = Vec::new();
                wire::encode(&envelope.message, &mut bytes);
                for delivery in self.net.route(now, from, to, bytes.len() + 32, &mut self.rng) {
                    // A flipped bit is found by the frame's checksum: the frame is lost.
                    if delivery.flipped_bit.is_none() {
                        self.world.at(delivery.at, Happening::Arrive(to, envelope.clone()));
                    }
                }
            }
        }
    }

    pub(super) fn send_beats(&mut self, now: Time, from: StoreId, beats: Vec<(StoreId, Beat)>) {
        for (to, beat) in beats {
            let bytes = beat::encode(&beat).len() + 32;
            for delivery in self.net.route(now, from, to, bytes, &mut self.rng) {
                if delivery.flipped_bit.is_none() {
                    self.world.at(delivery.at, Happening::Beat(to, from, beat.clone()));
                }
            }
        }
    }

    pub(super) fn beat_arrives(
        &mut self,
        now: Time,
        to: StoreId,
        from: StoreId,
        beat: Beat,
    ) -> Step {
        if !self.net.is_open(from, to) {
            return Ok(());
        }
        let beat = beat::decode(beat.number, beat::encode(&beat))
            .map_err(|e| violation("a beat survives its encoding", e.to_string()))?;
        let Some(node) = self.nodes.get(&to).filter(|node| node.running.is_some()) else {
            return Ok(());
        };
        let life = node.life;
        self.post(now, to, life, 0, Event::Beat { from, beat })
    }

    pub(super) fn arrive(&mut self, now: Time, to: StoreId, mut envelope: Envelope) -> Step {
        if !self.net.is_open(envelope.from_store, to) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        wire::encode(&envelope.message, &mut bytes);
        envelope.message = wire::decode(&mut Reader::new("message", Bytes::from(bytes)))
            .map_err(|e| violation("a message survives its encoding", e.to_string()))?;
        let Some((life, at)) = self.place(to, envelope.region) else { return Ok(()) };
        self.post(now, to, life, at, Event::Messages(vec![envelope]))
    }

    /// The life and loop that take what is for a region on a node.
    pub(super) fn place(&self, id: StoreId, region: RegionId) -> Option<(u64, usize)> {
        let node = self.nodes.get(&id)?;
        Some((node.life, node.running.as_ref()?.loop_of(region)))
    }

    pub(super) fn send_snapshot(
        &mut self,
        now: Time,
        from: StoreId,
        life: u64,
        snapshot: SnapshotSend,
    ) {
        let SnapshotSend { to, envelope, mut chunks } = snapshot;
        let mut data = Vec::new();
        while let Ok(Some(chunk)) = chunks.next_chunk() {
            data.push(chunk);
        }
        let bytes: usize = data.iter().map(Bytes::len).sum();
        let slow = self.pause("snapshot.time", 300_000);
        let arrival = self.net.route(now, from, to, bytes, &mut self.rng).first().copied();
        match arrival {
            Some(delivery) => {
                let event = Happening::SnapshotArrive(to, from, life, envelope, data);
                self.world.at(delivery.at.after(slow), event);
            }
            None => self.report_snapshot(from, life, &envelope, Delivered::Failed, slow),
        }
    }

    fn report_snapshot(
        &mut self,
        sender: StoreId,
        life: u64,
        envelope: &Envelope,
        delivered: Delivered,
        after: Duration,
    ) {
        let Envelope { region, from, to, .. } = *envelope;
        let Some((now_life, at)) = self.place(sender, region) else { return };
        if now_life == life {
            let event = Event::SnapshotSent { region, from, to, delivered };
            self.world.after(after, Happening::Post(sender, life, at, event));
        }
    }

    pub(super) fn snapshot_arrive(
        &mut self,
        now: Time,
        to: StoreId,
        from: StoreId,
        life: u64,
        envelope: Envelope,
        chunks: Vec<Bytes>,
    ) -> Step {
        let back = self.pause("snapshot.report", 5_000);
        let name = format!("{}-{}", envelope.region.0, self.counts.steps);
        let open = self.net.is_open(from, to);
        let Some((to_life, at)) = self.place(to, envelope.region).filter(|_| open) else {
            self.report_snapshot(from, life, &envelope, Delivered::Failed, back);
            return Ok(());
        };
        let disk: Arc<dyn Disk> = Arc::new(self.nodes[&to].disk.clone());
        match receive(&disk, &name, chunks) {
            Ok(file) => {
                self.counts.snapshots += 1;
                self.trace.line(now, format_args!("{to} received {} snapshot", envelope.region));
                self.report_snapshot(from, life, &envelope, Delivered::Whole, back);
                self.post(now, to, to_life, at, Event::SnapshotReceived { envelope, file })
            }
            Err(error) => {
                self.report_snapshot(from, life, &envelope, Delivered::Failed, back);
                self.node_failed(now, to, "snapshot", error)
            }
        }
    }

    pub(super) fn discard(&mut self, id: StoreId, files: Vec<SnapshotFile>) {
        for file in files {
            // A leftover is removed when the node opens.
            let _ = self.nodes[&id].disk.remove(&file.path);
        }
    }
}

fn receive(
    disk: &Arc<dyn Disk>,
    name: &str,
    chunks: Vec<Bytes>,
) -> crate::error::Result<SnapshotFile> {
    let mut writer = SnapshotWriter::create(disk, Path::new(SNAP_DIR).join(name))?;
    for chunk in chunks {
        writer.chunk(&chunk)?;
    }
    writer.finish()
}
