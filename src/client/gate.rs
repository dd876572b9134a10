//! The gate: writes of many callers at the same moment enter the node together, or leave for another one together.
//!
//! A write that goes alone pays for a lock, a wake-up of the store loop and, worst, a round of its own. So a future
//! that writes leaves its batch at the gate, yields once, and then lets in whatever waits there. On a busy runtime
//! the other ready tasks have had their turn by then and left theirs; on an idle one the yield costs next to
//! nothing. There is no timer to linger by and no thread.
//!
//! * Whoever left a batch lets in all that wait, when it is polled again or dropped: nobody depends on another's
//!   future being polled.
//! * [`MOST`] batches, or [`MOST_BYTES`], go at once.

use super::Done;
use super::request::Response;
use bytes::Bytes;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Batches that wait for others, at most.
const MOST: usize = 256;
/// Bytes that wait for others, at most.
const MOST_BYTES: usize = 256 << 10;

/// A batch at the gate.
pub(super) struct Entrant {
    pub command: Bytes,
    pub timeout: Duration,
    pub done: Done<Response>,
}

#[derive(Default)]
struct Waiting {
    entrants: Vec<Entrant>,
    bytes: usize,
}

impl Waiting {
    fn take(&mut self) -> Vec<Entrant> {
        self.bytes = 0;
        std::mem::take(&mut self.entrants)
    }
}

/// Where writes meet before they enter a node.
#[derive(Default)]
pub(super) struct Gate {
    waiting: Mutex<Waiting>,
}

impl Gate {
    /// Leaves a batch; gives all back when there are enough.
    pub fn leave(&self, entrant: Entrant) -> Vec<Entrant> {
        let mut waiting = self.waiting.lock();
        waiting.bytes += entrant.command.len();
        waiting.entrants.push(entrant);
        match waiting.entrants.len() >= MOST || waiting.bytes >= MOST_BYTES {
            true => waiting.take(),
            false => Vec::new(),
        }
    }

    /// All that wait.
    pub fn open(&self) -> Vec<Entrant> {
        self.waiting.lock().take()
    }
}

/// Hands on those who came together, as many at once as have the same patience.
pub(super) fn by_patience(
    mut entrants: Vec<Entrant>,
    mut write_many: impl FnMut(Vec<(Bytes, Done<Response>)>, Duration),
) {
    while let Some(timeout) = entrants.first().map(|first| first.timeout) {
        let others = entrants.iter().position(|other| other.timeout != timeout);
        let rest = others.map(|at| entrants.split_off(at)).unwrap_or_default();
        write_many(entrants.into_iter().map(|one| (one.command, one.done)).collect(), timeout);
        entrants = rest;
    }
}

/// Lets every other task that is ready have its turn first.
#[derive(Default)]
pub(super) struct Yield {
    yielded: bool,
}

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Body;
    use super::super::{Backend, Batch, Client};
    use super::*;
    use std::sync::Arc;

    /// A node that writes down how many batches entered together.
    #[derive(Default)]
    struct Node {
        gate: Gate,
        entered: Mutex<Vec<usize>>,
    }

    impl Node {
        fn enter(&self, entrants: Vec<Entrant>) {
            if !entrants.is_empty() {
                self.entered.lock().push(entrants.len());
            }
            for one in entrants {
                one.done.call(Ok(Response::Written(Bytes::new())));
            }
        }
    }

    impl Backend for Node {
        fn call(&self, _: Body, _: Duration, done: Done<Response>) {
            done.call(Ok(Response::Done));
        }

        fn now(&self) -> crate::types::Time {
            crate::types::Time(0)
        }

        fn write_soon(&self, command: Bytes, timeout: Duration, done: Done<Response>) {
            self.enter(self.gate.leave(Entrant { command, timeout, done }));
        }

        fn let_in(&self) {
            self.enter(self.gate.open());
        }
    }

    fn node() -> (Arc<Node>, Client) {
        let node = Arc::new(Node::default());
        (Arc::clone(&node), Client::new(node, Duration::from_secs(1)))
    }

    fn put(bytes: usize) -> Batch {
        let mut batch = Batch::new();
        batch.put(b"key", &vec![0; bytes]).unwrap();
        batch
    }

    fn together(writers: usize, bytes: usize) -> Vec<usize> {
        let (node, client) = node();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let tasks: Vec<_> = (0..writers)
                .map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move { client.write(put(bytes)).await })
                })
                .collect();
            for task in tasks {
                task.await.unwrap().unwrap();
            }
        });
        node.entered.lock().clone()
    }

    #[test]
    fn tasks_that_are_ready_together_enter_together() {
        assert_eq!(together(1, 1), [1]);
        assert_eq!(together(30, 1), [30]);
    }

    #[test]
    fn enough_of_them_wait_for_nobody() {
        let entered = together(3 * MOST, 1);
        assert!(entered.iter().all(|some| *some <= MOST), "{entered:?}");
        assert_eq!(together(4, MOST_BYTES), [1; 4]);
    }

    /// A write is not taken back by dropping its future, wherever that stands.
    #[test]
    fn a_future_that_is_dropped_lets_in_what_it_left() {
        let (node, client) = node();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut left = Box::pin(client.write(put(1)));
        assert!(left.as_mut().poll(&mut context).is_pending());
        assert!(node.entered.lock().is_empty());
        drop(left);
        assert_eq!(*node.entered.lock(), [1]);
    }

    /// One whose future nobody polls any more enters with the next that comes.
    #[test]
    fn nobody_waits_for_another_future_to_be_polled() {
        let (node, client) = node();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut idle = Box::pin(client.write(put(1)));
        assert!(idle.as_mut().poll(&mut context).is_pending());
        super::super::wait(client.write(put(1))).unwrap();
        assert_eq!(*node.entered.lock(), [2]);
        assert!(idle.as_mut().poll(&mut context).is_ready());
    }
}
