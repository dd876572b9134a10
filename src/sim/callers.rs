//! The clients' side of a cluster: requests go to the node a client believes in, answers come back by
//! token, and what is given up on stays open in the history.

use super::checker::Violation;
use super::client::{Flight, Request, value_of};
use super::cluster::{Caller, Cluster, Happening, Step, violation};
use crate::codec::command::decode_swaps;
use crate::error::{Error, Outcome};
use crate::store::*;
use crate::types::*;
use bytes::Bytes;
use std::time::Duration;

impl Cluster {
    pub(super) fn ask(&mut self, now: Time, at: usize, attempt: u64) -> Step {
        if self.clients[at].attempt != attempt {
            return Ok(());
        }
        self.clients[at].attempt += 1;
        let expired = self.clients[at].asked.as_ref().is_some_and(|asked| now >= asked.deadline);
        if expired {
            self.counts.unknown += 1;
            self.clients[at].expired(&mut self.history);
        }
        if self.clients[at].asked.is_none() {
            if self.closing {
                return Ok(());
            }
            if let Some(until) = self.lull(now) {
                self.wait_out(at, until);
                return Ok(());
            }
            let hushed = self.hushed();
            let (rng, history) = (&mut self.rng, &mut self.history);
            self.clients[at].ask(now, &self.keys, hushed, rng, history);
        }
        self.attempt(now, at)
    }

    /// Sends the client's request to the node it believes in.
    fn attempt(&mut self, now: Time, at: usize) -> Step {
        let (node, attempt) = (self.clients[at].node, self.clients[at].attempt);
        let Some(asked) = &self.clients[at].asked else { return Ok(()) };
        let (request, deadline) = (asked.request.clone(), asked.deadline);
        // If no answer has come by then, the outcome is unknown.
        self.world.at(deadline, Happening::Ask(at, attempt));
        let Some(region) = self.region_of(&request) else {
            return self.rerouted(at);
        };
        let Some((life, loop_at)) = self.place(node, region.id) else {
            return self.try_elsewhere(at, None);
        };
        if let Request::Read { key, level } = &request
            && *level != ReadLevel::Linearizable
            && self.served_at_once(now, at, node, &region, key, *level)?
        {
            return Ok(());
        }
        self.next_token += 1;
        let token = Token(self.next_token);
        self.callers.insert(token, Caller { client: at, attempt, node });
        let version = region.epoch.version;
        let event = match request {
            Request::Write { command, .. } => {
                Event::Propose(vec![Proposal { token, region: region.id, version, command }])
            }
            Request::Read { level, .. } => {
                Event::Read(vec![ReadRequest { token, region: region.id, version, level }])
            }
        };
        let Some(asked) = &mut self.clients[at].asked else { return Ok(()) };
        asked.flight = Flight::Sent;
        asked.routed = Some(region);
        self.post(now, node, life, loop_at, event)
    }

    /// The region that holds all keys of a request, as far as the clients know.
    fn region_of(&self, request: &Request) -> Option<Region> {
        let region = &self.routes.lookup(request.first_key())?.region;
        let inside = |(key, _): &(Bytes, _)| region.range.contains(key);
        let whole = match request {
            Request::Write { ops, .. } => ops.iter().all(inside),
            Request::Read { .. } => true,
        };
        whole.then(|| (**region).clone())
    }

    /// No one region holds the request's keys: the client asks around, or gives it up, for no node has it.
    fn rerouted(&mut self, at: usize) -> Step {
        let node = self.clients[at].node;
        let Some(asked) = &self.clients[at].asked else { return Ok(()) };
        let key = asked.request.first_key().clone();
        self.learn_at(node, &key, &[]);
        if self.routes.lookup(&key).is_some() {
            self.clients[at].failed(&mut self.history);
        }
        self.try_elsewhere(at, None)
    }

    /// A read that the replica's lease or freshness allows without asking its loop.
    fn served_at_once(
        &mut self,
        now: Time,
        at: usize,
        id: StoreId,
        region: &Region,
        key: &Bytes,
        level: ReadLevel,
    ) -> Result<bool, Violation> {
        let Some(shape) = self.serves_at_once(now, id, region, level) else { return Ok(false) };
        self.counts.lease_reads += 1;
        let value = self.value_within(id, &shape, key)?;
        self.has_read(now, at, id, region, key, value);
        Ok(true)
    }

    /// Reads from a view of now. `Some`: the region has moved on since the client was routed to it.
    fn read_now(
        &mut self,
        now: Time,
        at: usize,
        id: StoreId,
        region: &Region,
        key: &Bytes,
    ) -> Result<Option<Error>, Violation> {
        match self.value_at(id, region, key)? {
            Ok(value) => self.has_read(now, at, id, region, key, value),
            Err(error) => return Ok(Some(error)),
        }
        Ok(None)
    }

    fn has_read(
        &mut self,
        now: Time,
        at: usize,
        id: StoreId,
        region: &Region,
        key: &Bytes,
        value: Option<Bytes>,
    ) {
        let value = value_of(value.as_deref());
        if let Some(Request::Read { level, .. }) =
            self.clients[at].asked.as_ref().map(|asked| &asked.request)
        {
            self.count_read(id, region, *level);
        }
        self.trace.line(now, format_args!("client {at} read {key:?} = {value:?} at {id}"));
        self.clients[at].has_read(now, value, &mut self.history);
        self.answered(at);
    }

    fn answered(&mut self, at: usize) {
        self.counts.answered += 1;
        let attempt = self.next_attempt(at);
        let pause = self.pause("client.think", 30_000);
        self.world.after(pause, Happening::Ask(at, attempt));
    }

    fn next_attempt(&mut self, at: usize) -> u64 {
        self.clients[at].attempt += 1;
        self.clients[at].attempt
    }

    pub(super) fn answer(&mut self, now: Time, id: StoreId, replies: Vec<(Token, Reply)>) -> Step {
        for (token, reply) in replies {
            let Some(reply) = self.by_hand(token, reply) else { continue };
            let Some(reply) = self.served(now, token, reply)? else { continue };
            let reply = match reply {
                Reply::Admin(done) => {
                    self.administered(now, token, done)?;
                    continue;
                }
                reply if self.probed(token, &reply) => continue,
                reply => reply,
            };
            let Some(caller) = self.callers.remove(&token) else { continue };
            let current = self.clients[caller.client].attempt == caller.attempt;
            if !current {
                continue;
            }
            match reply {
                Reply::Written(Ok(response)) => {
                    let swaps = decode_swaps(&response);
                    if let Some(asked) = &self.clients[caller.client].asked {
                        let (at, request) = (caller.client, &asked.request);
                        self.trace.line(now, format_args!("client {at} did {request} at {id}"));
                    }
                    self.clients[caller.client].wrote(now, swaps, &mut self.history);
                    self.answered(caller.client);
                }
                Reply::Read(Ok(_)) => {
                    let Some(asked) = &self.clients[caller.client].asked else { continue };
                    let Request::Read { key, .. } = &asked.request else { continue };
                    let key = key.clone();
                    // What was granted is a read of the region that was asked, whatever the clients know by now.
                    let Some(region) = asked.routed.clone() else { continue };
                    if let Some(error) = self.read_now(now, caller.client, id, &region, &key)? {
                        self.refused(now, caller, error)?;
                    }
                }
                Reply::Written(Err(error)) | Reply::Read(Err(error)) => {
                    self.refused(now, caller, error)?;
                }
                Reply::Admin(_) | Reply::Transfer(_) | Reply::Status(_) => {}
            }
        }
        Ok(())
    }

    fn refused(&mut self, now: Time, caller: Caller, error: Error) -> Step {
        if error.outcome() == Outcome::Unknown {
            self.give_up(now, caller);
            return Ok(());
        }
        let hint = match error {
            Error::NotLeader { leader, .. } => leader,
            Error::Quarantined { region, reason } if !self.is_damaged(caller.node) => {
                return Err(violation(
                    "no replica is fenced without damage",
                    format!("{} {region}: {reason}", caller.node),
                ));
            }
            Error::EpochNotMatch { current } => {
                let asked = self.clients[caller.client].asked.as_ref();
                let key = asked.map(|asked| asked.request.first_key().clone()).unwrap_or_default();
                self.learn_at(caller.node, &key, &current);
                Some(caller.node)
            }
            _ => None,
        };
        if let Some(asked) = &mut self.clients[caller.client].asked {
            asked.flight = Flight::Waiting;
        }
        self.try_elsewhere(caller.client, hint)
    }

    fn try_elsewhere(&mut self, at: usize, hint: Option<StoreId>) -> Step {
        let ids: Vec<StoreId> = self.nodes.keys().copied().collect();
        let any = self.rng.pick("client.node", &ids).copied().unwrap_or_default();
        let pause = self.pause("client.retry", 100_000) + Duration::from_millis(1);
        // Some stay where they are: an old leader that was cut off must refuse them, too.
        let stay = self.rng.chance("client.stay", 300);
        if !stay {
            self.clients[at].node = hint.unwrap_or(any);
        }
        let attempt = self.next_attempt(at);
        self.world.after(pause, Happening::Ask(at, attempt));
        Ok(())
    }

    pub(super) fn give_up(&mut self, _now: Time, caller: Caller) {
        let at = caller.client;
        if self.clients[at].attempt != caller.attempt {
            return;
        }
        self.counts.unknown += 1;
        self.clients[at].unknown(&mut self.history);
        let attempt = self.next_attempt(at);
        let pause = self.pause("client.think", 30_000);
        self.world.after(pause, Happening::Ask(at, attempt));
    }
}
