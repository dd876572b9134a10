//! A state machine that keeps nothing but how far it is.

use super::{Done, Types};
use futures_util::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// The state machine of one replica.
#[derive(Clone, Default)]
pub struct Machine {
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
    /// The newest snapshot; builders put it here.
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<Types>>>>,
}

/// The position of a moment, which is a whole snapshot.
pub struct Builder {
    meta: SnapshotMetaOf<Types>,
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<Types>>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, ()>, io::Error> {
        *self.snapshot.lock() = Some(self.meta.clone());
        Ok(SnapshotOf::<Types, ()> { meta: self.meta.clone(), snapshot: () })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(members) = entry.payload {
                self.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), members);
            }
            if let Some(responder) = responder {
                responder.send(Done);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMetaOf::<Types> {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        Builder { meta, snapshot: Arc::clone(&self.snapshot) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        _snapshot: (),
    ) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock() = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, ()>>, io::Error> {
        let meta = self.snapshot.lock().clone();
        Ok(meta.map(|meta| SnapshotOf::<Types, ()> { meta, snapshot: () }))
    }
}
