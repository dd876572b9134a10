//! The way into running servers, and what they say of themselves.

use crate::cluster::terms;
use crate::machine::Used;
use crate::report::Cost;
use anyhow::{Context, Result};
use catamaran::client::{Client, NodeStatus, RemoteClient, wait};
use parking_lot::Mutex;
use std::time::Duration;

/// A look at one server takes this long at most.
const LOOK: Duration = Duration::from_secs(2);

/// Running servers.
///
/// * Load enters through one client that goes round the servers and past those that are down.
/// * Counters are asked of each server by itself, and added up.
#[derive(Debug)]
pub struct Servers {
    all: RemoteClient,
    each: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    client: RemoteClient,
    seen: Mutex<Seen>,
}

#[derive(Default, Debug)]
struct Seen {
    /// What it had done when it was asked last.
    last: Cost,
    /// What earlier incarnations of it did.
    past: Cost,
}

fn cost_of(status: &NodeStatus) -> Cost {
    let work = &status.work;
    Cost {
        entries: work.log_entries,
        fsyncs: work.log_syncs,
        log_bytes: work.log_bytes,
        flushes: work.flushes,
        table_bytes: work.table_bytes,
        stages: status.stages.clone(),
        ..Cost::default()
    }
}

impl Server {
    fn status(&self) -> Option<NodeStatus> {
        wait(self.client.client().with_timeout(LOOK).status()).ok()
    }

    /// All it did, over restarts; of one that does not answer, what was last known.
    fn cost(&self, now: Option<&NodeStatus>) -> Cost {
        let mut seen = self.seen.lock();
        let last = std::mem::take(&mut seen.last);
        let now = now.map_or_else(|| last.clone(), cost_of);
        if now.entries < last.entries || now.fsyncs < last.fsyncs {
            seen.past = std::mem::take(&mut seen.past).plus(last);
        }
        seen.last = now.clone();
        seen.past.clone().plus(now)
    }
}

impl Servers {
    /// The servers at these addresses, once one of them has answered.
    pub fn connect(addresses: &[String], timeout: Duration) -> Result<Servers> {
        let all = RemoteClient::new(addresses, None, timeout)?;
        wait(all.client().with_timeout(timeout.min(Duration::from_secs(5))).status())
            .with_context(|| format!("no server answers at {}", addresses.join(", ")))?;
        let each = addresses.iter().map(|address| {
            let client = RemoteClient::new(std::slice::from_ref(address), None, timeout)?;
            Ok(Server { client, seen: Mutex::default() })
        });
        Ok(Servers { all, each: each.collect::<Result<_>>()? })
    }

    /// Enters at any of them.
    pub fn client(&self) -> Client {
        self.all.client()
    }

    /// How many answer, and of how many regions they know together.
    pub fn count(&self) -> (u64, u64) {
        let statuses: Vec<NodeStatus> = self.each.iter().filter_map(Server::status).collect();
        let regions = statuses.iter().flat_map(|status| &status.regions);
        let mut ids: Vec<u64> = regions.map(|region| region.region.id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        (statuses.len() as u64, ids.len() as u64)
    }

    /// What they did so far, and the processor time of this process (theirs is not visible from here).
    pub fn cost(&self) -> Cost {
        let mut cost = Cost { cpu: Used::now().cpu, ..Cost::default() };
        let statuses: Vec<_> = self.each.iter().map(Server::status).collect();
        for (server, status) in self.each.iter().zip(&statuses) {
            cost = cost.plus(server.cost(status.as_ref()));
        }
        cost.terms = terms(statuses.into_iter().flatten().flat_map(|status| status.regions));
        cost
    }
}
