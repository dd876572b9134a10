//! Bugs put into a store on purpose, to see that the simulator finds them.

use super::round::Store;
use crate::sim::node::Planted;

impl Store {
    /// Called before each event: what the bug needs must hold for replicas that came since.
    pub(crate) fn plant(&mut self, planted: Planted) {
        match planted {
            Planted::ForgottenPromise => {
                self.peers.values_mut().for_each(|peer| peer.forget_promise())
            }
            Planted::SupportKept => {
                if let Some(liveness) = &mut self.watch.liveness {
                    liveness.keep_support();
                }
            }
            Planted::LeaseKept => {
                self.peers.values_mut().for_each(|peer| peer.planted.lease_kept = true);
            }
            Planted::FirstFromCommit => {
                self.peers.values_mut().for_each(|peer| peer.planted.first_from_commit = true);
            }
            Planted::AckBeforeSync
            | Planted::ForgottenVote
            | Planted::FlushReportedEarly
            | Planted::IgnoredEpoch => {}
        }
    }
}
