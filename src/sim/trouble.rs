//! The fault injector: crashes between and inside disk operations, partitions, weather, slow and failing
//! disks, full ones (`full`), clocks that jump, leaders that are asked to go.

use super::cluster::{Cluster, Happening, Step};
use super::disk::{Faults, Fires, Mercy, Speed};
use super::net::Weather;
use crate::store::{Event, Token};
use crate::types::{StoreId, Time};
use std::time::Duration;

/// Changes of the disk within which an armed power failure strikes.
const POWER_OFF_WITHIN: u64 = 12;
/// How many of 1,000 faults are sieges, if a region has a leader and all its replicas are up.
const SIEGE_PERMILLE: u32 = 60;
/// And how many are recounts, in the workload in which stores come and go.
const RECOUNT_PERMILLE: u32 = 15;

impl Cluster {
    /// One fault, then an appointment for the next; after the calm has begun, none.
    pub(super) fn trouble(&mut self, now: Time) -> Step {
        if self.calm {
            return Ok(());
        }
        let next = self.pause("trouble.interval", 1_200_000) + Duration::from_millis(50);
        self.world.after(next, Happening::Trouble);
        self.count_sleepers();
        if self.siege.is_some() || self.recount.is_some() {
            return Ok(());
        }
        let ids: Vec<StoreId> = self.nodes.keys().copied().collect();
        let Some(victim) = self.rng.pick("trouble.victim", &ids).copied() else { return Ok(()) };
        if self.rng.chance("trouble.siege", SIEGE_PERMILLE) {
            self.besiege(now);
            return Ok(());
        }
        if self.stores.is_some() && self.rng.chance("trouble.recount", RECOUNT_PERMILLE) {
            self.begin_recount(now);
            return Ok(());
        }
        if self.fill_disk(now, victim) {
            return Ok(());
        }
        match self.rng.range("trouble.kind", 0..100) {
            0..15 => self.crash_if_up(now, victim, Mercy::Drawn),
            15..32 => {
                self.power_off_soon(now, victim);
                Ok(())
            }
            32..38 => self.crash_all(now, &ids),
            38..60 => {
                self.partition(now);
                Ok(())
            }
            60..75 => {
                self.net.heal();
                self.trace.line(now, format_args!("network healed"));
                Ok(())
            }
            75..82 => {
                let weather = Weather::draw(&mut self.rng);
                self.net.set_weather(weather);
                Ok(())
            }
            82..88 => {
                self.slow_disk(now, victim);
                Ok(())
            }
            88..91 => {
                self.failing_sync(now, victim);
                Ok(())
            }
            91..95 => {
                self.jump_clock(now, victim);
                Ok(())
            }
            _ => self.transfer(now, victim),
        }
    }

    fn crash_if_up(&mut self, now: Time, id: StoreId, mercy: Mercy) -> Step {
        match self.nodes.get(&id).is_some_and(|node| node.running.is_some()) {
            true => self.crash(now, id, mercy),
            false => Ok(()),
        }
    }

    fn crash_all(&mut self, now: Time, ids: &[StoreId]) -> Step {
        for id in ids {
            self.crash_if_up(now, *id, Mercy::Drawn)?;
        }
        Ok(())
    }

    /// The power fails in the middle of one of the next disk operations.
    fn power_off_soon(&mut self, now: Time, id: StoreId) {
        let within = self.rng.range("trouble.power", 1..POWER_OFF_WITHIN);
        let Some(node) = self.nodes.get(&id) else { return };
        let at = node.disk.counts().changes() + within;
        node.disk.alter_faults(|faults| faults.power_off_after = Some(at));
        self.trace.line(now, format_args!("{id} loses power within {within} changes"));
    }

    fn partition(&mut self, now: Time) {
        if let Some(partition) = self.net.draw_partition(&mut self.rng) {
            self.trace.line(now, format_args!("partition: {partition}"));
            self.net.cut(&partition);
        }
    }

    fn slow_disk(&mut self, now: Time, id: StoreId) {
        let stalling = self.rng.chance("trouble.stalling", 500);
        let speed = if stalling { Speed::stalling() } else { Speed::solid_state() };
        if let Some(node) = self.nodes.get(&id) {
            node.disk.alter_faults(|faults| faults.speed = speed);
            self.trace.line(now, format_args!("{id} has a slow disk, stalling: {stalling}"));
        }
    }

    /// The next sync fails: the node must stop and never acknowledge what it covered.
    fn failing_sync(&mut self, now: Time, id: StoreId) {
        if let Some(node) = self.nodes.get(&id) {
            let next = node.disk.counts().syncs + 1;
            node.disk.alter_faults(|faults| faults.sync = Fires::At([next].into()));
            self.trace.line(now, format_args!("{id} will fail a sync"));
        }
    }

    fn jump_clock(&mut self, now: Time, id: StoreId) {
        let by = self.pause("trouble.jump", 400_000);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.clock.jump(now, by);
            self.trace.line(now, format_args!("{id} clock jumps {} us", by.as_micros()));
        }
    }

    fn transfer(&mut self, now: Time, id: StoreId) -> Step {
        let led: Vec<_> = self.statuses(id).into_iter().filter(|s| s.leads).collect();
        let Some(status) = self.rng.pick("trouble.transfer", &led).cloned() else { return Ok(()) };
        let region = status.region.id;
        let Some((life, at)) = self.place(id, region) else { return Ok(()) };
        let event = Event::Transfer { token: Token(0), region, to: None };
        self.trace.line(now, format_args!("{id} hands over {region}"));
        self.post(now, id, life, at, event)
    }

    /// Faults are over: the network heals, disks are sound, whoever is down comes back.
    pub(super) fn calm_down(&mut self, now: Time) {
        self.calm = true;
        (self.siege, self.recount) = (None, None);
        self.net.heal();
        self.net.set_weather(Weather::fair());
        for (id, node) in &mut self.nodes {
            node.disk.set_faults(Faults::default());
            node.tables.set_full(false);
            if node.running.is_none() {
                self.world.after(Duration::from_millis(10), Happening::Restart(*id));
            }
        }
        self.trace.line(now, format_args!("calm"));
    }
}
