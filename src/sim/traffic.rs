//! What travels between the nodes of a cluster: messages through the seeded network, each encoded and decoded
//! as on a real wire. Snapshots have a way of their own (`couriers`).

use super::cluster::{Cluster, Happening, Step, violation};
use crate::codec::Reader;
use crate::codec::beat::{self, Beat};
use crate::raft::{Envelope, wire};
use crate::store::*;
use crate::types::*;
use bytes::Bytes;

impl Cluster {
    pub(super) fn send(&mut self, now: Time, from: StoreId, outbox: &mut Outbox) {
        for (to, _, envelopes) in outbox.take() {
            for envelope in envelopes {
                self.see_vote(now, from, to, &envelope);
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
        if !self.net.is_open(from, to) || !self.admits(from, to) {
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
        let lost = self.hand.as_ref().is_some_and(|hand| hand.loses(&envelope, to));
        let from = envelope.from_store;
        if lost || !self.net.is_open(from, to) || !self.admits(from, to) {
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
}
