//! Three real server processes under load; a random one is killed (`kill -9`) and started again, over
//! and over. After each kill every region must take writes again, and the test prints how soon; at the end every
//! acknowledged write must be there.
//!
//! `CATAMARAN_KILLS` says how often (default 20), `CATAMARAN_SEED` repeats the choices of a run. How soon is the
//! machine's affair as well: `CATAMARAN_RECOVERY_MS=3000` makes a slower recovery fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use catamaran::client::{Blocking, RemoteClient};
use catamaran::store::RegionStatus;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::Servers;

const REGIONS: u64 = 8;
const WRITERS: u64 = 4;
const KEYS: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(30);

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Keys go round the regions: a new cluster is cut by the first eight bytes.
fn key(region: u64, name: &str) -> Vec<u8> {
    let mut key = vec![(region % REGIONS * (256 / REGIONS)) as u8];
    key.extend_from_slice(name.as_bytes());
    key
}

fn client(addresses: &[String], timeout: Duration) -> Blocking {
    RemoteClient::new(addresses, None, timeout).unwrap().client().blocking()
}

/// What one writer knows of a key: versions up to `acked` were acknowledged, up to `issued` tried.
#[derive(Clone, Copy, Default)]
struct Versions {
    acked: u64,
    issued: u64,
}

fn name(writer: u64, at: u64) -> String {
    format!("writer{writer}/key{at:03}")
}

fn write_until(stop: &AtomicBool, addresses: &[String], writer: u64) -> (Vec<Versions>, u64, u64) {
    let client = client(addresses, Duration::from_secs(2));
    let mut versions = vec![Versions::default(); KEYS as usize];
    let (mut acked, mut failed) = (0, 0);
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = turn % KEYS;
        let slot = &mut versions[at as usize];
        slot.issued += 1;
        let value = format!("{}={}", name(writer, at), slot.issued);
        match client.put(key(at, &name(writer, at)), value) {
            Ok(()) => {
                slot.acked = slot.issued;
                acked += 1;
            }
            Err(_) => failed += 1,
        }
    }
    (versions, acked, failed)
}

/// Waits until every region has taken a write; gives the time since `since`.
fn recovery(client: &Blocking, since: Instant, round: u64) -> Option<Duration> {
    for region in 0..REGIONS {
        while let Err(error) = client.put(key(region, "probe"), round.to_string()) {
            if since.elapsed() > PATIENCE {
                eprintln!("region {region} takes no writes: {error}");
                return None;
            }
        }
    }
    Some(since.elapsed())
}

fn status(address: &str) -> Option<BTreeMap<u64, RegionStatus>> {
    let one = [address.to_owned()];
    let status = client(&one, Duration::from_secs(1)).status().ok()?;
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
    let seed = number("CATAMARAN_SEED").unwrap_or(u64::from(std::process::id())).max(1);
    let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    println!("{kills} kills, seed {seed}");

    let mut servers = Servers::start(3, REGIONS);
    let addresses = servers.addresses();
    let probe = client(&addresses, Duration::from_millis(500));
    let started = recovery(&probe, Instant::now(), 0).expect("the cluster never started");
    println!("first writes after {started:?}");

    let stop = AtomicBool::new(false);
    let mut recoveries = Vec::new();
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stop, addresses) = (&stop, &addresses);
                scope.spawn(move || write_until(stop, addresses, writer))
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

    let reader = client(&addresses, Duration::from_secs(10));
    let (mut checked, mut acknowledged, mut failed) = (0, 0, 0);
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    for (writer, (versions, acked, errors)) in (0..).zip(written) {
        acknowledged += acked;
        failed += errors;
        for (at, slot) in (0..).zip(versions).filter(|(_, slot)| slot.acked > 0) {
            checked += 1;
            let name = name(writer, at);
            let Some(value) = reader.get(key(at, &name)).unwrap() else {
                missing.push(name);
                continue;
            };
            let value = String::from_utf8_lossy(&value).into_owned();
            let version = value.strip_prefix(&format!("{name}=")).and_then(|v| v.parse().ok());
            if !version.is_some_and(|version| (slot.acked..=slot.issued).contains(&version)) {
                wrong.push(format!("{name}: {value}, wanted {}..={}", slot.acked, slot.issued));
            }
        }
    }
    println!(
        "{acknowledged} writes acknowledged, {failed} failed, {checked} keys checked, {} missing, \
         {} wrong",
        missing.len(),
        wrong.len()
    );
    assert!(acknowledged > 0 && checked > 0, "nothing was written");
    assert!(missing.is_empty() && wrong.is_empty(), "missing {missing:?}, wrong {wrong:?}");
    let slowest = recoveries.iter().max().copied().unwrap_or_default();
    println!("the slowest recovery took {slowest:.2?}");
    if let Some(limit) = number("CATAMARAN_RECOVERY_MS").map(Duration::from_millis) {
        assert!(slowest <= limit, "recoveries over {limit:?}: {recoveries:?}");
    }
}
