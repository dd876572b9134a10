//! Whatever leads where: in the end all stores lead about equally many regions, and then nothing moves.

use super::super::plan::sites;
use super::super::{Limits, Plan, Site, Step, plan};
use super::*;
use crate::codec::directory::StoreState;
use crate::types::{Epoch, KeyRange, Peer, PeerId, Role};
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: Limits =
    Limits { wanted: 3, moves: 4, steps: 64, merge_bytes: 0, merges: 0, transfers: 4 };

/// Regions and their leaders.
type Led = Vec<(Region, u64)>;

/// As many regions, from id 2 on, on these stores; who leads them follows from the id.
fn regions(count: u64, stores: &[u64], leader: impl Fn(u64) -> u64) -> Led {
    let region = |id: u64| Region {
        id: RegionId(id),
        range: KeyRange::all(),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: stores
            .iter()
            .map(|store| Peer {
                id: PeerId(id * 100 + store),
                store: StoreId(*store),
                role: Role::Voter,
            })
            .collect(),
    };
    (2..2 + count).map(|id| (region(id), leader(id))).collect()
}

fn planned(sites: &[Site], led: &Led, kept: &[u64]) -> Plan {
    let places: Vec<Place<'_>> = led
        .iter()
        .map(|(region, leader)| Place {
            region,
            leader: Some(StoreId(*leader)),
            calm: None,
            kept: kept.contains(&region.id.0),
        })
        .collect();
    plan(sites, &places, LIMITS)
}

fn counts(led: &Led) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    led.iter().for_each(|(_, leader)| *counts.entry(*leader).or_default() += 1);
    counts
}

fn carry_out(led: &mut Led, step: &Step) {
    let (region, leader) = led.iter_mut().find(|(region, _)| region.id == step.region).unwrap();
    let Action::Transfer { to } = step.action else { panic!("{step:?}") };
    assert!(region.peer_on(to).is_some() && to.0 != *leader);
    *leader = to.0;
}

/// Plans and carries out until nothing is left to do; the number of steps.
fn settle(sites: &[Site], led: &mut Led) -> usize {
    let mut count = 0;
    loop {
        let plan = planned(sites, led, &[]);
        assert!(plan.steps.len() <= LIMITS.transfers && plan.unsettled == 0, "{plan:?}");
        if plan.steps.is_empty() {
            return count;
        }
        count += plan.steps.len();
        plan.steps.iter().for_each(|step| carry_out(led, step));
        assert!(count < 1_000, "no end");
    }
}

#[test]
fn a_store_that_is_back_is_given_its_share() {
    let mut led = regions(30, &[1, 2, 3], |id| id % 2 + 1);
    let first = planned(&sites(3), &led, &[]);
    assert_eq!(first.steps.len(), LIMITS.transfers);
    assert_eq!(first.steps[0].why, "s1 leads 15 regions, s3 only 0");
    let steps = settle(&sites(3), &mut led);
    let counts = counts(&led);
    assert!(counts.values().all(|count| (8..=12).contains(count)), "{counts:?}");
    assert_eq!(steps, counts[&3], "nothing goes to and fro");
}

/// Ten thousand regions, eight at once, twice a second: the node that was back led its share after four minutes.
#[test]
fn of_many_more_go_at_once() {
    let led = regions(10_000, &[1, 2, 3], |id| id % 2 + 1);
    assert_eq!(planned(&sites(3), &led, &[]).steps.len(), 10_000 / AT_ONCE);
}

#[test]
fn small_differences_are_let_be() {
    for (count, leader) in [(3, 1), (2, 1)] {
        let led = regions(count, &[1, 2, 3], |id| if id == 2 { 2 } else { leader });
        assert_eq!(planned(&sites(3), &led, &[]), Plan::default(), "{led:?}");
    }
    // Ten each but for two more here and two fewer there: a quarter of ten is two.
    let led = regions(30, &[1, 2, 3], |id| if id < 4 { 1 } else { id % 3 + 1 });
    assert_eq!(planned(&sites(3), &led, &[]).steps, []);
}

#[test]
fn nothing_goes_to_whom_it_cannot_go() {
    let led = regions(12, &[1, 2, 3], |_| 1);
    let given = |sites: &[Site], kept: &[u64]| -> BTreeSet<(u64, u64)> {
        let of = |step: &Step| match step.action {
            Action::Transfer { to } => (step.region.0, to.0),
            _ => panic!("{step:?}"),
        };
        planned(sites, &led, kept).steps.iter().map(of).collect()
    };
    let mut sites = sites(4);
    assert_eq!(given(&sites, &[]), [(2, 2), (3, 3), (4, 2), (5, 3)].into());
    assert_eq!(given(&sites, &[2, 4]), [(3, 2), (5, 3), (6, 2), (7, 3)].into(), "they stay");
    sites[1].reachable = false;
    assert_eq!(given(&sites, &[]), [2, 3, 4, 5].map(|id| (id, 3)).into());
    sites[2].reachable = false;
    assert_eq!(given(&sites, &[]), BTreeSet::new(), "who has no replica cannot lead");
    // Region 1 stays: with its leader the directory would go.
    let mut first = led.clone();
    first.iter_mut().for_each(|(region, _)| region.id = FIRST_REGION);
    assert_eq!(planned(&self::sites(4), &first, &[]).steps, []);
}

/// Leaderships of what is drained go as draining wants it, in steps of their own.
#[test]
fn a_region_is_in_one_step_of_a_plan() {
    let mut sites = sites(4);
    sites[0].state = StoreState::Draining;
    let mut led = regions(12, &[1, 2, 3], |_| 1);
    led.extend(
        regions(12, &[2, 3, 4], |_| 2)
            .into_iter()
            .map(|(region, leader)| (Region { id: RegionId(region.id.0 + 100), ..region }, leader)),
    );
    let plan = planned(&sites, &led, &[]);
    let named: BTreeSet<RegionId> = plan.steps.iter().map(|step| step.region).collect();
    assert_eq!(named.len(), plan.steps.len(), "{plan:?}");
    let spread = plan.steps.iter().filter(|step| step.goal == Goal::Spread);
    let to = |step: &Step| step.action.clone();
    let to: Vec<Action> = spread.map(to).collect();
    assert_eq!(to, vec![Action::Transfer { to: StoreId(4) }; LIMITS.transfers]);
}

proptest! {
    #[test]
    fn there_is_an_end_and_then_all_lead_alike(
        leaders in proptest::collection::vec(0usize..3, 1..80),
        spread in any::<bool>(),
        away in proptest::option::of(1u64..=5),
    ) {
        let mut sites = sites(5);
        if let Some(away) = away {
            sites[away as usize - 1].reachable = false;
        }
        let mut led: Led = Vec::new();
        for (at, leader) in leaders.iter().enumerate() {
            let first = if spread { at as u64 % 5 } else { 0 };
            let stores: Vec<u64> = (0..3).map(|next| (first + next) % 5 + 1).collect();
            let (mut region, leader) = regions(1, &stores, |_| stores[*leader]).remove(0);
            region.id = RegionId(at as u64 + 2);
            led.push((region, leader));
        }
        settle(&sites, &mut led);
        let counts = counts(&led);
        let led_by = |store: u64| counts.get(&store).copied().unwrap_or(0);
        let there = |store: &u64| away != Some(*store);
        let share = (1..=5).filter(there).map(led_by).sum::<usize>() / (1..=5).filter(there).count();
        let tolerance = APART.max(share / PART);
        // Nobody could give anything to anybody who leads clearly less.
        for (region, leader) in led.iter().filter(|(_, leader)| there(leader)) {
            for peer in region.peers.iter().filter(|peer| there(&peer.store.0)) {
                prop_assert!(led_by(*leader) <= led_by(peer.store.0) + tolerance, "{counts:?}");
            }
        }
    }
}
