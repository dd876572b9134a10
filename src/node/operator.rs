//! The operator: carries out what the replicas of this node wish for and cannot do alone, one thing at a time.
//!
//! A region that has grown too large is to be cut; a frozen one is to be merged into its neighbour. The ids for the
//! parts come from region 1, the neighbour may be led elsewhere, so a thread of its own does it, as any client would. A
//! wish that fails or finds no place in the queue is forgotten: it is wished again.

use crate::client::merge::Merged;
use crate::client::{Client, wait};
use crate::error::{Error, Result};
use crate::store::{MergeWish, SplitWish};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::time::Duration;

/// Wishes that wait, at most.
const WISHES_MAX: usize = 64;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something to be carried out.
#[derive(Debug)]
pub(super) enum Wish {
    Split(SplitWish),
    Merge(MergeWish),
}

/// Where wishes go.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    queue: Sender<Wish>,
}

impl Wishes {
    /// A queue, and its other end for [`start`].
    pub fn new() -> (Wishes, Receiver<Wish>) {
        let (queue, wishes) = bounded(WISHES_MAX);
        (Wishes { queue }, wishes)
    }

    /// Never blocks.
    pub fn split(&self, wish: SplitWish) {
        // Full, or the node is closing: it is wished again.
        let _ = self.queue.try_send(Wish::Split(wish));
    }

    /// Never blocks.
    pub fn merge(&self, wish: MergeWish) {
        let _ = self.queue.try_send(Wish::Merge(wish));
    }
}

/// Starts the thread. It ends when the node stops, or its driver is gone: a moment later, nobody waits for it.
pub(super) fn start(wishes: Receiver<Wish>, client: Client) -> Result<()> {
    let client = client.with_timeout(PATIENCE);
    let body = move || {
        for wish in wishes {
            let done = match wish {
                Wish::Split(wish) => split(&client, wish),
                Wish::Merge(wish) => merge(&client, wish),
            };
            if matches!(done, Err(Error::Stopped { .. })) {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("operator".into());
    thread.spawn(body).map(drop).map_err(|e| Error::io("spawn thread", "operator", e))
}

fn split(client: &Client, wish: SplitWish) -> Result<()> {
    let SplitWish { region, keys } = wish;
    let cut = wait(client.split(keys));
    match &cut {
        Ok(cut) => tracing::info!(%region, parts = cut.len(), "a large region was cut"),
        Err(error) => tracing::warn!(%region, %error, "a large region could not be cut"),
    }
    cut.map(drop)
}

fn merge(client: &Client, wish: MergeWish) -> Result<()> {
    let (region, target) = (wish.source, wish.merging.target);
    let done = wait(client.carry_out(wish));
    match &done {
        Ok(Merged::Yes) => tracing::info!(%region, %target, "a region was merged"),
        Ok(Merged::Never) => {
            tracing::info!(%region, %target, "a region could not be merged, and was thawed")
        }
        Err(error) => tracing::warn!(%region, %target, %error, "a frozen region waits"),
    }
    done.map(drop)
}
