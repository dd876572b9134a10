//! Life and death of a cluster's nodes: they start from what their disks hold, crash, fail and come back.

use super::cluster::{Cluster, Happening, Step, violation};
use super::disk::Mercy;
use crate::error::Error;
use crate::store::Token;
use crate::types::{StoreId, Time};
use std::time::Duration;

impl Cluster {
    pub(super) fn restart(&mut self, now: Time, id: StoreId) -> Step {
        let options = self.options.clone();
        let calm = self.calm;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.running.is_some() {
            return Ok(());
        }
        if let Err(error) = node.start(now, &options) {
            if node.disk.is_off()
                || (!calm && matches!(error, Error::Io { .. } | Error::DiskFull { .. }))
            {
                self.trace.line(now, format_args!("{id} failed to start: {error}"));
                return self.crash(now, id, Mercy::Drawn);
            }
            if self.give_up_directory(now, id, &error) {
                return Ok(());
            }
            return Err(violation("a node opens its directory again", format!("{id}: {error}")));
        }
        if let Err(error) = self.hire(now, id) {
            self.trace.line(now, format_args!("{id} failed to start: {error}"));
            return self.node_failed(now, id, "start", error);
        }
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let life = node.life;
        let tick = node.clock.world_time(node.now(now).after(options.config.tick));
        self.trace.line(now, format_args!("{id} started, life {life}"));
        self.world.at(tick, Happening::Tick(id, life));
        self.world.after(Duration::from_millis(300), Happening::Freeze(id, life));
        let loops = self.running(id).map_or(0, |r| r.stores.len());
        for at in 0..loops {
            let running = self.running(id);
            if let Some(running) = running {
                running.scheduled.drain[at] = true;
            }
            self.world.at(now, Happening::Drain(id, life, at));
        }
        (0..loops).try_for_each(|at| self.look_at_fenced(now, id, at))
    }

    /// Power loss or kill; comes back after a while.
    pub(super) fn crash(&mut self, now: Time, id: StoreId, mercy: Mercy) -> Step {
        let down = self.pause("crash.down", 3_000_000) + Duration::from_millis(5);
        self.crash_for(now, id, mercy, down)
    }

    /// The same, and comes back after `down`.
    pub(super) fn crash_for(
        &mut self,
        now: Time,
        id: StoreId,
        mercy: Mercy,
        down: Duration,
    ) -> Step {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.running = None;
        node.life += 1;
        node.disk.crash(mercy);
        node.tables.crash();
        self.forget_shapes(id);
        self.dismiss(now, id);
        self.counts.crashes += 1;
        self.trace.line(now, format_args!("{id} crashed ({mercy:?})"));
        let gone: Vec<Token> =
            self.callers.iter().filter(|(_, c)| c.node == id).map(|(t, _)| *t).collect();
        for token in gone {
            let Some(caller) = self.callers.remove(&token) else { continue };
            self.give_up(now, caller);
        }
        self.world.after(down, Happening::Restart(id));
        Ok(())
    }

    /// An activity of a node failed: fatal for the node; a violation unless a fault explains it.
    pub(super) fn node_failed(&mut self, now: Time, id: StoreId, what: &str, error: Error) -> Step {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let full = matches!(error, Error::DiskFull { .. }) && !self.calm;
        let explained = full || node.disk.is_off() || node.disk.counts().faults > 0;
        if !explained {
            return Err(violation("a node works on a sound disk", format!("{id} {what}: {error}")));
        }
        self.trace.line(now, format_args!("{id} stopped: {what}"));
        self.crash(now, id, Mercy::Drawn)
    }
}
