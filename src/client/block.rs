//! Waiting without a runtime: for one future, for several.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future of this crate to its end on the calling thread, which sleeps meanwhile. Never call it
/// on a thread of an async runtime, nor in a callback of this crate: it would wait for itself.
pub fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Runs a few futures beside each other, to the end of the last; gives what came of each, in order. Each is polled whenever one
/// of them wakes.
pub(crate) async fn together<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    enum Run<F: Future> {
        On(Pin<Box<F>>),
        Over(F::Output),
    }
    let mut runs: Vec<Run<F>> = futures.into_iter().map(|f| Run::On(Box::pin(f))).collect();
    poll_fn(|context| {
        let mut all = Poll::Ready(());
        for run in &mut runs {
            let Run::On(future) = run else { continue };
            match future.as_mut().poll(context) {
                Poll::Ready(output) => *run = Run::Over(output),
                Poll::Pending => all = Poll::Pending,
            }
        }
        all
    })
    .await;
    let over = |run| match run {
        Run::Over(output) => Some(output),
        Run::On(_) => None,
    };
    runs.into_iter().filter_map(over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[test]
    fn futures_run_beside_each_other_and_keep_their_order() {
        let (first, told_first) = oneshot::channel();
        let (second, told_second) = oneshot::channel();
        let teller = std::thread::spawn(move || {
            second.send(2).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            first.send(1).unwrap();
        });
        let hear = async |told: oneshot::Receiver<u32>| told.await.unwrap();
        assert_eq!(wait(together([told_first, told_second].map(hear))), [1, 2]);
        assert!(wait(together(std::iter::empty::<std::future::Ready<()>>())).is_empty());
        teller.join().unwrap();
    }
}
