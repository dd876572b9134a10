//! Bugs put into a store on purpose, to see that the simulator finds them. Each is called before every event: what it
//! needs must hold for replicas that came since.

use super::round::Store;

impl Store {
    /// No replica keeps the promises that leases rest on.
    pub(crate) fn forget_promises(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.forget_promise());
    }

    /// Nobody is given up, however silent.
    pub(crate) fn keep_support(&mut self) {
        if let Some(liveness) = &mut self.watch.liveness {
            liveness.keep_support();
        }
    }

    /// A leader whose region is frozen keeps the lease that it has.
    pub(crate) fn keep_leases(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.lease_kept = true);
    }

    /// A leader whose region is cut goes on with its lease over the range that it had.
    pub(crate) fn keep_ranges(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.range_kept = true);
    }

    /// Reads do not wait for changes of shape.
    pub(crate) fn leave_shapes_unawaited(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.shape_unawaited = true);
    }

    /// A merge carries what is not committed, instead of what some replica may lack.
    pub(crate) fn carry_too_little(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.first_from_commit = true);
    }

    /// Logs are compacted above snapshots that are under way.
    pub(crate) fn ignore_pins(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.pin_ignored = true);
    }

    /// Replicas count as fresh before they have applied what makes them so.
    pub(crate) fn hurry_freshness(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.fresh_unapplied = true);
    }

    /// Leaders hardly ever ask those who were removed whether they are gone.
    pub(crate) fn ask_removed_late(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.planted.removed_asked_late = true);
    }

    /// A request for the vote of a replica that is not born yet is lost.
    pub(crate) fn drop_requests(&mut self) {
        self.absent.drop_requests();
    }
}
