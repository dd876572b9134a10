//! Plans are made and carried out, until there is nothing left to do: on the way nothing is lost.

use super::*;
use crate::types::{KeyRange, PeerId};
use proptest::prelude::*;

const LIMITS: Limits =
    Limits { wanted: 3, moves: 4, steps: 64, merge_bytes: 0, merges: 0, transfers: 4 };

fn site(store: u64, state: StoreState) -> Site {
    Site { store: StoreId(store), state, reachable: true, used_bytes: 0, capacity_bytes: 0 }
}

/// The first `up` stores are up, the rest draining.
fn sites(up: u64, draining: u64) -> Vec<Site> {
    let state = |id| if id <= up { StoreState::Up } else { StoreState::Draining };
    (1..=up + draining).map(|id| site(id, state(id))).collect()
}

fn region(id: u64, peers: &[(u64, Role)]) -> Region {
    let peer = |(store, role): &(u64, Role)| Peer {
        id: PeerId(id * 100 + store),
        store: StoreId(*store),
        role: *role,
    };
    Region {
        id: RegionId(id),
        range: KeyRange::all(),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: peers.iter().map(peer).collect(),
    }
}

fn voters(id: u64, stores: &[u64]) -> Region {
    let peers: Vec<(u64, Role)> = stores.iter().map(|store| (*store, Role::Voter)).collect();
    region(id, &peers)
}

fn one(sites: &[Site], region: &Region, leader: u64) -> Plan {
    let leader = Some(StoreId(leader)).filter(|store| store.0 != 0);
    plan(sites, &[Place { region, leader, calm: None, kept: false }], LIMITS)
}

fn action(sites: &[Site], region: &Region, leader: u64) -> Option<Action> {
    let plan = one(sites, region, leader);
    assert!(plan.steps.len() <= 1 && plan.steps.iter().all(|step| !step.why.is_empty()));
    plan.steps.into_iter().next().map(|step| step.action)
}

#[test]
fn a_settled_cluster_is_let_be() {
    let small = voters(1, &[1, 2]);
    assert_eq!(one(&sites(2, 0), &small, 1), Plan::default(), "fewer stores than wanted");
    assert_eq!(one(&sites(4, 0), &voters(1, &[1, 2, 3]), 1), Plan::default());
    let learner =
        region(1, &[(1, Role::Voter), (2, Role::Voter), (3, Role::Voter), (4, Role::Learner)]);
    assert_eq!(one(&sites(4, 0), &learner, 1), Plan::default(), "somebody wanted it");
    assert_eq!(one(&sites(4, 0), &voters(1, &[1, 2, 9]), 1), Plan::default(), "nobody knows s9");
}

#[test]
fn a_replica_leaves_a_draining_store_step_by_step() {
    let sites = sites(4, 1);
    let all = [(1, Role::Voter), (2, Role::Voter), (5, Role::Voter)];
    assert_eq!(action(&sites, &region(1, &all), 5), Some(Action::Transfer { to: StoreId(1) }));
    let add = action(&sites, &region(1, &all), 1);
    assert_eq!(add, Some(Action::AddLearner { on: StoreId(3) }));
    let more = [&all[..], &[(3, Role::Learner)]].concat();
    let swap = vec![Change::Promote(PeerId(103)), Change::Demote(PeerId(105))];
    assert_eq!(action(&sites, &region(1, &more), 1), Some(Action::Change(swap)));
    let joint = [(1, Role::Voter), (2, Role::Voter), (5, Role::Demoting), (3, Role::Incoming)];
    assert_eq!(action(&sites, &region(1, &joint), 1), None, "it ends by itself");
    let after = [(1, Role::Voter), (2, Role::Voter), (5, Role::Learner), (3, Role::Voter)];
    let remove = Action::Change(vec![Change::Remove(PeerId(105))]);
    assert_eq!(action(&sites, &region(1, &after), 1), Some(remove.clone()));
    // Somebody gave it a fourth voter meanwhile.
    assert_eq!(action(&sites, &voters(1, &[1, 2, 3, 5]), 1), Some(remove));
    assert_eq!(action(&sites, &voters(1, &[1, 2, 3]), 1), None);
}

#[test]
fn the_only_voter_makes_another_one_first() {
    let sites = sites(1, 1);
    let limits = Limits { wanted: 1, ..LIMITS };
    let next = |region: &Region, leader| {
        let leader = Some(StoreId(leader));
        plan(&sites, &[Place { region, leader, calm: None, kept: false }], limits)
            .steps
            .remove(0)
            .action
    };
    assert_eq!(next(&voters(1, &[2]), 2), Action::AddLearner { on: StoreId(1) });
    let two = region(1, &[(2, Role::Voter), (1, Role::Learner)]);
    assert_eq!(next(&two, 2), Action::Change(vec![Change::Promote(PeerId(101))]));
    assert_eq!(next(&voters(1, &[2, 1]), 2), Action::Transfer { to: StoreId(1) });
    assert_eq!(next(&voters(1, &[2, 1]), 1), Action::Change(vec![Change::Remove(PeerId(102))]));
}

#[test]
fn nothing_is_given_to_those_who_cannot_take_it() {
    let mut sites = sites(4, 1);
    let region = voters(1, &[1, 2, 5]);
    sites[2].reachable = false;
    assert_eq!(action(&sites, &region, 1), Some(Action::AddLearner { on: StoreId(4) }));
    (sites[3].used_bytes, sites[3].capacity_bytes) = (95 << 30, 100 << 30);
    let plan = one(&sites, &region, 1);
    assert_eq!((plan.steps.len(), plan.unsettled), (0, 1));
    assert!(plan.stuck[0].contains("no other store"), "{plan:?}");
    let plan = one(&sites, &region, 0);
    assert!(plan.stuck[0].contains("no leader"), "{plan:?}");
    // A leadership is not given to one that is out of reach, nor to one that goes, too.
    sites[0].reachable = false;
    sites[1].state = StoreState::Draining;
    sites[3].used_bytes = 0;
    assert_eq!(action(&sites, &region, 5), Some(Action::AddLearner { on: StoreId(4) }));
}

#[test]
fn missing_voters_are_made() {
    let add = action(&sites(4, 0), &voters(1, &[1, 2]), 1);
    assert_eq!(add, Some(Action::AddLearner { on: StoreId(3) }));
    let more = region(1, &[(1, Role::Voter), (2, Role::Voter), (4, Role::Learner)]);
    let promote = Action::Change(vec![Change::Promote(PeerId(104))]);
    assert_eq!(action(&sites(4, 0), &more, 1), Some(promote));
}

#[test]
fn work_is_bounded_and_spread() {
    let regions: Vec<Region> = (1..=40).map(|id| voters(id, &[1, 2, 6])).collect();
    let places: Vec<Place<'_>> = regions
        .iter()
        .map(|region| Place { region, leader: Some(StoreId(1)), calm: None, kept: false })
        .collect();
    let plan = plan(&sites(5, 1), &places, LIMITS);
    assert_eq!((plan.steps.len(), plan.unsettled), (LIMITS.moves, 40));
    let on = |step: &Step| match step.action {
        Action::AddLearner { on } => on.0,
        _ => panic!("{step:?}"),
    };
    assert_eq!(plan.steps.iter().map(on).collect::<Vec<_>>(), [3, 4, 5, 3]);
    assert!(plan.steps[0].why.contains("s6 is to be empty"), "{}", plan.steps[0].why);
}

/// A store died with the learners that were on their way to it. They kept all turns, and were to vote, which was refused again and
/// again: no other region was given a replica anywhere, and nothing said why.
#[test]
fn learners_on_a_store_that_is_gone_do_not_keep_the_turns_of_others() {
    let mut sites = sites(5, 1);
    let begun = [(1, Role::Voter), (2, Role::Voter), (6, Role::Voter), (3, Role::Learner)];
    let regions: Vec<Region> = (1..=4)
        .map(|id| region(id, &begun))
        .chain((5..=6).map(|id| voters(id, &[1, 2, 6])))
        .collect();
    let places: Vec<Place<'_>> = regions
        .iter()
        .map(|region| Place { region, leader: Some(StoreId(1)), calm: None, kept: false })
        .collect();
    let swaps = plan(&sites, &places, LIMITS);
    assert_eq!((swaps.steps.len(), swaps.unsettled), (LIMITS.moves, 6), "all turns are taken");
    sites[2].reachable = false;
    let others = plan(&sites, &places, LIMITS);
    let added = |step: &Step| (step.region.0, matches!(step.action, Action::AddLearner { .. }));
    assert_eq!(others.steps.iter().map(added).collect::<Vec<_>>(), [(5, true), (6, true)]);
    assert_eq!((others.stuck.len(), others.unsettled), (4, 6));
    assert!(others.stuck[0].contains("on s3, which is out of reach"), "{:?}", others.stuck);
    // A store that nobody has ever heard of is no better.
    let mistyped: Vec<Site> =
        sites.iter().copied().filter(|site| site.store != StoreId(3)).collect();
    let others = plan(&mistyped, &places, LIMITS);
    assert_eq!(others.steps.iter().map(added).collect::<Vec<_>>(), [(5, true), (6, true)]);
    assert!(others.stuck[0].contains("on s3, which is not on record"), "{:?}", others.stuck);
    // Another one that gets on is as good.
    let both = region(1, &[&begun[..], &[(4, Role::Learner)]].concat());
    let swap = vec![Change::Promote(PeerId(104)), Change::Demote(PeerId(106))];
    assert_eq!(action(&sites, &both, 1), Some(Action::Change(swap)));
    // A region that is short of voters says so, too, and is not taken for one of a small cluster.
    let short = one(&sites, &region(1, &begun[1..]), 2);
    assert!(short.unsettled == 1 && !short.stuck.is_empty(), "{short:?}");
}

/// What the cluster makes of a step.
fn carry_out(region: &mut Region, leader: &mut u64, step: &Step, next_id: &mut u64) {
    let before = region.peers.iter().filter(|peer| peer.role == Role::Voter).count();
    let role_of = |region: &mut Region, leader: u64, id: PeerId, role: Role| {
        let peer = region.peers.iter_mut().find(|peer| peer.id == id).unwrap();
        assert!(role != Role::Learner || peer.store.0 != leader, "a leader demotes itself");
        peer.role = role;
    };
    match &step.action {
        Action::Transfer { to } => {
            assert!(region.peer_on(*to).is_some_and(|peer| peer.role == Role::Voter));
            *leader = to.0;
        }
        Action::AddLearner { on } => {
            assert!(region.peer_on(*on).is_none(), "{region:?} {step:?}");
            *next_id += 1;
            let role = Role::Learner;
            region.peers.push(Peer { id: PeerId(*next_id), store: *on, role });
        }
        Action::Change(changes) => {
            for change in changes {
                match change {
                    Change::Promote(id) => role_of(region, *leader, *id, Role::Voter),
                    Change::Demote(id) => role_of(region, *leader, *id, Role::Learner),
                    Change::Remove(id) => {
                        assert!(region.peer(*id).is_some_and(|peer| peer.store.0 != *leader));
                        region.peers.retain(|peer| peer.id != *id);
                    }
                    Change::AddLearner { .. } => panic!("{step:?}"),
                }
            }
        }
        Action::Merge { .. } => panic!("{step:?}"),
    }
    region.epoch.conf_ver += 1;
    let after = region.peers.iter().filter(|peer| peer.role == Role::Voter).count();
    assert!(after >= before.min(3), "{before} voters become {after}: {step:?}");
}

proptest! {
    #[test]
    fn plans_lead_to_where_everything_is_as_it_should_be(
        regions in proptest::collection::vec((0u64..6, 0u64..3), 1..12),
        draining in proptest::collection::btree_set(1u64..=6, 0..=3),
        skip in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let state = |id| match draining.contains(&id) {
            true => StoreState::Draining,
            false => StoreState::Up,
        };
        let sites: Vec<Site> = (1..=6).map(|id| site(id, state(id))).collect();
        let mut next_id = 10_000;
        let mut cluster: Vec<(Region, u64)> = regions
            .iter()
            .zip(1..)
            .map(|((first, leader), id)| {
                let stores: Vec<u64> = (0..3).map(|at| (first + at) % 6 + 1).collect();
                (voters(id, &stores), stores[*leader as usize])
            })
            .collect();
        let mut skip = skip.into_iter();
        for look in 0.. {
            prop_assert!(look < 400, "no end: {cluster:?}");
            let places: Vec<Place<'_>> = cluster
                .iter()
                .map(|(region, leader)| Place { region, leader: Some(StoreId(*leader)), calm: None, kept: false })
                .collect();
            let plan = plan(&sites, &places, LIMITS);
            prop_assert!(plan.stuck.is_empty(), "{plan:?}");
            let learners = |(region, _): &&(Region, u64)| {
                region.peers.iter().any(|p| p.role == Role::Learner && !draining.contains(&p.store.0))
            };
            prop_assert!(cluster.iter().filter(learners).count() <= LIMITS.moves);
            if plan.steps.is_empty() {
                prop_assert_eq!(plan.unsettled, 0);
                break;
            }
            for step in &plan.steps {
                // Some are refused: they come again.
                if skip.next() == Some(true) {
                    continue;
                }
                let (region, leader) =
                    cluster.iter_mut().find(|(region, _)| region.id == step.region).unwrap();
                carry_out(region, leader, step, &mut next_id);
            }
        }
        for (region, _) in &cluster {
            prop_assert_eq!(region.peers.len(), 3);
            prop_assert!(region.peers.iter().all(|peer| peer.role == Role::Voter));
            prop_assert!(region.peers.iter().all(|peer| !draining.contains(&peer.store.0)));
        }
    }
}
