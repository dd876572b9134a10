//! Three real server processes under load; a random one is killed (`kill -9`) and started again, over
//! and over. After each kill every region must take writes again, and the test prints how soon; at the end every
//! acknowledged write must be there.
//!
//! `CATAMARAN_KILLS` says how often (default 20), `CATAMARAN_SEED` repeats the choices of a run. How soon is the
//! machine's affair as well: `CATAMARAN_RECOVERY_MS=3000` makes a slower recovery fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use catamaran::client::Blocking;
use catamaran::store::RegionStatus;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::load::{self, Targets};
use support::{Draw, Servers, client, number};

const REGIONS: u64 = 8;
const WRITERS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until every region has taken a write; gives the time since `since`.
fn recovery(client: &Blocking, since: Instant, round: u64) -> Option<Duration> {
    for region in 0..REGIONS {
        while let Err(error) = client.put(load::key(REGIONS, region, "probe"), round.to_string()) {
            if since.elapsed() > PATIENCE {
                eprintln!("region {region} takes no writes: {error}");
                return None;
            }
        }
    }
    Some(since.elapsed())
}

fn status(address: &str) -> Option<BTreeMap<u64, RegionStatus>> {
    let status = support::status(address)?;
    Some(status.regions.into_iter().map(|region| (region.region.id.0, region)).collect())
}

/// How many regions a server leads.
fn led(servers: &Servers, id: u64) -> usize {
    let regions = status(servers.address(id)).unwrap_or_default();
    regions.values().filter(|region| region.leads).count()
}

/// Waits until a server that came back has applied what was committed when it did: with it a quorum
/// survives the next kill, whoever it hits.
fn caught_up(servers: &Servers, id: u64) {
    let until = Instant::now() + PATIENCE;
    let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
    for other in (1..=3).filter(|&other| other != id) {
        for (region, status) in status(servers.address(other)).unwrap_or_default() {
            let most = wanted.entry(region).or_default();
            *most = status.committed.max(*most);
        }
    }
    loop {
        let now = status(servers.address(id)).unwrap_or_default();
        let behind = wanted.iter().filter(|(region, wanted)| {
            now.get(region).is_none_or(|status| status.applied < **wanted)
        });
        match behind.count() {
            0 => return,
            count if Instant::now() > until => {
                panic!("server {id} stays behind in {count} regions\n{}", servers.log_tail(id))
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[test]
fn killed_servers_lose_nothing_and_the_cluster_writes_again_soon() {
    let kills = number("CATAMARAN_KILLS").unwrap_or(20);
    let mut draw = Draw::start();
    println!("{kills} kills");

    let mut servers = Servers::start(3, REGIONS);
    let addresses = servers.addresses();
    let probe = client(&addresses, Duration::from_millis(500));
    let started = recovery(&probe, Instant::now(), 0).expect("the cluster never started");
    println!("first writes after {started:?}");

    let (stop, targets) = (AtomicBool::new(false), Targets::new(addresses.clone()));
    let mut recoveries = Vec::new();
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stop, targets) = (&stop, &targets);
                scope.spawn(move || load::write_until(stop, targets, REGIONS, writer))
            })
            .collect();
        // A failing kill round must not leave the writers running: catch, stop them, go on failing.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..=kills {
                std::thread::sleep(Duration::from_millis(200 + draw.below(600)));
                // Any server; but half of the time the one whose loss hurts most.
                let victim = match draw.below(2) {
                    0 => 1 + draw.below(3),
                    _ => (1..=3).max_by_key(|&id| led(&servers, id)).unwrap(),
                };
                let killed = Instant::now();
                servers.kill(victim);
                let took = recovery(&probe, killed, round).expect("some region writes no more");
                println!("kill {round}: server {victim}, every region writes after {took:.2?}");
                recoveries.push(took);
                servers.spawn(victim);
                caught_up(&servers, victim);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let written: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        if let Err(panic) = rounds {
            std::panic::resume_unwind(panic);
        }
        written
    });

    load::verify(&addresses, REGIONS, &written);
    let slowest = recoveries.iter().max().copied().unwrap_or_default();
    println!("the slowest recovery took {slowest:.2?}");
    if let Some(limit) = number("CATAMARAN_RECOVERY_MS").map(Duration::from_millis) {
        assert!(slowest <= limit, "recoveries over {limit:?}: {recoveries:?}");
    }
}
