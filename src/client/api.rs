//! [`Client`] and its blocking coat.

use super::goal::Goal;
use super::pages::{Pages, Rows};
use super::request::{Body, NodeStatus, Response};
use super::{Backend, Batch, Done, Swap, gate, odd, written};
use crate::codec::command::{self, BATCH_BYTES_MAX, KEY_BYTES_MAX};
use crate::error::{Error, Result};
use crate::kv::Direction;
use crate::store::ReadLevel;
use crate::types::{KeyRange, RegionId, StoreId};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Reads and writes keys. Cheap to clone, safe to share; works in any async runtime, and without one
/// through [`blocking`](Self::blocking).
///
/// * A write that returned `Ok` is on the disks of a majority, and visible to every read that starts
///   afterwards (but for [`ReadLevel::Stale`]).
/// * After an `Err`, [`Error::outcome`] says whether the write may have been applied. What certainly was
///   not is retried inside, with back-off, until the timeout.
/// * Dropping the future of a write does not take the write back.
#[derive(Clone)]
pub struct Client {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) timeout: Duration,
}

impl Client {
    pub(crate) fn new(backend: Arc<dyn Backend>, timeout: Duration) -> Client {
        Client { backend, timeout }
    }

    /// The same client with another limit on each call. That is a limit on the whole of a [`merge`](Self::merge), a
    /// [`split`](Self::split), a change of replicas and [`remove_store`](Self::remove_store), which take several requests; of a
    /// [`scan`](Self::scan), on each page.
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client { backend: Arc::clone(&self.backend), timeout }
    }

    /// The same client for threads that may block.
    pub fn blocking(&self) -> Blocking {
        Blocking { client: self.clone() }
    }

    pub(super) async fn call(&self, body: Body) -> Result<Response> {
        if let Some(result) = self.backend.read_now(&body) {
            return result;
        }
        heard(self.ask_soon(body)).await
    }

    /// Asks, whether or not anybody waits for the answer, which is [heard].
    pub(super) fn ask_soon(&self, body: Body) -> oneshot::Receiver<Result<Response>> {
        let (done, told) = awaited();
        self.backend.call(body, self.timeout, done);
        told
    }

    /// The value of a key, linearizable.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        self.get_at(key, ReadLevel::Linearizable).await
    }

    /// The value of a key, as fresh as asked.
    pub async fn get_at(&self, key: impl Into<Bytes>, level: ReadLevel) -> Result<Option<Bytes>> {
        let mut values = self.multi_get(vec![key.into()], level).await?;
        values.pop().ok_or_else(odd)
    }

    /// The values of several keys, in their order. Those of one region are of one instant. When they are
    /// larger than 17 MiB together it is an [`InvalidArgument`](Error::InvalidArgument): ask for fewer keys.
    pub async fn multi_get(
        &self,
        keys: Vec<Bytes>,
        level: ReadLevel,
    ) -> Result<Vec<Option<Bytes>>> {
        let count = keys.len();
        keys.iter().try_for_each(check_key)?;
        if count > super::request::KEYS_MAX {
            return Err(Error::InvalidArgument(format!("{count} keys in one read")));
        }
        match self.call(Body::Read { level, keys }).await? {
            Response::Values(values) if values.len() == count => Ok(values),
            _ => Err(odd()),
        }
    }

    /// Sets a key.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(key.as_ref(), value.as_ref())?;
        self.write(batch).await.map(|_| ())
    }

    /// Removes a key.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        let mut batch = Batch::new();
        batch.delete(key.as_ref())?;
        self.write(batch).await.map(|_| ())
    }

    /// Removes every key of a range; atomic per region.
    pub async fn delete_range(&self, range: KeyRange) -> Result<()> {
        let mut batch = Batch::new();
        batch.delete_range(&range)?;
        self.write(batch).await.map(|_| ())
    }

    /// Sets `key` to `new` (`None` removes it) if it holds `expected` (`None`: nothing).
    pub async fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swap> {
        let mut batch = Batch::new();
        batch.compare_and_swap(key.as_ref(), expected, new)?;
        self.write(batch).await?.pop().ok_or_else(odd)
    }

    /// Applies a batch in order, atomically per region. Gives the results of its compare and swaps, in
    /// order. Previous values beyond 4 MiB in all (less when many such answers come together) are not told:
    /// see [`Swap::left_out`].
    pub async fn write(&self, batch: Batch) -> Result<Vec<Swap>> {
        let (done, told) = awaited();
        self.backend.write_soon(batch.finish(), self.timeout, done);
        let company = Company(&*self.backend);
        gate::Yield::default().await;
        drop(company);
        command::decode_swaps(&written(heard(told).await)?)
    }

    /// Runs a command of an embedder's own state machine in the region that owns `key`, and gives its
    /// response. Key and command are bounded as those of the built-in state machine are.
    pub async fn execute(&self, key: impl Into<Bytes>, command: impl Into<Bytes>) -> Result<Bytes> {
        let (key, command) = (key.into(), command.into());
        check_key(&key)?;
        if command.len() > BATCH_BYTES_MAX {
            let what = format!("command of {} bytes: at most {BATCH_BYTES_MAX}", command.len());
            return Err(Error::InvalidArgument(what));
        }
        written(self.call(Body::Execute { key, command }).await)
    }

    /// Writes without a future: `done` is called with the swaps once the batch is applied. It runs on a
    /// thread of the node: keep it short, do not block, do not panic.
    pub fn submit(&self, batch: Batch, done: impl FnOnce(Result<Vec<Swap>>) + Send + 'static) {
        self.submit_many([(batch, done)]);
    }

    /// [`submit`](Self::submit) for many batches, which enter the node together.
    pub fn submit_many<F>(&self, batches: impl IntoIterator<Item = (Batch, F)>)
    where
        F: FnOnce(Result<Vec<Swap>>) + Send + 'static,
    {
        let batches = batches
            .into_iter()
            .map(|(batch, done)| {
                let done = Done::new(move |result| {
                    done(written(result).and_then(|bytes| command::decode_swaps(&bytes)));
                });
                (batch.finish(), done)
            })
            .collect();
        self.backend.write_many(batches, self.timeout);
    }

    /// The keys of a range, page by page, in either direction. Each page is of one instant. A bound longer
    /// than a key can be (and the one byte more that makes the longest key's successor) is an
    /// [`InvalidArgument`](Error::InvalidArgument) of the first page.
    pub fn scan(&self, range: KeyRange, direction: Direction, level: ReadLevel) -> Pages {
        Pages::new(self.clone(), range, direction, level)
    }

    /// Where the replicas of the node stand: of this node, or of the one a remote client talks to.
    pub async fn status(&self) -> Result<NodeStatus> {
        self.look(None).await
    }

    /// The same with the replica of one region only, if the node has one: why a change of the region waits stands in its
    /// [`unsettled`](crate::store::RegionStatus::unsettled).
    pub async fn status_of(&self, region: RegionId) -> Result<NodeStatus> {
        self.look(Some(region)).await
    }

    async fn look(&self, region: Option<RegionId>) -> Result<NodeStatus> {
        match self.call(Body::Status { region }).await? {
            Response::Status(status) => Ok(status),
            _ => Err(odd()),
        }
    }

    /// Starts handing leadership of a region to a store, or to the first voter that can lead at once. Done already if that store leads it.
    ///
    /// Errors: [`RegionNotFound`](Error::RegionNotFound) once the directory has known of none for some seconds,
    /// [`InvalidArgument`](Error::InvalidArgument) if no voter lives there (or, where no store is named, nobody else
    /// votes), [`Busy`](Error::Busy) if it is behind or out of reach, or leadership is about to go elsewhere.
    ///
    /// The heir is asked first whether it could lead at once, and wakes and catches up before; the region is led as ever meanwhile, and
    /// on if nobody can within an election timeout. `Ok` says that the heir was told to campaign, not that it has won.
    ///
    /// Stores lead about equally many regions, by the cluster's own doing: what makes them unequal is undone after a while. To free
    /// a store of its leaderships for good, drain it.
    pub async fn transfer_leader(&self, region: RegionId, to: Option<StoreId>) -> Result<()> {
        let mut goal = Goal::of(self);
        goal.region(region).await?;
        goal.whole().hand_over(region, to).await
    }

    /// The same, of a region that is known to be there.
    pub(crate) async fn hand_over(&self, region: RegionId, to: Option<StoreId>) -> Result<()> {
        match self.call(Body::Transfer { region, to }).await? {
            Response::Done => Ok(()),
            _ => Err(odd()),
        }
    }
}

/// A callback, and where its answer is [heard].
pub(super) fn awaited<T: Send + 'static>() -> (Done<T>, oneshot::Receiver<Result<T>>) {
    let (tell, told) = oneshot::channel();
    let done = Done::new(move |result| {
        // Nobody listens any more: fine.
        let _ = tell.send(result);
    });
    (done, told)
}

pub(super) async fn heard<T>(told: oneshot::Receiver<Result<T>>) -> Result<T> {
    told.await.unwrap_or_else(|_| Err(Error::Stopped { reason: "the node has gone".into() }))
}

/// Lets in what waits at the gate when it goes, its future dropped or not.
struct Company<'a>(&'a dyn Backend);

impl Drop for Company<'_> {
    fn drop(&mut self) {
        self.0.let_in();
    }
}

pub(super) fn check_key(key: &Bytes) -> Result<()> {
    match key.len() > KEY_BYTES_MAX {
        true => {
            let what = format!("key of {} bytes: at most {KEY_BYTES_MAX}", key.len());
            Err(Error::InvalidArgument(what))
        }
        false => Ok(()),
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// A [`Client`] whose calls block their thread. Not for threads of an async runtime, nor for callbacks
/// of this crate.
#[derive(Clone, Debug)]
pub struct Blocking {
    pub(super) client: Client,
}

impl Blocking {
    /// See [`Client::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        super::wait(self.client.get(key))
    }

    /// See [`Client::get_at`].
    pub fn get_at(&self, key: impl Into<Bytes>, level: ReadLevel) -> Result<Option<Bytes>> {
        super::wait(self.client.get_at(key, level))
    }

    /// See [`Client::multi_get`].
    pub fn multi_get(&self, keys: Vec<Bytes>, level: ReadLevel) -> Result<Vec<Option<Bytes>>> {
        super::wait(self.client.multi_get(keys, level))
    }

    /// See [`Client::put`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        super::wait(self.client.put(key, value))
    }

    /// See [`Client::delete`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        super::wait(self.client.delete(key))
    }

    /// See [`Client::delete_range`].
    pub fn delete_range(&self, range: KeyRange) -> Result<()> {
        super::wait(self.client.delete_range(range))
    }

    /// See [`Client::compare_and_swap`].
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<Swap> {
        super::wait(self.client.compare_and_swap(key, expected, new))
    }

    /// See [`Client::write`].
    pub fn write(&self, batch: Batch) -> Result<Vec<Swap>> {
        super::wait(self.client.write(batch))
    }

    /// See [`Client::execute`].
    pub fn execute(&self, key: impl Into<Bytes>, command: impl Into<Bytes>) -> Result<Bytes> {
        super::wait(self.client.execute(key, command))
    }

    /// See [`Client::scan`]: an iterator over keys and values.
    pub fn scan(&self, range: KeyRange, direction: Direction, level: ReadLevel) -> Rows {
        Rows::new(self.client.scan(range, direction, level))
    }

    /// See [`Client::status`].
    pub fn status(&self) -> Result<NodeStatus> {
        super::wait(self.client.status())
    }

    /// See [`Client::status_of`].
    pub fn status_of(&self, region: RegionId) -> Result<NodeStatus> {
        super::wait(self.client.status_of(region))
    }

    /// See [`Client::transfer_leader`].
    pub fn transfer_leader(&self, region: RegionId, to: Option<StoreId>) -> Result<()> {
        super::wait(self.client.transfer_leader(region, to))
    }
}
