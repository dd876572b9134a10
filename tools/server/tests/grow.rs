//! From three server processes to five, and down to another three, under load: two join, every region's
//! replicas are spread over all five, then the first two nodes are emptied and stopped. Every region must have its
//! replicas where they should be, on the nodes that remain and nowhere else, and nothing acknowledged may be lost,
//! not even when one of the newcomers is killed afterwards.
//!
//! `CATAMARAN_REGIONS` says how many regions (default 12).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use catamaran::client::Blocking;
use catamaran::types::{Region, RegionId, Role, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::load::{self, Targets};
use support::{Plan, Servers, client, number, status, wait_for};

const WRITERS: u64 = 4;
const REPLICAS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);

/// Where each region's replicas should be.
type Places = BTreeMap<RegionId, BTreeSet<StoreId>>;

/// Each on three of these stores, in turn.
fn spread(regions: u64, stores: &[u64]) -> Places {
    let of = |region: u64| {
        let turn = (0..REPLICAS).map(|at| stores[(region as usize + at) % stores.len()]);
        (RegionId(region), turn.map(StoreId).collect())
    };
    (1..=regions).map(of).collect()
}

fn on(region: &Region) -> BTreeSet<StoreId> {
    region.peers.iter().map(|peer| peer.store).collect()
}

/// Asks until it is done: the goal is the same however often it is asked for.
fn insist<T>(what: &str, mut ask: impl FnMut() -> catamaran::Result<T>) -> T {
    wait_for(what, PATIENCE, || ask().inspect_err(|error| println!("    {what}: {error}")).ok())
}

/// Moves replicas until every region has them where they should be; gives how many moved.
fn arrange(operator: &Blocking, places: &Places) -> usize {
    let mut moves = 0;
    for (region, wanted) in places {
        let now = on(&insist(&format!("{region:?}"), || operator.region(*region)));
        let pairs = now.difference(wanted).zip(wanted.difference(&now));
        for (from, to) in pairs {
            let what = format!("{region:?} from {from:?} to {to:?}");
            insist(&what, || operator.replace_peer(*region, *from, *to));
            moves += 1;
        }
    }
    moves
}

/// Waits until all replicas vote, where they should be, and no other is left anywhere.
fn settled(servers: &Servers, ids: &[u64], operator: &Blocking, places: &Places) {
    for (region, wanted) in places {
        let now = insist(&format!("{region:?}"), || operator.region(*region));
        assert_eq!(on(&now), *wanted, "{now:?}");
        assert!(now.peers.iter().all(|peer| peer.role == Role::Voter), "{now:?}");
    }
    for id in ids {
        let wanted = places.iter().filter(|(_, stores)| stores.contains(&StoreId(*id)));
        let wanted: BTreeSet<RegionId> = wanted.map(|(region, _)| *region).collect();
        let mut last = BTreeSet::new();
        wait_for(&format!("server {id} has {wanted:?} and nothing else"), PATIENCE, || {
            let found: BTreeSet<RegionId> =
                status(servers.address(*id))?.regions.iter().map(|one| one.region.id).collect();
            if found != last {
                println!("    server {id}: {} replicas, wanted {}", found.len(), wanted.len());
                last.clone_from(&found);
            }
            (found == wanted).then_some(())
        });
    }
}

#[test]
fn three_nodes_become_five_and_three_others_remain() {
    let regions = number("CATAMARAN_REGIONS").unwrap_or(12);
    let mut servers = Servers::founded(3, Plan { regions, ..Plan::default() });
    let targets = Targets::new(servers.running());
    let stop = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stop, targets) = (&stop, &targets);
                scope.spawn(move || load::write_until(stop, targets, regions, writer))
            })
            .collect();
        // A failure must not leave the writers running: catch, stop them, go on failing.
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            live(&mut servers, &targets, regions);
        }));
        stop.store(true, Ordering::Relaxed);
        let all: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        if let Err(panic) = story {
            for id in 1..=5 {
                println!("server {id}:\n{}", servers.log_tail(id));
            }
            std::panic::resume_unwind(panic);
        }
        all
    });
    load::verify(&servers.running(), regions, &all);
    // Each of the remaining alone knows the way to everything.
    for address in servers.running() {
        load::verify(&[address], regions, &all);
    }
}

fn live(servers: &mut Servers, targets: &Targets, regions: u64) {
    let started = Instant::now();
    let say = |what: &str| println!("{:>7.1?} {what}", started.elapsed());
    let operator = client(&servers.running(), Duration::from_secs(20));
    let three = spread(regions, &[1, 2, 3]);
    settled(servers, &[1, 2, 3], &operator, &three);
    std::thread::sleep(Duration::from_secs(1));

    servers.join(4);
    servers.join(5);
    targets.set(servers.running());
    say("two more have joined");
    let operator = client(&servers.running(), Duration::from_secs(20));
    let five = spread(regions, &[1, 2, 3, 4, 5]);
    let moves = arrange(&operator, &five);
    settled(servers, &[1, 2, 3, 4, 5], &operator, &five);
    say(&format!("{moves} replicas moved: spread over five"));
    std::thread::sleep(Duration::from_secs(1));

    let rest = spread(regions, &[3, 4, 5]);
    let operator = client(&servers.running(), Duration::from_secs(20));
    let moves = arrange(&operator, &rest);
    settled(servers, &[1, 2, 3, 4, 5], &operator, &rest);
    say(&format!("{moves} replicas moved: the first two are empty"));
    let remaining: Vec<String> = (3..=5).map(|id| servers.address(id).to_owned()).collect();
    targets.set(remaining.clone());
    for id in [1, 2] {
        let code = servers.terminate(id, PATIENCE);
        assert_eq!(code, Some(0), "{}", servers.log_tail(id));
    }
    say("they are stopped");
    let operator = client(&remaining, Duration::from_secs(20));
    settled(servers, &[3, 4, 5], &operator, &rest);
    std::thread::sleep(Duration::from_secs(1));

    servers.kill(4);
    std::thread::sleep(Duration::from_secs(2));
    servers.spawn(4);
    settled(servers, &[3, 4, 5], &operator, &rest);
    for region in 0..regions {
        let key = load::key(regions, region, "last");
        insist("a write at the end", || operator.put(&key, "word"));
    }
    say("a newcomer was killed and came back");
}
