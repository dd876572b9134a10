//! The network of one group: a call is a call of the other replica's function.

use super::{Replica, Types};
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest,
    VoteResponse,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

/// How a leader's appends travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Append {
    /// The next one after the answer to the last one.
    OneByOne,
    /// Ahead of the answers.
    Ahead,
}

/// Who is who in a group. Clones share it.
#[derive(Clone)]
pub struct Network {
    append: Append,
    replicas: Arc<Mutex<BTreeMap<u64, Replica>>>,
}

impl Network {
    /// Of a group whose replicas are yet to be added.
    pub fn new(append: Append) -> Network {
        Network { append, replicas: Arc::default() }
    }

    /// Makes a replica known to the others.
    pub fn add(&self, id: u64, replica: Replica) {
        self.replicas.lock().insert(id, replica);
    }

    /// Forgets the replicas.
    pub fn clear(&self) {
        self.replicas.lock().clear();
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &()) -> Link {
        Link { append: self.append, to: self.replicas.lock().get(&target).cloned() }
    }
}

/// The way to one other replica.
pub struct Link {
    append: Append,
    to: Option<Replica>,
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(error))
}

impl Link {
    fn to(&self) -> Result<&Replica, Unreachable<Types>> {
        self.to.as_ref().ok_or_else(|| Unreachable::from_string("no such replica"))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.to()?.append_entries(rpc).await.map_err(|error| unreachable(&error))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if self.append == Append::OneByOne {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let answers = self.to()?.stream_append(input);
            let answers = answers.map(|answer| answer.map_err(|error| unreachable(&error)));
            Ok(Box::pin(answers) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.to()?.vote(rpc).await.map_err(|error| unreachable(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let installed = self.to()?.install_full_snapshot(vote, snapshot).await;
        installed.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
    }
}
