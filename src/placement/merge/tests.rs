//! Small neighbours become one, large ones and hot ones stay, and there is an end to it.

use super::super::plan::sites;
use super::super::{Limits, Plan, Site, plan};
use super::*;
use crate::codec::directory::StoreState;
use crate::types::{Epoch, KeyRange, Peer, PeerId};
use proptest::prelude::*;

/// Regions are cut above this.
const SPLIT: u64 = 1000;
const LIMITS: Limits = Limits {
    wanted: 3,
    moves: 4,
    steps: 64,
    merge_bytes: SPLIT * 20 / 100,
    merges: 4,
    transfers: 0,
};

/// Region `id` of a row: it begins where `id - 1` ends.
fn region(id: u64, of: u64, stores: &[u64]) -> Region {
    let bound = |at: u64| match at {
        0 => String::new(),
        at if at == of => String::new(),
        at => format!("{at:06}"),
    };
    let peer = |store: &u64| Peer {
        id: PeerId(id * 100 + store),
        store: StoreId(*store),
        role: Role::Voter,
    };
    Region {
        id: RegionId(id),
        range: KeyRange::new(bound(id - 1), bound(id)),
        epoch: Epoch { conf_ver: 1, version: id },
        peers: stores.iter().map(peer).collect(),
    }
}

/// Regions of these sizes in a row; `None`: not calm.
fn row(sizes: &[Option<u64>], stores: impl Fn(u64) -> Vec<u64>) -> Vec<(Region, Option<u64>)> {
    let of = sizes.len() as u64;
    let one = |(size, id): (&Option<u64>, u64)| (region(id, of, &stores(id)), *size);
    sizes.iter().zip(1..).map(one).collect()
}

fn planned(sites: &[Site], row: &[(Region, Option<u64>)]) -> Plan {
    let places: Vec<Place<'_>> = row
        .iter()
        .map(|(region, calm)| Place {
            region,
            leader: Some(region.peers[0].store),
            calm: *calm,
            kept: false,
        })
        .collect();
    plan(sites, &places, LIMITS)
}

/// Who is to go into whom.
fn pairs(sites: &[Site], row: &[(Region, Option<u64>)]) -> Vec<(u64, u64)> {
    let plan = planned(sites, row);
    let pair = |step: &super::super::Step| match step.action {
        Action::Merge { into, .. } => (step.region.0, into.0),
        _ => panic!("{step:?}"),
    };
    plan.steps.iter().map(pair).collect()
}

fn everywhere(_: u64) -> Vec<u64> {
    vec![1, 2, 3]
}

#[test]
fn small_cold_neighbours_go_into_each_other() {
    let calm = |sizes: &[u64]| row(&sizes.iter().map(|s| Some(*s)).collect::<Vec<_>>(), everywhere);
    // The smaller one goes, the right one of equals, never region 1.
    assert_eq!(pairs(&sites(3), &calm(&[0, 100])), [(2, 1)]);
    assert_eq!(pairs(&sites(3), &calm(&[9, 5, 0, 100])), [(2, 1), (3, 4)]);
    assert_eq!(pairs(&sites(3), &calm(&[9, 5, 0, 100, 7])), [(2, 1), (3, 4)]);
    assert_eq!(pairs(&sites(3), &calm(&[0; 40])).len(), LIMITS.merges);
    // One at the limit, one beyond it.
    assert_eq!(pairs(&sites(3), &calm(&[0, 200])), [(2, 1)]);
    assert_eq!(pairs(&sites(3), &calm(&[0, 201])), []);
}

#[test]
fn who_is_not_known_to_be_calm_is_let_be() {
    let sizes = [Some(1), None, Some(1), Some(1), None, Some(1)];
    assert_eq!(pairs(&sites(3), &row(&sizes, everywhere)), [(4, 3)]);
    let mut gap = row(&[Some(1), Some(1), Some(1)], everywhere);
    gap.remove(1);
    assert_eq!(pairs(&sites(3), &gap), [], "what lies between has not been reported");
    let two = row(&[Some(1), Some(1)], everywhere);
    let places: Vec<Place<'_>> = two
        .iter()
        .map(|(region, calm)| Place { region, leader: None, calm: *calm, kept: false })
        .collect();
    assert_eq!(plan(&sites(3), &places, LIMITS).steps, [], "nobody leads them");
    let mut learns = two.clone();
    learns[0].0.peers[2].role = Role::Learner;
    assert_eq!(planned(&sites(3), &learns).steps.len(), 1, "it is to vote first");
    assert!(matches!(planned(&sites(3), &learns).steps[0].goal, Goal::Repair));
    for merges in [Limits { merge_bytes: 0, ..LIMITS }, Limits { merges: 0, ..LIMITS }] {
        let leader = Some(StoreId(1));
        let places: Vec<Place<'_>> = two
            .iter()
            .map(|(region, calm)| Place { region, leader, calm: *calm, kept: false })
            .collect();
        assert_eq!(plan(&sites(3), &places, merges), Plan::default());
    }
}

#[test]
fn all_their_stores_must_be_there_and_stay() {
    let two = row(&[Some(1), Some(1)], everywhere);
    let mut away = sites(4);
    away[2].reachable = false;
    assert_eq!(pairs(&away, &two), []);
    let mut goes = sites(4);
    goes[2].state = StoreState::Draining;
    let plan = planned(&goes, &two);
    assert!(plan.steps.iter().all(|step| step.goal == Goal::Drain), "{plan:?}");
    assert_eq!(pairs(&sites(2), &row(&[Some(1), Some(1)], |_| vec![1, 2, 9])), [], "who is s9?");
}

#[test]
fn those_that_live_together_go_first_and_nobody_moves_to_a_full_store() {
    let apart = |id| if id == 1 { vec![1, 2, 3] } else { vec![2, 3, 4] };
    let three = row(&[Some(9), Some(1), Some(5)], apart);
    assert_eq!(pairs(&sites(4), &three), [(2, 3)]);
    assert_eq!(pairs(&sites(4), &three[..2]), [(2, 1)]);
    let mut full = sites(4);
    (full[0].used_bytes, full[0].capacity_bytes) = (95 << 30, 100 << 30);
    assert_eq!(pairs(&full, &three[..2]), []);
}

/// A cluster as far as its regions' sizes go: what is planned is done, what is too large is cut, as `region::size` does.
struct Model {
    regions: Vec<(Region, u64)>,
    next: u64,
    cuts: usize,
    merges: usize,
}

impl Model {
    fn new(sizes: &[u64]) -> Model {
        let sizes: Vec<Option<u64>> = sizes.iter().map(|size| Some(*size)).collect();
        let regions = row(&sizes, everywhere);
        let regions = regions.into_iter().map(|(region, size)| (region, size.unwrap())).collect();
        Model { regions, next: 1000, cuts: 0, merges: 0 }
    }

    /// Cuts what is too large into pieces of half that size, and leaves no crumb.
    fn cut(&mut self) {
        let piece = SPLIT / 2;
        let mut out: Vec<(Region, u64)> = Vec::new();
        for (region, size) in std::mem::take(&mut self.regions) {
            if size <= SPLIT {
                out.push((region, size));
                continue;
            }
            self.cuts += 1;
            let count = (size / piece + u64::from(size % piece >= piece / 2)).max(1);
            let mut start = region.range.start.clone();
            for n in 1..=count {
                let end = match n == count {
                    true => region.range.end.clone(),
                    false => {
                        [&region.range.start[..], format!("/{n:04}").as_bytes()].concat().into()
                    }
                };
                let id = if n == 1 { region.id } else { RegionId(self.next) };
                self.next += 1;
                let range = KeyRange { start, end: end.clone() };
                start = end;
                let size = if n == count { size - piece * (count - 1) } else { piece };
                out.push((Region { id, range, ..region.clone() }, size));
            }
        }
        self.regions = out;
    }

    /// Plans, and does it. Whether there was anything to do. Nobody writes: all that is small is calm.
    fn merge(&mut self, skip: &mut impl Iterator<Item = bool>) -> bool {
        let calm = |size: u64| Some(size).filter(|size| *size <= LIMITS.merge_bytes);
        let row: Vec<_> = self.regions.iter().map(|(r, size)| (r.clone(), calm(*size))).collect();
        let plan = planned(&sites(3), &row);
        for step in &plan.steps {
            let Action::Merge { into, .. } = step.action else { panic!("{step:?}") };
            if skip.next() == Some(true) {
                continue; // refused: it comes again
            }
            let at = |id| self.regions.iter().position(|(region, _)| region.id == id).unwrap();
            let (source, size) = self.regions.remove(at(step.region));
            assert!(source.id != FIRST_REGION);
            let into = self.regions.iter().position(|(region, _)| region.id == into).unwrap();
            let (target, total) = &mut self.regions[into];
            let beside = target.range.end == source.range.start && !target.range.end.is_empty()
                || source.range.end == target.range.start && !source.range.end.is_empty();
            assert!(beside, "{source:?} {target:?}");
            target.range = target.range.hull(&source.range);
            *total += size;
            assert!(*total <= SPLIT / 2, "a merge is far from a cut: {total}");
            self.merges += 1;
        }
        !plan.steps.is_empty()
    }

    fn settle(&mut self, skip: &mut impl Iterator<Item = bool>) {
        for look in 0.. {
            assert!(look < 500, "no end");
            self.cut();
            if !self.merge(skip) {
                return;
            }
        }
    }
}

proptest! {
    #[test]
    fn merges_and_cuts_come_to_an_end(
        sizes in proptest::collection::vec(prop_oneof![0u64..300, 0u64..4000], 1..60),
        growth in proptest::collection::vec((any::<prop::sample::Index>(), 0u64..3000), 0..10),
        skip in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let mut model = Model::new(&sizes);
        let mut skip = skip.into_iter();
        model.cut();
        let (cuts, before) = (model.cuts, model.regions.len());
        model.settle(&mut skip);
        prop_assert_eq!(model.cuts, cuts, "nothing that was merged is cut");
        prop_assert_eq!(model.regions.len() + model.merges, before);
        let total: u64 = model.regions.iter().map(|(_, size)| size).sum();
        prop_assert_eq!(total, sizes.iter().sum::<u64>());
        // No two small neighbours are left, and all is covered still.
        for pair in model.regions.windows(2) {
            prop_assert_eq!(&pair[0].0.range.end, &pair[1].0.range.start);
            prop_assert!(pair[0].1.max(pair[1].1) > LIMITS.merge_bytes);
        }
        // Some grow: they are cut, and no piece of them is merged.
        let merges = model.merges;
        for (at, more) in growth {
            let at = at.index(model.regions.len());
            model.regions[at].1 += more;
        }
        model.settle(&mut skip);
        prop_assert_eq!(model.merges, merges, "what has grown is not small");
    }
}
