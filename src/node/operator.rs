//! The operator: carries out what the replicas of this node wish for and cannot do alone, one thing at a time.
//!
//! A region that has grown too large is to be cut. The ids for its parts come from region 1, which may live
//! elsewhere, so a thread of its own does it, as any client would. A wish that fails or finds no place in the queue
//! is forgotten: the region is measured again and wishes again.

use crate::client::{Client, wait};
use crate::error::{Error, Result};
use crate::store::SplitWish;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::time::Duration;

/// Wishes that wait, at most.
const WISHES_MAX: usize = 64;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where wishes go.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    queue: Sender<SplitWish>,
}

impl Wishes {
    /// A queue, and its other end for [`start`].
    pub fn new() -> (Wishes, Receiver<SplitWish>) {
        let (queue, wishes) = bounded(WISHES_MAX);
        (Wishes { queue }, wishes)
    }

    /// Never blocks.
    pub fn split(&self, wish: SplitWish) {
        // Full, or the node is closing: it is wished again.
        let _ = self.queue.try_send(wish);
    }
}

/// Starts the thread. It ends when the node stops, or its driver is gone: a moment later, nobody waits for it.
pub(super) fn start(wishes: Receiver<SplitWish>, client: Client) -> Result<()> {
    let client = client.with_timeout(PATIENCE);
    let body = move || {
        for SplitWish { region, keys } in wishes {
            match wait(client.split(keys)) {
                Ok(cut) => tracing::info!(%region, parts = cut.len(), "a large region was cut"),
                Err(Error::Stopped { .. }) => return,
                Err(error) => tracing::warn!(%region, %error, "a large region could not be cut"),
            }
        }
    };
    let thread = std::thread::Builder::new().name("operator".into());
    thread.spawn(body).map(drop).map_err(|e| Error::io("spawn thread", "operator", e))
}
