//! Clusters of one region, by a clock of their own.

use super::*;
use crate::client::ask::{Answer, Ask};
use crate::client::{Backend, Done, wait};
use crate::codec::directory::{Directory, StoreRecord};
use crate::codec::report::{Cluster, RegionInfo};
use crate::region::membership;
use crate::types::{FIRST_REGION, KeyRange, Peer, Time};
use parking_lot::Mutex;
use std::sync::Arc;

const REGION: RegionId = RegionId(7);

fn voters(stores: &[u64]) -> Region {
    let peer = |store: &u64| Peer { id: PeerId(*store), store: StoreId(*store), role: Role::Voter };
    let epoch = Epoch { conf_ver: 1, version: 1 };
    Region { id: REGION, epoch, peers: stores.iter().map(peer).collect(), ..Region::default() }
}

fn answer_of_directory(ask: Ask, regions: Vec<RegionInfo>) -> Result<Response> {
    Ok(Response::Directory(match ask {
        Ask::Locate { .. } => Answer::Located(regions),
        _ => Answer::Cluster(Cluster { directory: ten_stores(), ..Cluster::default() }),
    }))
}

/// Stores that take replicas.
fn ten_stores() -> Directory {
    let record = |store| (store, StoreRecord { store, ..StoreRecord::default() });
    Directory { stores: (1..=10).map(StoreId).map(record).collect(), ..Directory::default() }
}

/// A region whose replicas catch up at once. Its leader refuses what leaders refuse.
struct Led {
    now: Mutex<Region>,
    leader: Mutex<StoreId>,
    /// The largest number of voters that it had, and the smallest.
    voters: Mutex<(usize, usize)>,
    asked: Mutex<u32>,
}

impl Led {
    fn change(&self, epoch: Epoch, changes: &[Change]) -> Result<Response> {
        let (mut now, leader) = (self.now.lock(), *self.leader.lock());
        let leads = |peer: PeerId| now.peer_on(leader).is_some_and(|one| one.id == peer);
        let lowers = |change: &Change| matches!(change, Change::Demote(_) | Change::Remove(_));
        if changes.iter().any(|change| lowers(change) && leads(change.peer())) {
            return Err(Error::LeaderStays { region: REGION });
        }
        *now = membership::change(&now, &[], epoch, changes)?;
        if now.is_joint() {
            *now = membership::leave(&now, now.epoch)?;
        }
        let votes = now.peers.iter().filter(|peer| peer.role == Role::Voter).count();
        let mut voters = self.voters.lock();
        *voters = (voters.0.max(votes), voters.1.min(votes));
        Ok(Response::Regions(vec![now.clone()]))
    }

    fn transfer(&self) -> Result<Response> {
        let mut leader = self.leader.lock();
        let now = self.now.lock();
        let heir = now.peers.iter().find(|one| one.role == Role::Voter && one.store != *leader);
        let nobody = || Error::InvalidArgument("no other voter to hand over to".into());
        *leader = heir.ok_or_else(nobody)?.store;
        Ok(Response::Done)
    }
}

impl Backend for Led {
    fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
        *self.asked.lock() += 1;
        done.call(match body {
            Body::Directory(ask) => answer_of_directory(ask, Vec::new()),
            Body::Transfer { to: None, .. } => self.transfer(),
            Body::Admin { admin: Admin::Allocate { .. }, .. } => Ok(Response::Ids(70)),
            Body::Admin { admin: Admin::ChangePeers { epoch, changes }, .. } => {
                self.change(epoch, &changes)
            }
            _ => Err(Error::EpochNotMatch { current: vec![self.now.lock().clone()] }),
        });
    }

    /// Each call takes a while.
    fn now(&self) -> Time {
        Time(0).after(Duration::from_millis(100) * *self.asked.lock())
    }
}

/// What comes of replacing the leader, on store 1, of a region with voters on these stores by a replica on store 9; then the
/// largest and smallest number of voters meanwhile.
fn replaced(stores: &[u64]) -> (Region, (usize, usize)) {
    let count = stores.len();
    let cluster = Arc::new(Led {
        now: Mutex::new(voters(stores)),
        leader: Mutex::new(StoreId(1)),
        voters: Mutex::new((count, count)),
        asked: Mutex::default(),
    });
    let client = Client::new(cluster.clone(), Duration::from_secs(10));
    let now = wait(client.replace_peer(REGION, StoreId(1), StoreId(9))).unwrap();
    let voters = *cluster.voters.lock();
    (now, voters)
}

/// A region with one voter: its leader was to be demoted in the very step that gave it an heir, refused, and had nobody to hand
/// over to before. That went on until the time was up, or until the learner was forgotten.
#[test]
fn the_only_voter_has_its_heir_vote_beside_it_first() {
    for (stores, most) in [(&[1][..], 2), (&[1, 2], 2), (&[1, 2, 3], 3)] {
        let (now, voters) = replaced(stores);
        assert_eq!(voters, (most, stores.len()), "{now:?}");
        assert_eq!(now.peers.len(), stores.len(), "{now:?}");
        let new = now.peer_on(StoreId(9)).map(|peer| peer.role);
        assert_eq!((new, now.peer_on(StoreId(1))), (Some(Role::Voter), None));
    }
}

/// A cluster whose nodes know of the region from some moment on, if ever; its directory has this leader of all other keys.
#[derive(Default)]
struct Newborn {
    now: Mutex<Duration>,
    born: Option<Duration>,
    leader: Option<StoreId>,
}

impl Backend for Newborn {
    fn call(&self, body: Body, timeout: Duration, done: Done<Response>) {
        let is_born = self.born.is_some_and(|born| *self.now.lock() >= born);
        let answer = match body {
            Body::Directory(ask) => {
                let range = KeyRange::all();
                let region = Region { id: FIRST_REGION, range, ..Region::default() };
                answer_of_directory(ask, vec![RegionInfo { region, leader: self.leader, bytes: 0 }])
            }
            _ if is_born => Err(Error::EpochNotMatch { current: vec![voters(&[1])] }),
            // It is looked for everywhere, and may come, as long as there is time.
            _ => {
                *self.now.lock() += timeout;
                Err(Error::RegionNotFound(REGION))
            }
        };
        done.call(answer);
    }

    fn now(&self) -> Time {
        Time(0).after(*self.now.lock())
    }

    fn pause(&self, pause: Duration, done: Done<()>) {
        *self.now.lock() += pause;
        done.call(Ok(()));
    }
}

/// What comes of asking for a voter that is there already, and after how long.
fn asked(cluster: Newborn) -> (Result<Region>, Duration) {
    let cluster = Arc::new(cluster);
    let client = Client::new(cluster.clone(), Duration::from_secs(60));
    let said = wait(client.add_voter(REGION, StoreId(1)));
    let took = *cluster.now.lock();
    (said, took)
}

/// A mistyped region was looked for until the time was up, and then the caller was told to ask again.
#[test]
fn a_region_that_is_nowhere_is_told_and_one_just_born_is_waited_for() {
    let leader = Some(StoreId(1));
    let (said, took) = asked(Newborn { leader, ..Newborn::default() });
    assert!(matches!(said, Err(Error::RegionNotFound(REGION))), "{said:?}");
    assert!(took >= NEWBORN && took < NEWBORN * 3, "{took:?}");
    let born = Some(NEWBORN);
    let (said, _) = asked(Newborn { leader, born, ..Newborn::default() });
    assert_eq!(said.unwrap(), voters(&[1]));
    // A directory that has not heard from all leaders proves nothing.
    let (said, took) = asked(Newborn::default());
    assert!(matches!(said, Err(Error::RegionNotFound(REGION))), "{said:?}");
    assert!(took > Duration::from_secs(55), "{took:?}");
}

/// A region whose leader's answers get lost at first. The second request was heard: the learner came, and somebody else had it
/// removed.
struct Meddled {
    now: Mutex<Region>,
    /// The ids that learners were asked for with.
    asked: Mutex<Vec<PeerId>>,
    ids: Mutex<u64>,
}

impl Meddled {
    fn change(&self, epoch: Epoch, changes: &[Change]) -> Result<Response> {
        let mut now = self.now.lock();
        let peer = changes[0].peer();
        let nth = {
            let mut asked = self.asked.lock();
            asked.push(peer);
            asked.len()
        };
        if nth > 1 {
            *now = membership::change(&now, &[], epoch, changes)?;
        }
        if nth == 2 {
            *now = membership::change(&now, &[], now.epoch, &[Change::Remove(peer)])?;
        }
        match nth {
            1 | 2 => Err(Error::Timeout { after_ms: 1, what: "a node's answer" }),
            _ => Ok(Response::Regions(vec![now.clone()])),
        }
    }
}

impl Backend for Meddled {
    fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
        done.call(match body {
            Body::Directory(ask) => answer_of_directory(ask, Vec::new()),
            Body::Admin { admin: Admin::Allocate { .. }, .. } => {
                let mut ids = self.ids.lock();
                *ids += 1;
                Ok(Response::Ids(*ids))
            }
            Body::Admin { admin: Admin::ChangePeers { epoch, changes }, .. } => {
                self.change(epoch, &changes)
            }
            _ => Err(Error::EpochNotMatch { current: vec![self.now.lock().clone()] }),
        });
    }

    fn now(&self) -> Time {
        Time(0)
    }

    fn pause(&self, _pause: Duration, done: Done<()>) {
        done.call(Ok(()));
    }
}

/// Whoever heard nothing asked again with the same id, though that replica had come and gone: its store never lets it live again,
/// and the learner was waited for for ever (seed 4560 of the simulator's regions).
#[test]
fn a_replica_that_came_and_went_is_not_asked_for_again() {
    let cluster = Arc::new(Meddled {
        now: Mutex::new(voters(&[1, 2])),
        asked: Mutex::default(),
        ids: Mutex::new(70),
    });
    let client = Client::new(cluster.clone(), Duration::from_secs(10));
    let now = wait(client.add_learner(REGION, StoreId(9))).unwrap();
    let asked = cluster.asked.lock().clone();
    assert_eq!(asked, [PeerId(71), PeerId(71), PeerId(72)], "with the same only while it may");
    assert_eq!(now.peer_on(StoreId(9)).map(|peer| peer.id), Some(PeerId(72)));
}

/// It was taken for one that has its replica already, whose old one is to go: the region had one voter less.
#[test]
fn a_replica_does_not_take_its_own_place() {
    let cluster = Arc::new(Led {
        now: Mutex::new(voters(&[1, 2, 3])),
        leader: Mutex::new(StoreId(1)),
        voters: Mutex::new((3, 3)),
        asked: Mutex::default(),
    });
    let client = Client::new(cluster.clone(), Duration::from_secs(10));
    let refused = wait(client.replace_peer(REGION, StoreId(2), StoreId(2)));
    assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    assert_eq!(*cluster.now.lock(), voters(&[1, 2, 3]));
}
